package status

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"html"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"pgproxy/upstream/activity"
	"pgproxy/wire"
	"pgproxy/wire/health"
)

// troubledNight has more to show than busyNight: an hour behind it, idle sessions,
// and a program that blocks a person who blocks another.
func troubledNight() *proxy {
	p := busyNight()
	now := time.Now()
	for i := range 60 {
		m := wire.Minute{Start: now.Add(time.Duration(i-59) * time.Minute).Truncate(time.Minute)}
		for n := range 20 + (i*37)%53 {
			if i > 8 {
				m.Answered(time.Duration(1+i*i%41)*time.Millisecond, i%17 == 3 && n < i%5)
			}
		}
		if i%17 == 3 && i > 8 {
			m.Refused = 3
		}
		p.hour = append(p.hour, m)
	}
	for i := range p.sessions {
		p.sessions[i].UpstreamPID += uint32(i * 37)
	}
	for i := range 12 {
		idle := p.sessions[0]
		idle.ID, idle.User = fmt.Sprintf("idle%08d", i), fmt.Sprintf("person%d@example.com", i%7)
		idle.UpstreamPID, idle.StateSince = uint32(5000+i), now.Add(-time.Duration(i+1)*time.Minute)
		p.sessions = append(p.sessions, idle)
	}
	p.view = func(v wire.Viewer, database string) (*wire.DatabaseView, error) {
		at := started.Add(time.Hour) // the server's clock is its own
		view := &wire.DatabaseView{Snapshot: activity.Snapshot{At: at, Database: "shop", Upstream: "db1.internal:5432", Used: 97, Most: 100, Reserved: 3}}
		view.Waiting = []wire.Backend{
			{Backend: activity.Backend{PID: 41, Start: started, Application: "nightly-import", Addr: "10.0.0.7", Role: "app", Database: "shop", State: "idle in transaction",
				StateSince: at.Add(-20 * time.Minute), TxSince: at.Add(-20 * time.Minute), Query: "UPDATE orders SET note = 'nightly' WHERE id = 7"}},
			{Backend: activity.Backend{PID: 4711, Database: "shop", State: "active", BlockedBy: []int{41}, WaitsFor: "row of public.orders", WaitSince: at.Add(-30 * time.Second)},
				User: "alice@example.com", Session: "aliceactive0", Depth: 1},
			{Backend: activity.Backend{PID: 4712, Database: "shop", State: "active", BlockedBy: []int{4711}, WaitsFor: "public.orders", WaitSince: at.Add(-9 * time.Second)},
				User: "carol@example.com", Node: "carol-desk", Session: "carolwaits00", Depth: 2},
		}
		return view, nil
	}
	return p
}

// order requires texts on a page, one after the other.
func order(t *testing.T, page string, texts ...string) {
	t.Helper()
	for _, text := range texts {
		i := strings.Index(page, text)
		if i < 0 {
			t.Fatalf("%q is missing, or comes too early: what is left is\n%s", text, page)
		}
		page = page[i+len(text):]
	}
}

// Trouble comes first, and in an order that tells who is behind it.
func TestTroubleFirst(t *testing.T) {
	page := get(t, troubledNight(), oncall, "/").Body.String()
	order(t, page, `id="trouble"`,
		`id="backend-41"`, "nightly-import at 10.0.0.7", "blocks 1 other",
		`depth1 bad" id="session-aliceactive0"`, ">waits for lock<", "30 s</time>", "for row of public.orders, held by nightly-import at 10.0.0.7; blocks 1 other",
		`depth2 bad" id="backend-4712"`, "carol@example.com on carol-desk", "held by alice@example.com",
		`id="session-bobtx0000000"`, ">open transaction<", "4 min</time>",
		`id="session-cifailed0000"`, ">failed transaction<",
		`id="refusal-bobtx0000000-8"`,
		`id="filter"`, `id="sessions"`, `id="session-mallory00000"`,
		`id="idle"`, "13 idle", `id="session-idle00000000"`, `id="session-aliceidle000"`, `id="statements"`)
	for _, id := range []string{"session-aliceactive0", "session-bobtx0000000", "session-mallory00000", "session-aliceidle000"} {
		if n := strings.Count(page, `id="`+id+`"`); n != 1 {
			t.Errorf("%s is %d times on the page", id, n)
		}
	}
	ids := regexp.MustCompile(` id="([^"]*)"`).FindAllStringSubmatch(page, -1)
	seen := make(map[string]bool)
	for _, id := range ids {
		if seen[id[1]] {
			t.Errorf("two elements have the id %s", id[1])
		}
		seen[id[1]] = true
	}
}

// The filter leaves the trouble alone, and is said where it works.
func TestFilterOfSessions(t *testing.T) {
	page := get(t, troubledNight(), oncall, "/?person=PERSON3").Body.String()
	for id, want := range map[string]bool{"idle00000003": true, "idle00000004": false, "aliceidle000": false, "mallory00000": false, "bobtx0000000": true} {
		if got := strings.Contains(page, `id="session-`+id+`"`); got != want {
			t.Errorf("session %s is shown: %v, want %v", id, got, want)
		}
	}
	if !strings.Contains(page, "0 at work, 2 idle, by the filter") {
		t.Error("the page does not say that it leaves sessions out")
	}
}

// Without a look at the database the page tells what it knows. It does not look
// where nobody does anything, or where the server is known to be out of reach.
func TestLooks(t *testing.T) {
	looks := 0
	p := troubledNight()
	view := p.view
	p.view = func(v wire.Viewer, database string) (*wire.DatabaseView, error) { looks++; return view(v, database) }
	if get(t, p, oncall, "/"); looks != 1 {
		t.Errorf("%d looks at one database, want 1", looks)
	}
	p.reach = health.Result{At: time.Now(), Err: errors.New("gone")}
	page := get(t, p, oncall, "/").Body.String()
	if looks != 1 {
		t.Error("it looks at a server that is out of reach")
	}
	order(t, page, `<b>0</b> waiting for a lock`, `id="session-aliceactive0"`, ">running<")
	p.reach, p.sessions = health.Result{At: time.Now()}, p.sessions[:1]
	if get(t, p, oncall, "/"); looks != 1 {
		t.Error("it looks though everybody is idle")
	}
	p.sessions, p.view = troubledNight().sessions, nil
	if w := get(t, p, oncall, "/"); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "session-aliceactive0") {
		t.Errorf("the database cannot be looked at: %d", w.Code)
	}
}

// Each page shows the state of what pgproxy depends on; the cause of a failure is
// told where anybody may know it.
func TestStates(t *testing.T) {
	page := pageFor(busyNight(), alice)
	page.Checks = []health.Check{
		{Name: "DERP", Run: func(context.Context) error { return errors.New("the relay is lost") }, Tell: true},
		{Name: "Audit", Run: func(context.Context) error { return errors.New("/var/log/audit: disk full") }},
		{Name: "Control", Run: func(context.Context) error { return nil }},
	}
	for _, target := range []string{"/", "/history", "/session/aliceactive0/cancel"} {
		got := serve(page.Handler(), request("GET", target, nil)).Body.String()
		order(t, got, "<nav", `href="/"`, `href="/database"`, `href="/history"`, "<b>Upstream</b> reachable",
			`bad"><b>DERP</b> the relay is lost`, `bad"><b>Audit</b> failing`, `good"><b>Control</b> ok`)
		if strings.Contains(got, "/var/log") {
			t.Errorf("%s tells of files", target)
		}
	}
}

func TestChart(t *testing.T) {
	c := chartOf(troubledNight().hour)
	if len(c.Bars) != 51 || c.Statements == 0 || c.Refused != 9 || c.Peak == 0 || len(c.Lines) != 1 {
		t.Errorf("got %d bars, %d lines: %+v", len(c.Bars), len(c.Lines), c)
	}
	for _, b := range c.Bars {
		if b.Y < 0 || b.Height < 2 || b.Y+b.Height != c.Height || b.BadHeight > b.Height {
			t.Errorf("a bar is drawn wrong: %+v", b)
		}
	}
	if empty := chartOf(make([]wire.Minute, 60)); len(empty.Bars)+len(empty.Lines) != 0 || empty.Words() != "0 statements in the last hour, 0 errors, 0 refused" {
		t.Errorf("an hour without statements: %+v", empty)
	}
	page := get(t, troubledNight(), alice, "/").Body.String()
	order(t, page, "<svg", `role="img"`, `aria-label="`+c.Words(), "<title>", "<polyline points=", "</svg>", "9 refused")
}

// A coloured statement is the statement.
func TestColoured(t *testing.T) {
	want := `<span class="key">SELECT</span> <span class="lit">&#39;a&lt;&#39;</span> <span class="com">-- &lt;b&gt;</span>` + "\n" +
		`<span class="key">FROM</span> t <span class="key">where</span> n &lt; <span class="lit">1</span>`
	if got := coloured("SELECT 'a<' -- <b>\nFROM t where n < 1"); string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	tags := regexp.MustCompile("<[^>]*>")
	for _, sql := range []string{hostile, "", " \n", "'open", strings.Repeat("(", 300)} {
		if got := html.UnescapeString(tags.ReplaceAllString(string(coloured(sql)), "")); got != sql {
			t.Errorf("%q is shown as %q", sql, got)
		}
	}
}

func TestPageIsCompressed(t *testing.T) {
	r := request("GET", "/", nil)
	r.Header.Set("Accept-Encoding", "gzip, br")
	w := serve(pageFor(troubledNight(), oncall).Handler(), r)
	zip, err := gzip.NewReader(w.Body)
	if err != nil || w.Header().Get("Content-Encoding") != "gzip" {
		t.Fatal(w.Header(), err)
	}
	if page, err := io.ReadAll(zip); err != nil || !strings.HasSuffix(strings.TrimSpace(string(page)), "</html>") {
		t.Errorf("%v at the end of %s", err, page)
	}
}

// BenchmarkPage makes the page of five hundred sessions, most of them idle or all
// of them at work.
func BenchmarkPage(b *testing.B) {
	for name, state := range map[string]string{"idle": "idle", "active": "active"} {
		p := troubledNight()
		one := p.sessions[2]
		for i := range 500 - len(p.sessions) {
			one.ID, one.State, one.User = fmt.Sprintf("s%011d", i), state, fmt.Sprintf("person%d@example.com", i%40)
			p.sessions = append(p.sessions, one)
		}
		for len(p.history) < 500 {
			p.history = append(p.history, p.history[5])
		}
		h := pageFor(p, oncall).Handler()
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				r := request("GET", "/", nil)
				r.Header.Set("Accept-Encoding", "gzip")
				w := serve(h, r)
				b.ReportMetric(float64(w.Body.Len()), "B/page")
			}
		})
	}
}

package status

import (
	"fmt"
	"html"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"pgproxy/wire"
	"pgproxy/wire/audit"
	"pgproxy/wire/audit/trail"
)

// psqlsQuery is what psql sends for \d.
const psqlsQuery = `SELECT c.oid,
  n.nspname,
  c.relname
FROM pg_catalog.pg_class c
     LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relname OPERATOR(pg_catalog.~) '^(orders)$' COLLATE pg_catalog.default
  AND pg_catalog.pg_table_is_visible(c.oid)
ORDER BY 2, 3;`

// recorded is a page over an audit log with alice's and bob's sessions.
func recorded(t *testing.T, p *proxy, v wire.Viewer, more ...audit.Record) http.Handler {
	t.Helper()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	w, err := audit.Open(path, audit.Options{Sync: audit.SyncNever})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for i, r := range append([]audit.Record{
		{Event: audit.Connect, Session: "alices", User: "alice@example.com", Client: "psql"},
		{Event: audit.Connect, Session: "bobs", User: "bob@example.com"},
		{Event: audit.Query, Session: "bobs", User: "bob@example.com", Seq: 1, SQL: hostile, Verdict: "allow"},
		{Event: audit.Result, Session: "bobs", User: "bob@example.com", Seq: 1, SQLState: "42601", Error: "<b>no</b>"},
		{Event: audit.Query, Session: "alices", User: "alice@example.com", Seq: 1, SQL: psqlsQuery, Verdict: "allow"},
		{Event: audit.Result, Session: "alices", User: "alice@example.com", Seq: 1, Tag: "SELECT 1"},
		{Event: audit.Query, Session: "alices", User: "alice@example.com", Seq: 2, SQL: psqlsQuery, Verdict: "deny", Rule: "only", SQLState: "42501"},
		{Event: audit.Query, Session: "alices", User: "alice@example.com", Seq: 3, SQL: "SELECT 'of alice'", Verdict: "allow"},
		{Event: audit.Observe, Session: "alices", User: "alice@example.com", Observer: "oncall@example.com on phone"},
		{Event: audit.Cancel, Session: "alices", User: "alice@example.com", EndReason: "session ended by oncall@example.com"},
		{Event: audit.Disconnect, Session: "alices", User: "alice@example.com", EndReason: "killed"},
	}, more...) {
		r.Time = time.Now().Add(time.Duration(i-20) * time.Second)
		if err := w.Write(&r); err != nil {
			t.Fatal(err)
		}
	}
	page := pageFor(p, v)
	if page.Log, err = trail.New(path); err != nil {
		t.Fatal(err)
	}
	page.Log.Budget = time.Minute
	return page.Handler()
}

func fetch(h http.Handler, target string) *httptest.ResponseRecorder {
	return serve(h, request("GET", target, nil))
}

// The history has one's own statements, and those of others for who may observe.
func TestHistoryPage(t *testing.T) {
	for _, tt := range []struct {
		viewer wire.Viewer
		target string
		want   []string
	}{
		{alice, "/history", []string{"alices-3", "alices-2", "alices-1"}},
		{watch, "/history", []string{"alices-3", "alices-2", "alices-1", "bobs-1"}},
		{reaper, "/history", nil},
		{alice, "/history?person=bob", nil},
		{watch, "/history?person=bob", []string{"bobs-1"}},
		{watch, "/history?outcome=denied", []string{"alices-2"}},
		{watch, "/history?outcome=unknown&text=OF+alice", []string{"alices-3"}},
		{watch, "/history?since=1h&until=1m", nil},
		{watch, "/history?until=16s500ms", nil}, // 400: no such time
		{watch, "/history?at=nonsense", nil},
	} {
		w := fetch(recorded(t, busyNight(), tt.viewer), tt.target)
		var got []string
		for _, m := range regexp.MustCompile(`id="statement-([^"]*)"`).FindAllStringSubmatch(w.Body.String(), -1) {
			got = append(got, m[1])
		}
		code := http.StatusOK
		if strings.Contains(tt.target, "ms") || strings.Contains(tt.target, "nonsense") {
			code = http.StatusBadRequest
		}
		if w.Code != code || !slices.Equal(got, tt.want) {
			t.Errorf("%s, %s: %d %v, want %v", tt.viewer.Who(), tt.target, w.Code, got, tt.want)
		}
		if strings.Contains(w.Body.String(), "<script>") || strings.Contains(w.Body.String(), "<b>no") {
			t.Errorf("%s: what a client chose is not escaped", tt.target)
		}
	}
}

// Pages lead to the older ones and back.
func TestHistoryPages(t *testing.T) {
	var more []audit.Record
	for i := range int64(2*historyRows + 10) {
		more = append(more, audit.Record{Event: audit.Query, Session: "long", User: "alice@example.com", Seq: i + 1, SQL: "SELECT 1", Verdict: "allow"})
	}
	h := recorded(t, busyNight(), alice, more...)
	link := func(body, name string) string {
		m := regexp.MustCompile(`href="([^"]*)">` + name + `<`).FindStringSubmatch(body)
		if m == nil {
			return ""
		}
		return html.UnescapeString(m[1])
	}
	target, first, back, n := "/history?person=alice", "", "", 0
	for pages := 0; target != ""; pages++ {
		body := fetch(h, target).Body.String()
		if n += strings.Count(body, `id="statement-`); pages == 0 {
			first = body
		}
		back, target = link(body, "Newer"), link(body, "Older")
		if target != "" && !strings.Contains(target, "person=alice") {
			t.Fatalf("the filter is lost: %s", target)
		}
	}
	if n != len(more)+3 {
		t.Errorf("%d statements, want %d", n, len(more)+3)
	}
	for back != "" {
		body := fetch(h, back).Body.String()
		if back = link(body, "Newer"); back == "" && body != first {
			t.Error("the way back does not lead to the first page")
		}
	}
}

// Without a log that can be read there is what the proxy has in memory.
func TestHistoryInMemory(t *testing.T) {
	body := get(t, busyNight(), watch, "/history?outcome=error").Body.String()
	if !strings.Contains(body, "in memory") || strings.Count(body, `id="statement-`) != 1 {
		t.Error(body)
	}
	if w := get(t, busyNight(), watch, "/sessions/aliceidle000"); w.Code != http.StatusNotFound || !strings.Contains(w.Body.String(), "no transcripts") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// A transcript is for whoever was there, and for those who may observe. For all
// others it does not exist.
func TestTranscript(t *testing.T) {
	p := busyNight()
	nothing := fetch(recorded(t, p, alice), "/sessions/nosuchsession")
	if nothing.Code != http.StatusNotFound {
		t.Errorf("no such session: %d", nothing.Code)
	}
	for _, tt := range []struct {
		viewer  wire.Viewer
		session string
		sees    bool
	}{
		{alice, "alices", true}, {oncall, "alices", true}, {watch, "bobs", true},
		{alice, "bobs", false}, {reaper, "alices", false}, {alice, "bobtx0000000", false}, {watch, "nosuchsession", false},
	} {
		h := recorded(t, p, tt.viewer)
		for _, at := range []string{"", "?at=" + time.Now().Add(-10*time.Second).UTC().Format(time.RFC3339)} {
			w := fetch(h, "/sessions/"+tt.session+at)
			if (w.Code == http.StatusOK) != tt.sees {
				t.Errorf("%s, %s%s: %d %s", tt.viewer.Who(), tt.session, at, w.Code, w.Body)
			}
			if !tt.sees && (w.Code != nothing.Code || w.Body.String() != nothing.Body.String()) {
				t.Errorf("%s can tell %s from a session that does not exist: %d %s", tt.viewer.Who(), tt.session, w.Code, w.Body)
			}
		}
	}
	body := fetch(recorded(t, p, alice), "/sessions/alices").Body.String()
	for _, want := range []string{
		"psql asked the catalogue by itself: 1 statement<", "REFUSED by rule only", "&#39;of alice&#39;", "its outcome is not on record",
		"session seen by oncall@example.com on phone", "session ended by oncall@example.com", "disconnect: killed", ">ended</small>",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("%q is missing from\n%s", want, body)
		}
	}
	if acts := p.acted(); !slices.Equal(slices.Compact(acts), []string{"alices of alice@example.com seen by oncall@example.com", "bobs of bob@example.com seen by watch@example.com"}) {
		t.Errorf("on record: %q", acts)
	}
	// Who cannot be recorded does not see it.
	p.fail = fmt.Errorf("%w: /var/log/audit", wire.ErrUnrecorded)
	if w := fetch(recorded(t, p, oncall), "/sessions/alices"); w.Code != http.StatusServiceUnavailable || strings.Contains(w.Body.String(), "of alice") || strings.Contains(w.Body.String(), "/var/log") {
		t.Errorf("unrecorded: %d %s", w.Code, w.Body)
	}
	for _, q := range []string{"at=x", "from=x", "before=x"} {
		if w := fetch(recorded(t, busyNight(), alice), "/sessions/alices?"+q); w.Code != http.StatusBadRequest {
			t.Errorf("%s: %d", q, w.Code)
		}
	}
}

// A search whose time is up says how far it has come, whoever asks for whatever.
func TestTranscriptFarBack(t *testing.T) {
	var more []audit.Record
	for i := range int64(1000) {
		more = append(more, audit.Record{Event: audit.Query, Session: "long", User: "bob@example.com", Seq: i + 1, SQL: strings.Repeat("x", 1000), Verdict: "allow"})
	}
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	w, err := audit.Open(path, audit.Options{Sync: audit.SyncNever})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range append([]audit.Record{{Event: audit.Connect, Session: "alices", User: "alice@example.com"}}, more...) {
		r.Time = time.Now()
		if err := w.Write(&r); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	page := pageFor(busyNight(), alice)
	if page.Log, err = trail.New(path); err != nil {
		t.Fatal(err)
	}
	page.Log.Budget = 0
	next := regexp.MustCompile(`href="([^"]*)">(?:Search on|Go on)<`)
	for _, id := range []string{"alices", "long", "nosuchsession"} {
		target, steps := "/sessions/"+id, 0
		var body string
		for ; target != "" && steps < 100; steps++ {
			w := fetch(page.Handler(), target)
			target, body = "", w.Body.String()
			if m := next.FindStringSubmatch(body); m != nil && w.Code == http.StatusOK && strings.Contains(body, "to go.") {
				target = html.UnescapeString(m[1])
			}
		}
		if found := strings.Contains(body, "alice@example.com</b> · database"); steps < 3 || steps == 100 || found != (id == "alices") {
			t.Errorf("%s: found %v in %d requests", id, found, steps)
		}
	}
}

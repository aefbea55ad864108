package status

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"pgproxy/policy"
	"pgproxy/upstream/activity"
	"pgproxy/wire"
)

var started = time.Unix(1_700_000_000, 0)

// lockedNight has a program that holds a lock, and a person who waits for it.
func lockedNight() *proxy {
	p := busyNight()
	p.view = func(v wire.Viewer, database string) (*wire.DatabaseView, error) {
		if database == "secret" {
			return nil, &policy.Refusal{Message: "pgproxy: database secret is not served"}
		}
		now := started.Add(time.Hour)
		lag, behind := 2.5, int64(5<<20)
		view := &wire.DatabaseView{Snapshot: activity.Snapshot{At: now, Database: "shop", Upstream: "db1:5432", Used: 97, Most: 100, Reserved: 3,
			Unseen:   []string{"The login is not a member of pg_monitor."},
			Replicas: []activity.Replica{{Application: "standby1", State: "streaming", LagBytes: &behind, LagSeconds: &lag}},
			Slots:    []activity.Slot{{Name: "forgotten", Type: "logical", Status: "extended", RetainedBytes: &behind}}}}
		may := v.Rule.MaySignal
		view.Waiting = []wire.Backend{
			{Backend: activity.Backend{PID: 41, Start: started, Application: "nightly-import", Addr: "10.0.0.7", Role: "app", Database: "shop", State: "idle in transaction",
				StateSince: started, TxSince: started, Query: hostile}, MayCancel: may, MayEnd: may},
			{Backend: activity.Backend{PID: 42, Start: started, Database: "shop", State: "active", BlockedBy: []int{41}, WaitsFor: "row of public.orders", WaitSince: now.Add(-5 * time.Minute)},
				User: "alice@example.com", Session: "aliceactive0", Depth: 1, MayCancel: v.Who() == "alice@example.com", MayEnd: v.Who() == "alice@example.com"},
		}
		return view, nil
	}
	return p
}

var signaller = person("signaller@example.com", "console", func(r *policy.Rule) { r.MaySignal = true })

// The page of the database says what is the matter, and has buttons for those
// who may.
func TestDatabasePage(t *testing.T) {
	html := get(t, lockedNight(), signaller, "/database").Body.String()
	for _, want := range []string{"nightly-import at 10.0.0.7", ">open transaction</span>", "transaction 1 h", "for row of public.orders, held by nightly-import at 10.0.0.7", ">5 min</time>", "blocks 1 other", "97 of 100",
		"not a member of pg_monitor", "5.0 MiB behind, 2.5 s", "forgotten", "not active", `class="row depth1 bad"`, "need may_observe",
		"/backend/41/end?database=shop&amp;start=1700000000000000&amp;upstream=db1%3A5432"} {
		if !strings.Contains(html, want) {
			t.Errorf("the page does not say %q:\n%s", want, html)
		}
	}
	if strings.Contains(html, "<script>document") || strings.Contains(html, "/backend/42/") {
		t.Errorf("hostile text, or a button that is not the viewer's:\n%s", html)
	}
	own := get(t, lockedNight(), alice, "/database").Body.String()
	if strings.Contains(own, "/backend/41/") || !strings.Contains(own, "/backend/42/end?database=shop&amp;session=aliceactive0") {
		t.Errorf("alice has not the buttons of her own:\n%s", own)
	}
	var view struct {
		Database string
		Waiting  []struct {
			PID       int
			User      string
			BlockedBy []int `json:"blocked_by"`
		}
	}
	decode(t, get(t, lockedNight(), alice, "/database.json"), &view)
	if view.Database != "shop" || len(view.Waiting) != 2 || view.Waiting[1].User != "alice@example.com" || !slices.Equal(view.Waiting[1].BlockedBy, []int{41}) {
		t.Errorf("the JSON has %+v", view)
	}
	if w := get(t, lockedNight(), alice, "/database?database=secret"); w.Code != http.StatusForbidden || !strings.Contains(w.Body.String(), "not served") {
		t.Errorf("another database: %d %s", w.Code, w.Body)
	}
	if w := get(t, busyNight(), alice, "/database"); w.Code != http.StatusBadGateway {
		t.Errorf("a database out of reach: %d %s", w.Code, w.Body)
	}
}

// A backend is asked about, and then signalled: that one and no successor.
func TestBackendActs(t *testing.T) {
	query := func(pairs ...string) string {
		q := url.Values{"database": {"shop"}, "upstream": {"db1:5432"}}
		for i := 0; i < len(pairs); i += 2 {
			q.Set(pairs[i], pairs[i+1])
		}
		return "?" + q.Encode()
	}
	start := query("start", "1700000000000000")
	for _, tt := range []struct {
		name, method, target string
		viewer               wire.Viewer
		fail                 error
		code                 int
		says                 string // in the body, or where it leads
		acts                 []string
	}{
		{"asked", "GET", "/backend/41/end" + start, signaller, nil, 200, "Yes, end it", nil},
		{"done", "POST", "/backend/41/end" + start, signaller, nil, 303, "done=signalled",
			[]string{"pg_terminate_backend(41) of 1700000000 in shop by signaller@example.com"}},
		{"cancelled", "POST", "/backend/41/cancel" + start, signaller, nil, 303, "done=signalled",
			[]string{"pg_cancel_backend(41) of 1700000000 in shop by signaller@example.com"}},
		{"one's own", "POST", "/backend/42/end" + query("session", "aliceactive0"), alice, nil, 303, "done=signalled",
			[]string{fmt.Sprintf("pg_terminate_backend(42) of aliceactive0%d in shop by alice@example.com", time.Time{}.Unix())}},
		{"without may_signal, asked", "GET", "/backend/41/end" + start, alice, nil, 403, "may_signal", nil},
		{"without may_signal", "POST", "/backend/41/end" + start, alice, wire.ErrMaySignal, 403, "may_signal", nil},
		{"its successor, asked", "GET", "/backend/41/end" + query("start", "1700000000000001"), signaller, nil, 303, "done=backend+gone", nil},
		{"gone", "POST", "/backend/41/end" + start, signaller, wire.ErrNoBackend, 303, "done=backend+gone", nil},
		{"whichever", "POST", "/backend/41/end" + query(), signaller, nil, 400, "which backend", nil},
		{"no number", "POST", "/backend/x/end" + start, signaller, nil, 400, "no process", nil},
		{"no time", "POST", "/backend/41/end" + query("start", "x"), signaller, nil, 400, "not a time", nil},
		{"not on record", "POST", "/backend/41/end" + start, signaller, fmt.Errorf("%w: /var/log: disk full", wire.ErrUnrecorded), 503, "cannot be written", nil},
		{"no such act", "POST", "/backend/41/drop" + start, signaller, nil, 404, "", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := lockedNight()
			p.fail = tt.fail
			w := serve(pageFor(p, tt.viewer).Handler(), request(tt.method, tt.target, nil))
			if told := w.Body.String() + w.Header().Get("Location"); w.Code != tt.code || !strings.Contains(told, tt.says) || strings.Contains(told, "/var/log") {
				t.Errorf("got %d %s, want %d with %q", w.Code, told, tt.code, tt.says)
			}
			if got := p.acted(); !slices.Equal(got, tt.acts) {
				t.Errorf("acts %v, want %v", got, tt.acts)
			}
		})
	}
	p := lockedNight()
	r := request("POST", "/backend/41/end"+start, nil)
	r.Header.Set("Sec-Fetch-Site", "cross-site")
	if w := serve(pageFor(p, signaller).Handler(), r); w.Code != 403 || len(p.acted()) > 0 {
		t.Errorf("another site's wish: %d, %v", w.Code, p.acted())
	}
}

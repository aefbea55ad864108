package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgproxy/policy"
	"pgproxy/wire"
	"pgproxy/wire/health"
)

// The people of the tests.
var (
	alice  = person("alice@example.com", "alice-laptop", func(*policy.Rule) {})
	oncall = person("oncall@example.com", "oncall-phone", func(r *policy.Rule) { r.MayObserve, r.MayKill = true, true })
	watch  = person("watch@example.com", "wall-screen", func(r *policy.Rule) { r.MayObserve = true })
	lead   = person("lead@example.com", "lead-desk", func(r *policy.Rule) {
		r.MayObserve, r.MayKill, r.MaySignal, r.MayApprove = true, true, true, true
	})
	reaper = person("reaper@example.com", "reaper", func(r *policy.Rule) { r.MayKill = true })
)

func person(login, node string, change func(*policy.Rule)) wire.Viewer {
	rule := policy.DefaultRule()
	rule.Source = "default"
	change(&rule)
	return wire.Viewer{Caller: policy.Caller{Login: login, Node: node}, Rule: rule}
}

const hostile = `SELECT '</pre></title><script>document.title = "pwned"</script><img src=x onerror="document.title='pwned'">', "javascript:alert(1)", '{{.}}'`

// proxy is what the page shows, without a database. Acts are noted and change
// nothing but what the test says.
type proxy struct {
	mu       sync.Mutex
	sessions []wire.Info
	history  []wire.Past
	reach    health.Result
	acts     []string
	fail     error // what acts come to
	hour     []wire.Minute
	view     func(v wire.Viewer, database string) (*wire.DatabaseView, error)
}

func (p *proxy) Sessions() []wire.Info {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.sessions)
}

func (p *proxy) History() []wire.Past {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.history)
}

func (p *proxy) Hour() []wire.Minute { return p.hour }

func (p *proxy) Places() (int, int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.sessions), 100
}

func (p *proxy) Cancel(_ context.Context, by wire.Viewer, id string, seq int64) error {
	return p.note(by, id, fmt.Sprintf("cancel %s/%d by %s", id, seq, by.Who()))
}

func (p *proxy) Kill(by wire.Viewer, id string) error {
	return p.note(by, id, fmt.Sprintf("end %s by %s", id, by.Who()))
}

// Observed is noted as an act, of others' sessions alone.
func (p *proxy) Observed(by wire.Viewer, id, user string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fail == nil && user != by.Who() {
		p.acts = append(p.acts, fmt.Sprintf("%s of %s seen by %s", id, user, by.Who()))
	}
	return p.fail
}

func (p *proxy) LookAt(_ context.Context, v wire.Viewer, database string) (*wire.DatabaseView, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.view == nil {
		return nil, errors.New("out of reach")
	}
	return p.view(v, database)
}

func (p *proxy) Signal(_ context.Context, by wire.Viewer, sig wire.Signal) (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fail != nil {
		return false, p.fail
	}
	p.acts = append(p.acts, fmt.Sprintf("%s(%d) of %s%d in %s by %s", sig.Function, sig.PID, sig.Session, sig.Start.Unix(), sig.Database, by.Who()))
	return true, nil
}

func (p *proxy) note(by wire.Viewer, id, act string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.IndexFunc(p.sessions, func(i wire.Info) bool { return i.ID == id })
	switch {
	case i < 0:
		return wire.ErrNoSession
	case !by.Ends(p.sessions[i].User):
		return wire.ErrNotAllowed
	case p.fail != nil:
		return p.fail
	}
	p.acts = append(p.acts, act)
	return nil
}

func (p *proxy) acted() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.acts)
}

// busyNight is a proxy with sessions of all kinds.
func busyNight() *proxy {
	now := time.Now()
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	session := func(id, user, node, state string, since, inState, tx time.Duration, seq int64, sql string) wire.Info {
		i := wire.Info{ID: id, User: user, Node: node, Addr: "100.64.0.7:41234", Database: "shop", Upstream: "db1.internal:5432",
			UpstreamPID: 4711, Client: "psql", Since: ago(since), State: state, StateSince: ago(inState),
			SQL: sql, Seq: seq, Statements: seq, Rows: 137 * seq, Bytes: 9000 * seq, Access: "write"}
		if tx > 0 {
			i.TxSince = ago(tx)
		}
		return i
	}
	past := func(session, user, node string, seq int64, age, took time.Duration, sql, tag string, rows int64) wire.Past {
		return wire.Past{Time: ago(age), Session: session, User: user, Node: node, Database: "shop", Seq: seq, SQL: sql, Tag: tag,
			Rows: rows, Bytes: rows * 80, Took: took}
	}
	p := &proxy{reach: health.Result{At: ago(4 * time.Second)}}
	p.sessions = []wire.Info{
		session("aliceidle000", "alice@example.com", "alice-laptop", "idle", 3*time.Hour, 12*time.Minute, 0, 14, "SELECT count(*) FROM orders"),
		session("bobtx0000000", "bob@example.com", "bobs-very-long-device-name-in-the-basement-of-building-7", "idle in transaction", 47*time.Minute, 95*time.Second, 4*time.Minute, 9,
			"UPDATE orders SET state = 'cancelled', note = 'INC-4711: duplicate' WHERE id = 4711"),
		session("aliceactive0", "alice@example.com", "alice-laptop", "active", 8*time.Minute, 42*time.Second, 0, 3,
			"SELECT c.name, count(*), sum(o.total)\nFROM customers c\n  JOIN orders o ON o.customer = c.id\nWHERE o.placed > now() - interval '90 days'\nGROUP BY c.name\nORDER BY 3 DESC\nLIMIT 50"),
		session("mallory00000", `<b onmouseover="document.title='pwned'">mallory</b>@example.com`, "<script>document.title='pwned'</script>", "active", time.Minute, 3*time.Second, 0, 2, hostile),
		session("cifailed0000", "tag:ci,tag:prod", "runner-12", "idle in transaction (aborted)", 20*time.Second, 11*time.Second, 15*time.Second, 5,
			"INSERT INTO "+strings.Repeat("averylongidentifierwithoutanyspace", 8)+" VALUES (1)"),
	}
	denied := past("bobtx0000000", "bob@example.com", "bob-desk", 8, 90*time.Second, 400*time.Microsecond, "DELETE FROM orders", "", 0)
	denied.Denied, denied.SQLState, denied.Error = true, "42501", "pgproxy: DELETE without WHERE is refused"
	failed := past("mallory00000", "mallory@example.com", "box", 1, 50*time.Second, 2*time.Millisecond, hostile, "", 0)
	failed.SQLState, failed.Error = "42601", `syntax error at or near "<script>document.title='pwned'</script>"`
	cut := past("aliceactive0", "alice@example.com", "alice-laptop", 2, 8*time.Minute, 3200*time.Millisecond, "SELECT * FROM orders", "SELECT 10000", 10000)
	cut.Truncated, cut.SQLState, cut.Error = true, "54000", "pgproxy: result truncated: max_rows is 10000"
	p.history = []wire.Past{
		past("cifailed0000", "tag:ci,tag:prod", "runner-12", 4, 12*time.Second, 80*time.Millisecond, "INSERT INTO builds (id, ok) VALUES (991, true)", "INSERT 0 1", 0),
		failed, denied,
		past("bobtx0000000", "bob@example.com", "bob-desk", 7, 4*time.Minute, 900*time.Microsecond, "BEGIN", "BEGIN", 0),
		cut,
		past("aliceidle000", "alice@example.com", "alice-laptop", 14, 12*time.Minute, 21*time.Millisecond, "SELECT count(*) FROM orders", "SELECT 1", 1),
	}
	return p
}

// pageFor serves the page to one person, whoever connects.
func pageFor(p *proxy, v wire.Viewer) *Page {
	return &Page{
		Name: "pgproxy-prod", Hosts: []string{"pgproxy-prod.tail1234.ts.net"}, Upstream: "app@db1.internal:5432/shop", Server: p,
		WhoIs: func(context.Context, net.Addr) (policy.Caller, error) { return v.Caller, nil },
		Rules: func(policy.Caller) (policy.Rule, error) { return v.Rule, nil },
		Reach: func() health.Result {
			p.mu.Lock()
			defer p.mu.Unlock()
			return p.reach
		},
		Checks: []health.Check{ok("Tailnet"), ok("Control"), ok("DERP"), ok("Audit")},
		Ops:    http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ops "+r.URL.Path) }),
		Logger: slog.New(slog.DiscardHandler),
	}
}

func ok(name string) health.Check {
	return health.Check{Name: name, Run: func(context.Context) error { return nil }}
}

func request(method, target string, form url.Values) *http.Request {
	r := httptest.NewRequest(method, "http://pgproxy-prod"+target, strings.NewReader(form.Encode()))
	if form != nil {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	return r
}

func serve(h http.Handler, r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func get(t *testing.T, p *proxy, v wire.Viewer, target string) *httptest.ResponseRecorder {
	t.Helper()
	return serve(pageFor(p, v).Handler(), request("GET", target, nil))
}

// Who sees which sessions, and may do what with them: the same on the page and
// in the JSON.
func TestWhoSeesWhat(t *testing.T) {
	all := []string{"aliceidle000", "bobtx0000000", "aliceactive0", "mallory00000", "cifailed0000"}
	own := []string{"aliceidle000", "aliceactive0"}
	cases := []struct {
		viewer     wire.Viewer
		sees, ends []string
		statements int
	}{
		{alice, own, own, 2},
		{watch, all, nil, 6},
		{oncall, all, all, 6},
		{reaper, nil, nil, 0}, // may end what it cannot see here, by its ID
		{person("tag:ci", "runner-13", func(*policy.Rule) {}), nil, nil, 0},
	}
	for _, tt := range cases {
		t.Run(tt.viewer.Who(), func(t *testing.T) {
			p := busyNight()
			html := get(t, p, tt.viewer, "/").Body.String()
			for _, id := range all {
				if got, want := strings.Contains(html, `id="session-`+id), slices.Contains(tt.sees, id); got != want {
					t.Errorf("session %s is shown: %v, want %v", id, got, want)
				}
				if got, want := strings.Contains(html, "/session/"+id+"/end"), slices.Contains(tt.ends, id); got != want {
					t.Errorf("session %s can be ended: %v, want %v", id, got, want)
				}
				if !slices.Contains(tt.sees, id) && strings.Contains(html, id) {
					t.Errorf("the page tells of session %s", id)
				}
			}
			if got := strings.Count(html, `id="statement-`); got != tt.statements {
				t.Errorf("%d statements are shown, want %d", got, tt.statements)
			}
			var sessions []sessionJSON
			decode(t, get(t, p, tt.viewer, "/sessions.json"), &sessions)
			var ids []string
			for _, s := range sessions {
				ids = append(ids, s.Session)
			}
			if !slices.Equal(ids, tt.sees) {
				t.Errorf("sessions.json has %v, want %v", ids, tt.sees)
			}
			var statements []statementJSON
			decode(t, get(t, p, tt.viewer, "/statements.json"), &statements)
			if len(statements) != tt.statements {
				t.Errorf("statements.json has %d, want %d", len(statements), tt.statements)
			}
		})
	}
}

func decode(t *testing.T, w *httptest.ResponseRecorder, into any) {
	t.Helper()
	if ct := w.Header().Get("Content-Type"); ct != "application/json" {
		t.Errorf("Content-Type is %q", ct)
	}
	if err := json.Unmarshal(w.Body.Bytes(), into); err != nil {
		t.Fatalf("%v in %s", err, w.Body)
	}
}

func TestFilter(t *testing.T) {
	p := busyNight()
	cases := []struct {
		query string
		want  []int64 // seq
	}{
		{"", []int64{4, 1, 8, 7, 2, 14}},
		{"person=BOB", []int64{8, 7}},
		{"text=begin", []int64{7}},
		{"text=is+refused", []int64{8}},
		{"outcome=ok", []int64{4, 7, 14}},
		{"outcome=error", []int64{1}},
		{"outcome=denied", []int64{8}},
		{"outcome=truncated", []int64{2}},
		{"person=alice&text=count&outcome=ok", []int64{14}},
		{"outcome=nonsense", nil},
	}
	for _, tt := range cases {
		var list []statementJSON
		decode(t, get(t, p, oncall, "/statements.json?"+tt.query), &list)
		var got []int64
		for _, s := range list {
			got = append(got, s.Seq)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%q gives %v, want %v", tt.query, got, tt.want)
		}
		html := get(t, p, oncall, "/?"+tt.query).Body.String()
		if n := strings.Count(html, `id="statement-`); n != len(tt.want) {
			t.Errorf("%q: the page shows %d statements, want %d", tt.query, n, len(tt.want))
		}
	}
	if html := get(t, p, oncall, "/?text=%22%3E%3Cscript%3E").Body.String(); !strings.Contains(html, `value="&#34;&gt;&lt;script&gt;"`) {
		t.Error("the filter is not kept in its field, escaped")
	}
}

// What clients sent is text and nothing else.
func TestHostileTextIsText(t *testing.T) {
	for _, target := range []string{"/", "/session/mallory00000/cancel"} {
		html := get(t, busyNight(), oncall, target).Body.String()
		for _, bad := range []string{"<script>document", "<img", "<b onmouseover", "</pre></title>"} {
			if strings.Contains(html, bad) {
				t.Errorf("%s contains %s", target, bad)
			}
		}
		if !strings.Contains(html, "&lt;script&gt;document.title") {
			t.Errorf("%s does not show the statement", target)
		}
	}
}

func TestHeaders(t *testing.T) {
	p := pageFor(busyNight(), alice).Handler()
	for _, target := range []string{"/", "/sessions.json", "/style.css", "/live.js", "/metrics", "/nothing", "/session/aliceidle000/end"} {
		h := serve(p, request("GET", target, nil)).Header()
		csp := h.Get("Content-Security-Policy")
		for _, want := range []string{"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'self'"} {
			if !strings.Contains(csp, want) {
				t.Errorf("%s: no %s in %q", target, want, csp)
			}
		}
		if strings.Contains(csp, "unsafe") || h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Cross-Origin-Resource-Policy") != "same-origin" {
			t.Errorf("%s: %v", target, h)
		}
	}
}

func TestWithoutAccess(t *testing.T) {
	secret := errors.New("dial unix /var/run/tailscaled.sock")
	cases := map[string]struct {
		change func(*Page)
		says   string
	}{
		"WhoIs fails": {func(p *Page) {
			p.WhoIs = func(context.Context, net.Addr) (policy.Caller, error) { return policy.Caller{}, secret }
		}, "does not know who you are"},
		"nobody": {func(p *Page) {
			p.WhoIs = func(context.Context, net.Addr) (policy.Caller, error) { return policy.Caller{}, nil }
		}, "does not know who you are"},
		"refused": {func(p *Page) {
			p.Rules = func(policy.Caller) (policy.Rule, error) {
				return policy.Rule{}, &policy.Refusal{Message: "pgproxy: no access for alice@example.com", Hint: "Ask for a grant."}
			}
		}, "Ask for a grant."},
	}
	for name, tt := range cases {
		t.Run(name, func(t *testing.T) {
			p := busyNight()
			page := pageFor(p, alice)
			tt.change(page)
			h := page.Handler()
			for _, r := range []*http.Request{
				request("GET", "/", nil), request("GET", "/sessions.json", nil), request("GET", "/statements.json", nil),
				request("GET", "/session/aliceidle000/end", nil), request("POST", "/session/aliceidle000/end", nil),
				request("GET", "/debug/pprof/", nil),
			} {
				w := serve(h, r)
				if w.Code != http.StatusForbidden || !strings.Contains(w.Body.String(), tt.says) {
					t.Errorf("%s %s: %d %s", r.Method, r.URL.Path, w.Code, w.Body)
				}
				if strings.Contains(w.Body.String(), "tailscaled") {
					t.Errorf("the reason is told: %s", w.Body)
				}
			}
			if got := p.acted(); len(got) > 0 {
				t.Errorf("acts: %v", got)
			}
			if w := serve(h, request("GET", "/healthz", nil)); w.Code != http.StatusOK {
				t.Errorf("probes are nobody, and got %d", w.Code)
			}
		})
	}
}

// The page answers to its own names: another one is a stranger's that was
// pointed at our address, and would make the stranger's page our own.
func TestHosts(t *testing.T) {
	h := pageFor(busyNight(), alice).Handler()
	for host, want := range map[string]int{
		"pgproxy-prod": 200, "pgproxy-prod:80": 200, "pgproxy-prod.tail1234.ts.net": 200, "PGPROXY-PROD.tail1234.ts.net.": 200,
		"100.64.0.1": 200, "100.64.0.1:80": 200, "[fd7a:115c:a1e0::1]:80": 200, "[fd7a:115c:a1e0::1]": 200, "localhost:8080": 200,
		"evil.example": 421, "pgproxy-prod.evil.example": 421, "tail1234.ts.net": 421, "100.64.0.1.evil.example": 421,
	} {
		r := request("GET", "/sessions.json", nil)
		r.Host = host
		if w := serve(h, r); w.Code != want {
			t.Errorf("%s: got %d, want %d", host, w.Code, want)
		}
	}
}

func TestProfilesNeedObserve(t *testing.T) {
	for _, target := range []string{"/debug/pprof/", "/debug/pprof/goroutine?debug=1", "/debug/pprof/profile?seconds=1", "/debug/pprof/trace?seconds=1", "/debug/pprof/symbol"} {
		if w := get(t, busyNight(), alice, target); w.Code != http.StatusForbidden {
			t.Errorf("%s: got %d, want 403", target, w.Code)
		}
	}
	if w := get(t, busyNight(), watch, "/debug/pprof/goroutine?debug=1"); w.Code != http.StatusOK {
		t.Errorf("with may_observe: got %d", w.Code)
	}
	for _, target := range []string{"/debug/pprof/cmdline", "/debug/vars"} {
		if w := get(t, busyNight(), watch, target); w.Code != http.StatusNotFound {
			t.Errorf("%s, which shows the command line: got %d", target, w.Code)
		}
	}
}

// TestProfilesEnd: whoever asks for a profile of days gets none, and while one
// is being taken nobody gets another.
func TestProfilesEnd(t *testing.T) {
	page := pageFor(busyNight(), watch)
	h := page.Handler()
	want := func(target string, code int) {
		t.Helper()
		if w := serve(h, request("GET", target, nil)); w.Code != code {
			t.Errorf("%s: got %d, want %d", target, w.Code, code)
		}
	}
	timed := []string{"/debug/pprof/profile", "/debug/pprof/trace", "/debug/pprof/heap", "/debug/pprof/goroutine"}
	for _, target := range timed {
		for _, seconds := range []string{"1000000", "60.5", "61", "1e300", "Inf", "NaN", "week", "0x1p99"} {
			want(target+"?seconds="+seconds, http.StatusBadRequest)
		}
	}
	want("/debug/pprof/trace?seconds=0.01", http.StatusOK)

	page.profiling.Lock()
	for _, target := range timed {
		want(target+"?seconds=1", http.StatusTooManyRequests)
	}
	want("/debug/pprof/profile", http.StatusTooManyRequests)
	want("/debug/pprof/trace", http.StatusTooManyRequests)
	want("/debug/pprof/goroutine?debug=1", http.StatusOK)
	page.profiling.Unlock()

	ctx, leave := context.WithCancel(t.Context())
	leave()
	serve(h, request("GET", "/debug/pprof/profile?seconds=60", nil).WithContext(ctx))
	if !page.profiling.TryLock() {
		t.Error("a profile whose taker has left goes on")
	}
}

func TestActs(t *testing.T) {
	seq := url.Values{"seq": {"3"}}
	cases := []struct {
		name   string
		viewer wire.Viewer
		target string
		form   url.Values
		fail   error
		code   int
		to     string
		acts   []string
	}{
		{"cancel one's own", alice, "/session/aliceactive0/cancel", seq, nil, 303, "/?done=cancelled", []string{"cancel aliceactive0/3 by alice@example.com"}},
		{"cancel whatever runs", alice, "/session/aliceactive0/cancel", nil, nil, 303, "/?done=cancelled", []string{"cancel aliceactive0/0 by alice@example.com"}},
		{"end one's own", alice, "/session/aliceidle000/end", nil, nil, 303, "/?done=ended", []string{"end aliceidle000 by alice@example.com"}},
		{"end somebody else's", oncall, "/session/bobtx0000000/end", nil, nil, 303, "/?done=ended", []string{"end bobtx0000000 by oncall@example.com"}},
		{"end somebody else's unseen", reaper, "/session/bobtx0000000/end", nil, nil, 303, "/?done=ended", []string{"end bobtx0000000 by reaper@example.com"}},
		{"no right", alice, "/session/bobtx0000000/end", nil, nil, 403, "", nil},
		{"seeing is not ending", watch, "/session/bobtx0000000/end", nil, nil, 403, "", nil},
		{"gone", alice, "/session/gone/end", nil, nil, 303, "/?done=gone", nil},
		{"too late", alice, "/session/aliceactive0/cancel", seq, wire.ErrNotRunning, 303, "/?done=late", nil},
		{"not recorded", alice, "/session/aliceactive0/end", nil, fmt.Errorf("%w: /var/log: disk full", wire.ErrUnrecorded), 503, "", nil},
		{"not delivered", alice, "/session/aliceactive0/cancel", seq, wire.ErrUndelivered, 502, "", nil},
		{"not a number", alice, "/session/aliceactive0/cancel", url.Values{"seq": {"three"}}, nil, 400, "", nil},
		{"no such act", alice, "/session/aliceactive0/drop", nil, nil, 404, "", nil},
	}
	for _, tt := range cases {
		t.Run(tt.name, func(t *testing.T) {
			p := busyNight()
			p.fail = tt.fail
			w := serve(pageFor(p, tt.viewer).Handler(), request("POST", tt.target, tt.form))
			if w.Code != tt.code || w.Header().Get("Location") != tt.to {
				t.Errorf("got %d to %q, want %d to %q: %s", w.Code, w.Header().Get("Location"), tt.code, tt.to, w.Body)
			}
			if got := p.acted(); !slices.Equal(got, tt.acts) {
				t.Errorf("acts %v, want %v", got, tt.acts)
			}
			if strings.Contains(w.Body.String(), "/var/log") {
				t.Errorf("the cause is told: %s", w.Body)
			}
		})
	}
}

// A GET only asks, and a confirmation shows no more than the page does.
func TestAsking(t *testing.T) {
	cases := []struct {
		name   string
		viewer wire.Viewer
		target string
		code   int
		says   string
	}{
		{"cancel", alice, "/session/aliceactive0/cancel", 200, `name="seq" value="3"`},
		{"nothing to cancel", alice, "/session/aliceidle000/cancel", 303, "done=late"},
		{"end", oncall, "/session/bobtx0000000/end", 200, "INC-4711"},
		{"unseen", reaper, "/session/bobtx0000000/end", 200, "not see what it does"},
		{"no right", alice, "/session/bobtx0000000/end", 403, "may_kill"},
		{"seeing is not ending", watch, "/session/bobtx0000000/end", 403, "may_kill"},
		{"gone", alice, "/session/gone/end", 303, "done=gone"},
	}
	for _, tt := range cases {
		t.Run(tt.name, func(t *testing.T) {
			p := busyNight()
			w := get(t, p, tt.viewer, tt.target)
			body := w.Body.String()
			if w.Code != tt.code || !strings.Contains(body, tt.says) {
				t.Errorf("got %d, want %d with %q: %s", w.Code, tt.code, tt.says, body)
			}
			if !tt.viewer.Sees("bob@example.com") && strings.Contains(body, "INC-4711") {
				t.Error("a statement is shown to whom may not see it")
			}
			if got := p.acted(); len(got) > 0 {
				t.Errorf("a GET acted: %v", got)
			}
		})
	}
}

// What a browser sends at another site's wish does nothing.
func TestCrossSiteRequestsAreRefused(t *testing.T) {
	cases := []struct {
		name, header, value string
		code                int
	}{
		{"a cross-site form", "Sec-Fetch-Site", "cross-site", 403},
		{"a neighbour of the same site", "Sec-Fetch-Site", "same-site", 403},
		{"plain HTTP, another origin", "Origin", "http://evil.example", 403},
		{"plain HTTP, a hidden origin", "Origin", "null", 403},
		{"our own form", "Sec-Fetch-Site", "same-origin", 303},
		{"plain HTTP, our own form", "Origin", "http://pgproxy-prod", 303},
	}
	for _, tt := range cases {
		t.Run(tt.name, func(t *testing.T) {
			p := busyNight()
			r := request("POST", "/session/aliceidle000/end", nil)
			r.Header.Set(tt.header, tt.value)
			if w := serve(pageFor(p, alice).Handler(), r); w.Code != tt.code {
				t.Errorf("got %d, want %d", w.Code, tt.code)
			}
			if acted := len(p.acted()) > 0; acted != (tt.code == 303) {
				t.Errorf("acted: %v", acted)
			}
		})
	}
}

// The words after an act come from a list.
func TestSaid(t *testing.T) {
	if html := get(t, busyNight(), alice, "/?done=ended").Body.String(); !strings.Contains(html, "The session is being ended.") {
		t.Error("nothing is said after an act")
	}
	if html := get(t, busyNight(), alice, "/?done=Call+this+number").Body.String(); strings.Contains(html, "Call this number") || strings.Contains(html, `class="said"`) {
		t.Error("a link can put words on the page")
	}
}

func TestUpstreamHealth(t *testing.T) {
	p := busyNight()
	for says, result := range map[string]health.Result{
		"reachable":       {At: time.Now()},
		"out of reach":    {At: time.Now(), Err: errors.New("dial db1.internal with password hunter2")},
		"not checked yet": {},
	} {
		p.reach = result
		html := get(t, p, alice, "/").Body.String()
		if !strings.Contains(html, says) || strings.Contains(html, "hunter2") {
			t.Errorf("want %q on the page, and no more", says)
		}
	}
}

func TestAges(t *testing.T) {
	for want, d := range map[string]time.Duration{
		"0 s": 7 * time.Millisecond, "59 s": 59*time.Second + 900*time.Millisecond, "1 min": time.Minute,
		"2 h 5 min": 2*time.Hour + 5*time.Minute + 59*time.Second, "3 d 4 h": 76 * time.Hour,
	} {
		if got := age(d); got != want {
			t.Errorf("age(%v) = %q, want %q", d, got, want)
		}
	}
	for want, d := range map[string]time.Duration{
		"0.4 ms": 400 * time.Microsecond, "21 ms": 21 * time.Millisecond, "3.2 s": 3200 * time.Millisecond, "1 min 1 s": 61 * time.Second,
	} {
		if got := took(d); got != want {
			t.Errorf("took(%v) = %q, want %q", d, got, want)
		}
	}
	for want, n := range map[string]int64{"0 B": 0, "1023 B": 1023, "1.5 KiB": 1536, "16.0 MiB": 16 << 20} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %q, want %q", n, got, want)
		}
	}
}

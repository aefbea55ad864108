// Package status is the page on which people see who is doing what in the
// database, and end it. It works without JavaScript, and keeps itself up to
// date where there is some. layout.html and layout.go have what all its pages
// share.
//
//	GET  /                       trouble, sessions, the last statements, limits
//	GET  /history                statements of the past, from the audit log
//	GET  /sessions/{id}          what happened in a session, live or past
//	GET  /sessions.json          the first page for scripts
//	GET  /statements.json
//	GET  /session/{id}/cancel    asks whether to cancel the statement that runs
//	POST /session/{id}/cancel    cancels it
//	GET  /session/{id}/end       asks whether to end the session
//	POST /session/{id}/end       ends it
//	GET  /database               who waits for whom in a database, and what runs for long
//	GET  /database.json
//	GET  /backend/{pid}/cancel   asks whether to cancel what a backend of the server runs
//	POST /backend/{pid}/cancel   cancels it
//	GET  /backend/{pid}/end      asks whether to end the backend
//	POST /backend/{pid}/end      ends it
//	GET  /requests               access requests that wait; /requests.json
//	GET  /request/{id}/approve   asks whether to approve it; refuse likewise
//	POST /request/{id}/approve   approves it
//	GET  /debug/pprof/           for those who may observe
//	GET  /healthz, /readyz, /metrics
//
// Who is asking is told by the tailnet for each request; there are no logins
// and no cookies. So whatever a browser can be made to send counts as its
// owner's wish, and three things stand against that: acts from other sites are
// refused, pages cannot be framed, and the host must be one of ours, or else a
// name of the attacker's that has been pointed at our address would be "the
// same site".
//
// What people see is wire's to say (Viewer.Sees, Viewer.Ends), and what they do
// is wire's to record.
package status

import (
	"context"
	"embed"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"pgproxy/policy"
	"pgproxy/wire"
	"pgproxy/wire/audit/trail"
	"pgproxy/wire/health"
)

// Server is what is shown: a *wire.Server.
type Server interface {
	Sessions() []wire.Info
	History() []wire.Past
	Hour() []wire.Minute
	Places() (used, limit int)
	Cancel(ctx context.Context, by wire.Viewer, id string, seq int64) error
	Kill(by wire.Viewer, id string) error
	Observed(by wire.Viewer, id, user string) error
	LookAt(ctx context.Context, v wire.Viewer, database string) (*wire.DatabaseView, error)
	Signal(ctx context.Context, by wire.Viewer, sig wire.Signal) (sent bool, err error)
	Requests(wire.Viewer) []wire.Request
	Approve(ctx context.Context, by wire.Viewer, id string) error
	Refuse(ctx context.Context, by wire.Viewer, id string) error
}

// Page is the configuration. All fields are set before Handler is called and
// not changed afterwards.
type Page struct {
	// Name is the proxy's, for people who have several.
	Name string
	// Hosts are the names under which the page may be asked for, besides IP
	// addresses and names without a dot, which nobody else can own.
	Hosts []string
	// Upstream describes the server behind the proxy, without a password.
	Upstream string

	Server Server
	// Log is the audit log; nil = it cannot be read, and there is no more history
	// than the Server's.
	Log *trail.Log
	// WhoIs says who is at a remote address, Rules what they may do.
	WhoIs func(context.Context, net.Addr) (policy.Caller, error)
	Rules func(policy.Caller) (policy.Rule, error)
	// Reach is the last result of reaching the upstream. It must not wait.
	Reach func() health.Result
	// Checks are other parts whose state is shown: the tailnet, the audit log.
	// They must not wait.
	Checks []health.Check
	// Notes are what people should know of the proxy itself, e.g. that another
	// node has its name; nil = none. It must not wait.
	Notes func() []string
	// Ops serves /healthz, /readyz and /metrics, to everybody.
	Ops http.Handler

	Logger *slog.Logger

	profiling sync.Mutex // held while a profile is taken
}

//go:embed style.css live.js
var assets embed.FS

// maxBody is the most that is read of a request's body, in bytes.
const maxBody = 16 << 10

// Handler serves the page.
func (p *Page) Handler() http.Handler {
	mux := http.NewServeMux()
	for _, path := range []string{"GET /healthz", "GET /readyz", "GET /metrics"} {
		mux.Handle(path, p.Ops)
	}
	files := http.FileServerFS(assets)
	mux.Handle("GET /style.css", files)
	mux.Handle("GET /live.js", files)
	mux.Handle("GET /{$}", p.seen(p.showPage))
	mux.Handle("GET /history", p.seen(p.showHistory))
	mux.Handle("GET /sessions/{id}", p.seen(p.showTranscript))
	mux.Handle("GET /sessions.json", p.seen(p.sessionsJSON))
	mux.Handle("GET /statements.json", p.seen(p.statementsJSON))
	for verb := range acts {
		mux.Handle("GET /session/{id}/"+verb, p.seen(func(w http.ResponseWriter, r *http.Request, v wire.Viewer) { p.ask(w, r, v, verb) }))
		mux.Handle("POST /session/{id}/"+verb, p.seen(func(w http.ResponseWriter, r *http.Request, v wire.Viewer) { p.act(w, r, v, verb) }))
	}
	mux.Handle("GET /database", p.seen(p.showDatabase))
	mux.Handle("GET /database.json", p.seen(p.databaseJSON))
	for verb := range backendActs {
		mux.Handle("GET /backend/{pid}/"+verb, p.seen(func(w http.ResponseWriter, r *http.Request, v wire.Viewer) { p.askBackend(w, r, v, verb) }))
		mux.Handle("POST /backend/{pid}/"+verb, p.seen(func(w http.ResponseWriter, r *http.Request, v wire.Viewer) { p.signal(w, r, v, verb) }))
	}
	mux.Handle("GET /requests", p.seen(p.showRequests))
	mux.Handle("GET /requests.json", p.seen(p.requestsJSON))
	for verb := range answers {
		mux.Handle("GET /request/{id}/"+verb, p.seen(func(w http.ResponseWriter, r *http.Request, v wire.Viewer) { p.askAnswer(w, r, v, verb) }))
		mux.Handle("POST /request/{id}/"+verb, p.seen(func(w http.ResponseWriter, r *http.Request, v wire.Viewer) { p.answer(w, r, v, verb) }))
	}
	for name, serve := range profiles {
		mux.Handle("GET /debug/pprof/"+name, p.profile(serve, name == "profile" || name == "trace"))
	}
	return http.MaxBytesHandler(guarded(http.NewCrossOriginProtection().Handler(mux)), maxBody)
}

// guarded adds the headers that keep a browser from doing more with our pages
// than show them.
func guarded(next http.Handler) http.Handler {
	headers := map[string]string{
		"Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; " +
			"form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
		"X-Content-Type-Options":       "nosniff",
		"X-Frame-Options":              "DENY",
		"Cross-Origin-Resource-Policy": "same-origin",
		"Cache-Control":                "no-store",
		// Not no-referrer: browsers then send "Origin: null" with our own
		// forms, and over plain HTTP nothing else tells them from foreign ones.
		"Referrer-Policy": "same-origin",
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for name, value := range headers {
			w.Header().Set(name, value)
		}
		next.ServeHTTP(w, r)
	})
}

// seen serves those who have access, whatever it is.
func (p *Page) seen(serve func(http.ResponseWriter, *http.Request, wire.Viewer)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !p.ours(r.Host) {
			http.Error(w, "pgproxy: this page is not served under that name", http.StatusMisdirectedRequest)
			return
		}
		v, err := p.viewer(r)
		if err != nil {
			p.Logger.Info("status page refused", "addr", r.RemoteAddr, "path", r.URL.Path, "err", err)
			http.Error(w, forbidden(err), http.StatusForbidden)
			return
		}
		serve(w, r, v)
	})
}

// ours reports whether a request's host is a name of ours.
func (p *Page) ours(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.TrimSuffix(host, ".")
	if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil || !strings.Contains(host, ".") {
		return true
	}
	return slices.ContainsFunc(p.Hosts, func(name string) bool {
		return strings.EqualFold(host, strings.TrimSuffix(name, "."))
	})
}

var errUnknown = errors.New("the tailnet does not know who you are")

// viewer says who is asking, and what they may do at this moment.
func (p *Page) viewer(r *http.Request) (wire.Viewer, error) {
	again := func(ctx context.Context) (policy.Caller, policy.Rule, error) {
		caller, err := p.WhoIs(ctx, remoteAddr(r.RemoteAddr))
		if err != nil {
			return caller, policy.Rule{}, errors.Join(errUnknown, err)
		}
		if caller.Who() == "" {
			return caller, policy.Rule{}, errUnknown
		}
		rule, err := p.Rules(caller)
		return caller, rule, err
	}
	caller, rule, err := again(r.Context())
	return wire.Viewer{Caller: caller, Rule: rule, Again: again}, err
}

// forbidden is what somebody without access is told.
func forbidden(err error) string {
	if r, ok := errors.AsType[*policy.Refusal](err); ok {
		return strings.TrimSpace(r.Message + "\n" + r.Hint)
	}
	if errors.Is(err, errUnknown) {
		return "pgproxy: " + errUnknown.Error()
	}
	return "pgproxy: no access"
}

// remoteAddr is a connection's remote address as net/http has it.
type remoteAddr string

func (a remoteAddr) Network() string { return "tcp" }
func (a remoteAddr) String() string  { return string(a) }

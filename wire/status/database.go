package status

import (
	_ "embed"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"pgproxy/policy"
	"pgproxy/wire"
)

//go:embed database.html
var databaseSource string

func init() { template.Must(pages.Parse(databaseSource)) }

// databaseView is what the page shows of a database.
type databaseView struct {
	Page   *Page
	Viewer wire.Viewer
	Now    time.Time
	Said   string // what came of an act
	View   *wire.DatabaseView
}

// maxIndent is how deep the tree is drawn.
const maxIndent = 4

// Indent is the class of a depth.
func (databaseView) Indent(depth int) int { return min(depth, maxIndent) }

// Row makes a backend ready to be shown.
func (d databaseView) Row(b wire.Backend) backendRow {
	return backendRow{Backend: b, Now: d.View.At, Here: d.View.Database, Upstream: d.View.Upstream}
}

// backendRow is one backend on the page.
type backendRow struct {
	wire.Backend
	Now            time.Time // by the server's clock
	Here, Upstream string    // the database that is looked at, and its server
}

// Tone is how the state is coloured.
func (b backendRow) Tone() string {
	switch {
	case b.Waits():
		return "bad"
	case b.State == "active":
		return "good"
	case b.State == "" || b.State == "idle":
		return "quiet"
	}
	return "warn"
}

// Words are the state: what it waits for and for how long, or how long it has been
// in it.
func (b backendRow) Words() string {
	words, since := b.State, b.StateSince
	switch {
	case b.Waits():
		words, since = "waits for "+b.WaitsFor, b.WaitSince
		if b.Others > 0 {
			words += fmt.Sprintf(" (and for %s)", policy.Count(int64(b.Others), "other backend"))
		}
		if b.Cycle {
			words += ", in a deadlock"
		}
	case words == "":
		words = "state not seen"
	}
	if !since.IsZero() {
		words += ", " + age(b.Now.Sub(since))
	}
	return words
}

// TxAge is how old the transaction is, 0 for none.
func (b backendRow) TxAge() time.Duration {
	if b.TxSince.IsZero() {
		return 0
	}
	return max(b.Now.Sub(b.TxSince), 0)
}

// Link is the address of an act on the backend. It names this one and no
// successor.
func (b backendRow) Link(verb string) string {
	q := url.Values{"database": {b.Here}, "upstream": {b.Upstream}}
	if b.Session != "" {
		q.Set("session", b.Session)
	} else {
		q.Set("start", strconv.FormatInt(b.Start.UnixMicro(), 10))
	}
	return fmt.Sprintf("/backend/%d/%s?%s", b.PID, verb, q.Encode())
}

// backendActs are what can be done to a backend, after being asked.
var backendActs = map[string]struct {
	action
	function string
}{
	"cancel": {action{"Cancel what this backend runs?", "Yes, cancel it",
		"The server is asked to stop the statement. The connection goes on; an open transaction fails, and keeps its locks until it is rolled back.", "signalled"}, policy.CancelBackend},
	"end": {action{"End this backend?", "Yes, end it",
		"What it runs is cancelled, its transaction is rolled back, its locks are given up, and its connection is closed.", "signalled"}, policy.TerminateBackend},
}

func (p *Page) showDatabase(w http.ResponseWriter, r *http.Request, v wire.Viewer) {
	if view := p.lookAt(w, r, v); view != nil {
		p.render(w, http.StatusOK, "database", databaseView{Page: p, Viewer: v, Now: time.Now(), Said: outcomes[r.URL.Query().Get("done")], View: view})
	}
}

func (p *Page) databaseJSON(w http.ResponseWriter, r *http.Request, v wire.Viewer) {
	if view := p.lookAt(w, r, v); view != nil {
		writeJSON(w, view)
	}
}

// lookAt returns the view that a request asks for, nil when it has said why
// there is none.
func (p *Page) lookAt(w http.ResponseWriter, r *http.Request, v wire.Viewer) *wire.DatabaseView {
	view, err := p.Server.LookAt(r.Context(), v, r.URL.Query().Get("database"))
	if refusal, ok := errors.AsType[*policy.Refusal](err); ok {
		p.fail(w, http.StatusForbidden, refusal)
		return nil
	}
	if err != nil {
		p.Logger.Warn("status page: the database cannot be looked at", "err", err)
		p.fail(w, http.StatusBadGateway, errors.New("the database cannot be looked at now; pgproxy's log says why"))
		return nil
	}
	return view
}

// signalOf reads whom an act is for. It must name one backend.
func signalOf(r *http.Request, verb string) (sig wire.Signal, err error) {
	q := r.URL.Query()
	sig = wire.Signal{Function: backendActs[verb].function, Database: q.Get("database"), Upstream: q.Get("upstream"), Session: q.Get("session")}
	if sig.PID, err = strconv.Atoi(r.PathValue("pid")); err != nil {
		return sig, errors.New("the address names no process")
	}
	if start := q.Get("start"); start != "" {
		micros, err := strconv.ParseInt(start, 10, 64)
		if err != nil {
			return sig, errors.New("start is not a time")
		}
		sig.Start = time.UnixMicro(micros)
	}
	if sig.Session == "" && sig.Start.IsZero() {
		return sig, errors.New("the address does not say which backend of that number is meant")
	}
	return sig, nil
}

// askBackend shows what is about to be done, and to which backend.
func (p *Page) askBackend(w http.ResponseWriter, r *http.Request, v wire.Viewer, verb string) {
	sig, err := signalOf(r, verb)
	if err != nil {
		p.fail(w, http.StatusBadRequest, err)
		return
	}
	view := p.lookAt(w, r, v)
	if view == nil {
		return
	}
	for _, list := range [][]wire.Backend{view.Waiting, view.Transactions, view.Statements} {
		for _, b := range list {
			switch {
			case b.PID != sig.PID, b.Session != sig.Session, sig.Session == "" && !b.Start.Equal(sig.Start):
			case verb == "cancel" && !b.MayCancel, verb == "end" && !b.MayEnd:
				p.fail(w, http.StatusForbidden, wire.ErrMaySignal)
				return
			default:
				act := backendActs[verb].action
				p.render(w, http.StatusOK, "askBackend", struct {
					action
					Page *Page
					Verb string
					Row  backendRow
				}{act, p, verb, databaseView{View: view}.Row(b)})
				return
			}
		}
	}
	p.doneDatabase(w, r, "backend gone")
}

// signal does it. Whether it is allowed is decided anew, and recorded, by wire.
func (p *Page) signal(w http.ResponseWriter, r *http.Request, v wire.Viewer, verb string) {
	sig, err := signalOf(r, verb)
	if err != nil {
		p.fail(w, http.StatusBadRequest, err)
		return
	}
	view := p.lookAt(w, r, v) // the rule must serve the database
	if view == nil {
		return
	}
	sig.Database = view.Database
	sent, err := p.Server.Signal(r.Context(), v, sig)
	switch {
	case errors.Is(err, wire.ErrNoBackend), err == nil && !sent:
		p.doneDatabase(w, r, "backend gone")
	case errors.Is(err, wire.ErrUnrecorded):
		p.Logger.Error("status page: signal not recorded, and so not sent", "pid", sig.PID, "user", v.Who(), "err", err)
		p.fail(w, http.StatusServiceUnavailable, wire.ErrUnrecorded)
	case err != nil:
		p.Logger.Info("status page: signal not sent", "pid", sig.PID, "user", v.Who(), "err", err)
		p.fail(w, http.StatusForbidden, err)
	default:
		p.doneDatabase(w, r, backendActs[verb].done)
	}
}

// doneDatabase goes back to the database, which tells what came of an act.
func (p *Page) doneDatabase(w http.ResponseWriter, r *http.Request, what string) {
	q := url.Values{"database": {r.URL.Query().Get("database")}, "done": {what}}
	http.Redirect(w, r, "/database?"+q.Encode(), http.StatusSeeOther)
}

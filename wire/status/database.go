package status

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"pgproxy/policy"
	"pgproxy/wire"
)

// databaseView is what the page shows of a database.
type databaseView struct {
	frame
	View *wire.DatabaseView
}

// maxIndent is how deep the tree is drawn.
const maxIndent = 4

// Indent is how deep the row is drawn.
func (b backendRow) Indent() int { return min(b.Depth, maxIndent) }

// Row makes a backend ready to be shown in a list.
func (d databaseView) Row(list string, b wire.Backend) backendRow {
	return backendRow{Backend: b, List: list, Now: d.View.At, Here: d.View.Database, Upstream: d.View.Upstream}
}

// Waits are the backends that wait, and those they wait for.
func (d databaseView) Waits() []backendRow {
	var list []backendRow
	for _, l := range locks(d.View) {
		row := d.Row("waits", l.Backend)
		row.Holder, row.Blocks = l.holder, l.Blocks
		list = append(list, row)
	}
	return list
}

// backendRow is one backend on the page.
type backendRow struct {
	wire.Backend
	List           string    // on the page: a backend may be in several
	Holder         string    // whom it waits for
	Blocks         int       // how many wait for it directly
	Now            time.Time // by the server's clock
	Here, Upstream string    // the database that is looked at, and its server
}

// Tone is how the state is coloured.
func (b backendRow) Tone() string {
	switch {
	case b.Waits(), b.Blocks > 0:
		return "bad"
	case b.State == "active":
		return "good"
	case b.State == "" || b.State == "idle":
		return "quiet"
	}
	return "warn"
}

// Label is the state.
func (b backendRow) Label() string {
	if b.Waits() {
		return "waits for lock"
	}
	return label(b.State)
}

// Why tells what the backend waits for, and how many wait for it.
func (b backendRow) Why() string {
	words := lockWords(b.WaitsFor, b.Holder, b.Blocks)
	if b.Others > 0 {
		words += fmt.Sprintf("; waits for %s too", policy.Count(int64(b.Others), "other backend"))
	}
	if b.Cycle {
		words += "; in a deadlock"
	}
	return words
}

// lockWords tell what somebody waits for, and how many wait for them.
func lockWords(waitsFor, holder string, blocks int) string {
	var words []string
	if holder != "" {
		words = append(words, "for "+waitsFor+", held by "+holder)
	}
	if blocks > 0 {
		words = append(words, "blocks "+policy.Count(int64(blocks), "other"))
	}
	return strings.Join(words, "; ")
}

// Since is when the state has begun; zero where that is not seen.
func (b backendRow) Since() time.Time {
	if b.Waits() {
		return b.WaitSince
	}
	return b.StateSince
}

// Age is how long the state has lasted.
func (b backendRow) Age() time.Duration { return max(b.Now.Sub(b.Since()), 0) }

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
		vw := databaseView{frame: p.frame(v, "Database"), View: view}
		vw.Said, vw.Refreshes = outcomes[r.URL.Query().Get("done")], true
		p.render(w, r, http.StatusOK, "database", vw)
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
		p.fail(w, r, http.StatusForbidden, refusal)
		return nil
	}
	if err != nil {
		p.Logger.Warn("status page: the database cannot be looked at", "err", err)
		p.fail(w, r, http.StatusBadGateway, errors.New("the database cannot be looked at now; pgproxy's log says why"))
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
		p.fail(w, r, http.StatusBadRequest, err)
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
				p.fail(w, r, http.StatusForbidden, wire.ErrMaySignal)
				return
			default:
				act := backendActs[verb].action
				p.render(w, r, http.StatusOK, "askBackend", struct {
					frame
					action
					Verb string
					Row  backendRow
				}{p.frame(v, "Database"), act, verb, databaseView{View: view}.Row("asked", b)})
				return
			}
		}
	}
	p.done(w, r, "/database", "backend gone")
}

// signal does it. Whether it is allowed is decided anew, and recorded, by wire.
func (p *Page) signal(w http.ResponseWriter, r *http.Request, v wire.Viewer, verb string) {
	sig, err := signalOf(r, verb)
	if err != nil {
		p.fail(w, r, http.StatusBadRequest, err)
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
		p.done(w, r, "/database", "backend gone")
	case errors.Is(err, wire.ErrUnrecorded):
		p.failUnrecorded(w, r, err, "act", verb, "pid", sig.PID, "user", v.Who())
	case err != nil:
		p.Logger.Info("status page: signal not sent", "pid", sig.PID, "user", v.Who(), "err", err)
		p.fail(w, r, http.StatusForbidden, err)
	default:
		p.done(w, r, "/database", backendActs[verb].done)
	}
}

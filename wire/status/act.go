package status

import (
	"cmp"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"pgproxy/wire"
)

// action is something that a person can do to a session, after being asked.
type action struct {
	Question, Yes string
	Tells         string // what it means for the session
	done          string // in outcomes
}

var acts = map[string]action{
	"cancel": {"Cancel this statement?", "Yes, cancel the statement",
		"The server is asked to stop the statement. The session goes on; an open transaction fails.", "cancelled"},
	"end": {"End this session?", "Yes, end the session",
		"What it runs is cancelled, an open transaction is rolled back, and the connection is closed.", "ended"},
}

// outcomes are what the page says after an act. The address carries the key
// alone: nobody can make a link that puts words into our mouth.
var outcomes = map[string]string{
	"cancelled": "The server was asked to cancel the statement.",
	"ended":     "The session is being ended.",
	"late":      "There was nothing to cancel any more: the statement had ended.",
	"gone":      "The session had already ended.",

	"signalled":    "The backend was signalled.",
	"backend gone": "There is no such backend any more; nothing was done.",

	"approved": "The access was given.",
	"refused":  "The access was refused.",
	"over":     "There is no such request any more: it was answered, withdrawn, or its time was over.",
}

// question is what the confirmation page shows.
type question struct {
	frame
	action
	Verb    string
	ID      string
	Session *session // nil for those who may end it and not see it
}

// ask shows what is about to be done, and to whom.
func (p *Page) ask(w http.ResponseWriter, r *http.Request, v wire.Viewer, verb string) {
	id := r.PathValue("id")
	list := p.Server.Sessions()
	i := slices.IndexFunc(list, func(i wire.Info) bool { return i.ID == id })
	if i < 0 {
		p.done(w, r, "/", "gone")
		return
	}
	q := question{frame: p.frame(v, "Sessions"), action: acts[verb], Verb: verb, ID: id}
	if info := list[i]; v.Sees(info.User) {
		q.Session = &session{Info: info, Own: info.User == v.Who(), Now: q.Now}
	}
	if !v.Ends(list[i].User) {
		p.fail(w, r, http.StatusForbidden, wire.ErrNotAllowed)
		return
	}
	if verb == "cancel" && q.Session != nil && !q.Session.Active() {
		p.done(w, r, "/", "late")
		return
	}
	p.render(w, r, http.StatusOK, "ask", q)
}

// act does it. Whether it is allowed is decided anew, and recorded, by wire.
func (p *Page) act(w http.ResponseWriter, r *http.Request, v wire.Viewer, verb string) {
	id := r.PathValue("id")
	var err error
	if verb == "end" {
		err = p.Server.Kill(v, id)
	} else {
		// The statement that the person has looked at, not its successor.
		seq, parseErr := strconv.ParseInt(cmp.Or(r.PostFormValue("seq"), "0"), 10, 64)
		if parseErr != nil || seq < 0 {
			p.fail(w, r, http.StatusBadRequest, errors.New("seq is not a number of a statement"))
			return
		}
		err = p.Server.Cancel(r.Context(), v, id, seq)
	}
	switch {
	case errors.Is(err, wire.ErrNoSession):
		p.done(w, r, "/", "gone")
	case errors.Is(err, wire.ErrNotRunning):
		p.done(w, r, "/", "late")
	case errors.Is(err, wire.ErrNotAllowed):
		p.fail(w, r, http.StatusForbidden, wire.ErrNotAllowed)
	case errors.Is(err, wire.ErrUnrecorded):
		p.failUnrecorded(w, r, err, "act", verb, "session", id, "user", v.Who())
	case err != nil:
		p.fail(w, r, http.StatusBadGateway, err)
	default:
		p.done(w, r, "/", acts[verb].done)
	}
}

// done goes back to the page where the act was offered, and to the database that it
// was about. The page tells what came of it.
func (p *Page) done(w http.ResponseWriter, r *http.Request, page, what string) {
	q := url.Values{"done": {what}}
	if database := r.URL.Query().Get("database"); database != "" {
		q.Set("database", database)
	}
	http.Redirect(w, r, page+"?"+q.Encode(), http.StatusSeeOther)
}

// failure is a page that says why not.
type failure struct {
	frame
	Why string
}

// fail says so. The answer has nothing that differs from one moment to the next:
// what does not exist must look like what is not the viewer's to see.
func (p *Page) fail(w http.ResponseWriter, r *http.Request, status int, why error) {
	p.render(w, r, status, "fail", failure{frame: frame{Page: p}, Why: why.Error()})
}

// failUnrecorded says that an act was not done, since its record cannot be written.
// Why not is for the log: the error names files of this machine.
func (p *Page) failUnrecorded(w http.ResponseWriter, r *http.Request, err error, about ...any) {
	p.Logger.Error("status page: act not recorded, and so not done", append(about, "err", err)...)
	p.fail(w, r, http.StatusServiceUnavailable, wire.ErrUnrecorded)
}

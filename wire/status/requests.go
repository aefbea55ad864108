package status

import (
	"errors"
	"net/http"
	"slices"
	"time"

	"pgproxy/policy"
	"pgproxy/wire"
)

// requestsView is what /requests shows to one person at one moment.
type requestsView struct {
	frame
	Requests []accessRequest
}

// accessRequest is an access request as a viewer sees it.
type accessRequest struct {
	wire.Request
	Now time.Time
}

func (r accessRequest) Age() time.Duration { return r.Now.Sub(r.Asked) }

// Left is how long the request goes on to wait.
func (r accessRequest) Left() time.Duration { return r.Until.Sub(r.Now) }

// answers are what a person can make of a request, after being asked.
var answers = map[string]action{
	"approve": {"Approve this request?", "Yes, give the access", "The session gets the access at once, and for that time.", "approved"},
	"refuse":  {"Refuse this request?", "Yes, refuse it", "The person is told your name. The session goes on as it was.", "refused"},
}

func (p *Page) accessRequests(v wire.Viewer, now time.Time) []accessRequest {
	list := []accessRequest{}
	for _, r := range p.Server.Requests(v) {
		list = append(list, accessRequest{r, now})
	}
	return list
}

func (p *Page) showRequests(w http.ResponseWriter, r *http.Request, v wire.Viewer) {
	vw := requestsView{frame: p.frame(v, "Requests")}
	vw.Said, vw.Refreshes, vw.Requests = outcomes[r.URL.Query().Get("done")], true, p.accessRequests(v, vw.Now)
	p.render(w, r, http.StatusOK, "requests", vw)
}

// answerQuestion is what the confirmation page shows.
type answerQuestion struct {
	frame
	action
	Verb    string
	Request accessRequest
}

// askAnswer shows what is about to be answered, and to whom.
func (p *Page) askAnswer(w http.ResponseWriter, r *http.Request, v wire.Viewer, verb string) {
	list := p.accessRequests(v, time.Now())
	i := slices.IndexFunc(list, func(q accessRequest) bool { return q.ID == r.PathValue("id") })
	switch {
	case i < 0 && !v.Rule.MayApprove:
		p.fail(w, r, http.StatusForbidden, wire.ErrMayNotApprove)
	case i < 0:
		p.done(w, r, "/requests", "over")
	case !list[i].Answers:
		p.fail(w, r, http.StatusForbidden, wire.ErrOwnRequest)
	default:
		p.render(w, r, http.StatusOK, "answer", answerQuestion{p.frame(v, "Requests"), answers[verb], verb, list[i]})
	}
}

// answer does it. Whether it is allowed is decided anew, and recorded, by wire.
func (p *Page) answer(w http.ResponseWriter, r *http.Request, v wire.Viewer, verb string) {
	act := p.Server.Refuse
	if verb == "approve" {
		act = p.Server.Approve
	}
	err := act(r.Context(), v, r.PathValue("id"))
	switch {
	case err == nil:
		p.done(w, r, "/requests", answers[verb].done)
	case errors.Is(err, wire.ErrNoRequest):
		p.done(w, r, "/requests", "over")
	case errors.Is(err, wire.ErrOwnRequest):
		p.fail(w, r, http.StatusForbidden, wire.ErrOwnRequest)
	case errors.Is(err, wire.ErrUnrecorded):
		p.failUnrecorded(w, r, err, "act", verb, "user", v.Who())
	default:
		p.fail(w, r, http.StatusForbidden, wire.ErrMayNotApprove)
	}
}

type requestJSON struct {
	Request  string    `json:"request"`
	Session  string    `json:"session"`
	User     string    `json:"user"`
	Node     string    `json:"node"`
	Database string    `json:"database"`
	Access   string    `json:"access"`
	For      string    `json:"for"`
	Reason   string    `json:"reason"`
	SQL      string    `json:"sql"`
	Asked    time.Time `json:"asked"`
	Until    time.Time `json:"until"`
	Answers  bool      `json:"answers"`
}

func (p *Page) requestsJSON(w http.ResponseWriter, _ *http.Request, v wire.Viewer) {
	list := []requestJSON{}
	for _, r := range p.Server.Requests(v) {
		list = append(list, requestJSON{r.ID, r.Session, r.User, r.Node, r.Database, r.Access, policy.FormatDuration(r.For), r.Reason, r.SQL,
			r.Asked.UTC(), r.Until.UTC(), r.Answers})
	}
	writeJSON(w, list)
}

package wire

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"pgproxy/policy"
)

// requestLife is how long a request waits for an answer.
const requestLife = 10 * time.Minute

// request is a session's wish for an access that another person must give. It is
// settled once: by an answer, or by whatever ends the waiting. Safe for
// concurrent use.
type request struct {
	s     *session
	terms elevation // without until and approver
	asked time.Time
	sql   string // what the session ran last, as people may see it

	mu      sync.Mutex // held while an answer is being recorded
	settled bool
	failure *sessionError // why it was not given; nil = it was
	done    chan struct{} // closed when it is settled
}

// requests are the server's, by id. Safe for concurrent use.
type requests struct {
	mu   sync.Mutex
	open map[string]*request
}

func (q *requests) add(r *request) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.open == nil {
		q.open = make(map[string]*request)
	}
	q.open[r.terms.request] = r
}

func (q *requests) remove(r *request) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.open, r.terms.request)
}

func (q *requests) find(id string) *request {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.open[strings.ToLower(strings.TrimSpace(id))]
}

// settle settles the request by decide, which tells why the access is not given,
// nil if it is; with ok false it leaves the request open. settle is false where
// the request was settled before.
func (r *request) settle(decide func() (failure *sessionError, ok bool)) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.settled {
		return false
	}
	failure, ok := decide()
	if ok {
		r.settled, r.failure = true, failure
		close(r.done)
	}
	return true
}

// withdraw settles the request without an answer, and records why.
func (r *request) withdraw(why string, failure *sessionError) {
	r.settle(func() (*sessionError, bool) {
		e := r.terms
		e.why = why
		r.s.noteElevated(stepEnded, e, nil)
		return failure, true
	})
}

// recheck withdraws the request if the rule of who asks does not give it any more.
func (r *request) recheck() {
	if !r.s.ruling.covers(r.terms.Elevate) {
		r.withdraw(ruleChanged, withdrawn(ruleChanged))
	}
}

// askApproval waits until another person gives the session the access, or not.
// The record of the answer decides: what was given is given, even if Ctrl-C came
// at the same moment.
func (s *session) askApproval(e elevation) *sessionError {
	e.request = strings.ToLower(rand.Text()[:6])
	if err := s.elevated(stepAsked, e, nil); err != nil {
		return s.unrecorded("ERROR", err)
	}
	r := &request{s: s, terms: e, asked: time.Now(), sql: s.srv.history.last(s.id), done: make(chan struct{})}
	s.srv.requests.add(r)
	defer s.srv.requests.remove(r)
	s.request.Store(r)
	defer s.request.Store(nil)
	r.recheck() // the rule may have changed before it could be seen here
	s.Send(s.waitNotice(&e).append(nil))
	s.Flush()
	s.srv.notify(s.srv.requestText(r))

	s.enter(asking)
	s.await(r)
	s.enter(processing)
	if r.failure != nil {
		return r.failure
	}
	given, ok := s.ruling.elevation()
	if !ok { // withdrawn already, of which tellOver tells
		s.tellOver()
		return withdrawn("it was withdrawn at once")
	}
	return s.raised(given)
}

// await returns when the request is settled, which it sees to.
func (s *session) await(r *request) {
	late := time.NewTimer(s.srv.requestLife)
	defer late.Stop()
	s.interruptible(func(ctx context.Context) error {
		select {
		case <-r.done:
		case <-ctx.Done():
			if end := s.life.settled(); end != nil {
				r.withdraw("the session has ended", end)
				break
			}
			by, _ := s.life.cancelledAs()
			r.withdraw("given up by "+cmp.Or(by, s.caller.Who()), cancelledError(by))
		case <-late.C:
			why := fmt.Sprintf("nobody has answered within %s", policy.FormatDuration(s.srv.requestLife))
			r.withdraw(why, statementError(codeQueryCanceled, "pgproxy: the access was not given: "+why).
				withHint("Ask somebody who has may_approve, then SET pgproxy.access again."))
		}
		return nil
	})
	<-r.done // an answer that is being recorded is waited for
}

// waitNotice tells the client what it waits for.
func (s *session) waitNotice(e *elevation) *sessionError {
	where := ""
	if s.srv.StatusPage != "" {
		where = " at " + s.srv.StatusPage + "requests"
	}
	n := notice(fmt.Sprintf("pgproxy: waiting for another person to approve request %s: %s access for %s", e.request, e.Access, policy.FormatDuration(e.For)))
	n.detail = fmt.Sprintf("People with may_approve answer it%s, or by SET pgproxy.approve = '%s'. It ends by itself after %s.", where, e.request, policy.FormatDuration(s.srv.requestLife))
	return n.withHint("Ctrl-C gives up.")
}

// Why a request was not answered.
var (
	ErrNoRequest     = errors.New("there is no such request any more")
	ErrMayNotApprove = errors.New("other people's access requests need may_approve")
	ErrOwnRequest    = errors.New("nobody answers a request of their own, nor from the device that has asked")
)

// Approve gives what a request asks for, on a person's behalf: once it is
// recorded, and not without.
func (srv *Server) Approve(ctx context.Context, by Viewer, id string) error {
	asked := srv.rechecks.Load()
	r, err := srv.answerable(ctx, by, id)
	if err != nil {
		return err
	}
	fails := error(nil)
	if !r.settle(func() (*sessionError, bool) {
		if !r.s.ruling.covers(r.terms.Elevate) || r.s.life.settled() != nil {
			fails = ErrNoRequest
			return nil, false // who withdraws it is on the way
		}
		e := r.terms
		e.approver, e.until = &by, time.Now().Add(e.For)
		if err := r.s.elevated(stepGiven, e, nil); err != nil {
			fails = fmt.Errorf("%w: %w", ErrUnrecorded, err)
			return nil, false
		}
		if !r.s.ruling.raise(e) {
			fails = ErrNoRequest
			return r.s.notRaised(e), true
		}
		return nil, true
	}) {
		return ErrNoRequest
	}
	if fails == nil && srv.rechecks.Load() != asked {
		r.s.recheckApprover(ctx) // what the approver might was asked before
	}
	return fails
}

// Refuse refuses what a request asks for, on a person's behalf.
func (srv *Server) Refuse(ctx context.Context, by Viewer, id string) error {
	r, err := srv.answerable(ctx, by, id)
	if err != nil {
		return err
	}
	fails := error(nil)
	if !r.settle(func() (*sessionError, bool) {
		e := r.terms
		e.approver = &by
		if err := r.s.elevated(stepRefused, e, &policy.Refusal{Code: codeInsufficientPriv, Rule: "elevate", Message: "refused by " + by.name()}); err != nil {
			fails = fmt.Errorf("%w: %w", ErrUnrecorded, err)
			return nil, false
		}
		return statementError(codeInsufficientPriv, "pgproxy: the access was refused by "+by.Who()), true
	}) {
		return ErrNoRequest
	}
	return fails
}

// answerable finds a request that the viewer may answer. A try of somebody who may
// not is recorded.
func (srv *Server) answerable(ctx context.Context, by Viewer, id string) (*request, error) {
	r := srv.requests.find(id)
	err := by.mayApprove(ctx)
	if r == nil {
		return nil, cmp.Or(err, ErrNoRequest)
	}
	asker := r.s.caller
	if err == nil && (strings.EqualFold(by.Who(), asker.Who()) || by.NodeID == asker.NodeID) {
		err = ErrOwnRequest
	}
	if err == nil {
		return r, nil
	}
	e := r.terms
	e.approver = &by
	rule := &policy.Refusal{Code: codeInsufficientPriv, Rule: "may_approve", Message: err.Error()}
	r.s.noteElevated(stepDenied, e, rule)
	return nil, err
}

// mayApprove asks what the viewer may do at this moment. Only people approve.
func (v *Viewer) mayApprove(ctx context.Context) error {
	caller, rule := v.Caller, v.Rule
	if v.Again != nil {
		var err error
		if caller, rule, err = v.Again(ctx); err != nil {
			return err
		}
	}
	if !rule.MayApprove || v.Tagged() || !sameNode(caller, v.Caller) {
		return ErrMayNotApprove
	}
	return nil
}

// answerRequest serves SET pgproxy.approve and SET pgproxy.refuse.
func (s *session) answerRequest(id string, approve bool) *sessionError {
	by := s.viewer()
	var err error
	if approve {
		err = s.srv.Approve(s.ctx, by, id)
	} else {
		err = s.srv.Refuse(s.ctx, by, id)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrNoRequest):
		return statementError(codeUndefinedObject, "pgproxy: "+ErrNoRequest.Error()).withHint("SHOW pgproxy.requests lists those that wait.")
	case errors.Is(err, ErrUnrecorded):
		return s.unrecorded("ERROR", err)
	case errors.Is(err, ErrOwnRequest):
		return statementError(codeInsufficientPriv, "pgproxy: "+ErrOwnRequest.Error())
	}
	return statementError(codeInsufficientPriv, "pgproxy: "+ErrMayNotApprove.Error())
}

// viewer is the session's caller, as somebody who looks at others.
func (s *session) viewer() Viewer {
	return Viewer{Caller: s.caller, Rule: s.ruling.rule(), Again: func(ctx context.Context) (policy.Caller, policy.Rule, error) {
		caller, err := s.srv.WhoIs(ctx, addrOf(s.caller.Addr))
		if err != nil {
			return caller, policy.Rule{}, err
		}
		rule, err := s.srv.Rules(caller)
		return caller, rule, err
	}}
}

// Request is one access request that waits, as others may see it.
type Request struct {
	ID, Session, User, Node, Database string
	Access                            string
	For                               time.Duration
	Reason                            string
	SQL                               string // what the session ran last; redacted, cut
	Asked, Until                      time.Time
	Answers                           bool // the viewer may answer it
}

// Requests returns the requests that a viewer may see, the oldest first: their
// own, and with may_approve all.
func (srv *Server) Requests(v Viewer) []Request {
	srv.requests.mu.Lock()
	defer srv.requests.mu.Unlock()
	var list []Request
	for _, r := range srv.requests.open {
		asker := r.s.caller
		if !v.Rule.MayApprove && !v.owns(asker.Who()) {
			continue
		}
		list = append(list, Request{
			ID: r.terms.request, Session: r.s.id, User: asker.Who(), Node: asker.Node, Database: r.s.database,
			Access: r.terms.Access.String(), For: r.terms.For, Reason: r.s.ruling.reason(), SQL: r.sql,
			Asked: r.asked, Until: r.asked.Add(srv.requestLife),
			Answers: v.Rule.MayApprove && !v.Tagged() && !strings.EqualFold(v.Who(), asker.Who()) && v.NodeID != asker.NodeID,
		})
	}
	slices.SortFunc(list, func(a, b Request) int { return cmp.Or(a.Asked.Compare(b.Asked), cmp.Compare(a.ID, b.ID)) })
	return list
}

var requestColumns = []string{"request", "user", "node", "database", "access", "for", "reason", "last_statement", "age"}

func (s *session) requestRows() [][]string {
	var rows [][]string
	for _, r := range s.srv.Requests(s.viewer()) {
		rows = append(rows, []string{r.ID, r.User, r.Node, r.Database, r.Access, policy.FormatDuration(r.For), r.Reason, r.SQL,
			time.Since(r.Asked).Round(time.Second).String()})
	}
	return rows
}

// notify tells people outside, if there is anybody to tell.
func (srv *Server) notify(text string) {
	if srv.Notify != nil {
		srv.Notify(text)
	}
}

func (srv *Server) requestText(r *request) string {
	text := fmt.Sprintf("%s on %s asks for %s access to %s for %s (request %s).", r.s.caller.Who(), r.s.caller.Node, r.terms.Access,
		r.s.database, policy.FormatDuration(r.terms.For), r.terms.request)
	if reason := r.s.ruling.reason(); reason != "" {
		text += " Reason: " + policy.RedactText(reason) + "."
	}
	if srv.StatusPage != "" {
		text += " " + srv.StatusPage + "requests"
	}
	return text
}

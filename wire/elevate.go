package wire

import (
	"context"
	"errors"
	"fmt"
	"time"

	"pgproxy/policy"
)

// raisesAlone refuses to raise the access where what it takes cannot be had
// before the rest of the message is judged. rule is what the message is judged by.
func (s *session) raisesAlone(st *statement, rule *policy.Rule) *policy.Refusal {
	now := s.ruling.rule()
	raised := highest(st.msg.Statements[:st.own])
	switch {
	case raised <= now.Access && rule.Access == now.Access:
		return nil
	case raised > now.Access && s.backend.Status() != 'I':
		return &policy.Refusal{
			Code: codeActiveTransaction, Rule: "elevate",
			Message: "pgproxy: SET pgproxy.access cannot run inside a transaction",
			Detail:  "A transaction has the access that it began with, or less.",
			Hint:    `End it first by COMMIT or ROLLBACK. psql opens one before each statement while \set AUTOCOMMIT is off.`,
		}
	case st.own == len(st.msg.Statements):
		return nil
	case raised > now.Access && rule.Elevate.By == policy.Approval:
		return policy.RefuseAlone(policy.NeedsPerson)
	case s.otherLogin(rule.Access), s.otherLogin(max(raised, now.Access)):
		return policy.RefuseAlone("The session needs another connection to the server for it, on which names may mean something else.")
	}
	return nil
}

// highest is the highest access that one of the statements asks for, whatever
// becomes of it behind that.
func highest(own []policy.Statement) (to policy.Access) {
	for _, st := range own {
		if cmd := st.Proxy; cmd.Verb == "SET" && cmd.Name == "access" {
			access, _ := policy.ReadAccess(cmd.Value)
			to = max(to, access)
		}
	}
	return to
}

// setAccess serves SET pgproxy.access.
func (s *session) setAccess(cmd *policy.ProxyCommand) *sessionError {
	rule, _, _, refusal := s.ruling.try([]policy.Statement{{Proxy: cmd}})
	if refusal != nil { // the rule has changed since the message was judged
		return refused("ERROR", refusal)
	}
	now := s.ruling.rule()
	switch {
	case rule.Access == now.Access:
		return nil
	case rule.Access < now.Access:
		s.ruling.lower("it was given back")
		s.tellOver()
		return s.settleLogin()
	}
	given := s.ruling.policy()
	terms, refusal := given.Elevation(rule.Access)
	if refusal != nil {
		return refused("ERROR", refusal)
	}
	e := elevation{Elevate: terms}
	if terms.By == policy.Approval {
		return s.askApproval(e)
	}
	e.until = time.Now().Add(terms.For)
	if err := s.elevated(stepGiven, e, nil); err != nil {
		return s.unrecorded("ERROR", err)
	}
	if !s.ruling.raise(e) {
		return s.notRaised(e)
	}
	return s.raised(e)
}

// notRaised tells of an access that was given while the rule lost it.
func (s *session) notRaised(e elevation) *sessionError {
	e.why = ruleChanged
	s.noteElevated(stepEnded, e, nil)
	return withdrawn(ruleChanged)
}

const ruleChanged = "your rule has changed"

func withdrawn(why string) *sessionError {
	return statementError(codeInsufficientPriv, "pgproxy: the access was not given: "+why)
}

// raised makes the session ready for an access that it has, and tells the client.
func (s *session) raised(e elevation) *sessionError {
	if s.otherLogin(e.Access) {
		rule := s.ruling.rule()
		if end := s.reconnect(&rule); end != nil && end.severity == "FATAL" {
			return end
		} else if end != nil {
			s.ruling.lower("no connection was to be had for it")
			s.tellOver()
			s.talk.unsettled = false // the connection has stayed
			return end
		}
	}
	s.Send(notice("pgproxy: you have " + e.words()).withHint("RESET pgproxy.access ends it early.").append(nil))
	return nil
}

// words tells a raised access: "write access until 14:05:12 UTC".
func (e elevation) words() string {
	words := fmt.Sprintf("%s access until %s", e.Access, e.until.UTC().Format("15:04:05 UTC"))
	if e.approver != nil {
		words += ", approved by " + e.approver.Who()
	}
	return words
}

// tellOver records and tells that a raised access has ended, if one has.
func (s *session) tellOver() {
	e := s.ruling.ended(time.Now())
	if e == nil {
		return
	}
	s.noteElevated(stepEnded, *e, nil)
	s.talk.unsettled = true
	s.Send(notice(fmt.Sprintf("pgproxy: %s access has ended, %s; you have %s access", e.Access, e.why, s.ruling.rule().Access)).append(nil))
}

// recheckApprover ends a raised access whose approver could not give it now.
func (s *session) recheckApprover(ctx context.Context) {
	e, ok := s.ruling.elevation()
	if !ok || e.approver == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, recheckTimeout)
	defer cancel()
	err := e.approver.mayApprove(ctx)
	switch {
	case err == nil:
	case errors.Is(err, ErrUnavailable) || ctx.Err() != nil:
		s.log.Warn("what the approver may do cannot be asked; going on with what was known", "err", err)
	default:
		s.ruling.lower("who has approved it may do so no longer")
		s.life.nudge()
	}
}

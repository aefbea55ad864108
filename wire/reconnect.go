package wire

import (
	"context"

	"pgproxy/policy"
	"pgproxy/upstream"
	"pgproxy/wire/frame"
)

// otherLogin reports whether an access calls for another login than that of the
// connection that the session has.
func (s *session) otherLogin(access policy.Access) bool {
	return s.srv.Login != nil && s.srv.Login(access) != s.up.Load().Login
}

// settleLogin gives the session the connection that its access calls for, after
// a raised one has ended. Inside of a transaction it keeps the one it has: what
// it may do there is the lower access's already.
func (s *session) settleLogin() *sessionError {
	if !s.talk.unsettled || s.backend.Status() != 'I' {
		return nil
	}
	s.talk.unsettled = false
	rule := s.ruling.rule()
	if !s.otherLogin(rule.Access) {
		return nil
	}
	e := s.reconnect(&rule)
	if e != nil && e.severity != "FATAL" { // the connection that it has is not to be used any more
		e.severity, e.reason = "FATAL", reasonUpstream
	}
	return e
}

// reconnect gives the session a new connection to the server, which is at rest and
// outside of a transaction. An ERROR leaves the old one. The client keeps the key
// that it cancels by.
func (s *session) reconnect(rule *policy.Rule) *sessionError {
	for name, value := range s.theirs { // given at connect, under the rule of then
		if s.judgeSetting(setting{name, value}) != nil {
			delete(s.theirs, name)
		}
	}
	var up *upstream.Conn
	params := s.parameters(rule)
	err := s.interruptible(func(ctx context.Context) (err error) {
		up, err = s.dial(ctx, params)
		return err
	})
	if err != nil {
		s.talk.readLogin.Store(!s.talk.readLogin.Load())
		return s.notConnected(err)
	}
	if err := s.backend.Switch(up, frame.NewWaiter(&s.srv.busy, up.Net), *rule, params); err != nil {
		up.Close()
		return s.exchangeError(err)
	}
	old := s.up.Swap(up)
	old.Close()
	if !s.life.connected(up.Net) {
		return silent(reasonShutdown, nil)
	}
	s.moved(up)
	s.talk.memory, s.talk.listening = policy.Memory{}, false
	s.log.Info("upstream connection replaced", "upstream_pid", up.PID, "access", rule.Access.String())
	s.Send(appendParameters(nil, up))
	n := notice("pgproxy: a new connection to the server, with the login for " + rule.Access.String() + " access")
	n.detail = "Lost are settings, prepared statements, temporary tables, LISTEN, cursors WITH HOLD and advisory locks of this session."
	s.Send(n.append(nil))
	return nil
}

// notConnected is what the client is told when there is no new connection.
func (s *session) notConnected(err error) *sessionError {
	if e := s.life.settled(); e != nil {
		return e
	}
	if _, cancelled := s.life.cancelledAs(); cancelled {
		return cancelledError("")
	}
	s.log.Warn("no new upstream connection", "err", err)
	return noConnection(err)
}

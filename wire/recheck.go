package wire

import (
	"context"
	"errors"
	"fmt"
	"time"

	"pgproxy/policy"
)

// recheckTimeout is how long it may take to ask who one caller is.
const recheckTimeout = 2 * time.Second

// ErrUnavailable marks a WhoIs error that says nothing about the caller: the
// lookup itself could not be done.
var ErrUnavailable = errors.New("the tailnet cannot be asked")

// Recheck asks anew who the callers of all sessions are and what they may do.
// A narrower rule holds from the next statement on; no rule ends the session.
// Where WhoIs fails with ErrUnavailable nothing changes. Main calls it whenever
// the tailnet or the policy has changed.
func (srv *Server) Recheck(ctx context.Context) {
	srv.rechecks.Add(1)
	for _, s := range srv.live() {
		// One that is not ready asks by itself when it is, having seen that
		// Recheck was called meanwhile.
		if s.life.started() {
			s.recheck(ctx)
			s.recheckApprover(ctx)
		}
	}
}

func (s *session) recheck(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, recheckTimeout)
	defer cancel()
	caller, err := s.srv.WhoIs(ctx, addrOf(s.caller.Addr))
	if err != nil && (errors.Is(err, ErrUnavailable) || ctx.Err() != nil) {
		s.log.Warn("who the caller is cannot be asked; going on with what was known", "err", err)
		return
	}
	var rule policy.Rule
	if err == nil && !sameNode(caller, s.caller) {
		err = &policy.Refusal{Message: fmt.Sprintf("pgproxy: this address is now %s on %s", caller.Who(), caller.Node)}
	}
	if err == nil {
		rule, err = s.srv.Rules(caller)
	}
	if err == nil && !rule.Serves(s.database) {
		err = &policy.Refusal{Message: fmt.Sprintf("pgproxy: database %q is not served to you any more", s.database)}
	}
	if err != nil {
		s.log.Info("access ended", "err", err)
		s.end(accessEnded(err))
		return
	}
	news := s.ruling.change(rule)
	if r := s.request.Load(); r != nil {
		r.recheck()
	}
	if news || s.ruling.hasNews() {
		s.life.nudge()
	}
}

// sameNode goes by the node's id: its name may change while it is connected.
func sameNode(a, b policy.Caller) bool { return a.NodeID == b.NodeID && a.Who() == b.Who() }

// addrOf makes an address out of its text, for asking WhoIs again.
type addrOf string

func (a addrOf) Network() string { return "tcp" }
func (a addrOf) String() string  { return string(a) }

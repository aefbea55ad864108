package wire

import (
	"context"
	"errors"
	"fmt"

	"pgproxy/policy"
)

// Viewer is somebody who looks at sessions from outside, and the rule in force
// for them at this moment.
type Viewer struct {
	policy.Caller
	Rule policy.Rule
	// Again asks anew who is there and what they may do. nil = it cannot be asked.
	Again func(context.Context) (policy.Caller, policy.Rule, error)
}

// owns: everybody sees and ends their own.
func (v Viewer) owns(user string) bool { return user != "" && user == v.Who() }

// Sees reports whether the viewer may see the sessions and statements of a
// user, who is named as in Info and Past.
func (v Viewer) Sees(user string) bool { return v.owns(user) || v.Rule.MayObserve }

// Ends reports whether the viewer may cancel the statements and end the
// sessions of a user.
func (v Viewer) Ends(user string) bool { return v.owns(user) || v.Rule.MayKill }

// name tells the viewer to those who read the record.
func (v Viewer) name() string {
	if v.Node == "" {
		return v.Who()
	}
	return v.Who() + " on " + v.Node
}

// Why an act did not happen.
var (
	ErrNoSession   = errors.New("there is no such session")
	ErrNotRunning  = errors.New("the statement is not running any more")
	ErrNotAllowed  = errors.New("other people's sessions need may_kill")
	ErrUnrecorded  = errors.New("the audit record cannot be written")
	ErrUndelivered = errors.New("the cancel request did not reach the upstream")
)

// Cancel cancels the statement of that number (Info.Seq), or whatever runs if
// seq is 0, on a person's behalf. It returns when the upstream has taken the
// cancel. Its record tells what came of it, as a Ctrl-C's does.
func (srv *Server) Cancel(ctx context.Context, by Viewer, id string, seq int64) error {
	s, err := srv.target(by, id)
	if err != nil {
		return err
	}
	return s.cancelStatement(ctx, seq, by.name())
}

// Kill ends a session on a person's behalf, which is recorded first. It does
// not wait for the end.
func (srv *Server) Kill(by Viewer, id string) error {
	s, err := srv.target(by, id)
	if err != nil {
		return err
	}
	if err := s.killed(by.name()); err != nil {
		return fmt.Errorf("%w: %w", ErrUnrecorded, err)
	}
	s.endBy(by)
	return nil
}

// endBy ends the session on a person's behalf. It does not wait for the end.
func (s *session) endBy(by Viewer) {
	e := fatal(codeAdminShutdown, "pgproxy: terminating connection due to administrator command", reasonKilled)
	e.detail = "Ended by " + by.name() + "."
	s.end(e)
}

// target finds the session that a viewer wants to act on. A refusal is
// recorded.
func (srv *Server) target(by Viewer, id string) (*session, error) {
	s := srv.ready(id)
	if s == nil {
		return nil, ErrNoSession
	}
	if by.Ends(s.caller.Who()) {
		return s, nil
	}
	s.meddled(by.name())
	return nil, ErrNotAllowed
}

// ready finds a session that Sessions would list.
func (srv *Server) ready(id string) *session {
	for _, s := range srv.live() {
		if _, ok := s.info(); ok && s.id == id {
			return s
		}
	}
	return nil
}

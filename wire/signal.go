package wire

import (
	"context"
	"errors"
	"fmt"
	"time"

	"pgproxy/policy"
	"pgproxy/upstream"
	"pgproxy/upstream/activity"
)

// Signal is what somebody wants to do to a backend of a database.
type Signal struct {
	Function string // policy.CancelBackend or policy.TerminateBackend
	Database string // in which the viewer looks
	Upstream string // address of the server that the process is one of, as in Info
	PID      int
	// Session and Start tell the backend from others that may get its number:
	// the session of pgproxy's that it is of, or when it was started. With
	// neither, the one is meant that has the number now.
	Session string
	Start   time.Time
	Timeout time.Duration // how long to wait for its end; 0 = not at all
	Reason  string        // the viewer's own
}

// exact reports whether the signal is for one backend and no successor.
func (sig *Signal) exact() bool { return sig.Session != "" || !sig.Start.IsZero() }

// Why a signal was not sent, beside what the server says.
var (
	ErrNoBackend     = errors.New("there is no such backend any more")
	ErrMaySignal     = errors.New("backends that are not your own sessions' need may_signal")
	ErrHelper        = errors.New("the backend is one of pgproxy's own helpers, and goes by itself")
	ErrOtherDatabase = errors.New("the backend is not of this database")
	ErrUnknownStart  = errors.New("pgproxy's login cannot see when the backend was started, and so might hit its successor; pg_monitor would let it")
	ErrOtherServer   = errors.New("a new connection reaches another server")
	ErrWantsReason   = errors.New("your rule has require_reason: give it by SET pgproxy.reason in psql, and signal the backend there")
)

// Signal cancels what a backend runs, or ends it, on a person's behalf. It is
// recorded first: if that fails, nothing is done. sent is what PostgreSQL's
// function returns.
//
// One of pgproxy's own sessions is signalled by way of the session, so that a
// cancel does not reach a later statement, and the end is told in words. Any
// other backend is signalled by the server, which compares its start, too.
func (srv *Server) Signal(ctx context.Context, by Viewer, sig Signal) (sent bool, err error) {
	j := &journal{srv: srv, log: srv.Logger, terms: new(ruling)}
	j.identified(by.Caller)
	j.about.Database, j.about.Upstream = sig.Database, sig.Upstream
	return srv.signal(ctx, j, by, &sig)
}

func (srv *Server) signal(ctx context.Context, j *journal, by Viewer, sig *Signal) (sent bool, err error) {
	s := srv.sessionAt(sig.PID, sig.Upstream)
	own := s != nil && by.owns(s.caller.Who())
	switch {
	case !own && !by.Rule.Signals(sig.Function):
		j.signalRefused(sig, ErrMaySignal)
		return false, ErrMaySignal
	case !own && by.Rule.RequireReason && sig.Reason == "":
		return false, ErrWantsReason
	case sig.exact() && (s == nil) != (sig.Session == ""), s != nil && sig.exact() && s.id != sig.Session:
		return false, ErrNoBackend
	case s != nil && !own && s.database != sig.Database:
		return false, ErrOtherDatabase
	case s != nil:
		if err := j.signalled(sig, &activity.Backend{Application: s.stamp}, s); err != nil {
			return false, fmt.Errorf("%w: %w", ErrUnrecorded, err)
		}
		return s.takeSignal(ctx, sig, by)
	}
	return srv.signalOther(ctx, j, sig)
}

// signalOther signals a backend that serves no session of this pgproxy's.
func (srv *Server) signalOther(ctx context.Context, j *journal, sig *Signal) (sent bool, err error) {
	up, err := activity.NewSignaller(ctx, srv.Dial, sig.Database, sig.Timeout)
	if err != nil {
		return false, err
	}
	defer up.Close()
	b, err := up.Find(ctx, sig.PID)
	switch {
	case err != nil:
		return false, err
	case up.Addr != sig.Upstream:
		return false, ErrOtherServer
	case b == nil, !sig.Start.IsZero() && !b.Start.Equal(sig.Start):
		return false, ErrNoBackend
	case upstream.IsHelper(b.Application), b.PID == int(up.PID):
		return false, ErrHelper
	case b.Database != sig.Database: // "" is a physical replica's
		return false, ErrOtherDatabase
	case b.Start.IsZero():
		return false, ErrUnknownStart
	}
	if err := j.signalled(sig, b, nil); err != nil {
		return false, fmt.Errorf("%w: %w", ErrUnrecorded, err)
	}
	return up.Signal(ctx, sig.Function, b)
}

// sessionAt finds the session whose backend has a process ID on a server.
func (srv *Server) sessionAt(pid int, addr string) *session {
	for _, s := range srv.live() {
		if _, ok := s.info(); ok && int(s.up.Load().PID) == pid && s.up.Load().Addr == addr {
			return s
		}
	}
	return nil
}

// owns reports whether a backend of the session's server is one of the caller's
// own sessions'.
func (s *session) owns(pid int) bool {
	other := s.srv.sessionAt(pid, s.up.Load().Addr)
	return other != nil && other.caller.Who() == s.caller.Who()
}

// takeSignal does to the session what a signal would do to its backend.
func (s *session) takeSignal(ctx context.Context, sig *Signal, by Viewer) (sent bool, err error) {
	if sig.Function == policy.CancelBackend {
		err := s.cancelStatement(ctx, 0, by.name())
		if errors.Is(err, ErrNotRunning) {
			err = nil // as the server has it
		}
		return err == nil, err
	}
	s.endBy(by)
	if sig.Timeout == 0 {
		return true, nil
	}
	ctx, cancel := context.WithTimeout(ctx, sig.Timeout)
	defer cancel()
	select {
	case <-s.ctx.Done():
		return true, nil
	case <-ctx.Done():
		return false, nil
	}
}

// signalTimeout bounds a signal, beside the time that it waits for the end.
const signalTimeout = 10 * time.Second

// serveSignal serves a plain pg_cancel_backend or pg_terminate_backend, with the
// server's answer: see policy.Signal.
func (s *session) serveSignal(st *statement, call *policy.Signal) *sessionError {
	if s.backend.Status() == 'E' {
		return statementError(codeFailedTransaction, "current transaction is aborted, commands ignored until end of transaction block")
	}
	sig := &Signal{Function: call.Function, Database: s.database, Upstream: s.up.Load().Addr, PID: call.PID, Timeout: call.Timeout, Reason: st.reason}
	var sent bool
	err := s.interruptible(func(ctx context.Context) (err error) {
		limit := signalTimeout + sig.Timeout
		if t := st.rule.StatementTimeout; t > 0 {
			limit = min(limit, t)
		}
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		sent, err = s.srv.signal(ctx, &s.journal, s.viewer(), sig) // as of now: the message may have waited for an approval
		return err
	})
	value := "f"
	switch {
	case errors.Is(err, ErrNoBackend):
		s.Send(warning(fmt.Sprintf("PID %d is not a PostgreSQL backend process", sig.PID)).append(nil))
	case err != nil:
		return s.signalError(err)
	case sent:
		value = "t"
	}
	s.result([]string{call.Column}, boolType, [][]string{{value}}, "SELECT 1")
	return nil
}

// Types of result columns, by their OID.
const (
	boolType = 16
	textType = 25
)

// signalError is what the client is told of a signal that was not sent.
func (s *session) signalError(err error) *sessionError {
	switch {
	case errors.Is(err, ErrUnrecorded):
		return s.unrecorded("ERROR", err)
	case errors.Is(err, ErrMaySignal), errors.Is(err, ErrHelper), errors.Is(err, ErrOtherDatabase), errors.Is(err, ErrUnknownStart), errors.Is(err, ErrWantsReason):
		e := statementError(codeInsufficientPriv, "pgproxy: the backend was not signalled")
		e.detail = sentence(err)
		return e
	case errors.Is(err, ErrOtherServer), errors.Is(err, ErrUndelivered):
		e := statementError(codeCannotConnect, "pgproxy: the backend was not signalled")
		e.detail = sentence(err)
		return e
	}
	return s.helperError(err)
}

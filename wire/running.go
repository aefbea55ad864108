package wire

import (
	"context"
	"errors"
	"fmt"
	"time"

	"pgproxy/policy"
	"pgproxy/upstream"
	"pgproxy/wire/audit"
	"pgproxy/wire/exchange"
	"pgproxy/wire/frame"
)

// What an exchange asks of its session: see exchange.Session. Send, Keep and
// Flush are in client.go.

// internalTimeout bounds an internal query.
const internalTimeout = 10 * time.Second

// Begin implements exchange.Session.
func (s *session) Begin(internal bool) {
	if internal {
		s.setClock(internalTimeout)
		s.enter(assisting)
		return
	}
	s.setClock(s.clockLimit)
	s.enter(running)
}

// End implements exchange.Session.
func (s *session) End() { s.enter(deciding) }

// Next implements exchange.Session.
func (s *session) Next() {
	s.mu.Lock()
	s.clock.began = time.Now()
	s.mu.Unlock()
}

// Progress implements exchange.Session.
func (s *session) Progress(rows, bytes int64) {
	s.sentRows.Store(rows)
	s.sentBytes.Store(bytes)
}

// Ended implements exchange.Session.
func (s *session) Ended() error {
	if e := s.settled(); e != nil {
		return e
	}
	return nil
}

// Cancelled implements exchange.Session.
func (s *session) Cancelled() (by string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cancelledBy, s.cancelled
}

// Expired implements exchange.Session.
func (s *session) Expired() bool { return s.expired.Load() }

// CancelRunning implements exchange.Session.
func (s *session) CancelRunning(number uint64) { s.fireCancel(number) }

// Capped implements exchange.Session.
func (s *session) Capped(limit string) { s.srv.metrics.capped(limit) }

// Tampered implements exchange.Session: it records the protected setting that
// was found changed.
func (s *session) Tampered(setting string) {
	rec := s.newRecord(audit.Tamper)
	rec.Seq, rec.Tampered = s.seq, setting
	s.srv.record(rec)
	s.srv.metrics.refusal("tamper")
	s.log.Warn("a protected setting was changed", "seq", s.seq, "setting", setting)
}

// LastWord implements exchange.Session. A limit of pgproxy's that the server
// keeps is told as what it is.
func (s *session) LastWord(f frame.ErrorFields) *frame.Notice {
	if f.Code != codeIdleInTransaction {
		return nil
	}
	rule := s.inForce()
	if rule.IdleInTransactionTimeout == 0 {
		return nil
	}
	return idleInTransaction(&rule).notice()
}

// idleInTransaction ends a session that has left a transaction open for too
// long, whoever kept the time.
func idleInTransaction(rule *policy.Rule) *sessionError {
	e := fatal(codeIdleInTransaction, fmt.Sprintf("pgproxy: terminating connection after %v idle in a transaction; the transaction was rolled back", rule.IdleInTransactionTimeout), reasonIdleTransaction)
	e.detail = fmt.Sprintf("The limit is pgproxy's: idle_in_transaction_session_timeout is %v.", rule.IdleInTransactionTimeout)
	e.hint = "Send BEGIN, the statements and COMMIT in one go. " + rule.LiftHint("idle_in_transaction_session_timeout", (10*rule.IdleInTransactionTimeout).Milliseconds())
	return e
}

func (s *session) setClock(limit time.Duration) {
	s.mu.Lock()
	s.clock = clock{limit: limit, began: time.Now()}
	s.expired.Store(false)
	s.mu.Unlock()
}

// restore makes the server's settings what they should be before a message is
// sent.
func (s *session) restore() *sessionError {
	rule := s.inForce()
	return s.exchangeError(s.backend.Restore(&rule, &s.ownTimeout))
}

// failTx fails an open transaction on the server: see exchange.Backend.FailTx.
func (s *session) failTx() *sessionError { return s.exchangeError(s.backend.FailTx()) }

// checkOpen checks what was not checked yet, at the end of the session.
func (s *session) checkOpen() {
	rule := s.inForce()
	names, err := s.backend.CheckOpen(&rule)
	if err != nil {
		s.log.Debug("the settings were not checked at the end", "err", err)
	}
	for _, name := range names {
		s.Tampered(name)
	}
}

// catalog lets the verdict look into the session's database.
type catalog struct{ s *session }

// Query implements policy.Catalog.
func (c catalog) Query(_ context.Context, sql string) ([][]string, error) {
	if c.s.backend.Status() == 'E' {
		return nil, policy.ErrFailedTransaction
	}
	rows, failure, err := c.s.backend.Execute(sql)
	if err != nil {
		e := c.s.exchangeError(err)
		c.s.end(e)
		return nil, e
	}
	if failure != "" {
		return nil, fmt.Errorf("catalogue query: %s", failure)
	}
	return rows, nil
}

// terminateBackend ends the session's backend from another connection of the
// same role.
func (s *session) terminateBackend(ctx context.Context) error {
	params := map[string]string{"application_name": "pgproxy ending a stuck statement"}
	if s.readLogin {
		params["default_transaction_read_only"] = "on"
	}
	up, err := s.srv.Dial(ctx, upstream.Request{Database: s.database, Params: params})
	if err != nil {
		return err
	}
	defer up.Close()
	if up.Addr != s.up.Addr { // of several hosts; there the number may be anybody's
		return fmt.Errorf("a new connection reaches another server, %s", up.Addr)
	}
	_, err = up.Query(ctx, fmt.Sprintf("SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity WHERE pid = %d AND usename = current_user", s.up.PID))
	return err
}

// exchangeErrors are the errors of an exchange that end the session, and what
// the client is told.
var exchangeErrors = []struct {
	err     error
	code    string
	message string
	reason  reason
}{
	{exchange.ErrCancelFate, codeConnectionFailure, "pgproxy: session closed to protect later statements: the fate of a cancel request is not known", reasonCancelLost},
	{exchange.ErrGateSlow, codeConnectionFailure, "pgproxy: session closed to protect later statements: the fate of a cancel request is not known", reasonCancelLost},
	{exchange.ErrMismatch, codeConnectionFailure, "pgproxy: session closed: the server read the statement differently from pgproxy", reasonTampered},
	{exchange.ErrNotRestored, codeAdminShutdown, "pgproxy: session closed: a setting that belongs to pgproxy could not be put back", reasonTampered},
	{exchange.ErrNotTakenBack, codeAdminShutdown, "pgproxy: session closed: a statement that changed too many rows could only be rolled back by ending it", reasonUpstream},
	{exchange.ErrNotFailed, codeConnectionFailure, "pgproxy: the transaction could not be failed", reasonUpstream},
	{exchange.ErrGarbled, codeConnectionFailure, "pgproxy: the upstream server sent something that is not an answer", reasonUpstream},
}

// exchangeError is the end of the session that an error of an exchange means.
func (s *session) exchangeError(err error) *sessionError {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*sessionError](err); ok {
		return e // what Ended has said
	}
	if lost, ok := errors.AsType[*exchange.LostError](err); ok {
		e := s.upstreamEnded(lost.Cause)
		if lost.Half {
			return e.unsaid()
		}
		return e
	}
	if last, ok := errors.AsType[*exchange.FatalError](err); ok {
		return s.upstreamFatal(last)
	}
	for _, known := range exchangeErrors {
		if errors.Is(err, known.err) {
			e := fatal(known.code, known.message, known.reason)
			e.cause = err
			return e
		}
	}
	e := fatal(codeInternal, "pgproxy: internal error", reasonInternal)
	e.cause = err
	return e
}

// upstreamFatal is the end of the session that the server's last word means.
func (s *session) upstreamFatal(last *exchange.FatalError) *sessionError {
	s.mu.Lock()
	stuck := s.expired.Load() && s.aborted
	s.mu.Unlock()
	var e *sessionError
	switch ending := s.settled(); {
	case last.Told:
		e = silent(reasonUpstream, last)
		e.code = last.Code
		if last.Code == codeIdleInTransaction {
			e.reason = reasonIdleTransaction
		}
	case ending != nil:
		e = ending // it is our doing, and said in our words
	case stuck:
		e = stuckError()
	default:
		e = fatal(last.Code, last.Message, reasonUpstream)
	}
	return e
}

func stuckError() *sessionError {
	return fatal(codeQueryCanceled, "pgproxy: the statement did not react to cancellation; its session was ended", reasonStuck)
}

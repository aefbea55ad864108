package wire

import (
	"context"
	"fmt"
	"time"

	"pgproxy/policy"
	"pgproxy/upstream"
	"pgproxy/wire/exchange"
	"pgproxy/wire/frame"
)

// What an exchange asks of its session: see exchange.Session. Send, Keep and
// Flush are the client's.

// internalTimeout bounds an internal query.
const internalTimeout = 10 * time.Second

// Begin implements exchange.Session.
func (s *session) Begin(own bool) {
	if own {
		s.life.setClock(internalTimeout)
		s.enter(internal)
		return
	}
	s.life.setClock(s.talk.clockLimit)
	s.enter(running)
}

// End implements exchange.Session.
func (s *session) End() { s.enter(processing) }

// Next implements exchange.Session.
func (s *session) Next() { s.life.nextStatement() }

// Progress implements exchange.Session.
func (s *session) Progress(rows, bytes int64) {
	s.totals.sentRows.Store(rows)
	s.totals.sentBytes.Store(bytes)
}

// Ended implements exchange.Session.
func (s *session) Ended() error {
	if e := s.life.settled(); e != nil {
		return e
	}
	return nil
}

// Cancelled implements exchange.Session.
func (s *session) Cancelled() (by string, ok bool) { return s.life.cancelledAs() }

// Expired implements exchange.Session.
func (s *session) Expired() bool { return s.life.expired.Load() }

// CancelRunning implements exchange.Session.
func (s *session) CancelRunning(number uint64) { s.fireCancel(number) }

// Capped implements exchange.Session.
func (s *session) Capped(limit string) { s.srv.metrics.capped(limit) }

// Tampered implements exchange.Session.
func (s *session) Tampered(setting string) { s.tampered(s.life.statement(), setting) }

// LastWord implements exchange.Session. A limit of pgproxy's that the server
// keeps is told as what it is.
func (s *session) LastWord(f frame.ErrorFields) *frame.Notice {
	if f.Code != codeIdleInTransaction {
		return nil
	}
	rule := s.ruling.rule()
	if rule.IdleInTransactionTimeout == 0 {
		return nil
	}
	return idleInTransaction(&rule).notice()
}

// restore makes the server's settings what they should be before a message is
// sent.
func (s *session) restore() *sessionError {
	rule := s.ruling.rule()
	return s.exchangeError(s.backend.Restore(&rule, &s.talk.ownTimeout))
}

// failTx fails an open transaction on the server: see exchange.Backend.FailTx.
func (s *session) failTx() *sessionError { return s.exchangeError(s.backend.FailTx()) }

// checkOpen checks what was not checked yet, at the end of the session.
func (s *session) checkOpen() {
	rule := s.ruling.rule()
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

// terminate ends a backend that does not react to being cancelled: closing the
// connection alone would leave it running. The process number is its own for
// sure while the connection is open.
func (s *session) terminate() {
	ctx, cancel := context.WithTimeout(context.Background(), exchange.CancelTimeout)
	defer cancel()
	if err := s.terminateBackend(ctx); err != nil {
		s.log.Warn("terminating the backend", "err", err)
	}
	s.abort(nil)
}

// terminateBackend ends the session's backend from another connection of the
// same role.
func (s *session) terminateBackend(ctx context.Context) error {
	params := map[string]string{"application_name": upstream.HelperName("end")}
	if s.talk.readLogin.Load() {
		params["default_transaction_read_only"] = "on"
	}
	up, err := s.srv.Dial(ctx, upstream.Request{Database: s.database, Params: params})
	if err != nil {
		return err
	}
	defer up.Close()
	if up.Addr != s.up.Load().Addr { // of several hosts; there the number may be anybody's
		return fmt.Errorf("a new connection reaches another server, %s", up.Addr)
	}
	_, err = up.Query(ctx, fmt.Sprintf("SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity WHERE pid = %d AND usename = current_user", s.up.Load().PID))
	return err
}

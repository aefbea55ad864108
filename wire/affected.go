package wire

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"pgproxy/policy"
)

// The affected-rows cap takes a statement back that has changed more rows than
// the rule allows. How many it changes is known only when it has done so, and
// by then it must not be committed. So outside of a transaction the proxy
// wraps it in one of its own, and the client hears of its completion only when
// COMMIT has succeeded; inside of one it sets a savepoint. Statements that do
// not write pay nothing.
//
// A message that begins or ends transactions by itself is sent statement by
// statement, since its COMMIT would otherwise come too soon. Statements that
// refuse to run inside of a block refuse to run beside others in a message, too,
// and change no rows themselves: none of them has to be left unwrapped. What was
// not seen to change rows and did so all the same is told of afterwards, with a
// WARNING.

const guardSavepoint = "pgproxy_guard"

// countChanges sums up the rows that the session has changed, as far as they
// are not yet in the table statistics. Differences of it count what no
// command tag tells: the writes of a WITH clause. The chunks of a large value
// are rows of a TOAST table, which this view leaves out.
const countChanges = "SELECT coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0) FROM pg_catalog.pg_stat_xact_user_tables"

// piece is a part of a message that is sent by itself.
type piece struct {
	sql         string
	first, last int // its statements
}

// needsGuard reports whether the message may change rows that the cap counts.
func (s *session) needsGuard(st *statement) bool {
	if st.rule.MaxAffectedRows <= 0 {
		return false
	}
	for i := range st.msg.Statements {
		if s.memory.Changes(st.msg, i) {
			return true
		}
	}
	return false
}

// pieces cuts a message where transactions begin or end in it.
func (st *statement) pieces() (list []piece) {
	stmts := st.msg.Statements
	if !slices.ContainsFunc(stmts, func(stmt policy.Statement) bool { return stmt.Tx != policy.TxNone }) {
		return []piece{{st.sql, 0, len(stmts) - 1}}
	}
	for i := range stmts {
		list = append(list, piece{blank(st.sql[:stmts[i].Start]) + st.sql[stmts[i].Start:stmts[i].End], i, i})
	}
	return list
}

// blank is white space of the same length in characters and lines, so that
// positions in the server's errors stay right.
func blank(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' {
			return r
		}
		return ' '
	}, s)
}

// runGuarded sends a message that changes rows so that they can be taken back.
// The session is running, and in its gate.
func (s *session) runGuarded(st *statement) *sessionError {
	list := st.pieces()
	st.guarded = true
	c := &st.cycle
	implicit := false // a transaction of ours is open
	for i, p := range list {
		stmt := &st.msg.Statements[p.first]
		if end := endOfImplicit(stmt); implicit && end != "" {
			if e := s.endImplicit(st, end); e != nil || c.sqlstate != "" {
				return e
			}
			implicit = false
		}
		if s.status == 'I' && stmt.Tx == policy.TxNone {
			if _, done, e := s.step(st, "BEGIN"); done || e != nil {
				return e
			}
			implicit = true
		}
		last := i == len(list)-1
		c.keep = 0
		if last && implicit && (stmt.Tx == policy.TxNone || len(list) == 1) {
			c.keep = p.last + 1
		}
		c.quietBegin = implicit && stmt.Tx == policy.TxBegin
		if e := s.runPiece(st, p, implicit); e != nil {
			return e
		}
		if stmt.Tx == policy.TxBegin || s.status == 'I' {
			implicit = false
		}
		if c.sqlstate != "" {
			break
		}
	}
	if implicit {
		return s.closeImplicit(st)
	}
	return nil
}

// runPiece sends one piece. Inside of the client's own transaction a savepoint
// stands before it.
func (s *session) runPiece(st *statement, p piece, implicit bool) *sessionError {
	c := &st.cycle
	writes, hidden := false, false
	for i := p.first; i <= p.last; i++ {
		writes = writes || s.memory.Changes(st.msg, i)
		hidden = hidden || s.status != 'E' && s.memory.Hidden(st.msg, i)
	}
	savepoint := writes && !implicit && s.status == 'T'
	if savepoint {
		if _, done, e := s.step(st, "SAVEPOINT "+guardSavepoint); done || e != nil {
			return e
		}
	}
	untilCommit := c.keep > 0
	var before int64
	if hidden {
		n, done, e := s.changedSoFar(st)
		if done || e != nil {
			return e
		}
		before, c.keep = n, p.last+1
	}
	if e := s.send(st, p.sql); e != nil {
		return e
	}
	if hidden && c.sqlstate == "" && s.status == 'T' {
		after, done, e := s.changedSoFar(st)
		if done || e != nil {
			return e
		}
		if n := after - before; n > st.rule.MaxAffectedRows {
			c.over, c.silenced = n, true
		}
		c.affected = max(c.affected, after-before)
	}
	if c.over > 0 {
		return s.takeBack(st, p, savepoint)
	}
	if savepoint && s.status == 'T' {
		if _, done, e := s.step(st, "RELEASE SAVEPOINT "+guardSavepoint); done || e != nil {
			return e
		}
	}
	if !untilCommit {
		s.emitHeld(st)
	}
	return nil
}

// emitHeld tells the client of the completion that was kept.
func (s *session) emitHeld(st *statement) {
	c := &st.cycle
	s.emit(c.held)
	c.bytes += int64(len(c.held))
	c.held = nil
}

// changedSoFar runs countChanges. done says that it failed, and that the
// client was told.
func (s *session) changedSoFar(st *statement) (n int64, done bool, e *sessionError) {
	r, done, e := s.step(st, countChanges)
	if done || e != nil {
		return 0, done, e
	}
	if len(r.rows) != 1 || len(r.rows[0]) != 1 {
		return 0, false, garbled('D')
	}
	n, err := strconv.ParseInt(r.rows[0][0], 10, 64)
	if err != nil {
		return 0, false, garbled('D')
	}
	return n, false, nil
}

// takeBack undoes a piece that changed too much. A transaction of the client's
// goes on without it.
func (s *session) takeBack(st *statement, p piece, savepoint bool) *sessionError {
	c := &st.cycle
	c.held = nil
	e := statementError(codeLimitExceeded, fmt.Sprintf("pgproxy: the statement changed %s, max_affected_rows is %d; it was rolled back", count(c.over, "row"), st.rule.MaxAffectedRows))
	e.hint = "Narrow its WHERE" + s.liftHint(st, "max_affected_rows") + "."
	c.sqlstate, c.failure, c.affected = e.code, e.message, 0
	s.srv.metrics.capped("max_affected_rows")
	if savepoint {
		e.detail = "The transaction goes on without it."
		if p.first < p.last {
			e.detail = "The transaction goes on as it was before this message."
		}
		r, lost := s.roundTrip("ROLLBACK TO SAVEPOINT " + guardSavepoint + "; RELEASE SAVEPOINT " + guardSavepoint)
		if lost != nil {
			return lost
		}
		s.emit(r.async)
		if r.failure != nil {
			return s.notTakenBack(r)
		}
		c.settled = true
	}
	s.emit(e.append(nil))
	return nil
}

// notTakenBack ends the session, and with it the transaction.
func (s *session) notTakenBack(r *reply) *sessionError {
	e := fatal(codeAdminShutdown, "pgproxy: session closed: a statement that changed too many rows could only be rolled back by ending it", reasonUpstream)
	e.cause = fmt.Errorf("%s", r.failure.message)
	return e
}

// closeImplicit ends the transaction of ours, and only then tells the client
// of the last statement's completion.
func (s *session) closeImplicit(st *statement) *sessionError {
	end := "COMMIT"
	if st.cycle.sqlstate != "" || s.status == 'E' {
		end = "ROLLBACK"
	}
	st.cycle.settled = true
	return s.endImplicit(st, end)
}

// endOfImplicit tells how the transaction of ours is to end before a statement
// that ends, or does not permit, the one that the server makes of a message's
// statements: the statement itself then gets the server's own answer. It
// returns "" for any other statement.
func endOfImplicit(stmt *policy.Statement) string {
	switch stmt.Tx {
	case policy.TxCommit:
		if stmt.Chains {
			return "ROLLBACK" // it will be an error
		}
		return "COMMIT"
	case policy.TxRollback, policy.TxSavepoint, policy.TxRollbackTo:
		return "ROLLBACK"
	}
	return ""
}

// endImplicit ends the transaction of ours by COMMIT or ROLLBACK.
func (s *session) endImplicit(st *statement, end string) *sessionError {
	c := &st.cycle
	r, e := s.roundTrip(end)
	if e != nil {
		return e
	}
	s.emit(r.notices) // of triggers that were deferred
	switch {
	case r.failure != nil:
		s.tell(st, r)
	case end == "COMMIT" && r.tag != "COMMIT":
		c.sqlstate, c.failure, c.affected = codeInternal, "not committed", 0
		s.emit(statementError(codeInternal, "pgproxy: the statement was rolled back by the server").append(nil))
	case end == "COMMIT":
		s.emitHeld(st)
	}
	s.emit(r.async)
	return nil
}

// tell passes on that one of the guard's own statements has failed.
func (s *session) tell(st *statement, r *reply) {
	c := &st.cycle
	c.sqlstate, c.failure, c.affected = r.failure.code, r.failure.message, 0
	if e := s.replacement(st, *r.failure, len(r.frame)-headerLen); e != nil {
		s.emit(e.append(nil))
		return
	}
	s.emit(r.frame)
}

// step runs one of the guard's own statements. done says that it failed, and
// that the client was told.
func (s *session) step(st *statement, sql string) (r *reply, done bool, e *sessionError) {
	r, e = s.roundTrip(sql)
	if e != nil {
		return nil, false, e
	}
	s.emit(r.async)
	if r.failure == nil {
		return r, false, nil
	}
	s.tell(st, r)
	return r, true, nil
}

// unguardedWarning tells of a change that was too large and could not be taken
// back.
func (s *session) unguardedWarning(st *statement, changed int64) *sessionError {
	return &sessionError{severity: "WARNING", code: codeWarning,
		message: fmt.Sprintf("pgproxy: the statement changed %s, max_affected_rows is %d; it could not be rolled back", count(changed, "row"), st.rule.MaxAffectedRows)}
}

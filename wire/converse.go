package wire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"pgproxy/policy"
	"pgproxy/wire/audit"
)

// maxStatement is the longest Query message taken, in bytes. It bounds what a
// session can make the proxy hold; a message is held whole to be judged.
const maxStatement = 16 << 20

// extendedHint tells how to make a driver speak the simple protocol.
const extendedHint = "psql needs nothing; pgx: QueryExecModeSimpleProtocol; psycopg 3: ClientCursor; JDBC, DataGrip, DBeaver: preferQueryMode=simple; lib/pq and node-postgres: a query without parameters."

// converse serves the client's messages, one after the other, until the
// session ends. It returns why.
func (s *session) converse() (e *sessionError) {
	defer func() {
		if defect := s.recovered(recover()); defect != nil {
			e = s.abandon(defect)
		}
	}()
	for {
		typ, n, e := s.nextMessage()
		if e != nil {
			return e
		}
		e = s.serve(typ, n)
		s.served()
		s.flush()
		if e != nil {
			return e
		}
	}
}

// served says, before the client can know it, that there is nothing to cancel
// any more.
func (s *session) served() {
	s.mu.Lock()
	s.unsent = false
	s.mu.Unlock()
}

// abandon stops what a session has upstream that cannot go on. A client that may
// have half of an answer is told no more.
func (s *session) abandon(e *sessionError) *sessionError {
	number := s.gate.running()
	if number == 0 {
		return e
	}
	s.fireCancel(number)
	return e.unsaid()
}

// nextMessage waits for the header of the client's next message.
func (s *session) nextMessage() (typ byte, n int, e *sessionError) {
	for {
		typ, n, ok, err := s.client.header()
		if err != nil {
			return 0, 0, silent(reasonProtocol, err)
		}
		if ok {
			// Messages sent ahead do not pass through rest.
			return typ, n, s.endNow()
		}
		if e := s.rest(); e != nil {
			return 0, 0, e
		}
	}
}

// serve acts on one message.
func (s *session) serve(typ byte, n int) *sessionError {
	act := s.automaton.next(typ, n)
	if act == query && n <= maxStatement {
		body, e := s.clientBody(n)
		if e != nil {
			return e
		}
		return s.serveQuery(body)
	}
	switch act {
	case terminate:
		return silent(reasonClient, nil)
	case tooLong:
		return silent(reasonProtocol, fmt.Errorf("message %q of %d bytes", typ, n))
	case unknownType:
		return fatal(codeProtocolViolation, fmt.Sprintf("invalid frontend message type %d", typ), reasonProtocol)
	}
	if e := s.discardClient(headerLen + n); e != nil {
		return e
	}
	switch act {
	case query:
		return s.deny(s.begin(), policy.Decision{Refusal: &policy.Refusal{Code: codeTooComplex, Rule: "length",
			Message: fmt.Sprintf("pgproxy: a statement of %d bytes is too long", n),
			Hint:    fmt.Sprintf("The limit is %d bytes.", maxStatement)}})
	case refuseExtended:
		s.count("extended")
		s.emit(statementError(codeFeatureNotSupported, "pgproxy: unsupported message (use simple protocol)").withHint(extendedHint).append(nil))
	case refuseCall:
		s.count("function call")
		return s.answer(statementError(codeFeatureNotSupported, "pgproxy: unsupported message (use simple protocol): function call").
			withHint("Call the function by SELECT."))
	case syncBody:
		return s.answer(statementError(codeProtocolViolation, "invalid message format"))
	case syncRefused:
		if e := s.poison(); e != nil {
			return e
		}
		fallthrough
	case answerSync:
		s.emit(appendReady(nil, s.status))
	}
	return nil
}

// clientBody takes a message's body from the client, however long it takes to
// come. Meanwhile the session rests, as far as its clocks are concerned.
func (s *session) clientBody(n int) ([]byte, *sessionError) {
	for s.client.w-s.client.r < headerLen+n {
		if e := s.restMore(headerLen + n); e != nil {
			return nil, e
		}
	}
	body, err := s.client.body(n)
	if err != nil {
		return nil, clientEnded(err)
	}
	return body, nil
}

func (s *session) discardClient(n int) *sessionError {
	for n > 0 {
		have := min(n, s.client.w-s.client.r)
		s.client.r += have
		if n -= have; n > 0 && have == 0 {
			if e := s.restMore(minBuffer); e != nil {
				return e
			}
		}
	}
	return nil
}

// restMore reads more of a message that has begun.
func (s *session) restMore(want int) *sessionError {
	s.flush()
	s.enter(resting)
	if e := s.settled(); e != nil {
		s.enter(ending)
		return e
	}
	err := s.client.fill(want)
	s.enter(deciding)
	if e := s.settled(); e != nil {
		return e
	}
	if err != nil {
		return clientEnded(bodyError(err))
	}
	return nil
}

// answer sends an error of ours and ReadyForQuery, having failed an open
// transaction as any error would.
func (s *session) answer(e *sessionError) *sessionError {
	if end := s.poison(); end != nil {
		return end
	}
	s.emit(e.append(nil))
	s.emit(appendReady(nil, s.status))
	return nil
}

func (s *session) count(refusal string) { s.srv.metrics.refusal(refusal) }

// statement is one Query message on its way through the session.
type statement struct {
	seq    int64
	sql    string
	shown  string          // sql as records and people may see it
	masked bool            // it is not all there
	msg    *policy.Message // nil when it could not be read
	rule   policy.Rule     // in force when it was judged
	began  time.Time
	// guarded says that a statement which changes too many rows can still be
	// taken back.
	guarded bool
	cycle   cycle
}

// serveQuery takes a Query message through reading, verdict, record, server
// and answer.
func (s *session) serveQuery(body []byte) *sessionError {
	st := s.begin()
	if bad := queryText(body); bad != nil {
		return s.deny(st, policy.Decision{Refusal: bad})
	}
	e := s.read(st, string(body[:len(body)-1]))
	if e != nil {
		return s.deny(st, policy.Decision{Refusal: e})
	}
	rest, end := s.ownPrefix(st)
	if rest == nil || end != nil {
		return end
	}
	st = rest
	if e := s.restore(); e != nil {
		return e
	}
	d := policy.Decide(s.ctx, &st.rule, st.msg, &s.memory, catalog{s})
	if d.Refusal == nil {
		d.Refusal = s.wantReason(st, d.Writes)
	}
	if d.Refusal != nil {
		return s.deny(st, d)
	}
	return s.perform(st, d)
}

// begin makes and numbers a statement.
func (s *session) begin() *statement {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seq++
	s.sql, s.unsent, s.cancelled = "", true, false
	s.statements.Add(1)
	return &statement{seq: s.seq, rule: s.rule, began: time.Now()}
}

// read gives a statement its text and reads it. From here on it can be shown
// to those who look on.
func (s *session) read(st *statement, sql string) *policy.Refusal {
	msg, err := s.srv.Judge.Parse(s.ctx, sql)
	st.sql = sql
	if err == nil {
		st.msg = msg
	}
	st.shown, st.masked = policy.Redact(s.srv.Redaction, sql, st.msg)
	s.mu.Lock()
	s.sql = cut(st.shown, shownSQL)
	s.mu.Unlock()
	if err == nil {
		return nil
	}
	if r, ok := errors.AsType[*policy.Refusal](err); ok {
		return r
	}
	return &policy.Refusal{Code: codeInternal, Message: "pgproxy: the statement could not be read", Rule: "parse"}
}

// wantReason refuses statements that do more than read, where the rule wants a
// reason for them and none was given.
func (s *session) wantReason(st *statement, writes bool) *policy.Refusal {
	if !st.rule.RequireReason || !writes {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lifts.Reason() != "" {
		return nil
	}
	return &policy.Refusal{
		Code: codeInsufficientPriv, Rule: "require_reason",
		Message: "pgproxy: a reason is wanted for statements that change anything",
		Detail:  "The policy says require_reason.",
		Hint:    "SET pgproxy.reason = 'INC-123', or connect with PGOPTIONS='-c pgproxy.reason=INC-123'.",
	}
}

// queryText checks a Query message's body as PostgreSQL does: one string, its
// terminator at the end, in valid UTF-8.
func queryText(body []byte) *policy.Refusal {
	end := bytes.IndexByte(body, 0)
	switch {
	case end < 0:
		return &policy.Refusal{Code: codeProtocolViolation, Message: "invalid string in message", Rule: "message"}
	case end != len(body)-1:
		return &policy.Refusal{Code: codeProtocolViolation, Message: "invalid message format", Rule: "message"}
	}
	if text := body[:end]; !utf8.Valid(text) {
		return &policy.Refusal{Code: codeBadEncoding, Rule: "message",
			Message: fmt.Sprintf("invalid byte sequence for encoding \"UTF8\": 0x%02x", firstInvalid(text))}
	}
	return nil
}

func firstInvalid(b []byte) byte {
	for i := 0; i < len(b); {
		r, size := utf8.DecodeRune(b[i:])
		if r == utf8.RuneError && size == 1 {
			return b[i]
		}
		i += size
	}
	return 0
}

// deny records a refusal and tells the client. Nothing was sent.
func (s *session) deny(st *statement, d policy.Decision) *sessionError {
	rec := s.queryRecord(st)
	rec.Verdict, rec.Rule, rec.Kinds = "deny", d.Refusal.Rule, d.Kinds
	rec.SQLState = d.Refusal.Code
	rec.Error = policy.RedactError(s.srv.Redaction, d.Refusal.Code, d.Refusal.Message, st.sql, st.msg)
	s.srv.record(rec)
	s.srv.metrics.refusal(d.Refusal.Rule)
	s.srv.metrics.denied(d.Kinds)
	s.log.Info("statement refused", "seq", st.seq, "rule", d.Refusal.Rule, "sqlstate", d.Refusal.Code)
	s.keep(st, outcome{sqlstate: d.Refusal.Code, failure: rec.Error, denied: true})
	return s.answer(refused("ERROR", d.Refusal))
}

func (s *session) queryRecord(st *statement) *audit.Record {
	rec := s.newRecord(audit.Query)
	rec.Seq, rec.TX = st.seq, string(s.status)
	rec.SQL, rec.SQLRedacted = st.shown, st.masked
	rec.Fingerprint = policy.Fingerprint(st.sql, st.msg)
	return rec
}

// perform records an allowed statement, sends it and relays its answer.
func (s *session) perform(st *statement, d policy.Decision) *sessionError {
	if e := s.admitWrites(st, d.Writes); e != nil {
		return e
	}
	rec := s.queryRecord(st)
	rec.Verdict, rec.Rule, rec.Kinds = "allow", d.Rule, d.Kinds
	if err := s.srv.write(rec); err != nil {
		return s.answer(s.unrecorded("ERROR", err))
	}
	s.srv.metrics.statement(d.Kinds)
	e := s.execute(st)
	completed := st.cycle.index
	if st.cycle.sqlstate != "" {
		completed = max(completed-1, 0)
	}
	s.memory.Note(st.msg, completed)
	if st.rule.Access == policy.Admin && strings.Contains(strings.ToLower(st.sql), "statement_timeout") {
		s.ownTimeout = true
	}
	return e
}

// outcome is what came of a statement, for its record.
type outcome struct {
	tag, sqlstate, failure string
	rows, bytes            int64
	affected               int64 // -1 = none reported
	truncated, cancelled   bool
	denied                 bool
}

func (s *session) recordResult(st *statement, o outcome) {
	lasted := time.Since(st.began)
	if o.failure != "" {
		o.failure = policy.RedactError(s.srv.Redaction, o.sqlstate, o.failure, st.sql, st.msg)
	}
	rec := s.newRecord(audit.Result)
	rec.Seq, rec.Tag, rec.SQLState, rec.Error = st.seq, o.tag, o.sqlstate, o.failure
	rec.Rows, rec.Bytes, rec.Truncated, rec.Cancelled = &o.rows, &o.bytes, o.truncated, o.cancelled
	if o.affected > 0 || isChange(o.tag) {
		rec.Affected = &o.affected
	}
	rec.DurationMS, rec.TX = milliseconds(lasted), string(s.status)
	s.srv.record(rec)
	s.sentRows.Store(0)
	s.sentBytes.Store(0)
	s.rows.Add(o.rows)
	s.bytes.Add(o.bytes)
	s.srv.metrics.result(lasted, o)
	s.keep(st, o)
	if s.log.Enabled(context.Background(), levelDebug) {
		s.log.Debug("statement", "seq", st.seq, "tag", o.tag, "rows", o.rows, "bytes", o.bytes,
			"sqlstate", o.sqlstate, "took", lasted, "truncated", o.truncated)
	}
}

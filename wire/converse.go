package wire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"pgproxy/policy"
	"pgproxy/wire/audit"
	"pgproxy/wire/exchange"
	"pgproxy/wire/frame"
)

// maxStatement is the longest Query message taken, in bytes. It bounds what a
// session can make the proxy hold; a message is held whole to be judged.
const maxStatement = 16 << 20

// extendedHint tells how to make a client speak the simple protocol.
func extendedHint(client string) string {
	if client == "psql" {
		return `In psql, \gdesc, \bind, \parse and pipelines need the extended protocol. Run the query by itself: \g shows its columns, and LIMIT 0 no rows.`
	}
	return "Make the driver use the simple protocol. pgx: QueryExecModeSimpleProtocol; psycopg 3: ClientCursor; JDBC, DataGrip, DBeaver: preferQueryMode=simple; lib/pq and node-postgres: a query without parameters."
}

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
			return s.last(e)
		}
		e = s.serve(typ, n)
		s.served()
		s.Flush()
		if e != nil {
			return s.last(e)
		}
	}
}

// last does what is left to be done on a connection to the server that is well,
// before the session ends.
func (s *session) last(e *sessionError) *sessionError {
	if e.reason == reasonClient {
		s.checkOpen()
	}
	return e
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
	number := s.backend.Running()
	if number == 0 {
		return e
	}
	s.fireCancel(number)
	return e.unsaid()
}

// nextMessage waits for the header of the client's next message.
func (s *session) nextMessage() (typ byte, n int, e *sessionError) {
	for {
		typ, n, ok, err := s.client.Header()
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
		return s.takeQuery(n)
	}
	switch act {
	case terminate:
		return silent(reasonClient, nil)
	case tooLong:
		return silent(reasonProtocol, fmt.Errorf("message %q of %d bytes", typ, n))
	case unknownType:
		return fatal(codeProtocolViolation, fmt.Sprintf("invalid frontend message type %d", typ), reasonProtocol)
	}
	if e := s.discardClient(frame.HeaderLen + n); e != nil {
		return e
	}
	switch act {
	case query:
		return s.deny(s.begin(), policy.Decision{Refusal: &policy.Refusal{Code: codeTooComplex, Rule: "length",
			Message: fmt.Sprintf("pgproxy: a statement of %d bytes is too long", n),
			Hint:    fmt.Sprintf("The limit is %d bytes.", maxStatement)}})
	case refuseExtended:
		s.count("extended")
		s.Send(statementError(codeFeatureNotSupported, "pgproxy: unsupported message (use simple protocol)").withHint(extendedHint(s.startup.client)).append(nil))
	case refuseCall:
		s.count("function call")
		return s.answer(statementError(codeFeatureNotSupported, "pgproxy: unsupported message (use simple protocol): function call").
			withHint("Call the function by SELECT."))
	case syncBody:
		return s.answer(statementError(codeProtocolViolation, "invalid message format"))
	case syncRefused:
		if e := s.failTx(); e != nil {
			return e
		}
		fallthrough
	case answerSync:
		s.ready()
	}
	return nil
}

// clientBody takes a message's body from the client, however long it takes to
// come. Meanwhile the session rests, as far as its clocks are concerned.
func (s *session) clientBody(n int) ([]byte, *sessionError) {
	for s.client.Buffered() < frame.HeaderLen+n {
		if e := s.restMore(frame.HeaderLen + n); e != nil {
			return nil, e
		}
	}
	body, err := s.client.Body(n)
	if err != nil {
		return nil, clientEnded(err)
	}
	return body, nil
}

func (s *session) discardClient(n int) *sessionError {
	for n > 0 {
		have := min(n, s.client.Buffered())
		s.client.Discard(have)
		if n -= have; n > 0 && have == 0 {
			if e := s.restMore(frame.MinBuffer); e != nil {
				return e
			}
		}
	}
	return nil
}

// restMore reads more of a message that has begun.
func (s *session) restMore(want int) *sessionError {
	s.Flush()
	s.enter(resting)
	if e := s.settled(); e != nil {
		s.enter(ending)
		return e
	}
	err := s.client.Fill(want)
	s.enter(deciding)
	if e := s.settled(); e != nil {
		return e
	}
	if err != nil {
		return clientEnded(frame.InBody(err))
	}
	return nil
}

// answer sends an error of ours and ReadyForQuery, having failed an open
// transaction as any error would.
func (s *session) answer(e *sessionError) *sessionError {
	if end := s.failTx(); end != nil {
		return end
	}
	s.Send(e.append(nil))
	s.ready()
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
	own    int             // how many of its statements, from the first, are pgproxy's own
	rule   policy.Rule     // what it is judged by
	reason string          // the user's, when it is judged
	began  time.Time
}

// serveQuery takes a Query message through reading, verdict, record, server
// and answer.
func (s *session) serveQuery(st *statement, body []byte) *sessionError {
	if bad := queryText(body); bad != nil {
		return s.deny(st, policy.Decision{Refusal: bad})
	}
	if bad := s.read(st, string(body[:len(body)-1])); bad != nil {
		if bad.Rule == "syntax" {
			return s.denySyntax(st, bad)
		}
		return s.deny(st, policy.Decision{Refusal: bad})
	}
	if bad := s.tryOwn(st); bad != nil {
		return s.deny(st, policy.Decision{Kinds: st.kinds(), Refusal: bad})
	}
	if st.own < len(st.msg.Statements) {
		if e := s.restore(); e != nil {
			return e
		}
	}
	d := policy.Decide(s.ctx, &st.rule, st.msg, &s.memory, catalog{s})
	if d.Refusal == nil {
		d.Refusal = st.rule.WantReason(st.reason, d.Writes)
	}
	if d.Refusal != nil {
		return s.deny(st, d)
	}
	return s.perform(st, d)
}

// begin makes and numbers a statement. When it is judged by another rule than
// the client knows, the client is told before anything else.
func (s *session) begin() *statement {
	st, notice := s.number()
	if notice != nil {
		s.Send(notice.append(nil))
	}
	return st
}

func (s *session) number() (*statement, *sessionError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var notice *sessionError
	if s.untold {
		notice = s.ruleNoticeLocked()
	}
	s.seq++
	s.sql, s.unsent, s.cancelled, s.cancelledBy = "", true, false, ""
	s.statements.Add(1)
	return &statement{seq: s.seq, rule: s.rule, reason: s.lifts.Reason(), began: time.Now()}, notice
}

// read gives a statement its text and reads it. From here on it can be shown
// to those who look on.
func (s *session) read(st *statement, sql string) *policy.Refusal {
	st.sql = sql
	err := s.parse(st)
	s.redactStatement(st)
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

// quickText is the length in bytes up to which no text takes long to parse.
const quickText = 2 << 10

func (s *session) parse(st *statement) (err error) {
	parse := func(ctx context.Context) error {
		st.msg, err = s.srv.Judge.ParseFor(ctx, s.caller.Who(), st.sql)
		return err
	}
	if len(st.sql) <= quickText {
		return parse(s.ctx)
	}
	return s.interruptible(parse)
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
	s.recordDenial(st, d)
	return s.answer(refused("ERROR", d.Refusal))
}

func (s *session) recordDenial(st *statement, d policy.Decision) {
	rec := s.queryRecord(st)
	rec.Verdict, rec.Rule, rec.Kinds = "deny", d.Refusal.Rule, d.Kinds
	rec.SQLState = d.Refusal.Code
	rec.Error = s.redactError(st, d.Refusal.Code, d.Refusal.Message)
	st.keepHead(rec)
	s.srv.record(rec)
	s.srv.metrics.refusal(d.Refusal.Rule)
	s.srv.metrics.denied(d.Kinds)
	s.log.Info("statement refused", "seq", st.seq, "rule", d.Refusal.Rule, "sqlstate", d.Refusal.Code)
	s.keep(st, exchange.Outcome{SQLState: d.Refusal.Code, Failure: rec.Error}, true)
}

// denySyntax refuses a text that pgproxy's parser cannot read, in the server's
// own words where the server cannot read it either: see exchange.Backend.Syntax.
func (s *session) denySyntax(st *statement, bad *policy.Refusal) *sessionError {
	message, err := s.backend.Syntax(st.sql)
	if err != nil {
		s.recordDenial(st, policy.Decision{Refusal: bad})
		return s.exchangeError(err)
	}
	if message == nil {
		return s.deny(st, policy.Decision{Refusal: olderGrammar(bad, s.up.Params["server_version"])})
	}
	f := frame.ParseErrorFields(message[frame.HeaderLen:])
	s.recordDenial(st, policy.Decision{Refusal: &policy.Refusal{Code: f.Code, Message: f.Message, Rule: bad.Rule}})
	s.Send(message)
	s.ready()
	return nil
}

// parserMajor is the version of PostgreSQL whose grammar pgproxy has.
const parserMajor = 17

// olderGrammar is the refusal of a text that the server can read and pgproxy
// cannot. A rule that is in the grammar of one version was checked later in
// those before it, in the same words: from an older server these are as good as
// its own.
func olderGrammar(bad *policy.Refusal, serverVersion string) *policy.Refusal {
	major, _, _ := strings.Cut(serverVersion, ".")
	if n, err := strconv.Atoi(major); err == nil && n <= parserMajor && !strings.HasPrefix(bad.Message, "syntax error") {
		return bad
	}
	r := *bad
	r.Detail = "The server can read this statement. pgproxy's grammar is older, that of PostgreSQL 17, and what pgproxy cannot read it does not send."
	if r.Hint == "" {
		r.Hint = "Write it in the syntax of PostgreSQL 17."
	}
	r.Message = "pgproxy: " + strings.TrimPrefix(r.Message, "pgproxy: ")
	return &r
}

func (s *session) queryRecord(st *statement) *audit.Record {
	rec := s.newRecord(audit.Query)
	rec.Seq, rec.TX = st.seq, string(s.backend.Status())
	rec.SQL, rec.SQLRedacted = st.shown, st.masked
	rec.Fingerprint = policy.Fingerprint(st.sql, st.msg)
	return rec
}

// perform records an allowed statement, serves what of it is pgproxy's own,
// sends the rest and relays its answer.
func (s *session) perform(st *statement, d policy.Decision) *sessionError {
	rec := s.queryRecord(st)
	rec.Verdict, rec.Rule, rec.Kinds = "allow", d.Rule, d.Kinds
	if st.own > 0 && st.own == len(st.msg.Statements) {
		rec.Rule = "own"
	}
	if err := s.srv.write(rec); err != nil {
		return s.answer(s.unrecorded("ERROR", err))
	}
	s.srv.metrics.statement(d.Kinds)
	if st.own > 0 {
		tag, e := s.serveOwn(st)
		if e != nil {
			s.recordResult(st, exchange.Outcome{SQLState: e.code, Failure: e.message})
			return s.answer(e)
		}
		if st.own == len(st.msg.Statements) {
			s.recordResult(st, exchange.Outcome{Tag: tag})
			s.ready()
			return nil
		}
		if e := s.restore(); e != nil {
			return s.lost(st, exchange.Outcome{}, e)
		}
	}
	if e := s.openWrites(st, d.Writes); e != nil {
		return s.lost(st, exchange.Outcome{}, e)
	}
	return s.execute(st)
}

// openWrites lets the server take writes at read access where the rule allows
// some: see exchange.Backend.OpenWrites.
func (s *session) openWrites(st *statement, writes bool) *sessionError {
	begins := func(stmt policy.Statement) bool { return stmt.Tx == policy.TxBegin }
	open := writes || slices.ContainsFunc(st.msg.Statements, begins)
	return s.exchangeError(s.backend.OpenWrites(&st.rule, open))
}

// execute sends the statement and relays its answer.
func (s *session) execute(st *statement) *sessionError {
	own := s.ownTimeout && st.rule.Access == policy.Admin
	s.clockLimit = st.rule.StatementTimeout
	if own {
		s.clockLimit = 0 // the server's is the only one
	}
	answer, err := s.backend.Run(&exchange.Request{
		SQL: st.sql, Message: st.msg, First: st.own, Rule: st.rule, Memory: &s.memory, OwnTimeout: own,
	})
	o := answer.Outcome()
	s.memory.Note(st.msg, o.Completed)
	if e := s.exchangeError(err); e != nil {
		return s.lost(st, o, e)
	}
	if st.rule.Access == policy.Admin && setsTimeout(st.msg, o.Completed) {
		s.ownTimeout = true
	}
	s.listening = s.listening || listens(st.msg, o.Completed)
	s.followTimeouts(st, o.Completed)
	s.recordResult(st, o)
	s.warnOpen(&st.rule)
	s.ready()
	return nil
}

// followTimeouts takes a timeout that the client has raised by its plain name,
// which it may, for what SET pgproxy.… would have made of it: pgproxy's own clock
// follows.
func (s *session) followTimeouts(st *statement, completed int) {
	if st.rule.Access == policy.Admin || !st.rule.MayLift {
		return
	}
	for i := range min(completed, len(st.msg.Statements)) {
		for _, name := range st.msg.Statements[i].Settings {
			if value := s.backend.Timeout(name); value != "" && !st.rule.Within(name, value) {
				s.lift("SET", name, value)
			}
		}
	}
}

// warnOpen tells, once in a session and while there is time to COMMIT, how long
// the transaction that a statement has left open may wait.
func (s *session) warnOpen(rule *policy.Rule) {
	limit := rule.IdleInTransactionTimeout
	if s.warnedTx || s.quiet || limit == 0 || s.backend.Status() != 'T' {
		return
	}
	s.warnedTx = true
	e := &sessionError{severity: "WARNING", code: "01000",
		message: fmt.Sprintf("pgproxy: an open transaction is rolled back, and the session ends, after %s without a statement", policy.FormatDuration(limit))}
	if rule.MayLift {
		e.hint = rule.LiftHint("idle_in_transaction_session_timeout", (10 * limit).Milliseconds())
	}
	s.Send(e.append(nil))
}

// listens reports whether one of the statements that were completed is a
// LISTEN.
func listens(msg *policy.Message, completed int) bool {
	return slices.ContainsFunc(msg.Statements[:min(completed, len(msg.Statements))], func(st policy.Statement) bool { return st.Kind == "LISTEN" })
}

// setsTimeout reports whether one of the statements that were completed has
// changed the server's statement_timeout.
func setsTimeout(msg *policy.Message, completed int) bool {
	for i := range min(completed, len(msg.Statements)) {
		set := msg.Statements[i].Settings
		if slices.Contains(set, "statement_timeout") || slices.Contains(set, policy.AnySetting) {
			return true
		}
	}
	return false
}

// lost records the end of a statement whose session ends with it.
func (s *session) lost(st *statement, o exchange.Outcome, e *sessionError) *sessionError {
	if o.SQLState == "" {
		o.SQLState, o.Failure = e.code, string(e.reason)
	}
	s.recordResult(st, o)
	return e
}

func (s *session) recordResult(st *statement, o exchange.Outcome) {
	lasted := time.Since(st.began)
	if o.Failure != "" {
		o.Failure = s.redactError(st, o.SQLState, o.Failure)
	}
	rec := s.newRecord(audit.Result)
	rec.Seq, rec.Tag, rec.SQLState, rec.Error = st.seq, o.Tag, o.SQLState, o.Failure
	rec.Rows, rec.Bytes, rec.Truncated, rec.Cancelled = &o.Rows, &o.Bytes, o.Truncated, o.Cancelled
	if o.Changed {
		rec.Affected = &o.Affected
	}
	rec.DurationMS, rec.TX = milliseconds(lasted), string(s.backend.Status())
	s.srv.record(rec)
	s.sentRows.Store(0)
	s.sentBytes.Store(0)
	s.rows.Add(o.Rows)
	s.bytes.Add(o.Bytes)
	s.srv.metrics.result(lasted, o)
	s.keep(st, o, false)
	if s.log.Enabled(context.Background(), levelDebug) {
		s.log.Debug("statement", "seq", st.seq, "tag", o.Tag, "rows", o.Rows, "bytes", o.Bytes,
			"sqlstate", o.SQLState, "took", lasted, "truncated", o.Truncated)
	}
}

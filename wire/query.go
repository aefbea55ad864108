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
	"pgproxy/wire/exchange"
	"pgproxy/wire/frame"
)

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
	// txStatus is the transaction status when it came.
	txStatus byte
}

// serveQuery takes a Query message through reading, verdict, record, server
// and answer.
func (s *session) serveQuery(st *statement, body []byte) *sessionError {
	if e := s.settleLogin(); e != nil {
		return e
	}
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
		return s.deny(st, policy.Decision{Kinds: st.msg.Kinds(), Refusal: bad})
	}
	if st.own < len(st.msg.Statements) {
		if e := s.restore(); e != nil {
			return e
		}
	}
	d := policy.Decide(s.ctx, &st.rule, st.msg, policy.Session{Memory: &s.talk.memory, Reason: st.reason, Catalog: catalog{s}, Owns: s.owns})
	if d.Refusal != nil {
		return s.deny(st, d)
	}
	return s.perform(st, d)
}

// begin makes and numbers a statement. When it is judged by another rule than
// the client knows, the client is told before anything else.
func (s *session) begin() *statement {
	s.tellOver()
	rule, reason, news := s.ruling.begin()
	if news != nil {
		s.Send(news.append(nil))
	}
	s.totals.statements.Add(1)
	return &statement{seq: s.life.begin(), rule: rule, reason: reason, began: time.Now(), txStatus: s.backend.Status()}
}

// read gives a statement its text and reads it. From here on it can be shown
// to those who look on.
func (s *session) read(st *statement, sql string) *policy.Refusal {
	st.sql = sql
	err := s.parse(st)
	s.redactStatement(st)
	s.life.read(policy.Cut(st.shown, shownSQL))
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
	s.denied(st, d)
	return s.answer(refused("ERROR", d.Refusal))
}

// denySyntax refuses a text that pgproxy's parser cannot read, in the server's
// own words where the server cannot read it either: see exchange.Backend.Syntax.
func (s *session) denySyntax(st *statement, bad *policy.Refusal) *sessionError {
	message, err := s.backend.Syntax(st.sql)
	if err != nil {
		s.denied(st, policy.Decision{Refusal: bad})
		return s.exchangeError(err)
	}
	if message == nil {
		return s.deny(st, policy.Decision{Refusal: olderGrammar(bad, s.up.Load().Params["server_version"])})
	}
	f := frame.ParseErrorFields(message[frame.HeaderLen:])
	s.denied(st, policy.Decision{Refusal: &policy.Refusal{Code: f.Code, Message: f.Message, Rule: bad.Rule}})
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

// perform records an allowed statement, serves what of it is pgproxy's own,
// sends the rest and relays its answer.
func (s *session) perform(st *statement, d policy.Decision) *sessionError {
	if st.own > 0 && st.own == len(st.msg.Statements) {
		d.Rule = "own"
	}
	if err := s.asked(st, d); err != nil {
		return s.answer(s.unrecorded("ERROR", err))
	}
	if st.own > 0 {
		tag, e := s.serveOwn(st)
		if e != nil {
			if e.severity == "FATAL" {
				return s.cutShort(st, exchange.Outcome{}, e)
			}
			s.answered(st, exchange.Outcome{SQLState: e.code, Failure: e.message}, s.backend.Status())
			return s.answer(e)
		}
		if st.own == len(st.msg.Statements) {
			s.answered(st, exchange.Outcome{Tag: tag}, s.backend.Status())
			s.ready()
			return nil
		}
		if e := s.restore(); e != nil {
			return s.cutShort(st, exchange.Outcome{}, e)
		}
	}
	if e := s.openWrites(st, d.Writes); e != nil {
		return s.cutShort(st, exchange.Outcome{}, e)
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
	own := s.talk.ownTimeout && st.rule.Access == policy.Admin
	s.talk.clockLimit = st.rule.StatementTimeout
	if own {
		s.talk.clockLimit = 0 // the server's is the only one
	}
	answer, err := s.backend.Run(&exchange.Request{
		SQL: st.sql, Message: st.msg, First: st.own, Rule: st.rule, Memory: &s.talk.memory, OwnTimeout: own,
	})
	o := answer.Outcome()
	s.talk.memory.Note(st.msg, o.Completed)
	if e := s.exchangeError(err); e != nil {
		return s.cutShort(st, o, e)
	}
	if st.rule.Access == policy.Admin && setsTimeout(st.msg, o.Completed) {
		s.talk.ownTimeout = true
	}
	s.talk.listening = s.talk.listening || listens(st.msg, o.Completed)
	s.followTimeouts(st, o.Completed)
	s.answered(st, o, s.backend.Status())
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
	if s.talk.warnedTx || s.talk.quiet || limit == 0 || s.backend.Status() != 'T' {
		return
	}
	s.talk.warnedTx = true
	e := warning(fmt.Sprintf("pgproxy: an open transaction is rolled back, and the session ends, after %s without a statement", policy.FormatDuration(limit)))
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

// cutShort records the end of a statement whose session ends with it.
func (s *session) cutShort(st *statement, o exchange.Outcome, e *sessionError) *sessionError {
	if o.SQLState == "" {
		o.SQLState, o.Failure = e.code, string(e.reason)
	}
	s.answered(st, o, s.backend.Status())
	return e
}

package wire

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"pgproxy/policy"
)

// Bounds on what is opened of the upstream's frames, in bytes.
const (
	// openLimit is how much of an error or notice is looked at; what is beyond
	// passes unread.
	openLimit = 8 << 10
	// smallFrame is libpq's limit for all frames but a few
	// (VALID_LONG_MESSAGE_TYPE, fe-protocol3.c).
	smallFrame = 30000
	// smallWrite is what is rather copied than written by itself.
	smallWrite = 4 << 10
)

// cycle is the answer to one Query message while it passes: what was counted,
// what was held back, what is to be said about it.
type cycle struct {
	number uint64 // in the gate
	index  int    // the statement in the message that is being answered

	left    int  // bytes of the current frame that are still to come
	dropped bool // they are thrown away
	want    int  // bytes a frame needs to be opened

	rows, bytes         int64 // passed to the client, in all
	stmtRows, stmtBytes int64 // of the current statement
	capped              string
	anyCapped           bool
	muted               bool  // the client knows that notices are left out
	affected            int64 // rows changed, as the tags say
	tag                 string
	sqlstate, failure   string
	copying             bool // the upstream was told to give up a COPY
	mismatch            string
	silenced            bool // an error of ours has ended the answer
	done                bool

	// For the affected-rows cap: the CommandComplete of statement number keep
	// (from 1; 0 = none) is kept in held until it is known to last, and over
	// says that a statement has changed too many rows.
	keep int
	held []byte
	over int64
	// quietBegin drops the WARNING that a BEGIN inside of a transaction of
	// the proxy's own gives.
	quietBegin bool
	// settled says that the transaction status is already what the client
	// should see after an error of ours.
	settled bool
}

// execute sends the statement and relays its answer.
func (s *session) execute(st *statement) *sessionError {
	number, err := s.gate.enter()
	if err != nil {
		return s.lost(st, s.gateClosed(err))
	}
	s.setClock(s.clockLimit(st))
	s.enter(running)
	defer s.enter(deciding)
	// An end that was settled while deciding has cancelled nothing.
	if e := s.settled(); e != nil {
		s.gate.leave()
		return s.lost(st, e)
	}
	if s.wasCancelled() {
		s.gate.leave()
		e := statementError(codeQueryCanceled, "canceling statement due to user request")
		s.recordResult(st, outcome{sqlstate: e.code, failure: e.message, cancelled: true, affected: -1})
		return s.answer(e)
	}
	c := &st.cycle
	c.number = number
	var e *sessionError
	if s.needsGuard(st) {
		e = s.runGuarded(st)
	} else {
		e = s.send(st, st.sql)
	}
	if e != nil {
		return s.lost(st, e)
	}
	s.gate.leave()
	return s.finishCycle(st)
}

// send sends text upstream and relays its answer.
func (s *session) send(st *statement, text string) *sessionError {
	s.query = appendQuery(s.query[:0], text)
	if _, err := s.up.Net.Write(s.query); err != nil {
		return s.upstreamEnded(err)
	}
	if cap(s.query) > minBuffer {
		s.query = nil
	}
	st.cycle.done = false
	return s.relay(st)
}

// gateClosed ends a session whose next statement could be hit by a cancel
// meant for an earlier one.
func (s *session) gateClosed(err error) *sessionError {
	e := fatal(codeConnectionFailure, "pgproxy: session closed to protect later statements: the fate of a cancel request is not known", reasonCancelLost)
	e.cause = err
	return e
}

// lost records the end of a statement whose session ends with it.
func (s *session) lost(st *statement, e *sessionError) *sessionError {
	o := st.cycle.outcome()
	if o.sqlstate == "" {
		o.sqlstate, o.failure = e.code, string(e.reason)
	}
	s.recordResult(st, o)
	return e
}

func (s *session) wasCancelled() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cancelled
}

// clockLimit is what the proxy's clock gives each statement of the message.
// An admin may change the server's own timeout, and is then left to it.
func (s *session) clockLimit(st *statement) time.Duration {
	if s.ownTimeout && st.rule.Access == policy.Admin {
		return 0
	}
	return st.rule.StatementTimeout
}

func (s *session) setClock(limit time.Duration) {
	s.mu.Lock()
	s.clock = clock{limit: limit, began: time.Now()}
	s.expired.Store(false)
	s.mu.Unlock()
}

// relay passes the answer on until its ReadyForQuery, which it takes in.
func (s *session) relay(st *statement) *sessionError {
	for {
		e := s.walk(st)
		if st.cycle.done {
			s.adopt() // what is left to be said goes out in one write
		} else {
			s.flush()
		}
		s.sentRows.Store(st.cycle.rows)
		s.sentBytes.Store(st.cycle.bytes)
		if e != nil || st.cycle.done {
			return e
		}
		if err := s.upstream.fill(max(maxBuffer, headerLen+st.cycle.want)); err != nil {
			e := s.upstreamEnded(err)
			if c := &st.cycle; c.left > 0 && !c.dropped {
				return e.unsaid()
			}
			return e
		}
	}
}

// walk goes through the frames at hand. Those that pass unread are emitted in
// one piece, as they lie in the buffer.
func (s *session) walk(st *statement) *sessionError {
	f, c := &s.upstream, &st.cycle
	from := f.r
	pass := func() {
		if f.r > from {
			s.emit(f.buf[from:f.r])
		}
		from = f.r
	}
	for !c.done {
		if c.left > 0 {
			n := min(c.left, f.w-f.r)
			if n == 0 {
				break
			}
			f.r += n
			if c.left -= n; c.dropped {
				from = f.r
			}
			continue
		}
		typ, body, ok, err := f.header()
		if err != nil {
			pass()
			return garbled(typ)
		}
		if !ok {
			break
		}
		c.want = opens(typ, body)
		if f.w-f.r < headerLen+c.want {
			break
		}
		if typ == 'D' {
			c.dropped = !s.takeRow(st, headerLen+body)
			if c.dropped {
				pass()
			}
			c.left = headerLen + body
			continue
		}
		if typ == 'T' || typ == 'A' {
			c.left, c.dropped = headerLen+body, typ == 'T' && c.silenced
			if c.dropped {
				pass()
			} else {
				c.bytes += int64(c.left)
			}
			continue
		}
		pass()
		e := s.openFrame(st, typ, body, f.buf[f.r+headerLen:f.r+headerLen+c.want])
		from = f.r
		if e != nil {
			return e
		}
	}
	pass()
	return nil
}

// opens says how many bytes of a frame's body are looked at.
func opens(typ byte, body int) int {
	switch typ {
	case 'D', 'T', 'A', 'd':
		return 0
	}
	return min(body, openLimit)
}

// takeRow counts a row and says whether it passes.
func (s *session) takeRow(st *statement, size int) bool {
	c := &st.cycle
	if c.capped == "" && !c.silenced {
		rule := &st.rule
		limit := s.budget.rowLimit(st, rule.MaxRows)
		switch {
		case s.expired.Load():
			s.capReached(st, "statement_timeout")
		case rule.MaxRows > 0 && c.stmtRows >= limit:
			s.capReached(st, "max_rows")
		case rule.MaxBytes > 0 && c.stmtBytes+int64(size) > rule.MaxBytes:
			s.capReached(st, "max_bytes")
		}
	}
	if c.capped != "" || c.silenced || c.copying {
		return false
	}
	c.stmtRows++
	c.rows++
	c.stmtBytes += int64(size)
	c.bytes += int64(size)
	return true
}

// capReached begins to throw rows away. Where nothing can be lost by it the
// statement is cancelled; anything that may have changed rows has already done
// so by its first row, and is let run to its end.
func (s *session) capReached(st *statement, which string) {
	c := &st.cycle
	c.capped, c.anyCapped = which, true
	s.srv.metrics.capped(which)
	if st.reads() {
		s.fireCancel(c.number)
	}
}

// reads reports whether the whole message does nothing but read, so that
// cancelling any part of it changes nothing.
func (st *statement) reads() bool {
	for i := range st.msg.Statements {
		if !st.msg.Statements[i].Reads {
			return false
		}
	}
	return true
}

// openFrame acts on a frame other than a row. body is what opens said; the
// frame is consumed, or left to be passed or dropped by c.left.
func (s *session) openFrame(st *statement, typ byte, size int, body []byte) *sessionError {
	f, c := &s.upstream, &st.cycle
	whole := headerLen + size
	frame := f.buf[f.r:min(f.r+whole, f.w)]
	passOn := func() {
		c.bytes += int64(whole)
		c.left, c.dropped = whole, false
		// What of it is at hand goes out now: the caller's run begins after it.
		n := min(whole, f.w-f.r)
		s.emit(f.buf[f.r : f.r+n])
		f.r += n
		c.left -= n
	}
	swallow := func() {
		n := min(whole, f.w-f.r)
		f.r += n
		c.left, c.dropped = whole-n, true
	}
	if size > smallFrame && typ != 'E' && typ != 'N' && typ != 'd' || size > openLimit && typ == 'C' {
		return garbled(typ)
	}
	switch typ {
	case 'C':
		s.completed(st, frame, body)
		swallow()
	case 'I':
		if c.silenced {
			swallow()
		} else {
			passOn()
		}
	case 'E':
		return s.failed(st, size, body, passOn, swallow)
	case 'N':
		if c.quietBegin {
			swallow()
			return nil
		}
		if limit := st.rule.MaxBytes; limit > 0 && c.stmtBytes+int64(whole) > limit {
			s.mute(st)
			swallow()
			return nil
		}
		c.stmtBytes += int64(whole)
		passOn()
	case 'S':
		s.settings.note(body)
		passOn()
	case 'Z':
		if len(body) != 1 {
			return garbled(typ)
		}
		s.status = body[0]
		c.done = true
		swallow()
	case 'G', 'W', 'H', 'd', 'c':
		if e := s.refuseCopy(st, typ); e != nil {
			return e
		}
		swallow()
	default:
		return garbled(typ)
	}
	return nil
}

// mute tells, once in an answer, that notices are thrown away.
func (s *session) mute(st *statement) {
	c := &st.cycle
	if c.muted {
		return
	}
	c.muted, c.anyCapped = true, true
	s.srv.metrics.capped("max_bytes")
	s.emit((&sessionError{severity: "WARNING", code: codeWarning,
		message: fmt.Sprintf("pgproxy: notices were left out: max_bytes is %d", st.rule.MaxBytes)}).append(nil))
}

// garbled ends a session whose upstream sends what cannot be an answer.
func garbled(typ byte) *sessionError {
	e := fatal(codeConnectionFailure, "pgproxy: the upstream server sent something that is not an answer", reasonUpstream)
	e.cause = fmt.Errorf("frame %q", typ)
	return e
}

// completed takes a CommandComplete: the end of one statement of the message.
func (s *session) completed(st *statement, frame, body []byte) {
	c := &st.cycle
	defer s.nextStatement(st)
	if c.silenced {
		return
	}
	tag, _, _ := cstring(body)
	c.tag = tag
	s.checkTag(st, tag)
	if changed := changedRows(tag); changed > 0 {
		c.affected += changed
		if limit := st.rule.MaxAffectedRows; limit > 0 && changed > limit {
			if st.guarded {
				c.over, c.silenced = changed, true
				return
			}
			s.emit(s.unguardedWarning(st, changed).append(nil))
		}
	}
	switch {
	case c.copying:
		s.endAnswer(st, copyError())
		return
	case c.capped != "" && !st.reads():
		s.emit(s.truncationWarning(st).append(nil))
	}
	if c.keep == c.index+1 {
		c.held = append([]byte(nil), frame...)
		return
	}
	s.emit(frame)
	c.bytes += int64(len(frame))
	if c.capped != "" && st.reads() {
		s.endAnswer(st, s.truncationError(st))
	}
}

// endAnswer sends an error of ours as the end of the answer. As after any
// error, the client hears nothing of what the rest of the message does; it
// only reads, or has been cancelled.
func (s *session) endAnswer(st *statement, e *sessionError) {
	c := &st.cycle
	c.sqlstate, c.failure, c.silenced = e.code, e.message, true
	s.emit(e.append(nil))
}

// nextStatement moves on to the next statement of the message, whose counts
// and whose time begin anew.
func (s *session) nextStatement(st *statement) {
	c := &st.cycle
	s.budget.add(st, c.stmtRows)
	c.index++
	c.stmtRows, c.stmtBytes, c.capped = 0, 0, ""
	s.mu.Lock()
	s.clock.began = time.Now()
	s.mu.Unlock()
}

// truncationError tells that a cap cut a result short.
func (s *session) truncationError(st *statement) *sessionError {
	c := &st.cycle
	if c.capped == "statement_timeout" {
		return s.timeoutError(st)
	}
	e := statementError(codeLimitExceeded, "pgproxy: result truncated: "+s.capWords(st))
	e.detail = fmt.Sprintf("Sent were %s and %s.", count(c.stmtRows, "row"), count(c.stmtBytes, "byte"))
	e.hint = "Ask for less (WHERE, LIMIT, fewer columns)" + s.liftHint(st, c.capped) + "."
	return e
}

// truncationWarning tells the same of a statement that has done its work, and
// must not be taken for one that failed.
func (s *session) truncationWarning(st *statement) *sessionError {
	c := &st.cycle
	e := s.truncationError(st)
	e.severity, e.code = "WARNING", codeWarning
	e.message = fmt.Sprintf("pgproxy: only the first %s of the result were sent: %s; the statement itself was completed", count(c.stmtRows, "row"), s.capWords(st))
	return e
}

func (s *session) capWords(st *statement) string {
	switch st.cycle.capped {
	case "statement_timeout":
		return fmt.Sprintf("statement_timeout is %v", st.rule.StatementTimeout)
	case "max_bytes":
		return fmt.Sprintf("max_bytes is %d", st.rule.MaxBytes)
	}
	return fmt.Sprintf("max_rows is %d", st.rule.MaxRows)
}

func (s *session) liftHint(st *statement, name string) string {
	if st.rule.MayLift {
		return ", or SET pgproxy." + name + " = 0"
	}
	return ", or ask for may_lift in pgproxy's policy"
}

// failed takes an ErrorResponse of the upstream's. Its own errors pass as they
// are; those that our cancels caused are told as what they are.
func (s *session) failed(st *statement, size int, body []byte, passOn, swallow func()) *sessionError {
	c := &st.cycle
	f := parseErrorFields(body)
	if f.severity == "FATAL" || f.severity == "PANIC" {
		return s.upstreamFatal(st, f, passOn)
	}
	if c.silenced {
		swallow()
		return nil
	}
	if e := s.replacement(st, f, size); e != nil {
		s.endAnswer(st, e)
		swallow()
		return nil
	}
	c.sqlstate, c.failure = f.code, f.message
	passOn()
	return nil
}

// replacement is what the client is told instead of an error of the
// upstream's, nil for the error itself.
func (s *session) replacement(st *statement, f errorFields, size int) *sessionError {
	c := &st.cycle
	cancelled := f.code == codeQueryCanceled
	ours := cancelled && s.gate.sentTo(c.number)
	switch {
	case c.copying:
		return copyError()
	case ours && s.expired.Load():
		return s.timeoutError(st)
	case ours && c.capped != "" && st.reads():
		// The rows that were sent are shown only if their statement ends well.
		s.emit(appendComplete(nil, "SELECT "+strconv.FormatInt(c.stmtRows, 10)))
		return s.truncationError(st)
	case cancelled && !ours && !s.ownTimeout && st.rule.StatementTimeout > 0 && strings.Contains(f.message, "statement timeout"):
		return s.timeoutError(st)
	}
	if limit := st.rule.MaxBytes; limit > 0 && int64(size) > max(limit, openLimit) {
		return &sessionError{severity: "ERROR", code: f.code, message: cut(f.message, openLimit/2),
			detail: "The message was longer than max_bytes, and cut by pgproxy."}
	}
	return nil
}

func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + " …"
}

// upstreamFatal passes the upstream's last word on. Nothing follows it.
func (s *session) upstreamFatal(st *statement, f errorFields, passOn func()) *sessionError {
	c := &st.cycle
	c.sqlstate, c.failure = f.code, f.message
	if e := s.settled(); e != nil {
		return e // it is our doing, and said in our words
	}
	e := silent(reasonUpstream, fmt.Errorf("%s %s: %s", f.severity, f.code, f.message))
	e.code = f.code
	s.mu.Lock()
	stuck := s.expired.Load() && s.aborted
	s.mu.Unlock()
	if stuck {
		return fatal(codeQueryCanceled, "pgproxy: the statement did not react to cancellation; its session was ended", reasonStuck)
	}
	passOn()
	s.flush()
	return e
}

// timeoutError tells which limit has ended a statement, whoever kept it.
func (s *session) timeoutError(st *statement) *sessionError {
	return statementError(codeQueryCanceled, fmt.Sprintf("canceling statement due to statement timeout (pgproxy's statement_timeout is %v)", st.rule.StatementTimeout)).
		withHint("Make the statement cheaper" + s.liftHint(st, "statement_timeout") + ".")
}

// finishCycle ends an answer: what is left to be said, its record, and
// ReadyForQuery.
func (s *session) finishCycle(st *statement) *sessionError {
	c := &st.cycle
	s.budget.ended(s.status)
	s.checkEnd(st)
	if c.silenced && !c.settled {
		// After an error of ours the transaction must not go on as if
		// nothing had happened.
		if e := s.poison(); e != nil {
			return e
		}
	}
	o := c.outcome()
	o.cancelled = s.gate.sentTo(c.number) && c.sqlstate == codeQueryCanceled
	s.recordResult(st, o)
	s.tampered(st.seq)
	if c.mismatch != "" {
		return s.mismatched(st)
	}
	s.emit(appendReady(nil, s.status))
	return nil
}

func (c *cycle) outcome() outcome {
	return outcome{tag: c.tag, sqlstate: c.sqlstate, failure: c.failure, rows: c.rows, bytes: c.bytes,
		affected: c.affected, truncated: c.anyCapped}
}

// changedRows reads the number of changed rows out of a command tag; -1 when
// it has none.
func changedRows(tag string) int64 {
	if !isChange(tag) {
		return -1
	}
	_, number, _ := strings.Cut(tag, " ")
	if rest, ok := strings.CutPrefix(number, "0 "); ok && strings.HasPrefix(tag, "INSERT ") {
		number = rest
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil {
		return -1
	}
	return n
}

func isChange(tag string) bool {
	for _, kind := range [...]string{"INSERT ", "UPDATE ", "DELETE ", "MERGE "} {
		if strings.HasPrefix(tag, kind) {
			return true
		}
	}
	return false
}

// emit queues bytes for the client. They may lie in the upstream's buffer, and
// so must be flushed before it is filled again.
func (s *session) emit(b []byte) {
	if len(s.direct) > smallWrite {
		s.flush()
	}
	if len(s.out) == 0 && s.direct == nil {
		s.direct = b
		return
	}
	s.out = append(append(s.out, s.direct...), b...)
	s.direct = nil
}

// adopt makes what was queued independent of the upstream's buffer.
func (s *session) adopt() {
	if len(s.direct) > smallWrite {
		s.flush()
	}
	s.out = append(s.out, s.direct...)
	s.direct = nil
}

// flush writes what was queued.
func (s *session) flush() {
	b := s.direct
	if b == nil {
		b = s.out
	}
	s.direct = nil
	if len(b) > 0 {
		s.writeClient(b)
	}
	if s.out = s.out[:0]; cap(s.out) > minBuffer {
		s.out = nil
	}
}

// writeClient writes to the client, or notes that it cannot be written to any
// more: the session then runs on until the upstream has come to rest.
func (s *session) writeClient(b []byte) {
	if s.deadAs.Load() != nil {
		return
	}
	s.writing.Store(time.Now().UnixNano())
	_, err := s.conn.Write(b)
	s.writing.Store(0)
	if err != nil {
		s.markDead(reasonClientLost)
	}
}

// count says a number of things in English.
func count(n int64, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return strconv.FormatInt(n, 10) + " " + thing + "s"
}

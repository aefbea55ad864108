package exchange

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"pgproxy/policy"
	"pgproxy/wire/frame"
)

// Bounds on what is opened of the server's messages, in bytes.
const (
	// openLimit is how much of an error or notice is looked at; what is beyond
	// passes unread.
	openLimit = 8 << 10
	// smallFrame is libpq's limit for all messages but a few
	// (VALID_LONG_MESSAGE_TYPE, fe-protocol3.c).
	smallFrame = 30000
)

// action is what becomes of a message of the server's.
type action int

const (
	drop action = iota
	pass
)

// Answer is the answer to one Query message while it passes: what was counted,
// what the client is told, how it ended. It does no I/O and knows no clock. Its
// caller hands it one message of the server's after the other, row or open, and
// does what it says.
type Answer struct {
	msg     *policy.Message
	memory  *policy.Memory
	rule    *policy.Rule
	cursors *cursors
	// allReads says that the whole message does nothing but read in a way that
	// a cancel can stop.
	allReads bool

	// The part of the message that is being answered.
	index   int  // the statement
	end     int  // the first statement behind the part
	shift   int  // characters of the message before the part
	guarded bool // the part can be taken back
	// hold is the statement whose CommandComplete is kept in held until it is
	// known to last; -1 = none.
	hold int
	held []byte
	// quiet drops notices: the WARNING of a BEGIN inside of a transaction of
	// pgproxy's own.
	quiet bool

	// The statement that is being answered.
	rowLimit, byteLimit int64 // what it may send; -1 = no limit
	limited             int64 // rows that its FETCH was limited to; -1 = it was not
	stmtRows, stmtBytes int64 // sent
	dropped             int64 // rows not sent
	capped              string

	// The whole answer.
	rows, bytes int64 // passed to the client
	affected    int64 // rows changed
	over        int64 // rows changed by a statement over the cap, 0 = none
	tag         string
	sqlstate    string
	failure     string
	truncated   bool     // a cap has cut something
	muted       []string // what the client knows to be left out
	cancelled   bool     // it ended because somebody cancelled it
	ended       bool     // an error of pgproxy's own has ended it
	settled     bool     // the transaction status is already right after that error
	copying     bool     // the server was told to give up a COPY
	mismatch    string
	done        bool // ReadyForQuery has come
	rewinds     []rewind

	// What the caller does next.
	said        []byte // goes to the client before the message
	cancel      bool   // cancel the statement
	failCopy    bool   // send CopyFail
	cancelSent  bool   // set by the caller: a cancel of pgproxy's or the client's was sent
	cancelledBy string // set by the caller: who has cancelled, if not the client
	expired     bool   // set by the caller: the statement's time is over
	ownTimeout  bool   // set by the caller: an admin has set the server's own timeout
}

// rewind is a cursor that has moved over rows which were not sent.
type rewind struct {
	cursor  string
	forward bool // the way back
	rows    int64
}

func newAnswer(r *Request, c *cursors) *Answer {
	a := &Answer{msg: r.Message, memory: r.Memory, rule: &r.Rule, cursors: c, hold: -1, limited: -1, allReads: true}
	for i := r.First; i < len(a.msg.Statements); i++ {
		a.allReads = a.allReads && a.msg.Statements[i].Reads
	}
	a.index = r.First
	return a
}

// begin begins the answer to the statement at index.
func (a *Answer) begin() {
	a.stmtRows, a.stmtBytes, a.dropped, a.capped = 0, 0, 0, ""
	a.rowLimit, a.byteLimit = -1, -1
	if a.rule.MaxRows > 0 {
		a.rowLimit = a.rule.MaxRows
	}
	if a.rule.MaxBytes > 0 {
		a.byteLimit = a.rule.MaxBytes
	}
	if c := a.fetch(); c != nil {
		rows, bytes := a.cursors.sent(c.Name)
		a.rowLimit = less(a.rowLimit, rows)
		a.byteLimit = less(a.byteLimit, bytes)
	}
}

// less is a limit of which some has been used up; -1 stays no limit.
func less(limit, used int64) int64 {
	if limit < 0 {
		return -1
	}
	return max(limit-used, 0)
}

// statement is the statement that is being answered; nil behind the last one.
func (a *Answer) statement() *policy.Statement {
	if a.index >= len(a.msg.Statements) {
		return nil
	}
	return &a.msg.Statements[a.index]
}

// fetch is the FETCH that is being answered; nil for another statement.
func (a *Answer) fetch() *policy.CursorUse {
	if st := a.statement(); st != nil && st.Cursor.Verb == policy.CursorFetch {
		return &st.Cursor
	}
	return nil
}

// row counts a DataRow of that many bytes, header included, and reports
// whether it passes.
func (a *Answer) row(size int) bool {
	if a.capped == "" {
		switch {
		case a.ended:
		case a.expired:
			a.reach("statement_timeout")
		case a.rowLimit >= 0 && a.stmtRows >= a.rowLimit:
			a.reach("max_rows")
		case a.byteLimit >= 0 && a.stmtBytes+int64(size) > a.byteLimit:
			a.reach("max_bytes")
		}
	}
	if a.capped != "" || a.ended || a.copying {
		a.dropped++
		return false
	}
	a.stmtRows++
	a.rows++
	a.stmtBytes += int64(size)
	a.bytes += int64(size)
	return true
}

// reach begins to throw rows away. Where nothing can be lost by it the
// statement is cancelled. Anything that may have changed rows has already done
// so by its first row, and is let run to its end.
func (a *Answer) reach(limit string) {
	a.capped, a.truncated = limit, true
	a.cancel = a.allReads
}

// pass counts a message that passes unopened, RowDescription or
// NotificationResponse, and reports whether it does.
func (a *Answer) unopened(typ byte, size int) bool {
	if typ == 'A' && a.byteLimit >= 0 && a.stmtBytes+int64(size) > a.byteLimit {
		a.mute("notifications")
		return false
	}
	if typ == 'T' && a.ended {
		return false
	}
	a.stmtBytes += int64(size)
	a.bytes += int64(size)
	return true
}

// opens says how many bytes of a message's body frame wants to see.
func opens(typ byte, body int) int {
	switch typ {
	case 'D', 'T', 'A', 'd':
		return 0
	}
	return min(body, openLimit)
}

// frame acts on a message other than a row. size is the length of its whole
// body, and body what opens said.
func (a *Answer) frame(typ byte, size int, body []byte) (action, error) {
	if size > smallFrame && typ != 'E' && typ != 'N' && typ != 'd' || size > openLimit && typ == 'C' {
		return drop, garbled(typ)
	}
	whole := int64(frame.HeaderLen + size)
	switch typ {
	case 'C':
		return a.complete(whole, body), nil
	case 'I':
		if a.ended {
			return drop, nil
		}
	case 'E':
		return a.fails(size, body)
	case 'N':
		if a.quiet || !a.meter(whole, "notices") {
			return drop, nil
		}
		return a.shifted('N', size, body), nil
	case 'S':
		if !a.meter(whole, "parameters") {
			return drop, nil
		}
		return pass, nil
	case 'Z':
		if len(body) != 1 {
			return drop, garbled(typ)
		}
		a.done = true
		return drop, nil
	case 'G', 'W', 'H', 'd', 'c':
		a.copy(typ)
		return drop, nil
	default:
		return drop, garbled(typ)
	}
	a.bytes += whole
	return pass, nil
}

// meter counts a notice or parameter, and reports whether there is room for it.
func (a *Answer) meter(size int64, what string) bool {
	if a.byteLimit >= 0 && a.stmtBytes+size > a.byteLimit {
		a.mute(what)
		return false
	}
	a.stmtBytes += size
	a.bytes += size
	return true
}

// mute tells, once in an answer for each kind, that messages are thrown away
// that the server has sent beside the rows.
func (a *Answer) mute(what string) {
	if slices.Contains(a.muted, what) {
		return
	}
	a.muted, a.truncated = append(a.muted, what), true
	a.say(mutedWarning(a.rule, what))
}

// say queues a message of pgproxy's own.
func (a *Answer) say(n *frame.Notice) { a.said = n.Append(a.said) }

// shifted passes an error or notice on. Where its part of the message was sent
// by itself, its position counts from the beginning of the whole message.
func (a *Answer) shifted(typ byte, size int, body []byte) action {
	if a.shift == 0 || size > len(body) {
		return pass
	}
	if moved, ok := shiftPosition(body, a.shift); ok {
		a.said = frame.Append(a.said, typ, moved...)
		return drop
	}
	return pass
}

// shiftPosition adds to the position in an ErrorResponse's body. ok is false
// where it has none.
func shiftPosition(body []byte, shift int) (_ []byte, ok bool) {
	for rest := body; len(rest) > 1 && rest[0] != 0; {
		start := len(body) - len(rest)
		value, after, whole := frame.CString(rest[1:])
		if !whole {
			return nil, false
		}
		if rest[0] == 'P' {
			n, err := strconv.Atoi(value)
			if err != nil {
				return nil, false
			}
			moved := strconv.AppendInt(slices.Clone(body[:start+1]), int64(n+shift), 10)
			return append(append(moved, 0), after...), true
		}
		rest = after
	}
	return nil, false
}

// complete takes a CommandComplete: the end of one statement of the message.
func (a *Answer) complete(whole int64, body []byte) action {
	tag, _, _ := frame.CString(body)
	defer a.next()
	if a.ended {
		a.lookAtFetch(tag)
		return drop
	}
	a.tag = tag
	a.checkTag(tag)
	if changed := changedRows(tag); changed > 0 {
		a.affected += changed
		if limit := a.rule.MaxAffectedRows; limit > 0 && changed > limit {
			if a.guarded {
				a.over, a.ended = changed, true
				return drop
			}
			a.say(unguardedWarning(a.rule, changed))
		}
	}
	a.lookAtFetch(tag)
	switch {
	case a.copying:
		a.fail(copyError())
		return drop
	case a.capped == "":
	case a.memory.Reads(a.msg, a.index) && (a.allReads || a.guarded || a.index == a.end-1 || a.onlyReads()):
		// The rows that were sent are shown only if their statement ends well.
		a.said = frame.AppendComplete(a.said, sentTag(tag, a.stmtRows))
		a.fail(truncationError(a))
		return drop
	default:
		a.say(truncationWarning(a))
	}
	if a.hold == a.index {
		a.held = frame.Append(nil, 'C', body...)
		return drop
	}
	a.bytes += whole
	return pass
}

// onlyReads reports whether every statement of the message only reads, or moves
// transactions and cursors, those included that a cancel cannot stop.
func (a *Answer) onlyReads() bool {
	for i := range a.msg.Statements {
		st := &a.msg.Statements[i]
		moves := st.Tx != policy.TxNone && st.Tx != policy.TxPrepare || st.Cursor.Verb != policy.NoCursor
		if !moves && !a.memory.Reads(a.msg, i) {
			return false
		}
	}
	return true
}

// sentTag is a command tag whose count is the rows that were sent.
func sentTag(tag string, rows int64) string {
	if name := tagName(tag); name != tag {
		return name + " " + strconv.FormatInt(rows, 10)
	}
	return tag
}

// lookAtFetch keeps the budgets of cursors, and notes which of them has moved
// over rows that were not sent.
func (a *Answer) lookAtFetch(tag string) {
	st := a.statement()
	if st == nil {
		return
	}
	a.cursors.note(&st.Cursor, a.stmtRows, a.stmtBytes)
	if st.Cursor.Verb != policy.CursorFetch {
		return
	}
	if a.limited >= 0 && a.dropped == 0 && a.capped == "" && a.stmtRows == a.limited && a.stmtRows == a.rowLimit {
		// The FETCH was limited to what there was room for, and may have more.
		a.capped, a.truncated = "max_rows", true
	}
	if a.dropped > 0 && !st.Cursor.Single {
		back := a.dropped
		asked := st.Cursor.Count
		if a.limited >= 0 {
			asked = a.limited
		}
		if a.stmtRows+a.dropped < asked {
			back++ // it stands behind the last row
		}
		a.rewinds = append(a.rewinds, rewind{cursor: st.Cursor.Name, forward: !st.Cursor.Forward, rows: back})
	}
}

// next moves on to the next statement of the message.
func (a *Answer) next() {
	a.index++
	a.limited = -1
	a.begin()
}

// fail ends the answer with an error of pgproxy's own. As after any error the
// client hears nothing more of what the rest of the message does.
func (a *Answer) fail(n *frame.Notice) {
	a.sqlstate, a.failure, a.ended = n.Code, n.Message, true
	a.say(n)
}

// failed reports whether the answer has an error.
func (a *Answer) failed() bool { return a.sqlstate != "" || a.ended }

// fails takes an ErrorResponse. The server's own errors pass as they are; those
// that pgproxy's cancels caused are told as what they are.
func (a *Answer) fails(size int, body []byte) (action, error) {
	f := frame.ParseErrorFields(body)
	if f.Severity == "FATAL" || f.Severity == "PANIC" {
		a.sqlstate, a.failure = f.Code, f.Message
		return pass, &FatalError{ErrorFields: f}
	}
	if a.ended {
		return drop, nil
	}
	if n := a.replacement(f, size); n != nil {
		a.fail(n)
		return drop, nil
	}
	a.sqlstate, a.failure = f.Code, f.Message
	a.cancelled = a.cancelSent && f.Code == codeQueryCanceled
	a.bytes += int64(frame.HeaderLen + size)
	return a.shifted('E', size, body), nil
}

// replacement is what the client is told instead of an error of the server's,
// nil for the error itself.
func (a *Answer) replacement(f frame.ErrorFields, size int) *frame.Notice {
	stopped := f.Code == codeQueryCanceled
	switch {
	case a.copying:
		return copyError()
	case stopped && a.cancelSent && a.expired:
		return timeoutError(a.rule)
	case stopped && a.cancelSent && a.capped != "" && a.allReads:
		a.said = frame.AppendComplete(a.said, "SELECT "+strconv.FormatInt(a.stmtRows, 10))
		return truncationError(a)
	case stopped && a.cancelSent && a.cancelledBy != "":
		a.cancelled = true
		return cancelError(a.cancelledBy)
	case stopped && !a.cancelSent && !a.ownTimeout && a.rule.StatementTimeout > 0 && strings.Contains(f.Message, "statement timeout") && !a.setsTimeout():
		return timeoutError(a.rule)
	}
	if limit := a.rule.MaxBytes; limit > 0 && int64(size) > max(limit, openLimit) {
		return &frame.Notice{Severity: "ERROR", Code: f.Code, Message: policy.Cut(f.Message, openLimit/2),
			Detail: "The message was longer than max_bytes, and was cut by pgproxy."}
	}
	return nil
}

// setsTimeout reports whether the message has set its own statement_timeout,
// which then is what has ended it.
func (a *Answer) setsTimeout() bool {
	return slices.ContainsFunc(a.msg.Statements[:min(a.index, len(a.msg.Statements))], func(st policy.Statement) bool {
		return slices.Contains(st.Settings, "statement_timeout")
	})
}

// copy ends a COPY that the server began although no statement read as one:
// proxy and server do not read the same. A COPY FROM STDIN is told to fail,
// which is the only thing that reaches a server waiting for data; a COPY TO
// STDOUT is cancelled and thrown away. The session does not outlive it.
func (a *Answer) copy(typ byte) {
	a.mismatch = "COPY"
	a.failCopy = typ == 'G' || typ == 'W'
	a.cancel = a.cancel || typ == 'H'
	a.copying = true
}

// checkTag compares a completion with the statement it should belong to. It is
// a cheap proof that proxy and server read the text alike: a difference means
// that one of them was deceived, and ends the session.
func (a *Answer) checkTag(tag string) {
	if a.index >= a.end {
		a.mismatch = "completion of a statement that was not read"
		return
	}
	st := a.statement()
	if st.Tags != nil && !slices.Contains(st.Tags, tagName(tag)) {
		a.mismatch = "completion " + tagName(tag) + " of " + st.Kind
	}
}

// checkEnd does the same at the end of a part without an error: every statement
// must have been completed.
func (a *Answer) checkEnd() {
	if !a.failed() && a.index < a.end {
		a.mismatch = "end of the answer before " + a.statement().Kind
	}
}

// tagName is a command tag without its counts.
func tagName(tag string) string { return strings.TrimRight(tag, " 0123456789") }

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

// Outcome is what came of a message, for its record.
type Outcome struct {
	Tag, SQLState, Failure string
	Rows, Bytes            int64 // sent to the client
	Affected               int64
	Changed                bool // Affected says something, even when it is 0
	Truncated, Cancelled   bool
	// Completed is how many of the message's statements, from its first, the
	// server has confirmed.
	Completed int
}

// Outcome returns what came of the message so far.
func (a *Answer) Outcome() Outcome {
	return Outcome{
		Tag: a.tag, SQLState: a.sqlstate, Failure: a.failure, Rows: a.rows, Bytes: a.bytes,
		Affected: a.affected, Changed: a.affected > 0 || isChange(a.tag),
		Truncated: a.truncated, Cancelled: a.cancelled, Completed: a.index,
	}
}

// String describes the answer in tests that fail.
func (a *Answer) String() string { return fmt.Sprintf("%+v", a.Outcome()) }

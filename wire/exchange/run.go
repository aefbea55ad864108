package exchange

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"unicode/utf8"

	"pgproxy/policy"
	"pgproxy/wire/frame"
)

// Request is one Query message of the client's that may be sent: it was judged
// and recorded.
type Request struct {
	SQL     string
	Message *policy.Message
	// First is the first statement for the server. Those before it were
	// pgproxy's own.
	First int
	Rule  policy.Rule
	// Memory is what the session has prepared so far.
	Memory *policy.Memory
	// OwnTimeout says that an admin has set the server's statement_timeout,
	// which is then the only one.
	OwnTimeout bool
}

// segment is a part of a message that is sent by itself.
type segment struct {
	first, last int // its statements
	start, end  int // its text, in bytes
}

// run is one message on its way.
type run struct {
	*Backend
	r    *Request
	a    *Answer
	list []segment

	guard    bool // a change over the cap is taken back
	dry      bool // what is changed is taken back: see dryrun.go
	watch    bool // the settings that belong to pgproxy are checked
	each     bool // each statement is a part of its own
	wrap     bool // what is outside of a transaction gets one of pgproxy's
	implicit bool // such a transaction is open
	whole    bool // the message is kept or taken back as a whole
	stale    bool // the guard's savepoint is open, and not for the next part
	told     bool // that nothing of a dry run was kept
	checked  bool // the settings were checked after the last part
	touched  bool // something may have changed them since they were checked
	// before is the count of changes, where nothing has been sent since.
	before *changeCount
}

// Run sends the message and relays its answer, up to ReadyForQuery and without
// it. The error ends the session; the Answer tells what came of the message in
// any case.
func (b *Backend) Run(r *Request) (*Answer, error) {
	a := newAnswer(r, &b.cursors)
	a.ownTimeout = r.OwnTimeout
	if _, err := b.gate.enter(); err != nil {
		return a, err
	}
	b.session.Begin(false)
	defer b.session.End()
	b.saved = b.saved && b.status == 'T'
	w := &run{Backend: b, r: r, a: a, stale: b.saved}
	w.plan()
	err := w.learn()
	if err == nil {
		err = w.segments()
	}
	if err == nil {
		err = w.closed()
	}
	if err == nil {
		err = w.conclude()
	}
	b.say(a)
	if err == nil {
		b.gate.leave()
	}
	return a, err
}

// plan decides how the message is sent.
//
// A message that begins or ends transactions by itself is cut where it does so:
// a change over the cap would otherwise be committed by the message's own
// COMMIT, and what a statement has done to a protected setting could be used
// behind it and be put back before the server reports anything. One that changes
// rows is cut into its statements, since each of them has the cap for itself.
func (w *run) plan() {
	stmts := w.r.Message.Statements
	boundary, fetches, reads, changes := false, false, 0, false
	for i := w.r.First; i < len(stmts); i++ {
		boundary = boundary || stmts[i].Tx != policy.TxNone
		fetches = fetches || stmts[i].Cursor.Verb == policy.CursorFetch
		changes = changes || w.r.Memory.Changes(w.r.Message, i)
		if w.r.Memory.Reads(w.r.Message, i) {
			reads++
		}
	}
	n := len(stmts) - w.r.First
	w.dry = w.r.Rule.DryRun
	w.watch = w.r.Rule.Access < policy.Admin
	w.guard = changes && w.r.Rule.MaxAffectedRows > 0
	w.wrap = w.guard || w.dry && w.leaves()
	w.whole = !boundary
	capped := w.r.Rule.MaxRows > 0 || w.r.Rule.MaxBytes > 0
	w.each = w.guard || fetches && capped // a FETCH is limited, which only one by itself can be
	switch {
	case n > 1 && (w.each || boundary && (w.watch || w.dry)):
		w.wrap = true
		w.cut()
		return
	case n > 1 && !boundary && reads > 0 && reads < n:
		// A result over its cap is an error, which undoes the whole message.
		w.wrap = w.wrap || capped
	case n == 0:
		w.whole = false
	}
	start := 0
	if w.r.First > 0 {
		start = stmts[w.r.First].Start
	}
	w.list = []segment{{first: w.r.First, last: len(stmts) - 1, start: start, end: len(w.r.SQL)}}
}

// cut makes each statement a part of its own where one of them changes rows or
// is a FETCH, and otherwise each BEGIN, COMMIT and the like, and all that stands between
// two of those.
func (w *run) cut() {
	stmts := w.r.Message.Statements
	for i := w.r.First; i < len(stmts); i++ {
		joins := i > w.r.First && !w.each && stmts[i].Tx == policy.TxNone && stmts[i-1].Tx == policy.TxNone
		if joins {
			last := &w.list[len(w.list)-1]
			last.last, last.end = i, stmts[i].End
			continue
		}
		w.list = append(w.list, segment{first: i, last: i, start: stmts[i].Start, end: stmts[i].End})
	}
}

// segments sends the parts one after the other.
func (w *run) segments() error {
	counted := 0 // bytes of the text whose characters are in shift
	for i, seg := range w.list {
		if ok, err := w.proceed(); !ok || err != nil {
			return err
		}
		w.a.shift += utf8.RuneCountInString(w.r.SQL[counted:seg.start])
		counted = seg.start
		if err := w.segment(i); err != nil {
			return err
		}
		if w.a.failed() {
			return nil
		}
		if err := w.between(i); err != nil {
			return err
		}
	}
	return nil
}

// closed ends the transaction that pgproxy has opened around the message.
func (w *run) closed() error {
	switch {
	case w.implicit && (w.a.failed() || w.status == 'E'):
		w.a.settled = true
		return w.endImplicit("ROLLBACK")
	case w.implicit:
		w.a.settled = true
		return w.endImplicit("COMMIT")
	}
	return nil
}

// proceed is the one place that asks whether more of the message may be sent:
// before each part, and before a COMMIT of pgproxy's own. It is false when the
// message has ended, of which the client was told; the error ends the session.
func (w *run) proceed() (bool, error) {
	if err := w.session.Ended(); err != nil {
		return false, err
	}
	by, cancelled := w.session.Cancelled()
	switch {
	case w.a.failed():
		return false, nil
	case cancelled:
		w.a.fail(cancelError(by))
		w.a.cancelled = true
	case w.session.Expired():
		w.a.fail(timeoutError(&w.r.Rule))
	default:
		return true, nil
	}
	return false, nil
}

// segment sends the part of that number.
func (w *run) segment(i int) error {
	seg := w.list[i]
	stmt := &policy.Statement{} // of an empty message
	if seg.first <= seg.last {
		stmt = &w.r.Message.Statements[seg.first]
	}
	if end := endOfImplicit(stmt); w.implicit && end != "" {
		if err := w.endImplicit(end); err != nil || w.a.failed() {
			return err
		}
	}
	begin := w.wrap && w.status == 'I' && stmt.Tx == policy.TxNone
	if begin || w.implicit {
		w.a.guarded = true
		if i == len(w.list)-1 {
			w.a.hold = seg.last
		}
	}
	w.a.quiet = w.implicit && stmt.Tx == policy.TxBegin
	w.a.end = seg.last + 1
	w.a.limited = -1
	w.a.begin()
	w.checked = false
	w.touched = w.touched || w.touches(seg)
	if err := w.sendSegment(i, begin); err != nil {
		return err
	}
	w.a.quiet = false
	if w.implicit && stmt.Tx == policy.TxPrepare && w.status == 'I' {
		// It has prepared the transaction of pgproxy's, as it would have done
		// with the one that the server makes of a message.
		w.a.say(noTransactionWarning())
		w.tellHeld()
	}
	if stmt.Tx == policy.TxBegin || w.status == 'I' {
		w.implicit = false
	}
	w.a.guarded = w.a.guarded && w.implicit
	if w.status == 'I' {
		w.cursors.transactionEnded()
	}
	if len(w.a.said) > 0 {
		w.say(w.a)
	}
	if i < len(w.list)-1 {
		w.session.Flush() // answers go out as they come
	}
	return nil
}

// sendSegment sends the part's text, with what belongs before and behind it.
func (w *run) sendSegment(i int, begin bool) error {
	seg := w.list[i]
	if w.endsDry(seg) {
		return w.endDry(seg)
	}
	if w.guard && w.changes(seg) && w.status != 'E' {
		return w.sendGuarded(i, begin)
	}
	o := w.opening(begin, i == 0 && w.guard && w.whole && len(w.list) > 1, false)
	w.before = nil
	texts := []string{w.text(seg)}
	check := i == len(w.list)-1 && !w.implicit && w.status != 'E' && w.wantsCheck()
	if check {
		texts = append(texts, w.settings.question(w.status == 'T' || seg.first <= seg.last && w.r.Message.Statements[seg.first].Tx != policy.TxNone))
	}
	if err := w.sendBehind(o.texts, texts...); err != nil {
		return err
	}
	if ok, err := w.opened(o); !ok || err != nil {
		return err
	}
	if err := w.relay(w.a); err != nil {
		return err
	}
	w.a.checkEnd()
	if check {
		return w.takeCheck()
	}
	return nil
}

// changes reports whether the part may change rows.
func (w *run) changes(seg segment) bool {
	for i := seg.first; i <= seg.last; i++ {
		if w.r.Memory.Changes(w.r.Message, i) {
			return true
		}
	}
	return false
}

// text is what is sent for a part: the client's own bytes. A FETCH of more rows
// than may be sent is limited to those, so that the cursor does not move over
// rows that the client never gets.
func (w *run) text(seg segment) string {
	if seg.first != seg.last {
		return w.r.SQL[seg.start:seg.end]
	}
	use := &w.r.Message.Statements[seg.first].Cursor
	if use.Verb != policy.CursorFetch || use.Single || w.a.rowLimit < 0 || use.Count <= w.a.rowLimit {
		return w.r.SQL[seg.start:seg.end]
	}
	// One row more tells whether there is more. A cursor that cannot go back
	// over it is not asked, other than when nothing may be sent anyway.
	limit := w.a.rowLimit + 1
	if w.cursors.noScroll(use.Name) && limit > 1 {
		limit--
	}
	if use.Count <= limit || limit > math.MaxInt32 { // more than the grammar takes
		return w.r.SQL[seg.start:seg.end]
	}
	w.a.limited = limit
	return "FETCH " + direction(use.Forward) + " " + strconv.FormatInt(limit, 10) + " FROM " + policy.QuoteIdentifier(use.Name)
}

func direction(forward bool) string {
	if forward {
		return "FORWARD"
	}
	return "BACKWARD"
}

// conclude makes what the client is told true, and checks what has not been.
func (w *run) conclude() error {
	if err := w.cursorsBack(); err != nil {
		return err
	}
	if !w.guard && w.r.Rule.Access > policy.Read && w.writesUnseen() || w.settings.atCommit && w.status != 'T' {
		w.counted.unsure = true
	}
	if !w.checked && w.status != 'E' && w.wantsCheck() {
		if err := w.ask(); err != nil {
			return err
		}
	}
	if w.a.ended && !w.a.settled && w.status == 'T' {
		// After an error of pgproxy's own the transaction must not go on as if
		// nothing had happened.
		r, err := w.roundTrip(failTx)
		if err != nil {
			return err
		}
		w.session.Send(r.async)
		if err := w.txFailed(); err != nil {
			return err
		}
	}
	for _, name := range w.settings.tampered(&w.r.Rule) {
		w.session.Tampered(name)
	}
	if w.status == 'I' {
		w.cursors.transactionEnded()
	}
	w.settings.atCommit = w.status == 'T' && (w.settings.atCommit || w.actsAtCommit())
	if w.a.mismatch != "" {
		return fmt.Errorf("%w: %s", ErrMismatch, w.a.mismatch)
	}
	return nil
}

// writesUnseen reports whether the message may have changed rows that were not
// counted.
func (w *run) writesUnseen() bool {
	for i := w.r.First; i < len(w.r.Message.Statements); i++ {
		if w.r.Message.Statements[i].Opaque || w.r.Memory.Changes(w.r.Message, i) {
			return true
		}
	}
	return false
}

// cursorsBack moves cursors back over the rows that were not sent.
func (w *run) cursorsBack() error {
	for _, back := range w.a.rewinds {
		if w.status == 'E' {
			break
		}
		if w.a.failed() && w.declares(back.cursor) {
			continue // it ends with what the message has begun
		}
		r, err := w.roundTrip("MOVE " + direction(back.forward) + " " + strconv.FormatInt(back.rows, 10) + " FROM " + policy.QuoteIdentifier(back.cursor))
		if err != nil {
			return err
		}
		w.session.Send(r.async)
		if r.failure != nil {
			w.a.say(warning("pgproxy: cursor %s cannot go back, and has moved over %s that %s not sent", policy.QuoteIdentifier(back.cursor), policy.Count(back.rows, "row"), wasWere(back.rows)))
		}
	}
	w.a.rewinds = nil
	return nil
}

// declares reports whether the message declares a cursor of that name.
func (w *run) declares(name string) bool {
	return slices.ContainsFunc(w.r.Message.Statements, func(st policy.Statement) bool {
		return st.Cursor.Verb == policy.CursorDeclare && st.Cursor.Name == name
	})
}

func wasWere(n int64) string {
	if n == 1 {
		return "was"
	}
	return "were"
}

// tookStep takes the answer to statements of pgproxy's own. It is false when one
// has failed, of which the client was told.
func (w *run) tookStep(r *reply) bool {
	w.session.Send(r.async)
	if r.failure != nil {
		w.tell(r)
	}
	return r.failure == nil
}

// tell passes on that a statement of pgproxy's own has failed.
func (w *run) tell(r *reply) {
	a := w.a
	if a.failed() {
		return
	}
	a.expired = w.session.Expired()
	a.cancelSent = w.gate.sentTo(w.gate.running())
	a.cancelledBy, _ = w.session.Cancelled()
	if n := a.replacement(*r.failure, len(r.frame)-frame.HeaderLen); n != nil {
		a.fail(n)
	} else {
		a.sqlstate, a.failure, a.ended = r.failure.Code, r.failure.Message, true
		a.cancelled = a.cancelSent && r.failure.Code == codeQueryCanceled
		a.said = append(a.said, withoutPosition(r.frame)...)
	}
	a.affected = 0
}

// withoutPosition is an ErrorResponse without the place in a text that the
// client has never seen.
func withoutPosition(message []byte) []byte {
	body := message[frame.HeaderLen:]
	for rest := body; len(rest) > 1 && rest[0] != 0; {
		start := len(body) - len(rest)
		_, after, ok := frame.CString(rest[1:])
		if !ok {
			break
		}
		if rest[0] == 'P' {
			return frame.Append(nil, message[0], append(slices.Clone(body[:start]), after...)...)
		}
		rest = after
	}
	return message
}

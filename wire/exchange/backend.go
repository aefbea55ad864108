package exchange

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"

	"pgproxy/policy"
	"pgproxy/upstream"
	"pgproxy/wire/frame"
)

// maxReply bounds what an internal query may bring back, in bytes.
const maxReply = 4 << 20

// Session is the session that a Backend works for. Its methods are called by
// the goroutine that called the Backend's.
type Session interface {
	// Send queues bytes for the client. They may lie in the Backend's buffer:
	// Keep or Flush is called before that changes.
	Send(b []byte)
	// Keep makes what was queued independent of the Backend's buffer.
	Keep()
	// Flush writes what was queued.
	Flush()

	// Begin says that something is about to be sent to the server: the
	// client's message, or an internal query. End says that its answer is
	// complete, or never will be.
	Begin(internal bool)
	End()
	// Next says that a statement of the message has ended, and that the time
	// of the next one begins.
	Next()
	// Progress tells how much of the answer was sent to the client so far.
	Progress(rows, bytes int64)

	// Ended returns why the session is to end, nil while it goes on.
	Ended() error
	// Cancelled reports whether somebody has cancelled the client's message,
	// and who, where it was not the client itself.
	Cancelled() (by string, ok bool)
	// Expired reports whether the running statement has had its time.
	Expired() bool
	// CancelRunning cancels what runs on the server, without waiting.
	CancelRunning(number uint64)

	// Tampered tells that a setting of pgproxy's was found changed.
	Tampered(setting string)
	// Capped tells that a cap has cut the answer.
	Capped(limit string)
	// LastWord returns what the client is told instead of the server's last
	// word, nil for that itself.
	LastWord(frame.ErrorFields) *frame.Notice
}

// Backend is the server's end of a session. One goroutine at a time uses it,
// but for Cancel and Running. Its owner closes the connection.
type Backend struct {
	Up      *upstream.Conn
	session Session
	in      frame.Reader
	gate    gate
	status  byte // of the last ReadyForQuery
	query   []byte

	settings settings
	cursors  cursors
	counted  changeCounter
	// savepoint is the name of the guard's, which nobody can guess: a ROLLBACK
	// TO of the client's must not find it. It is set while saved.
	savepoint string
	saved     bool
	dryTold   bool // the client knows what a dry run does not take back

	// What of the message that passes is still to come.
	left     int
	dropping bool
}

// New returns the Backend of a connection that is idle and outside of a
// transaction. rule is what the connection was opened under.
func New(up *upstream.Conn, s Session, wait *frame.Waiter, rule policy.Rule, startup map[string]string) *Backend {
	b := &Backend{session: s, savepoint: "pgproxy_" + strings.ToLower(rand.Text()[:12])}
	b.begin(up, wait, rule, startup)
	return b
}

// Switch gives the Backend another connection, as New would. The one it had is the
// caller's to close. It must be outside of a transaction. The error ends the
// session.
func (b *Backend) Switch(up *upstream.Conn, wait *frame.Waiter, rule policy.Rule, startup map[string]string) error {
	return b.gate.atRest(func() { b.begin(up, wait, rule, startup) })
}

// begin begins anew on a connection.
func (b *Backend) begin(up *upstream.Conn, wait *frame.Waiter, rule policy.Rule, startup map[string]string) {
	b.Up, b.in, b.status = up, frame.Reader{Conn: up.Net, Wait: wait}, 'I'
	b.settings, b.cursors, b.counted, b.saved = settings{}, cursors{}, changeCounter{}, false
	b.settings.begin(rule, startup, up.Params)
}

// Status is the transaction status that the server last reported: I, T or E.
func (b *Backend) Status() byte { return b.status }

// Rest lets go of memory that an idle session does not need.
func (b *Backend) Rest() {
	b.in.Rest()
	if cap(b.query) > frame.MinBuffer {
		b.query = nil
	}
}

// Running returns the number of the message or internal query that is on the
// server, 0 when none is. Safe for concurrent use.
func (b *Backend) Running() uint64 { return b.gate.running() }

// Cancel cancels the message of that number, unless it has been answered or
// another cancel for it is under way. sent says that a request went out; the
// call returns when its fate is known. Safe for concurrent use.
func (b *Backend) Cancel(ctx context.Context, number uint64) (sent bool, err error) {
	return b.gate.cancel(ctx, func() canceler { return b.Up }, number)
}

// send writes Query messages in one write.
func (b *Backend) send(texts ...string) error { return b.sendBehind(nil, texts...) }

// sendBehind writes Query messages, and ahead of them statements of pgproxy's
// own, all in one write. When one of those fails the server skips what is behind
// it, the Query messages too: they are sent by the extended protocol and without
// a Sync, and after an error the server reads and discards messages until a
// Sync (PostgreSQL's documentation, "Extended Query"). So what is behind never
// runs without them. replyAhead takes in their answers.
func (b *Backend) sendBehind(ahead []string, texts ...string) error {
	b.query = b.query[:0]
	for _, text := range ahead {
		b.query = frame.AppendExecution(b.query, text)
	}
	for _, text := range texts {
		b.query = frame.AppendQuery(b.query, text)
	}
	err := b.write(b.query)
	if cap(b.query) > frame.MinBuffer {
		b.query = nil
	}
	return err
}

func (b *Backend) write(message []byte) error {
	if _, err := b.Up.Net.Write(message); err != nil {
		return &LostError{Cause: err}
	}
	return nil
}

// relay passes the answer to one Query message on until its ReadyForQuery,
// which it takes in.
func (b *Backend) relay(a *Answer) error {
	a.done = false
	for {
		err := b.walk(a)
		if a.done {
			b.session.Keep() // what is left to be said goes out in one write
		} else {
			b.session.Flush()
		}
		b.session.Progress(a.rows, a.bytes)
		if err != nil || a.done {
			return err
		}
		want := frame.MaxBuffer
		if typ, size, ok, _ := b.in.Header(); ok && b.left == 0 {
			want = max(want, frame.HeaderLen+opens(typ, size))
		}
		if err := b.in.Fill(want); err != nil {
			return &LostError{Cause: err, Half: b.left > 0 && !b.dropping}
		}
		a.expired = b.session.Expired()
	}
}

// walk goes through the messages at hand. Those that pass unread are sent in
// one piece, as they lie in the buffer.
func (b *Backend) walk(a *Answer) error {
	buf := b.in.Unread()
	pos, from := 0, 0 // from is the beginning of what passes and was not sent
	flush := func() {
		if pos > from {
			b.session.Send(buf[from:pos])
		}
		from = pos
	}
	defer func() {
		flush()
		b.in.Discard(pos)
	}()
	for !a.done {
		if b.left > 0 {
			n := min(b.left, len(buf)-pos)
			if n == 0 {
				return nil
			}
			pos += n
			b.left -= n
			if b.dropping {
				from = pos
			}
			continue
		}
		typ, size, ok, err := frame.Header(buf[pos:])
		if err != nil {
			return garbled(typ)
		}
		if !ok {
			return nil
		}
		whole := frame.HeaderLen + size
		want := opens(typ, size)
		if len(buf)-pos < frame.HeaderLen+want {
			return nil
		}
		var passes bool
		switch typ {
		case 'D':
			passes = a.row(whole)
			if passes {
				b.left, b.dropping = whole, false
				continue
			}
		case 'T', 'A':
			passes = a.unopened(typ, whole)
		default:
			var act action
			if act, err = b.open(a, typ, size, buf[pos+frame.HeaderLen:pos+frame.HeaderLen+want]); act == pass {
				passes = true
			}
		}
		if !passes || len(a.said) > 0 {
			flush()
			b.say(a)
		}
		b.left, b.dropping = whole, !passes
		if err != nil || a.done {
			n := min(whole, len(buf)-pos) // of the last message only this is at hand
			pos += n
			b.left -= n
			if !passes {
				from = pos
			}
			return err
		}
		if err := b.act(a); err != nil {
			return err
		}
	}
	return nil
}

// open hands a message to the answer, and keeps what the server reports.
func (b *Backend) open(a *Answer, typ byte, size int, body []byte) (action, error) {
	switch typ {
	case 'S':
		b.settings.note(body)
	case 'E':
		a.cancelSent = b.gate.sentTo(b.gate.running())
		a.cancelledBy, _ = b.session.Cancelled()
	case 'C':
		index := a.index
		act, err := a.frame(typ, size, body)
		if a.index != index {
			b.session.Next()
		}
		return act, err
	}
	act, err := a.frame(typ, size, body)
	if a.done && len(body) == 1 {
		b.status = body[0]
	}
	if fatal, ok := errors.AsType[*FatalError](err); ok {
		// When the session's end is settled, the FATAL is of our doing and is said
		// in pgproxy's own words.
		fatal.Told = b.session.Ended() == nil && !b.session.Expired()
		if n := b.session.LastWord(fatal.ErrorFields); n != nil && fatal.Told {
			a.say(n)
			act = drop
		}
		if !fatal.Told {
			act = drop
		}
	}
	return act, err
}

// say sends what the answer says by itself.
func (b *Backend) say(a *Answer) {
	if len(a.said) > 0 {
		b.session.Send(a.said)
		a.said = nil
	}
}

// act does what the answer has asked for.
func (b *Backend) act(a *Answer) error {
	if a.cancel {
		a.cancel = false
		if a.capped != "" {
			b.session.Capped(a.capped)
		}
		b.session.CancelRunning(b.gate.running())
	}
	if a.failCopy {
		a.failCopy = false
		return b.write(frame.Append(nil, 'f', []byte("COPY is not supported by pgproxy\x00")...))
	}
	return nil
}

// reply is the answer to an internal query.
type reply struct {
	rows    [][]string // "" for NULL
	tag     string
	failure *frame.ErrorFields // nil = it went well
	frame   []byte             // the ErrorResponse as it came
	async   []byte             // notifications and parameters for the client
	notices []byte             // those that the statement has raised
}

// Execute runs an internal query, out of the client's sight. What the server
// says against it is failure, ""; the error ends the session.
func (b *Backend) Execute(sql string) (rows [][]string, failure string, err error) {
	r, err := b.execute(sql)
	if err != nil {
		return nil, "", err
	}
	if r.failure != nil {
		return nil, r.failure.Message, nil
	}
	return r.rows, "", nil
}

func (b *Backend) execute(sql string) (*reply, error) {
	if _, err := b.gate.enter(); err != nil {
		return nil, err
	}
	b.session.Begin(true)
	defer b.session.End()
	r, err := b.roundTrip(sql)
	if err != nil {
		return nil, err
	}
	b.gate.leave()
	b.session.Send(r.async)
	return r, nil
}

// roundTrip sends an internal query and takes its answer in. The session is in
// the gate.
func (b *Backend) roundTrip(sql string) (*reply, error) {
	if err := b.send(sql); err != nil {
		return nil, err
	}
	return b.reply()
}

// reply takes in the answer to an internal query that was sent.
func (b *Backend) reply() (*reply, error) { return b.replyAhead(0) }

// replyAhead takes in the answers to so many statements that were sent ahead of
// Query messages, or with 0 all up to ReadyForQuery. With a failure in it the
// server has skipped the Query messages, and has reported its transaction status.
func (b *Backend) replyAhead(ahead int) (*reply, error) {
	r := &reply{}
	for size := 0; size < maxReply; {
		typ, body, err := b.message()
		if err != nil {
			return nil, err
		}
		size += len(body)
		switch typ {
		case 'D':
			r.rows = append(r.rows, frame.Columns(body))
		case 'C':
			r.tag, _, _ = frame.CString(body)
			if ahead--; ahead == 0 {
				return r, nil
			}
		case 'E':
			f := frame.ParseErrorFields(body)
			whole := frame.Append(nil, typ, body...)
			if f.Severity == "FATAL" || f.Severity == "PANIC" {
				fatal := &FatalError{ErrorFields: f, Told: b.session.Ended() == nil}
				if fatal.Told {
					b.session.Send(b.lastWord(f, whole))
				}
				return nil, fatal
			}
			r.failure, r.frame = &f, whole
			if ahead > 0 {
				if err := b.write(frame.Append(nil, 'S')); err != nil {
					return nil, err
				}
				ahead = 0
			}
		case 'N':
			r.notices = frame.Append(r.notices, typ, body...)
		case 'A':
			r.async = frame.Append(r.async, typ, body...)
		case 'S':
			b.settings.note(body)
			r.async = frame.Append(r.async, typ, body...)
		case 'Z':
			if len(body) == 1 {
				b.status = body[0]
			}
			return r, nil
		}
	}
	return nil, fmt.Errorf("%w: an internal query's answer is too long", ErrGarbled)
}

// lastWord is the server's last word as the client gets it.
func (b *Backend) lastWord(f frame.ErrorFields, message []byte) []byte {
	if n := b.session.LastWord(f); n != nil {
		return n.Append(nil)
	}
	return message
}

// message returns the next message whole. Its body is valid until the next
// call.
func (b *Backend) message() (typ byte, body []byte, err error) {
	for {
		typ, size, ok, err := b.in.Header()
		if err != nil || size > maxReply {
			return 0, nil, garbled(typ)
		}
		if !ok {
			if err := b.in.Fill(frame.MinBuffer); err != nil {
				return 0, nil, &LostError{Cause: err}
			}
			continue
		}
		body, err = b.in.Body(size)
		if err != nil {
			return 0, nil, &LostError{Cause: err}
		}
		return typ, body, nil
	}
}

// Idle passes on what the server says by itself while the session is idle:
// notices, notifications, changed parameters, and its last word. write writes
// to the client. Idle returns nil when the connection's read deadline has
// passed, with nothing lost, and otherwise why the session ends.
func (b *Backend) Idle(write func([]byte)) error {
	for {
		if done, err := b.passIdle(write); done || err != nil {
			return err
		}
		if err := b.in.Fill(frame.MinBuffer); err != nil {
			if frame.IsDeadline(err) {
				return nil
			}
			return &LostError{Cause: err}
		}
	}
}

// passIdle passes on the messages that have arrived whole. done says that the
// deadline has passed in the middle of one, whose rest is for whoever reads on.
func (b *Backend) passIdle(write func([]byte)) (done bool, err error) {
	for {
		typ, size, ok, err := b.in.Header()
		switch {
		case err != nil || size > maxReply:
			return false, garbled(typ)
		case !ok:
			return false, nil
		}
		for b.in.Buffered() < frame.HeaderLen+size {
			if err := b.in.Fill(frame.HeaderLen + size); err != nil {
				if frame.IsDeadline(err) {
					return true, nil
				}
				return false, &LostError{Cause: err}
			}
		}
		message := b.in.Unread()[:frame.HeaderLen+size]
		b.in.Discard(len(message))
		switch typ {
		case 'A', 'N':
			write(message)
		case 'S':
			b.settings.note(message[frame.HeaderLen:])
			write(message)
		case 'E':
			f := frame.ParseErrorFields(message[frame.HeaderLen:])
			write(b.lastWord(f, message))
			return false, &FatalError{ErrorFields: f, Told: true}
		default:
			return false, garbled(typ)
		}
	}
}

// FailTx fails an open transaction on the server, as an error of the server's
// own would have: a script that goes on to COMMIT must not commit half of what
// it meant. The word in the statement explains itself in the server's log.
func (b *Backend) FailTx() error {
	if b.status != 'T' {
		return nil
	}
	if _, err := b.execute(failTx); err != nil {
		return err
	}
	return b.txFailed()
}

const failTx = "denied_by_pgproxy"

func (b *Backend) txFailed() error {
	if b.status != 'E' {
		return ErrNotFailed
	}
	return nil
}

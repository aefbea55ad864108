package exchange

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgproxy/policy"
	"pgproxy/upstream"
	"pgproxy/wire/frame"
	"pgproxy/wire/frame/frametest"
)

// client is a Session that keeps what it is told.
type client struct {
	out      bytes.Buffer
	direct   [][]byte
	held     int // the most that was ever queued, in bytes
	tampered []string
	capped   []string
	cancels  int
	next     int
	end      error
	cancel   bool
	expired  bool
}

func (c *client) Send(b []byte) {
	c.direct = append(c.direct, b)
	n := 0
	for _, b := range c.direct {
		n += len(b)
	}
	c.held = max(c.held, n)
}

func (c *client) Keep() { c.Flush() }

func (c *client) Flush() {
	for _, b := range c.direct {
		c.out.Write(b)
	}
	c.direct = nil
}

func (c *client) Begin(bool)                {}
func (c *client) End()                      {}
func (c *client) Next()                     { c.next++ }
func (c *client) Progress(_, _ int64)       {}
func (c *client) Ended() error              { return c.end }
func (c *client) Cancelled() (string, bool) { return "", c.cancel }
func (c *client) Expired() bool             { return c.expired }
func (c *client) CancelRunning(uint64)      { c.cancels++ }
func (c *client) Tampered(setting string)   { c.tampered = append(c.tampered, setting) }
func (c *client) Capped(limit string)       { c.capped = append(c.capped, limit) }

func (c *client) LastWord(frame.ErrorFields) *frame.Notice { return nil }

// scripted is a backend whose server says what is known before.
func scripted(answer []byte, chunk int) (*Backend, *client, *frametest.Conn) {
	c, conn := &client{}, &frametest.Conn{In: answer, Chunk: chunk}
	return New(&upstream.Conn{Net: conn}, c, nil, policy.Rule{}, nil), c, conn
}

// twoStatements is a message of a SELECT and an UPDATE.
func twoStatements() *policy.Message {
	return &policy.Message{Statements: []policy.Statement{
		{Kind: "SELECT", Tags: []string{"SELECT"}, Reads: true},
		{Kind: "UPDATE", Tags: []string{"UPDATE"}, Changes: true},
	}}
}

func answerTo(b *Backend, rule policy.Rule) *Answer {
	a := newAnswer(&Request{Message: twoStatements(), Rule: rule, Memory: new(policy.Memory)}, &b.cursors)
	a.end = 2
	a.begin()
	return a
}

// messages splits what the client got.
func messages(t *testing.T, b []byte) (types string, rest int) {
	t.Helper()
	for len(b) > 0 {
		typ, n, ok, err := frame.Header(b)
		if err != nil || !ok || len(b) < frame.HeaderLen+n {
			return types, len(b)
		}
		types += string(typ)
		b = b[frame.HeaderLen+n:]
	}
	return types, 0
}

// A row passes without being held.
func TestRowIsNotHeld(t *testing.T) {
	const size = 20 << 20
	row := frame.Append(nil, 'D', make([]byte, size)...)
	b, c, _ := scripted(append(slices.Clip(row), 'Z', 0, 0, 0, 5, 'I'), 0)
	a := answerTo(b, policy.Rule{})
	if err := b.relay(a); err != nil {
		t.Fatal(err)
	}
	if c.out.Len() != len(row) || a.rows != 1 {
		t.Errorf("%d bytes and %d rows passed", c.out.Len(), a.rows)
	}
	if c.held > frame.MaxBuffer {
		t.Errorf("%d bytes were held", c.held)
	}
}

// FuzzAnswer gives the relay any bytes for an answer, in any pieces. Whatever
// they are, and however they are split, the client gets the same bytes: whole
// messages of the kinds that it may get, no more rows than the cap, and half of
// a message only where it is hung up on. The counts are those of what it got.
func FuzzAnswer(f *testing.F) {
	rows := "T\x00\x00\x00\x06\x00\x00D\x00\x00\x00\x06\x00\x00D\x00\x00\x00\x06\x00\x00D\x00\x00\x00\x06\x00\x00"
	f.Add([]byte(rows+"C\x00\x00\x00\x0dSELECT 3\x00C\x00\x00\x00\x0dUPDATE 9\x00Z\x00\x00\x00\x05I"), byte(0))
	f.Add([]byte(rows+"E\x00\x00\x00\x16SERROR\x00C57014\x00Mx\x00\x00Z\x00\x00\x00\x05E"), byte(1))
	f.Add([]byte("E\x00\x00\x00\x16SFATAL\x00C57P01\x00Mx\x00\x00"), byte(3))
	f.Add([]byte("G\x00\x00\x00\x07\x00\x00\x00E\x00\x00\x00\x05\x00Z\x00\x00\x00\x05I"), byte(2))
	f.Add([]byte("H\x00\x00\x00\x07\x00\x00\x00d\x00\x00\x00\x08abcdc\x00\x00\x00\x04Z\x00\x00\x00\x05I"), byte(2))
	f.Add([]byte("S\x00\x00\x00\x08a\x00b\x00N\x00\x00\x00\x05\x00A\x00\x00\x00\x0a\x00\x00\x00\x01a\x00b\x00I\x00\x00\x00\x04"), byte(4))
	f.Add([]byte("D\x7f\xff\xff\xffabc"), byte(0))
	f.Add([]byte("Z\x00\x00\x00\x04"), byte(0))
	rule := policy.Rule{MaxRows: 2, MaxBytes: 1000, MaxAffectedRows: 5, StatementTimeout: time.Second}
	f.Fuzz(func(t *testing.T, answer []byte, chunk byte) {
		relay := func(chunk int) ([]byte, *Answer, error) {
			b, c, _ := scripted(slices.Clone(answer), chunk)
			a := answerTo(b, rule)
			err := b.relay(a)
			b.say(a)
			c.Flush()
			if c.held > 2*frame.MaxBuffer {
				t.Fatalf("%d bytes were held", c.held)
			}
			return c.out.Bytes(), a, err
		}
		got, a, err := relay(int(chunk))
		if err == nil && !bytes.Contains(answer, []byte("Z\x00\x00\x00\x05")) {
			t.Fatal("an answer without ReadyForQuery")
		}
		whole, b, err2 := relay(0)
		if fmt.Sprint(err) != fmt.Sprint(err2) || fmt.Sprint(a) != fmt.Sprint(b) {
			t.Fatalf("split: %v %v, whole: %v %v", a, err, b, err2)
		}
		lost, _ := errors.AsType[*LostError](err)
		if lost == nil && !bytes.Equal(got, whole) {
			t.Fatalf("split: %q, whole: %q", got, whole)
		}
		types, rest := messages(t, got)
		if rest > 0 && (lost == nil || !lost.Half) {
			if _, fatal := errors.AsType[*FatalError](err); !fatal {
				t.Fatalf("%q: the client got %q: %v", answer, got, err)
			}
		}
		if strings.Trim(types, "CDTAENIS") != "" {
			t.Fatalf("%q: the client got messages %q", answer, types)
		}
		for part := range strings.SplitSeq(types, "C") {
			if n := strings.Count(part, "D"); n > int(rule.MaxRows) {
				t.Fatalf("%q: %d rows passed", answer, n)
			}
		}
		if n := int64(strings.Count(types, "D")); rest == 0 && n != a.rows {
			t.Fatalf("%d rows were counted, %d passed", a.rows, n)
		}
	})
}

// FuzzIdle gives an idle session any bytes from its server.
func FuzzIdle(f *testing.F) {
	f.Add([]byte("N\x00\x00\x00\x05\x00S\x00\x00\x00\x08a\x00b\x00A\x00\x00\x00\x0a\x00\x00\x00\x01a\x00b\x00"), byte(1))
	f.Add([]byte("E\x00\x00\x00\x16SFATAL\x00C57P01\x00Mx\x00\x00"), byte(0))
	f.Add([]byte("D\x00\x00\x00\x06\x00\x00"), byte(0))
	f.Fuzz(func(t *testing.T, in []byte, chunk byte) {
		b, _, _ := scripted(slices.Clone(in), int(chunk))
		var out bytes.Buffer
		if err := b.Idle(func(m []byte) { out.Write(m) }); err == nil {
			t.Fatal("the session outlives its server")
		}
		if got := out.Bytes(); !bytes.HasPrefix(in, got) {
			t.Fatalf("%q was passed on as %q", in, got)
		}
		if _, rest := messages(t, out.Bytes()); rest > 0 {
			t.Fatal("the client got half a message")
		}
	})
}

// The position of an error counts from the beginning of the message, not of the
// part that was sent.
func TestShiftedPosition(t *testing.T) {
	body := []byte("SERROR\x00C42601\x00Msyntax error\x00P7\x00Fscan.l\x00\x00")
	got, ok := shiftPosition(body, 93)
	if want := strings.Replace(string(body), "P7\x00", "P100\x00", 1); !ok || string(got) != want {
		t.Errorf("%q, want %q", got, want)
	}
	for _, other := range []string{"SERROR\x00Mx\x00\x00", "P7", "Px\x00\x00", "\x00", ""} {
		if got, ok := shiftPosition([]byte(other), 1); ok {
			t.Errorf("%q became %q", other, got)
		}
	}
}

// A timeout that meets what pgproxy sends ahead of a change is told as one.
func TestTimeoutAhead(t *testing.T) {
	failed := frame.Append(nil, 'E', []byte("SERROR\x00C57014\x00Mcanceling statement due to user request\x00\x00")...)
	ready := frame.Append(nil, 'Z', 'I')
	for _, expired := range []bool{false, true} {
		b, c, _ := scripted(slices.Concat(failed, ready), 0)
		c.expired = expired
		rule := policy.Rule{Access: policy.Admin, MaxAffectedRows: 10, StatementTimeout: time.Second}
		w := &run{Backend: b, r: &Request{Message: twoStatements(), Rule: rule, Memory: new(policy.Memory)}}
		w.a = newAnswer(w.r, &b.cursors)
		if _, err := b.gate.enter(); err != nil {
			t.Fatal(err)
		}
		b.gate.sent = true
		if ok, err := w.opened(opening{texts: []string{"BEGIN"}}); ok || err != nil {
			t.Fatal(ok, err)
		}
		if got := strings.Contains(w.a.failure, "statement_timeout"); got != expired {
			t.Errorf("expired %v: told %q", expired, w.a.failure)
		}
	}
}

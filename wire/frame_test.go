package wire

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"pgproxy/policy"
	"pgproxy/upstream"
	"pgproxy/wire/audit"
)

// scriptedConn is a connection whose input is known, and comes in pieces of at
// most chunk bytes; 0 = all at once. What is written to it is kept.
type scriptedConn struct {
	net.Conn
	in    []byte
	chunk int
	taken int // bytes read
	out   bytes.Buffer
}

func (c *scriptedConn) Read(b []byte) (int, error) {
	if len(c.in) == 0 {
		return 0, io.EOF
	}
	n := len(c.in)
	if c.chunk > 0 {
		n = min(n, c.chunk)
	}
	n = copy(b, c.in[:n])
	c.in = c.in[n:]
	c.taken += n
	return n, nil
}

func (c *scriptedConn) Write(b []byte) (int, error)      { return c.out.Write(b) }
func (c *scriptedConn) Close() error                     { return nil }
func (c *scriptedConn) SetDeadline(time.Time) error      { return nil }
func (c *scriptedConn) SetReadDeadline(time.Time) error  { return nil }
func (c *scriptedConn) SetWriteDeadline(time.Time) error { return nil }
func (c *scriptedConn) RemoteAddr() net.Addr             { return &net.TCPAddr{} }

// readAll takes a stream's messages in, and how it ended.
func readAll(f *frames) (list []frame, err error) {
	for {
		typ, n, ok, err := f.header()
		if err == nil && !ok {
			err = f.fill(minBuffer)
			if err == nil {
				continue
			}
		}
		if err != nil {
			return list, err
		}
		body, err := f.body(n)
		if err != nil {
			return list, err
		}
		list = append(list, frame{typ, bytes.Clone(body)})
	}
}

func TestFrames(t *testing.T) {
	var stream []byte
	var want []frame
	for i, size := range []int{0, 1, 4, restBuffer - headerLen, restBuffer, minBuffer - 1, minBuffer, 3, 300_000, 0} {
		body := bytes.Repeat([]byte{byte('a' + i)}, size)
		stream = appendFrame(stream, 'D', body...)
		want = append(want, frame{'D', body})
	}
	for _, chunk := range []int{0, 1, 2, 4, 5, 6, 7, 511, 8191, 8193} {
		f := &frames{conn: &scriptedConn{in: stream, chunk: chunk}}
		got, err := readAll(f)
		if err != io.EOF {
			t.Errorf("pieces of %d bytes: %v", chunk, err)
		}
		if !slices.EqualFunc(got, want, func(a, b frame) bool { return a.typ == b.typ && bytes.Equal(a.body, b.body) }) {
			t.Errorf("pieces of %d bytes: got %d messages, want %d", chunk, len(got), len(want))
		}
	}
}

func TestFramesEnd(t *testing.T) {
	for _, tt := range []struct {
		name string
		in   string
		want error
	}{
		{"nothing", "", io.EOF},
		{"whole", "S\x00\x00\x00\x04", io.EOF},
		{"type alone", "S", errMidMessage},
		{"half a length", "S\x00\x00", errMidMessage},
		{"half a body", "Q\x00\x00\x00\x08abc", errMidMessage},
		{"length three", "S\x00\x00\x00\x03", errFraming},
		{"negative length", "S\x80\x00\x00\x00", errFraming},
	} {
		if _, err := readAll(&frames{conn: &scriptedConn{in: []byte(tt.in)}}); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
}

// A length that is only promised costs nothing.
func TestFramesAllocation(t *testing.T) {
	in := append([]byte{'Q', 0x7f, 0xff, 0xff, 0xff}, make([]byte, 20_000)...)
	f := &frames{conn: &scriptedConn{in: in, chunk: 1000}}
	if _, err := readAll(f); err != errMidMessage {
		t.Error(err)
	}
	if len(f.buf) > 4*len(in) {
		t.Errorf("%d bytes held a buffer of %d", len(in), len(f.buf))
	}
	s, _ := relaySession(nil, 0)
	f = &s.client
	f.conn = &scriptedConn{in: in, chunk: 1000}
	if err := f.fill(minBuffer); err != nil {
		t.Fatal(err)
	}
	if e := s.discardClient(1 << 30); e == nil || e.cause != errMidMessage {
		t.Error(e)
	}
	if len(f.buf) > maxBuffer {
		t.Errorf("a buffer of %d bytes for what is thrown away", len(f.buf))
	}
}

// A row passes without being held.
func TestRelayAllocation(t *testing.T) {
	const size = 20 << 20
	row := appendFrame(nil, 'D', make([]byte, size)...)
	s, out := relaySession(append(row, 'Z', 0, 0, 0, 5, 'I'), 0)
	st := selectStatement(policy.Rule{})
	if e := s.relay(st); e != nil {
		t.Fatal(e)
	}
	if out.out.Len() != len(row) || st.cycle.rows != 1 {
		t.Errorf("%d bytes and %d rows passed", out.out.Len(), st.cycle.rows)
	}
	if n := len(s.upstream.buf) + cap(s.out); n > 2*maxBuffer {
		t.Errorf("%d bytes held", n)
	}
}

func FuzzFrames(f *testing.F) {
	f.Add([]byte("Q\x00\x00\x00\x0dSELECT 1\x00S\x00\x00\x00\x04"), byte(1))
	f.Add([]byte("Q\x7f\xff\xff\xffSELECT"), byte(3))
	f.Add([]byte("X\x00\x00\x00\x03"), byte(0))
	f.Fuzz(func(t *testing.T, in []byte, chunk byte) {
		f := &frames{conn: &scriptedConn{in: slices.Clone(in), chunk: int(chunk)}}
		list, err := readAll(f)
		if err == nil {
			t.Fatal("a stream without end")
		}
		var again []byte
		for _, m := range list {
			again = appendFrame(again, m.typ, m.body...)
		}
		if !bytes.HasPrefix(in, again) {
			t.Fatalf("%q was read as %q", in, again)
		}
		if err == io.EOF && len(again) != len(in) {
			t.Fatalf("%d bytes were lost in silence", len(in)-len(again))
		}
		if len(f.buf) > 4*len(in)+2*minBuffer {
			t.Fatalf("%d bytes held a buffer of %d", len(in), len(f.buf))
		}
	})
}

// FuzzStartup reads any first packets, in any pieces, and never a byte beyond
// the last of them.
func FuzzStartup(f *testing.F) {
	f.Add([]byte(nil), byte(0))
	f.Add(join(sslRequest, gssRequest, startupPacket(protocol3, "user", "x", "options", "-c a=b")), byte(1))
	f.Add(startupPacket(protocol3+2, "user", "x", "_pq_.a", "b", "replication", "true"), byte(0))
	f.Add(join(gssRequest, cancelRequest, "more"), byte(7))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), byte(0))
	f.Add([]byte("\x16\x03\x01\x00\x05hello"), byte(0))
	f.Fuzz(func(t *testing.T, in []byte, chunk byte) {
		conn := &scriptedConn{in: slices.Clone(in), chunk: int(chunk)}
		st, e := readStartup(t.Context(), conn, nil)
		if conn.taken > packets(in) {
			t.Fatalf("read %d bytes of %d", conn.taken, packets(in))
		}
		switch {
		case e == nil && st.cancel == nil && st.user == "":
			t.Fatal("a session without a user")
		case e == nil && conn.taken != packets(in):
			t.Fatalf("a startup message after %d bytes of %d", conn.taken, packets(in))
		case e == nil && st.cancel == nil:
			_, _ = parseOptions(st.options)
			st.wantsReplication()
		}
		if answers := conn.out.Len(); answers > len(in)+200 {
			t.Fatalf("%d bytes were answered to %d", answers, len(in))
		}
	})
}

// packets is how many bytes the first packets of a stream have, up to the one
// that is no request for encryption; at least the four of a length.
func packets(in []byte) int {
	n := 0
	for {
		if len(in)-n < 8 {
			return len(in)
		}
		size := int(binary.BigEndian.Uint32(in[n:]))
		if size < 8 || size > maxStartupPacket+4 {
			return n + 4
		}
		code := binary.BigEndian.Uint32(in[n+4:])
		if n += size; n > len(in) {
			return len(in)
		}
		if code != codeSSLRequest && code != codeGSSENCRequest {
			return n
		}
	}
}

func FuzzQueryText(f *testing.F) {
	f.Add([]byte("SELECT 1\x00"))
	f.Add([]byte("SELECT 1\x00DROP TABLE x\x00"))
	f.Add([]byte("\xff\x00"))
	f.Fuzz(func(t *testing.T, body []byte) {
		if queryText(body) != nil {
			return
		}
		sql, ok := bytes.CutSuffix(body, []byte{0})
		if !ok || bytes.IndexByte(sql, 0) >= 0 || !utf8.Valid(sql) {
			t.Fatalf("%q passed", body)
		}
	})
}

func FuzzSplitOptions(f *testing.F) {
	f.Add(`-c a=b --c-d=e\ f`)
	f.Add(`\`)
	f.Add("-c\x00\t\\\\x ")
	f.Fuzz(func(t *testing.T, options string) {
		args := splitOptions(options)
		// Escaped and put together again they split alike.
		var escaped []string
		for _, arg := range args {
			var b strings.Builder
			for i := range len(arg) {
				b.WriteByte('\\')
				b.WriteByte(arg[i])
			}
			escaped = append(escaped, b.String())
		}
		if again := splitOptions(strings.Join(escaped, " ")); !slices.Equal(again, args) {
			t.Fatalf("%q and %q", args, again)
		}
		settings, e := parseOptions(options)
		if e == nil && len(settings) > len(args) {
			t.Fatalf("%d settings in %q", len(settings), args)
		}
		for _, s := range settings {
			if s.name == "" || strings.Contains(s.name, "=") {
				t.Fatalf("the name %q", s.name)
			}
		}
	})
}

// discardRecorder is an audit log for sessions that nobody looks into.
type discardRecorder struct{}

func (discardRecorder) Write(*audit.Record) error { return nil }

// relaySession is a session that is about to read an answer.
func relaySession(answer []byte, chunk int) (s *session, client *scriptedConn) {
	srv := &Server{Audit: discardRecorder{}, Logger: slog.New(slog.DiscardHandler)}
	srv.metrics.init()
	client = &scriptedConn{}
	s = newSession(srv, client)
	s.stop()
	up := &scriptedConn{in: answer, chunk: chunk}
	s.up = &upstream.Conn{Net: up}
	s.upstream.conn = up
	s.ctx = context.Background()
	return s, client
}

func selectStatement(rule policy.Rule) *statement {
	return &statement{rule: rule, msg: &policy.Message{Statements: []policy.Statement{
		{Kind: "SELECT", Tags: []string{"SELECT"}, Reads: true},
		{Kind: "UPDATE", Tags: []string{"UPDATE"}, Changes: true},
	}}}
}

// FuzzRelay gives the relay any bytes for an answer, in any pieces. Whatever
// they are the client gets whole frames of the kinds that it may get, and
// half of one only where it is hung up on.
func FuzzRelay(f *testing.F) {
	rows := "T\x00\x00\x00\x06\x00\x00D\x00\x00\x00\x06\x00\x00D\x00\x00\x00\x06\x00\x00D\x00\x00\x00\x06\x00\x00"
	f.Add([]byte(rows+"C\x00\x00\x00\x0dSELECT 3\x00C\x00\x00\x00\x0dUPDATE 9\x00Z\x00\x00\x00\x05I"), byte(0))
	f.Add([]byte(rows+"E\x00\x00\x00\x16SERROR\x00C57014\x00Mx\x00\x00Z\x00\x00\x00\x05E"), byte(1))
	f.Add([]byte("E\x00\x00\x00\x16SFATAL\x00C57P01\x00Mx\x00\x00"), byte(3))
	f.Add([]byte("G\x00\x00\x00\x07\x00\x00\x00E\x00\x00\x00\x05\x00Z\x00\x00\x00\x05I"), byte(2))
	f.Add([]byte("H\x00\x00\x00\x07\x00\x00\x00d\x00\x00\x00\x08abcdc\x00\x00\x00\x04Z\x00\x00\x00\x05I"), byte(2))
	f.Add([]byte("S\x00\x00\x00\x08a\x00b\x00N\x00\x00\x00\x05\x00A\x00\x00\x00\x0a\x00\x00\x00\x01a\x00b\x00I\x00\x00\x00\x04"), byte(4))
	f.Add([]byte("D\x7f\xff\xff\xffabc"), byte(0))
	f.Add([]byte("Z\x00\x00\x00\x04"), byte(0))
	f.Fuzz(func(t *testing.T, answer []byte, chunk byte) {
		s, client := relaySession(slices.Clone(answer), int(chunk))
		rule := policy.Rule{MaxRows: 2, MaxBytes: 1000, MaxAffectedRows: 5, StatementTimeout: time.Second}
		e := s.relay(selectStatement(rule))
		s.tasks.Wait()
		if e == nil && !bytes.Contains(answer, []byte("Z\x00\x00\x00\x05")) {
			t.Fatal("an answer without ReadyForQuery")
		}
		list, err := readAll(&frames{conn: &scriptedConn{in: client.out.Bytes()}})
		if err != io.EOF && (e == nil || !e.quiet) {
			t.Fatalf("%q: the client got %q: %v", answer, client.out.Bytes(), err)
		}
		rows := 0
		for _, m := range list {
			switch m.typ {
			case 'C':
				rows = 0
			case 'D':
				if rows++; rows > int(rule.MaxRows) {
					t.Fatalf("%q: %d rows passed", answer, rows)
				}
			case 'T', 'A', 'E', 'N', 'I', 'S':
			default:
				t.Fatalf("%q: the client got %q", answer, m.typ)
			}
		}
		if len(s.upstream.buf) > maxBuffer+openLimit {
			t.Fatalf("a buffer of %d bytes", len(s.upstream.buf))
		}
	})
}

// FuzzIdle gives a resting session any bytes from its upstream.
func FuzzIdle(f *testing.F) {
	f.Add([]byte("N\x00\x00\x00\x05\x00S\x00\x00\x00\x08a\x00b\x00A\x00\x00\x00\x0a\x00\x00\x00\x01a\x00b\x00"), byte(1))
	f.Add([]byte("E\x00\x00\x00\x16SFATAL\x00C57P01\x00Mx\x00\x00"), byte(0))
	f.Add([]byte("D\x00\x00\x00\x06\x00\x00"), byte(0))
	f.Fuzz(func(t *testing.T, in []byte, chunk byte) {
		s, client := relaySession(slices.Clone(in), int(chunk))
		s.watchUpstream()
		if s.settled() == nil {
			t.Fatal("the session outlives its upstream")
		}
		if got := client.out.Bytes(); !bytes.HasPrefix(in, got) {
			t.Fatalf("%q was passed on as %q", in, got)
		}
		if _, err := readAll(&frames{conn: &scriptedConn{in: client.out.Bytes()}}); err != io.EOF {
			t.Fatalf("the client got half a frame: %v", err)
		}
	})
}

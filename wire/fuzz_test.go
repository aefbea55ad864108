package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"pgproxy/policy"
	"pgproxy/upstream"
	"pgproxy/wire/exchange"
	"pgproxy/wire/frame"
	"pgproxy/wire/frame/frametest"
)

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
		conn := &frametest.Conn{In: slices.Clone(in), Chunk: int(chunk)}
		st, e := readStartup(t.Context(), conn, nil)
		if conn.Taken > packets(in) {
			t.Fatalf("read %d bytes of %d", conn.Taken, packets(in))
		}
		switch {
		case e == nil && st.cancel == nil && st.user == "":
			t.Fatal("a session without a user")
		case e == nil && conn.Taken != packets(in):
			t.Fatalf("a startup message after %d bytes of %d", conn.Taken, packets(in))
		case e == nil && st.cancel == nil:
			_, _ = parseOptions(st.options)
			st.wantsReplication()
		}
		if answers := conn.Out.Len(); answers > len(in)+200 {
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

// What is thrown away is not held.
func TestDiscardClient(t *testing.T) {
	conn := &frametest.Conn{In: make([]byte, 20_000), Chunk: 1000}
	s := newSession(&Server{Logger: slog.New(slog.DiscardHandler)}, conn)
	defer s.stop()
	s.clientConn.Reader = frame.Reader{Conn: conn}
	s.backend = idleBackend(s)
	if e := s.discardClient(1 << 30); e == nil || !errors.Is(e, frame.ErrMidMessage) {
		t.Error(e)
	}
	if n := s.clientConn.Buffered(); n > frame.MinBuffer {
		t.Errorf("%d bytes are held of what is thrown away", n)
	}
}

// idleBackend is a backend that nothing is sent to.
func idleBackend(s *session) *exchange.Backend {
	up := &upstream.Conn{Net: &frametest.Conn{}}
	return exchange.New(up, s, nil, policy.Rule{}, nil)
}

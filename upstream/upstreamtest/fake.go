package upstreamtest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
)

// Fake is a scripted PostgreSQL on loopback, for what a real one cannot be made
// to do. Its nth connection runs the nth script; one more is a test failure.
type Fake struct {
	tb      testing.TB
	ln      net.Listener
	scripts []Script
	wg      sync.WaitGroup // the accept loop and every connection

	mu     sync.Mutex
	conns  []net.Conn
	closed bool
}

// Script is what happens on one connection, which is closed at its end.
type Script []Step

// Step is one thing that the fake does, or expects of its peer.
type Step func(*FakeConn) error

// FakeConn is a connection of a [Fake], for steps of a test's own.
type FakeConn struct {
	net.Conn
	Backend *pgproto3.Backend
}

// StartFake listens on a free port of 127.0.0.1. The scripts' failures are the
// test's; at its end all connections are closed and waited for.
func StartFake(tb testing.TB, scripts ...Script) *Fake {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	f := &Fake{tb: tb, ln: ln, scripts: scripts}
	f.wg.Go(f.accept)
	tb.Cleanup(f.Close)
	return f
}

// Addr is where the fake listens.
func (f *Fake) Addr() string { return f.ln.Addr().String() }

// DSN is a connection string for the fake, without TLS.
func (f *Fake) DSN() string {
	return "postgres://app:secret@" + f.Addr() + "/app?sslmode=disable"
}

// Close stops listening, closes the connections and waits for their scripts.
func (f *Fake) Close() {
	f.ln.Close()
	f.mu.Lock()
	f.closed = true
	for _, conn := range f.conns {
		conn.Close()
	}
	f.mu.Unlock()
	f.wg.Wait()
}

func (f *Fake) accept() {
	for n := 0; ; n++ {
		conn, err := f.ln.Accept()
		if err != nil {
			return
		}
		switch {
		case !f.own(conn):
			conn.Close()
		case n >= len(f.scripts):
			f.tb.Errorf("fake server: connection %d, only %d are in the script", n+1, len(f.scripts))
			conn.Close()
		default:
			f.wg.Go(func() { f.run(conn, n) })
		}
	}
}

// own notes a connection for Close, unless that has run.
func (f *Fake) own(conn net.Conn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.conns = append(f.conns, conn)
	return !f.closed
}

// run plays one script. The test's end may cut it short, which is no failure.
func (f *Fake) run(conn net.Conn, n int) {
	defer conn.Close()
	c := &FakeConn{Conn: conn, Backend: pgproto3.NewBackend(conn, conn)}
	for i, step := range f.scripts[n] {
		if err := step(c); errors.Is(err, net.ErrClosed) {
			return
		} else if err != nil {
			f.tb.Errorf("fake server: connection %d, step %d: %v", n+1, i+1, err)
			return
		}
	}
}

// ExpectStartup reads a startup packet, whatever it says.
func ExpectStartup() Step {
	return func(c *FakeConn) error {
		msg, err := c.Backend.ReceiveStartupMessage()
		if err != nil {
			return err
		}
		if _, ok := msg.(*pgproto3.StartupMessage); !ok {
			return fmt.Errorf("got %T, want a startup message", msg)
		}
		return nil
	}
}

// ExpectCancel reads a cancel request for a session.
func ExpectCancel(pid uint32, key []byte) Step {
	return func(c *FakeConn) error {
		msg, err := c.Backend.ReceiveStartupMessage()
		if err != nil {
			return err
		}
		want := &pgproto3.CancelRequest{ProcessID: pid, SecretKey: key}
		if !reflect.DeepEqual(msg, want) {
			return fmt.Errorf("got %#v, want %#v", msg, want)
		}
		return nil
	}
}

// FakePID and FakeKey are the cancel key that [Login] hands out.
const FakePID uint32 = 4_000_000_000

var FakeKey = []byte{1, 2, 3, 4}

// Login accepts a startup message without asking for a password, up to and
// without ReadyForQuery.
func Login() Step {
	return func(c *FakeConn) error {
		if err := ExpectStartup()(c); err != nil {
			return err
		}
		return Send(
			&pgproto3.AuthenticationOk{},
			&pgproto3.ParameterStatus{Name: "server_version", Value: "18.4"},
			&pgproto3.ParameterStatus{Name: "client_encoding", Value: "UTF8"},
			&pgproto3.ParameterStatus{Name: "standard_conforming_strings", Value: "on"},
			&pgproto3.BackendKeyData{ProcessID: FakePID, SecretKey: FakeKey},
		)(c)
	}
}

// Ready sends ReadyForQuery with a transaction status.
func Ready(status byte) Step { return Send(&pgproto3.ReadyForQuery{TxStatus: status}) }

// Send sends messages in one write.
func Send(msgs ...pgproto3.BackendMessage) Step {
	return func(c *FakeConn) error {
		for _, msg := range msgs {
			c.Backend.Send(msg)
		}
		return c.Backend.Flush()
	}
}

// SendBytes sends bytes as they are, in one write.
func SendBytes(b []byte) Step {
	return func(c *FakeConn) error {
		_, err := c.Write(b)
		return err
	}
}

// Encode returns messages as they go over the wire, for [SendBytes].
func Encode(msgs ...pgproto3.BackendMessage) []byte {
	var b []byte
	for _, msg := range msgs {
		var err error
		if b, err = msg.Encode(b); err != nil {
			panic(err) // only a message too large for the protocol
		}
	}
	return b
}

// Expect reads one message and compares it.
func Expect(want pgproto3.FrontendMessage) Step {
	return func(c *FakeConn) error {
		got, err := c.Backend.Receive()
		if err != nil {
			return err
		}
		if !reflect.DeepEqual(got, want) {
			return fmt.Errorf("got %#v, want %#v", got, want)
		}
		return nil
	}
}

// ExpectBytes reads bytes as they are and compares them. It must not follow a
// step that reads messages, which may have read ahead.
func ExpectBytes(want []byte) Step {
	return func(c *FakeConn) error {
		got := make([]byte, len(want))
		if _, err := io.ReadFull(c, got); err != nil {
			return err
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("got %q, want %q", got, want)
		}
		return nil
	}
}

// ExpectEOF waits until the peer has closed, after a Terminate or without.
func ExpectEOF() Step {
	return func(c *FakeConn) error {
		for {
			msg, err := c.Backend.Receive()
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return nil
			}
			if err != nil {
				return err
			}
			if _, ok := msg.(*pgproto3.Terminate); !ok {
				return fmt.Errorf("got %#v, want the end of the connection", msg)
			}
		}
	}
}

// Stall does nothing until the peer closes or the test ends: a black hole.
func Stall() Step {
	return func(c *FakeConn) error {
		if _, err := io.Copy(io.Discard, c); errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil // the peer has closed, or reset
	}
}

// Wait waits until ch is closed: the test says when to go on.
func Wait(ch <-chan struct{}) Step {
	return func(*FakeConn) error {
		select {
		case <-ch:
			return nil
		case <-time.After(time.Minute):
			return errors.New("the test did not let the script go on within a minute")
		}
	}
}

// Do runs a function: the script says when it got here.
func Do(f func()) Step {
	return func(*FakeConn) error { f(); return nil }
}

// Reset closes the connection with a TCP reset.
func Reset() Step {
	return func(c *FakeConn) error {
		if err := c.Conn.(*net.TCPConn).SetLinger(0); err != nil {
			return err
		}
		return c.Close()
	}
}

package endtoend

import (
	"bytes"
	"io"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"pgproxy/node/nodetest"
	"pgproxy/wire/audit"
)

// Ctrl-C in a real psql.
func TestCtrlC(t *testing.T) {
	t.Parallel()
	p := start(t)
	cmd := psql(t, p, alice, "-c", "SELECT pg_sleep(60) AS ctrlc")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "psql's statement runs", func() bool {
		return len(postgres.Exec(t, "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE '%AS ctrlc'")) == 1
	})
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	cmd.Wait() // what it said tells
	if said := out.String(); !strings.Contains(said, "canceling statement due to user request") {
		t.Errorf("psql said\n%s", said)
	}
	r := p.record(t, "the cancel", func(r audit.Record) bool { return r.Event == audit.Cancel })
	if r.Verdict != "allow" || !r.Cancelled || r.User != "alice@example.com" || r.Session == "" {
		t.Errorf("recorded as %+v", r)
	}
}

// cancelFrom sends a session's cancel request from a device, and returns when
// the proxy has closed the connection without a word.
func (p *proxy) cancelFrom(t *testing.T, from *nodetest.Peer, s *session) {
	t.Helper()
	conn, err := from.Dial(t.Context(), p.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	b, err := (&pgproto3.CancelRequest{ProcessID: s.PID(), SecretKey: s.SecretKey()}).Encode(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(b); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); len(got) > 0 || err != nil {
		t.Errorf("a cancel request was answered with %q, %v", got, err)
	}
}

// Somebody who has got hold of a key can do nothing with it from another node,
// not even from another one of the same person's.
func TestCancelFromAnotherNode(t *testing.T) {
	t.Parallel()
	p := start(t)
	tablet := join(t, nodetest.Device{Name: "alice-tablet", Login: "alice@example.com"})
	s := p.connect(t, alice)
	running := s.begin(t, "SELECT pg_sleep(60)")
	for _, other := range []*nodetest.Peer{bob, tablet} {
		p.cancelFrom(t, other, s)
		r := p.record(t, "the refused cancel", func(r audit.Record) bool { return r.Event == audit.Cancel && r.Node == other.Name })
		if r.Verdict != "deny" || r.NodeID == "" || !strings.HasPrefix(r.Addr, other.Addr().String()) {
			t.Errorf("recorded as %+v", r)
		}
	}
	if got := s.backend(t); got != "PgSleep" {
		t.Fatalf("the statement waits for %q, want it to sleep on", got)
	}
	p.cancelFrom(t, alice, s)
	wantCode(t, "a cancel from the session's node", running.wait(t, soon), "57014")
	s.query(t, "SELECT 1")
}

// Whoever drains must not lock people in with a statement they want to stop.
func TestCancelWhileDraining(t *testing.T) {
	t.Parallel()
	p := start(t, "-drain-timeout", "10m")
	s := p.connect(t, alice)
	running := s.begin(t, "SELECT pg_sleep(600)")
	p.signal(t, syscall.SIGTERM)
	p.log.await(t, "draining")
	if _, err := p.tryConnect(t, bob); err == nil {
		t.Error("a new session while draining")
	}
	p.cancelFrom(t, alice, s)
	wantCode(t, "cancelled while draining", running.wait(t, soon), "57014")
	if e := s.ended(t, soon); e.Code != "57P01" {
		t.Errorf("the session ended with %v, want 57P01", e)
	}
	if state := p.awaitExit(t); state.ExitCode() != 0 {
		t.Errorf("pgproxy ended with %v", state)
	}
}

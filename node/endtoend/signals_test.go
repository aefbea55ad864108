package endtoend

import (
	"strings"
	"syscall"
	"testing"
	"time"
)

// serverNotices is how long the server may take to notice that the proxy is
// gone from behind a running statement: its client_connection_check_interval,
// 10 seconds, and a little.
const serverNotices = 15 * time.Second

// SIGTERM and SIGINT: who rests is told at once, who works may finish, and the
// exit is in order.
func TestDrain(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			p := start(t)
			drained := "drained_" + sig.String()
			table(t, drained, "n int", "VALUES (1)")
			idle, running, inTransaction := p.connect(t, alice), p.connect(t, bob), p.connect(t, alice)
			inTransaction.query(t, "BEGIN; UPDATE "+drained+" SET n = 2 WHERE true")
			statement := running.begin(t, "SELECT pg_sleep(2)")

			p.signal(t, sig)
			p.log.await(t, "draining")
			if e := idle.ended(t, soon); e.Code != "57P01" {
				t.Errorf("the idle session was told %v", e)
			}
			inTransaction.query(t, "UPDATE "+drained+" SET n = n + 1 WHERE true")
			inTransaction.query(t, "COMMIT")
			if e := inTransaction.ended(t, soon); e.Code != "57P01" {
				t.Errorf("after its COMMIT the session was told %v", e)
			}
			if err := statement.wait(t, patience); err != nil {
				t.Errorf("the running statement: %v", err)
			}
			if e := running.ended(t, soon); e.Code != "57P01" {
				t.Errorf("after its statement the session was told %v", e)
			}
			if state := p.awaitExit(t); state.ExitCode() != 0 {
				t.Errorf("pgproxy ended with %v", state)
			}
			if n := postgres.Exec(t, "SELECT n FROM "+drained)[0][0]; n != "3" {
				t.Errorf("the row is %s, want what was committed", n)
			}
			for _, s := range []*session{idle, running, inTransaction} {
				if r := p.disconnect(t, s); r.EndReason != "shutdown" || r.SQLState != "57P01" {
					t.Errorf("recorded as %+v", r)
				}
			}
		})
	}
}

// Those who have not finished in time are ended, and undone.
func TestDrainTimeout(t *testing.T) {
	t.Parallel()
	p := start(t, "-drain-timeout", "100ms")
	l := open(t, p, join(t, deviceOf("late")))
	p.signal(t, syscall.SIGTERM)
	began := time.Now()
	wantCode(t, "the running statement", l.statement.wait(t, soon), "57014")
	for _, s := range []*session{l.idle, l.running, l.inTransaction} {
		if e := s.ended(t, soon); e.Code != "57P01" {
			t.Errorf("told %v", e)
		}
	}
	if state := p.awaitExit(t); state.ExitCode() != 0 {
		t.Errorf("pgproxy ended with %v", state)
	}
	if took := time.Since(began); took > 2*soon {
		t.Errorf("it took %v", took)
	}
	if !strings.Contains(p.log.String(), "drain timeout has passed") {
		t.Error("the log does not tell")
	}
	if n := postgres.Exec(t, "SELECT n FROM "+l.table)[0][0]; n != "1" {
		t.Errorf("the row is %s: the transaction was committed", n)
	}
}

// A second signal waits for nobody, and still tells everybody, ends what runs on
// the server and records it.
func TestSecondSignal(t *testing.T) {
	t.Parallel()
	p := start(t, "-drain-timeout", "10m")
	l := open(t, p, join(t, deviceOf("impatient")))
	p.signal(t, syscall.SIGTERM)
	p.log.await(t, "draining")
	l.inTransaction.query(t, "SELECT 1")
	p.signal(t, syscall.SIGTERM)
	wantCode(t, "the running statement", l.statement.wait(t, soon), "57014")
	for _, s := range []*session{l.running, l.inTransaction} {
		if e := s.ended(t, soon); e.Code != "57P01" {
			t.Errorf("told %v", e)
		}
		s.gone(t, soon)
	}
	if state := p.awaitExit(t); state.ExitCode() != 0 {
		t.Errorf("pgproxy ended with %v", state)
	}
	for _, s := range []*session{l.running, l.inTransaction} {
		if r := p.disconnect(t, s); r.EndReason != "shutdown" || r.SQLState != "57P01" {
			t.Errorf("recorded as %+v", r)
		}
	}
	if n := postgres.Exec(t, "SELECT n FROM "+l.table)[0][0]; n != "1" {
		t.Errorf("the row is %s: the transaction was committed", n)
	}
}

// kill -9 in mid-statement: the server ends what nobody waits for, and nothing
// of the proxy is left.
func TestKilled(t *testing.T) {
	t.Parallel()
	p := start(t)
	l := open(t, p, join(t, deviceOf("killed")))
	p.kill()
	for _, s := range []*session{l.idle, l.running, l.inTransaction} {
		s.gone(t, serverNotices)
	}
	if n := postgres.Exec(t, "SELECT n FROM "+l.table)[0][0]; n != "1" {
		t.Errorf("the row is %s: the transaction was committed", n)
	}
}

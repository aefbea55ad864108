package upstream

import (
	"context"
	"testing"
	"time"

	"pgproxy/upstream/upstreamtest"
)

func cancel(tb testing.TB, conn *Conn) (Outcome, error) {
	ctx, stop := context.WithTimeout(tb.Context(), timeout)
	defer stop()
	return conn.Cancel(ctx)
}

// testCancelsSleep cancels a statement from another goroutine; the next
// statement must be left alone.
func testCancelsSleep(t *testing.T, conn *Conn) {
	t.Helper()
	type result struct {
		outcome Outcome
		err     error
	}
	done := make(chan result)
	go func() {
		// Cancelling is repeated until it takes: the first may come before the
		// statement has begun.
		for {
			outcome, err := cancel(t, conn)
			select {
			case done <- result{outcome, err}:
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
	if _, failed := query(t, conn, "SELECT pg_sleep(60)"); failed == nil || failed.Code != "57014" {
		t.Errorf("got %+v, want 57014", failed)
	}
	if r := <-done; r.outcome != Delivered {
		t.Errorf("the last cancel: %v, %v", r.outcome, r.err)
	}
	if _, failed := query(t, conn, "SELECT 1"); failed != nil {
		t.Errorf("the next statement: %+v", failed)
	}
}

func TestCancel(t *testing.T) {
	s := upstreamtest.Shared(t)
	t.Run("TCP", func(t *testing.T) { testCancelsSleep(t, mustDial(t, s.DSN("app", "app"), Request{})) })
	t.Run("Unix socket", func(t *testing.T) { testCancelsSleep(t, mustDial(t, s.SocketDSN("app", "app"), Request{})) })
}

func TestCancelOutcomes(t *testing.T) {
	login := upstreamtest.Script{upstreamtest.Login(), upstreamtest.Ready('I'), upstreamtest.ExpectEOF()}
	request := upstreamtest.ExpectCancel(upstreamtest.FakePID, upstreamtest.FakeKey)
	for _, tt := range []struct {
		name   string
		script upstreamtest.Script
		want   Outcome
	}{
		{"closed", upstreamtest.Script{request}, Delivered},
		{"black hole", upstreamtest.Script{request, upstreamtest.Stall()}, Unknown},
		{"reset", upstreamtest.Script{request, upstreamtest.Reset()}, Unknown},
		{"answered", upstreamtest.Script{request, upstreamtest.SendBytes([]byte("Ecould not fork new process for connection\n\x00"))}, Unknown},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conn := mustDial(t, upstreamtest.StartFake(t, login, tt.script).DSN(), Request{})
			ctx, stop := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer stop()
			if tt.want == Delivered {
				ctx = t.Context()
			}
			got, err := conn.Cancel(ctx)
			if got != tt.want || (err == nil) != (got == Delivered) {
				t.Errorf("got %v, %v; want %v", got, err, tt.want)
			}
		})
	}
}

func TestCancelOfDeadServer(t *testing.T) {
	fake := upstreamtest.StartFake(t, upstreamtest.Script{upstreamtest.Login(), upstreamtest.Ready('I')})
	conn := mustDial(t, fake.DSN(), Request{})
	fake.Close()
	if got, err := cancel(t, conn); got != NotDelivered || err == nil {
		t.Errorf("got %v, %v; want %v", got, err, NotDelivered)
	}
}

// When TLS cannot be had, the key does not travel at all.
func TestCancelNeverGoesInPlaintext(t *testing.T) {
	s := upstreamtest.Start(t, upstreamtest.TLS())
	conn := mustDial(t, s.DSN("app", "app"), Request{})
	fake := upstreamtest.StartFake(t, upstreamtest.Script{
		upstreamtest.ExpectBytes([]byte{0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f}),
		upstreamtest.SendBytes([]byte("N")),
		upstreamtest.ExpectEOF(),
	})
	conn.Addr = fake.Addr()
	if got, err := cancel(t, conn); got != NotDelivered || err == nil {
		t.Errorf("got %v, %v; want %v", got, err, NotDelivered)
	}
}

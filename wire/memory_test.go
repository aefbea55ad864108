package wire

import (
	"context"
	"strings"
	"testing"
	"time"

	"pgproxy/policy/fair"
	"pgproxy/wire/audit"
	"pgproxy/wire/frame"
)

// largeSelect is a statement that waits for memory.
var largeSelect = frame.AppendQuery(nil, "SELECT length('"+strings.Repeat("x", 2*largeStatement)+"')")

const largeAnswer = "D(131072) C(SELECT 1) Z(I)"

// oneEach lets two callers have a large statement each.
func oneEach(wait time.Duration) func(*Server) {
	return func(srv *Server) { srv.memory, srv.memoryWait = fair.New(2, 1), wait }
}

// awaitWaiting waits until a client's statement waits for something before it is
// sent.
func (p *proxy) awaitWaiting(t *testing.T, c *client) {
	t.Helper()
	s := p.sessionOf(t, c)
	p.await(t, "the session waits", func() bool {
		s.life.mu.Lock()
		defer s.life.mu.Unlock()
		return s.life.interrupt != nil
	})
}

// holdMemory has a client begin a large statement, so that it holds its caller's
// share until it sends the rest.
func (p *proxy) holdMemory(t *testing.T, c *client) (finish func()) {
	t.Helper()
	half := len(largeSelect) / 2
	c.send(largeSelect[:half])
	s := p.sessionOf(t, c)
	p.await(t, "the statement is being read", func() bool {
		s.life.mu.Lock()
		defer s.life.mu.Unlock()
		return s.life.seq > 0 && s.life.phase == idle
	})
	return func() {
		t.Helper()
		c.send(largeSelect[half:])
		if got := c.answer(); got != largeAnswer {
			t.Errorf("the one who held the memory got %s", got)
		}
	}
}

// TestMemoryIsShared: a caller's second large statement waits for the first, and
// in nobody else's way. The waiting ends with a cancel request, with the
// session, or when it has lasted too long, and the session goes on.
func TestMemoryIsShared(t *testing.T) {
	p := startProxy(t, oneEach(time.Minute))
	first := p.login(t)
	finish := p.holdMemory(t, first)

	second := p.login(t)
	second.send(largeSelect)
	second.send(frame.AppendQuery(nil, "SELECT 'sent ahead'"))
	p.awaitWaiting(t, second)

	other := p.loginFrom(t, "127.0.0.2")
	other.send(largeSelect)
	if got := other.answer(); got != largeAnswer {
		t.Errorf("another caller got %s", got)
	}
	small := p.login(t)
	small.want("SELECT 1", "D(1) C(SELECT 1) Z(I)")

	p.cancel(t, "127.0.0.1", second)
	if got := second.answer(); got != userCancel {
		t.Errorf("after a cancel request: %s", got)
	}
	if got := second.answer(); got != "D(sent ahead) C(SELECT 1) Z(I)" {
		t.Errorf("the next statement: %s", got)
	}
	second.want("BEGIN", "C(BEGIN) Z(T)")
	second.send(largeSelect)
	p.awaitWaiting(t, second)
	p.cancel(t, "127.0.0.1", second)
	if got := second.answer(); got != strings.Replace(userCancel, "Z(I)", "Z(E)", 1) {
		t.Errorf("in a transaction: %s", got)
	}

	third := p.login(t)
	third.send(largeSelect)
	p.awaitWaiting(t, third)
	if err := p.Kill(reaper(), p.infoOf(t, third).ID); err != nil {
		t.Error(err)
	}
	if got := third.ended(); !strings.Contains(got, "E(57P01") {
		t.Errorf("an ended session: %s", got)
	}

	finish()
	second.want("ROLLBACK", "C(ROLLBACK) Z(I)")
	second.send(largeSelect)
	if got := second.answer(); got != largeAnswer {
		t.Errorf("with memory to be had again: %s", got)
	}
	for _, caller := range []string{"x", "y"} {
		if _, err := p.memory.Acquire(t.Context(), caller, 1); err != nil {
			t.Errorf("not all of the memory has come back: %v", err)
		}
	}
	rec := p.records.await(t, "the cancelled statement", func(r audit.Record) bool { return r.Event == audit.Query && r.SQLState == codeQueryCanceled })
	if rec.Verdict != "deny" || rec.Rule != "canceled" || rec.SQL != "" {
		t.Errorf("recorded %+v", rec)
	}
}

// TestMemoryRunsOut: waiting too long ends in an error.
func TestMemoryRunsOut(t *testing.T) {
	p := startProxy(t, oneEach(50*time.Millisecond))
	first := p.login(t)
	finish := p.holdMemory(t, first)
	second := p.login(t)
	second.send(largeSelect)
	second.send(frame.AppendQuery(nil, "SELECT 'sent ahead'"))
	if got := second.answer(); !strings.HasPrefix(got, "E(53200 pgproxy: there was no memory for a statement of 131") || !strings.HasSuffix(got, " Z(I)") {
		t.Errorf("got %s", got)
	}
	if got := second.answer(); got != "D(sent ahead) C(SELECT 1) Z(I)" {
		t.Errorf("the next statement: %s", got)
	}
	rec := p.records.await(t, "the refusal", func(r audit.Record) bool { return r.Rule == "memory" })
	if rec.Verdict != "deny" || rec.SQLState != codeOutOfMemory || rec.Seq != 1 {
		t.Errorf("recorded %+v", rec)
	}
	finish()
}

// TestMemoryAndShutdown: a session that waits does not hold up the end.
func TestMemoryAndShutdown(t *testing.T) {
	p := startProxy(t, oneEach(time.Minute))
	first := p.login(t)
	p.holdMemory(t, first)
	second := p.login(t)
	second.send(largeSelect)
	p.awaitWaiting(t, second)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	began := time.Now()
	p.Shutdown(ctx)
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("the end took %v", took)
	}
}

// TestCancelWhileParsing: a text that keeps the parser busy is given up when its
// client cancels it.
func TestCancelWhileParsing(t *testing.T) {
	p := startProxy(t)
	c := p.login(t)
	c.send(frame.AppendQuery(nil, "SELECT "+strings.Repeat("1+", 30_000)+"1")) // not large: it only waits for the parser
	p.awaitWaiting(t, c)
	p.cancel(t, "127.0.0.1", c)
	if got := c.answer(); got != userCancel {
		t.Errorf("got %s", got)
	}
	c.want("SELECT 1", "D(1) C(SELECT 1) Z(I)")
}

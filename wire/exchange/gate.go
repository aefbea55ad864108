package exchange

import (
	"context"
	"sync"
	"time"

	"pgproxy/upstream"
)

// Deadlines of one cancel request, and of waiting for those under way.
const (
	CancelTimeout = 5 * time.Second
	gateTimeout   = 11 * time.Second // two cancels, one after the other
)

// gate makes sure that a cancel meant for one statement never hits a later
// one. PostgreSQL signals the backend before it closes the cancel connection,
// and forgets a signal that comes between statements; so a statement sent
// after every earlier cancel connection has seen its end is safe from them
// all. A statement therefore enters through the gate, which opens once no
// cancel is under way, and a cancel is sent only while its statement is in.
//
// A cancel whose end was not seen may strike at any time. It makes the gate
// unsafe, and the session must end.
//
// The zero value is ready. Safe for concurrent use.
type gate struct {
	mu      sync.Mutex
	inside  bool   // a statement is in
	number  uint64 // counts statements
	cancels int    // under way
	sent    bool   // a cancel was sent to the statement that is in
	unsafe  bool
	ended   chan struct{} // closed when cancels falls to 0; nil while it is
}

// enter waits until no cancel is under way and lets the next statement in. It
// returns the statement's number, which cancels name it by.
func (g *gate) enter() (uint64, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.restLocked(); err != nil {
		return 0, err
	}
	g.inside, g.sent = true, false
	g.number++
	return g.number, nil
}

// atRest runs f, which must not wait, once no cancel is under way, and none can
// begin.
func (g *gate) atRest(f func()) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.restLocked(); err != nil {
		return err
	}
	f()
	return nil
}

// restLocked waits until no cancel is under way.
func (g *gate) restLocked() error {
	for g.cancels > 0 {
		ended := g.ended
		g.mu.Unlock()
		t := time.NewTimer(gateTimeout)
		var late bool
		select {
		case <-ended:
		case <-t.C:
			late = true
		}
		t.Stop()
		g.mu.Lock()
		if late {
			return ErrGateSlow
		}
	}
	if g.unsafe {
		return ErrCancelFate
	}
	return nil
}

// leave says that the statement's ReadyForQuery has come.
func (g *gate) leave() {
	g.mu.Lock()
	g.inside = false
	g.mu.Unlock()
}

// running returns the number of the statement that is in, or 0.
func (g *gate) running() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.inside {
		return 0
	}
	return g.number
}

// sentTo reports whether a cancel was sent to the given statement.
func (g *gate) sentTo(number uint64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.sent && g.number == number
}

// cancel sends a cancel for the given statement, unless it has left or
// another cancel for it is still under way. sent says that a request went
// out; the call returns when its fate is known. up is called with the lock held.
func (g *gate) cancel(ctx context.Context, up func() canceler, number uint64) (sent bool, err error) {
	g.mu.Lock()
	if !g.inside || g.number != number || g.unsafe || g.cancels > 0 {
		g.mu.Unlock()
		return false, nil
	}
	g.cancels++
	before := g.sent
	g.sent = true
	g.ended = make(chan struct{})
	server := up()
	g.mu.Unlock()

	ctx, stop := context.WithTimeout(ctx, CancelTimeout)
	outcome, err := server.Cancel(ctx)
	stop()

	g.mu.Lock()
	defer g.mu.Unlock()
	g.cancels--
	switch outcome {
	case upstream.Unknown:
		g.unsafe = true
	case upstream.NotDelivered:
		g.sent = before
	}
	close(g.ended)
	g.ended = nil
	return outcome != upstream.NotDelivered, err
}

// canceler is the part of upstream.Conn that the gate needs.
type canceler interface {
	Cancel(ctx context.Context) (upstream.Outcome, error)
}

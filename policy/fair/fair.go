// Package fair shares a limited amount of something among callers, so that none
// of them can keep the others waiting for long.
package fair

import (
	"cmp"
	"context"
	"sync"
)

// Semaphore is an amount of which callers hold parts. Who waits for a part gets
// it in this order: first the caller who holds least, then the one who was
// served longest ago, then the one who came first. What one caller asks for is
// served in the order of asking. Nobody is overtaken because their part is
// large. It is safe for concurrent use.
type Semaphore struct {
	perCaller int64

	mu       sync.Mutex
	free     int64
	callers  map[string]*account // those who hold or wait
	arrivals uint64
	served   uint64
}

// account is what one caller holds and waits for.
type account struct {
	held    int64
	served  uint64 // when it was last given something; 0 = never
	waiting []*waiter
}

// waiter is one call of Acquire.
type waiter struct {
	n       int64
	arrived uint64
	given   chan struct{} // closed when n is the caller's
}

// New returns a Semaphore of an amount, of which one caller never holds more
// than perCaller. If perCaller is less than the whole, one caller cannot keep all
// others waiting.
func New(amount, perCaller int64) *Semaphore {
	return &Semaphore{free: amount, perCaller: perCaller, callers: make(map[string]*account)}
}

// Acquire waits until n of the amount is the caller's. The function that it
// returns gives it back, and must be called once. n is taken to be no more than
// one caller may hold. The error is ctx's; then nothing was given.
func (s *Semaphore) Acquire(ctx context.Context, caller string, n int64) (release func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	w := s.enter(caller, min(n, s.perCaller))
	select {
	case <-w.given:
	case <-ctx.Done():
		if s.leave(caller, w) {
			return nil, ctx.Err()
		}
		s.release(caller, w.n) // it was given in the last moment
		return nil, ctx.Err()
	}
	return func() { s.release(caller, w.n) }, nil
}

// enter puts a call into the queue, and serves it if it can be.
func (s *Semaphore) enter(caller string, n int64) *waiter {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.callers[caller]
	if a == nil {
		a = &account{}
		s.callers[caller] = a
	}
	s.arrivals++
	w := &waiter{n: n, arrived: s.arrivals, given: make(chan struct{})}
	a.waiting = append(a.waiting, w)
	s.serveLocked()
	return w
}

// leave takes a call out of the queue. It is false if the call was served.
func (s *Semaphore) leave(caller string, w *waiter) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.callers[caller]
	if a == nil {
		return false
	}
	for i, other := range a.waiting {
		if other == w {
			a.waiting = append(a.waiting[:i:i], a.waiting[i+1:]...)
			s.forgetLocked(caller, a)
			s.serveLocked() // it may have been in the way of others
			return true
		}
	}
	return false
}

func (s *Semaphore) release(caller string, n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.callers[caller]
	a.held -= n
	s.free += n
	s.forgetLocked(caller, a)
	s.serveLocked()
}

func (s *Semaphore) forgetLocked(caller string, a *account) {
	if a.held == 0 && len(a.waiting) == 0 {
		delete(s.callers, caller)
	}
}

// serveLocked serves calls in their order for as long as there is enough.
func (s *Semaphore) serveLocked() {
	for {
		a := s.nextLocked()
		if a == nil || a.waiting[0].n > s.free {
			return
		}
		w := a.waiting[0]
		a.waiting = a.waiting[1:]
		a.held += w.n
		s.free -= w.n
		s.served++
		a.served = s.served
		close(w.given)
	}
}

// nextLocked is the caller whose turn it is, nil if there is none. A caller who
// must first give back something of their own is skipped.
func (s *Semaphore) nextLocked() *account {
	var next *account
	for _, a := range s.callers {
		if len(a.waiting) == 0 || a.held+a.waiting[0].n > s.perCaller {
			continue
		}
		if next == nil || before(a, next) {
			next = a
		}
	}
	return next
}

func before(a, b *account) bool {
	return cmp.Or(cmp.Compare(a.held, b.held), cmp.Compare(a.served, b.served),
		cmp.Compare(a.waiting[0].arrived, b.waiting[0].arrived)) < 0
}

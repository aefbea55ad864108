package health

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// Probe is a check that costs something: it is run when somebody asks, no more
// often than once in an interval, and never by those who ask, so that one that
// hangs keeps nobody. Its result is kept. Safe for concurrent use.
type Probe struct {
	run      func(context.Context) error
	interval time.Duration
	wanted   chan struct{} // capacity 1: somebody has asked

	mu      sync.Mutex
	last    Result
	renewed chan struct{} // closed when last is replaced
}

// Result is what came of a probe.
type Result struct {
	Err error
	At  time.Time // zero before the first
}

// NewProbe makes a probe, which Watch has to keep running.
func NewProbe(interval time.Duration, run func(context.Context) error) *Probe {
	return &Probe{run: run, interval: interval, wanted: make(chan struct{}, 1), renewed: make(chan struct{})}
}

// Watch runs the probe when it is wanted, until ctx ends.
func (p *Probe) Watch(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.wanted:
		}
		if !p.stale() {
			continue
		}
		err := p.run(ctx)
		p.mu.Lock()
		p.last = Result{Err: err, At: time.Now()}
		close(p.renewed)
		p.renewed = make(chan struct{})
		p.mu.Unlock()
	}
}

func (p *Probe) stale() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Since(p.last.At) >= p.interval
}

// Last returns the last result at once, and has it renewed if it is old.
func (p *Probe) Last() Result {
	last, _ := p.ask()
	return last
}

// ask returns the last result and, if it is old, what is closed when there is
// a new one.
func (p *Probe) ask() (last Result, renewed <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.last.At) < p.interval {
		return p.last, nil
	}
	select {
	case p.wanted <- struct{}{}:
	default: // asked for already
	}
	return p.last, p.renewed
}

// Check is the probe as a condition of being ready. It waits for a result that
// is not old; one that does not come until ctx ends is a failure.
func (p *Probe) Check(name string) Check {
	return Check{Name: name, Run: func(ctx context.Context) error {
		last, renewed := p.ask()
		if renewed == nil {
			return last.Err
		}
		select {
		case <-renewed:
		case <-ctx.Done():
			return fmt.Errorf("no answer yet: %w", ctx.Err())
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.last.Err
	}}
}

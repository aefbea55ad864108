package fair

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// queue is calls of Acquire in the order of asking, each "caller amount", and
// tells the order in which they are served.
type queue struct {
	t        *testing.T
	s        *Semaphore
	mu       sync.Mutex
	order    []string
	releases map[string]func()
}

func newQueue(t *testing.T, amount, perCaller int64) *queue {
	return &queue{t: t, s: New(amount, perCaller), releases: map[string]func(){}}
}

// ask calls Acquire in a goroutine of its own and returns when it has been
// served or waits.
func (q *queue) ask(ctx context.Context, name string, n int64) {
	caller, _, _ := strings.Cut(name, "/")
	go func() {
		release, err := q.s.Acquire(ctx, caller, n)
		q.mu.Lock()
		defer q.mu.Unlock()
		if err != nil {
			q.order = append(q.order, name+" gave up")
			return
		}
		q.order = append(q.order, name)
		q.releases[name] = release
	}()
	synctest.Wait()
}

func (q *queue) release(name string) {
	q.mu.Lock()
	release := q.releases[name]
	q.mu.Unlock()
	release()
	synctest.Wait()
}

func (q *queue) want(order ...string) {
	q.t.Helper()
	q.mu.Lock()
	defer q.mu.Unlock()
	if !slices.Equal(q.order, order) {
		q.t.Errorf("served were %q, want %q", q.order, order)
	}
}

// TestOrder: the caller who holds least is next, and of those the one who was
// served longest ago.
func TestOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t, 2, 2)
		ctx := t.Context()
		for _, name := range []string{"a/1", "a/2", "a/3", "a/4", "b/1", "b/2", "c/1"} {
			q.ask(ctx, name, 1)
		}
		q.want("a/1", "a/2") // nobody else was there
		q.release("a/1")
		q.want("a/1", "a/2", "b/1")
		q.release("a/2") // now a holds nothing, but c was never served
		q.want("a/1", "a/2", "b/1", "c/1")
		q.release("c/1")
		q.want("a/1", "a/2", "b/1", "c/1", "a/3") // b holds one
		q.release("b/1")
		q.want("a/1", "a/2", "b/1", "c/1", "a/3", "b/2")
		q.release("a/3")
		q.release("b/2")
		q.want("a/1", "a/2", "b/1", "c/1", "a/3", "b/2", "a/4")
		q.release("a/4")
		if len(q.s.callers) != 0 || q.s.free != 2 {
			t.Errorf("left are %v, %d", q.s.callers, q.s.free)
		}
	})
}

// TestPerCaller: what one caller may not hold is there for the next at once, and
// does not wait behind the first one's queue.
func TestPerCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t, 2, 1)
		ctx := t.Context()
		q.ask(ctx, "a/1", 1)
		q.ask(ctx, "a/2", 1)
		q.ask(ctx, "b/1", 1)
		q.want("a/1", "b/1")
		q.release("b/1")
		q.want("a/1", "b/1")
		q.release("a/1")
		q.want("a/1", "b/1", "a/2")
		q.release("a/2")
		q.ask(ctx, "c/1", 100) // as much as one may hold
		q.want("a/1", "b/1", "a/2", "c/1")
		q.release("c/1")
		if q.s.free != 2 {
			t.Errorf("%d are free", q.s.free)
		}
	})
}

// TestLarge: nobody overtakes who waits for much.
func TestLarge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t, 10, 10)
		ctx := t.Context()
		q.ask(ctx, "a/1", 6)
		q.ask(ctx, "b/1", 10)
		q.ask(ctx, "c/1", 1)
		q.want("a/1")
		q.release("a/1")
		q.want("a/1", "b/1")
		q.release("b/1")
		q.want("a/1", "b/1", "c/1")
		q.release("c/1")
	})
}

// TestGivingUp: whoever stops waiting is in nobody's way.
func TestGivingUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t, 10, 10)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		q.ask(t.Context(), "a/1", 6)
		q.ask(ctx, "b/1", 8)
		q.ask(t.Context(), "c/1", 1)
		q.want("a/1")
		time.Sleep(2 * time.Second)
		synctest.Wait()
		q.mu.Lock()
		slices.Sort(q.order)
		q.mu.Unlock()
		q.want("a/1", "b/1 gave up", "c/1")
		q.release("a/1")
		q.release("c/1")
		if _, err := q.s.Acquire(ctx, "a", 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a context that has ended: %v", err)
		}
		if len(q.s.callers) != 0 || q.s.free != 10 {
			t.Errorf("left are %v, %d", q.s.callers, q.s.free)
		}
	})
}

// TestMany has many callers come, wait and give up at the same time: no more is
// given than there is, and all of it comes back.
func TestMany(t *testing.T) {
	const amount, perCaller = 20, 9
	s := New(amount, perCaller)
	var mu sync.Mutex
	held, all := map[string]int64{}, int64(0)
	account := func(caller string, n int64) {
		mu.Lock()
		defer mu.Unlock()
		held[caller] += n
		if all += n; all > amount || held[caller] > perCaller {
			t.Errorf("%d are given, %d of them to %s", all, held[caller], caller)
		}
	}
	var wg sync.WaitGroup
	for i := range 40 {
		caller := fmt.Sprint(i % 7)
		wg.Go(func() {
			for range 100 {
				n := rand.Int64N(perCaller) + 1
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.Int64N(int64(3*time.Millisecond))))
				release, err := s.Acquire(ctx, caller, n)
				cancel()
				if err != nil {
					continue
				}
				account(caller, n)
				time.Sleep(time.Duration(rand.Int64N(int64(time.Millisecond))))
				account(caller, -n)
				release()
			}
		})
	}
	wg.Wait()
	if s.free != amount || len(s.callers) != 0 {
		t.Errorf("left are %d, %v", s.free, s.callers)
	}
}

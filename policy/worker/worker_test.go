package worker

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestMain makes this binary its own child: one that answers in capitals and
// does as it is told.
func TestMain(m *testing.M) {
	if !Child() {
		os.Exit(m.Run())
	}
	if err := Serve(256<<20, obey); err != nil {
		os.Exit(1)
	}
}

func obey(request []byte) []byte {
	switch string(request) {
	case "crash":
		_ = syscall.Kill(os.Getpid(), syscall.SIGSEGV)
		time.Sleep(time.Hour)
	case "hang":
		time.Sleep(time.Hour)
	case "eat":
		for n := 1 << 20; ; n *= 2 {
			eaten = append(eaten, bytes.Repeat([]byte{1}, n))
		}
	case "pid":
		return []byte(strconv.Itoa(os.Getpid()))
	case "environment":
		return []byte(os.Getenv("PGPROXY_TEST_SECRET"))
	}
	return bytes.ToUpper(request)
}

var eaten [][]byte

// awaitBusy returns when a request has a place.
func awaitBusy(p *Pool) {
	for busy := false; !busy; time.Sleep(time.Millisecond) {
		p.mu.Lock()
		busy = p.busy > 0
		p.mu.Unlock()
	}
}

func newPool(t *testing.T) *Pool {
	p := New(2, 1<<20)
	t.Cleanup(p.Close)
	return p
}

func ask(t *testing.T, p *Pool, request string) string {
	t.Helper()
	answer, err := p.Do(t.Context(), "alice", request)
	if err != nil {
		t.Fatalf("%.20s: %v", request, err)
	}
	return string(answer)
}

func TestDo(t *testing.T) {
	p := newPool(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				if answer, err := p.Do(t.Context(), "alice", "abc"); err != nil || string(answer) != "ABC" {
					t.Errorf("%q, %v", answer, err)
				}
			}
		})
	}
	wg.Wait()
	if got := ask(t, p, ""); got != "" {
		t.Errorf("%q", got)
	}
	large := string(bytes.Repeat([]byte("x"), 5<<20))
	if got := ask(t, p, large); len(got) != len(large) || got[0] != 'X' {
		t.Error("a large request is answered wrongly")
	}
}

// TestDeath lets children die: the request fails, the next is answered.
func TestDeath(t *testing.T) {
	p := newPool(t)
	for _, request := range []string{"crash", "eat", "crash", "crash"} {
		if answer, err := p.Do(t.Context(), "alice", request); err == nil {
			t.Errorf("%s: %q", request, answer)
		}
		if got := ask(t, p, "abc"); got != "ABC" {
			t.Errorf("%q", got)
		}
	}
}

// TestContext ends the waiting for an answer and, with every place taken, for
// a place.
func TestContext(t *testing.T) {
	p := newPool(t)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			if _, err := p.Do(ctx, "alice", "hang"); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := ask(t, p, "abc"); got != "ABC" {
		t.Errorf("%q", got)
	}
}

// TestFair: one caller's requests that never end leave a place for the others,
// and those others their turn.
func TestFair(t *testing.T) {
	p := newPool(t)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			if _, err := p.Do(ctx, "mallory", "hang"); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
	awaitBusy(p)
	for range 20 {
		if got := ask(t, p, "abc"); got != "ABC" {
			t.Errorf("%q", got)
		}
	}
	cancel()
	wg.Wait()
}

// TestWarm: a large request, whose process is ended afterwards, leaves the one
// that runs to small ones.
func TestWarm(t *testing.T) {
	p := newPool(t)
	pid := ask(t, p, "pid")
	large := string(bytes.Repeat([]byte("x"), 2<<20))
	for range 3 {
		if got := ask(t, p, large); len(got) != len(large) {
			t.Fatalf("%d bytes", len(got))
		}
		if got := ask(t, p, "pid"); got != pid {
			t.Errorf("a small request found process %s, not %s", got, pid)
		}
	}
}

// TestIdleDeath kills a child between two requests: the next one is answered
// all the same. A signal for the whole service leaves the child alone.
func TestIdleDeath(t *testing.T) {
	p := New(1, 1<<20)
	defer p.Close()
	pid, err := strconv.Atoi(ask(t, p, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} {
		if err := syscall.Kill(pid, signal); err != nil {
			t.Fatal(err)
		}
	}
	if got := ask(t, p, "pid"); got != strconv.Itoa(pid) {
		t.Error("the child ended by a signal for the service")
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, p, "abc"); got != "ABC" {
		t.Errorf("%q", got)
	}
}

func TestNoEnvironment(t *testing.T) {
	t.Setenv("PGPROXY_TEST_SECRET", "secret")
	if got := ask(t, newPool(t), "environment"); got != "" {
		t.Errorf("the child sees %q", got)
	}
}

func TestClosed(t *testing.T) {
	p := New(1, 0)
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	wg.Go(func() { p.Do(ctx, "alice", "hang") })
	awaitBusy(p)
	wg.Go(func() {
		defer cancel()
		if _, err := p.Do(t.Context(), "bob", ""); !errors.Is(err, ErrClosed) {
			t.Errorf("waiting when the pool is closed: %v", err)
		}
	})
	p.Close()
	wg.Wait()
	if _, err := p.Do(t.Context(), "alice", ""); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

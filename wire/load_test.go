package wire

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgproxy/wire/audit"
	"pgproxy/wire/frame"
)

// attacks are what one caller can do to keep the others waiting, by sessions that
// send one statement after the other.
var attacks = map[string]func(i int) string{
	"refused texts": func(int) string { return "DROP TABLE t; SELECT '" + strings.Repeat("\x01", 4<<20) + "'" },
	"junk":          func(int) string { return strings.Repeat("\x01", 4<<20) },
	"hard to mask":  func(int) string { return "DROP TABLE t; SELECT '" + strings.Repeat("pass", 1<<20) + "'" },
	"long to parse": func(i int) string { return fmt.Sprintf("SELECT %s%d", strings.Repeat("1,", 80_000), i) },
	"large PREPARE": func(i int) string {
		return "PREPARE p AS WITH " + strings.Repeat("a AS (SELECT 1), ", 3000) + fmt.Sprintf("b AS (SELECT %d) SELECT 1", i)
	},
}

// deniedAttacks are those whose statements are refused.
var deniedAttacks = map[string]bool{"refused texts": true, "junk": true, "hard to mask": true}

// attackers is how many sessions attack at once.
const attackers = 4

// attack has alice's sessions send a kind of text until stop is called, which
// tells how many were answered.
func (p *proxy) attack(t *testing.T, text func(i int) string) (stop func() int64) {
	var wg sync.WaitGroup
	var answered atomic.Int64
	var clients []*client
	for i := range attackers {
		c := p.login(t)
		clients = append(clients, c)
		wg.Go(func() {
			for n := 0; ; n++ {
				if !c.tryQuery(text(attackers*n + i)) {
					return
				}
				answered.Add(1)
			}
		})
	}
	return func() int64 {
		n := answered.Load()
		for _, c := range clients {
			c.conn.Close()
		}
		wg.Wait()
		return n
	}
}

// tryQuery sends a statement and takes its answer. It is false when the
// connection has ended.
func (c *client) tryQuery(sql string) bool {
	c.conn.SetDeadline(time.Now().Add(2 * time.Minute))
	if _, err := c.conn.Write(frame.AppendQuery(nil, sql)); err != nil {
		return false
	}
	for {
		f, err := c.tryNext()
		if err != nil {
			return false
		}
		if f.typ == 'Z' {
			return true
		}
	}
}

// ordinary are statements of other people: one that is parsed at once, one that
// needs a parser process, one that needs its share of the memory too.
var ordinary = map[string]func(i int) string{
	"small":  func(i int) string { return fmt.Sprintf("SELECT %d", i) },
	"longer": func(i int) string { return fmt.Sprintf("SELECT length('%s%d')", strings.Repeat("x", 5<<10), i) },
	"large": func(i int) string {
		return fmt.Sprintf("SELECT length('%s%d')", strings.Repeat("x", 2*largeStatement), i)
	},
}

// samples is how often each of the others' statements is run.
const samples = 25

// most runs a statement again and again, and returns how long all but the
// slowest one take.
func (c *client) most(sql func(i int) string) time.Duration {
	c.t.Helper()
	var took []time.Duration
	for i := range samples {
		began := time.Now()
		if got := c.query(sql(i)); !strings.HasSuffix(got, " C(SELECT 1) Z(I)") {
			c.t.Errorf("got %s", got)
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	return took[samples-2]
}

// TestOneCallerCannotStopOthers has one caller attack. The others' statements
// take less than one statement of the attacker's takes when nobody disturbs it,
// measured in the same run: they wait for none of those. Neither memory nor the
// log grows with what the attacker sends.
func TestOneCallerCannotStopOthers(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	path := filepath.Join(t.TempDir(), "audit.log")
	w, err := audit.Open(path, audit.Options{})
	if err != nil {
		t.Fatal(err)
	}
	p := startProxy(t, func(srv *Server) { srv.Audit = w })
	t.Cleanup(func() { w.Close() })
	peak := watchHeap(t)
	bob := p.loginFrom(t, "127.0.0.2")
	bob.conn.SetDeadline(time.Now().Add(5 * time.Minute))

	alone := p.login(t)
	var unit time.Duration // the attacker's longest statement, undisturbed
	for _, name := range []string{"refused texts", "long to parse"} {
		began := time.Now()
		if !alone.tryQuery(attacks[name](1 << 20)) {
			t.Fatalf("%s: no answer", name)
		}
		unit = max(unit, time.Since(began))
	}
	for _, name := range slices.Sorted(maps.Keys(attacks)) {
		before, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		stop := p.attack(t, attacks[name])
		for _, kind := range slices.Sorted(maps.Keys(ordinary)) {
			took := bob.most(ordinary[kind])
			t.Logf("%s: %s statements of others take %v; one of the attacker's %v", name, kind, took, unit)
			if took > unit {
				t.Errorf("%s: %s statements of others take %v, one of the attacker's %v", name, kind, took, unit)
			}
		}
		answered := stop()
		after, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		const bobs = samples * (1<<10 + 6<<10 + 3*largeStatement)
		if grown := after.Size() - before.Size() - bobs; deniedAttacks[name] && grown > (answered+2*attackers)*8*deniedSQL {
			t.Errorf("%s: the log has grown by %d bytes for %d statements", name, grown, answered)
		}
	}
	bob.conn.Close()
	alone.conn.Close()
	p.await(t, "the end of what the attacks have left", func() bool { return len(p.live()) == 0 })
	if got := peak(); got > 2*statementMemory {
		t.Errorf("the heap grew by %d MiB", got>>20)
	} else {
		t.Logf("the heap grew by %d MiB", got>>20)
	}
	if report, err := audit.Verify(path); err != nil || report.Break != nil {
		t.Errorf("the log: %v, %v", report.Break, err)
	}
}

// watchHeap looks at the heap until the test asks by how much it has grown.
func watchHeap(t *testing.T) (peak func() uint64) {
	runtime.GC()
	before := heap()
	var most atomic.Uint64
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				most.Store(max(most.Load(), heap()))
			}
		}
	})
	stop := sync.OnceFunc(func() { close(done); wg.Wait() })
	t.Cleanup(stop)
	return func() uint64 {
		stop()
		return max(most.Load(), before) - before
	}
}

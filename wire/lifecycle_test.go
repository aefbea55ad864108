package wire

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgproxy/policy"
)

// TestClocks has a lifecycle stand in each phase for two minutes, looks at it as
// the server does, and requires what is to be done, and when.
func TestClocks(t *testing.T) {
	lim := limits{idle: time.Minute, rule: &policy.Rule{IdleInTransactionTimeout: 30 * time.Second}}
	draining := lim
	draining.draining = true
	for _, tt := range []struct {
		name string
		lim  limits
		into func(*lifecycle)
		want string
	}{
		{"idle", lim, func(l *lifecycle) { l.enter(idle, 'I') },
			"300ms watch upstream; 1m0.1s wake: idle timeout"},
		{"idle without a limit", limits{rule: lim.rule}, func(l *lifecycle) { l.enter(idle, 'I') },
			"300ms watch upstream"},
		{"idle in a transaction", lim, func(l *lifecycle) { l.enter(idle, 'T') },
			"300ms watch upstream; 32.1s wake: idle in transaction"},
		{"idle in a failed transaction", lim, func(l *lifecycle) { l.enter(idle, 'E') },
			"300ms watch upstream; 32.1s wake: idle in transaction"},
		{"draining", draining, func(l *lifecycle) { l.enter(idle, 'I') },
			"100ms wake: shutdown"},
		{"draining, in a transaction", draining, func(l *lifecycle) { l.enter(idle, 'T') },
			"300ms watch upstream; 32.1s wake: idle in transaction"},
		{"processing", lim, func(l *lifecycle) { l.enter(processing, 'I') }, ""},
		{"running without a limit", lim, func(l *lifecycle) { l.enter(running, 'I') },
			"300ms watch client"},
		{"running", lim, func(l *lifecycle) { l.setClock(30 * time.Second); l.enter(running, 'I') },
			"300ms watch client; 32.1s cancel; 34.2s cancel; 36.3s cancel; 38.4s cancel; 40.5s cancel; 42.2s terminate"},
		{"a query of the proxy's own", lim, func(l *lifecycle) { l.setClock(10 * time.Second); l.enter(internal, 'I') },
			"300ms watch client; 12.1s cancel; 14.2s cancel; 16.3s cancel; 18.4s cancel; 20.5s cancel; 22.2s terminate"},
		{"running, and to be ended", lim, func(l *lifecycle) {
			l.enter(running, 'I')
			l.settle(shutdownError(), false)
		}, "0s cancel: shutdown; 100ms cancel; 300ms watch client; 2.2s cancel; 3.1s terminate"},
		{"running, and its client gone", lim, func(l *lifecycle) {
			l.enter(running, 'I')
			l.settle(silent(reasonClientLost, nil), true)
		}, "0s cancel: client lost; 100ms cancel; 2.2s cancel; 4.3s cancel; 6.4s cancel; 8.5s cancel; 10.1s terminate"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var got []string
				began := time.Now()
				l := lifecycle{busyCount: new(atomic.Int32)}
				l.act = func(do todo) {
					what := []string{time.Since(began).String()}
					for name, is := range map[string]bool{"wake": do.wake, "cancel": do.cancel, "terminate": do.terminate,
						"watch client": do.watch != nil && do.watch.client, "watch upstream": do.watch != nil && !do.watch.client} {
						if is {
							what = append(what, name)
						}
					}
					text := strings.Join(what, " ")
					if l.end != nil && !slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, ": ") }) {
						text += fmt.Sprintf(": %s", l.end.reason)
					}
					got = append(got, text)
				}
				tt.into(&l)
				for !l.aborted && time.Since(began) < 2*time.Minute {
					time.Sleep(tickInterval)
					l.tick(time.Now(), tt.lim)
				}
				if list := strings.Join(got, "; "); list != tt.want {
					t.Errorf("got  %s\nwant %s", list, tt.want)
				}
			})
		})
	}
}

package node_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"pgproxy/node"
	"pgproxy/node/nodetest"
	"pgproxy/policy"
)

// watched is a node whose Watch runs.
type watched struct {
	tn   *nodetest.Test
	n    *node.Node
	ln   net.Listener
	log  *logged
	news chan struct{}
}

func watch(t *testing.T) *watched {
	t.Helper()
	return watchWith(t, func(*node.Node) {})
}

// watchWith is watch, of a node that setup has seen first.
func watchWith(t *testing.T, setup func(*node.Node)) *watched {
	t.Helper()
	w := &watched{tn: nodetest.New(t), log: new(logged), news: make(chan struct{}, 1)}
	w.n = start(t, config(w.tn, w.log))
	setup(w.n)
	ln, err := w.n.Listen(5432)
	if err != nil {
		t.Fatal(err)
	}
	w.ln = ln
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.n.Watch(ctx, func() {
			select {
			case w.news <- struct{}{}:
			default:
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		ln.Close()
	})
	select {
	case <-w.news: // Watch is listening
	case <-time.After(patience):
		t.Fatal("no first call")
	}
	return w
}

// settled returns when nothing has been told for a while, so that what is told
// next comes from what the test does next.
func (w *watched) settled(t *testing.T) {
	t.Helper()
	for {
		select {
		case <-w.news:
		case <-time.After(soon / 2):
			return
		}
	}
}

// within fails the test unless Watch tells of a change after which remote is
// as ok wants, before the time is up.
func (w *watched) within(t *testing.T, limit time.Duration, remote net.Addr, ok func(policy.Caller, error) bool) {
	t.Helper()
	late := time.After(limit)
	for {
		select {
		case <-w.news:
			if ok(w.n.WhoIs(t.Context(), remote, 5432)) {
				return
			}
		case <-late:
			c, err := w.n.WhoIs(t.Context(), remote, 5432)
			t.Fatalf("not told within %v; WhoIs says %+v, %v", limit, c, err)
		}
	}
}

func nobody(_ policy.Caller, err error) bool { return errors.Is(err, node.ErrNobody) }

func TestWatchGrants(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	t.Parallel()
	w := watch(t)
	_, conn := connect(t, w.tn.Person("alice@example.com", "alice-laptop"), w.ln, "pgproxy-prod:5432")
	remote := conn.RemoteAddr()
	granted := func(values ...string) func(policy.Caller, error) bool {
		return func(c policy.Caller, err error) bool {
			if err != nil || !c.Granted || len(c.Grants) != len(values) {
				return false
			}
			for i, v := range values {
				if string(c.Grants[i]) != v {
					return false
				}
			}
			return true
		}
	}

	w.settled(t)
	w.tn.Grant("alice@example.com", capability, `{"access":"admin"}`)
	w.within(t, soon, remote, granted(`{"access":"admin"}`))
	w.settled(t)
	w.tn.Grant("alice@example.com", capability, `{"access":"read"}`)
	w.within(t, soon, remote, granted(`{"access":"read"}`))
	w.settled(t)
	w.tn.Grant("*", capability, `{"max_rows":1}`)
	w.within(t, soon, remote, granted(`{"access":"read"}`, `{"max_rows":1}`))
	w.settled(t)
	w.tn.Revoke("alice@example.com", capability)
	w.tn.Revoke("*", capability)
	w.within(t, soon, remote, func(c policy.Caller, err error) bool { return err == nil && !c.Granted })
}

// Network access that is taken away: the packet filter lets live connections
// be, so asking again has to tell.
func TestWatchNetworkAccess(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	t.Parallel()
	w := watch(t)
	alice := w.tn.Person("alice@example.com", "alice-laptop")
	_, conn := connect(t, alice, w.ln, "pgproxy-prod:5432")
	cutOff := func(c policy.Caller, err error) bool {
		r, ok := errors.AsType[*policy.Refusal](err)
		return ok && c.Login == "alice@example.com" && strings.Contains(r.Message, "does not let alice-laptop reach port 5432")
	}
	there := func(_ policy.Caller, err error) bool { return err == nil }
	for _, ports := range [][]uint16{nil, {80}} {
		w.settled(t)
		w.tn.Restrict("alice@example.com", ports...)
		w.within(t, soon, conn.RemoteAddr(), cutOff)
		if _, err := w.n.WhoIs(t.Context(), conn.RemoteAddr(), 80); (err == nil) != (len(ports) == 1) {
			t.Errorf("with ports %v, port 80: %v", ports, err)
		}
		w.settled(t)
		w.tn.Restrict("alice@example.com", 5432, 80)
		w.within(t, soon, conn.RemoteAddr(), there)
	}
	// Somebody else's access is no business of alice's.
	w.settled(t)
	w.tn.Restrict("bob@example.com")
	w.within(t, soon, conn.RemoteAddr(), there)
}

func TestWatchRemovedPeer(t *testing.T) {
	t.Parallel()
	w := watch(t)
	alice := w.tn.Person("alice@example.com", "alice-laptop")
	_, conn := connect(t, alice, w.ln, "pgproxy-prod:5432")
	w.settled(t)
	if err := w.tn.Remove(alice.Name); err != nil {
		t.Fatal(err)
	}
	w.within(t, soon, conn.RemoteAddr(), nobody)
}

func TestWatchExpiredPeer(t *testing.T) {
	t.Parallel()
	w := watch(t)
	alice := w.tn.Person("alice@example.com", "alice-laptop")
	_, conn := connect(t, alice, w.ln, "pgproxy-prod:5432")
	w.settled(t)
	if err := w.tn.Expire(alice.Name); err != nil {
		t.Fatal(err)
	}
	w.within(t, soon, conn.RemoteAddr(), nobody)
	w.settled(t)
	if err := w.tn.Extend(alice.Name); err != nil {
		t.Fatal(err)
	}
	w.within(t, soon, conn.RemoteAddr(), func(c policy.Caller, err error) bool {
		return err == nil && c.Login == "alice@example.com"
	})
}

// A key that runs out by itself: nobody sends anything when it does.
func TestWatchKeyRunsOut(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	t.Parallel()
	w := watch(t)
	alice := w.tn.Person("alice@example.com", "alice-laptop")
	_, conn := connect(t, alice, w.ln, "pgproxy-prod:5432")
	w.settled(t)
	end := time.Now().Add(2 * time.Second)
	if err := w.tn.ExpireAt(alice.Name, end); err != nil {
		t.Fatal(err)
	}
	// Told of the new time, a session asks again; that is what has the end
	// noted.
	w.within(t, soon, conn.RemoteAddr(), func(_ policy.Caller, err error) bool { return err == nil })
	w.within(t, time.Until(end)+soon, conn.RemoteAddr(), nobody)
	if early := time.Until(end); early > 0 {
		t.Errorf("alice is nobody %v too early", early)
	}
}

func TestWatchRetag(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	t.Parallel()
	w := watch(t)
	alice := w.tn.Person("alice@example.com", "alice-laptop")
	_, conn := connect(t, alice, w.ln, "pgproxy-prod:5432")
	for _, tags := range [][]string{{"tag:ci"}, {"tag:ci", "tag:prod"}, nil} {
		w.settled(t)
		if err := w.tn.Retag(alice.Name, tags...); err != nil {
			t.Fatal(err)
		}
		w.within(t, soon, conn.RemoteAddr(), func(c policy.Caller, err error) bool {
			if len(tags) == 0 {
				return err == nil && !c.Tagged() && c.Who() == "alice@example.com"
			}
			return err == nil && c.Login == "" && c.Who() == strings.Join(tags, ",")
		})
	}
}

// The node's own key expires: nobody can reach it, and it says so.
func TestWatchOwnKeyExpires(t *testing.T) {
	t.Parallel()
	w := watch(t)
	_, conn := connect(t, w.tn.Person("alice@example.com", "alice-laptop"), w.ln, "pgproxy-prod:5432")
	if err := w.tn.Expire("pgproxy-prod"); err != nil {
		t.Fatal(err)
	}
	w.eventually(t, func() bool { return w.n.Ready() != nil })
	// Sessions go on when the key is extended, so nobody loses access.
	if c, err := w.n.WhoIs(t.Context(), conn.RemoteAddr(), 5432); err != nil || c.Login != "alice@example.com" {
		t.Errorf("WhoIs says %+v, %v; want alice", c, err)
	}
	if err := w.n.Ready(); !strings.Contains(err.Error(), "NeedsLogin") {
		t.Errorf("Ready says %v, want NeedsLogin", err)
	}
	if err := w.tn.Extend("pgproxy-prod"); err != nil {
		t.Fatal(err)
	}
	w.eventually(t, func() bool { return w.n.Ready() == nil })
	w.eventually(t, func() bool { return strings.Contains(w.log.String(), "the node is back in the tailnet") })
	if n := strings.Count(w.log.String(), "the node is out of the tailnet"); n != 1 {
		t.Errorf("said %d times that the node is out, want once:\n%s", n, w.log)
	}
}

// eventually waits until Watch has told of something after which ok holds.
func (w *watched) eventually(t *testing.T, ok func() bool) {
	t.Helper()
	late := time.After(patience)
	for !ok() {
		select {
		case <-w.news:
		case <-time.After(lookAgain):
		case <-late:
			t.Fatalf("has not happened in %v; log:\n%s", patience, w.log)
		}
	}
}

// lookAgain is for what nothing tells of: the log, and the node's state.
const lookAgain = 20 * time.Millisecond

// With the coordination server out of reach, what was last known goes on.
func TestWatchControlAway(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	t.Parallel()
	w := watchWith(t, func(n *node.Node) { n.SetControlGrace(100 * time.Millisecond) })
	alice := w.tn.Person("alice@example.com", "alice-laptop")
	_, conn := connect(t, alice, w.ln, "pgproxy-prod:5432")

	w.tn.CutControl()
	w.eventually(t, func() bool { return strings.Contains(w.log.String(), "coordination server is out of reach") })
	if w.n.Control() == nil || w.n.Relay() != nil {
		t.Errorf("Control: %v, Relay: %v", w.n.Control(), w.n.Relay())
	}
	if err := w.n.Ready(); err != nil {
		t.Errorf("Ready: %v", err)
	}
	if c, err := w.n.WhoIs(t.Context(), conn.RemoteAddr(), 5432); err != nil || c.Login != "alice@example.com" {
		t.Errorf("WhoIs says %+v, %v; want alice", c, err)
	}
	connect(t, alice, w.ln, "pgproxy-prod:5432")

	// What changes meanwhile is known as soon as the server is back.
	w.tn.Grant("alice@example.com", capability, `{"access":"read"}`)
	w.tn.RestoreControl()
	w.eventually(t, func() bool {
		return strings.Contains(w.log.String(), "coordination server is back") && w.n.Control() == nil
	})
	w.eventually(t, func() bool {
		c, err := w.n.WhoIs(t.Context(), conn.RemoteAddr(), 5432)
		return err == nil && c.Granted
	})
	if n := strings.Count(w.log.String(), "coordination server is out of reach"); n != 1 {
		t.Errorf("said %d times that the server is away, want once:\n%s", n, w.log)
	}
}

// Without its relay the node cannot be reached by some: that is told once, and
// when it is over.
func TestWatchRelayLost(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	t.Parallel()
	w := watch(t)
	w.tn.CutRelay()
	w.eventually(t, func() bool {
		return strings.Contains(w.log.String(), "the home relay (DERP) is lost") && w.n.Relay() != nil
	})
	if err := w.n.Ready(); err != nil {
		t.Errorf("Ready: %v", err)
	}
	w.tn.RestoreRelay()
	w.eventually(t, func() bool {
		return strings.Contains(w.log.String(), "the home relay (DERP) is back") && w.n.Relay() == nil
	})
	if n := strings.Count(w.log.String(), "the home relay (DERP) is lost"); n != 1 {
		t.Errorf("said %d times that the relay is lost, want once:\n%s", n, w.log)
	}
}

package endtoend

import (
	"strings"
	"testing"
	"time"

	"pgproxy/node/nodetest"
)

// quickKeepalive has pgproxy miss a silent peer after some three seconds in
// place of two minutes, in the same number of steps.
var quickKeepalive = []string{"TS_NETSTACK_KEEPALIVE_IDLE=1s", "TS_NETSTACK_KEEPALIVE_INTERVAL=300ms"}

// A laptop that crashes closes nothing. Its sessions, and what they hold, are
// given up all the same; until then its owner is told what is in the way.
func TestSilentPeers(t *testing.T) {
	t.Parallel()
	table(t, "silent", "id int PRIMARY KEY, n int", "VALUES (1, 1)")
	laptop := join(t, nodetest.Device{Name: "crashed-laptop", Login: "crash@example.com"})
	phone := join(t, nodetest.Device{Name: "spare-phone", Login: "crash@example.com"})
	p := startAs(t, tailnet, "pgproxy-silent", quickKeepalive, "-max-sessions-per-user", "2",
		"-policy", policyFile(t, `{"default": {"idle_in_transaction_session_timeout": "10m"}}`))
	holder, listener := p.connect(t, laptop), p.connect(t, laptop)
	holder.query(t, "BEGIN; UPDATE silent SET n = 2 WHERE id = 1")
	listener.query(t, "LISTEN silent")

	if err := tailnet.Silence(laptop); err != nil {
		t.Fatal(err)
	}
	postgres.Exec(t, "NOTIFY silent") // what is on its way is given up, too
	_, err := p.tryConnect(t, phone)
	e := wantCode(t, "a third session", err, "53300")
	for _, s := range []*session{holder, listener} {
		if !strings.Contains(e.Detail, s.id+" on crashed-laptop since ") {
			t.Errorf("detail %q does not name %s", e.Detail, s.id)
		}
	}
	if !strings.Contains(e.Detail, "idle in transaction for ") || !strings.Contains(e.Hint, "end one at http://pgproxy-silent."+nodetest.Domain+"/") {
		t.Errorf("detail %q, hint %q", e.Detail, e.Hint)
	}

	for _, s := range []*session{holder, listener} {
		s.gone(t, 15*time.Second)
		if r := p.disconnect(t, s); r.EndReason != "client lost" {
			t.Errorf("%s ended with %q", s.id, r.EndReason)
		}
	}
	p.connect(t, phone).query(t, "BEGIN; SELECT FROM silent WHERE id = 1 FOR UPDATE NOWAIT; ROLLBACK")
}

// A laptop that sleeps for less goes on, in its transaction.
func TestSleepingPeer(t *testing.T) {
	t.Parallel()
	laptop := join(t, nodetest.Device{Name: "sleepy-laptop", Login: "sleepy@example.com"})
	p := startAs(t, tailnet, "pgproxy-sleepy", quickKeepalive)
	s := p.connect(t, laptop)
	s.query(t, "BEGIN; CREATE TEMPORARY TABLE slept AS SELECT 1")
	if err := tailnet.Silence(laptop); err != nil {
		t.Fatal(err)
	}
	slept := s.send(t, "SELECT count(*) FROM slept")
	select {
	case <-slept.done:
		t.Fatalf("the laptop is not asleep: %v", slept.err)
	case <-time.After(1500 * time.Millisecond): // after 2.7 s the proxy would give it up
	}
	if err := tailnet.Wake(laptop); err != nil {
		t.Fatal(err)
	}
	if err := slept.wait(t, patience); err != nil {
		t.Errorf("the transaction does not go on: %v", err)
	}
}

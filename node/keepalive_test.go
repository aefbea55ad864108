package node

import (
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// A peer that has gone silent is missed within two minutes, and one that sleeps
// for one is not, whether it owes an answer to a probe or to data.
func TestKeepaliveWindow(t *testing.T) {
	const asleep, dead = time.Minute, 2 * time.Minute
	probes := tcp.DefaultKeepaliveCount * keepaliveInterval
	if probes <= asleep || keepaliveIdle+probes >= dead {
		t.Errorf("probes give a peer up after %v to %v", probes, keepaliveIdle+probes)
	}
	for _, rto := range []time.Duration{tcp.MinRTO, time.Second, 3 * time.Second} { // by the round trip
		var resent time.Duration
		for range tcp.MaxRetries {
			resent += rto
			rto = min(2*rto, keepaliveInterval)
		}
		if resent <= asleep || resent >= dead {
			t.Errorf("data gives a peer up after %v", resent)
		}
	}
}

package node

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"tailscale.com/envknob"
	"tailscale.com/wgengine/netstack"
)

// A peer that crashed, sleeps or has lost its network sends no FIN and no
// reset. By netstack's defaults its connections would live for two hours more,
// with all that their sessions hold.
//
// So a connection that is silent for keepaliveIdle is probed every
// keepaliveInterval, and lost when netstack's number of probes went
// unanswered: within 112 seconds, and not before 72, so that a laptop asleep
// for a minute goes on. Data on its way is sent again at least as often, and
// given up after a similar time.
const (
	keepaliveIdle     = 40 * time.Second
	keepaliveInterval = 8 * time.Second
)

// The knobs by which tsnet sets keepalive. It has no option for a listener or a
// connection.
const (
	idleKnob     = "TS_NETSTACK_KEEPALIVE_IDLE"
	intervalKnob = "TS_NETSTACK_KEEPALIVE_INTERVAL"
)

// setKeepalive sets the knobs of the process, once and for good, but for those
// that the operator has set.
var setKeepalive = sync.OnceFunc(func() {
	for knob, d := range map[string]time.Duration{idleKnob: keepaliveIdle, intervalKnob: keepaliveInterval} {
		if os.Getenv(knob) == "" {
			envknob.Setenv(knob, d.String())
		}
	}
})

// noticeDeadPeers has the node's connections end when their peer has gone
// silent. It must be called before the first one is accepted.
func (n *Node) noticeDeadPeers() error {
	setKeepalive()
	stack, ok := n.srv.Sys().Netstack.Get().(*netstack.Impl)
	if !ok {
		return errors.New("keepalive: this is not the network stack it was")
	}
	resend := tcpip.TCPMaxRTOOption(keepaliveInterval)
	if d, err := time.ParseDuration(os.Getenv(intervalKnob)); err == nil && d > 0 {
		resend = tcpip.TCPMaxRTOOption(d)
	}
	if err := stack.SetTransportProtocolOption(tcp.ProtocolNumber, &resend); err != nil {
		return fmt.Errorf("keepalive: %v", err)
	}
	return nil
}

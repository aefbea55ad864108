package node

import (
	"cmp"
	"context"
	"time"

	"tailscale.com/health"
	"tailscale.com/ipn"
)

// rewatchDelay keeps a broken bus from being asked in a tight loop.
const rewatchDelay = 500 * time.Millisecond

// busNews is what we want of one or more messages of the IPN bus.
type busNews struct {
	state    ipn.State     // NoState means unchanged
	loginURL string        // empty means unchanged
	refusal  string        // an error that the coordination server sent, without keys
	health   *health.State // nil means unchanged
	whoIs    bool          // what WhoIs answers may have changed
}

func (b busNews) empty() bool { return b == busNews{} }

// after merges news with older news that nobody has taken.
func (b busNews) after(older busNews) busNews {
	return busNews{
		state:    cmp.Or(b.state, older.state),
		loginURL: cmp.Or(b.loginURL, older.loginURL),
		refusal:  cmp.Or(b.refusal, older.refusal),
		health:   cmp.Or(b.health, older.health),
		whoIs:    b.whoIs || older.whoIs,
	}
}

// followBus sends news of the IPN bus until ctx is done, and watches anew when
// the bus breaks, which it does for a watcher that falls behind. It is news's
// only sender; news that was not yet taken is merged with later news, so
// followBus never waits for its reader. news must have room for one.
func (n *Node) followBus(ctx context.Context, news chan busNews) {
	send := func(got busNews) {
		select {
		case waiting := <-news:
			got = got.after(waiting)
		default:
		}
		news <- got
	}
	for ctx.Err() == nil {
		if err := n.readBus(ctx, send); ctx.Err() == nil {
			n.log.Debug("watching the tailnet anew", "err", n.mask.err(err))
		}
		select {
		case <-ctx.Done():
		case <-time.After(rewatchDelay):
		}
	}
}

// readBus watches the IPN bus once, until it breaks or ctx is done.
func (n *Node) readBus(ctx context.Context, send func(busNews)) error {
	// With patches asked for, what cannot change a WhoIs answer (a peer
	// online or off, its endpoints, its relay) comes as a patch and is
	// passed over; without, it would come as a whole changed peer.
	const mask = ipn.NotifyInitialState | ipn.NotifyInitialHealthState | ipn.NotifyPeerChanges | ipn.NotifyPeerPatches
	bus, err := n.lc.WatchIPNBus(ctx, mask)
	if err != nil {
		return err
	}
	defer bus.Close()
	for {
		msg, err := bus.Next()
		if err != nil {
			return err
		}
		if got := n.newsOf(msg); !got.empty() {
			send(got)
		}
	}
}

func (n *Node) newsOf(msg ipn.Notify) busNews {
	got := busNews{
		health: msg.Health,
		whoIs: msg.State != nil || msg.BrowseToURL != nil || msg.SelfChange != nil ||
			len(msg.PeersChanged) > 0 || len(msg.PeersRemoved) > 0 || len(msg.UserProfiles) > 0,
	}
	if msg.State != nil {
		got.state = *msg.State
	}
	if msg.BrowseToURL != nil {
		got.loginURL = *msg.BrowseToURL
	}
	if msg.ErrMessage != nil {
		got.refusal = n.mask.text(*msg.ErrMessage)
	}
	return got
}

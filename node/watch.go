package node

import (
	"context"
	"sync"
	"time"

	"tailscale.com/ipn"
	"tailscale.com/wgengine/filter"
)

const (
	// lookEvery is how often Watch looks at what the bus does not tell: a
	// pointer, a time and a flag, all in memory.
	lookEvery = 250 * time.Millisecond
	// rewatchDelay keeps a broken bus from being asked in a tight loop.
	rewatchDelay = 500 * time.Millisecond
)

// Watch calls changed whenever something has happened that could change what
// WhoIs answers: a peer has come, gone, expired or been retagged, a user been
// renamed, a grant been edited, or the node's own state is another. Several
// changes at once may be one call, and there may be calls without a change;
// the first comes as soon as Watch listens, since whatever happened before
// was missed.
//
// Watch also logs, once each, that the node has lost the tailnet or is back,
// and that the coordination server is out of reach: then WhoIs goes on
// answering with what was last known.
//
// It returns when ctx is done. changed runs on Watch's own goroutine, one call
// at a time.
func (n *Node) Watch(ctx context.Context, changed func()) {
	news := make(chan busNews, 1)
	var wg sync.WaitGroup
	wg.Go(func() { n.followBus(ctx, news) })
	defer wg.Wait()

	look := time.NewTicker(lookEvery)
	defer look.Stop()
	w := watch{n: n, state: ipn.Running, filter: n.filter()}
	for {
		select {
		case <-ctx.Done():
			return
		case got := <-news:
			w.noteState(got)
			changed()
		case now := <-look.C:
			w.noteControl(now)
			// Both are asked each time, so that each takes its note.
			expired, regranted := n.takeExpired(now), w.regranted()
			if expired || regranted {
				changed()
			}
		}
	}
}

// watch is what Watch has last seen and said.
type watch struct {
	n      *Node
	state  ipn.State
	filter *filter.Filter

	// awaySince is when the coordination server was first seen out of
	// reach, zero while it is there; awayTold says that it was logged.
	awaySince time.Time
	awayTold  bool
}

// regranted reports whether the packet filter, which carries the grants, is
// another than last time. The bus is silent about a new filter: LocalBackend's
// UpdatePacketFilter installs it and notifies nobody.
func (w *watch) regranted() bool {
	now := w.n.filter()
	was := w.filter
	w.filter = now
	return now != was
}

// filter returns the packet filter in force. Each new one is a new pointer.
func (n *Node) filter() *filter.Filter { return n.srv.Sys().Engine.Get().GetFilter() }

// noteState logs a change of the node's own state.
func (w *watch) noteState(got busNews) {
	if got.loginURL != "" {
		w.n.log.Info("to let this node into the tailnet again, open the login URL", "url", got.loginURL)
	}
	if got.state == ipn.NoState || got.state == w.state {
		return
	}
	w.state = got.state
	switch got.state {
	case ipn.Running:
		w.n.log.Info("the node is back in the tailnet")
	case ipn.NeedsLogin:
		w.n.log.Error("the node is out of the tailnet: its key has expired or was revoked, and somebody has to log it in again")
	default:
		w.n.log.Warn("the node is not running", "state", got.state.String())
	}
}

// noteControl logs that the coordination server has been out of reach for a
// while, and that it is back.
func (w *watch) noteControl(now time.Time) {
	if w.state != ipn.Running {
		return // noteState has said it
	}
	if w.n.srv.Sys().HealthTracker.Get().GetInPollNetMap() {
		if w.awayTold {
			w.n.log.Info("coordination server is back", "away", now.Sub(w.awaySince).Round(time.Second))
		}
		w.awaySince, w.awayTold = time.Time{}, false
		return
	}
	if w.awaySince.IsZero() {
		w.awaySince = now
	}
	if !w.awayTold && now.Sub(w.awaySince) >= w.n.controlGrace {
		w.awayTold = true
		w.n.log.Warn("coordination server is out of reach: sessions go on with what was last known of the tailnet")
	}
}

// busNews is what Watch wants of one or more messages of the IPN bus.
type busNews struct {
	state    ipn.State // NoState means unchanged
	loginURL string
}

// followBus sends news of the IPN bus until ctx is done, and watches anew when
// the bus breaks, which it does for a watcher that falls behind. It is news's
// only sender; news that was not yet taken is merged with later news, so
// followBus never waits for its reader. news must have room for one.
func (n *Node) followBus(ctx context.Context, news chan busNews) {
	send := func(got busNews) {
		select {
		case waiting := <-news:
			if got.state == ipn.NoState {
				got.state = waiting.state
			}
			if got.loginURL == "" {
				got.loginURL = waiting.loginURL
			}
		default:
		}
		news <- got
	}
	for ctx.Err() == nil {
		if err := n.readBus(ctx, send); ctx.Err() == nil {
			n.log.Debug("watching the tailnet anew", "err", err)
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
	const mask = ipn.NotifyInitialState | ipn.NotifyPeerChanges | ipn.NotifyPeerPatches
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
		var got busNews
		if msg.State != nil {
			got.state = *msg.State
		}
		if msg.BrowseToURL != nil {
			got.loginURL = *msg.BrowseToURL
		}
		if msg.State != nil || msg.BrowseToURL != nil || msg.SelfChange != nil ||
			len(msg.PeersChanged) > 0 || len(msg.PeersRemoved) > 0 || len(msg.UserProfiles) > 0 {
			send(got)
		}
	}
}

package node

import (
	"context"
	"sync"
	"time"

	"tailscale.com/health"
	"tailscale.com/ipn"
	"tailscale.com/tsconst"
	"tailscale.com/wgengine/filter"
)

// lookEvery is how often Watch looks at what the bus does not tell: a pointer,
// a time and a flag, all in memory.
const lookEvery = 250 * time.Millisecond

// Watch calls changed whenever something has happened that could change what
// WhoIs answers: a peer has come, gone, expired or been retagged, a user been
// renamed, a grant or network access been edited, or the node's own state is
// another. Several
// changes at once may be one call, and there may be calls without a change;
// the first comes as soon as Watch listens, since whatever happened before
// was missed.
//
// Watch also logs, once each, that the node has lost the tailnet, the
// coordination server or its relay, and that it has them back. Without the
// coordination server WhoIs goes on answering with what was last known.
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
			w.noteRelay(got.health)
			if got.whoIs {
				changed()
			}
		case now := <-look.C:
			w.noteControl(now)
			// Both are asked each time, so that each takes its note.
			expired, refiltered := n.takeExpired(now), w.refiltered()
			if expired || refiltered {
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

	relayLost bool
}

// refiltered reports whether the packet filter, which says who may reach which
// port and carries the grants, is another than last time. The bus is silent
// about a new filter: LocalBackend's UpdatePacketFilter installs it and
// notifies nobody.
func (w *watch) refiltered() bool {
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
		w.n.away.Store(false)
		return
	}
	if w.awaySince.IsZero() {
		w.awaySince = now
	}
	if !w.awayTold && now.Sub(w.awaySince) >= w.n.controlGrace {
		w.awayTold = true
		w.n.away.Store(true)
		w.n.log.Warn(errAway.Error())
	}
}

// relayWarnings are what tsnet finds wrong with the node's home relay (DERP).
// Each has lasted for ten seconds or more when it is told.
var relayWarnings = []health.WarnableCode{
	tsconst.HealthWarnableNoDERPHome,
	tsconst.HealthWarnableNoDERPConnection,
	tsconst.HealthWarnableDERPTimedOut,
}

// noteRelay logs that the node has lost its home relay, and that it is back.
// Devices that have no direct path to the node cannot reach it meanwhile.
func (w *watch) noteRelay(now *health.State) {
	if now == nil {
		return
	}
	lost := ""
	for _, code := range relayWarnings {
		if warning, ok := now.Warnings[code]; ok {
			lost = warning.Text
		}
	}
	switch {
	case lost != "" && !w.relayLost:
		w.n.log.Warn(errRelayLost.Error(), "detail", w.n.mask.text(lost))
	case lost == "" && w.relayLost:
		w.n.log.Info("the home relay (DERP) is back")
	}
	w.relayLost = lost != ""
	w.n.relayLost.Store(w.relayLost)
}

package nodetest

import (
	"context"
	"sync"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/tstest/integration/testcontrol"
)

// keepAlive is well below the two minutes of silence after which a node gives
// its stream up.
const keepAlive = 45 * time.Second

// stream is a node's long poll: what is still to be sent on it, in order.
type stream struct {
	m    *member
	wake chan struct{} // has room for one; full while queue is not empty

	mu    sync.Mutex
	queue []*tailcfg.MapResponse
}

func newStream(m *member) *stream {
	return &stream{m: m, wake: make(chan struct{}, 1)}
}

// push queues msg. It never waits for the node.
func (s *stream) push(msg *tailcfg.MapResponse) {
	s.mu.Lock()
	s.queue = append(s.queue, msg)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *stream) take() []*tailcfg.MapResponse {
	s.mu.Lock()
	defer s.mu.Unlock()
	msgs := s.queue
	s.queue = nil
	return msgs
}

// run sends what is queued, and sign of life where nothing is, until ctx is
// done or the node is gone.
func (s *stream) run(ctx context.Context, w testcontrol.MapStreamWriter) {
	idle := time.NewTimer(keepAlive)
	defer idle.Stop()
	for {
		msgs := []*tailcfg.MapResponse{{KeepAlive: true}}
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
			msgs = s.take()
		case <-idle.C:
		}
		for _, msg := range msgs {
			if err := w.SendMapMessage(msg); err != nil {
				return
			}
		}
		idle.Reset(keepAlive)
	}
}

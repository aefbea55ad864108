package wire

import (
	"context"
	"crypto/subtle"
	"sync"
	"time"

	"pgproxy/policy"
)

// cancelKey is what a CancelRequest names its session by. It is that of the
// session's first upstream connection, handed on to the client unchanged.
type cancelKey struct {
	pid uint32
	key string
}

// cancelKeys finds sessions by the keys they handed out. Several upstreams
// may give the same pid, so the key counts too. Safe for concurrent use.
type cancelKeys struct {
	mu       sync.Mutex
	sessions map[uint32][]*session // by pid
}

func (k *cancelKeys) add(s *session) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.sessions == nil {
		k.sessions = make(map[uint32][]*session)
	}
	k.sessions[s.key.pid] = append(k.sessions[s.key.pid], s)
}

func (k *cancelKeys) remove(s *session) {
	k.mu.Lock()
	defer k.mu.Unlock()
	list := k.sessions[s.key.pid]
	for i, other := range list {
		if other == s {
			list = append(list[:i:i], list[i+1:]...)
			break
		}
	}
	if len(list) == 0 {
		delete(k.sessions, s.key.pid)
	} else {
		k.sessions[s.key.pid] = list
	}
}

func (k *cancelKeys) find(key *cancelKey) *session {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, s := range k.sessions[key.pid] {
		if subtle.ConstantTimeCompare([]byte(s.key.key), []byte(key.key)) == 1 {
			return s
		}
	}
	return nil
}

// cancelRequest serves a CancelRequest. Whatever comes of it the client gets
// no byte; its connection stays open until the upstream has taken the cancel,
// so that a client that waits for the end knows what it always knew. Only the
// node that holds the session may cancel its statements, which leaves nothing
// to guess for the holder of a stolen key.
func (srv *Server) cancelRequest(ctx context.Context, caller policy.Caller, key *cancelKey) {
	target := srv.keys.find(key)
	if target == nil || !sameNode(caller, target.caller) {
		srv.cancelDropped(caller, nil)
		return
	}
	target.cancelStatement(ctx, 0, "")
}

// A cancel request that reaches nobody is counted, and recorded: the first few
// of a caller by themselves, and the others of a minute in one record.
const (
	// droppedAlone is how many dropped cancel requests of one caller are
	// recorded by themselves, in droppedPeriod.
	droppedAlone  = 5
	droppedPeriod = time.Minute
	// maxDropped bounds the callers that are told apart.
	maxDropped = 1000
)

// droppedCancels counts the cancel requests that reach nobody, by caller. Safe
// for concurrent use.
type droppedCancels struct {
	mu      sync.Mutex
	since   time.Time
	callers map[string]*droppedCaller // by device
}

type droppedCaller struct {
	policy.Caller // of the last one
	count         int64
}

// add counts one, and reports whether it is recorded by itself.
func (d *droppedCancels) add(caller policy.Caller) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	key := caller.Who() + " " + caller.NodeID
	c := d.callers[key]
	if c == nil {
		if len(d.callers) >= maxDropped {
			key = ""
			c = d.callers[key]
		}
		if c == nil {
			if d.callers == nil {
				d.callers, d.since = make(map[string]*droppedCaller), time.Now()
			}
			c = &droppedCaller{}
			d.callers[key] = c
		}
	}
	c.Caller = caller
	c.count++
	return c.count <= droppedAlone
}

// take returns the callers of a period that has ended.
func (d *droppedCancels) take(now time.Time) map[string]*droppedCaller {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.callers == nil || now.Sub(d.since) < droppedPeriod {
		return nil
	}
	callers := d.callers
	d.callers = nil
	return callers
}

// What becomes of a cancel request, as the metric has it.
const (
	cancelIdle      = "idle"     // nothing was running
	cancelTooLate   = "too late" // the statement that was meant was not running
	cancelUnsent    = "before it was sent"
	cancelSent      = "sent"
	cancelCoalesced = "coalesced" // with one that was under way
	cancelFailed    = "failed"
	cancelDropped   = "dropped" // nobody's
	cancelRefused   = "refused" // somebody's who may not
)

// cancelStatement cancels what the session is running, if anything, and waits
// for the cancel's fate. A seq other than 0 says that it must be the statement
// of that number; by is who wants it, "" for the session's own client. It is
// recorded either way.
func (s *session) cancelStatement(ctx context.Context, seq int64, by string) error {
	switch found, at, number := s.life.cancel(seq, by); found {
	case findsAnother:
		s.cancelled(by, at, cancelTooLate, false, nil)
	case findsNothing:
		s.cancelled(by, 0, cancelIdle, false, nil)
	case findsUnsent:
		s.cancelled(by, at, cancelUnsent, true, nil)
		return nil
	case findsRunning:
		sent, err := s.backend.Cancel(ctx, number)
		switch {
		case err != nil:
			s.cancelled(by, at, cancelFailed, sent, err)
			return ErrUndelivered
		case sent:
			s.cancelled(by, at, cancelSent, true, nil)
		default:
			s.cancelled(by, at, cancelCoalesced, false, nil)
		}
		return nil
	}
	return ErrNotRunning
}

// fireCancel cancels the given message on the proxy's own account: a cap,
// a timeout, a lost client, an end. It does not wait.
func (s *session) fireCancel(number uint64) {
	s.tasks.Go(func() {
		if _, err := s.backend.Cancel(context.WithoutCancel(s.ctx), number); err != nil {
			s.log.Warn("cancelling a statement", "err", err)
		}
	})
}

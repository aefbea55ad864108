package wire

import (
	"context"
	"crypto/subtle"
	"fmt"
	"sync"
	"time"

	"pgproxy/policy"
	"pgproxy/wire/audit"
)

// cancelKey is what a CancelRequest names its session by. It is the
// upstream's own, handed on to the client unchanged.
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
	k.sessions[s.up.PID] = append(k.sessions[s.up.PID], s)
}

func (k *cancelKeys) remove(s *session) {
	k.mu.Lock()
	defer k.mu.Unlock()
	list := k.sessions[s.up.PID]
	for i, other := range list {
		if other == s {
			list = append(list[:i:i], list[i+1:]...)
			break
		}
	}
	if len(list) == 0 {
		delete(k.sessions, s.up.PID)
	} else {
		k.sessions[s.up.PID] = list
	}
}

func (k *cancelKeys) find(key *cancelKey) *session {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, s := range k.sessions[key.pid] {
		if subtle.ConstantTimeCompare(s.up.Key, []byte(key.key)) == 1 {
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
		srv.dropCancel(caller, nil)
		return
	}
	target.cancelStatement(ctx, 0, "")
}

// dropCancel counts a cancel request that reaches nobody, and records it: the
// first few of a caller by themselves, and the others of a minute in one record.
// err is why its sender is not known, if that is why.
func (srv *Server) dropCancel(caller policy.Caller, err error) {
	srv.metrics.cancel("dropped")
	if !srv.dropped.add(caller) {
		return
	}
	srv.Logger.Info("cancel request dropped", "user", caller.Who(), "node", caller.Node, "addr", caller.Addr, errAttr(err))
	srv.record(droppedRecord(caller))
}

func droppedRecord(caller policy.Caller) *audit.Record {
	return &audit.Record{Time: time.Now(), Event: audit.Cancel, Verdict: "deny",
		User: caller.Who(), Node: caller.Node, NodeID: caller.NodeID, Tags: caller.Tags, Addr: caller.Addr}
}

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

// recordDropped records the cancel requests of a period that were not recorded
// by themselves.
func (srv *Server) recordDropped(now time.Time) {
	for _, c := range srv.dropped.take(now) {
		if more := c.count - droppedAlone; more > 0 {
			rec := droppedRecord(c.Caller)
			rec.Error = fmt.Sprintf("%d more cancel requests reached nobody within %v", more, droppedPeriod)
			srv.record(rec)
			srv.Logger.Info("cancel requests dropped", "more", more, "user", c.Who(), "node", c.Node)
		}
	}
}

// sameNode goes by the node's id: its name may change while it is connected.
func sameNode(a, b policy.Caller) bool {
	return a.NodeID == b.NodeID && a.Who() == b.Who()
}

// cancelStatement cancels what the session is running, if anything, and waits
// for the cancel's fate. A seq other than 0 says that it must be the statement
// of that number; by is who wants it, "" for the session's own client. It is
// recorded either way.
func (s *session) cancelStatement(ctx context.Context, seq int64, by string) error {
	rec := s.newRecord(audit.Cancel)
	rec.EndReason = "user request"
	if by != "" {
		rec.EndReason = "statement cancelled by " + by
	}
	defer func() { s.srv.record(rec) }()

	s.mu.Lock()
	rec.Seq = s.seq
	var number uint64 // 0 where nothing of the client's is upstream
	if s.phase == running {
		number = s.backend.Running()
	}
	if seq != 0 && seq != s.seq {
		s.mu.Unlock()
		rec.Seq, rec.Verdict = seq, "allow"
		s.srv.metrics.cancel("too late")
		return ErrNotRunning
	}
	if s.unsent && (s.phase == deciding || s.phase == assisting) {
		s.cancelled, s.cancelledBy = true, by // the statement will not be sent
		s.interruptLocked()
		s.mu.Unlock()
		rec.Cancelled, rec.Verdict = true, "allow"
		s.srv.metrics.cancel("before it was sent")
		return nil
	}
	if number != 0 {
		// Between two parts of a message nothing runs that the server could
		// cancel: no more of it is sent.
		s.cancelled, s.cancelledBy = true, by
	}
	s.mu.Unlock()
	rec.Verdict = "allow"
	if number == 0 {
		rec.Seq = 0
		s.srv.metrics.cancel("idle")
		return ErrNotRunning
	}
	sent, err := s.backend.Cancel(ctx, number)
	rec.Cancelled = sent
	switch {
	case err != nil:
		rec.Error = ErrUndelivered.Error()
		s.log.Warn("cancel request", "err", err)
		s.srv.metrics.cancel("failed")
		return ErrUndelivered
	case sent:
		s.srv.metrics.cancel("sent")
	default:
		s.srv.metrics.cancel("coalesced")
	}
	return nil
}

// fireCancel cancels the given statement on the proxy's own account: a cap,
// a timeout, a lost client, an end. It does not wait.
func (s *session) fireCancel(number uint64) {
	s.tasks.Go(func() {
		if _, err := s.backend.Cancel(context.WithoutCancel(s.ctx), number); err != nil {
			s.log.Warn("cancelling a statement", "err", err)
		}
	})
}

// escalateAfter is how long a statement may ignore being cancelled. A cancel
// may be swallowed (an exception handler in PL/pgSQL), so it is repeated on
// the way.
const (
	cancelAgain   = 2 * time.Second
	escalateAfter = 10 * time.Second
)

package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"strings"
	"time"

	"pgproxy/policy"
	"pgproxy/wire/exchange"
	"pgproxy/wire/frame"
)

// Periods of a session's life that no flag sets.
const (
	// watchAfter is how long the session's goroutine waits on one side before
	// somebody watches the other.
	watchAfter = 200 * time.Millisecond
	// timeoutGrace is how much later than the server the proxy's own clock
	// ends a statement.
	timeoutGrace = 2 * time.Second
	// writeProgress is how long a client may leave a write waiting.
	writeProgress = 60 * time.Second
	// endGrace is how long a statement has to react when its session is to
	// end, before the upstream connection is given up.
	endGrace = 3 * time.Second
	// recheckTimeout is how long it may take to ask who one caller is.
	recheckTimeout = 2 * time.Second
)

// past is a deadline that has gone by: setting it wakes a blocked read.
var past = time.Unix(1, 0)

// reasons that only the beginning and end of a session give.
const (
	reasonRefused reason = "refused"
	reasonLimit   reason = "session limit"
)

// watch is a goroutine that reads the side that the session's goroutine is not
// waiting on: the upstream while the session rests, for notices that come by
// themselves; the client while a statement runs, for its end. Most waits are
// too short to need one, and it costs nothing until one is long.
type watch struct {
	conn net.Conn
	done chan struct{}
}

// startWatchLocked begins a watch that reads conn by running f.
func (s *session) startWatchLocked(conn net.Conn, f func()) {
	w := &watch{conn: conn, done: make(chan struct{})}
	s.watch = w
	s.tasks.Go(func() {
		defer close(w.done)
		defer func() {
			if defect := s.recovered(recover()); defect != nil {
				s.end(defect)
			}
		}()
		f()
	})
}

// enter moves the session's goroutine to another phase. When a watch was on it
// is ended first, so that the side it read belongs to the goroutine again.
func (s *session) enter(p phase) {
	s.mu.Lock()
	status := s.backend.Status()
	if status == 'I' {
		s.txSince = time.Time{}
	} else if s.shownStatus == 'I' {
		s.txSince = s.since // it is the statement that has just ended that began it
	}
	s.phase, s.since, s.shownStatus = p, time.Now(), status
	if p == running {
		s.unsent = false
	}
	if p == deciding {
		s.setBusyLocked(true)
	}
	w := s.watch
	s.watch = nil
	s.mu.Unlock()
	if w != nil {
		w.conn.SetReadDeadline(past)
		<-w.done
		w.conn.SetReadDeadline(time.Time{})
	}
}

// rest waits until the client has sent something. It returns why the session
// ends, if it does.
func (s *session) rest() *sessionError {
	s.client.Rest()
	s.backend.Rest()
	if e := s.endNow(); e != nil {
		return e
	}
	s.enter(resting)
	// An end that was settled between the two lines above has seen another
	// phase and woken nobody.
	if e := s.endNow(); e != nil {
		s.enter(ending)
		return e
	}
	if s.listening {
		s.mu.Lock()
		s.watchUpstreamLocked() // a notification is not to wait for the next tick
		s.mu.Unlock()
	}
	err := s.client.Fill(frame.MinBuffer)
	s.enter(deciding)
	if e := s.settled(); e != nil {
		return e
	}
	if err != nil {
		return clientEnded(err)
	}
	return nil
}

// endNow is why a session at rest is to end now, if it is. While the server
// drains, that is so outside of a transaction.
func (s *session) endNow() *sessionError {
	if e := s.settled(); e != nil {
		return e
	}
	if s.backend.Status() == 'I' && s.srv.isDraining() {
		return shutdownError()
	}
	return nil
}

func (s *session) settled() *sessionError {
	dead := s.deadAs.Load()
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case dead == nil:
		return s.ending
	case s.ending == nil:
		return silent(*dead, nil)
	}
	return s.ending.unsaid()
}

func clientEnded(err error) *sessionError {
	if errors.Is(err, io.EOF) {
		return silent(reasonClient, nil)
	}
	return silent(reasonClientLost, err)
}

// end settles that the session is to end, and why: at once when it rests, and
// otherwise by cancelling what it runs. The first reason stays.
func (s *session) end(e *sessionError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endLocked(e)
}

func (s *session) endLocked(e *sessionError) {
	if s.ending != nil {
		return
	}
	s.ending, s.endingAt = e, time.Now()
	s.interruptLocked()
	switch s.phase {
	case resting:
		s.conn.SetReadDeadline(past)
	case assisting, running:
		s.fireCancel(s.backend.Running())
	}
}

// abort gives the upstream connection up, whatever it is doing, and whatever
// the session waits for before it has one. The session's goroutine sees its
// read fail, and ends with why unless something else was settled.
func (s *session) abort(why *sessionError) {
	s.stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending == nil {
		s.ending = why
	}
	s.abortLocked()
}

func (s *session) abortLocked() {
	s.aborted = true
	if s.up != nil {
		s.up.Net.SetDeadline(past)
	}
}

// markDead says that nothing more can be written to the client. What the
// upstream still runs for it is cancelled, and its answer thrown away.
func (s *session) markDead(why reason) {
	if s.deadAs.CompareAndSwap(nil, &why) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.endLocked(silent(why, nil))
	}
}

// tick looks after the session's clocks. It is called every tickInterval, and
// never does anything slow.
func (s *session) tick(now time.Time) {
	if began := s.writing.Load(); began != 0 && now.UnixNano()-began > int64(s.writePatience()) {
		s.markDead(reasonSlow)
		s.conn.SetWriteDeadline(past)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch s.phase {
	case resting:
		s.tickResting(now)
	case assisting, running:
		s.tickRunning(now)
	}
}

// writePatience is how long the client may leave a write waiting now. An end
// that is settled waits for nobody who does not read.
func (s *session) writePatience() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending != nil {
		return endGrace
	}
	return writeProgress
}

func (s *session) tickResting(now time.Time) {
	rested := now.Sub(s.since)
	if rested > tickInterval {
		s.setBusyLocked(false)
	}
	if limit := s.srv.IdleTimeout; limit > 0 && rested > limit {
		s.endLocked(fatal(codeIdleTimeout, fmt.Sprintf("pgproxy: terminating connection after %v without a statement", limit), reasonIdle).
			withHint("The limit is -idle-timeout."))
	}
	if s.shownStatus == 'I' && s.srv.isDraining() {
		s.endLocked(shutdownError())
	}
	// The server's own clock comes first, unless something has changed it.
	if limit := s.rule.IdleInTransactionTimeout; s.shownStatus != 'I' && limit > 0 && rested > limit+timeoutGrace {
		s.endLocked(idleInTransaction(&s.rule))
	}
	if rested > watchAfter {
		s.watchUpstreamLocked()
	}
}

// watchUpstreamLocked has the upstream watched while the session rests.
func (s *session) watchUpstreamLocked() {
	if s.watch == nil && s.ending == nil {
		s.startWatchLocked(s.up.Net, s.watchUpstream)
	}
}

func (s *session) tickRunning(now time.Time) {
	if s.watch == nil && s.deadAs.Load() == nil && now.Sub(s.since) > watchAfter {
		s.startWatchLocked(s.conn, s.watchClient)
	}
	c := &s.clock
	if !s.expired.Load() && c.limit > 0 && now.Sub(c.began) > c.limit+timeoutGrace {
		s.expired.Store(true)
		s.endingAt = now
	}
	if !s.expired.Load() && s.ending == nil {
		return
	}
	patience := escalateAfter
	if s.ending != nil && s.deadAs.Load() == nil {
		patience = endGrace // somebody waits for this end
	}
	if now.Sub(c.lastSent) > cancelAgain {
		c.lastSent = now
		s.fireCancel(s.backend.Running())
	}
	if now.Sub(s.endingAt) > patience && !s.aborted {
		s.terminateBackendLocked()
	}
}

// terminateBackendLocked ends a backend that does not react to being
// cancelled: closing the connection alone would leave it running. The process
// number is its own for sure while the connection is open.
func (s *session) terminateBackendLocked() {
	s.aborted = true
	s.tasks.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), exchange.CancelTimeout)
		defer cancel()
		if err := s.terminateBackend(ctx); err != nil {
			s.log.Warn("terminating the backend", "err", err)
		}
		s.abort(nil)
	})
}

// watchClient reads the client while a statement runs, a buffer ahead and no
// further. The end of its stream means that nobody waits for the result: a
// client that only shuts down its sending side is taken for gone too, as by
// PostgreSQL's own client_connection_check_interval.
func (s *session) watchClient() {
	for s.client.Buffered() < frame.MinBuffer {
		if err := s.client.Fill(2 * frame.MinBuffer); err != nil {
			if !isDeadline(err) {
				s.markDead(reasonClientLost)
			}
			return
		}
	}
}

// watchUpstream passes on what the upstream says by itself while the session
// rests: notices, notifications, changed parameters, and its own end.
func (s *session) watchUpstream() {
	if err := s.backend.Idle(s.writeClient); err != nil {
		s.end(s.exchangeError(err))
	}
}

func isDeadline(err error) bool {
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout()
}

// upstreamEnded is the end of the session that a failed read from the upstream
// means.
func (s *session) upstreamEnded(err error) *sessionError {
	s.mu.Lock()
	ending, aborted, expired := s.ending, s.aborted, s.expired.Load()
	s.mu.Unlock()
	switch {
	case ending != nil:
		return ending
	case aborted && expired:
		return stuckError()
	}
	e := fatal(codeConnectionFailure, "pgproxy: the connection to the upstream server was lost", reasonUpstream)
	e.cause = err
	return e
}

// Recheck asks anew who the callers of all sessions are and what they may do.
// A narrower rule holds from the next statement on; no rule ends the session.
// When nobody can say who a caller is because the answer itself fails
// (lookup true), nothing changes. Main calls it whenever the tailnet or the
// policy has changed.
func (srv *Server) Recheck(ctx context.Context) {
	srv.rechecks.Add(1)
	for _, s := range srv.live() {
		if s.started() {
			s.recheck(ctx)
		}
	}
}

// started reports whether the session is ready. One that is not asks by itself
// when it is, having seen that Recheck was called meanwhile.
func (s *session) started() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.phase != starting
}

func (s *session) recheck(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, recheckTimeout)
	defer cancel()
	caller, err := s.srv.WhoIs(ctx, addrOf(s.caller.Addr))
	if err != nil && (errors.Is(err, ErrUnavailable) || ctx.Err() != nil) {
		s.log.Warn("who the caller is cannot be asked; going on with what was known", "err", err)
		return
	}
	var rule policy.Rule
	if err == nil && !sameNode(caller, s.caller) {
		err = &policy.Refusal{Message: fmt.Sprintf("pgproxy: this address is now %s on %s", caller.Who(), caller.Node)}
	}
	if err == nil {
		rule, err = s.srv.Rules(caller)
	}
	if err == nil && !rule.Serves(s.database) {
		err = &policy.Refusal{Message: fmt.Sprintf("pgproxy: database %q is not served to you any more", s.database)}
	}
	if err != nil {
		e := fatal(codeAdminShutdown, "pgproxy: your access has ended", reasonRevoked)
		e.detail = "The tailnet does not know this device any more, or its key has expired."
		if r, ok := errors.AsType[*policy.Refusal](err); ok {
			e.detail, e.hint = r.Message, r.Hint
		}
		e.cause = err
		s.log.Info("access ended", "err", err)
		s.end(e)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.base = rule
	s.rule = s.lifts.Effective(rule)
	s.untold = s.untold || !sameEffect(rule, s.told)
}

// sameEffect reports whether two rules say the same, wherever they come from.
func sameEffect(a, b policy.Rule) bool {
	a.Source, b.Source = "", ""
	return reflect.DeepEqual(a, b)
}

// ruleNoticeLocked tells the client that policy gives it another rule than the
// one it knows; nil when it does not.
func (s *session) ruleNoticeLocked() *sessionError {
	was := s.told
	s.told, s.untold = s.base, false
	if sameEffect(was, s.told) { // changed, and changed back
		return nil
	}
	e := &sessionError{severity: "NOTICE", code: "00000", message: "pgproxy: what you may do has changed",
		detail: strings.Join(s.told.Describe(), "; ") + ".", hint: "SHOW pgproxy.limits tells the rest."}
	if was.Access != s.told.Access {
		e.message = fmt.Sprintf("pgproxy: you have %s access now, no longer %s", s.told.Access, was.Access)
	}
	return e
}

// ErrUnavailable marks a WhoIs error that says nothing about the caller: the
// lookup itself could not be done.
var ErrUnavailable = errors.New("the tailnet cannot be asked")

// addrOf makes an address out of its text, for asking WhoIs again.
type addrOf string

func (a addrOf) Network() string { return "tcp" }
func (a addrOf) String() string  { return string(a) }

// setBusyLocked counts the session among those with something to do, or not.
// Who has sent a message is busy until it has rested for a tick.
func (s *session) setBusyLocked(busy bool) {
	switch {
	case busy && !s.busy:
		s.srv.busy.Add(1)
	case !busy && s.busy:
		s.srv.busy.Add(-1)
	}
	s.busy = busy
}

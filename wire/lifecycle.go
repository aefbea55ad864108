package wire

import (
	"net"
	"sync"
	"sync/atomic"
	"time"

	"pgproxy/policy"
)

// Periods of a session's life that no flag sets.
const (
	// watchAfter is how long the session's goroutine waits on one side before
	// a watch reads the other.
	watchAfter = 200 * time.Millisecond
	// timeoutGrace is how much later than the server the proxy's own clock
	// ends a statement.
	timeoutGrace = 2 * time.Second
	// writeProgress is how long a client may leave a write waiting.
	writeProgress = 60 * time.Second
	// endGrace is how long a statement has to react when its session is to
	// end, before the upstream connection is given up.
	endGrace = 3 * time.Second
	// cancelAgain is after how long a cancel is repeated, and escalateAfter for
	// how long a statement may ignore it. A cancel may be swallowed by an
	// exception handler in PL/pgSQL.
	cancelAgain   = 2 * time.Second
	escalateAfter = 10 * time.Second
)

// phase is what a session's goroutine is doing, for those who look at it from
// outside. doc.go has the table of phases.
type phase int

const (
	// starting: up to the first ReadyForQuery.
	starting phase = iota
	// idle: waiting for the client's next message.
	idle
	// processing: a message has come and is not on the server.
	processing
	// internal: a query of the proxy's own is on the server. The client does
	// not see it and cannot cancel it.
	internal
	// running: the client's message is on the server.
	running
	// asking: the client's statement waits for another person's answer.
	asking
	// ended: nothing leads out of it.
	ended
)

// lifecycle is where a session stands: its phase, its clocks, the statement
// that is being served, and whether and why the session is to end. It does no
// I/O: what is to be done about it is a todo, which it hands to act.
//
// Safe for concurrent use. act is called with mu held, and must neither wait
// nor call back.
type lifecycle struct {
	act func(todo)

	mu       sync.Mutex
	phase    phase
	txStatus byte      // the transaction status when the phase began
	since    time.Time // when the phase began
	txSince  time.Time // when the open transaction began; zero outside of one
	watch    *watch    // the watch that is on, if any
	// busy says that the session counts in busyCount, the server's number of
	// sessions that have something to do.
	busy      bool
	busyCount *atomic.Int32

	end     *sessionError // why the session is to end; nil while it goes on
	endSet  time.Time     // when that was settled, or the statement's time was up
	lost    bool          // the client can be told nothing more
	aborted bool          // the upstream connection was given up
	nudged  bool          // the read of the client was woken, for news
	server  net.Conn      // the upstream connection
	message func() uint64 // the number of the message on the server; see exchange.Backend.Running

	// The statement that is served, or was the last one.
	seq         int64
	sql         string // as Info.SQL
	unsent      bool   // it was neither sent nor answered
	cancelled   bool   // a cancel came for it
	cancelledBy string // who has cancelled it, where it was not its own client
	interrupt   func() // ends what is waited for before it is sent; nil = nothing is
	clock       clock
	expired     atomic.Bool // it has had its time
}

// clock is when a running statement has had its time.
type clock struct {
	limit    time.Duration // 0 = none
	began    time.Time     // of the current statement in the message
	lastSent time.Time     // the last cancel for it
}

// todo is what the session has to do for its lifecycle.
type todo struct {
	wake      bool   // end the read of the client that the session waits in
	sleep     bool   // let it read the client again
	cancel    bool   // cancel what is on the server
	terminate bool   // end the backend from another connection
	watch     *watch // start this watch
}

// watch is a goroutine that reads the side that the session's goroutine is not
// waiting on: the upstream while the session is idle, for what comes by itself;
// the client while a statement runs, for its end. Most waits are too short to
// need one.
type watch struct {
	client bool // it reads the client, otherwise the upstream
	conn   net.Conn
	done   chan struct{}
}

// connected takes the upstream connection. It reports whether the session goes
// on, which it does not when it was aborted meanwhile.
func (l *lifecycle) connected(server net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.server = server
	return !l.aborted
}

// started reports whether the session was ready once.
func (l *lifecycle) started() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.phase != starting
}

// enter moves the session's goroutine to another phase. When a watch was on it
// is ended first, so that the side it read belongs to the goroutine again.
func (l *lifecycle) enter(p phase, txStatus byte) {
	l.mu.Lock()
	if txStatus == 'I' {
		l.txSince = time.Time{}
	} else if l.txStatus == 'I' {
		l.txSince = l.since // the statement that has just ended has begun it
	}
	l.phase, l.since, l.txStatus = p, time.Now(), txStatus
	switch p {
	case running:
		l.unsent = false
	case processing:
		l.setBusy(true)
	case asking, ended:
		l.setBusy(false)
	}
	if l.nudged {
		l.nudged = false
		l.act(todo{sleep: true})
	}
	w := l.watch
	l.watch = nil
	l.mu.Unlock()
	if w != nil {
		w.conn.SetReadDeadline(past)
		<-w.done
		w.conn.SetReadDeadline(time.Time{})
	}
}

// setBusy counts the session among those with something to do, or not. Who has
// sent a message is busy until it has been idle for a tick.
func (l *lifecycle) setBusy(busy bool) {
	switch {
	case busy && !l.busy:
		l.busyCount.Add(1)
	case !busy && l.busy:
		l.busyCount.Add(-1)
	}
	l.busy = busy
}

// nudge wakes an idle session, which then looks for news. Any other does so with
// its next message.
func (l *lifecycle) nudge() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.phase == idle && l.end == nil {
		l.nudged = true
		l.act(todo{wake: true})
	}
}

// settled returns why the session is to end, nil while it goes on.
func (l *lifecycle) settled() *sessionError {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lost {
		return l.end.withoutMessage()
	}
	return l.end
}

// settle says that the session is to end, and why: at once when it is idle, and
// otherwise by cancelling what it runs. The first reason stays. With lost the
// client can be told nothing more.
func (l *lifecycle) settle(e *sessionError, lost bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lost = l.lost || lost
	l.settleLocked(e, time.Now())
}

func (l *lifecycle) settleLocked(e *sessionError, now time.Time) {
	if l.end != nil {
		return
	}
	l.end, l.endSet = e, now
	if l.interrupt != nil {
		l.interrupt()
	}
	switch l.phase {
	case idle:
		l.act(todo{wake: true})
	case internal, running:
		l.act(todo{cancel: true})
	}
}

// abort gives the upstream connection up, whatever it is doing. The session's
// goroutine sees its read fail, and ends with why unless something else was
// settled.
func (l *lifecycle) abort(why *sessionError) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.end == nil {
		l.end = why
	}
	l.aborted = true
	if l.server != nil {
		l.server.SetDeadline(past)
	}
}

// endOf returns why the session is to end, if it is, and whether its statement
// was given up since it did not react to being cancelled.
func (l *lifecycle) endOf() (end *sessionError, stuck bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.end, l.aborted && l.expired.Load()
}

// limits are what a session's clocks go by.
type limits struct {
	idle     time.Duration // -idle-timeout; 0 = none
	rule     *policy.Rule
	draining bool
}

// tick looks after the session's clocks. It is called every tickInterval.
func (l *lifecycle) tick(now time.Time, lim limits) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch l.phase {
	case idle:
		l.tickIdle(now, lim)
	case internal, running:
		l.tickRunning(now)
	case asking:
		l.tickAsking(now, lim)
	}
}

// tickAsking looks after a session that waits for a person, which may take long
// and is no idleness.
func (l *lifecycle) tickAsking(now time.Time, lim limits) {
	if lim.draining {
		l.settleLocked(shutdownError(), now)
	}
	if now.Sub(l.since) > watchAfter {
		l.watchLocked(true)
	}
}

func (l *lifecycle) tickIdle(now time.Time, lim limits) {
	waited := now.Sub(l.since)
	if waited > tickInterval {
		l.setBusy(false)
	}
	if lim.idle > 0 && waited > lim.idle {
		l.settleLocked(idleTimeout(lim.idle), now)
	}
	if l.txStatus == 'I' && lim.draining {
		l.settleLocked(shutdownError(), now)
	}
	// The server's own clock comes first, unless something has changed it.
	if limit := lim.rule.IdleInTransactionTimeout; l.txStatus != 'I' && limit > 0 && waited > limit+timeoutGrace {
		l.settleLocked(idleInTransaction(lim.rule), now)
	}
	if waited > watchAfter {
		l.watchLocked(false)
	}
}

// watchServer has the upstream watched at once while the session is idle.
func (l *lifecycle) watchServer() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.watchLocked(false)
}

// watchLocked has the client watched, or the upstream.
func (l *lifecycle) watchLocked(client bool) {
	if l.watch != nil || l.lost || l.end != nil && !client {
		return
	}
	l.watch = &watch{client: client, done: make(chan struct{})}
	l.act(todo{watch: l.watch})
}

func (l *lifecycle) tickRunning(now time.Time) {
	if now.Sub(l.since) > watchAfter {
		l.watchLocked(true)
	}
	c := &l.clock
	if !l.expired.Load() && c.limit > 0 && now.Sub(c.began) > c.limit+timeoutGrace {
		l.expired.Store(true)
		l.endSet = now
	}
	if !l.expired.Load() && l.end == nil {
		return
	}
	patience := escalateAfter
	if l.end != nil && !l.lost {
		patience = endGrace // somebody waits for this end
	}
	if now.Sub(c.lastSent) > cancelAgain {
		c.lastSent = now
		l.act(todo{cancel: true})
	}
	if now.Sub(l.endSet) > patience && !l.aborted {
		l.aborted = true
		l.act(todo{terminate: true})
	}
}

// writePatience is how long the client may leave a write waiting now. An end
// that is settled does not wait for a client that does not read.
func (l *lifecycle) writePatience() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.end != nil {
		return endGrace
	}
	return writeProgress
}

// begin takes the next statement, and numbers it.
func (l *lifecycle) begin() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seq++
	l.sql, l.unsent, l.cancelled, l.cancelledBy = "", true, false, ""
	return l.seq
}

// statement is the number of the statement that is served, or was the last one.
func (l *lifecycle) statement() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.seq
}

// read takes the text of the statement, as people may see it.
func (l *lifecycle) read(sql string) {
	l.mu.Lock()
	l.sql = sql
	l.mu.Unlock()
}

// answered is called before the statement's answer is flushed, so that a late
// cancel finds nothing.
func (l *lifecycle) answered() {
	l.mu.Lock()
	l.unsent = false
	l.mu.Unlock()
}

// setClock starts the clock of what is about to be sent. 0 = no limit.
func (l *lifecycle) setClock(limit time.Duration) {
	l.mu.Lock()
	l.clock = clock{limit: limit, began: time.Now()}
	l.expired.Store(false)
	l.mu.Unlock()
}

// nextStatement starts the time of the message's next statement.
func (l *lifecycle) nextStatement() {
	l.mu.Lock()
	l.clock.began = time.Now()
	l.mu.Unlock()
}

// cancelledAs reports whether the statement was cancelled, and by whom where it
// was not its own client.
func (l *lifecycle) cancelledAs() (by string, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cancelledBy, l.cancelled
}

// cancelFinds is what a request to cancel the session's statement finds.
type cancelFinds int

const (
	findsNothing cancelFinds = iota // nothing of the client's is being served
	findsAnother                    // not the statement that was meant
	findsUnsent                     // the statement is not sent any more
	findsRunning                    // it is on the server, as message number
)

// cancel takes a request to cancel the statement of that number, any if seq is
// 0. by is who wants it, "" for the session's own client. at is the statement
// that it found.
func (l *lifecycle) cancel(seq int64, by string) (found cancelFinds, at int64, number uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.phase == running {
		number = l.message() // 0 where all of it was answered
	}
	switch {
	case seq != 0 && seq != l.seq:
		return findsAnother, seq, 0
	case l.unsent && (l.phase == processing || l.phase == internal || l.phase == asking):
		l.cancelled, l.cancelledBy = true, by
		if l.interrupt != nil {
			l.interrupt()
		}
		return findsUnsent, l.seq, 0
	case number == 0:
		return findsNothing, 0, 0
	}
	// Between two parts of a message nothing runs that the server could
	// cancel: no more of it is sent.
	l.cancelled, l.cancelledBy = true, by
	return findsRunning, l.seq, number
}

// interruptBy has a cancel of the statement, and the session's end, call
// cancel. It calls it at once where one has come already; nil takes it back.
func (l *lifecycle) interruptBy(cancel func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.interrupt = cancel
	if cancel != nil && (l.cancelled || l.end != nil) {
		cancel()
	}
}

// view is what others see of a lifecycle.
type view struct {
	seq            int64
	sql            string
	state          string // in pg_stat_activity's words
	since, txSince time.Time
}

// view reports false before the session is ready and after its end.
func (l *lifecycle) view() (view, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return view{l.seq, l.sql, l.state(), l.since, l.txSince}, l.phase != starting && l.phase != ended
}

func (l *lifecycle) state() string {
	switch {
	case l.end != nil:
		return "ending"
	case l.phase == running || l.phase == internal:
		return "active"
	case l.phase == asking:
		return "waiting for approval"
	case l.txStatus == 'T':
		return "idle in transaction"
	case l.txStatus == 'E':
		return "idle in transaction (aborted)"
	}
	return "idle"
}

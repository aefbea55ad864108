package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"pgproxy/policy"
	"pgproxy/policy/fair"
	"pgproxy/upstream"
	"pgproxy/wire/audit"
)

// ErrServerClosed is what Serve returns after Shutdown or Close.
var ErrServerClosed = errors.New("wire: server closed")

// Recorder takes audit records. If Write fails, the caller must not perform the
// recorded action. Safe for concurrent use.
type Recorder interface {
	Write(*audit.Record) error
}

// Server owns all sessions between clients and upstreams. Its exported fields
// are set before Serve and not changed afterwards.
type Server struct {
	// WhoIs says who is at a remote address, or gives a *policy.Refusal of
	// somebody who may not be there. It is asked before a byte is read, and
	// again when Recheck is called.
	WhoIs func(ctx context.Context, remote net.Addr) (policy.Caller, error)
	// Rules gives the rule in force for a caller, or a *policy.Refusal.
	Rules func(policy.Caller) (policy.Rule, error)
	// Dial opens one upstream connection for one session.
	Dial func(ctx context.Context, req upstream.Request) (*upstream.Conn, error)
	// Login is the Login that Dial's connections have at that access; nil = always
	// the same.
	Login func(policy.Access) string
	// Judge reads and judges statements.
	Judge *policy.Judge
	// Audit takes the records; Redaction says how much of a statement they,
	// and people who look on, may see.
	Audit     Recorder
	Redaction policy.Redaction

	// Database is what a client gets that names none; Databases are the names
	// it may ask for, "*" being any.
	Database  string
	Databases []string

	// TLS is offered to clients; nil = not offered. RequireTLS refuses
	// sessions without it, though never their cancel requests.
	TLS        *tls.Config
	RequireTLS bool

	// MaxSessions and MaxSessionsPerUser limit sessions; 0 = no limit.
	MaxSessions, MaxSessionsPerUser int
	// LoginTimeout is from accept to startup message, ConnectTimeout for the
	// upstream in all, IdleTimeout for a session with no statement. 0 = none.
	LoginTimeout, ConnectTimeout, IdleTimeout time.Duration
	// QuietLogin leaves the NOTICE at login out.
	QuietLogin bool
	// StatusPage is the URL at which people see and end their sessions; empty
	// = there is none.
	StatusPage string
	// Transcripts is the URL, up to a session's ID, at which people read what
	// happened in a session; empty = there is none.
	Transcripts string

	// Notify tells people outside, if there is anybody to tell; nil = nobody. It
	// must not wait, and gets neither SQL nor secrets.
	Notify func(text string)

	Logger *slog.Logger

	requests    requests
	requestLife time.Duration // how long a request waits for an answer

	memory     *fair.Semaphore // of large statements
	memoryWait time.Duration

	keys    cancelKeys
	metrics metrics
	history history
	hour    hour
	dropped droppedCancels
	looks   looks
	// monitors look at databases while somebody looks at them.
	monitors monitors

	// mu guards what follows. Lock order: Server.mu before those of a session.
	mu        sync.Mutex
	listeners map[net.Listener]struct{}
	conns     map[*session]net.Conn // accepted, from first to last
	sessions  map[*session]struct{} // admitted
	perUser   map[string]int
	pending   map[string]int // connections that are no sessions, by host; see waitsLocked
	waiting   int            // all of them
	draining  bool
	closed    bool

	busy     atomic.Int32   // sessions that have something to do
	rechecks atomic.Int64   // calls of Recheck that have begun
	running  sync.WaitGroup // a goroutine for every accepted connection
}

// Serve accepts connections on ln until Shutdown or Close, and closes it. It
// always returns an error, ErrServerClosed after either of those.
func (srv *Server) Serve(ln net.Listener) error {
	if !srv.track(ln) {
		ln.Close()
		return ErrServerClosed
	}
	defer srv.untrack(ln)
	ctx, cancel := context.WithCancel(context.Background())
	var keeper sync.WaitGroup
	keeper.Go(func() { srv.keep(ctx) })
	defer keeper.Wait()
	defer cancel()

	for backoff := time.Duration(0); ; {
		conn, err := ln.Accept()
		if err == nil {
			backoff = 0
			srv.start(conn)
			continue
		}
		srv.mu.Lock()
		stopped := srv.closed
		srv.mu.Unlock()
		if stopped {
			return ErrServerClosed
		}
		if !temporary(err) {
			return err
		}
		backoff = min(max(2*backoff, 5*time.Millisecond), time.Second)
		srv.Logger.Warn("accept", "err", err, "retry_in", backoff)
		time.Sleep(backoff)
	}
}

// temporary reports whether an error of Accept is one of that connection, or of a
// moment in which something has run out.
func temporary(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (srv *Server) track(ln net.Listener) bool {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	if srv.closed {
		return false
	}
	if srv.listeners == nil {
		srv.listeners = make(map[net.Listener]struct{})
		srv.conns = make(map[*session]net.Conn)
		srv.sessions = make(map[*session]struct{})
		srv.perUser = make(map[string]int)
		srv.pending = make(map[string]int)
	}
	if srv.memory == nil {
		srv.memory, srv.memoryWait = newStatementMemory(), memoryWait
	}
	if srv.requestLife == 0 {
		srv.requestLife = requestLife
	}
	srv.metrics.init()
	srv.listeners[ln] = struct{}{}
	return true
}

func (srv *Server) untrack(ln net.Listener) {
	ln.Close()
	srv.mu.Lock()
	delete(srv.listeners, ln)
	srv.mu.Unlock()
}

// start gives an accepted connection its goroutine. Nothing slow happens
// before: tsnet gives up an accepted connection after a second.
func (srv *Server) start(conn net.Conn) {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	s := newSession(srv, conn)
	if srv.closed || !srv.waitsLocked(s) {
		conn.Close()
		return
	}
	srv.conns[s] = conn
	srv.running.Go(func() {
		defer srv.forget(s)
		s.run()
	})
}

func (srv *Server) forget(s *session) {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	delete(srv.conns, s)
	srv.waitedLocked(s)
}

// tickInterval is how often running and resting sessions are looked at. It is
// the resolution of every timeout, in exchange for which no statement sets a
// timer.
const tickInterval = 100 * time.Millisecond

// keep looks after the sessions' clocks until ctx ends.
func (srv *Server) keep(ctx context.Context) {
	tick := time.NewTicker(tickInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			srv.cancelsDropped(time.Now().Add(droppedPeriod))
			return
		case now := <-tick.C:
			for _, s := range srv.live() {
				s.tick(now)
			}
			srv.cancelsDropped(now)
		}
	}
}

// live returns the admitted sessions.
func (srv *Server) live() []*session {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	list := make([]*session, 0, len(srv.sessions))
	for s := range srv.sessions {
		list = append(list, s)
	}
	return list
}

// Draining reports whether Shutdown has begun.
func (srv *Server) Draining() bool {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	return srv.draining
}

// Shutdown lets sessions finish: new ones are refused, those at rest outside
// of a transaction end at once, and the others when their statement and their
// transaction are done. When ctx ends, running statements are cancelled and
// all sessions end. Everybody is told 57P01. Cancel requests are served till
// the last session has gone. Shutdown returns when that is so; the error is
// ctx's if it had to hurry.
func (srv *Server) Shutdown(ctx context.Context) error {
	srv.mu.Lock()
	srv.draining = true
	srv.mu.Unlock()
	for _, s := range srv.live() {
		s.tick(time.Now())
	}
	srv.waitSessions(ctx)
	err := ctx.Err()
	for _, s := range srv.live() {
		s.end(shutdownError())
	}
	grace, cancel := context.WithTimeout(context.Background(), endGrace+2*time.Second)
	defer cancel()
	srv.waitSessions(grace)
	srv.Close()
	return err
}

// waitSessions returns when the last session has gone or ctx has ended.
func (srv *Server) waitSessions(ctx context.Context) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for len(srv.live()) > 0 {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// closeGrace is how long Close lets sessions say their last word.
const closeGrace = 800 * time.Millisecond

// Close ends all at once: what runs is cancelled, clients are told 57P01, the
// ends are recorded; what does not react within a second is cut off. It returns
// when all of its goroutines have ended.
func (srv *Server) Close() error {
	srv.mu.Lock()
	srv.draining = true
	srv.mu.Unlock()
	for _, s := range srv.live() {
		s.end(shutdownError())
	}
	grace, cancel := context.WithTimeout(context.Background(), closeGrace)
	defer cancel()
	srv.waitSessions(grace)
	srv.mu.Lock()
	srv.closed, srv.draining = true, true
	for ln := range srv.listeners {
		ln.Close()
	}
	sessions := make([]*session, 0, len(srv.conns))
	for s, conn := range srv.conns {
		conn.Close()
		sessions = append(sessions, s)
	}
	srv.mu.Unlock()
	for _, s := range sessions {
		s.abort(shutdownError())
	}
	srv.running.Wait()
	srv.monitors.close()
	return nil
}

package wire

import (
	"context"
	"crypto/rand"
	"errors"
	"net"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"pgproxy/policy"
	"pgproxy/upstream"
	"pgproxy/wire/audit"
	"pgproxy/wire/exchange"
	"pgproxy/wire/frame"
)

// session is one client with its one upstream connection. Its goroutine runs
// run. What is not marked otherwise is that goroutine's own; others may read it
// once the session is ready, if it does not change from there on.
type session struct {
	srv   *Server
	id    string
	began time.Time
	ctx   context.Context // ends with the session
	stop  context.CancelFunc
	tasks sync.WaitGroup // its watches and cancels; safe for concurrent use
	slot  slot

	clientConn
	journal                         // safe for concurrent use once the session is ready
	life    lifecycle               // safe for concurrent use
	ruling  ruling                  // safe for concurrent use
	request atomic.Pointer[request] // that it waits for; nil = none

	caller   policy.Caller
	startup  *startup
	database string
	stamp    string
	up       atomic.Pointer[upstream.Conn] // see reconnect; safe for concurrent use
	key      cancelKey                     // what the client cancels by
	theirs   map[string]string             // settings that the client gave at connect
	backend  *exchange.Backend             // of up
	talk     conversation
}

// conversation is what a session keeps from one message to the next.
type conversation struct {
	automaton automaton
	memory    policy.Memory // what was prepared
	quiet     bool          // no NOTICE at login, nor about an open transaction
	warnedTx  bool          // the client knows how long a transaction may wait
	listening bool          // it has LISTENed, and is told at once
	// clockLimit is the time that each statement of the message has.
	clockLimit time.Duration
	// ownTimeout says that an admin has changed the server's
	// statement_timeout, which is then the only one.
	ownTimeout bool
	// readLogin says that the upstream connection was asked for as read-only,
	// for which there may be a login of its own.
	readLogin atomic.Bool
	// unsettled says that the access has changed since the connection was chosen.
	unsettled bool
}

func newSession(srv *Server, conn net.Conn) *session {
	ctx, stop := context.WithCancel(context.Background())
	s := &session{srv: srv, id: strings.ToLower(rand.Text()[:12]), began: time.Now(), ctx: ctx, stop: stop}
	s.clientConn.Conn, s.clientConn.onLost = conn, func(why reason) { s.life.settle(silent(why, nil), true) }
	s.life.act, s.life.busyCount = s.do, &srv.busy
	s.journal = journal{srv: srv, log: srv.Logger, about: audit.Record{Session: s.id}, terms: &s.ruling}
	s.talk.quiet = srv.QuietLogin
	return s
}

// run is a connection's whole story.
func (s *session) run() {
	defer s.stop()
	defer func() { s.Conn.Close() }()
	defer func() {
		if s.recovered(recover()) != nil && s.up.Load() != nil {
			s.srv.keys.remove(s)
			s.up.Load().Close()
		}
	}()
	asked := s.srv.rechecks.Load()
	remote := s.Conn.RemoteAddr()
	s.deadline(s.srv.LoginTimeout)
	whoErr := s.identify(remote)

	st, err := readStartup(s.ctx, s.Conn, s.srv.TLS)
	if st != nil {
		s.Conn = st.conn
	}
	if err != nil {
		s.refuse(err)
		return
	}
	s.started(st)
	if st.cancel != nil {
		s.serveCancel(whoErr)
		return
	}
	if err := s.open(whoErr); err != nil {
		s.refuse(err)
		return
	}
	defer s.srv.dismiss(s)
	if err := s.connect(); err != nil {
		s.refuse(err)
		return
	}
	s.enter(processing)
	if s.srv.rechecks.Load() != asked {
		s.recheck(s.ctx) // what was asked at the beginning may be true no more
	}
	s.finish(s.converse())
}

// started takes what the client has said before its session.
func (s *session) started(st *startup) {
	st.client = policy.RedactText(st.client) // it is shown to others, and logged
	s.startup = st
	s.about.Client, s.about.RequestedUser = st.client, st.user
	s.log = s.log.With("session", s.id, "user", s.caller.Who(), "node", s.caller.Node, "addr", s.caller.Addr)
}

// do acts for the lifecycle, which holds its lock meanwhile.
func (s *session) do(t todo) {
	switch {
	case t.wake:
		s.Conn.SetReadDeadline(past)
	case t.sleep:
		s.Conn.SetReadDeadline(time.Time{})
	case t.cancel:
		s.fireCancel(s.backend.Running())
	case t.terminate:
		s.tasks.Go(s.terminate)
	case t.watch != nil:
		s.startWatch(t.watch)
	}
}

// startWatch begins a watch. See watch.
func (s *session) startWatch(w *watch) {
	if w.conn = s.up.Load().Net; w.client {
		w.conn = s.Conn
	}
	s.tasks.Go(func() {
		defer close(w.done)
		defer func() {
			if defect := s.recovered(recover()); defect != nil {
				s.end(defect)
			}
		}()
		if w.client {
			s.clientConn.watch()
			return
		}
		if err := s.backend.Idle(s.clientConn.write); err != nil {
			s.end(s.exchangeError(err))
		}
	})
}

// enter moves the session's goroutine to another phase.
func (s *session) enter(p phase) { s.life.enter(p, s.backend.Status()) }

// end settles that the session is to end, and why. The first reason stays.
func (s *session) end(e *sessionError) { s.life.settle(e, false) }

// abort gives the upstream connection up, whatever it is doing, and whatever
// the session waits for before it has one.
func (s *session) abort(why *sessionError) {
	s.stop()
	s.life.abort(why)
}

// tick looks after the session's clocks. It is called every tickInterval from
// another goroutine, and does nothing slow.
func (s *session) tick(now time.Time) {
	s.clientConn.stalled(now, s.life.writePatience)
	rule := s.ruling.rule()
	s.life.tick(now, limits{idle: s.srv.IdleTimeout, rule: &rule, draining: s.srv.Draining()})
	if s.ruling.expire(now) {
		s.life.nudge()
	}
}

// recovered makes the end of the session out of a panic, nil out of none: a
// defect of ours that one session meets is not to end all of them.
func (s *session) recovered(panicked any) *sessionError {
	if panicked == nil {
		return nil
	}
	s.log.Error("panic", "value", panicked, "stack", string(debug.Stack()))
	return fatal(codeInternal, "pgproxy: internal error", reasonInternal)
}

// identify asks who is calling. The answer is used once it is known what they
// want.
func (s *session) identify(remote net.Addr) error {
	if remote == nil { // a tsnet connection that was reset already
		return errors.New("the connection has no remote address")
	}
	ctx := s.ctx
	if d := s.srv.LoginTimeout; d > 0 {
		c, cancel := context.WithTimeout(ctx, d)
		defer cancel()
		ctx = c
	}
	caller, err := s.srv.WhoIs(ctx, remote)
	if caller.Addr == "" {
		caller.Addr = remote.String()
	}
	s.caller = caller
	s.identified(caller)
	return err
}

func (s *session) serveCancel(whoErr error) {
	if whoErr != nil {
		s.srv.cancelDropped(s.caller, whoErr)
		return
	}
	ctx, cancel := context.WithTimeout(s.ctx, 2*exchange.CancelTimeout)
	defer cancel()
	s.srv.cancelRequest(ctx, s.caller, s.startup.cancel)
}

// open decides whether the caller gets a session at all. From here on the
// client is told AuthenticationOk before anything else: libpq takes a FATAL
// before it for a reason to try again without TLS.
func (s *session) open(whoErr error) *sessionError {
	s.out = frame.Append(s.out, 'R', 0, 0, 0, 0)
	if r, ok := errors.AsType[*policy.Refusal](whoErr); ok {
		return s.refusal(r)
	}
	if whoErr != nil || s.caller.Who() == "" {
		e := fatal(codeInvalidAuthorization, "pgproxy: the tailnet does not know who you are", reasonRefused)
		e.cause = whoErr
		return e
	}
	if s.srv.RequireTLS && !s.startup.tls {
		return fatal(codeInvalidAuthorization, "pgproxy: TLS is required", reasonRefused).
			withHint("Use sslmode=require or stricter.")
	}
	rule, err := s.srv.Rules(s.caller)
	if err != nil {
		return s.refusal(err)
	}
	s.ruling.start(rule)
	if s.startup.wantsReplication() {
		return fatal(codeFeatureNotSupported, "pgproxy: replication connections are not supported", reasonRefused).
			withHint("Replicate from the server itself.")
	}
	if e := s.chooseDatabase(); e != nil {
		return e
	}
	return s.srv.admit(s)
}

func (s *session) refusal(err error) *sessionError {
	if r, ok := errors.AsType[*policy.Refusal](err); ok {
		e := refused("FATAL", r)
		e.reason = reasonRefused
		return e
	}
	e := fatal(codeInvalidAuthorization, "pgproxy: no access", reasonRefused)
	e.cause = err
	return e
}

// refuse ends a connection that has not become a session.
func (s *session) refuse(e *sessionError) {
	s.deadline(handshakeTimeout)
	if !e.quiet {
		s.refused(e)
		s.Conn.Write(e.append(s.out))
		s.closeGently()
	} else if e.cause != nil {
		s.log.Debug("connection closed before it became a session", "err", e.cause)
	}
}

// connect opens the upstream and makes the session ready for statements.
func (s *session) connect() *sessionError {
	if e := s.readSettings(); e != nil {
		return e
	}
	rule := s.ruling.rule()
	params := s.parameters(&rule)
	up, err := s.dial(s.ctx, params)
	if err != nil {
		return dialError(err)
	}
	s.up.Store(up)
	if !s.life.connected(up.Net) {
		up.Close()
		return silent(reasonShutdown, nil)
	}
	s.clientConn.Wait = frame.NewWaiter(&s.srv.busy, s.Conn)
	s.backend = exchange.New(up, s, frame.NewWaiter(&s.srv.busy, up.Net), rule, params)
	s.life.message = s.backend.Running
	s.moved(up)
	s.key = cancelKey{up.PID, string(up.Key)}
	s.log = s.log.With("database", s.database)
	if err := s.connected(s.startup.client, rule.Access); err != nil {
		up.Close()
		return s.unrecorded("FATAL", err)
	}
	s.srv.keys.add(s)
	s.deadline(handshakeTimeout)
	defer s.deadline(0)
	if _, err := s.Conn.Write(s.appendWelcome(s.out)); err != nil {
		s.lose(reasonClientLost)
	}
	s.out = nil
	return nil
}

// dial opens an upstream connection for the session.
func (s *session) dial(ctx context.Context, params map[string]string) (*upstream.Conn, error) {
	if d := s.srv.ConnectTimeout; d > 0 {
		c, cancel := context.WithTimeout(ctx, d)
		defer cancel()
		ctx = c
	}
	began := time.Now()
	up, err := s.srv.Dial(ctx, upstream.Request{Database: s.database, Params: params})
	s.srv.metrics.connected(time.Since(began), err)
	return up, err
}

// finish ends a session that was ready: its last word, its record, its log
// line.
func (s *session) finish(e *sessionError) {
	s.enter(ended)
	s.srv.keys.remove(s)
	s.stop()
	s.ruling.lower("the session has ended")
	s.tellOver()
	if !s.lost.Load() && (!e.quiet || e.reason == reasonUpstream) {
		s.deadline(time.Second)
		if !e.quiet {
			s.Conn.Write(e.append(nil))
		}
		s.closeGently()
	}
	s.Conn.Close()
	s.tasks.Wait() // cancels still need the upstream's address, none its connection
	s.up.Load().Close()
	s.ended(e, time.Since(s.began))
}

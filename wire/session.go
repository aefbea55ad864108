package wire

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
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

// phase is what a session's goroutine is doing, for those who look at it from
// outside.
type phase int

const (
	// starting: up to the first ReadyForQuery. Leads to deciding.
	starting phase = iota
	// resting: waiting for the client's next message. Leads to deciding, and
	// to ending.
	resting
	// deciding: a message has come and was not sent upstream. Leads to
	// assisting, to running, or back to resting.
	deciding
	// assisting: a statement of the proxy's own is upstream, out of the
	// client's sight and not for it to cancel. Leads back to deciding.
	assisting
	// running: the client's statement is upstream. Leads back to deciding.
	running
	// ending: nothing leads out of it.
	ending
)

// session is one client with its one upstream connection. Its goroutine runs
// run; what other goroutines may touch is said below.
type session struct {
	srv  *Server
	id   string
	conn net.Conn // the client's
	log  *slog.Logger
	ctx  context.Context // ends with the session
	stop context.CancelFunc

	caller   policy.Caller
	startup  *startup
	admitted string // the name it counts under in the server's limit
	host     string // its client's, without the port
	pending  bool   // counted among the server's pending; guarded by Server.mu
	began    time.Time
	database string
	stamp    string
	up       *upstream.Conn
	backend  *exchange.Backend // of up

	// The session goroutine's own.
	client    frame.Reader // read by the client watch while a statement runs
	automaton automaton
	out       []byte // copied bytes for the client, not yet written
	direct    []byte // the same where they lie, in the server's buffer
	memory    policy.Memory
	redactor  policy.Redactor
	quiet     bool // no NOTICE at login, nor about an open transaction
	warnedTx  bool // the client knows how long a transaction may wait
	listening bool // it has LISTENed, and is told at once
	// clockLimit is the time that each statement of the message has.
	clockLimit time.Duration
	// ownTimeout says that an admin has changed the server's
	// statement_timeout, which is then the only one.
	ownTimeout bool
	// readLogin says that the upstream connection was asked for as read-only,
	// for which there may be a login of its own.
	readLogin bool

	// Totals, written by the session goroutine, read by anyone.
	statements, rows, bytes atomic.Int64
	// What the running statement has sent so far, which is not in the totals.
	sentRows, sentBytes atomic.Int64
	// writing is when a write to the client began, in Unix nanoseconds; 0
	// between writes.
	writing atomic.Int64
	// expired says that the running statement has had its time.
	expired atomic.Bool
	// deadAs says that the client can no longer be written to, and why.
	deadAs atomic.Pointer[reason]

	mu    sync.Mutex
	phase phase
	// shownStatus is the transaction status for those who look on.
	shownStatus byte
	since       time.Time     // when the phase began; a statement's, when it began
	txSince     time.Time     // when the open transaction began; zero outside of one
	watch       *watch        // the watch that is on, if any
	busy        bool          // counted in the server's busy
	ending      *sessionError // why the session is to end, once that is settled
	endingAt    time.Time
	aborted     bool         // the upstream connection was given up
	unsent      bool         // a statement was begun, and neither sent nor answered
	cancelled   bool         // a cancel came for it
	cancelledBy string       // who has cancelled it, where it was not its own client
	interrupt   func()       // ends what is waited for before it is sent; nil = nothing is
	clock       clock        // the running statement's limits
	sql         string       // the statement last begun, as Info.SQL
	seq         int64        // its number
	rule        policy.Rule  // in force now
	base        policy.Rule  // what policy gives, before lifts
	told        policy.Rule  // the base that the client knows
	untold      bool         // it is another now
	lifts       policy.Lifts // what the user changed for the session
	tasks       sync.WaitGroup
}

// clock is when a running statement has had its time.
type clock struct {
	limit    time.Duration // 0 = none
	began    time.Time     // of the current statement in the message
	lastSent time.Time     // the last cancel for it
}

func newSession(srv *Server, conn net.Conn) *session {
	ctx, stop := context.WithCancel(context.Background())
	return &session{
		srv: srv, id: strings.ToLower(rand.Text()[:12]), conn: conn,
		log: srv.Logger, ctx: ctx, stop: stop, began: time.Now(), quiet: srv.QuietLogin,
	}
}

// run is a connection's whole story.
func (s *session) run() {
	defer s.stop()
	defer s.conn.Close()
	defer func() {
		if s.recovered(recover()) != nil && s.up != nil {
			s.srv.keys.remove(s)
			s.up.Close()
		}
	}()
	asked := s.srv.rechecks.Load()
	remote := s.conn.RemoteAddr()
	s.deadline(s.srv.LoginTimeout)
	caller, whoErr := s.identify(remote)

	st, err := readStartup(s.ctx, s.conn, s.srv.TLS)
	if st != nil {
		s.conn = st.conn
	}
	if err != nil {
		s.refuse(err)
		return
	}
	st.client = policy.RedactText(st.client) // it is shown to others, and logged
	s.startup = st
	if st.cancel != nil {
		s.serveCancel(caller, whoErr)
		return
	}
	s.log = s.log.With("session", s.id, "user", caller.Who(), "node", caller.Node, "addr", caller.Addr)
	if err := s.open(caller, whoErr); err != nil {
		s.refuse(err)
		return
	}
	defer s.srv.dismiss(s)
	if err := s.connect(); err != nil {
		s.refuse(err)
		return
	}
	s.enter(deciding)
	if s.srv.rechecks.Load() != asked {
		s.recheck(s.ctx) // what was asked at the beginning may be true no more
	}
	s.finish(s.converse())
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

// deadline bounds the next phase of the client connection; 0 lifts the bound.
func (s *session) deadline(d time.Duration) {
	var t time.Time
	if d > 0 {
		t = time.Now().Add(d)
	}
	s.conn.SetDeadline(t)
}

func (s *session) identify(remote net.Addr) (policy.Caller, error) {
	if remote == nil { // a tsnet connection that was reset already
		return policy.Caller{}, errors.New("the connection has no remote address")
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
	return caller, err
}

func (s *session) serveCancel(caller policy.Caller, whoErr error) {
	if whoErr != nil {
		s.srv.dropCancel(caller, whoErr)
		return
	}
	ctx, cancel := context.WithTimeout(s.ctx, 2*exchange.CancelTimeout)
	defer cancel()
	s.srv.cancelRequest(ctx, caller, s.startup.cancel)
}

// open decides whether the caller gets a session at all. From here on the
// client is told AuthenticationOk before anything else: libpq takes a FATAL
// before it for a reason to try again without TLS.
func (s *session) open(caller policy.Caller, whoErr error) *sessionError {
	s.out = frame.Append(s.out, 'R', 0, 0, 0, 0)
	if r, ok := errors.AsType[*policy.Refusal](whoErr); ok {
		return s.refusal(r)
	}
	if whoErr != nil || caller.Who() == "" {
		e := fatal(codeInvalidAuthorization, "pgproxy: the tailnet does not know who you are", reasonRefused)
		e.cause = whoErr
		return e
	}
	if s.srv.RequireTLS && !s.startup.tls {
		return fatal(codeInvalidAuthorization, "pgproxy: TLS is required", reasonRefused).
			withHint("Use sslmode=require or stricter.")
	}
	rule, err := s.srv.Rules(caller)
	if err != nil {
		return s.refusal(err)
	}
	s.base, s.rule, s.told = rule, rule, rule
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
		s.srv.metrics.refused(e.code)
		rec := s.newRecord(audit.Refuse)
		rec.SQLState, rec.Error = e.code, policy.RedactError(policy.Redacted, e.code, e.message, "", "")
		s.srv.record(rec)
		s.log.Info("connection refused", "sqlstate", e.code, "error", rec.Error, errAttr(e.cause))
		s.conn.Write(e.append(s.out))
		closeGently(s.conn)
	} else if e.cause != nil {
		s.log.Debug("connection closed before it became a session", "err", e.cause)
	}
}

// closeGently lets the last bytes arrive: a connection closed with unread
// input is reset, and the reset may overtake them.
func closeGently(conn net.Conn) {
	if cw, ok := conn.(interface{ CloseWrite() error }); ok && cw.CloseWrite() == nil {
		conn.SetReadDeadline(time.Now().Add(time.Second))
		var b [512]byte
		for n := 0; n < 1<<20; {
			m, err := conn.Read(b[:])
			if err != nil {
				break
			}
			n += m
		}
	}
	conn.Close()
}

// connect opens the upstream and makes the session ready for statements.
func (s *session) connect() *sessionError {
	params, rule, e := s.parameters()
	if e != nil {
		return e
	}
	ctx := s.ctx
	if d := s.srv.ConnectTimeout; d > 0 {
		c, cancel := context.WithTimeout(ctx, d)
		defer cancel()
		ctx = c
	}
	began := time.Now()
	up, err := s.srv.Dial(ctx, upstream.Request{Database: s.database, Params: params})
	s.srv.metrics.connected(time.Since(began), err)
	if err != nil {
		return dialError(err)
	}
	s.mu.Lock()
	s.up = up
	aborted := s.aborted
	s.mu.Unlock()
	if aborted {
		up.Close()
		return silent(reasonShutdown, nil)
	}
	s.client = frame.Reader{Conn: s.conn, Wait: frame.NewWaiter(&s.srv.busy, s.conn)}
	s.backend = exchange.New(up, s, frame.NewWaiter(&s.srv.busy, up.Net), rule, params)
	s.log = s.log.With("database", s.database, "upstream_pid", up.PID)
	if err := s.srv.write(s.newRecord(audit.Connect)); err != nil {
		up.Close()
		return s.unrecorded("FATAL", err)
	}
	s.log.Info("session started", "client", s.startup.client, "access", rule.Access.String())
	s.srv.keys.add(s)
	s.deadline(handshakeTimeout)
	defer s.deadline(0)
	if _, err := s.conn.Write(s.appendWelcome(s.out)); err != nil {
		s.markDead(reasonClientLost)
	}
	s.out = nil
	return nil
}

// inForce is the session's rule as of now. Another may come at any time: see
// Server.Recheck.
func (s *session) inForce() policy.Rule {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rule
}

func dialError(err error) *sessionError {
	e := fatal(codeCannotConnect, "pgproxy: the upstream is out of reach", reasonUpstream)
	if d, ok := errors.AsType[*upstream.DialError](err); ok {
		e.code, e.message, e.detail, e.hint = d.Code, d.Message, d.Detail, d.Hint
	}
	e.cause = err
	return e
}

// unrecorded is the answer when an audit record cannot be written.
func (s *session) unrecorded(severity string, err error) *sessionError {
	s.log.Error("audit record not written", "err", err)
	return &sessionError{severity: severity, code: codeIOError, reason: reasonRefused,
		message: "pgproxy: the audit record cannot be written, so nothing was sent to the server",
		hint:    "Tell who runs pgproxy; try again when its audit log can be written."}
}

// finish ends a session that was ready: its last word, its record, its log
// line.
func (s *session) finish(e *sessionError) {
	s.mu.Lock()
	s.phase = ending
	s.setBusyLocked(false)
	s.mu.Unlock()
	s.srv.keys.remove(s)
	s.stop()
	if s.deadAs.Load() == nil && (!e.quiet || e.reason == reasonUpstream) {
		s.deadline(time.Second)
		if !e.quiet {
			s.conn.Write(e.append(nil))
		}
		closeGently(s.conn)
	}
	s.conn.Close()
	s.tasks.Wait() // cancels still need the upstream's address, none its connection
	s.up.Close()
	rec := s.newRecord(audit.Disconnect)
	rec.EndReason = string(e.reason)
	rec.SQLState = e.code
	lasted := time.Since(s.began)
	rec.DurationMS = milliseconds(lasted)
	rec.Statements, rec.Rows, rec.Bytes = load(&s.statements), load(&s.rows), load(&s.bytes)
	s.srv.record(rec)
	s.srv.metrics.ended(e.reason)
	level := slog.LevelInfo
	if e.reason == reasonInternal {
		level = slog.LevelError
	}
	s.log.Log(context.Background(), level, "session ended", "reason", string(e.reason), "lasted", lasted.Round(time.Millisecond),
		"statements", s.statements.Load(), "rows", s.rows.Load(), "bytes", s.bytes.Load(), errAttr(e.cause))
}

func errAttr(err error) slog.Attr {
	if err == nil {
		return slog.Attr{}
	}
	return slog.String("err", policy.RedactText(err.Error())) // it may quote what a client chose
}

func load(n *atomic.Int64) *int64 {
	v := n.Load()
	return &v
}

func milliseconds(d time.Duration) *float64 {
	ms := float64(d.Microseconds()) / 1000
	return &ms
}

// newRecord fills in what every record of the session says.
func (s *session) newRecord(event audit.Event) *audit.Record {
	rec := &audit.Record{
		Time: time.Now(), Event: event, Session: s.id,
		User: s.caller.Who(), Node: s.caller.Node, NodeID: s.caller.NodeID, Tags: s.caller.Tags, Addr: s.caller.Addr,
		Database: s.database, ApplicationName: s.stamp,
	}
	if s.startup != nil {
		rec.Client, rec.RequestedUser = s.startup.client, s.startup.user
	}
	if s.up != nil {
		rec.Upstream, rec.UpstreamPID = s.up.Addr, s.up.PID
	}
	s.mu.Lock()
	rec.Reason = s.lifts.Reason()
	s.mu.Unlock()
	return rec
}

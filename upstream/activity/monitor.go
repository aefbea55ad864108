package activity

import (
	"context"
	"errors"
	"fmt"
	"time"

	"pgproxy/upstream"

	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// interval is how long a reading is good for, or its failure.
	interval = time.Second
	// linger is how long the connection stays open after the last look.
	linger = 30 * time.Second
)

// ErrClosed is what a Monitor says after Close.
var ErrClosed = errors.New("activity: closed")

// Monitor looks at one database. Its methods are safe for concurrent use.
type Monitor struct {
	dial func(context.Context) (*upstream.Conn, error)
	// turn is held by whoever uses the fields below; it is a channel, so that
	// waiting for it can be given up.
	turn   chan struct{}
	linger time.Duration
	conn   *upstream.Conn // nil = not open
	unused *time.Timer    // closes conn
	closed bool

	last *Snapshot
	err  error
	read time.Time // when last and err are from
}

// NewMonitor returns a Monitor of a database. It opens no connection before
// somebody looks. It must be closed.
func NewMonitor(dial func(context.Context, upstream.Request) (*upstream.Conn, error), database string) *Monitor {
	m := &Monitor{turn: make(chan struct{}, 1), linger: linger}
	params := parameters("monitor")
	params["default_transaction_read_only"] = "on"
	m.dial = func(ctx context.Context) (*upstream.Conn, error) {
		return dial(ctx, upstream.Request{Database: database, Params: params})
	}
	return m
}

// parameters keep a connection from holding up anybody, and make its answers
// the same everywhere.
func parameters(task string) map[string]string {
	return map[string]string{
		"application_name":                    upstream.HelperName(task),
		"statement_timeout":                   "2s",
		"lock_timeout":                        "500ms",
		"idle_in_transaction_session_timeout": "5s",
		"search_path":                         "pg_catalog",
		"TimeZone":                            "UTC",
		"jit":                                 "off",
		"max_parallel_workers_per_gather":     "0",
	}
}

// Snapshot returns what the database is doing, as of a second ago at most. The
// error is the server's *pgconn.PgError, an [*upstream.DialError], or ctx's.
func (m *Monitor) Snapshot(ctx context.Context) (*Snapshot, error) {
	select {
	case m.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-m.turn }()
	if m.closed {
		return nil, ErrClosed
	}
	defer m.keepOpen()
	if time.Since(m.read) < interval {
		return m.last, m.err
	}
	s, err := m.look(ctx)
	if err != nil && ctx.Err() != nil {
		return nil, ctx.Err() // this caller has given up, and no other
	}
	m.last, m.err, m.read = s, err, time.Now()
	return s, err
}

// keepOpen has the connection closed when nobody looks any more.
func (m *Monitor) keepOpen() {
	if m.unused == nil {
		m.unused = time.AfterFunc(m.linger, m.closeUnused)
		return
	}
	m.unused.Reset(m.linger)
}

func (m *Monitor) closeUnused() {
	select {
	case m.turn <- struct{}{}:
		m.hangUp()
		m.last = nil
		<-m.turn
	default: // somebody looks right now
	}
}

// CloseUnused closes a Monitor that has no connection and that nobody waits for,
// and reports whether it has.
func (m *Monitor) CloseUnused() bool {
	select {
	case m.turn <- struct{}{}:
	default:
		return false
	}
	defer func() { <-m.turn }()
	if m.conn != nil {
		return false
	}
	m.closed = true
	if m.unused != nil {
		m.unused.Stop()
	}
	return true
}

// Close closes the connection and waits for who is looking.
func (m *Monitor) Close() {
	m.turn <- struct{}{}
	defer func() { <-m.turn }()
	m.closed = true
	if m.unused != nil {
		m.unused.Stop()
	}
	m.hangUp()
}

func (m *Monitor) hangUp() {
	if m.conn != nil {
		m.conn.Close()
		m.conn = nil
	}
}

// look reads a snapshot. A connection that has lain open may be dead: then it
// tries once more on a new one.
func (m *Monitor) look(ctx context.Context) (*Snapshot, error) {
	kept := m.conn != nil
	s, err := m.ask(ctx)
	if err != nil && kept && m.conn == nil && ctx.Err() == nil {
		s, err = m.ask(ctx)
	}
	return s, err
}

func (m *Monitor) ask(ctx context.Context) (*Snapshot, error) {
	if m.conn == nil {
		conn, err := m.dial(ctx)
		if err != nil {
			return nil, err
		}
		m.conn = conn
	}
	s := &Snapshot{Upstream: m.conn.Addr}
	if err := m.query(ctx, s, backendsQuery); err != nil {
		return nil, err
	}
	err := m.query(ctx, s, serverQuery)
	if refused, ok := errors.AsType[*pgconn.PgError](err); ok && m.conn != nil {
		s.Unseen = append(s.Unseen, fmt.Sprintf("The server does not tell of replication and connections: %s.", refused.Message))
		err = nil
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// query adds the answer to one query. After an error of the connection, m.conn
// is nil.
func (m *Monitor) query(ctx context.Context, s *Snapshot, sql string) error {
	rows, err := m.conn.Query(ctx, sql)
	if err == nil {
		return s.read(rows)
	}
	if refused, ok := errors.AsType[*pgconn.PgError](err); !ok || refused.Severity != "ERROR" {
		m.hangUp()
	}
	return err
}

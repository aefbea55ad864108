package endtoend

import (
	"context"
	"errors"
	"io"
	"net"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pgproxy/node/nodetest"
	"pgproxy/wire/audit"
)

// asWritten leaves a name to whoever dials it.
func asWritten(_ context.Context, host string) ([]string, error) { return []string{host}, nil }

// network is how a device reaches a proxy: its own tailnet connection, or for a
// nil peer the loopback.
func network(from *nodetest.Peer) func(ctx context.Context, network, addr string) (net.Conn, error) {
	if from == nil {
		return new(net.Dialer).DialContext
	}
	return func(ctx context.Context, _, addr string) (net.Conn, error) { return from.Dial(ctx, addr) }
}

// session is somebody's session through a proxy, in the simple protocol.
type session struct {
	*pgconn.PgConn
	id string // pgproxy's name for it

	mu      sync.Mutex
	notices []*pgconn.Notice
	errors  []*pgconn.PgError // all of them, in order
}

// connect opens a session from a device, as the database's user "whoever".
func (p *proxy) connect(t *testing.T, from *nodetest.Peer, change ...func(*pgconn.Config)) *session {
	t.Helper()
	s, err := p.tryConnect(t, from, change...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (p *proxy) tryConnect(t *testing.T, from *nodetest.Peer, change ...func(*pgconn.Config)) (*session, error) {
	t.Helper()
	host, port, err := net.SplitHostPort(p.addr)
	if err != nil {
		t.Fatal(err)
	}
	config, err := pgconn.ParseConfig("host=" + host + " port=" + port + " user=whoever dbname=app sslmode=disable application_name=e2e")
	if err != nil {
		t.Fatal(err)
	}
	s := new(session)
	config.LookupFunc = asWritten
	config.DialFunc = network(from)
	config.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) { s.note(n, nil) }
	config.OnPgError = func(_ *pgconn.PgConn, e *pgconn.PgError) bool {
		s.note(nil, e)
		return e.Severity != "FATAL"
	}
	for _, f := range change {
		f(config)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if s.PgConn, err = pgconn.ConnectConfig(ctx, config); err != nil {
		return nil, err
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second) // the proxy may be gone
		defer cancel()
		s.Close(ctx)
	})
	s.id = s.value(t, "SELECT current_setting('pgproxy.session')")
	return s, nil
}

func (s *session) note(n *pgconn.Notice, e *pgconn.PgError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n != nil {
		s.notices = append(s.notices, n)
	}
	if e != nil {
		s.errors = append(s.errors, e)
	}
}

// last is the last error.
func (s *session) last() *pgconn.PgError {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.errors) == 0 {
		return new(pgconn.PgError)
	}
	return s.errors[len(s.errors)-1]
}

// try runs SQL and returns the rows of its last result.
func (s *session) try(ctx context.Context, sql string) ([][]string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	results, err := s.Exec(ctx, sql).ReadAll()
	if err != nil || len(results) == 0 {
		return nil, err
	}
	var rows [][]string
	for _, row := range results[len(results)-1].Rows {
		var texts []string
		for _, value := range row {
			texts = append(texts, string(value))
		}
		rows = append(rows, texts)
	}
	return rows, nil
}

// query runs SQL that must succeed.
func (s *session) query(t *testing.T, sql string) [][]string {
	t.Helper()
	rows, err := s.try(t.Context(), sql)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return rows
}

// value is the one value of a query's one row.
func (s *session) value(t *testing.T, sql string) string {
	t.Helper()
	rows := s.query(t, sql)
	if len(rows) != 1 || len(rows[0]) != 1 {
		t.Fatalf("%s: got %v, want one value", sql, rows)
	}
	return rows[0][0]
}

// refused runs SQL that must fail with this SQLSTATE.
func (s *session) refused(t *testing.T, sql, code string) *pgconn.PgError {
	t.Helper()
	_, err := s.try(t.Context(), sql)
	return wantCode(t, sql, err, code)
}

// wantCode requires an error of PostgreSQL's with this SQLSTATE.
func wantCode(t *testing.T, what string, err error, code string) *pgconn.PgError {
	t.Helper()
	var e *pgconn.PgError
	if !errors.As(err, &e) || e.Code != code {
		t.Fatalf("%s: got %v, want %s", what, err, code)
	}
	return e
}

// statement is one that runs in the background.
type statement struct {
	done chan struct{}
	err  error // valid after done
}

// begin starts a statement, and returns when the server has it sleeping: sql
// must call pg_sleep.
func (s *session) begin(t *testing.T, sql string) *statement {
	t.Helper()
	st := s.send(t, sql)
	eventually(t, patience, sql+" runs", func() bool { return s.backend(t) == "PgSleep" })
	return st
}

// send starts a statement.
func (s *session) send(t *testing.T, sql string) *statement {
	t.Helper()
	st := &statement{done: make(chan struct{})}
	ctx := t.Context()
	go func() {
		defer close(st.done)
		_, st.err = s.Exec(ctx, sql).ReadAll()
	}()
	t.Cleanup(func() { // before the session's own
		s.Conn().Close()
		<-st.done
	})
	return st
}

// wait waits for the statement's end and returns its error.
func (st *statement) wait(t *testing.T, limit time.Duration) error {
	t.Helper()
	select {
	case <-st.done:
		return st.err
	case <-time.After(limit):
		t.Fatalf("the statement has not ended within %v", limit)
		return nil
	}
}

// backend is what the session's backend waits for, and empty when there is no
// such backend.
func (s *session) backend(t *testing.T) string {
	t.Helper()
	rows := postgres.Exec(t, "SELECT wait_event FROM pg_stat_activity WHERE application_name LIKE 'go-proxy %' AND pid = "+uitoa(s.PID()))
	if len(rows) == 0 {
		return ""
	}
	return rows[0][0]
}

// gone waits until the session's backend has ended, on the server.
func (s *session) gone(t *testing.T, limit time.Duration) {
	t.Helper()
	eventually(t, limit, "the backend has ended", func() bool {
		return len(postgres.Exec(t, "SELECT pid FROM pg_stat_activity WHERE pid = "+uitoa(s.PID()))) == 0
	})
}

// ended waits until the proxy has ended the session, which is idle, and
// returns the error it was told.
func (s *session) ended(t *testing.T, limit time.Duration) *pgconn.PgError {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	err := s.WaitForNotification(ctx)
	if ctx.Err() != nil {
		t.Fatalf("the session has not ended within %v: %v", limit, err)
	}
	return s.last()
}

// disconnect is the session's last record.
func (p *proxy) disconnect(t *testing.T, s *session) audit.Record {
	t.Helper()
	return p.record(t, "the end of "+s.id, func(r audit.Record) bool {
		return r.Event == audit.Disconnect && r.Session == s.id
	})
}

// freeAddr is an address on loopback where nobody listens.
func freeAddr(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// door is a port on loopback that leads to a proxy from a person's device, for
// programs that cannot dial from inside this process.
func door(t *testing.T, p *proxy, from *nodetest.Peer) (port string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		ln.Close()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { pass(ctx, c, from, p.addr) })
		}
	})
	_, port, _ = net.SplitHostPort(ln.Addr().String())
	return port
}

// pass carries one connection, until one of its ends closes or ctx ends.
func pass(ctx context.Context, client net.Conn, from *nodetest.Peer, addr string) {
	defer client.Close()
	upstream, err := from.Dial(ctx, addr)
	if err != nil {
		return
	}
	defer upstream.Close()
	stop := context.AfterFunc(ctx, func() {
		client.Close()
		upstream.Close()
	})
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		io.Copy(upstream, client)
		upstream.Close()
	})
	io.Copy(client, upstream)
	client.Close()
}

// psql is a command that runs psql from a person's device.
func psql(t *testing.T, p *proxy, from *nodetest.Peer, args ...string) *exec.Cmd {
	t.Helper()
	path, err := postgres.Psql()
	if err != nil {
		t.Skip(err)
	}
	args = append([]string{"-X", "-At", "-h", "127.0.0.1", "-p", door(t, p, from), "-U", "whoever", "-d", "app"}, args...)
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Env = slices.DeleteFunc(postgres.Env(), func(e string) bool { return strings.HasPrefix(e, "LC_") || strings.HasPrefix(e, "LANG=") })
	return cmd
}

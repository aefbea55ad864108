package upstream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"pgproxy/upstream/upstreamtest"
)

// timeout bounds what should take milliseconds.
const timeout = 30 * time.Second

func dial(tb testing.TB, dsn string, req Request) (*Conn, error) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), timeout)
	defer cancel()
	conn, err := parse(tb, dsn).Dial(ctx, req)
	if err == nil {
		tb.Cleanup(func() { conn.Close() })
	}
	return conn, err
}

func mustDial(tb testing.TB, dsn string, req Request) *Conn {
	tb.Helper()
	conn, err := dial(tb, dsn, req)
	if err != nil {
		tb.Fatal(err)
	}
	return conn
}

// wantDialError checks the error's code and a piece of its message.
func wantDialError(tb testing.TB, err error, code, message string) {
	tb.Helper()
	d, ok := errors.AsType[*DialError](err)
	if !ok {
		tb.Fatalf("got %v, want a DialError", err)
	}
	if d.Code != code || !strings.Contains(d.Message, message) {
		tb.Errorf("got %s %q, want %s with %q (cause: %v)", d.Code, d.Message, code, message, d.Cause)
	}
	for _, secret := range []string{upstreamtest.Password, url.QueryEscape(upstreamtest.Password)} {
		if strings.Contains(d.Message+d.Detail+d.Hint+d.Error(), secret) {
			tb.Errorf("the password is in %q, %q", d.Message, d.Error())
		}
	}
	if code == codeUnreachable && (strings.Contains(d.Message, "127.0.0.1") || strings.Contains(d.Message, "app")) {
		tb.Errorf("an address or a name is in %q", d.Message)
	}
}

// query runs one statement on the raw connection and returns its first value
// and error.
func query(tb testing.TB, c *Conn, sql string) (string, *pgproto3.ErrorResponse) {
	tb.Helper()
	c.Net.SetDeadline(time.Now().Add(timeout))
	fe := pgproto3.NewFrontend(c.Net, c.Net)
	fe.Send(&pgproto3.Query{String: sql})
	if err := fe.Flush(); err != nil {
		tb.Fatal(err)
	}
	var value string
	var failed *pgproto3.ErrorResponse
	for {
		msg, err := fe.Receive()
		if err != nil {
			tb.Fatal(err)
		}
		switch msg := msg.(type) {
		case *pgproto3.DataRow:
			value = string(msg.Values[0])
		case *pgproto3.ErrorResponse:
			e := *msg
			failed = &e
		case *pgproto3.ReadyForQuery:
			return value, failed
		}
	}
}

func TestDialTakesTheStartupParameters(t *testing.T) {
	upstreamtest.Versions(t, func(t *testing.T, s *upstreamtest.Server) {
		conn := mustDial(t, s.DSN("app", "app"), Request{Params: map[string]string{
			"application_name":  "go-proxy tsnode=laptop|user=alice@example.com",
			"pgproxy.user":      "ålice o'neil@example.com \\ 雪",
			"pgproxy.node":      "laptop",
			"statement_timeout": "31s",
			"client_encoding":   "LATIN1", // the proxy's own wins
		}})
		for name, want := range map[string]string{
			"application_name":            "go-proxy tsnode=laptop|user=alice@example.com",
			"pgproxy.user":                "ålice o'neil@example.com \\ 雪",
			"pgproxy.node":                "laptop",
			"statement_timeout":           "31s",
			"client_encoding":             "UTF8",
			"standard_conforming_strings": "on",
			checkInterval:                 "10s",
		} {
			if got, _ := query(t, conn, "SELECT current_setting('"+name+"')"); got != want {
				t.Errorf("%s = %q, want %q", name, got, want)
			}
		}
		if conn.Version != s.Major || conn.Database != "app" || conn.Addr != s.Addr() || len(conn.Key) != 4 {
			t.Errorf("got version %d, database %q, address %q, key of %d bytes", conn.Version, conn.Database, conn.Addr, len(conn.Key))
		}
		if conn.Params["server_version"] == "" || conn.Params["TimeZone"] == "" {
			t.Errorf("parameters are missing from %v", conn.Params)
		}
		if err := s.AwaitLog(t.Context(), "application_name=go-proxy tsnode=laptop|user=alice@example.com"); err != nil {
			t.Error(err)
		}
	})
}

func TestDialOverUnixSocket(t *testing.T) {
	s := upstreamtest.Shared(t)
	conn := mustDial(t, s.SocketDSN("app", "app"), Request{})
	if want := filepath.Join(s.SocketDir, ".s.PGSQL."); !strings.HasPrefix(conn.Addr, want) {
		t.Errorf("address %q, want %s…", conn.Addr, want)
	}
	if got, _ := query(t, conn, "SELECT 42"); got != "42" {
		t.Errorf("got %q", got)
	}
}

func TestDialAnotherDatabase(t *testing.T) {
	s := upstreamtest.Shared(t)
	conn := mustDial(t, s.DSN("app", "app"), Request{Database: "postgres"})
	if got, _ := query(t, conn, "SELECT current_database()"); got != "postgres" || conn.Database != "postgres" {
		t.Errorf("connected to %q, says %q", got, conn.Database)
	}
}

func TestServersOwnLoginErrors(t *testing.T) {
	s := upstreamtest.Shared(t)
	wrong := strings.Replace(s.DSN("app", "app"), url.PathEscape(upstreamtest.Password), "wrong", 1)
	for _, tt := range []struct {
		name, dsn     string
		req           Request
		code, message string
	}{
		{"unknown database", s.DSN("app", "app"), Request{Database: "nope"}, "3D000", `database "nope" does not exist`},
		{"wrong password", wrong, Request{}, "28P01", "password authentication failed"},
		{"unknown role", s.DSN("nobody", "app"), Request{}, "28P01", "password authentication failed"},
		{"unknown setting", s.DSN("app", "app"), Request{Params: map[string]string{"nonsense": "1"}}, "42704", "nonsense"},
		{"bad value", s.DSN("app", "app"), Request{Params: map[string]string{"statement_timeout": "soon"}}, "22023", "statement_timeout"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := dial(t, tt.dsn, tt.req)
			wantDialError(t, err, tt.code, tt.message)
		})
	}
}

func TestPasswordMethods(t *testing.T) {
	s := upstreamtest.Start(t, upstreamtest.Set("password_encryption", "md5"),
		upstreamtest.HBA("host app md5role 127.0.0.1/32 md5", "host app plain 127.0.0.1/32 password"))
	s.Exec(t, "CREATE ROLE md5role LOGIN PASSWORD '"+upstreamtest.Password+"'; CREATE ROLE plain LOGIN PASSWORD '"+upstreamtest.Password+"'")
	for _, role := range []string{"app", "md5role", "plain"} {
		if got, _ := query(t, mustDial(t, s.DSN(role, "app"), Request{}), "SELECT current_user"); got != role {
			t.Errorf("got %q, want %q", got, role)
		}
	}
	_, err := dial(t, s.DSN("plain", "app")+"&require_auth=scram-sha-256", Request{})
	wantDialError(t, err, codeUnreachable, "cannot be used")
}

func TestTLS(t *testing.T) {
	upstreamtest.Versions(t, func(t *testing.T, s *upstreamtest.Server) {
		dir := t.TempDir()
		other := filepath.Join(dir, "other.crt")
		if err := upstreamtest.MakeCertificate(other, filepath.Join(dir, "x"), filepath.Join(dir, "y")); err != nil {
			t.Fatal(err)
		}
		base, _, _ := strings.Cut(s.DSN("app", "app"), "?")
		ca := "&sslrootcert=" + url.QueryEscape(s.CAFile)
		for _, tt := range []struct {
			name, query, reason string // no reason: it connects
			minimum             int
		}{
			{"verify-full", "sslmode=verify-full" + ca, "", 0},
			{"verify-ca", "sslmode=verify-ca" + ca, "", 0},
			{"require", "sslmode=require", "", 0},
			{"direct", "sslmode=verify-full&sslnegotiation=direct" + ca, "", 17},
			{"channel binding", "sslmode=verify-full&channel_binding=require" + ca, "", 0},
			{"unknown authority", "sslmode=verify-full&sslrootcert=" + url.QueryEscape(other), "unknown authority", 0},
			{"verify-ca, unknown authority", "sslmode=verify-ca&sslrootcert=" + url.QueryEscape(other), "unknown authority", 0},
		} {
			t.Run(tt.name, func(t *testing.T) {
				if s.Major < tt.minimum {
					t.Skipf("needs PostgreSQL %d", tt.minimum)
				}
				conn, err := dial(t, base+"?"+tt.query, Request{})
				if tt.reason != "" {
					wantDialError(t, err, codeUnreachable, tt.reason)
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if got, _ := query(t, conn, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"); got != "t" {
					t.Error("the session is not encrypted")
				}
				testCancelsSleep(t, conn)
			})
		}
	}, upstreamtest.TLS())
}

func TestWrongNameInCertificate(t *testing.T) {
	s := upstreamtest.Start(t, upstreamtest.TLS(), upstreamtest.Set("listen_addresses", "127.0.0.1,127.0.0.2"))
	_, err := dial(t, strings.Replace(s.DSN("app", "app"), "127.0.0.1", "127.0.0.2", 1), Request{})
	wantDialError(t, err, codeUnreachable, "another name")
}

func TestServerWithoutTLS(t *testing.T) {
	s := upstreamtest.Shared(t)
	_, err := dial(t, strings.Replace(s.DSN("app", "app"), "disable", "require", 1), Request{})
	wantDialError(t, err, codeUnreachable, "does not offer TLS")
}

// deadAddr is an address of this machine where nobody listens.
const deadAddr = "127.0.0.1:1"

func TestSeveralHosts(t *testing.T) {
	s := upstreamtest.Shared(t)
	conn := mustDial(t, strings.Replace(s.DSN("app", "app"), s.Addr(), deadAddr+","+s.Addr(), 1), Request{})
	if conn.Addr != s.Addr() {
		t.Errorf("address %q, want %q", conn.Addr, s.Addr())
	}
}

// A host that accepts and says nothing leaves the next one its share.
func TestSilentHostLeavesTimeForTheNext(t *testing.T) {
	s := upstreamtest.Shared(t)
	silent := upstreamtest.StartFake(t, upstreamtest.Script{upstreamtest.Stall()})
	c := parse(t, strings.Replace(s.DSN("app", "app"), s.Addr(), "localhost:"+port(silent.Addr())+","+s.Addr(), 1))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	conn, err := c.Dial(ctx, Request{})
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

func port(addr string) string {
	_, p, _ := net.SplitHostPort(addr)
	return p
}

func TestTargetSessionAttrs(t *testing.T) {
	readOnly := upstreamtest.Start(t, upstreamtest.Set("default_transaction_read_only", "on"))
	s := upstreamtest.Shared(t)
	both := strings.Replace(s.DSN("app", "app"), s.Addr(), readOnly.Addr()+","+s.Addr(), 1)
	for attrs, want := range map[string]string{"read-write": s.Addr(), "read-only": readOnly.Addr(), "any": readOnly.Addr(), "prefer-standby": s.Addr()} {
		conn := mustDial(t, both+"&target_session_attrs="+attrs, Request{})
		if conn.Addr != want {
			t.Errorf("%s: connected to %s, want %s", attrs, conn.Addr, want)
		}
		if got, _ := query(t, conn, "SELECT 42"); got != "42" {
			t.Errorf("%s: the connection is not in step: %q", attrs, got)
		}
	}
	_, err := dial(t, s.DSN("app", "app")+"&target_session_attrs=read-only", Request{})
	wantDialError(t, err, codeUnreachable, "target_session_attrs")
}

func TestOutOfReach(t *testing.T) {
	dsn := func(addr string) string { return "postgres://app:correct%20horse@" + addr + "/app?sslmode=disable" }
	fake := func(steps ...upstreamtest.Step) string { return dsn(upstreamtest.StartFake(t, steps).Addr()) }
	for _, tt := range []struct{ name, dsn, reason string }{
		{"refused", dsn(deadAddr), "connection refused"},
		{"no such name", dsn("nosuchhost.invalid"), "cannot be resolved"},
		{"no socket", "host=/does/not/exist user=app", "no server at the Unix socket"},
		{"closes", fake(upstreamtest.ExpectStartup()), "closed the connection"},
		{"closes in mid-frame", fake(upstreamtest.ExpectStartup(), upstreamtest.SendBytes([]byte{'R', 0, 0})), "closed the connection"},
		{"resets", fake(upstreamtest.ExpectStartup(), upstreamtest.Reset()), "closed the connection"},
		{"not PostgreSQL", fake(upstreamtest.ExpectStartup(), upstreamtest.SendBytes([]byte("HTTP/1.1 400 Bad Request\r\n"))), "cannot be used"},
		{"negative length", fake(upstreamtest.ExpectStartup(), upstreamtest.SendBytes([]byte{'R', 0, 0, 0, 0, 'Z', 255, 255, 255, 255})), "cannot be used"},
		{"other encoding", fake(upstreamtest.Login(), upstreamtest.Send(&pgproto3.ParameterStatus{Name: "client_encoding", Value: "SJIS"}), upstreamtest.Ready('I')), "cannot be used"},
		{"in a transaction", fake(upstreamtest.Login(), upstreamtest.Ready('T')), "cannot be used"},
		{"long key", fake(upstreamtest.Login(), upstreamtest.Send(&pgproto3.BackendKeyData{ProcessID: 1, SecretKey: make([]byte, 32)}), upstreamtest.Ready('I')), "cannot be used"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := dial(t, tt.dsn, Request{})
			wantDialError(t, err, codeUnreachable, tt.reason)
		})
	}
}

func TestDialEndsWithItsContext(t *testing.T) {
	c := parse(t, upstreamtest.StartFake(t, upstreamtest.Script{upstreamtest.Stall()}).DSN())
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := c.Dial(ctx, Request{})
	wantDialError(t, err, codeUnreachable, "timed out")
}

// An error that only speaks of client_connection_check_interval teaches nothing:
// a client may have given it as a value.
func TestCheckIntervalIsNotUnlearned(t *testing.T) {
	c := parse(t, upstreamtest.Shared(t).DSN("app", "app"))
	if _, err := c.Dial(t.Context(), Request{Params: map[string]string{"DateStyle": checkInterval}}); err == nil {
		t.Fatal("no error")
	}
	if c.noCheckInterval.Load() {
		t.Error("it is not sent any more")
	}
}

// A server that does not know client_connection_check_interval says so once;
// later connections leave it out.
func TestCheckIntervalIsLearned(t *testing.T) {
	refuse := upstreamtest.Script{
		upstreamtest.ExpectStartup(),
		upstreamtest.Send(&pgproto3.ErrorResponse{Severity: "FATAL", Code: "42704", Message: `unrecognized configuration parameter "client_connection_check_interval"`}),
	}
	accept := upstreamtest.Script{
		func(c *upstreamtest.FakeConn) error {
			msg, err := c.Backend.ReceiveStartupMessage()
			if err != nil {
				return err
			}
			if p := msg.(*pgproto3.StartupMessage).Parameters; p[checkInterval] != "" {
				return errors.New("the parameter is still sent")
			}
			return nil
		},
		upstreamtest.Send(
			&pgproto3.AuthenticationOk{},
			&pgproto3.ParameterStatus{Name: "server_version", Value: "13.9"},
			&pgproto3.ParameterStatus{Name: "client_encoding", Value: "UTF8"},
			&pgproto3.ParameterStatus{Name: "standard_conforming_strings", Value: "on"},
			&pgproto3.BackendKeyData{ProcessID: 1, SecretKey: upstreamtest.FakeKey},
		),
		upstreamtest.Ready('I'),
		upstreamtest.ExpectEOF(),
	}
	c := parse(t, upstreamtest.StartFake(t, refuse, accept, accept).DSN())
	for range 2 {
		conn, err := c.Dial(t.Context(), Request{})
		if err != nil {
			t.Fatal(err)
		}
		if conn.Version != 13 {
			t.Errorf("version %d, want 13", conn.Version)
		}
		conn.Close()
	}
}

// What follows ReadyForQuery in the same packet, a frame and a half, is still
// in the connection; what came before is in Notices.
func TestNoBytesAreLost(t *testing.T) {
	notice := &pgproto3.NoticeResponse{Severity: "WARNING", SeverityUnlocalized: "WARNING", Code: "01000", Message: "collation", File: "x.c", Line: 7}
	late := upstreamtest.Encode(
		&pgproto3.NotificationResponse{PID: 7, Channel: "news", Payload: "late"},
		&pgproto3.ParameterStatus{Name: "TimeZone", Value: "UTC"},
	)
	half := len(late) - 7
	goOn := make(chan struct{})
	fake := upstreamtest.StartFake(t, upstreamtest.Script{
		upstreamtest.Login(),
		upstreamtest.SendBytes(slices.Concat(upstreamtest.Encode(notice, &pgproto3.ReadyForQuery{TxStatus: 'I'}), late[:half])),
		upstreamtest.Wait(goOn),
		upstreamtest.SendBytes(late[half:]),
		upstreamtest.ExpectEOF(),
	})
	conn := mustDial(t, fake.DSN(), Request{})
	close(goOn)
	if _, ok := conn.Net.(*net.TCPConn); !ok {
		t.Errorf("the connection is a %T", conn.Net)
	}
	got := make([]byte, len(late))
	if _, err := io.ReadFull(conn.Net, got); err != nil || !bytes.Equal(got, late) {
		t.Errorf("got %q, %v; want %q", got, err, late)
	}
	if len(conn.Notices) != 1 || !bytes.Equal(upstreamtest.Encode(conn.Notices[0]), upstreamtest.Encode(notice)) {
		t.Errorf("got notices %+v", conn.Notices)
	}
}

// slowConn's first Write takes until somebody reads in the background, has got
// something, and wants more.
type slowConn struct {
	net.Conn
	reads  atomic.Int32
	wanted chan struct{} // closed at the second Read
}

func (c *slowConn) Read(p []byte) (int, error) {
	if c.reads.Add(1) == 2 {
		close(c.wanted)
	}
	return c.Conn.Read(p)
}

func (c *slowConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	<-c.wanted
	return n, err
}

// Bytes that pgconn's background reader has taken, and those it is waiting
// for, reach the session.
func TestBackgroundReadersBytesAreKept(t *testing.T) {
	early := upstreamtest.Encode(&pgproto3.NotificationResponse{PID: 7, Channel: "news", Payload: "early"})
	late := upstreamtest.Encode(&pgproto3.NotificationResponse{PID: 7, Channel: "news", Payload: "late"})
	dialled := make(chan struct{})
	fake := upstreamtest.StartFake(t, upstreamtest.Script{
		upstreamtest.ExpectStartup(),
		upstreamtest.SendBytes(append(upstreamtest.Encode(
			&pgproto3.AuthenticationOk{},
			&pgproto3.ParameterStatus{Name: "client_encoding", Value: "UTF8"},
			&pgproto3.ParameterStatus{Name: "standard_conforming_strings", Value: "on"},
			&pgproto3.BackendKeyData{ProcessID: 1, SecretKey: upstreamtest.FakeKey},
			&pgproto3.ReadyForQuery{TxStatus: 'I'},
		), early...)),
		upstreamtest.Wait(dialled),
		upstreamtest.SendBytes(late),
		upstreamtest.ExpectEOF(),
	})
	c := parse(t, fake.DSN())
	c.pg.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dialHalf(ctx, network, address)
		return &slowConn{Conn: conn, wanted: make(chan struct{})}, err
	}
	conn, err := c.Dial(t.Context(), Request{})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	close(dialled)
	want := append(early, late...)
	got := make([]byte, len(want))
	if n, err := io.ReadFull(conn.Net, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %q, %v; want %q", got[:n], err, want)
	}
}

func TestMajorVersion(t *testing.T) {
	for s, want := range map[string]int{"18.4 (Debian 18.4-1)": 18, "15.20": 15, "19beta1": 19, "17devel": 17, "9.6.24": 9, "": 0, "x": 0} {
		if got := majorVersion(s); got != want {
			t.Errorf("%q: got %d, want %d", s, got, want)
		}
	}
}

package wire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgproxy/policy"
	"pgproxy/upstream/upstreamtest"
	"pgproxy/wire/audit"

	"github.com/jackc/pgx/v5/pgproto3"

	"pgproxy/wire/frame"
)

const (
	shutdownFatal = "E(57P01 pgproxy: terminating connection because pgproxy is shutting down)"
	lostFatal     = "E(08006 pgproxy: the connection to the upstream server was lost)"
	deceivedFatal = "E(08006 pgproxy: session closed: the server read the statement differently from pgproxy)"
)

// makeTable makes a table of one row, {1, 0}, for a test to change.
func makeTable(t testing.TB, name string) *upstreamtest.Server {
	t.Helper()
	pg := upstreamtest.Shared(t)
	pg.ExecAs(t, "app", "app", "CREATE TABLE "+name+" (id int PRIMARY KEY, n int); INSERT INTO "+name+" VALUES (1, 0)")
	t.Cleanup(func() { pg.ExecAs(t, "app", "app", "DROP TABLE "+name) })
	return pg
}

// value is what the table's row holds now.
func value(t testing.TB, table string) string {
	t.Helper()
	return upstreamtest.Shared(t).Exec(t, "SELECT n FROM "+table)[0][0]
}

// awaitGone waits until the session's backend has ended.
func (p *proxy) awaitGone(t testing.TB, c *client) {
	t.Helper()
	pg := upstreamtest.Shared(t)
	p.await(t, "the end of the backend", func() bool {
		return len(pg.Exec(t, fmt.Sprintf("SELECT 1 FROM pg_stat_activity WHERE pid = %d", c.pid))) == 0
	})
}

func (p *proxy) disconnected(t *testing.T, why reason) audit.Record {
	t.Helper()
	rec := p.records.event(t, audit.Disconnect)
	if rec.EndReason != string(why) {
		t.Errorf("the session ended by %q, want %q", rec.EndReason, why)
	}
	return rec
}

// Nothing runs on for a client that has gone.
func TestClientGoneInMidStatement(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	makeTable(t, "gone")
	for _, tt := range []struct{ name, sql string }{
		{"sleep", "SELECT pg_sleep(71)"},
		{"update", "UPDATE gone SET n = n + 1 WHERE id = 1 AND pg_sleep(72) IS NOT NULL"},
	} {
		for how, leave := range map[string]func(*net.TCPConn){
			"close":      func(c *net.TCPConn) { c.Close() },
			"reset":      func(c *net.TCPConn) { c.SetLinger(0); c.Close() },
			"half-close": func(c *net.TCPConn) { c.CloseWrite() },
		} {
			t.Run(tt.name+" "+how, func(t *testing.T) {
				p := startProxy(t)
				c := p.login(t)
				c.send(frame.AppendQuery(nil, tt.sql))
				p.awaitActive(t, tt.sql)
				left := time.Now()
				leave(c.conn.(*net.TCPConn))
				p.awaitGone(t, c)
				if took := time.Since(left); took > 2*time.Second {
					t.Errorf("the statement ran on for %v", took)
				}
				p.disconnected(t, reasonClientLost)
				if got := value(t, "gone"); got != "0" {
					t.Errorf("the row holds %s", got)
				}
			})
		}
	}
}

// A client that has left at rest ends its session; its transaction is rolled
// back.
func TestClientGoneAtRest(t *testing.T) {
	makeTable(t, "left_open")
	for name, leave := range map[string]func(*client){
		"Terminate": func(c *client) { c.send(frame.Append(nil, 'X')) },
		"close":     func(c *client) { c.conn.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			p := startProxy(t)
			c := p.login(t)
			c.want("BEGIN", "C(BEGIN) Z(T)")
			c.want("UPDATE left_open SET n = 7 WHERE id = 1", "C(UPDATE 1) Z(T)")
			leave(c)
			p.awaitGone(t, c)
			p.disconnected(t, reasonClient)
			if got := value(t, "left_open"); got != "0" {
				t.Errorf("the row holds %s", got)
			}
		})
	}
}

// A client that ends inside of a message has not asked for anything.
func TestClientGoneInMidMessage(t *testing.T) {
	makeTable(t, "half_asked")
	p := startProxy(t)
	c := p.login(t)
	q := frame.AppendQuery(nil, "UPDATE half_asked SET n = 7 WHERE id = 1")
	c.send(q[:len(q)-1])
	c.conn.Close()
	p.disconnected(t, reasonClientLost)
	if got := value(t, "half_asked"); got != "0" {
		t.Errorf("the row holds %s", got)
	}
}

// A client that does not read holds the server up no longer than
// writeProgress: the statement is cancelled, and the rest of it drained.
func TestClientNotReading(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	p := startProxy(t, withRule(func(r *policy.Rule) { r.MaxBytes, r.StatementTimeout = 0, 0 }))
	c := p.login(t)
	s := p.sessionOf(t, c)
	c.send(frame.AppendQuery(nil, "SELECT repeat('x', 50000000) FROM generate_series(1, 100)"))
	p.await(t, "the end of a write that waits for a minute", func() bool {
		if began := s.writing.Load(); began != 0 {
			s.writing.CompareAndSwap(began, time.Now().Add(-writeProgress-time.Second).UnixNano())
		}
		return s.lost.Load()
	})
	p.disconnected(t, reasonSlow)
	p.awaitGone(t, c)
	if rec := p.records.event(t, audit.Result); rec.SQLState != "57014" {
		t.Errorf("the statement was not cancelled: %+v", rec)
	}
}

// The server's last word reaches the client, whatever the session was doing.
func TestUpstreamTerminated(t *testing.T) {
	const last = "E(57P01 terminating connection due to administrator command)"
	for _, tt := range []struct{ name, before, sql string }{
		{"idle", "", ""},
		{"idle in transaction", "BEGIN", ""},
		{"running", "", "SELECT pg_sleep(73)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pg := upstreamtest.Shared(t)
			p := startProxy(t)
			c := p.login(t)
			if tt.before != "" {
				c.query(tt.before)
			}
			if tt.sql != "" {
				c.send(frame.AppendQuery(nil, tt.sql))
				p.awaitActive(t, tt.sql)
			}
			pg.Exec(t, fmt.Sprintf("SELECT pg_terminate_backend(%d)", c.pid))
			if got := strings.TrimPrefix(c.ended(), "T "); got != last {
				t.Errorf("got %s, want %s", got, last)
			}
			if rec := p.disconnected(t, reasonUpstream); rec.SQLState != "57P01" {
				t.Errorf("recorded %+v", rec)
			}
			if rec := p.records.all(); tt.sql != "" && rec[len(rec)-2].SQLState != "57P01" {
				t.Errorf("the result was recorded as %+v", rec[len(rec)-2])
			}
		})
	}
}

// startFake serves a scripted upstream, which comes to its first ReadyForQuery
// by itself.
func startFake(t testing.TB, session upstreamtest.Script, others ...upstreamtest.Script) *proxy {
	t.Helper()
	script := append(upstreamtest.Script{upstreamtest.Login(), upstreamtest.Ready('I')}, session...)
	fake := upstreamtest.StartFake(t, append([]upstreamtest.Script{script}, others...)...)
	return startProxyTo(t, fake.DSN())
}

func expectQuery(sql string) upstreamtest.Step {
	return upstreamtest.Expect(&pgproto3.Query{String: sql})
}

var (
	oneColumn = &pgproto3.RowDescription{Fields: []pgproto3.FieldDescription{{Name: []byte("n"), DataTypeOID: 25, DataTypeSize: -1, TypeModifier: -1}}}
	oneRow    = &pgproto3.DataRow{Values: [][]byte{[]byte("1")}}
	selectOne = &pgproto3.CommandComplete{CommandTag: []byte("SELECT 1")}
	readyIdle = &pgproto3.ReadyForQuery{TxStatus: 'I'}
)

// An upstream that ends without a word is told of between frames. Within a
// frame the client can only be hung up on.
func TestUpstreamLost(t *testing.T) {
	answer := upstreamtest.Encode(oneColumn, oneRow)
	bigRow := upstreamtest.Encode(&pgproto3.DataRow{Values: [][]byte{bytes.Repeat([]byte{'x'}, 100_000)}})
	run := func(t *testing.T, script ...upstreamtest.Step) (*proxy, *client) {
		p := startFake(t, script)
		c := p.login(t)
		c.send(frame.AppendQuery(nil, "SELECT 1"))
		return p, c
	}
	t.Run("idle", func(t *testing.T) {
		p := startFake(t, nil)
		c := p.login(t)
		if got := c.ended(); got != lostFatal {
			t.Errorf("got %s", got)
		}
		p.disconnected(t, reasonUpstream)
	})
	t.Run("before the answer", func(t *testing.T) {
		_, c := run(t, expectQuery("SELECT 1"))
		if got := c.ended(); got != lostFatal {
			t.Errorf("got %s", got)
		}
	})
	t.Run("between rows", func(t *testing.T) {
		p, c := run(t, expectQuery("SELECT 1"), upstreamtest.SendBytes(answer))
		if got := c.ended(); got != "T D(1) "+lostFatal {
			t.Errorf("got %s", got)
		}
		if rec := p.records.event(t, audit.Result); rec.SQLState != "08006" || *rec.Rows != 1 {
			t.Errorf("recorded %+v", rec)
		}
	})
	t.Run("inside a header", func(t *testing.T) {
		_, c := run(t, expectQuery("SELECT 1"), upstreamtest.SendBytes(append(bytes.Clone(answer), 'D', 0, 0)))
		if got := c.ended(); got != "T D(1) "+lostFatal {
			t.Errorf("got %s", got)
		}
	})
	t.Run("inside a row", func(t *testing.T) {
		half := append(bytes.Clone(answer), bigRow[:70_000]...)
		p, c := run(t, expectQuery("SELECT 1"), upstreamtest.SendBytes(half))
		if got := c.rest(); got != string(half) {
			t.Errorf("got %d bytes, the upstream sent %d; at the end %q", len(got), len(half), got[max(0, len(got)-50):])
		}
		p.disconnected(t, reasonUpstream)
	})
	t.Run("reset inside a row", func(t *testing.T) {
		_, c := run(t, expectQuery("SELECT 1"), upstreamtest.SendBytes(bigRow[:70_000]), upstreamtest.Reset())
		if got := c.rest(); !strings.HasPrefix(string(bigRow), got) {
			t.Errorf("got %q at the end", got[max(0, len(got)-50):])
		}
	})
	t.Run("FATAL to a statement of the proxy's own", func(t *testing.T) {
		fatal := &pgproto3.ErrorResponse{Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: "57P02", Message: "crash"}
		p := startFake(t, upstreamtest.Script{
			expectQuery("BEGIN"), upstreamtest.Send(&pgproto3.CommandComplete{CommandTag: []byte("BEGIN")}, &pgproto3.ReadyForQuery{TxStatus: 'T'}),
			expectQuery("denied_by_pgproxy"), upstreamtest.Send(fatal),
		})
		c := p.login(t)
		c.want("BEGIN", "C(BEGIN) Z(T)")
		c.send(frame.AppendQuery(nil, "DROP TABLE x"))
		if got := c.ended(); got != "E(57P02 crash)" {
			t.Errorf("got %s", got)
		}
		p.disconnected(t, reasonUpstream)
	})
}

// What the server sends by itself arrives while the client rests, byte for
// byte and in order.
func TestUpstreamSpeaksWhileIdle(t *testing.T) {
	t.Run("NOTIFY", func(t *testing.T) {
		p := startProxy(t)
		c := p.login(t)
		c.want("LISTEN news", "C(LISTEN) Z(I)")
		upstreamtest.Shared(t).Exec(t, "NOTIFY news, 'hello'")
		if got := c.next().String(); got != "A(news,hello)" {
			t.Errorf("got %s", got)
		}
		c.want("SELECT 1", "D(1) C(SELECT 1) Z(I)")
	})
	t.Run("notices and parameters", func(t *testing.T) {
		idle := upstreamtest.Encode(
			&pgproto3.NoticeResponse{Severity: "NOTICE", SeverityUnlocalized: "NOTICE", Code: "00000", Message: "hello", UnknownFields: map[byte]string{'z': "?"}},
			&pgproto3.ParameterStatus{Name: "TimeZone", Value: "Mars"},
			&pgproto3.NotificationResponse{PID: 7, Channel: "news", Payload: strings.Repeat("x", 7000)},
		)
		p := startFake(t, upstreamtest.Script{
			upstreamtest.SendBytes(idle[:50]), upstreamtest.SendBytes(idle[50:]),
			expectQuery("SELECT 1"), upstreamtest.Send(oneColumn, oneRow, selectOne, readyIdle),
			upstreamtest.ExpectEOF(),
		})
		c := p.login(t)
		c.expect(string(idle))
		c.want("SELECT 1", "D(1) C(SELECT 1) Z(I)")
	})
	t.Run("nonsense", func(t *testing.T) {
		p := startFake(t, upstreamtest.Script{upstreamtest.Send(oneRow), upstreamtest.ExpectEOF()})
		c := p.login(t)
		if got := c.ended(); got != "E(08006 pgproxy: the upstream server sent something that is not an answer)" {
			t.Errorf("got %s", got)
		}
		p.disconnected(t, reasonUpstream)
	})
	t.Run("a frame in two halves, and a statement in between", func(t *testing.T) {
		notice := upstreamtest.Encode(&pgproto3.NoticeResponse{Severity: "NOTICE", SeverityUnlocalized: "NOTICE", Code: "00000", Message: "hello"})
		p := startFake(t, upstreamtest.Script{
			upstreamtest.SendBytes(notice[:20]),
			expectQuery("SELECT 1"),
			upstreamtest.SendBytes(append(bytes.Clone(notice[20:]), upstreamtest.Encode(oneColumn, oneRow, selectOne, readyIdle)...)),
			upstreamtest.ExpectEOF(),
		})
		c := p.login(t)
		s := p.sessionOf(t, c)
		p.await(t, "a watch of the upstream", func() bool {
			s.life.mu.Lock()
			defer s.life.mu.Unlock()
			return s.life.watch != nil
		})
		c.want("SELECT 1", "N(00000 hello) D(1) C(SELECT 1) Z(I)")
	})
}

// What is read while somebody else waits is not lost when the wait ends, in
// plaintext or inside of TLS.
func TestWatchesLoseNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	server, caFile := serverTLS(t)
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("TLS %v", secure), func(t *testing.T) {
			p := startProxy(t, func(srv *Server) { srv.TLS = server })
			c := p.dial(t, "127.0.0.1")
			if secure {
				if err := c.askTLS(clientTLS(t, caFile)); err != nil {
					t.Fatal(err)
				}
			}
			c.loginHere()
			s := p.sessionOf(t, c)
			watched := func() {
				t.Helper()
				p.await(t, "a watch", func() bool {
					s.life.mu.Lock()
					defer s.life.mu.Unlock()
					return s.life.watch != nil
				})
			}
			// A message comes in halves, one while a statement runs.
			next := frame.AppendQuery(nil, "SELECT 'the next'")
			c.send(frame.AppendQuery(nil, "SELECT pg_sleep(0.6)"))
			watched()
			c.send(next[:7])
			if got := c.answer(); got != "D() C(SELECT 1) Z(I)" {
				t.Errorf("got %s", got)
			}
			watched()
			c.send(next[7:])
			if got := c.answer(); got != "D(the next) C(SELECT 1) Z(I)" {
				t.Errorf("got %s", got)
			}
			c.want("LISTEN halves", "C(LISTEN) Z(I)")
			watched()
			upstreamtest.Shared(t).Exec(t, "NOTIFY halves")
			if got := c.next().String(); got != "A(halves)" {
				t.Errorf("got %s", got)
			}
			c.want("SELECT 1", "D(1) C(SELECT 1) Z(I)")
			c.send(frame.AppendQuery(nil, "SELECT pg_sleep(78)"))
			watched()
			c.conn.Close()
			p.disconnected(t, reasonClientLost)
		})
	}
}

// shutdown begins a Shutdown and returns what it will return.
func (p *proxy) shutdown(t testing.TB, patience time.Duration) <-chan error {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		done <- p.Shutdown(ctx)
	}()
	p.await(t, "draining", p.Draining)
	return done
}

func TestShutdown(t *testing.T) {
	makeTable(t, "drained")
	p := startProxy(t)
	idle, running, open := p.login(t), p.login(t), p.loginFrom(t, "127.0.0.2")
	open.want("BEGIN", "C(BEGIN) Z(T)")
	open.want("UPDATE drained SET n = 1 WHERE id = 1", "C(UPDATE 1) Z(T)")
	running.send(frame.AppendQuery(nil, "SELECT pg_sleep(74)"))
	p.awaitActive(t, "SELECT pg_sleep(74)")

	done := p.shutdown(t, time.Minute)
	if got := idle.ended(); got != shutdownFatal {
		t.Errorf("idle: got %s", got)
	}
	late := p.dial(t, "127.0.0.1")
	late.send(startupPacket(protocol3, "user", "x"))
	if got := late.ended(); got != "R E(57P03 pgproxy: shutting down, no new sessions)" {
		t.Errorf("a new session: got %s", got)
	}
	p.cancel(t, "127.0.0.1", running) // is served while draining
	if got := running.ended(); got != "T E(57014 canceling statement due to user request) Z(I) "+shutdownFatal {
		t.Errorf("running: got %s", got)
	}
	open.want("UPDATE drained SET n = n + 1 WHERE id = 1", "C(UPDATE 1) Z(T)")
	select {
	case err := <-done:
		t.Fatalf("Shutdown returned %v with a transaction open", err)
	default:
	}
	open.send(frame.AppendQuery(nil, "COMMIT"))
	if got := open.ended(); got != "C(COMMIT) Z(I) "+shutdownFatal {
		t.Errorf("open transaction: got %s", got)
	}
	if err := <-done; err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	if got := value(t, "drained"); got != "2" {
		t.Errorf("the row holds %s", got)
	}
	if _, err := net.Dial("tcp", p.addr); err == nil {
		t.Error("it still listens")
	}
}

// When its time is up Shutdown cancels what runs, and rolls back.
func TestShutdownInAHurry(t *testing.T) {
	makeTable(t, "hurried")
	p := startProxy(t)
	running, open := p.login(t), p.login(t)
	const sql = "UPDATE hurried SET n = n + 1 WHERE id = 1 AND pg_sleep(75) IS NOT NULL"
	running.send(frame.AppendQuery(nil, sql))
	p.awaitActive(t, sql)
	open.want("BEGIN", "C(BEGIN) Z(T)")
	if err := <-p.shutdown(t, 10*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Shutdown: %v", err)
	}
	if got := running.ended(); got != "E(57014 canceling statement due to user request) Z(I) "+shutdownFatal {
		t.Errorf("running: got %s", got)
	}
	if got := open.ended(); got != shutdownFatal {
		t.Errorf("open transaction: got %s", got)
	}
	p.awaitGone(t, running)
	if got := value(t, "hurried"); got != "0" {
		t.Errorf("the row holds %s", got)
	}
}

// Close ends what has not become a session yet, too.
func TestClose(t *testing.T) {
	t.Run("a running statement", func(t *testing.T) {
		p := startProxy(t)
		c := p.login(t)
		c.send(frame.AppendQuery(nil, "SELECT pg_sleep(2)"))
		p.awaitActive(t, "SELECT pg_sleep(2)")
		p.Close()
		p.disconnected(t, reasonShutdown)
	})
	t.Run("an upstream that does not answer", func(t *testing.T) {
		connected := make(chan struct{})
		fake := upstreamtest.StartFake(t, upstreamtest.Script{upstreamtest.ExpectStartup(), upstreamtest.Do(func() { close(connected) }), upstreamtest.Stall()})
		p := startProxyTo(t, fake.DSN(), func(srv *Server) { srv.ConnectTimeout = time.Hour })
		p.dial(t, "127.0.0.1").send(startupPacket(protocol3, "user", "x"))
		<-connected
		p.Close()
	})
	t.Run("a WhoIs that does not answer", func(t *testing.T) {
		asked := make(chan struct{})
		p := startProxy(t, func(srv *Server) {
			srv.LoginTimeout = time.Hour
			srv.WhoIs = func(ctx context.Context, _ net.Addr) (policy.Caller, error) {
				close(asked)
				<-ctx.Done()
				return policy.Caller{}, ctx.Err()
			}
		})
		p.dial(t, "127.0.0.1")
		<-asked
		p.Close()
	})
	t.Run("Serve afterwards", func(t *testing.T) {
		p := startProxy(t)
		p.Close()
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Serve(ln); err != ErrServerClosed {
			t.Errorf("Serve: %v", err)
		}
	})
}

// No record, no statement; and the session outlives the trouble.
func TestAuditFails(t *testing.T) {
	makeTable(t, "unrecorded")
	const refusal = "E(58030 pgproxy: the audit record cannot be written, so nothing was sent to the server)"
	p := startProxy(t)
	c := p.login(t)
	p.records.failWith(errors.New("disk full"))
	c.want("UPDATE unrecorded SET n = 7 WHERE id = 1", refusal+" Z(I)")
	c.want("SHOW pgproxy.session", refusal+" Z(I)")
	if got := value(t, "unrecorded"); got != "0" {
		t.Errorf("the row holds %s", got)
	}
	p.records.failWith(nil)
	c.want("BEGIN", "C(BEGIN) Z(T)")
	c.want("UPDATE unrecorded SET n = 8 WHERE id = 1", "C(UPDATE 1) Z(T)")
	p.records.failWith(errors.New("disk full"))
	c.want("UPDATE unrecorded SET n = 9 WHERE id = 1", refusal+" Z(E)")
	p.records.failWith(nil)
	c.want("COMMIT", "C(ROLLBACK) Z(I)")
	c.want("UPDATE unrecorded SET n = 1 WHERE id = 1", "C(UPDATE 1) Z(I)")
	if got := value(t, "unrecorded"); got != "1" {
		t.Errorf("the row holds %s", got)
	}
}

func TestAuditFailsAtConnect(t *testing.T) {
	p := startProxy(t)
	p.records.failWith(errors.New("disk full"))
	c := p.dial(t, "127.0.0.1")
	c.send(startupPacket(protocol3, "user", "x"))
	if got := c.ended(); got != "R E(58030 pgproxy: the audit record cannot be written, so nothing was sent to the server)" {
		t.Errorf("got %s", got)
	}
	p.awaitSessions(t, 0)
	p.records.failWith(nil)
	p.login(t)
}

// A server that begins a COPY which nobody read in the statement has read
// something else. The client sees none of it, and the session ends.
func TestCopyForcedThrough(t *testing.T) {
	const copyRefused = "E(0A000 pgproxy: COPY FROM STDIN and COPY TO STDOUT are not supported) "
	t.Run("in", func(t *testing.T) {
		p := startFake(t, upstreamtest.Script{
			expectQuery("SELECT 1"),
			upstreamtest.Send(&pgproto3.CopyInResponse{ColumnFormatCodes: []uint16{0}}),
			upstreamtest.Expect(&pgproto3.CopyFail{Message: "COPY is not supported by pgproxy"}),
			upstreamtest.Send(&pgproto3.ErrorResponse{Severity: "ERROR", SeverityUnlocalized: "ERROR", Code: "57014", Message: "COPY from stdin failed"}, readyIdle),
			upstreamtest.ExpectEOF(),
		})
		c := p.login(t)
		c.send(frame.AppendQuery(nil, "SELECT 1"))
		if got := c.ended(); got != copyRefused+deceivedFatal {
			t.Errorf("got %s", got)
		}
		p.disconnected(t, reasonTampered)
	})
	t.Run("out", func(t *testing.T) {
		cancelled := make(chan struct{})
		p := startFake(t, upstreamtest.Script{
			expectQuery("SELECT 1"),
			upstreamtest.Send(&pgproto3.CopyOutResponse{ColumnFormatCodes: []uint16{0}}, &pgproto3.CopyData{Data: []byte("secret\n")}),
			upstreamtest.Wait(cancelled),
			upstreamtest.Send(&pgproto3.CopyData{Data: bytes.Repeat([]byte("secret\n"), 20_000)}, &pgproto3.CopyDone{}, &pgproto3.CommandComplete{CommandTag: []byte("COPY 1")}, readyIdle),
			upstreamtest.ExpectEOF(),
		}, upstreamtest.Script{upstreamtest.ExpectCancel(upstreamtest.FakePID, upstreamtest.FakeKey), upstreamtest.Do(func() { close(cancelled) })})
		c := p.login(t)
		c.send(frame.AppendQuery(nil, "SELECT 1"))
		if got := c.ended(); got != copyRefused+deceivedFatal {
			t.Errorf("got %s", got)
		}
		p.disconnected(t, reasonTampered)
	})
}

// The server's completions are compared with the statements as they were read.
func TestCompletionMismatch(t *testing.T) {
	for _, tt := range []struct {
		name, sql string
		answer    []pgproto3.BackendMessage
		want      string
	}{
		{"another statement", "SELECT 1", []pgproto3.BackendMessage{&pgproto3.CommandComplete{CommandTag: []byte("DELETE 5")}}, "C(DELETE 5) "},
		{"one more", "SELECT 1", []pgproto3.BackendMessage{oneColumn, oneRow, selectOne, &pgproto3.CommandComplete{CommandTag: []byte("DROP TABLE")}}, "T D(1) C(SELECT 1) C(DROP TABLE) "},
		{"one less", "SELECT 1; SELECT 1", []pgproto3.BackendMessage{oneColumn, oneRow, selectOne}, "T D(1) C(SELECT 1) "},
		{"none at all", "SELECT 1", []pgproto3.BackendMessage{&pgproto3.EmptyQueryResponse{}}, "I "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := startFake(t, upstreamtest.Script{expectQuery(tt.sql), upstreamtest.Send(append(tt.answer, readyIdle)...), upstreamtest.ExpectEOF()})
			c := p.login(t)
			c.send(frame.AppendQuery(nil, tt.sql))
			if got := c.ended(); got != tt.want+deceivedFatal {
				t.Errorf("got %s", got)
			}
			p.disconnected(t, reasonTampered)
		})
	}
}

// A frame that is no answer to a simple query ends the session.
func TestUpstreamGarbled(t *testing.T) {
	const fatal = "E(08006 pgproxy: the upstream server sent something that is not an answer)"
	for _, tt := range []struct {
		name   string
		answer []byte
	}{
		{"a type that is none", []byte("!\x00\x00\x00\x04")},
		{"an answer to Parse", []byte("1\x00\x00\x00\x04")},
		{"a length that cannot be", []byte("D\x00\x00\x00\x03")},
		{"a negative length", []byte("D\xff\xff\xff\xff")},
		{"ReadyForQuery without status", []byte("Z\x00\x00\x00\x04")},
		{"a parameter that libpq drops the connection for", append([]byte("S\x00\x00\x75\x35"), make([]byte, 30001)...)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := startFake(t, upstreamtest.Script{expectQuery("SELECT 1"), upstreamtest.SendBytes(tt.answer), upstreamtest.Stall()})
			c := p.login(t)
			c.send(frame.AppendQuery(nil, "SELECT 1"))
			if got := c.ended(); got != fatal {
				t.Errorf("got %s", got)
			}
			p.disconnected(t, reasonUpstream)
		})
	}
}

// What a function changes behind the proxy's back is seen in what the server
// reports, recorded, and put back before the next statement.
func TestTampering(t *testing.T) {
	pg := upstreamtest.Shared(t)
	pg.Exec(t, `CREATE FUNCTION sneak(name text, value text) RETURNS text LANGUAGE plpgsql SECURITY DEFINER
		AS 'BEGIN RETURN set_config(name, value, false); END'`)
	defer pg.Exec(t, "DROP FUNCTION sneak")
	const stamp = "go-proxy tsnode=alice-laptop|user=alice@example.com"
	for _, tt := range []struct{ setting, evil, right string }{
		{"application_name", "evil", stamp},
		{"default_transaction_read_only", "on", "off"},
		{"client_encoding", "LATIN1", "UTF8"},
		{"standard_conforming_strings", "off", "on"},
	} {
		t.Run(tt.setting, func(t *testing.T) {
			p := startProxy(t)
			c := p.login(t)
			sneak := fmt.Sprintf("SELECT sneak('%s', '%s')", tt.setting, tt.evil)
			show := "SHOW " + tt.setting
			reported := fmt.Sprintf("S(%s=%s)", tt.setting, tt.evil)
			putBack := fmt.Sprintf("S(%s=%s)", tt.setting, tt.right)

			c.want(sneak, fmt.Sprintf("D(%s) C(SELECT 1) %s Z(I)", tt.evil, reported))
			c.want(show, fmt.Sprintf("%s D(%s) C(SHOW) Z(I)", putBack, tt.right))
			c.want(show, fmt.Sprintf("D(%s) C(SHOW) Z(I)", tt.right))
			rec := p.records.event(t, audit.Tamper)
			if rec.Seq != 1 || rec.Tampered != tt.setting {
				t.Errorf("recorded %+v", rec)
			}
			// In a transaction too, and again when it is rolled back.
			c.want("BEGIN", "C(BEGIN) Z(T)")
			c.want(sneak, fmt.Sprintf("D(%s) C(SELECT 1) %s Z(T)", tt.evil, reported))
			c.want(show, fmt.Sprintf("%s D(%s) C(SHOW) Z(T)", putBack, tt.right))
			c.want(sneak, fmt.Sprintf("D(%s) C(SELECT 1) %s Z(T)", tt.evil, reported))
			c.wantPart("ROLLBACK", "C(ROLLBACK)", "Z(I)")
			c.want(show, fmt.Sprintf("D(%s) C(SHOW) Z(I)", tt.right))
			n := 0
			for _, rec := range p.records.all() {
				if rec.Event == audit.Tamper {
					n++
				}
			}
			if n != 3 {
				t.Errorf("recorded %d times, want 3", n)
			}
		})
	}
}

// At the access admin the stamp is the session's own to change; how the server
// reads a statement is not.
func TestTamperingByAdmin(t *testing.T) {
	p := startProxy(t, withRule(func(r *policy.Rule) { r.Access = policy.Admin }))
	c := p.login(t)
	c.want("SET application_name = 'mine'", "C(SET) S(application_name=mine) Z(I)")
	c.want("SHOW application_name", "D(mine) C(SHOW) Z(I)")
	c.want("DO 'BEGIN PERFORM set_config(''client_encoding'', ''LATIN1'', false); END'", "C(DO) S(client_encoding=LATIN1) Z(I)")
	c.want("SHOW client_encoding", "S(client_encoding=UTF8) D(UTF8) C(SHOW) Z(I)")
}

// What an admin has changed is put back when they are one no longer.
func TestAdminNarrowed(t *testing.T) {
	var r rules
	p := startProxy(t, r.serve)
	r.set(func(rule *policy.Rule) { rule.Access = policy.Admin })
	c := p.login(t)
	c.want("SET application_name = 'mine'", "C(SET) S(application_name=mine) Z(I)")
	c.want("SET default_transaction_read_only = on", "C(SET) S(default_transaction_read_only=on) Z(I)")
	r.set(func(rule *policy.Rule) { rule.Access = policy.Write })
	p.Recheck(t.Context())
	c.want("SHOW application_name", noLongerAdmin+"S(application_name=go-proxy tsnode=alice-laptop|user=alice@example.com) S(default_transaction_read_only=off)"+
		" D(go-proxy tsnode=alice-laptop|user=alice@example.com) C(SHOW) Z(I)")
}

const noLongerAdmin = "N(00000 pgproxy: you have write access now, no longer admin) "

// Another rule is told before the first answer that it could have changed, once,
// and not when nothing has changed by then.
func TestRuleChangeIsTold(t *testing.T) {
	var r rules
	p := startProxy(t, r.serve)
	c := p.login(t)
	change := func(change func(*policy.Rule)) {
		r.set(change)
		p.Recheck(t.Context())
	}
	change(func(rule *policy.Rule) { rule.Access = policy.Read })
	c.want("CREATE TABLE t ()", "N(00000 pgproxy: you have read access now, no longer write) S(default_transaction_read_only=on) E(42501 pgproxy: CREATE TABLE is refused) Z(I)")
	c.want("SELECT 1", "D(1) C(SELECT 1) Z(I)")
	change(func(rule *policy.Rule) { rule.MaxRows = 5 })
	change(func(rule *policy.Rule) { rule.MaxBytes = 500 })
	c.want("SELECT 1", "N(00000 pgproxy: what you may do has changed) D(1) C(SELECT 1) Z(I)")
	change(func(rule *policy.Rule) { rule.Access = policy.Admin })
	change(func(rule *policy.Rule) { rule.Access = policy.Read })
	change(func(rule *policy.Rule) { rule.Source = "another grant" })
	c.want("SELECT 1", "D(1) C(SELECT 1) Z(I)")
}

// rules is a policy that changes while sessions run.
type rules struct {
	mu   sync.Mutex
	rule policy.Rule
	err  error
}

func (r *rules) set(change func(*policy.Rule)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(&r.rule)
}

func (r *rules) revoke() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = &policy.Refusal{Code: "28000", Message: "pgproxy: no access for alice@example.com", Hint: "Ask an admin."}
}

func (r *rules) serve(srv *Server) {
	r.rule = policy.DefaultRule()
	srv.Rules = func(policy.Caller) (policy.Rule, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.rule, r.err
	}
}

// A narrower rule holds from the next statement on, on the server too.
func TestAccessNarrowed(t *testing.T) {
	makeTable(t, "narrowed")
	pg := upstreamtest.Shared(t)
	pg.ExecAs(t, "app", "app", "CREATE FUNCTION narrow_write() RETURNS void LANGUAGE sql AS 'UPDATE narrowed SET n = 9'")
	defer pg.ExecAs(t, "app", "app", "DROP FUNCTION narrow_write")
	var r rules
	p := startProxy(t, r.serve)
	c, open := p.login(t), p.login(t)
	c.want("UPDATE narrowed SET n = 1 WHERE id = 1", "C(UPDATE 1) Z(I)")
	open.want("BEGIN", "C(BEGIN) Z(T)")
	r.set(func(rule *policy.Rule) { rule.Access = policy.Read })
	p.Recheck(t.Context())
	c.wantPart("UPDATE narrowed SET n = 2 WHERE id = 1", "E(42501", "Z(I)")
	c.wantPart("SELECT narrow_write()", "E(25006 cannot execute UPDATE in a read-only transaction)", "Z(I)")
	c.want("SHOW default_transaction_read_only", "D(on) C(SHOW) Z(I)")
	open.wantPart("SELECT narrow_write()", "E(25006 cannot execute UPDATE in a read-only transaction)", "Z(E)")
	if got := value(t, "narrowed"); got != "1" {
		t.Errorf("the row holds %s", got)
	}
	r.set(func(rule *policy.Rule) { rule.Access = policy.Write })
	p.Recheck(t.Context())
	c.wantPart("UPDATE narrowed SET n = 3 WHERE id = 1", "C(UPDATE 1)", "Z(I)")
}

// Access that ends ends its sessions, whatever they do.
func TestAccessRevoked(t *testing.T) {
	makeTable(t, "revoked")
	const revoked = "E(57P01 pgproxy: your access has ended)"
	var r rules
	p := startProxy(t, r.serve)
	idle, open, running, writing := p.login(t), p.login(t), p.login(t), p.login(t)
	open.want("BEGIN", "C(BEGIN) Z(T)")
	running.send(frame.AppendQuery(nil, "SELECT pg_sleep(76)"))
	p.awaitActive(t, "SELECT pg_sleep(76)")
	writing.want("BEGIN", "C(BEGIN) Z(T)")
	writing.want("UPDATE revoked SET n = 1 WHERE id = 1", "C(UPDATE 1) Z(T)")
	const sql = "UPDATE revoked SET n = n + 1 WHERE id = 1 AND pg_sleep(77) IS NOT NULL"
	writing.send(frame.AppendQuery(nil, sql))
	p.awaitActive(t, sql)

	r.revoke()
	began := time.Now()
	p.Recheck(t.Context())
	for name, tt := range map[string]struct {
		c    *client
		want string
	}{
		"idle":    {idle, revoked},
		"open":    {open, revoked},
		"running": {running, "T E(57014 canceling statement due to user request) Z(I) " + revoked},
		"writing": {writing, "E(57014 canceling statement due to user request) Z(E) " + revoked},
	} {
		if got := tt.c.ended(); got != tt.want {
			t.Errorf("%s: got %s, want %s", name, got, tt.want)
		}
		p.awaitGone(t, tt.c)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	if got := value(t, "revoked"); got != "0" {
		t.Errorf("the row holds %s", got)
	}
	p.disconnected(t, reasonRevoked)
}

// So does access to the session's database.
func TestDatabaseRevoked(t *testing.T) {
	var r rules
	p := startProxy(t, r.serve)
	c, other := p.login(t), p.login(t, "database", "postgres")
	r.set(func(rule *policy.Rule) { rule.Databases = []string{"postgres"} })
	p.Recheck(t.Context())
	if got := c.ended(); got != "E(57P01 pgproxy: your access has ended)" {
		t.Errorf("got %s", got)
	}
	other.want("SELECT 1", "N(00000 pgproxy: what you may do has changed) D(1) C(SELECT 1) Z(I)")
}

// Who is no longer the same, or no longer known, has lost access. When that
// cannot be asked, sessions go on.
func TestRecheckWhoIs(t *testing.T) {
	var answer atomic.Pointer[func() (policy.Caller, error)]
	p := startProxy(t, func(srv *Server) {
		whois := srv.WhoIs
		srv.WhoIs = func(ctx context.Context, remote net.Addr) (policy.Caller, error) {
			if f := answer.Load(); f != nil {
				return (*f)()
			}
			return whois(ctx, remote)
		}
	})
	say := func(c policy.Caller, err error) {
		f := func() (policy.Caller, error) { return c, err }
		answer.Store(&f)
	}
	for name, change := range map[string]func(){
		"another": func() { say(bob, nil) },
		"nobody":  func() { say(policy.Caller{}, errors.New("peer not found")) },
		"a tag":   func() { say(policy.Caller{Tags: []string{"tag:ci"}, NodeID: alice.NodeID}, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			answer.Store(nil)
			c := p.login(t)
			say(policy.Caller{}, fmt.Errorf("control plane: %w", ErrUnavailable))
			p.Recheck(t.Context())
			c.want("SELECT 1", "D(1) C(SELECT 1) Z(I)")
			change()
			p.Recheck(t.Context())
			if got := c.ended(); got != "E(57P01 pgproxy: your access has ended)" {
				t.Errorf("got %s", got)
			}
		})
	}
}

// A session at rest is told when it has rested too long; of one that waits
// inside of a transaction the server keeps the time, and the words are
// pgproxy's.
func TestIdle(t *testing.T) {
	t.Run("session", func(t *testing.T) {
		p := startProxy(t, func(srv *Server) { srv.IdleTimeout = 300 * time.Millisecond })
		c := p.login(t)
		if got := c.ended(); got != "E(57P05 pgproxy: terminating connection after 300ms without a statement)" {
			t.Errorf("got %s", got)
		}
		p.disconnected(t, reasonIdle)
	})
	t.Run("transaction", func(t *testing.T) {
		p := startProxy(t, withRule(func(r *policy.Rule) { r.IdleInTransactionTimeout = 300 * time.Millisecond }))
		c := p.login(t)
		c.want("BEGIN", "C(BEGIN) Z(T)")
		if got := c.ended(); got != "E(25P03 pgproxy: terminating connection after 300ms idle in a transaction; the transaction was rolled back)" {
			t.Errorf("got %s", got)
		}
		p.disconnected(t, reasonIdleTransaction)
	})
}

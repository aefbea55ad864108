package wire

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgproxy/policy"
	"pgproxy/upstream"
	"pgproxy/upstream/upstreamtest"
	"pgproxy/wire/audit"

	"github.com/jackc/pgx/v5/pgproto3"

	"pgproxy/wire/frame"
)

const userCancel = "E(57014 canceling statement due to user request) Z(I)"

// cancelPacket is the session's CancelRequest.
func (c *client) cancelPacket() []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(12+len(c.key)))
	b = binary.BigEndian.AppendUint32(b, codeCancelRequest)
	b = binary.BigEndian.AppendUint32(b, c.pid)
	return append(b, c.key...)
}

// sessionOf finds a client's session inside of the server.
func (p *proxy) sessionOf(t testing.TB, c *client) *session {
	t.Helper()
	s := p.keys.find(&cancelKey{pid: c.pid, key: string(c.key)})
	if s == nil {
		t.Fatal("no session with the client's key")
	}
	return s
}

// cancelRecords are the records of cancels, in order.
func (p *proxy) cancelRecords() []audit.Record {
	return slices.DeleteFunc(p.records.all(), func(rec audit.Record) bool { return rec.Event != audit.Cancel })
}

// A cancel ends what runs, and nothing but what runs.
func TestCancel(t *testing.T) {
	p := startProxy(t)
	c := p.login(t)
	c.send(frame.AppendQuery(nil, "SELECT pg_sleep(61)"))
	p.awaitActive(t, "SELECT pg_sleep(61)")
	p.cancel(t, "127.0.0.1", c)
	if got := c.answer(); got != userCancel {
		t.Errorf("got %s", got)
	}
	c.want("SELECT 1", "D(1) C(SELECT 1) Z(I)")
	rec := p.records.event(t, audit.Cancel)
	if rec.Seq != 1 || !rec.Cancelled || rec.Verdict != "allow" || rec.User != "alice@example.com" {
		t.Errorf("recorded %+v", rec)
	}
	if rec := p.records.event(t, audit.Result); !rec.Cancelled || rec.SQLState != "57014" {
		t.Errorf("recorded %+v", rec)
	}
}

// A transaction that was cancelled has failed, as PostgreSQL has it.
func TestCancelInTransaction(t *testing.T) {
	p := startProxy(t)
	c := p.login(t)
	c.want("BEGIN", "C(BEGIN) Z(T)")
	c.send(frame.AppendQuery(nil, "SELECT pg_sleep(62)"))
	p.awaitActive(t, "SELECT pg_sleep(62)")
	p.cancel(t, "127.0.0.1", c)
	if got := c.answer(); got != "E(57014 canceling statement due to user request) Z(E)" {
		t.Errorf("got %s", got)
	}
	c.want("COMMIT", "C(ROLLBACK) Z(I)")
}

// Whoever is not on the session's own node cancels nothing, key or no key.
func TestCancelByOthers(t *testing.T) {
	p := startProxy(t)
	c := p.login(t)
	c.send(frame.AppendQuery(nil, "SELECT pg_sleep(63)"))
	p.awaitActive(t, "SELECT pg_sleep(63)")

	p.cancel(t, "127.0.0.2", c) // another person's node
	p.cancel(t, "127.0.0.3", c) // nobody's
	wrong := &client{t: t, pid: c.pid, key: []byte{1, 2, 3, 4}}
	p.cancel(t, "127.0.0.1", wrong)
	wrong.key = c.key[:2]
	p.cancel(t, "127.0.0.1", wrong)
	wrong.key = append(slices.Clone(c.key), 0)
	p.cancel(t, "127.0.0.1", wrong)
	wrong = &client{t: t, pid: c.pid + 1, key: c.key}
	p.cancel(t, "127.0.0.1", wrong)

	p.awaitActive(t, "SELECT pg_sleep(63)")
	for _, rec := range p.cancelRecords() {
		if rec.Verdict != "deny" || rec.Cancelled || rec.Session != "" {
			t.Errorf("recorded %+v", rec)
		}
	}
	p.cancel(t, "127.0.0.1", c)
	if got := c.answer(); got != userCancel {
		t.Errorf("got %s", got)
	}
}

// A cancel that comes between statements is nobody's.
func TestCancelWhileIdle(t *testing.T) {
	p := startProxy(t)
	c := p.login(t)
	p.cancel(t, "127.0.0.1", c)
	c.want("SELECT 1", "D(1) C(SELECT 1) Z(I)")
	c.want("BEGIN", "C(BEGIN) Z(T)")
	p.cancel(t, "127.0.0.1", c)
	c.want("SELECT 2", "D(2) C(SELECT 1) Z(T)")
	for _, rec := range p.cancelRecords() {
		if rec.Cancelled || rec.Seq != 0 {
			t.Errorf("recorded %+v", rec)
		}
	}
}

// heldRecorder holds the records of one event back until it is let go.
type heldRecorder struct {
	Recorder
	event audit.Event
	held  chan struct{} // closed when one is held
	free  chan struct{}
	once  sync.Once
}

func (h *heldRecorder) Write(rec *audit.Record) error {
	if rec.Event == h.event {
		h.once.Do(func() { close(h.held) })
		<-h.free
	}
	return h.Recorder.Write(rec)
}

// A statement that is cancelled before it was sent is not sent.
func TestCancelBeforeItIsSent(t *testing.T) {
	pg := upstreamtest.Shared(t)
	pg.ExecAs(t, "app", "app", "CREATE TABLE unsent (n int)")
	defer pg.ExecAs(t, "app", "app", "DROP TABLE unsent")
	held := &heldRecorder{event: audit.Query, held: make(chan struct{}), free: make(chan struct{})}
	p := startProxy(t, func(srv *Server) { held.Recorder, srv.Audit = srv.Audit, held })
	c := p.login(t)
	c.send(frame.AppendQuery(nil, "INSERT INTO unsent VALUES (1)"))
	<-held.held
	p.cancel(t, "127.0.0.1", c)
	close(held.free)
	if got := c.answer(); got != userCancel {
		t.Errorf("got %s", got)
	}
	c.want("SELECT count(*) FROM unsent", "D(0) C(SELECT 1) Z(I)")
	rec := p.records.event(t, audit.Result)
	if rec.SQLState != "57014" || !rec.Cancelled || rec.Seq != 1 {
		t.Errorf("recorded %+v", rec)
	}
}

// Where TLS is required, cancels come in plaintext all the same: psql sends
// them so. They come inside of TLS as well, after SSLRequest or without.
func TestCancelAndTLS(t *testing.T) {
	server, caFile := serverTLS(t)
	config := clientTLS(t, caFile)
	p := startProxy(t, func(srv *Server) { srv.TLS, srv.RequireTLS = server, true })
	c := p.dial(t, "127.0.0.1")
	if err := c.askTLS(config, "postgresql"); err != nil {
		t.Fatal(err)
	}
	c.loginHere()
	for name, begin := range map[string]func(k *client) error{
		"plaintext": func(k *client) error { return nil },
		"after GSS": func(k *client) error { k.send(gssRequest); k.expect("N"); return nil },
		"TLS":       func(k *client) error { return k.askTLS(config) },
		"direct":    func(k *client) error { return k.startTLS(config, "postgresql") },
	} {
		t.Run(name, func(t *testing.T) {
			sql := "SELECT pg_sleep(64) AS " + policy.QuoteIdentifier(name)
			c.send(frame.AppendQuery(nil, sql))
			p.awaitActive(t, sql)
			k := p.dial(t, "127.0.0.1")
			if err := begin(k); err != nil {
				t.Fatal(err)
			}
			k.send(c.cancelPacket())
			if got := k.rest(); got != "" {
				t.Errorf("the cancel was answered: %q", got)
			}
			if got := c.answer(); got != userCancel {
				t.Errorf("got %s", got)
			}
		})
	}
}

// loginHere sends a startup message and comes to the first ReadyForQuery.
func (c *client) loginHere() {
	c.t.Helper()
	c.send(startupPacket(protocol3, "user", "x"))
	for {
		switch f := c.next(); f.typ {
		case 'K':
			c.pid, c.key = binary.BigEndian.Uint32(f.body), f.body[4:]
		case 'E':
			c.t.Fatalf("login: %v", f)
		case 'Z':
			return
		}
	}
}

// misdirect makes cancel requests go to another address than the session's.
func misdirect(addr string) func(*Server) {
	return func(srv *Server) {
		dial := srv.Dial
		srv.Dial = func(ctx context.Context, req upstream.Request) (*upstream.Conn, error) {
			up, err := dial(ctx, req)
			if err == nil {
				up.Addr = addr
			}
			return up, err
		}
	}
}

// A cancel that could not be sent hits nothing on the server; a change that was
// waiting for its COMMIT is taken back all the same. One whose end is not known
// may strike at any time, so that no later statement is sent.
func TestCancelThatFails(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	makeTable(t, "blocked")
	run := func(t *testing.T, addr string) (*proxy, *client) {
		p := startProxy(t, misdirect(addr))
		c, blocker := p.login(t), p.loginFrom(t, "127.0.0.2")
		blocker.want("BEGIN", "C(BEGIN) Z(T)")
		blocker.want("UPDATE blocked SET n = 1 WHERE id = 1", "C(UPDATE 1) Z(T)")
		const sql = "UPDATE blocked SET n = 2 WHERE id = 1"
		c.send(frame.AppendQuery(nil, sql))
		p.awaitActive(t, sql)
		p.cancel(t, "127.0.0.1", c)
		blocker.want("ROLLBACK", "C(ROLLBACK) Z(I)")
		// It was asked for before the COMMIT.
		if got := c.answer(); got != "E(57014 canceling statement due to user request) Z(I)" {
			t.Errorf("got %s", got)
		}
		rec := p.records.event(t, audit.Cancel)
		if rec.Error == "" || strings.Contains(rec.Error, addr) {
			t.Errorf("recorded %+v", rec)
		}
		return p, c
	}
	t.Run("nobody listens", func(t *testing.T) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ln.Close()
		p, c := run(t, ln.Addr().String())
		if rec := p.records.event(t, audit.Cancel); rec.Cancelled {
			t.Errorf("recorded as sent: %+v", rec)
		}
		c.want("SELECT 1", "D(1) C(SELECT 1) Z(I)")
	})
	for name, script := range map[string]upstreamtest.Script{
		"a black hole": {upstreamtest.Stall()},
		"a reset":      {func(c *upstreamtest.FakeConn) error { io.ReadFull(c, make([]byte, 16)); return upstreamtest.Reset()(c) }},
		"an answer":    {upstreamtest.SendBytes([]byte("E"))},
	} {
		t.Run(name, func(t *testing.T) {
			fake := upstreamtest.StartFake(t, script)
			p, c := run(t, fake.Addr())
			c.send(frame.AppendQuery(nil, "SELECT 2"))
			if got, want := c.ended(), "E(08006 pgproxy: session closed to protect later statements: the fate of a cancel request is not known)"; got != want {
				t.Errorf("got %s, want %s", got, want)
			}
			// A statement that was recorded as allowed has its result.
			p.records.await(t, "the result", func(rec audit.Record) bool {
				return rec.Event == audit.Result && rec.Seq == 2 && rec.SQLState == "08006"
			})
			if rec := p.records.event(t, audit.Disconnect); rec.EndReason != string(reasonCancelLost) {
				t.Errorf("recorded %+v", rec)
			}
		})
	}
}

// cancelTrials runs short statements, each followed at once by another. Many
// are cancelled at a random moment, by what cancel does with their number in
// the gate. It returns how many were run, how often the first was hit, and how
// often the next.
//
// There are trials of them, or less on a machine where the server takes long to
// accept a cancel: so long do the statements last, too.
func cancelTrials(t *testing.T, trials int, stop func(next int64) bool, cancel func(s *session, number uint64) *sync.WaitGroup) (run int, hits, next int64) {
	p := startProxy(t)
	const sessions = 8
	late := cancelTime(t, p)
	trials = min(trials, int(25*time.Second/late))
	short := fmt.Sprintf("SELECT pg_sleep(%f)", 2*late.Seconds())
	var left, firsts, nexts atomic.Int64
	left.Store(int64(trials))
	var wg sync.WaitGroup
	for range sessions {
		c := p.login(t)
		c.conn.SetDeadline(time.Now().Add(5 * time.Minute))
		s := p.sessionOf(t, c)
		wg.Go(func() {
			for first := uint64(1); left.Add(-1) >= 0 && !stop(nexts.Load()); first += 2 { // the backend numbers its messages
				pending := make(chan *sync.WaitGroup)
				go func() {
					time.Sleep(rand.N(3 * late))
					pending <- cancel(s, first)
				}()
				one, two := tryQuery(c, short), tryQuery(c, short)
				(<-pending).Wait()
				for hit, answer := range map[*atomic.Int64]string{&firsts: one, &nexts: two} {
					switch {
					case answer == "D() C(SELECT 1) Z(I)":
					case strings.HasSuffix(answer, userCancel): // perhaps after the row
						hit.Add(1)
					default:
						t.Errorf("got %s", answer)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	return trials, firsts.Load(), nexts.Load()
}

// cancelTime is how long the server takes to take a cancel, and to forget it.
func cancelTime(t *testing.T, p *proxy) time.Duration {
	s := p.sessionOf(t, p.login(t))
	var times []time.Duration
	for range 9 {
		began := time.Now()
		if _, err := s.up.Load().Cancel(t.Context()); err != nil {
			t.Fatal(err)
		}
		times = append(times, time.Since(began))
	}
	slices.Sort(times)
	return max(times[len(times)/2], 2*time.Millisecond)
}

// tryQuery is client.query for goroutines other than the test's.
func tryQuery(c *client, sql string) string {
	if _, err := c.conn.Write(frame.AppendQuery(nil, sql)); err != nil {
		return err.Error()
	}
	var list []string
	for {
		f, err := c.tryNext()
		if err != nil {
			return err.Error()
		}
		if f.typ != 'T' {
			list = append(list, f.String())
		}
		if f.typ == 'Z' {
			return strings.Join(list, " ")
		}
	}
}

// The gate's promise, on a real server: of ten thousand cancels, or as many as
// the machine can do in a while, at random moments none hits the statement after the one it was meant for, although
// that is sent at once.
func TestCancelNeverHitsTheNext(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	trials, hits, next := cancelTrials(t, 10_000, func(int64) bool { return false }, func(s *session, number uint64) *sync.WaitGroup {
		s.fireCancel(number)
		return new(sync.WaitGroup) // the session waits for its own
	})
	t.Logf("%d of %d statements were hit, and %d of those that followed", hits, trials, next)
	if next != 0 {
		t.Errorf("%d statements were hit by a cancel that was meant for the one before", next)
	}
	if hits < int64(trials)/100 {
		t.Errorf("only %d statements were hit: the cancels came at the wrong time", hits)
	}
}

// Without the gate the same trial does hit the next statement, so that the
// test above can fail.
func TestCancelWithoutTheGateHitsTheNext(t *testing.T) {
	_, hits, next := cancelTrials(t, 10_000, func(next int64) bool { return next > 0 }, func(s *session, number uint64) *sync.WaitGroup {
		var wg sync.WaitGroup
		if s.backend.Running() == number {
			wg.Go(func() { s.up.Load().Cancel(context.Background()) })
		}
		return &wg
	})
	t.Logf("%d statements were hit, and %d that followed one", hits, next)
	if next == 0 {
		t.Error("no statement was hit by a cancel that was meant for the one before")
	}
}

// A client that waits for the end of its cancel connection, as psql does,
// never hits the statement that it sends then.
func TestCancelRequestsNeverHitTheNext(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	p := startProxy(t)
	var wg sync.WaitGroup
	var hits atomic.Int64
	for range 4 {
		c := p.login(t)
		wg.Go(func() {
			for range 250 {
				done := make(chan error, 1)
				go func() {
					time.Sleep(rand.N(2 * time.Millisecond))
					done <- p.tryCancel(c)
				}()
				if one := tryQuery(c, "SELECT pg_sleep(0.001)"); strings.HasSuffix(one, userCancel) {
					hits.Add(1)
				}
				if err := <-done; err != nil {
					t.Error(err)
					return
				}
				if two := tryQuery(c, "SELECT 1"); two != "D(1) C(SELECT 1) Z(I)" {
					t.Errorf("next statement: %s", two)
					return
				}
			}
		})
	}
	wg.Wait()
	if hits.Load() == 0 {
		t.Error("no cancel hit anything")
	}
}

// tryCancel is proxy.cancel from alice's node, for goroutines other than the
// test's.
func (p *proxy) tryCancel(c *client) error {
	conn, err := net.Dial("tcp", p.addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.Write(c.cancelPacket()); err != nil {
		return err
	}
	conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	if b, err := io.ReadAll(conn); err != nil || len(b) > 0 {
		return fmt.Errorf("a cancel request was answered %q, %v", b, err)
	}
	return nil
}

// What the proxy asks the server on its own account is not the client's to
// cancel; the statement that it does so for is.
func TestCancelSparesTheProxysOwnStatements(t *testing.T) {
	asked, cancelled := make(chan struct{}), make(chan struct{})
	p := startFake(t, upstreamtest.Script{
		expectQuery("SELECT 1"),
		upstreamtest.Send(oneColumn, oneRow, selectOne, &pgproto3.ParameterStatus{Name: "client_encoding", Value: "LATIN1"}, readyIdle),
		expectQuery("SET client_encoding TO 'UTF8'"),
		upstreamtest.Do(func() { close(asked) }), upstreamtest.Wait(cancelled),
		upstreamtest.Send(&pgproto3.CommandComplete{CommandTag: []byte("SET")}, &pgproto3.ParameterStatus{Name: "client_encoding", Value: "UTF8"}, readyIdle),
		expectQuery("SELECT 3"),
		upstreamtest.Send(oneColumn, oneRow, selectOne, readyIdle),
		upstreamtest.ExpectEOF(),
	})
	c := p.login(t)
	c.want("SELECT 1", "D(1) C(SELECT 1) S(client_encoding=LATIN1) Z(I)")
	c.send(frame.AppendQuery(nil, "SELECT 2"))
	<-asked
	p.cancel(t, "127.0.0.1", c) // a cancel connection to the fake would be a failure
	close(cancelled)
	if got := c.answer(); got != "S(client_encoding=UTF8) "+userCancel {
		t.Errorf("got %s", got)
	}
	c.want("SELECT 3", "D(1) C(SELECT 1) Z(I)")
}

package wire

import (
	"context"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pgproxy/policy"
	"pgproxy/upstream"
	"pgproxy/upstream/upstreamtest"
	"pgproxy/wire/audit"

	"pgproxy/wire/frame"
)

// What the startup message says of itself is no setting, in whatever spelling
// and by whatever road: "options" that came through would be read by the server
// as switches that nobody judged.
func TestStartupWordsAreNoSettings(t *testing.T) {
	for _, params := range [][]string{
		{"Options", "-c work_mem=123kB"},
		{"options", "-c options=-cstatement_timeout=0"},
		{"options", "--Options=-crole=postgres"},
		{"REPLICATION", "database"},
		{"options", "-c replication=database"},
		{"User", "postgres"},
		{"options", "-c user=postgres"},
		{"Database", "postgres"},
		{"options", "-c database=postgres"},
		{"options", "-c _pq_.extension=1"},
		{"_PQ_.extension", "1"},
	} {
		t.Run(strings.Join(params, " "), func(t *testing.T) {
			p := startProxy(t)
			c := p.dial(t, "127.0.0.1")
			c.send(startupPacket(protocol3, append([]string{"user", "x"}, params...)...))
			if got := c.ended(); !strings.HasPrefix(got, "R E(42704 unrecognized configuration parameter") {
				t.Errorf("got %s", got)
			}
		})
	}
}

// The affected-rows cap holds for a message that first ends a failed
// transaction, and for one with a statement that is picky about blocks.
func TestAffectedCapHasNoWayRound(t *testing.T) {
	const over = `E\(54000 pgproxy: the statement changed 6 rows, max_affected_rows is 5; it was rolled back\)`
	for _, end := range []string{"ROLLBACK", "COMMIT", "ROLLBACK TO s"} {
		t.Run("failed transaction, "+end, func(t *testing.T) {
			freshCaps(t)
			p := startProxy(t, withRule(func(r *policy.Rule) { r.MaxAffectedRows, r.Access = 5, policy.Admin }))
			c := p.login(t)
			c.want("BEGIN; SAVEPOINT s", "C(BEGIN) C(SAVEPOINT) Z(T)")
			c.wantPart("SELECT 1/0", "E(22012", "Z(E)")
			c.wantLike(end+"; UPDATE caps.t SET n = 1 WHERE id <= 6", `C\(ROLLBACK\) `+over+` Z\([IT]\)`)
			c.query("COMMIT")
			holds(t, "SELECT count(*) FROM caps.t WHERE n = 1", "0")
		})
	}
	t.Run("failed transaction, in which the table cannot be looked up", func(t *testing.T) {
		freshCaps(t)
		p := startProxy(t)
		c := p.login(t)
		c.want("BEGIN", "C(BEGIN) Z(T)")
		c.wantPart("SELECT 1/0", "E(22012", "Z(E)")
		c.want("ROLLBACK; UPDATE caps.t SET n = 1 WHERE id = 1", "E(42501 pgproxy: changing rows of t is refused) Z(E)")
		c.want("ROLLBACK", "C(ROLLBACK) Z(I)")
		c.want("UPDATE caps.t SET n = 1 WHERE id = 1", "C(UPDATE 1) Z(I)")
	})
	for _, next := range []string{"DISCARD PLANS", "DISCARD SEQUENCES"} {
		t.Run(next, func(t *testing.T) {
			freshCaps(t)
			p := startProxy(t, withRule(func(r *policy.Rule) { r.MaxAffectedRows = 5 }))
			c := p.login(t)
			c.wantLike("UPDATE caps.t SET n = 1 WHERE id <= 6; "+next, over+` Z\(I\)`)
			holds(t, "SELECT count(*) FROM caps.t WHERE n = 1", "0")
		})
	}
	t.Run("nothing else in a failed transaction", func(t *testing.T) {
		freshCaps(t)
		p := startProxy(t)
		c := p.login(t)
		c.want("BEGIN", "C(BEGIN) Z(T)")
		c.wantPart("SELECT 1/0", "E(22012", "Z(E)")
		const aborted = "E(25P02 current transaction is aborted, commands ignored until end of transaction block) Z(E)"
		c.want("UPDATE caps.t SET n = 1 WHERE id = 1", aborted)
		c.want("WITH w AS (UPDATE caps.t SET n = 1 WHERE id = 1 RETURNING id) SELECT id FROM w", aborted)
	})
}

// Access that ends while a connection is on its way to being a session ends
// that too: who and what were asked too early to know.
func TestAccessRevokedDuringLogin(t *testing.T) {
	for _, when := range []string{"before the startup message", "while dialling"} {
		t.Run(when, func(t *testing.T) {
			var r rules
			var p *proxy
			revoke := func() {
				r.revoke()
				p.Recheck(context.Background())
			}
			asked := make(chan struct{}, 1)
			p = startProxy(t, r.serve, func(srv *Server) {
				whoIs, dial := srv.WhoIs, srv.Dial
				// As grants do, the answer holds what the caller may do at that time.
				srv.WhoIs = func(ctx context.Context, remote net.Addr) (policy.Caller, error) {
					c, err := whoIs(ctx, remote)
					_, refusal := r.get()
					c.Granted = refusal == nil
					select {
					case asked <- struct{}{}:
					default:
					}
					return c, err
				}
				srv.Rules = func(c policy.Caller) (policy.Rule, error) {
					if !c.Granted {
						return policy.Rule{}, &policy.Refusal{Code: "28000", Message: "pgproxy: no access"}
					}
					return policy.DefaultRule(), nil
				}
				srv.Dial = func(ctx context.Context, req upstream.Request) (*upstream.Conn, error) {
					if when == "while dialling" {
						revoke()
					}
					return dial(ctx, req)
				}
			})
			c := p.dial(t, "127.0.0.1")
			<-asked
			if when == "before the startup message" {
				revoke()
			}
			c.send(startupPacket(protocol3, "user", "x"))
			if got := c.ended(); !strings.Contains(got, "E(57P01 pgproxy: your access has ended)") {
				t.Errorf("got %s", got)
			}
		})
	}
}

func (r *rules) get() (policy.Rule, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rule, r.err
}

// hookedRecorder calls a function before each record.
type hookedRecorder struct {
	Recorder
	before func(*audit.Record)
}

func (h *hookedRecorder) Write(rec *audit.Record) error {
	h.before(rec)
	return h.Recorder.Write(rec)
}

func withHook(before func(*audit.Record)) func(*Server) {
	return func(srv *Server) { srv.Audit = &hookedRecorder{srv.Audit, before} }
}

// A session whose end is settled after its statement was judged, and before it
// was sent, does not send it.
func TestEndedBeforeItIsSent(t *testing.T) {
	makeTable(t, "toolate")
	var p *proxy
	p = startProxy(t, withHook(func(rec *audit.Record) {
		if rec.Event == audit.Query {
			if err := p.Kill(Viewer{Caller: alice}, rec.Session); err != nil {
				t.Error(err)
			}
		}
	}))
	c := p.login(t)
	c.send(frame.AppendQuery(nil, "UPDATE toolate SET n = 1 WHERE id = 1"))
	if got := c.ended(); got != "E(57P01 pgproxy: terminating connection due to administrator command)" {
		t.Errorf("got %s", got)
	}
	p.disconnected(t, reasonKilled)
	p.records.event(t, audit.Result)
	if got := value(t, "toolate"); got != "0" {
		t.Errorf("the row holds %s", got)
	}
}

// A defect of ours ends the session that meets it, and no other.
func TestPanic(t *testing.T) {
	const defect = "a defect"
	t.Run("in a session", func(t *testing.T) {
		p := startProxy(t, withHook(func(rec *audit.Record) {
			if strings.Contains(rec.SQL, defect) {
				panic(defect)
			}
		}))
		c, other := p.login(t), p.login(t)
		c.want("BEGIN", "C(BEGIN) Z(T)")
		c.send(frame.AppendQuery(nil, "SELECT 'a defect'"))
		if got := c.ended(); got != "E(XX000 pgproxy: internal error)" {
			t.Errorf("got %s", got)
		}
		p.disconnected(t, reasonInternal)
		p.awaitGone(t, c)
		other.want("SELECT 1", "D(1) C(SELECT 1) Z(I)")
	})
	t.Run("at login", func(t *testing.T) {
		var once atomic.Bool
		p := startProxy(t, func(srv *Server) {
			rules := srv.Rules
			srv.Rules = func(c policy.Caller) (policy.Rule, error) {
				if once.CompareAndSwap(false, true) {
					panic(defect)
				}
				return rules(c)
			}
		})
		c := p.dial(t, "127.0.0.1")
		c.send(startupPacket(protocol3, "user", "x"))
		c.ended()
		p.login(t).want("SELECT 1", "D(1) C(SELECT 1) Z(I)")
	})
}

// A client that does not read does not put off the end of its session.
func TestKillClientNotReading(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	p := startProxy(t, withRule(func(r *policy.Rule) { r.MaxBytes, r.StatementTimeout = 0, 0 }))
	c := p.login(t)
	s := p.sessionOf(t, c)
	c.send(frame.AppendQuery(nil, "SELECT repeat('x', 50000000) FROM generate_series(1, 100)"))
	p.await(t, "a write that waits", func() bool {
		began := s.writing.Load()
		return began != 0 && time.Since(time.Unix(0, began)) > time.Second
	})
	if err := p.Kill(Viewer{Caller: alice}, s.id); err != nil {
		t.Fatal(err)
	}
	p.disconnected(t, reasonKilled)
	p.awaitGone(t, c)
}

// One node cannot use up, by connections that say nothing, what there is for
// all.
func TestManyConnectionsThatSayNothing(t *testing.T) {
	p := startProxy(t)
	silent := make([]*client, maxPendingHost)
	for i := range silent {
		silent[i] = p.dial(t, "127.0.0.1")
	}
	if got, err := io.ReadAll(p.dial(t, "127.0.0.1").conn); len(got) > 0 {
		t.Errorf("got %q, %v", got, err)
	}
	p.loginFrom(t, "127.0.0.2").want("SELECT 1", "D(1) C(SELECT 1) Z(I)")
	silent[0].send(startupPacket(protocol3, "user", "x"))
	for silent[0].next().typ != 'Z' {
	}
	p.login(t).want("SELECT 1", "D(1) C(SELECT 1) Z(I)") // sessions count elsewhere
}

// The backend to end is on the server that the session is on, which need not
// be the one that a new connection reaches.
func TestTerminateOnTheSameServer(t *testing.T) {
	p := startProxy(t)
	c := p.login(t)
	s := p.sessionOf(t, c)
	dial := p.Dial
	s.srv.Dial = func(ctx context.Context, req upstream.Request) (*upstream.Conn, error) {
		up, err := dial(ctx, req)
		if err == nil {
			up.Addr = "192.0.2.7:5432"
		}
		return up, err
	}
	if err := s.terminateBackend(t.Context()); err == nil {
		t.Error("no error")
	}
	c.want("SELECT 1", "D(1) C(SELECT 1) Z(I)")
}

// What an admin has become on the server does not outlive being one.
func TestAdminRoleNarrowed(t *testing.T) {
	pg := upstreamtest.Shared(t)
	pg.Exec(t, "CREATE ROLE boss; GRANT boss TO app")
	t.Cleanup(func() { pg.Exec(t, "DROP ROLE boss") })
	var r rules
	p := startProxy(t, r.serve)
	r.set(func(rule *policy.Rule) { rule.Access = policy.Admin })
	c, open, failed := p.login(t), p.login(t), p.login(t)
	for _, c := range []*client{c, open, failed} {
		c.want("SET ROLE boss", "C(SET) Z(I)")
		c.want("SET idle_in_transaction_session_timeout = 0", "C(SET) Z(I)")
	}
	open.want("BEGIN", "C(BEGIN) Z(T)")
	failed.want("BEGIN", "C(BEGIN) Z(T)")
	failed.wantPart("SELECT 1/0", "Z(E)")
	r.set(func(rule *policy.Rule) { rule.Access = policy.Write })
	p.Recheck(t.Context())
	c.want("SELECT current_user", noLongerAdmin+"D(app) C(SELECT 1) Z(I)")
	c.want("SHOW idle_in_transaction_session_timeout", "D(30s) C(SHOW) Z(I)")
	open.want("SELECT current_user", noLongerAdmin+"D(app) C(SELECT 1) Z(T)")
	open.want("ROLLBACK", "C(ROLLBACK) Z(I)")
	open.want("SELECT current_user", "D(app) C(SELECT 1) Z(I)")
	failed.want("ROLLBACK", noLongerAdmin+"C(ROLLBACK) Z(I)")
	failed.want("SELECT current_user", "D(app) C(SELECT 1) Z(I)")
}

// A long statement is not kept when it is over.
func TestIdleSessionKeepsNoStatement(t *testing.T) {
	p := startProxy(t)
	c := p.login(t)
	c.want("SELECT 1 /* "+strings.Repeat("x", 1<<20)+" */", "D(1) C(SELECT 1) Z(I)")
	s := p.sessionOf(t, c)
	s.life.mu.Lock()
	defer s.life.mu.Unlock()
	if len(s.life.sql) > 2*shownSQL {
		t.Errorf("%d bytes of the statement are kept", len(s.life.sql))
	}
}

// What decides how text is read is put right before the verdict looks anything
// up, and not after.
func TestTamperedBeforeKeyLookup(t *testing.T) {
	pg := upstreamtest.Shared(t)
	pg.ExecAs(t, "app", "app", `CREATE TABLE quoted (id int PRIMARY KEY); CREATE TABLE "quoted\" (id int);
		INSERT INTO "quoted\" VALUES (1), (1);
		CREATE FUNCTION escapes() RETURNS text LANGUAGE sql AS $$ SELECT set_config('standard_conforming_strings', 'off', false) $$`)
	t.Cleanup(func() { pg.ExecAs(t, "app", "app", `DROP FUNCTION escapes; DROP TABLE quoted, "quoted\"`) })
	p := startProxy(t, withRule(func(r *policy.Rule) { r.Where = policy.WhereKey }))
	c := p.login(t)
	c.wantPart("SELECT escapes()", "S(standard_conforming_strings=off)")
	c.wantPart(`DELETE FROM "quoted\" WHERE id = 1`, "E(42501")
}

// A cancel request of somebody unknown is recorded like any that is dropped.
func TestCancelByNobodyIsRecorded(t *testing.T) {
	p := startProxy(t)
	c := p.login(t)
	p.cancel(t, "127.0.0.9", c)
	rec := p.records.event(t, audit.Cancel)
	if rec.Verdict != "deny" || rec.User != "" || !strings.HasPrefix(rec.Addr, "127.0.0.9:") {
		t.Errorf("recorded %+v", rec)
	}
}

// A WhoIs that does not answer does not hold up the others.
func TestRecheckDoesNotWait(t *testing.T) {
	var hang atomic.Bool
	p := startProxy(t, func(srv *Server) {
		whoIs := srv.WhoIs
		srv.WhoIs = func(ctx context.Context, remote net.Addr) (policy.Caller, error) {
			if hang.Load() {
				<-ctx.Done()
				return policy.Caller{}, ErrUnavailable
			}
			return whoIs(ctx, remote)
		}
	})
	c := p.login(t)
	p.sessionOf(t, c)
	hang.Store(true)
	p.Recheck(context.Background())
	hang.Store(false)
	c.want("SELECT 1", "D(1) C(SELECT 1) Z(I)")
}

// A completion that is longer than what is looked at is no answer: what is
// known of it does not make a whole frame.
func TestLongCompletion(t *testing.T) {
	long := append([]byte("C\x00\x00\x27\x14"), make([]byte, 10000)...)
	copy(long[5:], "SELECT 1")
	p := startFake(t, upstreamtest.Script{expectQuery("SELECT 1"), upstreamtest.SendBytes(long), upstreamtest.Stall()})
	c := p.login(t)
	c.send(frame.AppendQuery(nil, "SELECT 1"))
	if got := c.ended(); got != "E(08006 pgproxy: the upstream server sent something that is not an answer)" {
		t.Errorf("got %s", got)
	}
}

// A device that is renamed is the same device still.
func TestCancelAfterRename(t *testing.T) {
	var renamed atomic.Bool
	p := startProxy(t, func(srv *Server) {
		whoIs := srv.WhoIs
		srv.WhoIs = func(ctx context.Context, remote net.Addr) (policy.Caller, error) {
			c, err := whoIs(ctx, remote)
			if renamed.Load() {
				c.Node = "alice-new-laptop"
			}
			return c, err
		}
	})
	c := p.login(t)
	c.send(frame.AppendQuery(nil, "SELECT pg_sleep(30)"))
	p.awaitActive(t, "SELECT pg_sleep(30)")
	renamed.Store(true)
	p.cancel(t, "127.0.0.1", c)
	if got := c.answer(); got != userCancel {
		t.Errorf("got %s", got)
	}
}

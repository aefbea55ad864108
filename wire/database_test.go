package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"pgproxy/policy"
	"pgproxy/upstream"
	"pgproxy/upstream/upstreamtest"
	"pgproxy/wire/frame"
)

// awaitRows waits until a query has as many rows.
func awaitRows(t *testing.T, pg *upstreamtest.Server, n int, sql string) {
	t.Helper()
	for late := time.Now().Add(30 * time.Second); len(pg.Exec(t, sql)) != n; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(late) {
			t.Fatalf("not %d rows: %s", n, sql)
		}
	}
}

// Twenty sessions wait for one that has forgotten its transaction; whoever looks
// sees the tree, with persons, and ends the one that they all wait for.
func TestBlockersOfTwenty(t *testing.T) {
	if testing.Short() {
		t.Skip("starts servers")
	}
	upstreamtest.Versions(t, func(t *testing.T, pg *upstreamtest.Server) {
		p := startProxyTo(t, pg.DSN("app", "app"), signals, func(srv *Server) {
			rules := srv.Rules
			srv.Rules = func(c policy.Caller) (policy.Rule, error) {
				rule, err := rules(c)
				rule.Access, rule.IdleInTransactionTimeout, rule.StatementTimeout = policy.Write, 0, 0
				return rule, err
			}
		})
		pg.ExecAs(t, "app", "app", "CREATE TABLE orders (id integer PRIMARY KEY, paid boolean); INSERT INTO orders VALUES (1), (2)")
		holder := p.login(t)
		holder.query("BEGIN")
		holder.query("UPDATE orders SET paid = true WHERE id = 1")
		var waiters []*client
		for i := range 20 {
			c := p.login(t)
			c.send(frame.AppendQuery(nil, "UPDATE orders SET paid = false WHERE id = 1"))
			awaitRows(t, pg, i+1, "SELECT DISTINCT pid FROM pg_locks WHERE NOT granted")
			waiters = append(waiters, c)
		}
		bobs := p.loginFrom(t, "127.0.0.2")
		bobs.wantPart("SELECT 1/0", "22012")
		view, err := p.LookAt(t.Context(), viewer(bob.Login, func(r *policy.Rule) { r.MaySignal = true }), "app")
		if err != nil {
			t.Fatal(err)
		}
		if len(view.Waiting) != 21 || view.Waiting[0].PID != int(holder.pid) || view.Waiting[0].State != "idle in transaction" {
			t.Fatalf("got %d: %+v", len(view.Waiting), view.Waiting)
		}
		listed := map[int]bool{}
		for i, b := range view.Waiting {
			listed[b.PID] = true
			if b.User != alice.Login || b.Session == "" || b.Query != "" || !b.MayEnd {
				t.Errorf("of alice's bob sees %+v", b)
			}
			if i > 0 && (b.Depth == 0 || b.WaitsFor != "row of public.orders") {
				t.Errorf("at depth %d, for %q", b.Depth, b.WaitsFor)
			}
		}
		for _, c := range waiters {
			if !listed[int(c.pid)] {
				t.Errorf("%d is missing", c.pid)
			}
		}
		rows := bobs.query("SHOW pgproxy.blockers")
		if strings.Count(rows, "D(") != 21 || !strings.Contains(rows, "alice@example.com") || strings.Contains(rows, "UPDATE") {
			t.Errorf("bob sees %s", rows)
		}
		if mine := holder.query("SHOW pgproxy.blockers"); !strings.Contains(mine, "UPDATE orders") || !strings.HasSuffix(mine, "Z(T)") {
			t.Errorf("alice sees %s", mine)
		}
		bobs.want(fmt.Sprintf("SELECT pg_terminate_backend(%d)", holder.pid), "D(t) C(SELECT 1) Z(I)")
		holder.ended()
		for _, c := range waiters {
			if got := c.answer(); got != "C(UPDATE 1) Z(I)" {
				t.Errorf("after the holder's end: %s", got)
			}
		}
		time.Sleep(activityInterval)
		bobs.wantPart("SHOW pgproxy.blockers", "N(00000 pgproxy: Nobody waits for a lock in database app.)", "C(SHOW)")
	})
}

// activityInterval is for how long a reading is shown.
const activityInterval = time.Second

// What a session runs needs may_observe, too, where this pgproxy does not know the
// backend: it is another one's session, or has just ended, or is a parallel worker.
func TestStatementsOfUnknownSessions(t *testing.T) {
	p := startProxy(t)
	pg := upstreamtest.Shared(t)
	makeTable(t, "unknown_sessions")
	holder := pg.Program(t, "app", Stamp(alice, "elsewhere"))
	if err := holder.Exec(t.Context(), "BEGIN; UPDATE unknown_sessions SET n = 2").Close(); err != nil {
		t.Fatal(err)
	}
	c := p.loginFrom(t, "127.0.0.2")
	c.send(frame.AppendQuery(nil, "UPDATE unknown_sessions SET n = 1 WHERE id = 1"))
	awaitRows(t, pg, 1, "SELECT pid FROM pg_locks WHERE NOT granted")
	for _, v := range []Viewer{viewer(bob.Login, func(*policy.Rule) {}), observer()} {
		view, err := p.LookAt(t.Context(), v, "app")
		if err != nil || len(view.Waiting) != 2 || view.Waiting[0].PID != int(holder.PID()) {
			t.Fatalf("%+v, %v", view, err)
		}
		if got := view.Waiting[0].Query; strings.Contains(got, "unknown_sessions") != v.Rule.MayObserve {
			t.Errorf("%s, may_observe %v, sees %q", v.Who(), v.Rule.MayObserve, got)
		}
	}
	if err := holder.Exec(t.Context(), "ROLLBACK").Close(); err != nil {
		t.Fatal(err)
	}
	c.answer()
}

// In a failed transaction, too, and in psql within a hundred columns.
func TestPsqlBlockers(t *testing.T) {
	p := startProxy(t, withRule(func(r *policy.Rule) { r.MayObserve = true }))
	pg := upstreamtest.Shared(t)
	pg.ExecAs(t, "app", "app", "CREATE TABLE rather_a_long_name_for_a_table (id integer); INSERT INTO rather_a_long_name_for_a_table VALUES (1)")
	defer pg.ExecAs(t, "app", "app", "DROP TABLE rather_a_long_name_for_a_table")
	holder := pg.Program(t, "app", "a-nightly-import-of-the-warehouse")
	if err := holder.Exec(t.Context(), "BEGIN; UPDATE rather_a_long_name_for_a_table SET id = 1; /* password = 'hunter2' */ SELECT 'password=hunter2'").Close(); err != nil {
		t.Fatal(err)
	}
	c := p.login(t)
	c.send(frame.AppendQuery(nil, "UPDATE rather_a_long_name_for_a_table SET id = 2 WHERE id = 1 AND id IN (SELECT id FROM rather_a_long_name_for_a_table)"))
	awaitRows(t, pg, 1, "SELECT pid FROM pg_locks WHERE NOT granted")
	got := anyPsql(t).run(t, p.at(), "BEGIN; SELECT 1/0;\nSHOW pgproxy.blockers;\nROLLBACK;\n")
	got.want(t, 0, "pid", "a-nightly-im…", "idle in tx", "alice@example.com", "row of pub", "UPDATE rather")
	if strings.Contains(got.out, "hunter2") {
		t.Errorf("a secret is shown:\n%s", got.out)
	}
	for line := range strings.Lines(got.out) {
		if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > tableWidth {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	t.Log(got.out)
	if err := holder.Exec(t.Context(), "ROLLBACK").Close(); err != nil {
		t.Fatal(err)
	}
	c.answer()
}

// pgproxy's own connection is nobody's blocker and nobody's victim: while it
// looks, nothing waits for it.
func TestMonitorBlocksNobody(t *testing.T) {
	p := startProxy(t)
	pg := makeTable(t, "altered")
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				p.LookAt(t.Context(), observer(), "app")
			}
		}
	}()
	program := pg.Program(t, "postgres", "ddl")
	for range 50 {
		if err := program.Exec(t.Context(), "SET lock_timeout = '300ms'; ALTER TABLE altered ADD COLUMN x integer; ALTER TABLE altered DROP COLUMN x").Close(); err != nil {
			t.Errorf("held up: %v", err)
		}
	}
	helpers := pg.Exec(t, "SELECT pid, xact_start IS NULL FROM pg_stat_activity WHERE application_name = '"+upstream.HelperName("monitor")+"'")
	close(stop)
	<-stopped
	if len(helpers) != 1 {
		t.Fatalf("the monitor's connections are %v", helpers)
	}
	pid, _ := strconv.Atoi(helpers[0][0])
	view, err := p.LookAt(t.Context(), observer(), "app")
	if err != nil {
		t.Fatal(err)
	}
	if view.Backends != nil || slices.ContainsFunc(slices.Concat(view.Waiting, view.Transactions, view.Statements), func(b Backend) bool { return b.PID == pid }) {
		t.Error("the monitor shows itself, or what is not masked")
	}
}

// A database that a rule does not serve is not shown, nor one that cannot be
// reached.
func TestLookAtRefused(t *testing.T) {
	p := startProxy(t)
	elsewhere := viewer("oncall@example.com", func(r *policy.Rule) { r.Databases = []string{"postgres"} })
	if _, err := p.LookAt(t.Context(), elsewhere, "app"); err == nil {
		t.Error("a database that the rule does not serve is shown")
	}
	if view, err := p.LookAt(t.Context(), elsewhere, "postgres"); err != nil || view.Database != "postgres" {
		t.Errorf("got %v, %v", view, err)
	}
	if view, err := p.LookAt(t.Context(), observer(), ""); err != nil || view.Database != "app" {
		t.Errorf("got %v, %v", view, err)
	} else if _, err := json.Marshal(view); err != nil {
		t.Error(err)
	}
}

// Where any database may be asked for, names that nobody has do not pile up.
func TestLookAtNoSuchDatabases(t *testing.T) {
	p := startProxy(t, func(srv *Server) {
		srv.Databases = []string{"*"}
		dial := srv.Dial
		srv.Dial = func(ctx context.Context, req upstream.Request) (*upstream.Conn, error) {
			if strings.HasPrefix(req.Database, "nosuch") {
				return nil, errors.New("no such database")
			}
			return dial(ctx, req)
		}
	})
	if _, err := p.LookAt(t.Context(), observer(), "app"); err != nil {
		t.Fatal(err)
	}
	known := p.monitors.list["app"]
	for i := range 2 * maxMonitors {
		if _, err := p.LookAt(t.Context(), observer(), fmt.Sprint("nosuch", i)); err == nil {
			t.Fatal("a database that there is not is shown")
		}
	}
	if n := len(p.monitors.list); n > maxMonitors || p.monitors.list["app"] != known {
		t.Errorf("%d are kept; app's is the same: %v", n, p.monitors.list["app"] == known)
	}
}

package wire

import (
	"context"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"

	"pgproxy/policy"
	"pgproxy/policy/policytest"
	"pgproxy/upstream/upstreamtest"
	"pgproxy/wire/audit"

	"github.com/jackc/pgx/v5/pgconn"

	"pgproxy/wire/frame"
)

// TestCorpus sends every case of the policy's corpus through the proxy to a
// real server, at every access, and looks into the server for what came of it:
// a refused message changed nothing and was not even seen there, and neither
// did anything change that read access lets through.
//
// At read and write the proxy's login is the superuser, so that only the proxy
// stands between a case and its effect. At admin, which allows everything, it
// is the owner of the database.
func TestCorpus(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	cases, err := policytest.Load("../policy/testdata/corpus")
	if err != nil {
		t.Fatal(err)
	}
	for _, major := range []int{15, 18} {
		t.Run(fmt.Sprintf("PostgreSQL %d", major), func(t *testing.T) {
			corpus(t, startMajor(t, major, upstreamtest.Set("autovacuum", "off")), cases)
		})
	}
}

// startMajor runs a server of a major version, or skips.
func startMajor(t *testing.T, major int, options ...upstreamtest.Option) *upstreamtest.Server {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a server of its own")
	}
	for _, in := range upstreamtest.Installs() {
		if in.Major == major {
			return upstreamtest.Start(t, append(options, upstreamtest.Major(major))...)
		}
	}
	t.Skipf("no PostgreSQL %d on this machine", major)
	return nil
}

func corpus(t *testing.T, pg *upstreamtest.Server, cases []policytest.Case) {
	w := &corpusRun{t: t, pg: pg, watcher: connectAs(t, pg, "postgres", "app")}
	w.exec(corpusObjects)
	superuser := startProxyTo(t, pg.SocketDSN("postgres", "app"), w.serve)
	owner := startProxyTo(t, pg.SocketDSN("app", "app"), w.serve)
	// In the order in which one stage leaves the database as the next needs it.
	for _, stage := range []struct {
		proxy  *proxy
		access policy.Access
		play   func(policytest.Case, policy.Access, *client)
		allows bool
	}{
		{superuser, policy.Read, w.refused, false},
		{superuser, policy.Write, w.refused, false},
		{owner, policy.Admin, w.refused, false},
		{superuser, policy.Read, w.harmless, true},
		{superuser, policy.Write, w.allowed, true},
		{owner, policy.Admin, w.ruinous, true},
	} {
		var s *client // nil, or one that is as good as new
		for _, c := range cases {
			if allows := c.Want[stage.access] == "ok"; allows != stage.allows {
				continue
			}
			// A refused message leaves nothing behind in its session, a
			// catalogue query neither.
			shares := len(c.Messages) == 1 && (!stage.allows || strings.HasPrefix(c.File, "psql"))
			if rule := c.Rule(stage.access); s == nil || !shares || !w.rules(rule) {
				s.leave()
				w.setRule(rule)
				s = stage.proxy.login(t)
			}
			w.about = fmt.Sprintf("%s at %s (%s)\n%s", c.Name(), stage.access, c.Reason, strings.Join(c.Messages, "\n---\n"))
			stage.play(c, stage.access, s)
			if !shares {
				s.leave()
				s = nil
			}
		}
		s.leave()
	}
	t.Logf("%d messages were refused, %d sent, of which the server took %d", w.denials, w.sent, w.taken)
}

// corpusRun is a server with the objects that the corpus speaks of, and a
// superuser who looks on.
type corpusRun struct {
	t       *testing.T
	pg      *upstreamtest.Server
	watcher *pgconn.PgConn
	about   string // the case that is being played

	denials, sent, taken int

	mu      sync.Mutex
	rule    policy.Rule
	verdict audit.Record // the last one recorded
	tamper  []string
}

func connectAs(t *testing.T, pg *upstreamtest.Server, role, database string) *pgconn.PgConn {
	t.Helper()
	conn, err := pgconn.Connect(t.Context(), pg.SocketDSN(role, database))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// serve makes a proxy judge by the run's rule, and report to it.
func (w *corpusRun) serve(srv *Server) {
	srv.Rules = func(policy.Caller) (policy.Rule, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.rule, nil
	}
	srv.Audit = w
}

// setRule sets the rule of the sessions to come.
func (w *corpusRun) setRule(rule policy.Rule) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rule = rule
}

// rules reports whether a rule is the one that was set last.
func (w *corpusRun) rules(rule policy.Rule) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return reflect.DeepEqual(rule, w.rule)
}

// leave ends a session, if there is one.
func (c *client) leave() {
	if c != nil {
		c.conn.Write(frame.Append(nil, 'X'))
		c.conn.Close()
	}
}

// Write takes the records.
func (w *corpusRun) Write(rec *audit.Record) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch rec.Event {
	case audit.Query:
		w.verdict = *rec
	case audit.Tamper:
		w.tamper = append(w.tamper, rec.Tampered)
	}
	return nil
}

// ruling is the last verdict, and the settings that were seen changed since
// it was asked for last.
func (w *corpusRun) ruling() (verdict, rule string, tamper []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	tamper, w.tamper = w.tamper, nil
	return w.verdict.Verdict, w.verdict.Rule, tamper
}

// exec runs SQL as the watcher and returns the last row, in one line.
func (w *corpusRun) exec(sql string) string {
	w.t.Helper()
	results, err := w.watcher.Exec(w.t.Context(), sql).ReadAll()
	if err != nil {
		w.t.Fatalf("%s\nwatching: %v", w.about, err)
	}
	line := ""
	for _, r := range results {
		for _, row := range r.Rows {
			line = ""
			for _, value := range row {
				line += string(value) + " | "
			}
		}
	}
	return line
}

// corpusState is what a statement can leave behind outside of its session. A
// transaction that changes as much as one row, of a catalogue too, takes an
// ID, even when it is rolled back; what is not transactional is listed.
const corpusState = `SELECT pg_snapshot_xmax(pg_current_snapshot()),
	(SELECT string_agg(sequencename || ' ' || coalesce(last_value::text, '-'), ', ' ORDER BY 1) FROM pg_sequences),
	(SELECT string_agg(s::text, ', ' ORDER BY slot_name) FROM pg_replication_slots s),
	(SELECT count(*) FROM pg_prepared_xacts), (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'),
	(SELECT stats_reset FROM pg_stat_database WHERE datname = current_database()), (SELECT stats_reset FROM pg_stat_bgwriter),
	pg_conf_load_time(), md5(pg_read_file('postgresql.auto.conf')), (SELECT count(*) FROM pg_ls_dir('pg_snapshots'))`

// seen is the last text that the server has run for a session.
func (w *corpusRun) seen(s *client) string {
	return w.exec(fmt.Sprintf("SELECT query FROM pg_stat_activity WHERE pid = %d", s.pid))
}

// refused requires that the last message of a case is refused for the right
// reason, outside of a transaction and inside of one, and reaches nothing.
func (w *corpusRun) refused(c policytest.Case, access policy.Access, s *client) {
	last := len(c.Messages) - 1
	for _, sql := range c.Messages[:last] {
		s.query(sql)
	}
	before, seen := w.exec(corpusState), w.seen(s)
	w.denied(s, c.Messages[last], c.Want[access], "Z(I)")
	switch now := w.seen(s); {
	case now == seen:
	case c.Want[access] == "catalog", c.Rule(access).Where == policy.WhereKey: // which look into the catalogue
	case c.Want[access] == "syntax" && now == "SELECT;"+c.Messages[last]+" | ": // read for its error, never run: exchange.Backend.Syntax
	default:
		w.t.Errorf("%s\nthe server ran %s", w.about, now)
	}
	if strings.HasSuffix(s.query("BEGIN"), "Z(T)") {
		w.denied(s, c.Messages[last], c.Want[access], "Z(E)")
		if got := s.query("COMMIT"); got != "C(ROLLBACK) Z(I)" {
			w.t.Errorf("%s\nthen COMMIT: %s", w.about, got)
		}
	}
	if after := w.exec(corpusState); after != before {
		w.t.Errorf("%s\nrefused, but there was\n%s\nand is\n%s", w.about, before, after)
	}
	w.alive(s, "I Z(I)")
}

// denied sends a message and requires its refusal by a rule.
func (w *corpusRun) denied(s *client, sql, rule, status string) {
	w.denials++
	code := "42501"
	switch rule {
	case "copy", "own_settings":
		code = "0A000"
	case "unknown_setting":
		code = "42704"
	case "syntax":
		code = "42601"
	}
	s.send(frame.AppendQuery(nil, sql))
	if e, z := s.next(), s.next(); !strings.HasPrefix(e.String(), "E("+code+" ") || z.String() != status {
		w.t.Fatalf("%s\nanswer: %v %v", w.about, e, z)
	}
	if verdict, by, _ := w.ruling(); verdict != "deny" || by != rule {
		w.t.Errorf("%s\nverdict: %s by %s, want deny by %s", w.about, verdict, by, rule)
	}
}

// allowed requires that the proxy lets a case pass, and finds nothing wrong
// with its answer; the server may have its own reasons to refuse it.
func (w *corpusRun) allowed(c policytest.Case, access policy.Access, s *client) {
	for i, sql := range c.Messages {
		got, ended := w.ask(s, sql)
		w.sent++
		if !strings.Contains(got, "E(") {
			w.taken++
		}
		verdict, by, tamper := w.ruling()
		if i == len(c.Messages)-1 && verdict != "allow" || strings.Contains(got, "pgproxy") || strings.Contains(got, "E(25006 ") || len(tamper) > 0 {
			w.t.Errorf("%s\nverdict: %s by %s; tampered: %v\nanswer: %s", w.about, verdict, by, tamper, got)
		}
		if ended {
			if !strings.Contains(got, "E(57P01 ") || !strings.Contains(sql, "pg_terminate_backend") {
				w.t.Errorf("%s\nthe session ended: %s", w.about, got)
			}
			return
		}
	}
	w.alive(s, "I Z(")
}

// ask sends a query and reads its answer, or what comes before the end of the
// connection.
func (w *corpusRun) ask(s *client, sql string) (answer string, ended bool) {
	s.send(frame.AppendQuery(nil, sql))
	var list []string
	for {
		f, err := s.tryNext()
		if err != nil {
			return strings.Join(list, " "), true
		}
		switch f.typ {
		case 'T', 'D':
			continue
		}
		list = append(list, f.String())
		if f.typ == 'Z' {
			return strings.Join(list, " "), false
		}
	}
}

// harmless requires what allowed does, and that nothing has changed, unless
// the case's rule allows changes.
func (w *corpusRun) harmless(c policytest.Case, access policy.Access, s *client) {
	before := w.exec(corpusState)
	w.allowed(c, access, s)
	if after := w.exec(corpusState); after != before && c.Rule(access).Allow == nil {
		w.t.Errorf("%s\nread access changed\n%s\nto\n%s", w.about, before, after)
	}
}

// TestAllowedAtRead has a caller who reads, and may INSERT: the server's
// read-only wall is open for that, and stands for everything else.
func TestAllowedAtRead(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	upstreamtest.Shared(t).Exec(t, `DROP SCHEMA IF EXISTS allowed CASCADE; CREATE SCHEMA allowed AUTHORIZATION app; SET ROLE app;
		CREATE TABLE allowed.log (n int);
		CREATE FUNCTION allowed.sly() RETURNS int LANGUAGE sql AS 'INSERT INTO allowed.log VALUES (0) RETURNING n'`)
	p := startProxy(t, withRule(func(r *policy.Rule) { r.Access, r.Allow = policy.Read, []string{"INSERT"} }))
	c := p.login(t)
	wall := "E(25006 cannot execute INSERT in a read-only transaction) Z(I)"
	for range 2 {
		c.wantPart("SELECT allowed.sly()", wall)
		c.wantPart("INSERT INTO allowed.log VALUES (1)", "C(INSERT 0 1) Z(I)")
		c.wantPart("SELECT allowed.sly()", wall)
		c.wantPart("BEGIN", "C(BEGIN) Z(T)")
		c.wantPart("TABLE allowed.log", "Z(T)")
		c.wantPart("INSERT INTO allowed.log VALUES (2)", "C(INSERT 0 1) Z(T)")
		c.wantPart("DELETE FROM allowed.log WHERE true", "E(42501 pgproxy: DELETE is refused) Z(E)")
		c.wantPart("ROLLBACK", "Z(I)")
		c.wantPart("SHOW transaction_read_only", "D(on)")
	}
	for _, rec := range p.records.all() {
		if rec.Event == audit.Tamper {
			t.Errorf("tampered: %s", rec.Tampered)
		}
	}
}

// ruinous requires what allowed does, and puts everything right again.
func (w *corpusRun) ruinous(c policytest.Case, access policy.Access, s *client) {
	before := w.exec(corpusState)
	w.allowed(c, access, s)
	if s.query("ROLLBACK"); w.exec(corpusState) != before {
		w.exec(corpusObjects)
	}
}

// alive requires that the session answers. It may tell of the read-only wall
// that is closed again.
func (w *corpusRun) alive(s *client, want string) {
	if got, _ := w.ask(s, ""); !strings.Contains(got, want) {
		w.t.Errorf("%s\nafterwards: %q", w.about, got)
	}
}

// corpusObjects makes, or makes again, what the corpus speaks of.
const corpusObjects = `
SET client_min_messages = error;
DROP SCHEMA IF EXISTS public, shop, attic, tools, x CASCADE;
DROP PUBLICATION IF EXISTS p;
ALTER ROLE app RESET ALL;
ALTER ROLE app CREATEROLE;
GRANT pg_monitor TO app;
CREATE SCHEMA public AUTHORIZATION app;
CREATE SCHEMA shop AUTHORIZATION app;
CREATE SCHEMA attic AUTHORIZATION app;
SET ROLE app;
CREATE TABLE customers (id int PRIMARY KEY, name text);
CREATE TABLE orders (id serial PRIMARY KEY, customer int, status text DEFAULT 'new', total numeric, created timestamptz DEFAULT now(),
	tags text[], doc jsonb, a int, b int);
CREATE TABLE items (id int PRIMARY KEY, price numeric);
CREATE TABLE archive AS TABLE orders;
CREATE TABLE jobs (id int PRIMARY KEY, state text);
CREATE TABLE log (id int);
CREATE TABLE new (id int, status text);
CREATE TABLE n (id int, status text);
CREATE TABLE new_orders AS TABLE orders;
CREATE TABLE actions (copy int, "drop" int, "update" int, vacuum int, call int, "truncate" int, listen int, notify int);
CREATE TABLE vacuum (id int);
CREATE TABLE explain (id int);
CREATE TYPE pair AS (b int, c int);
CREATE TABLE t (a int, b int, c int, x xml);
CREATE TABLE "tëst" ("größe" int, 名前 text);
CREATE TABLE pg_imports (id int, done bool);
CREATE TABLE columns (id int);
CREATE TABLE triggers (id int);
CREATE TABLE late (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED);
CREATE SEQUENCE s;
CREATE VIEW v AS SELECT 1;
CREATE MATERIALIZED VIEW totals AS SELECT 1 AS id;
CREATE UNIQUE INDEX ON totals (id);
CREATE TYPE mood AS ENUM ('sad');
CREATE FUNCTION my_function() RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION shop.total(int) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION shop.pg_read_file(text) RETURNS text LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION always_true(int, int) RETURNS bool LANGUAGE sql AS 'SELECT true';
CREATE FUNCTION touched() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE PROCEDURE clean_up() LANGUAGE sql AS 'DELETE FROM orders WHERE id < 0';
CREATE OPERATOR shop.= (LEFTARG = int, RIGHTARG = int, FUNCTION = always_true);
INSERT INTO customers VALUES (1, 'x'), (2, 'y');
INSERT INTO orders (customer, total, doc) VALUES (1, 10, '{"a": 1}'), (2, 20, '{}');
INSERT INTO jobs VALUES (1, 'new');
INSERT INTO n VALUES (1, 'x'), (9, 'y');
RESET ROLE;
`

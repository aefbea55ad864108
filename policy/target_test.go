package policy_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"pgproxy/policy"
	"pgproxy/upstream/upstreamtest"
)

const targetSchema = `
CREATE SCHEMA shop; CREATE SCHEMA dba;
CREATE TABLE columns (id int PRIMARY KEY, x int); CREATE TABLE pg_imports (id int, x int);
CREATE TABLE shop.triggers (id int, x int); CREATE TABLE shop.sql_parts (id int, x int);
CREATE TABLE orders (id int PRIMARY KEY, x int);
CREATE VIEW dba.settings AS SELECT name, setting FROM pg_settings;
CREATE VIEW dba.again AS SELECT * FROM dba.settings WHERE name <> 'x';
CREATE VIEW dba.parts AS SELECT * FROM information_schema.sql_parts;
CREATE VIEW dba.classes AS SELECT relname FROM pg_class;
CREATE VIEW dba.sizes AS SELECT o.* FROM orders o;
CREATE VIEW dba.ruled AS SELECT 1 AS x;
CREATE RULE r AS ON UPDATE TO dba.ruled DO INSTEAD UPDATE pg_settings SET setting = 'x' WHERE name = 'role';
CREATE VIEW dba.own AS SELECT c.relname AS x FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace;
CREATE FUNCTION dba.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER t INSTEAD OF UPDATE ON dba.own FOR EACH ROW EXECUTE FUNCTION dba.f();
CREATE TABLE settings (name text, setting text);
CREATE TABLE noted (id int); CREATE RULE r AS ON INSERT TO noted DO ALSO INSERT INTO orders SELECT count(*) FROM pg_stat_activity;
`

// targetCases are messages of one session after the other, each sent where it
// is allowed.
var targetCases = []struct {
	want string
	sql  string
	why  string
}{
	{"ok", "UPDATE columns SET x = 1 WHERE id = 1", "a table of the user's that is named like a view of information_schema"},
	{"ok", "UPDATE pg_imports SET x = 1 WHERE id = 1", "a table of the user's that is named like one of pg_catalog"},
	{"ok", "INSERT INTO orders VALUES (1, 1)", "a table"},
	{"ok", "UPDATE orders SET x = 1 WHERE id = 1", "a table"},
	{"ok", "UPDATE dba.sizes SET x = 1 WHERE id = 1", "a view of a table"},
	{"ok", "UPDATE dba.own SET x = 'x' WHERE x = 'y'", "a view with a trigger: the database's own code"},
	{"ok", "UPDATE settings SET setting = 'x' WHERE name = 'x'", "a table that is named like a view of another schema's"},
	{"ok", "INSERT INTO noted VALUES (1)", "a table with a rule that reads the catalogue"},
	{"ok", "SET work_mem = '1MB'; UPDATE pg_imports SET x = 1 WHERE id = 1; RESET work_mem", "in a script"},
	{"ok", "UPDATE nowhere SET x = 1 WHERE id = 1", "the server's to refuse"},
	{"ok", "BEGIN; UPDATE columns SET x = 1 WHERE id = 1; COMMIT", "in a script"},
	{"ok", "UPDATE columns SET x = 1 WHERE id = 1; UPDATE pg_imports SET x = 1 WHERE id = 1", "in a script"},
	{"ok", "CREATE TEMP VIEW v AS SELECT * FROM orders", "a view of a table"},
	{"ok", "UPDATE v SET x = 1 WHERE id = 1", "a view of a table"},
	{"ok", "CREATE TEMP VIEW w AS SELECT c.relname FROM pg_class c, orders o", "a view through which nothing can be changed"},
	{"ok", "CREATE TEMP TABLE pg_mine (id int)", "temporary"},
	{"ok", "INSERT INTO pg_mine VALUES (1)", "temporary"},
	{"ok", "CREATE TEMP TABLE pg_class (id int)", "temporary, and before pg_catalog"},
	{"ok", "INSERT INTO pg_class VALUES (1)", "temporary, and before pg_catalog"},
	{"ok", "DROP TABLE pg_temp.pg_class", "gone"},
	{"catalog", "INSERT INTO pg_class VALUES (1)", "it is the catalogue's again"},

	{"catalog", "UPDATE pg_settings SET setting = 'x' WHERE name = 'y'", "by its name"},
	{"catalog", "UPDATE information_schema.sql_features SET comments = 'x' WHERE true", "by its name"},
	{"catalog", "DELETE FROM information_schema.columns WHERE true", "by its name"},
	{"catalog", "DELETE FROM pg_toast.pg_toast_1255 WHERE true", "by its name"},
	{"catalog", "UPDATE dba.settings SET setting = 'x' WHERE name = 'y'", "by a view"},
	{"catalog", "UPDATE dba.again SET setting = 'x' WHERE name = 'y'", "by a view of a view"},
	{"catalog", "DELETE FROM dba.parts WHERE true", "by a view"},
	{"catalog", "MERGE INTO dba.classes c USING orders o ON c.relname = 'x' WHEN MATCHED THEN UPDATE SET relname = 'y'", "by a view"},
	{"catalog", "INSERT INTO dba.classes VALUES ('x')", "by a view"},
	{"catalog", "WITH u AS (UPDATE dba.settings SET setting = 'x' WHERE name = 'y' RETURNING 1) SELECT 1", "by a view, in a CTE"},
	{"catalog", "PREPARE p AS UPDATE dba.settings SET setting = 'x' WHERE name = 'y'", "by a view, prepared"},
	{"catalog", "EXPLAIN ANALYZE UPDATE dba.settings SET setting = 'x' WHERE name = 'y'", "by a view"},
	{"catalog", "UPDATE dba.ruled SET x = 1 WHERE x = 2", "by a rule"},
	{"catalog", "CREATE TEMP VIEW bad AS SELECT * FROM pg_settings", "a view that passes changes on"},
	{"catalog", "CREATE TEMP VIEW bad AS SELECT * FROM dba.again", "a view that passes changes on"},
	{"catalog", "CREATE TEMP VIEW bad AS TABLE information_schema.sql_features", "a view that passes changes on"},
	{"catalog", "CREATE TEMP VIEW settings AS SELECT * FROM pg_catalog.pg_settings; UPDATE settings SET setting = 'x' WHERE true", "in one message"},

	{"catalog", "SET search_path = information_schema; DELETE FROM sql_features WHERE true", "in one message"},
	{"catalog", "SELECT set_config('Search_Path', 'information_schema', false); DELETE FROM sql_features WHERE true", "in one message"},
	{"catalog", "SET search_path = dba; UPDATE again SET setting = 'x' WHERE name = 'y'", "in one message"},
	{"ok", "SET search_path = shop; UPDATE triggers SET x = 1 WHERE id = 1", "in one message"},
	{"ok", "UPDATE sql_parts SET x = 1 WHERE id = 1", "a table of that schema"},
	{"ok", "SET search_path = information_schema", "harmless alone"},
	{"catalog", "DELETE FROM sql_features WHERE true", "by the search_path"},
	{"catalog", "UPDATE sql_parts SET comments = 'x' WHERE true", "by the search_path"},
	{"catalog", "INSERT INTO sql_sizing VALUES (1)", "by the search_path"},
	{"catalog", "DELETE FROM enabled_roles WHERE true", "by the search_path"},
	{"catalog", "MERGE INTO sql_parts p USING (VALUES (1)) v ON true WHEN MATCHED THEN DELETE", "by the search_path"},
	{"catalog", "CREATE TEMP VIEW bad AS SELECT * FROM sql_features", "by the search_path"},
	{"catalog", "WITH d AS (DELETE FROM sql_features WHERE true RETURNING 1) SELECT * FROM d", "by the search_path"},
	{"ok", "DELETE FROM public.columns WHERE id = 1", "by its schema"},
	{"ok", "SET search_path = dba", "harmless alone"},
	{"catalog", "UPDATE settings SET setting = 'x' WHERE name = 'y'", "what was a table is a view of pg_settings"},
	{"ok", "RESET search_path", ""},
	{"ok", "UPDATE settings SET setting = 'x' WHERE name = 'y'", "a table again"},
	{"ok", "PREPARE s AS UPDATE settings SET setting = 'x' WHERE name = 'y'", "a table"},
	{"ok", "EXECUTE s", "a table"},
	{"ok", "SET search_path = dba", ""},
	{"catalog", "EXECUTE s", "the plan is made for what the name means now"},
	{"ok", "RESET search_path; DEALLOCATE s", ""},
	{"ok", "SET search_path = pg_catalog, information_schema", ""},
	{"catalog", "UPDATE pg_settings SET setting = 'x' WHERE name = 'y'", "by its name"},
}

// TestTargets has a writer change rows of what may be the catalogue's.
func TestTargets(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	judge := newJudge(t)
	upstreamtest.Versions(t, func(t *testing.T, s *upstreamtest.Server) {
		conn := connect(t, s, "targets")
		run(t, conn, targetSchema)
		session := &targetSession{judge: judge, conn: conn}
		for _, c := range targetCases {
			if got := session.send(t, c.sql); got != c.want {
				t.Errorf("%s: %s, want %s (%s)", c.sql, got, c.want, c.why)
			}
		}
		if session.asked > 60 {
			t.Errorf("%d queries for %d messages", session.asked, len(targetCases))
		}
	})
}

// targetSession is a writer's session.
type targetSession struct {
	judge  *policy.Judge
	conn   *pgconn.PgConn
	memory policy.Memory
	asked  int
}

// send judges a message and sends it where it is allowed. It returns "ok", or
// the rule that refused it.
func (s *targetSession) send(t *testing.T, sql string) string {
	t.Helper()
	rule := policy.DefaultRule()
	msg := readBy(t, s.judge, sql)
	d := policy.Decide(t.Context(), &rule, msg, policy.Session{Memory: &s.memory, Catalog: countingCatalog{connCatalog{s.conn}, &s.asked}})
	if d.Refusal != nil {
		refused(t, d.Refusal)
		return d.Refusal.Rule
	}
	results, _ := s.conn.Exec(t.Context(), sql).ReadAll()
	completed := 0
	for _, r := range results {
		if r.Err == nil {
			completed++
		}
	}
	s.memory.Note(msg, completed)
	return "ok"
}

// countingCatalog counts what it is asked.
type countingCatalog struct {
	policy.Catalog
	asked *int
}

func (c countingCatalog) Query(ctx context.Context, sql string) ([][]string, error) {
	*c.asked++
	return c.Catalog.Query(ctx, sql)
}

// TestTargetsKnown checks that a table that the session has changed before is
// not looked up again, until its name may mean another.
func TestTargetsKnown(t *testing.T) {
	conn := connect(t, upstreamtest.Shared(t), "known")
	run(t, conn, "CREATE TABLE orders (id int)")
	session := &targetSession{judge: newJudge(t), conn: conn}
	for _, c := range []struct {
		asked int
		sql   string
	}{
		{1, "INSERT INTO orders VALUES (1)"},
		{0, "INSERT INTO orders VALUES (2)"},
		{0, "BEGIN"},
		{0, "UPDATE orders SET id = 3 WHERE id = 2; DELETE FROM orders WHERE id = 1"},
		{0, "SELECT now(); SET LOCAL lock_timeout = '1s'"},
		{0, "DELETE FROM orders WHERE id = 3"},
		{0, "ROLLBACK"},
		{0, "INSERT INTO orders VALUES (4)"},
		{0, "BEGIN; SAVEPOINT s; CREATE TEMP TABLE orders (id int)"},
		{1, "INSERT INTO orders VALUES (4)"},
		{0, "INSERT INTO orders VALUES (4)"},
		{0, "ROLLBACK TO s"},
		{1, "INSERT INTO orders VALUES (4)"},
		{0, "SET LOCAL search_path = public"},
		{1, "INSERT INTO orders VALUES (4)"},
		{0, "COMMIT"},
		{1, "INSERT INTO orders VALUES (4)"},
		{0, "SELECT unknown_function()"},
		{1, "INSERT INTO orders VALUES (5)"},
		{0, "CREATE TEMP TABLE orders (id int)"},
		{1, "INSERT INTO orders VALUES (6)"},
	} {
		session.asked = 0
		if got := session.send(t, c.sql); got != "ok" || session.asked != c.asked {
			t.Errorf("%s: %s, %d queries, want %d", c.sql, got, session.asked, c.asked)
		}
	}
}

// TestTargetsUnread judges where the database cannot be asked.
func TestTargetsUnread(t *testing.T) {
	judge, rule := newJudge(t), policy.DefaultRule()
	for _, c := range []struct {
		want string
		cat  policy.Catalog
		sql  string
	}{
		{"ok", nil, "UPDATE orders SET x = 1 WHERE id = 1"},
		{"ok", nil, "UPDATE columns SET x = 1 WHERE id = 1"},
		{"catalog", nil, "UPDATE pg_imports SET x = 1 WHERE id = 1"},
		{"catalog", nil, "UPDATE sql_features SET x = 1 WHERE id = 1"},
		{"catalog", nil, "CREATE TEMP VIEW v AS TABLE enabled_roles"},
		{"catalog", failingCatalog{}, "UPDATE orders SET x = 1 WHERE id = 1"},
		{"ok", failedTransaction{}, "UPDATE orders SET x = 1 WHERE id = 1"}, // the server refuses it
		{"catalog", failedTransaction{}, "ROLLBACK; UPDATE orders SET x = 1 WHERE id = 1"},
	} {
		got := "ok"
		if d := policy.Decide(t.Context(), &rule, readBy(t, judge, c.sql), policy.Session{Catalog: c.cat}); d.Refusal != nil {
			got = d.Refusal.Rule
		}
		if got != c.want {
			t.Errorf("%s with %T: %s, want %s", c.sql, c.cat, got, c.want)
		}
	}
	many := strings.Builder{}
	for i := range 2000 {
		fmt.Fprintf(&many, "DELETE FROM t%d WHERE id = 1;", i)
	}
	asked := 0
	d := policy.Decide(t.Context(), &rule, readBy(t, judge, many.String()), policy.Session{Catalog: countingCatalog{emptyCatalog{}, &asked}})
	if d.Refusal == nil || asked > 1000 {
		t.Errorf("2000 tables: %v, %d queries", d.Refusal, asked)
	}
}

type failedTransaction struct{}

func (failedTransaction) Query(context.Context, string) ([][]string, error) {
	return nil, fmt.Errorf("query: %w", policy.ErrFailedTransaction)
}

type emptyCatalog struct{}

func (emptyCatalog) Query(context.Context, string) ([][]string, error) {
	return [][]string{{"t", ""}}, nil
}

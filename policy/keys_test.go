package policy_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"pgproxy/policy"
	"pgproxy/upstream/upstreamtest"
)

// connCatalog asks over a session's own connection, as the proxy does.
type connCatalog struct{ conn *pgconn.PgConn }

func (c connCatalog) Query(ctx context.Context, sql string) ([][]string, error) {
	results, err := c.conn.Exec(ctx, sql).ReadAll()
	if err != nil {
		return nil, err
	}
	var rows [][]string
	for _, row := range results[0].Rows {
		var texts []string
		for _, value := range row {
			texts = append(texts, string(value))
		}
		rows = append(rows, texts)
	}
	return rows, nil
}

const keySchema = `
CREATE SCHEMA shop; CREATE SCHEMA other;
CREATE TABLE orders (id bigint PRIMARY KEY, code text UNIQUE, customer int, status text, n numeric UNIQUE);
CREATE TABLE shop.orders (id int, a int, b int, PRIMARY KEY (a, b));
CREATE TABLE nokey (id int);
CREATE TABLE "Odd ""name'" ("Id" int PRIMARY KEY, id int);
CREATE TABLE partial (id int, x int); CREATE UNIQUE INDEX ON partial (id) WHERE x > 0;
CREATE TABLE expression (id text); CREATE UNIQUE INDEX ON expression (lower(id));
CREATE TABLE plain_index (id int); CREATE INDEX ON plain_index (id);
CREATE TABLE including (id int, x int); CREATE UNIQUE INDEX ON including (id) INCLUDE (x);
CREATE TABLE deferred (id int PRIMARY KEY, x int UNIQUE DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE collated (id text); CREATE UNIQUE INDEX ON collated (id COLLATE "C");
CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child () INHERITS (parent);
CREATE TABLE parts (id int, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE parts1 PARTITION OF parts FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
CREATE TABLE ruled (id int PRIMARY KEY); CREATE RULE r AS ON DELETE TO ruled DO ALSO DELETE FROM nokey;
CREATE VIEW one AS SELECT 1 AS id, status FROM orders;
CREATE VIEW simple AS SELECT * FROM orders;
CREATE TABLE other.users (id int);
CREATE TABLE users (id int PRIMARY KEY, name varchar(10) UNIQUE, ident uuid UNIQUE, day date UNIQUE);
CREATE DOMAIN dom AS int; CREATE TABLE domained (id dom PRIMARY KEY);
`

// TestKeys judges statements by require_where "key" against a real catalogue.
func TestKeys(t *testing.T) {
	upstreamtest.Versions(t, func(t *testing.T, s *upstreamtest.Server) {
		conn := connect(t, s, "keys")
		run(t, conn, keySchema)
		session := keySession{judge: newJudge(t), conn: conn}
		for _, c := range keyCases {
			if got := session.allows(t, c.sql); got != c.want {
				t.Errorf("%s: %v, want %v (%s)", c.sql, got, c.want, c.why)
			}
		}
	})
}

var keyCases = []struct {
	want bool
	sql  string
	why  string
}{
	{true, "DELETE FROM orders WHERE id = 42", "primary key"},
	{true, "DELETE FROM orders WHERE 42 = id", "either way round"},
	{true, "DELETE FROM orders WHERE id = -42", "a sign"},
	{true, "DELETE FROM orders WHERE id = '42'", "a string constant"},
	{true, "DELETE FROM orders WHERE id = 42::int", "a cast constant"},
	{true, "DELETE FROM orders WHERE id = CAST('42' AS bigint)", "a cast constant"},
	{true, "DELETE FROM orders WHERE id IN (1, 2, 3)", "a list"},
	{true, "DELETE FROM orders WHERE id = ANY (ARRAY[1, 2])", "an array"},
	{true, "DELETE FROM orders WHERE id = 1 OR id = 2", "every way"},
	{true, "DELETE FROM orders WHERE id = 1 OR code = 'x'", "another key"},
	{true, "DELETE FROM orders WHERE status = 'x' AND id = 1", "whatever else it says"},
	{true, "DELETE FROM orders WHERE id = 1 AND (status = 'x' OR true)", "whatever else it says"},
	{true, "DELETE FROM orders WHERE id = 1 AND NOT status = 'x'", "whatever else it says"},
	{true, "DELETE FROM orders WHERE (id = 1 OR id = 2) AND (status = 'x' OR status = 'y')", "every way"},
	{true, "DELETE FROM orders o WHERE o.id = 1", "alias"},
	{true, "DELETE FROM public.orders WHERE public.orders.id = 1", "qualified"},
	{true, "DELETE FROM orders WHERE orders.id OPERATOR(pg_catalog.=) 1", "qualified operator"},
	{true, "UPDATE orders SET status = 'x' FROM nokey c WHERE orders.id = 1 AND c.id = orders.customer", "FROM"},
	{true, "UPDATE orders SET id = 5 WHERE id = 1", "primary key"},
	{true, "DELETE FROM shop.orders WHERE a = 1 AND b = 2", "composite"},
	{true, "DELETE FROM shop.orders WHERE a = 1 AND b IN (2, 3)", "composite"},
	{true, "DELETE FROM shop.orders WHERE (a, b) = (1, 2)", "composite as a row"},
	{true, `DELETE FROM "Odd ""name'" WHERE "Id" = 1`, "odd names"},
	{true, "DELETE FROM including WHERE id = 1", "INCLUDE"},
	{true, "DELETE FROM deferred WHERE id = 1", "primary key"},
	{true, "DELETE FROM ONLY parent WHERE id = 1", "ONLY"},
	{true, "DELETE FROM parts WHERE id = 1 AND at = '2020-01-01'", "partitioned"},
	{true, "DELETE FROM parts1 WHERE id = 1 AND at = date '2020-01-01'", "partition"},
	{true, "DELETE FROM users WHERE name = 'x'", "varchar"},
	{true, "DELETE FROM users WHERE ident = '00000000-0000-0000-0000-000000000000'::uuid", "uuid"},
	{true, "DELETE FROM orders WHERE id = 0" + strings.Repeat(" OR id = 1", 500), "many ways by the same key"},
	{true, "BEGIN; DELETE FROM orders WHERE id = 1; UPDATE orders SET status = 'x' WHERE id = 2", "a script"},
	{true, "WITH d AS (DELETE FROM orders WHERE id = 1 RETURNING *) SELECT * FROM d", "in a CTE"},
	{true, "MERGE INTO orders o USING (VALUES (1)) v(id) ON o.id = 1 WHEN MATCHED THEN DELETE", "MERGE"},
	{true, "MERGE INTO orders o USING nokey v ON o.id = v.id WHEN MATCHED AND o.id = 1 THEN DELETE WHEN NOT MATCHED THEN INSERT (id) VALUES (v.id)", "MERGE"},

	{false, "DELETE FROM orders WHERE customer = 1", "no key"},
	{false, "DELETE FROM orders WHERE id = 1 OR status = 'x'", "one way without"},
	{false, "DELETE FROM orders WHERE id = customer", "no constant"},
	{false, "DELETE FROM orders WHERE id = NULL::int", "null"},
	{false, "DELETE FROM orders WHERE (id = 1) IS NOT NULL", "inside"},
	{false, "DELETE FROM orders WHERE (id = 1) = false", "inside"},
	{false, "DELETE FROM orders WHERE NOT id = 1", "inside"},
	{false, "DELETE FROM orders WHERE CASE WHEN id = 1 THEN true ELSE true END", "inside"},
	{false, "DELETE FROM orders WHERE id <> 1", "operator"},
	{false, "DELETE FROM orders WHERE id = ALL (ARRAY[1, 2])", "operator"},
	{false, "DELETE FROM orders USING users b WHERE b.id = 1", "another table's"},
	{false, "DELETE FROM orders USING shop.orders o WHERE o.id = 1", "another table's"},
	{false, "DELETE FROM orders o USING users orders WHERE orders.id = 1", "another table's"},
	{false, "DELETE FROM shop.orders WHERE a = 1", "half a key"},
	{false, "DELETE FROM shop.orders WHERE id = 1", "public.orders' key"},
	{false, "DELETE FROM shop.orders WHERE (a, b) = (1, id)", "half a row"},
	{false, "DELETE FROM shop.orders WHERE a = 1 AND b = 2 OR a = 1", "half a key in one way"},
	{false, `DELETE FROM "Odd ""name'" WHERE id = 1`, "another column"},
	{false, "DELETE FROM nokey WHERE id = 1", "no key"},
	{false, "DELETE FROM partial WHERE id = 1", "partial"},
	{false, "DELETE FROM expression WHERE id = 'x'", "expression"},
	{false, "DELETE FROM plain_index WHERE id = 1", "not unique"},
	{false, "DELETE FROM including WHERE x = 1", "INCLUDE"},
	{false, "DELETE FROM deferred WHERE x = 1", "deferred"},
	{false, "DELETE FROM collated WHERE id = 'x'", "another collation"},
	{false, "DELETE FROM parent WHERE id = 1", "inheritance"},
	{false, "DELETE FROM child WHERE id = 1", "keys are not inherited"},
	{false, "DELETE FROM parts WHERE id = 1", "half of a partitioned key"},
	{false, "DELETE FROM ruled WHERE id = 1", "rules"},
	{false, "DELETE FROM one WHERE id = 1", "a view with a constant"},
	{false, "DELETE FROM simple WHERE id = 1", "a view"},
	{false, "DELETE FROM nowhere WHERE id = 1", "no table"},
	{false, "DELETE FROM domained WHERE id = 1", "a domain may have operators of its own"},
	{false, "DELETE FROM orders WHERE id IN (1, customer)", "no constant in the list"},
	{false, "SET search_path = other; DELETE FROM users WHERE id = 1", "which users?"},
	{false, "SELECT set_config('search_path', 'other', true); DELETE FROM users WHERE id = 1", "which users?"},
	{false, "CREATE TEMP TABLE users (id int); DELETE FROM users WHERE id = 1", "which users?"},
	{false, "MERGE INTO orders o USING nokey v ON o.id = v.id WHEN MATCHED THEN DELETE", "MERGE"},
	{false, "MERGE INTO orders o USING nokey v ON o.id = 1 WHEN NOT MATCHED BY SOURCE THEN DELETE", "MERGE"},
	{false, "MERGE INTO orders o USING nokey v ON o.id = 1 WHEN NOT MATCHED BY SOURCE AND o.customer = 1 THEN DELETE", "MERGE"},
}

// keySession judges one session's messages with require_where "key".
type keySession struct {
	judge  *policy.Judge
	conn   *pgconn.PgConn
	memory policy.Memory
}

// allows reports whether a message may be sent.
func (s *keySession) allows(t *testing.T, sql string) bool {
	t.Helper()
	rule := policy.DefaultRule()
	rule.Where = policy.WhereKey
	msg, err := s.judge.Parse(t.Context(), sql)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	d := policy.Decide(t.Context(), &rule, msg, &s.memory, connCatalog{s.conn})
	if d.Refusal != nil {
		if d.Refusal.Rule != "require_where" {
			t.Fatalf("%s: %+v", sql, *d.Refusal)
		}
		return false
	}
	s.memory.Note(msg, len(msg.Statements))
	return true
}

// TestKeysNeverStale changes what a name means between two statements of one
// session.
func TestKeysNeverStale(t *testing.T) {
	conn := connect(t, upstreamtest.Shared(t), "stale")
	run(t, conn, keySchema)
	const sql = "DELETE FROM users WHERE id = 1"
	session := keySession{judge: newJudge(t), conn: conn}
	check := func(want bool, why string) {
		t.Helper()
		if got := session.allows(t, sql); got != want {
			t.Errorf("%v, want %v: %s", got, want, why)
		}
	}
	check(true, "at first")
	run(t, conn, "SET search_path = other, public")
	check(false, "another schema first")
	run(t, conn, "RESET search_path")
	check(true, "and back")
	run(t, conn, "BEGIN; CREATE TEMP TABLE users (id int)")
	check(false, "a temporary table hides it")
	run(t, conn, "ROLLBACK")
	check(true, "and gone")
	run(t, conn, "ALTER TABLE users DROP CONSTRAINT users_pkey")
	check(false, "the key is dropped")
	run(t, conn, "ALTER TABLE users ADD PRIMARY KEY (id)")
	check(true, "and made again")
	run(t, conn, "CREATE RULE r AS ON DELETE TO users DO INSTEAD DELETE FROM other.users")
	check(false, "a rule")
	run(t, conn, "DROP RULE r ON users")

	// A plan keeps its text and not its table.
	if !session.allows(t, "PREPARE p AS "+sql) || !session.allows(t, "EXECUTE p") {
		t.Error("EXECUTE is refused")
	}
	run(t, conn, "SET search_path = other, public")
	if session.allows(t, "EXECUTE p") {
		t.Error("EXECUTE of a plan that would be made for another table is allowed")
	}
}

// TestKeysOwnOperator defines operators that would be taken for a key's =.
func TestKeysOwnOperator(t *testing.T) {
	conn := connect(t, upstreamtest.Shared(t), "operators")
	run(t, conn, `CREATE SCHEMA evil;
		CREATE TABLE users (id int PRIMARY KEY, name varchar(10) UNIQUE, big bigint UNIQUE);
		CREATE FUNCTION evil.yes(varchar, varchar) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT true';
		CREATE FUNCTION evil.yes(int, int) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT true'`)
	session := keySession{judge: newJudge(t), conn: conn}
	check := func(want bool, sql, why string) {
		t.Helper()
		if got := session.allows(t, sql); got != want {
			t.Errorf("%s: %v, want %v: %s", sql, got, want, why)
		}
	}
	run(t, conn, "CREATE OPERATOR evil.= (LEFTARG = varchar, RIGHTARG = varchar, FUNCTION = evil.yes)")
	check(true, "DELETE FROM users WHERE name = 'x'", "it is in no schema of the path")
	run(t, conn, "SET search_path = public, evil")
	check(false, "DELETE FROM users WHERE name = 'x'", "it would be chosen: no built-in = is for varchar itself")
	check(true, "DELETE FROM users WHERE id = 1", "it is for another type")
	run(t, conn, "CREATE OPERATOR evil.= (LEFTARG = int, RIGHTARG = int, FUNCTION = evil.yes)")
	check(true, "DELETE FROM users WHERE id = 1", "the built-in one comes first")
	run(t, conn, "SET search_path = evil, pg_catalog, public")
	check(false, "DELETE FROM users WHERE id = 1", "it comes before the built-in one")
}

// failingCatalog is a session in a failed transaction.
type failingCatalog struct{}

func (failingCatalog) Query(context.Context, string) ([][]string, error) {
	return nil, errors.New("current transaction is aborted")
}

func TestKeysUnknown(t *testing.T) {
	msg, err := newJudge(t).Parse(t.Context(), "DELETE FROM t WHERE id = 1")
	if err != nil {
		t.Fatal(err)
	}
	rule := policy.DefaultRule()
	rule.Where = policy.WhereKey
	for _, cat := range []policy.Catalog{nil, failingCatalog{}} {
		if d := policy.Decide(t.Context(), &rule, msg, new(policy.Memory), cat); d.Refusal == nil {
			t.Errorf("allowed with catalogue %v", cat)
		}
	}
}

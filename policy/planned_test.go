package policy_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"pgproxy/policy"
	"pgproxy/upstream/upstreamtest"
)

// plannedSchema has functions that say that they were run, and definitions that
// call them.
const plannedSchema = `
CREATE FUNCTION vol(text) RETURNS text LANGUAGE plpgsql VOLATILE AS $$ BEGIN RAISE NOTICE 'v'; RETURN $1; END $$;
CREATE FUNCTION sta(text) RETURNS text LANGUAGE plpgsql STABLE AS $$ BEGIN RAISE NOTICE 's'; RETURN $1; END $$;
CREATE FUNCTION imm(text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RAISE NOTICE 'i'; RETURN $1; END $$;
CREATE FUNCTION chk(text) RETURNS bool LANGUAGE plpgsql VOLATILE AS $$ BEGIN RAISE NOTICE 'c'; RETURN true; END $$;
CREATE FUNCTION opf(text, text) RETURNS bool LANGUAGE plpgsql VOLATILE AS $$ BEGIN RAISE NOTICE 'o'; RETURN $1 = $2; END $$;
CREATE OPERATOR === (LEFTARG = text, RIGHTARG = text, FUNCTION = opf, RESTRICT = eqsel);
CREATE DOMAIN dom AS text CHECK (chk(value));
CREATE TYPE comp AS (d dom);
CREATE TABLE t (id int PRIMARY KEY, x text DEFAULT vol('x'));
CREATE TABLE many (x text);
INSERT INTO many SELECT 'v' || g % 5 FROM generate_series(1, 1000) g;
ANALYZE many;
CREATE TABLE parts (id text) PARTITION BY LIST (id);
CREATE TABLE parts1 PARTITION OF parts FOR VALUES IN ('a');
CREATE TABLE parts2 PARTITION OF parts FOR VALUES IN ('b');
PREPARE p (text) AS SELECT $1;
PREPARE q (int) AS SELECT * FROM t WHERE id = $1;
`

// plannedCases are statements that seem to run nothing, and what the server
// runs of them all the same: v a volatile function, s a stable one, i an
// immutable one, c the check of a domain, o an operator's function.
var plannedCases = []struct{ sql, runs string }{
	// EXPLAIN runs no volatile function …
	{"EXPLAIN SELECT vol('x')", ""},
	{"EXPLAIN VERBOSE SELECT vol('x') FROM many", ""},
	{"EXPLAIN (ANALYZE off) SELECT vol('x')", ""},
	{"EXPLAIN VALUES (vol('x'))", ""},
	{"EXPLAIN SELECT * FROM vol('x')", ""},
	{"EXPLAIN SELECT * FROM many WHERE x = vol('x')", ""},
	{"EXPLAIN SELECT * FROM many WHERE x = (SELECT vol('x'))", ""},
	{"EXPLAIN SELECT * FROM parts WHERE id = vol('a')", ""},
	{"EXPLAIN SELECT * FROM many LIMIT length(vol('x'))", ""},
	{"EXPLAIN SELECT * FROM many TABLESAMPLE bernoulli (length(vol('x')))", ""},
	{"EXPLAIN SELECT CASE WHEN true THEN vol('x') END", ""},
	{"EXPLAIN SELECT sum(length(vol('x'))) OVER ()", ""},
	{"EXPLAIN WITH w AS MATERIALIZED (SELECT vol('x')) SELECT * FROM w", ""},
	{"EXPLAIN INSERT INTO t VALUES (1, vol('x'))", ""},
	{"EXPLAIN INSERT INTO t (id) VALUES (1)", ""},
	{"EXPLAIN UPDATE t SET x = vol('x') WHERE id = 1", ""},
	{"EXPLAIN DELETE FROM t WHERE x = vol('x')", ""},
	{"EXPLAIN SELECT vol('x') INTO TEMP z", ""},
	{"EXPLAIN CREATE TEMP TABLE z AS SELECT vol('x')", ""},
	{"EXPLAIN CREATE MATERIALIZED VIEW z AS SELECT vol('x')", ""},
	{"EXPLAIN DECLARE c CURSOR FOR SELECT vol('x')", ""},
	// … but for the arguments of EXECUTE.
	{"EXPLAIN EXECUTE p(vol('x'))", "v"},
	{"EXPLAIN EXECUTE p(vol('x') || vol('y'))", "v"},
	{"EXPLAIN EXECUTE q(length(vol('x')))", "v"},
	{"EXPLAIN (ANALYZE off) EXECUTE p(upper(CASE WHEN true THEN vol('x') END))", "v"},
	{"EXPLAIN CREATE TEMP TABLE z AS EXECUTE p(vol('x'))", "v"},
	{"CREATE TEMP TABLE z AS EXECUTE p(vol('x')) WITH NO DATA", "v"},
	// Planning runs stable and immutable functions.
	{"EXPLAIN SELECT sta('x')", ""}, // here not; there is nothing to estimate
	{"EXPLAIN SELECT * FROM many WHERE x = sta('x')", "s"},
	{"EXPLAIN SELECT * FROM many LIMIT length(sta('x'))", "s"},
	{"EXPLAIN SELECT * FROM many TABLESAMPLE bernoulli (length(sta('x')))", "s"},
	{"EXPLAIN SELECT * FROM parts WHERE id = sta('a')", "s"},
	{"EXPLAIN SELECT imm('x')", "i"},
	{"EXPLAIN INSERT INTO t VALUES (1, imm('x'))", "i"},
	{"BEGIN; DECLARE c CURSOR FOR SELECT vol('x'), imm('x') FROM many WHERE x = sta('x'); ROLLBACK", "si"},
	// Estimates call the function of an operator, though it is volatile: only
	// the database's own operators have such.
	{"EXPLAIN SELECT * FROM many WHERE x === 'v1'", "o"},
	// The input function of a type is run when a literal is read.
	{"EXPLAIN SELECT '{x}'::dom[]", "c"},
	{"EXPLAIN SELECT '(x)'::comp", "c"},
	{"EXPLAIN SELECT 'x'::dom", ""},
	{"PREPARE r AS SELECT '{x}'::dom[]", "c"},
	{"CREATE TEMP VIEW z AS SELECT '{x}'::dom[]", "c"},
	{"EXPLAIN SELECT * FROM many WHERE x = (jsonb_populate_record(NULL::comp, '{\"d\": \"x\"}')).d", "c"},
	// Nothing else is evaluated before its time.
	{"PREPARE r AS SELECT vol('x'), sta('x'), imm('x')", ""},
	{"CREATE TEMP VIEW z AS SELECT vol('x'), sta('x'), imm('x')", ""},
	{"CREATE TEMP TABLE z AS SELECT vol('x'), imm('x') WITH NO DATA", ""},
	{"CREATE TEMP TABLE z (a text DEFAULT vol('x') CHECK (vol(a) <> ''))", ""},
	{"CREATE TEMP TABLE z (a text) PARTITION BY LIST (a); CREATE TEMP TABLE z1 PARTITION OF z FOR VALUES IN (vol('x'))", "v"},
}

// TestPlanned asks real servers what they run of statements that seem to run
// nothing, and holds the verdict against it.
func TestPlanned(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	judge := newJudge(t)
	upstreamtest.Versions(t, func(t *testing.T, s *upstreamtest.Server) {
		s.Exec(t, "CREATE DATABASE planned")
		config, err := pgconn.ParseConfig(s.SocketDSN("postgres", "planned"))
		if err != nil {
			t.Fatal(err)
		}
		ran := make(map[string]bool)
		config.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) { ran[n.Message] = true }
		conn, err := pgconn.ConnectConfig(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close(context.Background()) })
		run(t, conn, plannedSchema)
		for _, c := range plannedCases {
			clear(ran)
			run(t, conn, "BEGIN")
			run(t, conn, strings.TrimSuffix(strings.TrimPrefix(c.sql, "BEGIN; "), "; ROLLBACK"))
			run(t, conn, "ROLLBACK; DEALLOCATE ALL; PREPARE p (text) AS SELECT $1; PREPARE q (int) AS SELECT * FROM t WHERE id = $1")
			for _, what := range []string{"v", "s", "i", "c", "o"} {
				if ran[what] != strings.Contains(c.runs, what) {
					t.Errorf("%s: the server runs %q: %v", c.sql, what, ran[what])
				}
			}
		}
	})
	for _, c := range plannedCases {
		plannedVerdict(t, judge, c.sql, c.runs)
	}
}

// plannedVerdict judges a statement with functions of PostgreSQL's own in the
// place of those of the test.
func plannedVerdict(t *testing.T, judge *policy.Judge, sql, runs string) {
	t.Helper()
	if strings.ContainsAny(runs, "sico") {
		if !slices.ContainsFunc(readBy(t, judge, sql).Statements, func(st policy.Statement) bool { return st.Opaque }) {
			t.Errorf("%s: runs code that the verdict has not seen, and is not opaque", sql)
		}
	}
	rule, memory := policy.DefaultRule(), new(policy.Memory)
	rule.Access = policy.Read
	memory.Note(readBy(t, judge, "PREPARE p AS SELECT $1; PREPARE q AS SELECT * FROM t WHERE id = $1"), 2)
	refused := func(volatile, stable string) bool {
		msg := readBy(t, judge, strings.NewReplacer("vol(", volatile, "sta(", stable).Replace(sql))
		return policy.Decide(t.Context(), &rule, msg, policy.Session{Memory: memory}).Refusal != nil
	}
	// What is not run may be refused, too, but not under EXPLAIN.
	runsIt := strings.Contains(runs, "v") || !strings.HasPrefix(sql, "EXPLAIN")
	if strings.Contains(sql, "vol(") && refused("nextval(", "lower(") != runsIt {
		t.Errorf("%s: a volatile function is refused: %v", sql, !runsIt)
	}
	if strings.Contains(sql, "sta(") && !refused("lower(", "txid_current(") {
		t.Errorf("%s: a stable function is allowed", sql)
	}
}

func readBy(t *testing.T, judge *policy.Judge, sql string) *policy.Message {
	t.Helper()
	msg, err := judge.Parse(t.Context(), sql)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return msg
}

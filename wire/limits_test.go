package wire

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgproxy/policy"
	"pgproxy/upstream/upstreamtest"
	"pgproxy/wire/audit"

	"pgproxy/wire/frame"
)

// wantLike runs a query and matches its whole answer.
func (c *client) wantLike(sql, pattern string) {
	c.t.Helper()
	got := c.query(sql)
	if !regexp.MustCompile("^" + pattern + "$").MatchString(got) {
		c.t.Errorf("%s\n got %s\nwant %s", sql, got, pattern)
	}
}

// holds requires what the database holds, in the words of one query.
func holds(t *testing.T, sql, want string) {
	t.Helper()
	rows := upstreamtest.Shared(t).Exec(t, sql)
	var lines []string
	for _, row := range rows {
		lines = append(lines, strings.Join(row, ","))
	}
	if got := strings.Join(lines, " "); got != want {
		t.Errorf("the database holds %s, want %s (%s)", got, want, sql)
	}
}

// capTables are made anew for each test: t has the ids 1 to 20, done is empty.
const capTables = `
DROP SCHEMA IF EXISTS caps CASCADE; CREATE SCHEMA caps AUTHORIZATION app; SET ROLE app;
CREATE TABLE caps.t (id int PRIMARY KEY, n int NOT NULL DEFAULT 0, doc text);
INSERT INTO caps.t SELECT generate_series(1, 20);
CREATE TABLE caps.done (id int);
CREATE TABLE caps.child (id int, t int REFERENCES caps.t ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED);
CREATE FUNCTION caps.put(i int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN INSERT INTO caps.done VALUES (i); RETURN i; END $$;
CREATE FUNCTION caps.shout(times int, size int) RETURNS text LANGUAGE plpgsql AS $$
BEGIN FOR i IN 1..times LOOP RAISE NOTICE '%', repeat('x', size); END LOOP; RETURN 'done'; END $$;
CREATE FUNCTION caps.fail(size int) RETURNS int LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION '%', repeat('y', size) USING ERRCODE = 'P1234'; END $$;
CREATE PROCEDURE caps.sum(INOUT a int, b int) LANGUAGE sql AS 'INSERT INTO caps.done VALUES ($1); SELECT $1 + $2';`

func freshCaps(t *testing.T) { upstreamtest.Shared(t).Exec(t, capTables) }

const (
	truncated = `E\(54000 pgproxy: result truncated: max_rows is 3\)`
	onlyThree = `N\(01000 pgproxy: only the first 3 rows of the result were sent: max_rows is 3; the statement itself was completed\)`
	three     = `D\(1\) D\(2\) D\(3\) `
)

// TestRowCap takes every kind of statement that returns rows, and requires
// that the database holds what the client was told: an error means that
// nothing is known to have happened, a completion that it has.
func TestRowCap(t *testing.T) {
	all := func(r *policy.Rule) { r.MaxRows, r.Access = 3, policy.Admin }
	cases := []struct{ name, before, sql, answer, check, holds string }{
		{"below", "", "SELECT generate_series(1, 2)", `D\(1\) D\(2\) C\(SELECT 2\) Z\(I\)`, "", ""},
		{"exactly", "", "SELECT generate_series(1, 3)", three + `C\(SELECT 3\) Z\(I\)`, "", ""},
		{"completed before the cancel", "", "SELECT caps.put(i) FROM generate_series(1, 5) i",
			three + `C\(SELECT [35]\) ` + truncated + ` Z\(I\)`, "", ""},
		{"INSERT RETURNING", "", "INSERT INTO caps.done SELECT generate_series(1, 5) RETURNING id",
			three + onlyThree + ` C\(INSERT 0 5\) Z\(I\)`, "SELECT count(*) FROM caps.done", "5"},
		{"UPDATE RETURNING", "", "UPDATE caps.t SET n = 1 WHERE id < 6 RETURNING id",
			three + onlyThree + ` C\(UPDATE 5\) Z\(I\)`, "SELECT count(*) FROM caps.t WHERE n = 1", "5"},
		{"DELETE RETURNING", "", "DELETE FROM caps.t WHERE id < 6 RETURNING id",
			three + onlyThree + ` C\(DELETE 5\) Z\(I\)`, "SELECT count(*) FROM caps.t", "15"},
		{"writable CTE", "", "WITH w AS (UPDATE caps.t SET n = 1 WHERE id < 6 RETURNING id) SELECT id FROM w",
			three + onlyThree + ` C\(SELECT 5\) Z\(I\)`, "SELECT count(*) FROM caps.t WHERE n = 1", "5"},
		{"FETCH", "BEGIN; DECLARE c CURSOR FOR SELECT id FROM caps.t ORDER BY id", "FETCH 5 FROM c",
			three + `C\(FETCH 3\) ` + truncated + ` Z\(E\)`, "", ""},
		{"EXPLAIN", "", "EXPLAIN (COSTS off) SELECT id FROM caps.t GROUP BY id HAVING count(*) > 1 ORDER BY n LIMIT 1",
			`D\(.*\) D\(.*\) D\(.*\) C\(EXPLAIN\) ` + truncated + ` Z\(I\)`, "", ""},
		{"EXPLAIN ANALYZE", "", "EXPLAIN (ANALYZE) UPDATE caps.t SET n = 1 WHERE id < 6",
			`D\(.*\) D\(.*\) D\(.*\) ` + onlyThree + ` C\(EXPLAIN\) Z\(I\)`, "SELECT count(*) FROM caps.t WHERE n = 1", "5"},
		{"SHOW", "", "SHOW ALL", `D\(.*\) D\(.*\) D\(.*\) C\(SHOW\) ` + truncated + ` Z\(I\)`, "", ""},
		{"EXECUTE", "PREPARE p AS UPDATE caps.t SET n = 1 WHERE id < $1 RETURNING id", "EXECUTE p (6)",
			three + onlyThree + ` C\(UPDATE 5\) Z\(I\)`, "SELECT count(*) FROM caps.t WHERE n = 1", "5"},
		{"CALL", "", "CALL caps.sum(1, 2)", `D\(3\) C\(CALL\) Z\(I\)`, "SELECT * FROM caps.done", "1"},
		{"VALUES", "", "VALUES (1), (2), (3), (4)", three + `C\(SELECT [34]\) ` + truncated + ` Z\(I\)`, "", ""},
		{"in a transaction", "BEGIN; INSERT INTO caps.done VALUES (1)", "SELECT generate_series(1, 5)",
			three + `C\(SELECT [35]\) ` + truncated + ` Z\(E\)`, "SELECT count(*) FROM caps.done", "0"},
		{"RETURNING in a transaction", "BEGIN", "UPDATE caps.t SET n = 1 WHERE id < 6 RETURNING id",
			three + onlyThree + ` C\(UPDATE 5\) Z\(T\)`, "SELECT count(*) FROM caps.t WHERE n = 1", "0"},
		{"the second of two", "", "SELECT 1; SELECT generate_series(1, 5)",
			`D\(1\) C\(SELECT 1\) ` + three + `C\(SELECT [35]\) ` + truncated + ` Z\(I\)`, "", ""},
		{"the first of two", "", "SELECT generate_series(1, 5); SELECT 2",
			three + `C\(SELECT [35]\) ` + truncated + ` Z\(I\)`, "", ""},
		{"beside a write", "", "SELECT generate_series(1, 5); UPDATE caps.t SET n = 1 WHERE id = 1",
			three + `C\(SELECT 3\) ` + truncated + ` Z\(I\)`, "SELECT count(*) FROM caps.t WHERE n = 1", "0"},
		{"each of two", "", "UPDATE caps.t SET n = 1 WHERE id < 6 RETURNING id; UPDATE caps.t SET n = 2 WHERE id < 5 RETURNING id",
			three + onlyThree + ` C\(UPDATE 5\) ` + three + onlyThree + ` C\(UPDATE 4\) Z\(I\)`, "SELECT n, count(*) FROM caps.t GROUP BY 1 ORDER BY 1", "0,15 1,1 2,4"},
		{"then an error", "", "UPDATE caps.t SET n = 1 WHERE id < 6 RETURNING id; SELECT 1/0",
			three + onlyThree + ` C\(UPDATE 5\) E\(22012 division by zero\) Z\(I\)`, "SELECT count(*) FROM caps.t WHERE n = 1", "0"},
	}
	p := startProxy(t, withRule(all))
	for _, tt := range cases {
		t.Run(tt.name, func(t *testing.T) {
			freshCaps(t)
			c := p.login(t)
			if tt.before != "" {
				c.query(tt.before)
			}
			c.t = t
			c.wantLike(tt.sql, tt.answer)
			if tt.check != "" {
				holds(t, tt.check, tt.holds)
			}
			c.query("ROLLBACK")
			c.want("SELECT 'alive'", "D(alive) C(SELECT 1) Z(I)")
		})
	}
}

// TestRowCapCancels requires that a reading statement is stopped, not drained,
// and that its completion tells whether its functions have had an effect.
func TestRowCapCancels(t *testing.T) {
	freshCaps(t)
	p := startProxy(t, withRule(func(r *policy.Rule) { r.MaxRows = 3 }))
	c := p.login(t)
	c.wantLike("SELECT generate_series(1, 1000000000)", three+`C\(SELECT 3\) `+truncated+` Z\(I\)`)
	c.wantLike("SELECT caps.put(generate_series(1, 10000000))", three+`C\(SELECT 3\) `+truncated+` Z\(I\)`)
	holds(t, "SELECT count(*) FROM caps.done", "0")
	c.want("SELECT 'unharmed', pg_sleep(0.2)", "D(unharmed,) C(SELECT 1) Z(I)")

	c.wantLike("SELECT caps.put(i) FROM generate_series(1, 5) i", three+`C\(SELECT 3\) `+truncated+` Z\(I\)`)
	holds(t, "SELECT count(*) FROM caps.done", "5")

	rec := p.records.await(t, "the last result", func(r audit.Record) bool { return r.Event == audit.Result && r.Seq == 4 })
	if !rec.Truncated || *rec.Rows != 3 || rec.SQLState != "54000" || rec.Tag != "SELECT 5" {
		t.Errorf("record: %+v", rec)
	}
}

// TestFetchBudget requires that a cursor's rows add up, that a cap is an error,
// and that no row is lost by it.
func TestFetchBudget(t *testing.T) {
	freshCaps(t)
	p := startProxy(t, withRule(func(r *policy.Rule) { r.MaxRows, r.MayLift = 3, true }))
	const over = " E(54000 pgproxy: result truncated: max_rows is 3)"
	t.Run("in a transaction", func(t *testing.T) {
		c := p.login(t)
		c.want("BEGIN; DECLARE c CURSOR FOR SELECT id FROM caps.t ORDER BY id", "C(BEGIN) C(DECLARE CURSOR) Z(T)")
		c.want("FETCH 2 FROM c", "D(1) D(2) C(FETCH 2) Z(T)")
		c.want("SELECT 7", "D(7) C(SELECT 1) Z(T)")
		c.want("FETCH 2 FROM c", "D(3) C(FETCH 1)"+over+" Z(E)")
		c.want("COMMIT", "C(ROLLBACK) Z(I)")
	})
	t.Run("each cursor by itself", func(t *testing.T) {
		c := p.login(t)
		c.query("BEGIN; DECLARE a CURSOR FOR SELECT id FROM caps.t ORDER BY id; DECLARE b CURSOR FOR SELECT id FROM caps.t ORDER BY id")
		c.want("FETCH 3 FROM a", "D(1) D(2) D(3) C(FETCH 3) Z(T)")
		c.want("FETCH 3 FROM b", "D(1) D(2) D(3) C(FETCH 3) Z(T)")
		c.want("CLOSE a; DECLARE a CURSOR FOR SELECT 8", "C(CLOSE CURSOR) C(DECLARE CURSOR) Z(T)")
		c.want("FETCH ALL FROM a", "D(8) C(FETCH 1) Z(T)")
	})
	t.Run("exactly the cap is no error", func(t *testing.T) {
		c := p.login(t)
		c.query("BEGIN; DECLARE c CURSOR FOR SELECT id FROM caps.t WHERE id <= 3 ORDER BY id")
		c.want("FETCH ALL FROM c", "D(1) D(2) D(3) C(FETCH 3) Z(T)")
		c.want("FETCH 3 FROM c", "C(FETCH 0) Z(T)")
		c.want("COMMIT", "C(COMMIT) Z(I)")
	})
	for _, declare := range []string{
		"DECLARE h CURSOR WITH HOLD FOR SELECT id FROM caps.t ORDER BY id",
		"DECLARE h NO SCROLL CURSOR WITH HOLD FOR SELECT id FROM caps.t ORDER BY id",
		"DECLARE h SCROLL CURSOR WITH HOLD FOR SELECT id FROM caps.t ORDER BY id",
	} {
		t.Run("no row is lost: "+declare, func(t *testing.T) {
			c := p.login(t)
			c.want(declare, "C(DECLARE CURSOR) Z(I)")
			c.want("FETCH 100 FROM h", "D(1) D(2) D(3) C(FETCH 3)"+over+" Z(I)")
			c.want("SET pgproxy.max_rows = 5", "C(SET) Z(I)")
			c.want("FETCH 2 FROM h", "D(4) D(5) C(FETCH 2) Z(I)")
		})
	}
	t.Run("backward", func(t *testing.T) {
		c := p.login(t)
		c.query("DECLARE h SCROLL CURSOR WITH HOLD FOR SELECT id FROM caps.t ORDER BY id; MOVE ALL IN h")
		c.want("FETCH BACKWARD ALL FROM h", "D(20) D(19) D(18) C(FETCH 3)"+over+" Z(I)")
		c.want("SET pgproxy.max_rows = 5", "C(SET) Z(I)")
		c.want("FETCH PRIOR FROM h", "D(17) C(FETCH 1) Z(I)")
	})
	t.Run("a savepoint keeps the cursor", func(t *testing.T) {
		c := p.login(t)
		c.query("BEGIN; DECLARE c CURSOR FOR SELECT id FROM caps.t ORDER BY id; SAVEPOINT s")
		c.want("FETCH ALL FROM c", "D(1) D(2) D(3) C(FETCH 3)"+over+" Z(E)")
		c.want("ROLLBACK TO s", "C(ROLLBACK) Z(T)")
		c.want("SET pgproxy.max_rows = 4", "C(SET) Z(T)")
		c.want("FETCH 1 FROM c", "D(4) C(FETCH 1) Z(T)")
	})
	t.Run("bytes", func(t *testing.T) {
		c := p.login(t)
		c.query("SET pgproxy.max_rows = 100; SET pgproxy.max_bytes = 60")
		c.query("DECLARE h CURSOR WITH HOLD FOR SELECT id FROM caps.t ORDER BY id")
		got := c.query("FETCH 15 FROM h")
		if !strings.HasPrefix(got, "D(1) D(2) ") || !strings.HasSuffix(got, " E(54000 pgproxy: result truncated: max_bytes is 60) Z(I)") {
			t.Errorf("got %s", got)
		}
		next := strings.Count(got, "D(") + 1
		c.query("RESET pgproxy.max_bytes")
		c.want("FETCH 1 FROM h", fmt.Sprintf("D(%d) C(FETCH 1) Z(I)", next))
	})
}

// TestByteCap requires that the byte cap holds for everything that a statement
// makes the server send.
func TestByteCap(t *testing.T) {
	freshCaps(t)
	const limit = 100_000
	p := startProxy(t, withRule(func(r *policy.Rule) { r.MaxBytes = limit }))
	for _, tt := range []struct{ name, sql, answer string }{
		{"rows", "SELECT repeat('r', 30000) FROM generate_series(1, 1000)", `(D\(r+\) ){3}C\(SELECT \d+\) E\(54000 pgproxy: result truncated: max_bytes is 100000\) Z\(I\)`},
		{"one value", "SELECT string_agg('v', '') FROM generate_series(1, 200000)", `C\(SELECT [01]\) E\(54000 .*\) Z\(I\)`},
		{"many notices", "SELECT caps.shout(100, 5000)", `(N\(00000 x+\) ){19}N\(01000 pgproxy: notices were left out: max_bytes is 100000\) D\(done\) C\(SELECT 1\) Z\(I\)`},
		{"a large notice", "SELECT caps.shout(1, 3000000)", `N\(01000 pgproxy: notices were left out: max_bytes is 100000\) D\(done\) C\(SELECT 1\) Z\(I\)`},
		{"a large error", "SELECT caps.fail(3000000)", `E\(P1234 y+ …\) Z\(I\)`},
		{"an error of moderate size", "SELECT caps.fail(20000)", `E\(P1234 y+\) Z\(I\)`},
		{"RETURNING", "UPDATE caps.t SET n = 1 WHERE id < 6 RETURNING repeat('r', 30000)", `(D\(r+\) ){3}N\(01000 .* max_bytes is 100000; the statement itself was completed\) C\(UPDATE 5\) Z\(I\)`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := p.login(t)
			c.t = t
			c.send(frame.AppendQuery(nil, tt.sql))
			var sent int
			var words []string
			for ready := false; !ready; {
				f := c.next()
				sent += len(f.body)
				ready = f.typ == 'Z'
				if f.typ != 'T' {
					words = append(words, f.String())
				}
			}
			got := strings.Join(words, " ")
			if !regexp.MustCompile("^" + tt.answer + "$").MatchString(got) {
				t.Errorf("got %.500s", got)
			}
			if sent > limit+1000 {
				t.Errorf("%d bytes were sent", sent)
			}
			c.want("SELECT 'alive'", "D(alive) C(SELECT 1) Z(I)")
		})
	}
}

// TestAffectedCap takes every way of changing more rows than the cap, and
// requires that the database holds what the client was told.
func TestAffectedCap(t *testing.T) {
	const refused = `E\(54000 pgproxy: the statement changed (\d+) rows, max_affected_rows is 5; it was rolled back\)`
	changed := "SELECT count(*) FROM caps.t WHERE n <> 0"
	cases := []struct{ name, sql, answer, check, holds string }{
		{"below", "UPDATE caps.t SET n = 1 WHERE id < 3", `C\(UPDATE 2\) Z\(I\)`, changed, "2"},
		{"exactly", "UPDATE caps.t SET n = 1 WHERE id <= 5", `C\(UPDATE 5\) Z\(I\)`, changed, "5"},
		{"UPDATE", "UPDATE caps.t SET n = 1 WHERE id <= 6", refused + ` Z\(I\)`, changed, "0"},
		{"DELETE", "DELETE FROM caps.t WHERE id > 0", refused + ` Z\(I\)`, "SELECT count(*) FROM caps.t", "20"},
		{"INSERT", "INSERT INTO caps.done SELECT generate_series(1, 6)", refused + ` Z\(I\)`, "SELECT count(*) FROM caps.done", "0"},
		{"MERGE", "MERGE INTO caps.t USING generate_series(1, 6) i ON t.id = i WHEN MATCHED AND true THEN UPDATE SET n = 1", refused + ` Z\(I\)`, changed, "0"},
		{"RETURNING", "UPDATE caps.t SET n = 1 WHERE id <= 6 RETURNING id", `(D\(\d\) ){6}` + refused + ` Z\(I\)`, changed, "0"},
		{"the first of two", "UPDATE caps.t SET n = 1 WHERE id <= 6; UPDATE caps.t SET n = 1 WHERE id = 1", refused + ` Z\(I\)`, changed, "0"},
		{"the second of two", "UPDATE caps.t SET n = 1 WHERE id = 1; UPDATE caps.t SET n = 1 WHERE id <= 6", `C\(UPDATE 1\) ` + refused + ` Z\(I\)`, changed, "0"},
		{"two below", "UPDATE caps.t SET n = 1 WHERE id <= 4; UPDATE caps.t SET n = 1 WHERE id > 16", `C\(UPDATE 4\) C\(UPDATE 4\) Z\(I\)`, changed, "8"},
		{"behind a read", "SELECT 1; UPDATE caps.t SET n = 1 WHERE id <= 6", `D\(1\) C\(SELECT 1\) ` + refused + ` Z\(I\)`, changed, "0"},
		{"before a read", "UPDATE caps.t SET n = 1 WHERE id <= 6; SELECT 1", refused + ` Z\(I\)`, changed, "0"},
		{"writable CTE", "WITH w AS (UPDATE caps.t SET n = 1 WHERE id <= 6 RETURNING id) SELECT count(*) FROM w", `D\(6\) ` + refused + ` Z\(I\)`, changed, "0"},
		{"writable CTE below", "WITH w AS (UPDATE caps.t SET n = 1 WHERE id <= 5 RETURNING id) SELECT count(*) FROM w", `D\(5\) C\(SELECT 1\) Z\(I\)`, changed, "5"},
		{"two in one CTE", "WITH w AS (UPDATE caps.t SET n = 1 WHERE id <= 3 RETURNING id) INSERT INTO caps.done SELECT id FROM w", refused + ` Z\(I\)`, changed, "0"},
		{"EXPLAIN ANALYZE", "EXPLAIN (ANALYZE, BUFFERS off, COSTS off, TIMING off, SUMMARY off) UPDATE caps.t SET n = 1 WHERE id <= 6", `(D\(.*\) )+` + refused + ` Z\(I\)`, changed, "0"},
		{"a large value is one row", "WITH w AS (UPDATE caps.t SET doc = (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 3000) i) WHERE id = 1 RETURNING id) SELECT id FROM w",
			`D\(1\) C\(SELECT 1\) Z\(I\)`, "SELECT length(doc) FROM caps.t WHERE id = 1", "96000"},
		{"cascades are counted", "DELETE FROM caps.t WHERE id = 20", refused + ` Z\(I\)`, "SELECT count(*) FROM caps.child", "50"},
		{"deferred constraint", "INSERT INTO caps.child VALUES (1, 999)", `E\(23503 .*\) Z\(I\)`, "SELECT count(*) FROM caps.child WHERE t = 999", "0"},
		{"deferred constraint and RETURNING", "INSERT INTO caps.child VALUES (1, 999) RETURNING id", `D\(1\) E\(23503 .*\) Z\(I\)`, "SELECT count(*) FROM caps.child WHERE t = 999", "0"},
		{"own transaction", "BEGIN; UPDATE caps.t SET n = 1 WHERE id = 1; COMMIT", `C\(BEGIN\) C\(UPDATE 1\) C\(COMMIT\) Z\(I\)`, changed, "1"},
		{"own transaction over", "BEGIN; UPDATE caps.t SET n = 1 WHERE id <= 6; COMMIT", `C\(BEGIN\) ` + refused + ` Z\(T\)`, changed, "0"},
		{"own transaction and a writable CTE over", "BEGIN; WITH w AS (UPDATE caps.t SET n = 1 WHERE id <= 6 RETURNING id) SELECT count(*) FROM w; COMMIT", `C\(BEGIN\) D\(6\) ` + refused + ` Z\(T\)`, changed, "0"},
		{"own transaction and a writable CTE", "BEGIN; WITH w AS (UPDATE caps.t SET n = 1 WHERE id <= 5 RETURNING id) SELECT count(*) FROM w; COMMIT", `C\(BEGIN\) D\(5\) C\(SELECT 1\) C\(COMMIT\) Z\(I\)`, changed, "5"},
		{"own transaction fails at the end", "BEGIN; INSERT INTO caps.child VALUES (1, 999); COMMIT", `C\(BEGIN\) C\(INSERT 0 1\) E\(23503 .*\) Z\(I\)`, "SELECT count(*) FROM caps.child WHERE t = 999", "0"},
		{"own transaction rolled back", "BEGIN; UPDATE caps.t SET n = 1 WHERE id = 1; ROLLBACK", `C\(BEGIN\) C\(UPDATE 1\) C\(ROLLBACK\) Z\(I\)`, changed, "0"},
		{"a transaction that the message joins late", "UPDATE caps.t SET n = 1 WHERE id = 1; BEGIN; UPDATE caps.t SET n = 1 WHERE id = 2; ROLLBACK", `C\(UPDATE 1\) C\(BEGIN\) C\(UPDATE 1\) C\(ROLLBACK\) Z\(I\)`, changed, "0"},
		{"two transactions", "BEGIN; UPDATE caps.t SET n = 1 WHERE id = 1; COMMIT; UPDATE caps.t SET n = 1 WHERE id <= 6", `C\(BEGIN\) C\(UPDATE 1\) C\(COMMIT\) ` + refused + ` Z\(I\)`, changed, "1"},
		{"an error", "UPDATE caps.t SET n = 1 WHERE id = 1; SELECT 1/0", `C\(UPDATE 1\) E\(22012 .*\) Z\(I\)`, changed, "0"},
		{"an error first", "SELECT 1/0; UPDATE caps.t SET n = 1 WHERE id = 1", `E\(22012 .*\) Z\(I\)`, changed, "0"},
		{"a syntax error of the server's", "UPDATE caps.t SET nosuch = 1 WHERE id = 1", `E\(42703 .*\) Z\(I\)`, changed, "0"},
		{"comments", "/* a */ UPDATE caps.t SET n = 1 WHERE id = 1 -- b", `C\(UPDATE 1\) Z\(I\)`, changed, "1"},
		{"read only transaction", "BEGIN READ ONLY; UPDATE caps.t SET n = 1 WHERE id = 1; COMMIT", `C\(BEGIN\) E\(25006 .*\) Z\(E\)`, changed, "0"},
		{"functions are not counted", "SELECT count(caps.put(i)) FROM generate_series(1, 6) i", `D\(6\) C\(SELECT 1\) Z\(I\)`, "SELECT count(*) FROM caps.done", "6"},
	}
	p := startProxy(t, withRule(func(r *policy.Rule) { r.MaxAffectedRows = 5 }))
	for _, tt := range cases {
		t.Run(tt.name, func(t *testing.T) {
			freshCaps(t)
			upstreamtest.Shared(t).Exec(t, "INSERT INTO caps.child SELECT i, 20 FROM generate_series(1, 50) i")
			c := p.login(t)
			c.t = t
			c.wantLike(tt.sql, tt.answer)
			holds(t, tt.check, tt.holds)
			c.query("ROLLBACK")
			c.want("SELECT 'alive'", "D(alive) C(SELECT 1) Z(I)")
		})
	}
}

// TestAffectedCapInTransaction requires that a statement over the cap is taken
// back, and nothing else of its transaction.
func TestAffectedCapInTransaction(t *testing.T) {
	freshCaps(t)
	p := startProxy(t, withRule(func(r *policy.Rule) { r.MaxAffectedRows, r.MayLift = 5, true }))
	c := p.login(t)
	const over = `E\(54000 pgproxy: the statement changed 6 rows, max_affected_rows is 5; it was rolled back\)`
	c.want("BEGIN", "C(BEGIN) Z(T)")
	c.want("UPDATE caps.t SET n = 1 WHERE id = 1", "C(UPDATE 1) Z(T)")
	c.wantLike("UPDATE caps.t SET n = 2 WHERE id <= 6", over+` Z\(T\)`)
	c.wantLike("WITH w AS (UPDATE caps.t SET n = 2 WHERE id <= 6 RETURNING 1) SELECT count(*) FROM w", `D\(6\) `+over+` Z\(T\)`)
	c.want("SELECT n FROM caps.t WHERE id = 1", "D(1) C(SELECT 1) Z(T)")
	c.wantLike("UPDATE caps.t SET n = 3 WHERE id = 3; DELETE FROM caps.t WHERE id <= 6", `C\(UPDATE 1\) `+over+` Z\(T\)`)
	c.want("SELECT n FROM caps.t WHERE id = 3", "D(0) C(SELECT 1) Z(T)")
	c.want("SAVEPOINT mine", "C(SAVEPOINT) Z(T)")
	c.wantLike("DELETE FROM caps.t WHERE id <= 6", over+` Z\(T\)`)
	c.want("ROLLBACK TO mine", "C(ROLLBACK) Z(T)")
	c.wantPart("ROLLBACK TO SAVEPOINT pgproxy_guard", "E(3B001", "Z(E)")
	c.want("ROLLBACK TO mine", "C(ROLLBACK) Z(T)")
	c.want("COMMIT", "C(COMMIT) Z(I)")
	holds(t, "SELECT id, n FROM caps.t WHERE n <> 0", "1,1")

	c.want("PREPARE p AS UPDATE caps.t SET n = 3 WHERE id <= $1", "C(PREPARE) Z(I)")
	c.wantLike("EXECUTE p (6)", over+` Z\(I\)`)
	c.want("EXECUTE p (5)", "C(UPDATE 5) Z(I)")
	holds(t, "SELECT count(*) FROM caps.t WHERE n = 3", "5")

	c.want("SET pgproxy.max_affected_rows = 6", "C(SET) Z(I)")
	c.want("EXECUTE p (6)", "C(UPDATE 6) Z(I)")

	rec := p.records.await(t, "a result that was rolled back", func(r audit.Record) bool {
		return r.Event == audit.Result && r.SQLState == "54000"
	})
	if rec.Affected != nil && *rec.Affected != 0 {
		t.Errorf("the record says that %d rows were changed", *rec.Affected)
	}
}

// TestAffectedCapUnguarded requires that a change which cannot be taken back
// is told of.
func TestAffectedCapUnguarded(t *testing.T) {
	freshCaps(t)
	p := startProxy(t, withRule(func(r *policy.Rule) { r.MaxAffectedRows, r.Access = 5, policy.Admin }))
	c := p.login(t)
	c.want("PREPARE p AS SELECT 1", "C(PREPARE) Z(I)")
	c.want("DO $$ BEGIN EXECUTE 'DEALLOCATE p'; EXECUTE 'PREPARE p AS UPDATE caps.t SET n = 1 WHERE id <= 6'; END $$", "C(DO) Z(I)")
	c.want("EXECUTE p", "N(01000 pgproxy: the statement changed 6 rows, max_affected_rows is 5; it could not be rolled back) C(UPDATE 6) Z(I)")
	holds(t, "SELECT count(*) FROM caps.t WHERE n = 1", "6")
}

// TestAffectedCapUncounted requires that a statement whose rows cannot be
// counted is taken back.
func TestAffectedCapUncounted(t *testing.T) {
	freshCaps(t)
	pg := upstreamtest.Shared(t)
	pg.Exec(t, "REVOKE EXECUTE ON FUNCTION pg_lock_status() FROM public")
	t.Cleanup(func() { pg.Exec(t, "GRANT EXECUTE ON FUNCTION pg_lock_status() TO public") })
	p := startProxy(t)
	c := p.login(t)
	const sql = "WITH w AS (UPDATE caps.t SET n = 1 WHERE id = 1 RETURNING id) SELECT id FROM w"
	c.wantLike(sql, `D\(1\) E\(42501 permission denied for function pg_lock_status\) Z\(I\)`)
	holds(t, "SELECT count(*) FROM caps.t WHERE n = 1", "0")
	c.want("BEGIN", "C(BEGIN) Z(T)")
	c.wantLike(sql, `E\(42501 .*\) Z\(E\)`)
	c.want("ROLLBACK", "C(ROLLBACK) Z(I)")
	holds(t, "SELECT count(*) FROM caps.t WHERE n = 1", "0")
}

// timeoutTables has functions that keep cancels to themselves.
const timeoutTables = `
DROP SCHEMA IF EXISTS times CASCADE; CREATE SCHEMA times AUTHORIZATION app; SET ROLE app;
CREATE TABLE times.t (id int PRIMARY KEY, n int DEFAULT 0);
INSERT INTO times.t SELECT generate_series(1, 3);
CREATE FUNCTION times.deaf(seconds int, swallow int) RETURNS text LANGUAGE plpgsql AS $$
DECLARE swallowed int := 0; began timestamptz := clock_timestamp();
BEGIN
  WHILE clock_timestamp() < began + make_interval(secs => seconds) LOOP
    BEGIN -- the postmaster signals twice: this keeps a second that comes behind the first's handler
      BEGIN PERFORM pg_sleep(60); EXCEPTION WHEN query_canceled THEN
        swallowed := swallowed + 1;
        IF swallowed > swallow THEN RAISE; END IF;
      END;
    EXCEPTION WHEN query_canceled THEN
      IF swallowed > swallow THEN RAISE; END IF;
    END;
  END LOOP;
  RETURN 'woke up';
END $$;
CREATE TABLE times.late (seconds int);
CREATE FUNCTION times.late() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE NOTICE 'late'; PERFORM pg_sleep(NEW.seconds); RETURN NEW; END $$;
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON times.late DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION times.late();`

// TestStatementTimeout ends statements by the server's clock, by the proxy's
// where the server's was in vain, and by ending the backend where that was in
// vain too.
func TestStatementTimeout(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	upstreamtest.Shared(t).Exec(t, timeoutTables)
	p := startProxy(t, withRule(func(r *policy.Rule) { r.StatementTimeout = 200 * time.Millisecond }))
	const timedOut = `E\(57014 canceling statement due to statement timeout \(pgproxy's statement_timeout is 200ms\)\)`

	stuck := p.login(t)
	stuck.send(frame.AppendQuery(nil, "SELECT times.deaf(60, 1000)")) // looked at below

	c := p.login(t)
	c.wantLike("SELECT pg_sleep(60)", timedOut+` Z\(I\)`)
	c.wantLike("SELECT 1; SELECT pg_sleep(60); SELECT 2", `D\(1\) C\(SELECT 1\) `+timedOut+` Z\(I\)`)
	c.wantLike("UPDATE times.t SET n = 1 WHERE id = 1; SELECT pg_sleep(60)", `C\(UPDATE 1\) `+timedOut+` Z\(I\)`)
	holds(t, "SELECT sum(n) FROM times.t", "0")
	c.want("INSERT INTO times.late VALUES (0)", "N(00000 late) C(INSERT 0 1) Z(I)")
	c.wantLike("INSERT INTO times.late VALUES (60)", `N\(00000 late\) `+timedOut+` Z\(I\)`)
	holds(t, "SELECT seconds FROM times.late", "0")
	c.want("SELECT pg_sleep(0.15); SELECT pg_sleep(0.15)", "D() C(SELECT 1) D() C(SELECT 1) Z(I)")
	c.want("BEGIN", "C(BEGIN) Z(T)")
	c.wantLike("SELECT pg_sleep(60)", timedOut+` Z\(E\)`)
	c.want("ROLLBACK", "C(ROLLBACK) Z(I)")
	// Another timeout of the server's is not the proxy's.
	c.want("SET lock_timeout = '50ms'", "C(SET) Z(I)")
	other := p.login(t)
	other.want("BEGIN; SELECT 1 FROM times.t WHERE id = 2 FOR UPDATE", "C(BEGIN) D(1) C(SELECT 1) Z(T)")
	c.wantPart("SELECT 1 FROM times.t WHERE id = 2 FOR UPDATE", "E(55P03 canceling statement due to lock timeout) Z(I)")

	deaf := p.login(t)
	deaf.wantLike("SELECT times.deaf(60, 1)", timedOut+` Z\(I\)`)
	deaf.want("SELECT 'unharmed', pg_sleep(0.15)", "D(unharmed,) C(SELECT 1) Z(I)")

	if said := strings.TrimPrefix(stuck.ended(), "T "); said != "E(57014 pgproxy: the statement did not react to cancellation; its session was ended)" {
		t.Errorf("a statement that cannot be cancelled: %s", said)
	}
	rec := p.records.await(t, "the end of the stuck session", func(r audit.Record) bool {
		return r.Event == audit.Disconnect && r.UpstreamPID == stuck.pid
	})
	if rec.EndReason != string(reasonStuck) {
		t.Errorf("reason %q", rec.EndReason)
	}
	holds(t, "SELECT count(*) FROM pg_stat_activity WHERE pid = "+strconv.Itoa(int(stuck.pid)), "0")
}

// TestTimeoutOfSlowClient lets the proxy's clock run out while a client does
// not read. It must hear that rows are missing, whether or not the server was
// through with its statement.
func TestTimeoutOfSlowClient(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	pg := upstreamtest.Shared(t)
	pg.Exec(t, timeoutTables+`CREATE TABLE times.wide AS SELECT i AS id, 0 AS n FROM generate_series(1, 500) i`)
	p := startProxy(t, withRule(func(r *policy.Rule) {
		r.StatementTimeout, r.MaxRows, r.MaxBytes, r.MaxAffectedRows = time.Second, 0, 0, 0
	}))
	const timedOut = `E\(57014 canceling statement due to statement timeout \(pgproxy's statement_timeout is 1s\)\) Z\(I\)`
	statements := []struct {
		sql   string
		rows  int
		rests []string // what may come after the rows
	}{
		{"SELECT repeat('x', 100000) FROM generate_series(1, 500)", 500, []string{timedOut}},
		{"SELECT repeat('x', 100000) FROM generate_series(1, 80)", 80, []string{timedOut, `C\(SELECT \d+\) ` + timedOut}},
		{"UPDATE times.wide SET n = 1 WHERE true RETURNING repeat('x', 100000)", 500, []string{timedOut,
			`N\(01000 pgproxy: only the first \d+ rows of the result were sent: statement_timeout is 1s; the statement itself was completed\) C\(UPDATE 500\) Z\(I\)`}},
	}
	var clients []*client
	for _, st := range statements {
		c := p.login(t)
		c.send(frame.AppendQuery(nil, st.sql))
		clients = append(clients, c)
	}
	for _, s := range p.live() {
		for deadline := time.Now().Add(20 * time.Second); !s.life.expired.Load(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the clock does not run out")
			}
		}
	}
	for i, st := range statements {
		got := clients[i].pass()
		rest := strings.TrimPrefix(got.rest, "T ")
		if got.rows == int64(st.rows) && rest == "C(SELECT 80) Z(I)" {
			continue // it all went into the sockets' buffers
		}
		if got.rows == int64(st.rows) || !slices.ContainsFunc(st.rests, func(r string) bool { return regexp.MustCompile("^" + r + "$").MatchString(rest) }) {
			t.Errorf("%s\n%d rows, then %s", st.sql, got.rows, rest)
		}
		if strings.HasPrefix(st.sql, "UPDATE") {
			want := "0"
			if strings.Contains(rest, "C(UPDATE 500)") {
				want = "500"
			}
			holds(t, "SELECT count(*) FROM times.wide WHERE n = 1", want)
		}
	}
}

// TestBusyIsNotIdle requires that only rest counts towards the idle timeout.
func TestBusyIsNotIdle(t *testing.T) {
	p := startProxy(t, func(srv *Server) { srv.IdleTimeout = 300 * time.Millisecond })
	c := p.login(t)
	for range 2 {
		c.want("SELECT pg_sleep(0.6)", "D() C(SELECT 1) Z(I)")
	}
	if said := c.ended(); !strings.HasPrefix(said, "E(57P05 ") {
		t.Errorf("at rest: %s", said)
	}
}

// TestStatementLength takes a long statement, and in a transaction refuses one
// that is too long as any error would.
func TestStatementLength(t *testing.T) {
	p := startProxy(t)
	c := p.login(t)
	long := strings.Repeat("x", 1<<20)
	if got := c.query("SELECT '" + long + "'"); got != "D("+long+") C(SELECT 1) Z(I)" {
		t.Errorf("a literal of 1 MiB: %.200s", got)
	}
	c.want("BEGIN", "C(BEGIN) Z(T)")
	c.wantLike("SELECT '"+strings.Repeat(long, 17)+"'", `E\(54001 pgproxy: a statement of \d+ bytes is too long\) Z\(E\)`)
	c.want("ROLLBACK", "C(ROLLBACK) Z(I)")
}

// TestPlainTimeouts: the timeouts by their plain names. A stricter one is the
// server's from then on, wherever in a message it stands, and a RESET goes back
// to the one that the session began with.
func TestPlainTimeouts(t *testing.T) {
	for _, major := range []int{15, 18} {
		t.Run(fmt.Sprintf("PostgreSQL %d", major), func(t *testing.T) {
			p := startProxyTo(t, startMajor(t, major).SocketDSN("app", "app"))
			c := p.login(t)
			c.want("SHOW statement_timeout", "D(30s) C(SHOW) Z(I)")
			c.want("SET statement_timeout = '400ms'", "C(SET) Z(I)")
			c.want("SHOW statement_timeout", "D(400ms) C(SHOW) Z(I)")
			c.wantPart("SELECT pg_sleep(60)", "E(57014 canceling statement due to statement timeout")
			c.want("SELECT 1; SET statement_timeout = 9000; SHOW statement_timeout", "D(1) C(SELECT 1) C(SET) D(9s) C(SHOW) Z(I)")
			c.wantPart("SET statement_timeout = 0", "E(42501 pgproxy: statement_timeout may not be raised over 30s) Z(I)")
			c.wantPart("SELECT 1; SET statement_timeout = '31s'", "E(42501 pgproxy: statement_timeout may not be raised over 30s) Z(I)")
			c.want("RESET statement_timeout; SHOW statement_timeout", "C(RESET) D(30s) C(SHOW) Z(I)")

			c.want("BEGIN; SET LOCAL statement_timeout = '5s'; SHOW statement_timeout", "C(BEGIN) C(SET) D(5s) C(SHOW) Z(T)")
			c.want("COMMIT; SHOW statement_timeout", "C(COMMIT) D(30s) C(SHOW) Z(I)")

			c.want("SET idle_in_transaction_session_timeout = '10s'; SHOW idle_in_transaction_session_timeout", "C(SET) D(10s) C(SHOW) Z(I)")
			c.wantPart("SELECT set_config('idle_in_transaction_session_timeout', '1h', false)", "E(42501 pgproxy: idle_in_transaction_session_timeout may not be raised over 30s) Z(I)")
			c.wantPart("SHOW pgproxy.limits", "D(statement_timeout,30s) D(idle_in_transaction_session_timeout,30s)")
			c.want("SET pgproxy.idle_in_transaction_session_timeout = '7s'", "C(SET) Z(I)")
			c.want("SHOW idle_in_transaction_session_timeout", "D(7s) C(SHOW) Z(I)")
			for _, rec := range p.records.all() {
				if rec.Event == audit.Tamper {
					t.Errorf("tampered: %s", rec.Tampered)
				}
			}
		})
	}
}

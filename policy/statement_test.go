package policy_test

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgproxy/policy"
)

func read(t *testing.T, sql string) *policy.Message {
	t.Helper()
	msg, err := newJudge(t).Parse(t.Context(), sql)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return msg
}

// TestStatement checks what a session is told of a statement: R it only
// reads, C it changes rows, H some of them hidden from its tag, F it fetches.
func TestStatement(t *testing.T) {
	for _, c := range []struct{ sql, kind, says string }{
		{"SELECT 1", "SELECT", "R"},
		{"VALUES (1)", "SELECT", "R"},
		{"TABLE t", "SELECT", "R"},
		{"SELECT f(1)", "SELECT", "R"},
		{"SELECT nextval('s')", "SELECT", ""},
		{"SELECT set_config('search_path', '', false)", "SELECT", ""},
		{"SELECT * FROM t FOR UPDATE", "SELECT", ""},
		{"SELECT 1 INTO t", "CREATE TABLE AS", ""},
		{"CREATE TEMP TABLE t AS SELECT 1", "CREATE TABLE AS", ""},
		{"INSERT INTO t VALUES (1)", "INSERT", "C"},
		{"UPDATE t SET a = 1 WHERE b = 2", "UPDATE", "C"},
		{"DELETE FROM t WHERE b = 2 RETURNING *", "DELETE", "C"},
		{"MERGE INTO t USING s ON t.a = s.a WHEN MATCHED THEN DELETE", "MERGE", "C"},
		{"WITH d AS (DELETE FROM t RETURNING *) SELECT * FROM d", "SELECT", "CH"},
		{"WITH d AS (DELETE FROM t RETURNING *) INSERT INTO u SELECT * FROM d", "INSERT", "CH"},
		{"EXPLAIN DELETE FROM t", "EXPLAIN", ""},
		{"EXPLAIN ANALYZE DELETE FROM t", "EXPLAIN", "CH"},
		{"PREPARE p AS DELETE FROM t", "PREPARE", ""},
		{"EXECUTE p", "EXECUTE", ""},
		{"FETCH 10 FROM c", "FETCH", "F"},
		{"MOVE 10 FROM c", "MOVE", ""},
		{"SHOW work_mem", "SHOW", ""},
		{"VACUUM t", "VACUUM", ""},
		{"CREATE INDEX ON t (a)", "CREATE INDEX", ""},
		{"DROP INDEX CONCURRENTLY i", "DROP INDEX", ""},
		{"CREATE DATABASE d", "CREATE DATABASE", ""},
		{"CALL p()", "CALL", ""},
		{"DO 'BEGIN END'", "DO", ""},
		{"BEGIN", "BEGIN", ""},
		{"CREATE FUNCTION f() RETURNS void BEGIN ATOMIC DELETE FROM t; END", "CREATE FUNCTION", ""},
		{"CREATE RULE r AS ON INSERT TO t DO INSTEAD DELETE FROM u", "CREATE RULE", ""},
	} {
		st := read(t, c.sql).Statements[0]
		var says strings.Builder
		for _, flag := range []struct {
			set  bool
			name string
		}{{st.Reads, "R"}, {st.Changes, "C"}, {st.Hidden, "H"}, {st.Cursor.Verb == policy.CursorFetch, "F"}} {
			if flag.set {
				says.WriteString(flag.name)
			}
		}
		if st.Kind != c.kind || says.String() != c.says {
			t.Errorf("%s: %s %s, want %s %s", c.sql, st.Kind, says.String(), c.kind, c.says)
		}
	}
}

func TestExtents(t *testing.T) {
	const sql = " -- first\nSELECT 'ä;' ;; /* x */ CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END /* y */ ; TABLE t -- last"
	want := []string{"SELECT 'ä;'", "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END", "TABLE t"}
	var got []string
	for _, st := range read(t, sql).Statements {
		got = append(got, sql[st.Start:st.End])
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%q", got)
	}
}

func TestTransactionActions(t *testing.T) {
	for sql, want := range map[string]policy.TxAction{
		"BEGIN": policy.TxBegin, "START TRANSACTION": policy.TxBegin,
		"COMMIT": policy.TxCommit, "END": policy.TxCommit,
		"ROLLBACK": policy.TxRollback, "ABORT": policy.TxRollback,
		"SAVEPOINT a": policy.TxSavepoint, "RELEASE a": policy.TxSavepoint, "ROLLBACK TO a": policy.TxRollbackTo,
		"PREPARE TRANSACTION 'x'": policy.TxPrepare, "SET TRANSACTION READ ONLY": policy.TxNone, "SELECT 1": policy.TxNone,
	} {
		if got := read(t, sql).Statements[0].Tx; got != want {
			t.Errorf("%s: %v, want %v", sql, got, want)
		}
	}
}

func TestProxyCommands(t *testing.T) {
	for sql, want := range map[string]*policy.ProxyCommand{
		"SHOW pgproxy.Limits":                    {Verb: "SHOW", Name: "limits"},
		"SET PGPROXY.max_rows = 100":             {Verb: "SET", Name: "max_rows", Value: "100"},
		"SET LOCAL pgproxy.max_rows TO '1e3'":    {Verb: "SET", Name: "max_rows", Value: "1e3", Local: true},
		"SET pgproxy.statement_timeout = '5min'": {Verb: "SET", Name: "statement_timeout", Value: "5min"},
		"SET pgproxy.reason = 'INC-123'":         {Verb: "SET", Name: "reason", Value: "INC-123"},
		"SET pgproxy.max_rows TO DEFAULT":        {Verb: "RESET", Name: "max_rows"},
		"RESET pgproxy.max_rows":                 {Verb: "RESET", Name: "max_rows"},
		"SHOW pgproxy.node":                      nil, // the server has it
		"SHOW work_mem":                          nil,
		"SET work_mem = '1MB'":                   nil,
	} {
		if got := read(t, sql).Statements[0].Proxy; !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, want %+v", sql, got, want)
		}
	}
}

func TestFingerprint(t *testing.T) {
	same := []string{
		"SELECT a FROM t WHERE b = 1 AND c = 'x'",
		"select A\n from T -- c\n where b=42 and c = $$y$$",
		"SELECT a FROM t WHERE b = 1.5e3 AND c = E'\\'' /* d */",
	}
	first := read(t, same[0]).Fingerprint
	for _, sql := range same[1:] {
		if got := read(t, sql).Fingerprint; got != first {
			t.Errorf("%s: %s, want %s", sql, got, first)
		}
	}
	for _, sql := range []string{"SELECT a FROM t WHERE b = 1 OR c = 'x'", `SELECT "A" FROM t WHERE b = 1 AND c = 'x'`, "SELECT a FROM t WHERE b = 1"} {
		if read(t, sql).Fingerprint == first {
			t.Errorf("%s has the same fingerprint", sql)
		}
	}
}

// TestPositions checks where a refusal points, in characters.
func TestPositions(t *testing.T) {
	for _, c := range []struct{ sql, word string }{
		{"SELECT 'ä'; DROP TABLE t", "DROP"},
		{"/* ö */ DROP TABLE t", "DROP"},
		{"SELECT 'ß', pg_read_file('x')", "pg_read_file"},
		{"WITH d AS (DELETE FROM tä) SELECT 1", "tä"},
		{"SELECT 1;\nDELETE FROM t", "DELETE"},
		{"BEGIN; SELECT set_config('role', 'x', false)", "set_config"},
		{"SELECT 'ä' FROM t WHERE x y z", "y"},
		{"SELECT 1; EXECUTE nobody", "EXECUTE"},
	} {
		rule := policy.DefaultRule()
		msg, err := newJudge(t).Parse(t.Context(), c.sql)
		refusal, _ := err.(*policy.Refusal)
		if err == nil {
			refusal = policy.Decide(t.Context(), &rule, msg, policy.Session{}).Refusal
		}
		if refusal == nil {
			t.Errorf("%s is allowed", c.sql)
			continue
		}
		if rest := string([]rune(c.sql)[refusal.Position-1:]); !strings.HasPrefix(rest, c.word) {
			t.Errorf("%s: points at %q, want %q", c.sql, rest, c.word)
		}
	}
}

// TestMemory follows prepared statements through a session.
func TestMemory(t *testing.T) {
	var m policy.Memory
	execute, explain := read(t, "EXECUTE p"), read(t, "EXPLAIN ANALYZE EXECUTE p")
	check := func(step string, changes, hidden, explained bool) {
		t.Helper()
		if got := m.Changes(execute, 0); got != changes {
			t.Errorf("%s: Changes is %v", step, got)
		}
		if got := m.Hidden(execute, 0); got != hidden {
			t.Errorf("%s: Hidden is %v", step, got)
		}
		if got := m.Hidden(explain, 0); got != explained {
			t.Errorf("%s: Hidden of EXPLAIN ANALYZE is %v", step, got)
		}
	}
	note := func(sql string, ok bool) {
		msg := read(t, sql)
		completed := len(msg.Statements)
		if !ok {
			completed--
		}
		m.Note(msg, completed)
	}
	check("unknown", true, true, true)
	note("PREPARE p AS SELECT 1", true)
	check("a query", false, false, false)
	note("PREPARE p AS DELETE FROM t WHERE a = 1", false)
	check("a second one that failed", false, false, false)
	note("DEALLOCATE p", false)
	check("a DEALLOCATE that failed", false, false, false)
	note("DEALLOCATE p", true)
	check("unknown again", true, true, true)
	note("PREPARE p AS WITH d AS (DELETE FROM t WHERE a = 1 RETURNING *) SELECT * FROM d", true)
	check("a writing CTE", true, true, true)
	note("DISCARD ALL; PREPARE p AS SELECT 1", true)
	check("after DISCARD ALL", false, false, false)
}

// TestMemoryInMessage looks prepared statements up that an earlier statement of
// the same message prepares or drops: C it changes rows, H some of them hidden
// from its tag, R it only reads.
func TestMemoryInMessage(t *testing.T) {
	judge := newJudge(t)
	for _, c := range []struct{ before, sql, says string }{
		{"PREPARE p AS SELECT 1", "EXECUTE p", "R"},
		{"PREPARE p AS SELECT 1", "DEALLOCATE p; EXECUTE p", "R"}, // the server refuses it, if it was dropped
		{"PREPARE p AS SELECT 1", "DEALLOCATE p; PREPARE p AS UPDATE t SET a = 1 WHERE true; EXECUTE p", "C"},
		{"PREPARE p AS SELECT 1", "DEALLOCATE ALL; PREPARE p AS DELETE FROM t WHERE true; EXECUTE p", "C"},
		{"PREPARE p AS SELECT 1", "DISCARD ALL; PREPARE p AS DELETE FROM t WHERE true; EXECUTE p", "C"},
		{"PREPARE p AS SELECT 1", "DEALLOCATE p; PREPARE p AS WITH d AS (DELETE FROM t RETURNING 1) SELECT 1; EXECUTE p", "CH"},
		{"PREPARE p AS DELETE FROM t WHERE true", "DEALLOCATE p; PREPARE p AS SELECT 1; EXECUTE p", "C"},
		{"", "PREPARE p AS SELECT 1; EXECUTE p", "R"},
		{"", "EXECUTE p; PREPARE p AS SELECT 1", "CH"},
		{"", "PREPARE p AS DELETE FROM t WHERE true; EXPLAIN ANALYZE EXECUTE p", "CH"},
		{"", "PREPARE p AS DELETE FROM t WHERE true; EXPLAIN EXECUTE p", "R"},
		{"", "PREPARE P AS DELETE FROM t WHERE true; EXECUTE \"p\"", "C"},
		{"PREPARE \"*\" AS SELECT 1; PREPARE p AS DELETE FROM t WHERE true; DEALLOCATE \"*\"", "EXECUTE p", "C"},
		{"PREPARE \"*\" AS SELECT 1; PREPARE p AS DELETE FROM t WHERE true; DEALLOCATE \"*\"", "EXECUTE \"*\"", "CH"},
	} {
		var m policy.Memory
		if c.before != "" {
			msg := readBy(t, judge, c.before)
			m.Note(msg, len(msg.Statements))
		}
		msg := readBy(t, judge, c.sql)
		i := slices.Index(kindsOf(msg), "EXECUTE")
		if i < 0 {
			i = len(msg.Statements) - 1
		}
		says := ""
		for _, flag := range []struct {
			set  bool
			name string
		}{{m.Changes(msg, i), "C"}, {m.Hidden(msg, i), "H"}, {m.Reads(msg, i), "R"}} {
			if flag.set {
				says += flag.name
			}
		}
		if says != c.says {
			t.Errorf("%s | %s: %q, want %q", c.before, c.sql, says, c.says)
		}
	}
}

func kindsOf(msg *policy.Message) (kinds []string) {
	for _, st := range msg.Statements {
		kinds = append(kinds, st.Kind)
	}
	return kinds
}

// TestReads tells the statements whose result may be cut short with an error.
func TestReads(t *testing.T) {
	judge := newJudge(t)
	var m policy.Memory
	m.Note(readBy(t, judge, "PREPARE q AS SELECT 1; PREPARE d AS DELETE FROM t; PREPARE n AS SELECT nextval('s'); PREPARE s AS SELECT set_config('a.b', '', true)"), 4)
	for want, list := range map[bool][]string{
		true: {
			"SELECT 1", "TABLE t", "VALUES (1)", "SELECT f(x) FROM t", "FETCH 10 FROM c", "SHOW work_mem", "SHOW ALL",
			"EXPLAIN SELECT 1", "EXPLAIN DELETE FROM t", "EXPLAIN SELECT nextval('s')", "EXPLAIN ANALYZE SELECT * FROM t",
			"EXECUTE q", "EXPLAIN ANALYZE EXECUTE q", "EXPLAIN EXECUTE d", "SELECT 1 FROM pg_stat_activity",
		},
		false: {
			"SELECT nextval('s')", "SELECT set_config('a.b', '', true)", "SELECT * FROM t FOR UPDATE", "SELECT 1 INTO TEMP t",
			"SELECT pg_reload_conf()", "EXPLAIN ANALYZE DELETE FROM t", "EXPLAIN ANALYZE SELECT nextval('s')", "EXPLAIN SELECT txid_current()",
			"EXECUTE d", "EXECUTE n", "EXECUTE s", "EXECUTE unknown", "EXPLAIN ANALYZE EXECUTE d", "EXECUTE q(nextval('s'))",
			"EXPLAIN EXECUTE q(nextval('s'))", "EXPLAIN EXECUTE q(set_config('a.b', '', true))", "EXPLAIN ANALYZE CREATE TEMP TABLE x AS SELECT 1",
			"INSERT INTO t VALUES (1) RETURNING *", "WITH d AS (DELETE FROM t RETURNING *) SELECT * FROM d",
			"DO 'BEGIN END'", "CALL p()", "BEGIN", "COMMIT", "SET work_mem = '1MB'", "PREPARE x AS SELECT 1", "DECLARE c CURSOR FOR SELECT 1",
			"COPY t TO '/dev/null'", "CREATE TEMP TABLE x AS EXECUTE q", "REFRESH MATERIALIZED VIEW v",
		},
	} {
		for _, sql := range list {
			if got := m.Reads(readBy(t, judge, sql), 0); got != want {
				t.Errorf("%s: %v", sql, got)
			}
		}
	}
}

// TestSettings checks which settings a statement changes.
func TestSettings(t *testing.T) {
	judge := newJudge(t)
	for sql, want := range map[string]string{
		"SELECT 1": "", "SHOW work_mem": "", "BEGIN": "", "COMMIT": "", "SELECT 'statement_timeout'": "",
		"SET work_mem = '1MB'":              "work_mem",
		"SET LOCAL Work_Mem TO DEFAULT":     "work_mem",
		"RESET \"Work_MEM\"":                "work_mem",
		"SET SESSION statement_timeout = 0": "statement_timeout",
		"RESET ALL":                         "*",
		"DISCARD ALL":                       "*",
		"DISCARD PLANS":                     "",
		"SET TIME ZONE 'UTC'":               "timezone",
		"SET ROLE NONE":                     "role",
		"SET SESSION AUTHORIZATION DEFAULT": "session_authorization",
		"RESET SESSION AUTHORIZATION":       "session_authorization",
		"SET NAMES 'UTF8'":                  "client_encoding",
		"SET SCHEMA 'x'":                    "search_path",
		"SET XML OPTION DOCUMENT":           "xmloption",
		"SET TRANSACTION READ WRITE, ISOLATION LEVEL SERIALIZABLE":                         "transaction_read_only transaction_isolation",
		"SET TRANSACTION SNAPSHOT 'x'":                                                     "",
		"RESET transaction_isolation":                                                      "transaction_isolation",
		"SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE":                            "default_transaction_read_only",
		"BEGIN READ ONLY":                                                                  "transaction_read_only",
		"SELECT set_config('Statement_Timeout', '0', false)":                               "statement_timeout",
		"SELECT pg_catalog.set_config('a.b'::text, x, false), set_config('a.b', '', true)": "a.b",
		"SELECT set_config(name, '', false) FROM pg_settings":                              "*",
		"SELECT set_config('a' || 'b', '', false)":                                         "*",
		"SELECT set_config(setting_name => 'a', new_value => '', is_local => true)":        "*",
		"EXPLAIN SELECT set_config('a.b', '', false)":                                      "",
		"EXPLAIN ANALYZE SELECT set_config('a.b', '', false)":                              "a.b",
		"EXECUTE p(set_config('a.b', '', false))":                                          "a.b",
		"EXPLAIN EXECUTE p(set_config('a.b', '', false))":                                  "a.b",
		"PREPARE p AS SELECT set_config('a.b', '', false)":                                 "",
		"DECLARE c CURSOR FOR SELECT set_config('a.b', '', false)":                         "",
		"ALTER ROLE app SET work_mem = '1MB'":                                              "",
		"ALTER SYSTEM SET work_mem = '1MB'":                                                "",
		"CREATE FUNCTION f() RETURNS int LANGUAGE sql SET work_mem = '1MB' RETURN 1":       "",
		"UPDATE pg_settings SET setting = 'x' WHERE name = 'a.b'":                          "*",
		"EXPLAIN UPDATE pg_settings SET setting = 'x' WHERE name = 'a.b'":                  "",
		"SET pgproxy.max_rows = 1":                                                         "",
		"SET pgproxy.node = 'x'":                                                           "pgproxy.node",
	} {
		if got := strings.Join(readBy(t, judge, sql).Statements[0].Settings, " "); got != want {
			t.Errorf("%s: %q, want %q", sql, got, want)
		}
	}
}

// TestOpaque checks whether a statement runs code that the verdict has not seen
// (O), and whether it reads a table (L).
func TestOpaque(t *testing.T) {
	judge := newJudge(t)
	for want, list := range map[string][]string{
		"": {
			"SELECT 1", "SELECT now()", "SELECT now() - interval '1 day', 'a' || 'b', 1 BETWEEN 0 AND 2, 1 IN (1, 2)", "SHOW work_mem", "VALUES (1)",
			"BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT a", "RELEASE a", "SET work_mem = '1MB'", "RESET work_mem", "DISCARD ALL", "LISTEN x", "NOTIFY x",
			"SELECT count(*), max(setting::int) FROM pg_catalog.pg_settings WHERE name ~ 'x' AND name LIKE 'y%'",
			"SELECT c.oid::pg_catalog.regclass FROM pg_catalog.pg_class c WHERE c.relname OPERATOR(pg_catalog.~) '^(x)$' COLLATE pg_catalog.default",
			"SELECT * FROM information_schema.columns", "SELECT nextval('s')", "PREPARE p AS SELECT 1", "DEALLOCATE p", "CLOSE c",
			"SELECT '{1}'::int[], 'x'::varchar(3), ARRAY[1], ROW(1), 1::numeric(3, 1)", "EXPLAIN SELECT 1", "SELECT json '{}' -> 'a'",
			"SELECT COALESCE(NULL, 1), GREATEST(1, 2), NULLIF(1, 2), CURRENT_USER, EXTRACT(year FROM now()), x IS DISTINCT FROM 1 FROM pg_catalog.pg_class",
			"DECLARE c CURSOR FOR SELECT 1", "LOCK TABLE pg_catalog.pg_class", "SELECT 1 FROM pg_catalog.pg_class FOR UPDATE",
		},
		"L": {"TABLE t", "SELECT * FROM t", "SELECT 1 WHERE EXISTS (SELECT FROM v)", "SELECT * FROM pg_class", "PREPARE p AS SELECT * FROM t",
			"EXPLAIN SELECT * FROM t", "SELECT * FROM t FOR UPDATE", "DECLARE c CURSOR FOR SELECT * FROM t", "LOCK TABLE t", "EXPLAIN INSERT INTO t VALUES (1)"},
		"O": {
			"SELECT f()", "SELECT shop.now()", "SELECT public.lower('x')", "SELECT * FROM my_function()", "EXPLAIN SELECT f()",
			"SELECT 1 OPERATOR(shop.+) 2", "SELECT 1 @@@@ 2", "SELECT '{x}'::dom[]", "SELECT 'x'::shop.mood", "SELECT CAST('x' AS mood)", "SELECT mood 'x'",
			"SELECT (row(1, 2)).f", "SELECT 1 ORDER BY 1 USING OPERATOR(shop.<)", "SELECT 1 = ANY (ARRAY[1])  AND 1 OPERATOR(shop.=) ANY (SELECT 1)",
			"DO 'BEGIN END'", "CALL p()", "EXECUTE p", "EXPLAIN EXECUTE p", "FETCH c", "MOVE c", "SELECT set_config('a.b', '', true)",
			"SELECT pg_reload_conf()", "SELECT query_to_xml('x', true, true, '')", "SET CONSTRAINTS ALL IMMEDIATE", "PREPARE TRANSACTION 'x'",
			"DROP FUNCTION f", "CREATE ROLE x", "CREATE DATABASE x", "SELECT x.y FROM XMLTABLE('/a' PASSING '<a/>' COLUMNS z mood) x",
			"SELECT * FROM json_to_record('{}') AS x (a mood)",
		},
		"OL": {
			"INSERT INTO t VALUES (1)", "UPDATE t SET a = 1", "DELETE FROM t", "WITH d AS (DELETE FROM t RETURNING 1) SELECT 1", "EXPLAIN ANALYZE DELETE FROM t",
			"CREATE TEMP TABLE t (a int)", "SELECT 1 INTO TEMP t", "COPY t TO '/dev/null'", "TRUNCATE t", "SELECT f(a) FROM t", "VACUUM t",
			"REFRESH MATERIALIZED VIEW t",
		},
	} {
		for _, sql := range list {
			got, st := "", readBy(t, judge, sql).Statements[0]
			if st.Opaque {
				got = "O"
			}
			if st.Looks {
				got += "L"
			}
			if got != want {
				t.Errorf("%s: %q, want %q", sql, got, want)
			}
		}
	}
}

// TestCursorOfExplain checks that what EXPLAIN plans declares no cursor.
func TestCursorOfExplain(t *testing.T) {
	for sql, want := range map[string]policy.CursorVerb{
		"DECLARE c CURSOR FOR SELECT 1":                 policy.CursorDeclare,
		"EXPLAIN DECLARE c CURSOR FOR SELECT 1":         policy.NoCursor,
		"EXPLAIN ANALYZE DECLARE c CURSOR FOR SELECT 1": policy.NoCursor,
	} {
		if got := read(t, sql).Statements[0].Cursor.Verb; got != want {
			t.Errorf("%s: %v", sql, got)
		}
	}
}

// TestMemoryBounds prepares more than a session's memory keeps, again and again.
// What is not kept is unknown, and neither costs much.
func TestMemoryBounds(t *testing.T) {
	judge := newJudge(t)
	var ctes strings.Builder
	for i := range 5_000 {
		fmt.Fprintf(&ctes, ", c%d AS (DELETE FROM t%d WHERE a = 1)", i, i)
	}
	large := "PREPARE large AS WITH c AS (SELECT 1)" + ctes.String() + " SELECT 1"
	var m policy.Memory
	rule := policy.DefaultRule()
	for range 3 {
		msg, err := judge.Parse(t.Context(), large) // anew: it is too long to be kept
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		m.Note(msg, 1)
		if took := time.Since(began); took > time.Second {
			t.Fatalf("remembering took %v", took)
		}
	}
	execute := readBy(t, judge, "EXECUTE large")
	if d := policy.Decide(t.Context(), &rule, execute, policy.Session{Memory: &m}); d.Refusal == nil || d.Refusal.Rule != "prepared" {
		t.Errorf("EXECUTE of what is not kept: %v", d.Refusal)
	}
	if !m.Changes(execute, 0) || !m.Hidden(execute, 0) || m.Reads(execute, 0) {
		t.Error("what is not kept is taken to be harmless")
	}

	// The same many times under one name.
	script := readBy(t, judge, strings.Repeat("PREPARE p AS DELETE FROM t WHERE a = 1; EXECUTE p; DEALLOCATE p;", 3000))
	began := time.Now()
	d := policy.Decide(t.Context(), &rule, script, policy.Session{Memory: &m})
	for i := range script.Statements {
		m.Changes(script, i)
		m.Hidden(script, i)
		m.Reads(script, i)
	}
	m.Note(script, len(script.Statements))
	if took := time.Since(began); took > 5*time.Second || d.Refusal == nil {
		t.Errorf("a script took %v: %v", took, d.Refusal)
	}
	if d := policy.Decide(t.Context(), &rule, readBy(t, judge, strings.Repeat("PREPARE p AS DELETE FROM t WHERE a = 1; EXECUTE p; DEALLOCATE p;", 100)), policy.Session{Memory: &m}); d.Refusal != nil {
		t.Errorf("a short script: %v", d.Refusal)
	}

	// Too many in all: what is known stays known.
	for i := range 20_000 {
		m.Note(readBy(t, judge, fmt.Sprintf("PREPARE n%d AS SELECT %d", i, i)), 1)
	}
	known := 0
	for i := range 20_000 {
		if m.Reads(readBy(t, judge, fmt.Sprintf("EXECUTE n%d", i)), 0) {
			known++
		}
	}
	if known < 900 || known > 1000 {
		t.Errorf("%d prepared statements are known", known)
	}
}

// TestNarrowing prepares with admin access what read access may not run.
func TestNarrowing(t *testing.T) {
	var m policy.Memory
	rule := policy.DefaultRule()
	rule.Access = policy.Admin
	prepare, execute := read(t, "PREPARE p AS DELETE FROM t WHERE a = 1"), read(t, "EXECUTE p")
	if d := policy.Decide(t.Context(), &rule, prepare, policy.Session{Memory: &m}); d.Refusal != nil {
		t.Fatal(d.Refusal)
	}
	m.Note(prepare, 1)
	if d := policy.Decide(t.Context(), &rule, execute, policy.Session{Memory: &m}); d.Refusal != nil || !d.Writes {
		t.Errorf("%+v", d)
	}
	rule.Access = policy.Read
	if d := policy.Decide(t.Context(), &rule, execute, policy.Session{Memory: &m}); d.Refusal == nil || d.Refusal.Rule != "access" {
		t.Errorf("%+v", d)
	}
}

// TestRepeated reads texts that are alike but for their numbers, of kinds
// where the number matters and where it does not.
func TestRepeated(t *testing.T) {
	judge := newJudge(t)
	value := func(sql string) string {
		msg, err := judge.Parse(t.Context(), sql)
		if err != nil {
			t.Fatal(err)
		}
		return msg.Statements[0].Proxy.Value
	}
	for _, n := range []string{"100", "200", "000", "999"} {
		if got := value("SET pgproxy.max_rows = " + n); got != n && n != "000" {
			t.Errorf("%s is read as %s", n, got)
		}
	}
	first, err := judge.Parse(t.Context(), "SELECT a FROM t WHERE id = 4711 LIMIT 10")
	if err != nil {
		t.Fatal(err)
	}
	again, err := judge.Parse(t.Context(), "SELECT a FROM t WHERE id = 1234 LIMIT 99")
	if err != nil || again != first {
		t.Errorf("the same with other numbers is read anew (%v)", err)
	}
	rule := policy.DefaultRule()
	for sql, want := range map[string]bool{"SET statement_timeout = 10000": true, "SET statement_timeout = 99000": false, "SET statement_timeout = 20000": true} {
		msg, err := judge.Parse(t.Context(), sql)
		if err != nil {
			t.Fatal(err)
		}
		if d := policy.Decide(t.Context(), &rule, msg, policy.Session{}); (d.Refusal == nil) != want {
			t.Errorf("%s: %+v", sql, d.Refusal)
		}
	}
	analyze := []string{"EXPLAIN (ANALYZE 0) DELETE FROM t", "EXPLAIN (ANALYZE 1) DELETE FROM t"}
	for i, want := range []bool{false, true} {
		if msg, err := judge.Parse(t.Context(), analyze[i]); err != nil || msg.Statements[0].Changes != want {
			t.Errorf("%s: %+v, %v", analyze[i], msg, err)
		}
	}
}

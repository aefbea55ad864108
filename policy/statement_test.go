package policy_test

import (
	"reflect"
	"strings"
	"testing"

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
			refusal = policy.Decide(t.Context(), &rule, msg, new(policy.Memory), nil).Refusal
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

// TestNarrowing prepares with admin access what read access may not run.
func TestNarrowing(t *testing.T) {
	var m policy.Memory
	rule := policy.DefaultRule()
	rule.Access = policy.Admin
	prepare, execute := read(t, "PREPARE p AS DELETE FROM t WHERE a = 1"), read(t, "EXECUTE p")
	if d := policy.Decide(t.Context(), &rule, prepare, &m, nil); d.Refusal != nil {
		t.Fatal(d.Refusal)
	}
	m.Note(prepare, 1)
	if d := policy.Decide(t.Context(), &rule, execute, &m, nil); d.Refusal != nil || !d.Writes {
		t.Errorf("%+v", d)
	}
	rule.Access = policy.Read
	if d := policy.Decide(t.Context(), &rule, execute, &m, nil); d.Refusal == nil || d.Refusal.Rule != "access" {
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
		if d := policy.Decide(t.Context(), &rule, msg, new(policy.Memory), nil); (d.Refusal == nil) != want {
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

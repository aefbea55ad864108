package policy_test

import (
	"strings"
	"testing"

	"pgproxy/policy"
)

// TestHints reads the hints that people at the prompt get: first what this rule
// permits instead, then what the rule would need, then whom to ask.
func TestHints(t *testing.T) {
	judge := newJudge(t)
	read, write, deny := policy.DefaultRule(), policy.DefaultRule(), policy.DefaultRule()
	for _, rule := range []*policy.Rule{&read, &write, &deny} {
		rule.Source, rule.Contact = "grant", "#dba"
	}
	read.Access = policy.Read
	deny.Deny, deny.MaxAffectedRows = []string{"DELETE"}, 0
	for _, c := range []struct {
		rule           policy.Rule
		sql, said, not string // parts of the hint, with "…" for what may stand between
	}{
		{write, "TRUNCATE orders", `DELETE FROM … WHERE … is included, up to 1000 rows a statement. … Your rule (grant) would need access "admin" or "allow": ["TRUNCATE"]. Ask #dba.`, ""},
		{read, "TRUNCATE orders", `Your rule (grant) would need access "admin" or "allow": ["TRUNCATE"]. Ask #dba.`, "DELETE"},
		{deny, "TRUNCATE orders", `["TRUNCATE"]`, "DELETE"},
		{write, "DROP TABLE orders", `DELETE FROM … ["DROP TABLE"]. Ask #dba.`, ""},
		{write, "CREATE TABLE x (a int)", `CREATE TEMP … ["CREATE TABLE"]. Ask #dba.`, ""},
		{read, "CREATE TABLE x (a int)", `["CREATE TABLE"]. Ask #dba.`, "TEMP"},
		{write, "VACUUM orders", `Your rule (grant) would need access "admin" or "allow": ["VACUUM"]. Ask #dba.`, "policy"},
		{write, "LOCK orders", `ACCESS SHARE MODE is included. … Ask #dba.`, ""},
		{write, "COPY orders TO '/tmp/x'", `\g FILE … Ask #dba.`, ""},
		{read, "INSERT INTO log VALUES (1)", `Your rule (grant) would need access "write" or "allow": ["INSERT"]. Ask #dba.`, ""},
		{write, "SELECT pg_terminate_backend(1)", `your own sessions. … would need may_signal. Ask #dba.`, ""},
		{write, "SELECT pg_cancel_backend(pid) FROM pg_stat_activity", `SHOW pgproxy.blockers … ["pg_cancel_backend"]. Ask #dba.`, ""},
		{write, "SELECT pg_reload_conf()", `"allow": ["pg_reload_conf"]. Ask #dba.`, ""},
		{read, "SELECT nextval('s')", `access "write" or "allow": ["nextval"]. Ask #dba.`, ""},
		{deny, "DELETE FROM orders WHERE id = 1", `Your rule (grant) would have to leave it out of "deny". Ask #dba.`, ""},
		{write, "SET application_name = 'x'", "audit record", ""},
		{write, "SET default_transaction_read_only = on", "BEGIN READ ONLY", ""},
		{read, "SET default_transaction_read_only = off", `access "admin". Ask #dba.`, ""},
		{write, "SET ROLE postgres", `access "admin". Ask #dba.`, ""},
		{write, "SET log_statement = none", `access "admin". Ask #dba.`, ""},
		{write, "SET statement_timeout = 0", "Up to 30s may be set; more needs may_lift. Ask #dba.", "= 0"},
		{write, "SET idle_in_transaction_session_timeout = '1h'", "Up to 30s may be set; more needs may_lift. Ask #dba.", ""},
		{write, "SELECT set_config('pgproxy.max_rows', '5', false)", "SET pgproxy.max_rows = … is a statement of its own.", ""},
		{write, "SET work_men = '1MB'", `Is it "work_mem"? Ask #dba.`, ""},
		{write, "SET client_encoding = 'LATIN1'", "Unset PGCLIENTENCODING, or set it to UTF8", ""},
		{write, "SET standard_conforming_strings = off", "E'…'", "psql"},
		{read, "BEGIN READ WRITE", `access "write". Ask #dba.`, ""},
	} {
		msg, err := judge.Parse(t.Context(), c.sql)
		if err != nil {
			t.Fatal(err)
		}
		d := policy.Decide(t.Context(), &c.rule, msg, policy.Session{})
		if d.Refusal == nil {
			t.Errorf("%s at %s is allowed", c.sql, c.rule.Access)
			continue
		}
		hint := d.Refusal.Hint
		rest := hint
		for part := range strings.SplitSeq(c.said, " … ") {
			_, after, ok := strings.Cut(rest, part)
			if !ok {
				t.Errorf("%s at %s: hint %q, want %q", c.sql, c.rule.Access, hint, part)
			}
			rest = after
		}
		if c.not != "" && strings.Contains(hint, c.not) {
			t.Errorf("%s at %s: hint %q speaks of %q", c.sql, c.rule.Access, hint, c.not)
		}
	}
}

package wire

import (
	"fmt"
	"strings"
	"testing"

	"pgproxy/policy"
	"pgproxy/upstream/upstreamtest"
)

// What pgproxy asks the server inside of a client's transaction takes no
// snapshot: SET TRANSACTION ISOLATION LEVEL is still possible, and a snapshot is
// not older than the client's first query.
func TestSettingsAreAskedWithoutASnapshot(t *testing.T) {
	for _, major := range []int{15, 18} {
		t.Run(fmt.Sprintf("PostgreSQL %d", major), func(t *testing.T) {
			pg := startMajor(t, major)
			pg.ExecAs(t, "postgres", "app", "CREATE TABLE seen (n int); GRANT ALL ON seen TO app")
			p := startProxyTo(t, pg.DSN("app", "app"))
			for _, script := range [][]string{
				{"BEGIN", "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"},
				{"BEGIN READ WRITE", "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"},
				{"BEGIN; SET TRANSACTION READ ONLY; SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"},
				{"START TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY", "SET TRANSACTION DEFERRABLE"},
				{"BEGIN", "SET LOCAL work_mem = '8MB'", "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"},
			} {
				c := p.login(t)
				for _, sql := range script {
					if got := c.query(sql); strings.Contains(got, "E(") || !strings.HasSuffix(got, "Z(T)") {
						t.Errorf("%q: %s: %s", script, sql, got)
					}
				}
				c.leave()
			}
			c := p.login(t)
			c.query("BEGIN ISOLATION LEVEL REPEATABLE READ")
			pg.ExecAs(t, "postgres", "app", "INSERT INTO seen VALUES (1)")
			c.want("SELECT count(*) FROM seen", "D(1) C(SELECT 1) Z(T)")
		})
	}
}

// A read over its cap is an error wherever it stands among statements that only
// move transactions and cursors.
func TestReadsAreCutAloud(t *testing.T) {
	const capped = "E(54000 pgproxy: the result truncated: max_rows is 5)"
	for _, access := range []policy.Access{policy.Read, policy.Write, policy.Admin} {
		p := startProxy(t, withRule(func(r *policy.Rule) { r.Access, r.MaxRows = access, 5 }))
		for _, tt := range []struct{ sql, status string }{
			{"BEGIN; SELECT generate_series(1, 20); COMMIT", "EI"},
			{"BEGIN; SAVEPOINT a; SELECT generate_series(1, 20)", "E"},
			{"BEGIN; SELECT 1; SELECT generate_series(1, 20); ROLLBACK", "EI"},
			{"BEGIN; DECLARE c NO SCROLL CURSOR FOR SELECT generate_series(1, 20); FETCH 15 c", "E"},
			{"BEGIN; DECLARE c CURSOR FOR SELECT generate_series(1, 20); FETCH 2 c; FETCH 15 c; CLOSE c; COMMIT", "EI"},
			{"DECLARE c CURSOR FOR SELECT generate_series(1, 20); FETCH ALL c", "I"},
		} {
			c := p.login(t)
			got := c.query(tt.sql)
			if !strings.Contains(got, "E(54000 ") || strings.Contains(got, "N(01000") || !strings.ContainsAny(got[len(got)-2:len(got)-1], tt.status) {
				t.Errorf("%v: %s\n got %s\nwant %s", access, tt.sql, got, capped)
			}
			if n := strings.Count(got, "D("); n > 5+1 {
				t.Errorf("%v: %s: %d rows", access, tt.sql, n)
			}
			c.query("ROLLBACK")
			c.want("SELECT 1", "D(1) C(SELECT 1) Z(I)")
			c.leave()
		}
	}
}

// The savepoint of pgproxy's has a name that a client's ROLLBACK TO cannot mean.
func TestSavepointIsNotFound(t *testing.T) {
	freshCaps(t)
	p := startProxy(t)
	c := p.login(t)
	c.query("BEGIN; INSERT INTO caps.t (id) VALUES (8801)")
	c.want("SAVEPOINT pgproxy_guard", "C(SAVEPOINT) Z(T)")
	c.query("INSERT INTO caps.t (id) VALUES (8802)")
	c.wantPart("INSERT INTO caps.t (id) VALUES (1 / 0)", "E(22012", "Z(E)")
	c.want("ROLLBACK TO pgproxy_guard", "C(ROLLBACK) Z(T)")
	c.want("COMMIT", "C(COMMIT) Z(I)")
	holds(t, "SELECT count(*) FROM caps.t WHERE id IN (8801, 8802)", "1")
}

// A message over max_affected_rows leaves the transaction as it was before the
// message, with what the message did before it changed rows.
func TestMessageIsTakenBackWhole(t *testing.T) {
	freshCaps(t)
	p := startProxy(t, withRule(func(r *policy.Rule) { r.MaxAffectedRows = 5 }))
	c := p.login(t)
	c.query("BEGIN")
	c.query("SET LOCAL work_mem = '5MB'")
	c.wantPart("SET LOCAL work_mem = '6MB'; CREATE TEMP TABLE early (n int); UPDATE caps.t SET n = 1 WHERE id <= 6", "E(54000 ", "Z(T)")
	c.want("SHOW work_mem", "D(5MB) C(SHOW) Z(T)")
	c.want("SELECT to_regclass('early')", "D() C(SELECT 1) Z(T)")
	c.want("COMMIT", "C(COMMIT) Z(I)")
}

// Rows that the COMMIT before has changed, by a deferred trigger, are not the
// next statement's.
func TestDeferredRowsAreNotTheNextStatements(t *testing.T) {
	pg := upstreamtest.Shared(t)
	pg.Exec(t, `DROP SCHEMA IF EXISTS late CASCADE; CREATE SCHEMA late; GRANT USAGE ON SCHEMA late TO PUBLIC;
		CREATE TABLE late.t (n int); CREATE TABLE late.log (n int); GRANT ALL ON ALL TABLES IN SCHEMA late TO PUBLIC;
		CREATE FUNCTION late.fill() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO late.log SELECT generate_series(1, 50); RETURN NEW; END $$;
		CREATE CONSTRAINT TRIGGER fill AFTER INSERT ON late.t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION late.fill()`)
	p := startProxy(t, withRule(func(r *policy.Rule) { r.MaxAffectedRows = 20 }))
	c := p.login(t)
	c.query("BEGIN")
	c.want("INSERT INTO late.t VALUES (1)", "C(INSERT 0 1) Z(T)")
	c.want("COMMIT", "C(COMMIT) Z(I)")
	c.want("INSERT INTO late.log VALUES (0)", "C(INSERT 0 1) Z(I)")
	c.query("BEGIN; INSERT INTO late.t VALUES (1); COMMIT")
	c.want("INSERT INTO late.log VALUES (0)", "C(INSERT 0 1) Z(I)")
}

// PREPARE TRANSACTION behind a change, outside of a transaction: the client gets
// what the server would have said.
func TestPrepareTransactionBehindAChange(t *testing.T) {
	pg := upstreamtest.Start(t, upstreamtest.Set("max_prepared_transactions", "2"))
	pg.ExecAs(t, "postgres", "app", "CREATE TABLE two (n int)")
	p := startProxyTo(t, pg.SocketDSN("postgres", "app"), withRule(func(r *policy.Rule) { r.Access = policy.Admin }))
	c := p.login(t)
	c.want("INSERT INTO two VALUES (1); PREPARE TRANSACTION 'g'", "C(INSERT 0 1) N(25P01 there is no transaction in progress) C(PREPARE TRANSACTION) Z(I)")
	c.want("COMMIT PREPARED 'g'", "C(COMMIT PREPARED) Z(I)")
}

// A timeout that the message has set is not pgproxy's.
func TestTimeoutOfTheMessagesOwn(t *testing.T) {
	p := startProxy(t)
	c := p.login(t)
	for _, set := range []string{"SET", "BEGIN; SET LOCAL"} {
		got := c.query(set + " statement_timeout = '50ms'; SELECT pg_sleep(5)")
		if !strings.Contains(got, "E(57014 canceling statement due to statement timeout) ") {
			t.Errorf("%s: got %s", set, got)
		}
		c.query("ROLLBACK")
	}
}

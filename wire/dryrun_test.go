package wire

import (
	"fmt"
	"strings"
	"testing"

	"pgproxy/policy"
	"pgproxy/wire/audit"
)

const (
	dryOnce = "N(01000 pgproxy: dry run: nothing was kept)"
	dryAsks = "E(25001 pgproxy: %s cannot be taken back, and so not be tried in a dry run) Z(%s)"
)

// A dry run shows what statements return, and how many rows they change, and
// keeps nothing.
func TestDryRun(t *testing.T) {
	for _, major := range []int{15, 18} {
		t.Run(fmt.Sprintf("PostgreSQL %d", major), func(t *testing.T) {
			pg := startMajor(t, major)
			pg.ExecAs(t, "postgres", "app", `CREATE TABLE dry (id int PRIMARY KEY, n int); INSERT INTO dry SELECT i, 0 FROM generate_series(1, 50) i;
				CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES dry DEFERRABLE INITIALLY DEFERRED);
				CREATE SEQUENCE seq;
				CREATE FUNCTION writes() RETURNS int LANGUAGE sql AS 'INSERT INTO dry VALUES (9000, 1) RETURNING n';
				CREATE VIEW writing AS SELECT writes();
				GRANT ALL ON dry, child, writing TO app; GRANT ALL ON SEQUENCE seq TO app`)
			holds := func(sql, want string) {
				t.Helper()
				if rows := pg.ExecAs(t, "postgres", "app", sql); len(rows) != 1 || strings.Join(rows[0], ",") != want {
					t.Errorf("%s: %v, want %s", sql, rows, want)
				}
			}
			p := startProxyTo(t, pg.DSN("app", "app"), withRule(func(r *policy.Rule) { r.MaxAffectedRows = 10 }))
			c := p.login(t)
			c.want("SHOW pgproxy.dry_run", "D(off) C(SHOW) Z(I)")
			c.want("SET pgproxy.dry_run = on", "C(SET) Z(I)")
			c.want("SHOW pgproxy.dry_run", "D(on) C(SHOW) Z(I)")
			for _, step := range [][2]string{
				{"UPDATE dry SET n = 1 WHERE id <= 3", dryOnce + " C(UPDATE 3) Z(I)"},
				{"DELETE FROM dry WHERE id = 50 RETURNING id", "D(50) " + dryOnce + " C(DELETE 1) Z(I)"},
				{"INSERT INTO dry VALUES (100, 1); SELECT count(*) FROM dry", "C(INSERT 0 1) D(51) " + dryOnce + " C(SELECT 1) Z(I)"},
				{"WITH w AS (DELETE FROM dry WHERE id = 1 RETURNING 1) SELECT count(*) FROM w", "D(1) " + dryOnce + " C(SELECT 1) Z(I)"},
				{"PREPARE p AS UPDATE dry SET n = 2 WHERE id = $1", "C(PREPARE) Z(I)"},
				{"EXECUTE p (4)", dryOnce + " C(UPDATE 1) Z(I)"},
				{"EXPLAIN (ANALYZE, COSTS off, TIMING off, SUMMARY off) DELETE FROM dry WHERE id = 5", "…"},
				{"SELECT writes()", "D(1) " + dryOnce + " C(SELECT 1) Z(I)"},
				{"SELECT * FROM writing", "D(1) C(SELECT 1) Z(I)"},
				{"DECLARE held CURSOR WITH HOLD FOR SELECT * FROM writing", dryOnce + " C(DECLARE CURSOR) Z(I)"},
				{"SELECT nextval('seq')", "D(1) " + dryOnce + " C(SELECT 1) Z(I)"},
				{"CREATE TEMP TABLE tmp (id int)", dryOnce + " C(CREATE TABLE) Z(I)"},
				{"SELECT 1", "D(1) C(SELECT 1) Z(I)"},
				{"UPDATE dry SET n = 1 WHERE id <= 11", "E(54000 pgproxy: the statement changed 11 rows, max_affected_rows is 10; it was rolled back) Z(I)"},
				{"BEGIN", "C(BEGIN) Z(T)"},
				{"UPDATE dry SET n = 7 WHERE id = 7", "C(UPDATE 1) Z(T)"},
				{"SELECT n FROM dry WHERE id = 7", "D(7) C(SELECT 1) Z(T)"},
				{"UPDATE dry SET n = 1 WHERE id <= 11", "E(54000 pgproxy: the statement changed 11 rows, max_affected_rows is 10; it was rolled back) Z(T)"},
				{"SET pgproxy.dry_run = off", "E(25001 pgproxy: pgproxy.dry_run cannot be changed inside of a transaction) Z(E)"},
				{"COMMIT", "C(ROLLBACK) Z(I)"},
				{"BEGIN", "C(BEGIN) Z(T)"},
				{"SET pgproxy.dry_run = off; SET pgproxy.dry_run = on", "E(25001 pgproxy: pgproxy.dry_run cannot be changed inside of a transaction) Z(E)"},
				{"ROLLBACK", "C(ROLLBACK) Z(I)"},
				{"BEGIN; UPDATE dry SET n = 8 WHERE id = 8; COMMIT; SELECT n FROM dry WHERE id = 8", "C(BEGIN) C(UPDATE 1) " + dryOnce + " C(ROLLBACK) D(0) C(SELECT 1) Z(I)"},
				{"BEGIN; UPDATE dry SET n = 9 WHERE id = 9; COMMIT AND CHAIN", "C(BEGIN) C(UPDATE 1) " + dryOnce + " C(ROLLBACK) Z(T)"},
				{"END", dryOnce + " C(ROLLBACK) Z(I)"},
				{"BEGIN; UPDATE dry SET n = 9 WHERE id = 9; ROLLBACK", "C(BEGIN) C(UPDATE 1) C(ROLLBACK) Z(I)"},
				{"UPDATE dry SET n = 9 WHERE id = 9; COMMIT", "…"},
				{"SELECT setval('seq', 100)", fmt.Sprintf(dryAsks, "setval", "I")},
				{"SELECT pg_advisory_lock(1)", fmt.Sprintf(dryAsks, "pg_advisory_lock", "I")},
				{fmt.Sprintf("SELECT pg_terminate_backend(%d)", c.pid), fmt.Sprintf(dryAsks, "pg_terminate_backend", "I")}, // one's own
				{"DISCARD TEMP", fmt.Sprintf(dryAsks, "DISCARD TEMP", "I")},
				// What COMMIT would have said is said.
				{"INSERT INTO child VALUES (1, 777)", "E(23503 "},
				{"BEGIN", "C(BEGIN) Z(T)"},
				{"INSERT INTO child VALUES (1, 777)", "C(INSERT 0 1) Z(T)"},
				{"COMMIT", "E(23503 "},
				{"SELECT 'goes on'", "D(goes on) C(SELECT 1) Z(I)"},
			} {
				got := c.query(step[0])
				fits := got == step[1] || strings.HasSuffix(step[1], "(23503 ") && strings.HasPrefix(got, step[1]) && strings.HasSuffix(got, "Z(I)")
				if !fits && step[1] != "…" {
					t.Errorf("%s\n got %s\nwant %s", step[0], got, step[1])
				}
			}
			holds("SELECT count(*), sum(n) FROM dry", "50,0")
			holds("SELECT count(*) FROM child", "0")
			holds("SELECT last_value FROM seq", "1")
			rec := p.records.await(t, "the result of a dry run", func(r audit.Record) bool { return r.Event == audit.Result && r.Tag == "UPDATE 3" })
			if !rec.DryRun || rec.Affected == nil || *rec.Affected != 3 {
				t.Errorf("record %+v", rec)
			}

			c.want("SET pgproxy.dry_run = off; UPDATE dry SET n = 1 WHERE id = 1", "C(SET) C(UPDATE 1) Z(I)")
			holds("SELECT sum(n) FROM dry", "1")
			c.want("SET pgproxy.dry_run = on; UPDATE dry SET n = 2 WHERE id = 1", "C(SET) "+dryOnce+" C(UPDATE 1) Z(I)")
			holds("SELECT sum(n) FROM dry", "1")
			c.want("RESET pgproxy.dry_run", "C(RESET) Z(I)")
			c.want("UPDATE dry SET n = 3 WHERE id = 1", "C(UPDATE 1) Z(I)")
			holds("SELECT sum(n) FROM dry", "3")
		})
	}
}

// An admin's dry run takes back what it can, and refuses the rest unsent.
func TestDryRunOfAdmin(t *testing.T) {
	freshCaps(t)
	p := startProxy(t, withRule(func(r *policy.Rule) { r.Access, r.MaxAffectedRows = policy.Admin, 0 }))
	c := p.login(t)
	c.query("SET pgproxy.dry_run = on")
	for sql, kind := range map[string]string{
		"VACUUM caps.t":                                  "VACUUM",
		"CREATE DATABASE nosuch":                         "CREATE DATABASE",
		"COMMIT PREPARED 'x'":                            "COMMIT PREPARED",
		"ALTER SYSTEM SET work_mem = '4MB'":              "ALTER SYSTEM",
		"CREATE INDEX CONCURRENTLY ON caps.t (n)":        "CREATE INDEX",
		"DROP INDEX CONCURRENTLY caps.t_pkey":            "DROP INDEX",
		"COPY caps.t TO '/tmp/nosuch'":                   "COPY",
		"COPY caps.t FROM PROGRAM 'true'":                "COPY",
		"CHECKPOINT":                                     "CHECKPOINT",
		"SELECT pg_terminate_backend(1)":                 "pg_terminate_backend",
		"SELECT pg_reload_conf()":                        "pg_reload_conf",
		"SELECT dblink('dbname=x', 'DELETE FROM y')":     "dblink",
		"PREPARE TRANSACTION 'x'":                        "PREPARE TRANSACTION",
		"DISCARD ALL":                                    "DISCARD ALL",
		"SELECT pg_read_file('x')":                       "pg_read_file",
		"SELECT 1; SELECT pg_advisory_lock(1); SELECT 2": "pg_advisory_lock",
	} {
		c.want(sql, fmt.Sprintf(dryAsks, kind, "I"))
	}
	c.want("CREATE TABLE caps.dry (id int); INSERT INTO caps.dry VALUES (1)", "C(CREATE TABLE) "+dryOnce+" C(INSERT 0 1) Z(I)")
	c.want("TRUNCATE caps.child", dryOnce+" C(TRUNCATE TABLE) Z(I)")
	c.want("DO $$ BEGIN DELETE FROM caps.t; END $$", dryOnce+" C(DO) Z(I)")
	c.wantPart("DO $$ BEGIN DELETE FROM caps.t; COMMIT; END $$", "E(2D000 invalid transaction termination")
	holds(t, "SELECT to_regclass('caps.dry') IS NULL, (SELECT count(*) > 0 FROM caps.t)", "t,t")
}

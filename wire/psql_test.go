package wire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
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

// psql is one psql on this machine.
type psql struct {
	path  string
	env   []string
	major int
}

// eachPsql runs a test with every psql on this machine.
func eachPsql(t *testing.T, test func(t *testing.T, q psql)) {
	t.Helper()
	if testing.Short() {
		test(t, anyPsql(t))
		return
	}
	upstreamtest.Psqls(t, func(t *testing.T, path string) { test(t, psqlAt(t, path)) })
}

// anyPsql returns the first psql on this machine.
func anyPsql(t testing.TB) psql {
	t.Helper()
	path, err := upstreamtest.Shared(t).Psql()
	if err != nil {
		t.Skip(err)
	}
	return psqlAt(t, path)
}

var psqlVersion = regexp.MustCompile(`\(PostgreSQL\) (\d+)`)

func psqlAt(t testing.TB, path string) psql {
	t.Helper()
	q := psql{path: path, env: upstreamtest.Shared(t).Env()}
	cmd := exec.Command(path, "--version")
	cmd.Env = q.env
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	m := psqlVersion.FindSubmatch(out)
	if m == nil {
		t.Fatalf("%s says %q", path, out)
	}
	q.major, _ = strconv.Atoi(string(m[1])) // digits
	return q
}

// shown is what a run of psql has shown.
type shown struct {
	out, errs string
	code      int
}

func (s shown) String() string { return fmt.Sprintf("exit %d\n%s%s", s.code, s.out, s.errs) }

// want requires an exit code, and pieces of the output or the errors.
func (s shown) want(t testing.TB, code int, pieces ...string) {
	t.Helper()
	if s.code != code {
		t.Errorf("exit code %d, want %d", s.code, code)
	}
	for _, piece := range pieces {
		if !strings.Contains(s.out+s.errs, piece) {
			t.Errorf("not shown: %q", piece)
		}
	}
	if t.Failed() {
		t.Fatalf("psql showed:\n%v", s)
	}
}

// connection is where a psql connects, and its environment.
type connection struct {
	addr string
	env  []string
}

func (p *proxy) at(env ...string) connection { return connection{p.addr, env} }

// direct goes to the server itself, as the role that the proxy has there.
func direct(t testing.TB) connection {
	return connection{upstreamtest.Shared(t).Addr(), []string{"PGPASSWORD=" + upstreamtest.Password}}
}

// command is a psql that has yet to run. Its user is called as the proxy's
// role, so that what it shows can be compared with a direct connection's.
func (q psql) command(ctx context.Context, to connection, args ...string) *exec.Cmd {
	host, port, _ := net.SplitHostPort(to.addr)
	cmd := exec.CommandContext(ctx, q.path, append([]string{"-X", "-n", "-P", "pager=off"}, args...)...)
	cmd.Env = append(slices.Clone(q.env), "PGHOST="+host, "PGPORT="+port, "PGUSER=app", "LC_ALL=C.UTF-8", "PGCONNECT_TIMEOUT=10", "TERM=dumb")
	cmd.Env = append(cmd.Env, to.env...)
	return cmd
}

// run feeds a script to psql.
func (q psql) run(t testing.TB, to connection, script string, args ...string) shown {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := q.command(ctx, to, args...)
	cmd.Stdin = strings.NewReader(script)
	return finish(t, cmd)
}

// finish runs a command to its end.
func finish(t testing.TB, cmd *exec.Cmd) shown {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		if _, ok := errors.AsType[*exec.ExitError](err); !ok {
			t.Fatal(err)
		}
	}
	return shown{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

// psqlTables are what the scripts of this file work on, psqlRows what is in
// them.
const psqlTables = `
DROP SCHEMA IF EXISTS psql CASCADE; CREATE SCHEMA psql AUTHORIZATION app; SET ROLE app;
CREATE TABLE psql.items (id int PRIMARY KEY, name text NOT NULL, qty int CHECK (qty >= 0));
COMMENT ON TABLE psql.items IS 'things';
CREATE INDEX items_name ON psql.items (name);
CREATE TABLE psql.lines (id int, item int REFERENCES psql.items DEFERRABLE INITIALLY DEFERRED, day text, sold int);
CREATE VIEW psql.stock AS SELECT name, qty FROM psql.items;
CREATE FUNCTION psql.say(what text) RETURNS int LANGUAGE plpgsql AS $$
BEGIN RAISE NOTICE 'it says %', what USING HINT = 'listen'; RAISE WARNING 'careful'; RETURN 1; END $$;
RESET ROLE;
CREATE TABLE psql.closed (id int);` + psqlRows

const psqlRows = `
TRUNCATE psql.items, psql.lines;
INSERT INTO psql.items SELECT i, 'item ' || i, i * 10 FROM generate_series(1, 20) i;
INSERT INTO psql.lines VALUES (1, 1, 'mon', 3), (2, 1, 'tue', 4), (3, 2, 'mon', 5);`

// TestPsqlAsDirect runs scripts through the proxy and on the server itself,
// and requires that psql shows the same, to the byte.
func TestPsqlAsDirect(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	pg := upstreamtest.Shared(t)
	pg.Exec(t, psqlTables)
	scripts := []struct{ name, script, piece string }{
		{"SELECT", `SELECT 1;`, "(1 row)"},
		{"two statements", `SELECT 1\; SELECT 2;`, "2"},
		{"no statement", `;`, ""},
		{"comment", "-- nothing\n/* at /* all */ */;\nSELECT 'drop table x' AS copy;", "drop table x"},
		{"many rows", `SELECT repeat('x', 100) FROM generate_series(1, 5000);`, "(5000 rows)"},
		{"no columns", `SELECT;`, "(1 row)"},
		{"\\d", `\d`, "Did not find any relations."},
		{"\\d table", `SET search_path = psql; \d items`, "items_name"},
		{"\\dt", `\dt psql.*`, "lines"},
		{"\\d+ schema.table", `\d+ psql.items`, "Referenced by"},
		{"\\d+ view", `\d+ psql.stock`, "View definition"},
		{"\\l", `\l`, "template0"},
		{"\\l+", `\l+`, "default administrative connection database"},
		{"\\df", `\df psql.*`, "say"},
		{"\\df+", `\df+ psql.*`, "volatile"},
		{"\\du", `\du`, "Superuser"},
		{"\\dn", `\dn+`, "psql"},
		{"\\di", `\di+ psql.*`, "items_name"},
		{"\\dv", `\dv psql.*`, "stock"},
		{"\\dp", `\dp psql.*`, "Access privileges"},
		{"\\dT", `\dT psql.*`, "List of data types"},
		{"\\dx", `\dx`, "plpgsql"},
		{"\\sf", `\sf psql.say`, "CREATE OR REPLACE FUNCTION"},
		{"\\sv", `\sv psql.stock`, "CREATE OR REPLACE VIEW"},
		{"UPDATE by key", `UPDATE psql.items SET qty = 7 WHERE id = 7;`, "UPDATE 1"},
		{"UPDATE RETURNING", `UPDATE psql.items SET qty = 8 WHERE id IN (7, 8) RETURNING id, qty;`, "UPDATE 2"},
		{"INSERT and DELETE", "INSERT INTO psql.items VALUES (100, 'a', 1), (101, 'b', 2);\nDELETE FROM psql.items WHERE id > 99;", "DELETE 2"},
		{"constraint", `UPDATE psql.items SET qty = -1 WHERE id = 1;`, "Failing row contains"},
		{"syntax error", "SELECT 1,\n  2 frm,\n  FROM psql.items;", "LINE 3:   FROM psql.items"},
		{"unknown column", "SELECT id,\n  nme FROM psql.items;", `HINT:  Perhaps you meant to reference the column "items.name".`},
		{"permission", `SELECT * FROM psql.closed;`, "permission denied for table closed"},
		{"notices", `SELECT psql.say('hello');`, "HINT:  listen"},
		{"verbose error", "\\set VERBOSITY verbose\nSELECT 1/0;\n\\errverbose", "22012"},
		{"rollback", "BEGIN;\nUPDATE psql.items SET qty = 99 WHERE id = 1;\nSELECT qty FROM psql.items WHERE id = 1;\nROLLBACK;\nSELECT qty FROM psql.items WHERE id = 1;", "99"},
		{"error in a transaction", "BEGIN;\nSELECT 1/0;\nSELECT 2;\nCOMMIT;\nSELECT 3;", "current transaction is aborted"},
		{"savepoint", "BEGIN;\nSAVEPOINT s;\nSELECT 1/0;\nROLLBACK TO s;\nSELECT 2;\nCOMMIT;", "COMMIT"},
		{"transaction in one string", `BEGIN\; UPDATE psql.items SET qty = 99 WHERE id = 1\; ROLLBACK\; SELECT qty FROM psql.items WHERE id = 1;`, "10"},
		{"implicit transaction", `UPDATE psql.items SET qty = 99 WHERE id = 2\; SELECT 1/0;` + "\nSELECT qty FROM psql.items WHERE id = 2;", "20"},
		{"deferred constraint", `INSERT INTO psql.lines VALUES (9, 999);`, "violates foreign key constraint"},
		{"cursor", "BEGIN;\nDECLARE c CURSOR FOR SELECT id FROM psql.items ORDER BY id;\nFETCH 2 FROM c;\nMOVE 3 IN c;\nFETCH 2 FROM c;\nCLOSE c;\nCOMMIT;", "MOVE 3"},
		{"cursor WITH HOLD", "DECLARE h CURSOR WITH HOLD FOR SELECT id FROM psql.items ORDER BY id;\nFETCH 2 FROM h;\nFETCH 2 FROM h;\nCLOSE h;", "CLOSE CURSOR"},
		{"FETCH_COUNT", "\\set FETCH_COUNT 3\nSELECT id FROM psql.items ORDER BY id;", "20"},
		{"PREPARE", "PREPARE p AS UPDATE psql.items SET qty = $2 WHERE id = $1;\nEXECUTE p (3, 30);\nDEALLOCATE p;", "UPDATE 1"},
		{"EXPLAIN", `EXPLAIN (COSTS off) SELECT * FROM psql.items WHERE id = 1;`, "QUERY PLAN"},
		{"EXPLAIN ANALYZE", `EXPLAIN (COSTS off, ANALYZE, BUFFERS off, TIMING off, SUMMARY off) UPDATE psql.items SET qty = 9 WHERE id = 9;`, "Update on items"},
		{"temporary table", "CREATE TEMP TABLE mine (a int);\nINSERT INTO mine SELECT generate_series(1, 3);\nSELECT sum(a) FROM mine;\nDROP TABLE pg_temp.mine;", "6"},
		{"\\gexec", `SELECT format('SELECT %s AS n', i) FROM generate_series(1, 3) i \gexec`, "3"},
		{"\\gset", "SELECT 42 AS answer \\gset\nSELECT :answer;", "42"},
		{"\\gx", `SELECT 1 AS a, 2 AS b \gx`, "-[ RECORD 1 ]"},
		{"\\crosstabview", `SELECT item, day, sold FROM psql.lines ORDER BY 1 \crosstabview`, "tue"},
		{"AUTOCOMMIT off", "\\set AUTOCOMMIT off\nUPDATE psql.items SET qty = 77 WHERE id = 4;\nROLLBACK;\nSELECT qty FROM psql.items WHERE id = 4;", "40"},
		{"ON_ERROR_ROLLBACK", "\\set ON_ERROR_ROLLBACK on\nBEGIN;\nSELECT 1/0;\nSELECT 'still here';\nCOMMIT;", "still here"},
		{"SET", "SET search_path = psql;\nSHOW search_path;\nRESET search_path;\nSHOW search_path;", "public"},
		{"SET LOCAL", "BEGIN;\nSET LOCAL lock_timeout = '1s';\nSHOW lock_timeout;\nCOMMIT;\nSHOW lock_timeout;", "1s"},
		{"\\encoding", `\encoding`, "UTF8"},
		{"encoding", `SELECT 'ä€😀' AS "größe";`, "größe"},
		{"dollar quotes", `SELECT $q$ ; DROP TABLE x; $q$;`, "DROP TABLE x"},
		{"COMMIT outside", `COMMIT;`, "there is no transaction in progress"},
		{"lost semicolon", "SELECT 1", "(1 row)"},
	}
	eachPsql(t, func(t *testing.T, q psql) {
		p := startProxy(t)
		for _, s := range scripts {
			t.Run(s.name, func(t *testing.T) {
				want := q.run(t, direct(t), s.script)
				got := q.run(t, p.at(), s.script)
				if got != want {
					t.Errorf("through the proxy:\n%v\ndirect:\n%v", got, want)
				}
				// An older psql does not know a newer server's catalogue.
				if q.major >= pg.Major && !strings.Contains(want.out+want.errs, s.piece) {
					t.Errorf("%q is not shown:\n%v", s.piece, want)
				}
			})
		}
	})
}

// TestFramesAsDirect holds a conversation through the proxy and on the server
// itself, and requires the same messages, to the byte.
func TestFramesAsDirect(t *testing.T) {
	pg := upstreamtest.Shared(t)
	pg.Exec(t, psqlTables)
	p := startProxy(t)
	conversation := []string{
		"SELECT 1", "SELECT 1; SELECT 2;", "", " ;; -- nothing", "SELECT", "SELECT NULL, '', 'x'::bytea, 1.5::float8",
		"SELECT i FROM generate_series(1, 3000) i", "SELECT repeat('x', 1000000)", "SELECT 1 WHERE false", "VALUES (1), (2)",
		"SELECT 1; SELECT 1/0; SELECT 3", "SELECT nosuch", "SELECT 'ä', nosuch",
		"INSERT INTO psql.items VALUES (50, 'fifty', 1)", "INSERT INTO psql.items VALUES (50, 'again', 1)",
		"INSERT INTO psql.items VALUES (51, 'a', 1); SELECT 1/0", "UPDATE psql.items SET qty = 2 WHERE id = 50 RETURNING *",
		"INSERT INTO psql.lines VALUES (9, 999)", "INSERT INTO psql.lines VALUES (9, 999); SELECT 1",
		"DELETE FROM psql.items WHERE id = 50; SELECT 'gone'", "DELETE FROM psql.items WHERE id = 50",
		"BEGIN; SELECT 1/0", "SELECT 1", "", "COMMIT",
		"BEGIN", "BEGIN", "UPDATE psql.items SET qty = 3 WHERE id = 3", "SAVEPOINT s", "SELECT 1/0", "ROLLBACK TO s", "COMMIT",
		"BEGIN", "SELECT 1; ROLLBACK; SELECT 2; BEGIN; SELECT 3", "END", "COMMIT",
		"BEGIN; INSERT INTO psql.lines VALUES (9, 999); COMMIT", "SELECT 1",
		"BEGIN; DECLARE c BINARY CURSOR FOR SELECT 7::int4, 'x'::text", "FETCH ALL FROM c", "COMMIT",
		"SET timezone = 'Pacific/Auckland'", "SET datestyle = 'german'; SET intervalstyle = 'iso_8601'", "SELECT date '2026-12-31'", "RESET timezone",
		"BEGIN; SET LOCAL timezone = 'UTC'", "ROLLBACK",
		"SELECT psql.say('a notice')", "SET client_min_messages = error", "SELECT psql.say('not heard')", "RESET client_min_messages",
		"LISTEN psql_self", "NOTIFY psql_self, 'one'", "BEGIN; NOTIFY psql_self, 'two'", "COMMIT", "UNLISTEN *",
		"PREPARE p AS SELECT $1::int", "EXECUTE p (1)", "EXECUTE p ('x')", "DEALLOCATE p", "EXPLAIN (COSTS off) SELECT 1", "SHOW server_version",
		"CREATE TEMP TABLE own (a int)", "INSERT INTO own SELECT generate_series(1, 10)", "SELECT count(*) FROM own",
		"WITH w AS (INSERT INTO own VALUES (11) RETURNING a + 0 AS a) SELECT a FROM w", "BEGIN", "WITH w AS (INSERT INTO own VALUES (12) RETURNING a + 0 AS a) SELECT a FROM w; SELECT 'and'", "COMMIT",
	}
	hold := func(c *client) (said []string) {
		pg.Exec(t, psqlRows)
		for _, sql := range conversation {
			c.send(frame.AppendQuery(nil, sql))
			for {
				f := c.next()
				if f.typ == 'A' {
					clear(f.body[:4]) // the backend's process number
				}
				said = append(said, fmt.Sprintf("%s: %c %q", sql, f.typ, f.body))
				if f.typ == 'Z' {
					break
				}
			}
		}
		return said
	}
	here := directly(t, pg)
	want, got := hold(here), hold(p.login(t))
	for i := range want {
		if i >= len(got) || got[i] != want[i] {
			t.Fatalf("message %d:\n got %.1000s\nwant %.1000s", i, got[min(i, len(got)-1)], want[i])
		}
	}
	if len(got) > len(want) {
		t.Errorf("then comes %s", got[len(want)])
	}
}

// directly connects to the server itself.
func directly(t *testing.T, pg *upstreamtest.Server) *client {
	t.Helper()
	conn, err := net.Dial("unix", fmt.Sprintf("%s/.s.PGSQL.%d", pg.SocketDir, pg.Port))
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(time.Minute))
	t.Cleanup(func() { conn.Close() })
	c := &client{t: t, conn: conn}
	c.send(startupPacket(protocol3, "user", "app", "database", "app", "client_encoding", "UTF8"))
	c.answer()
	return c
}

// TestPsqlRefused requires that psql goes on after what the proxy refuses.
func TestPsqlRefused(t *testing.T) {
	upstreamtest.Shared(t).Exec(t, psqlTables)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("1\ta\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	scripts := []struct {
		name, script string
		since        int // the psql that has it
		piece        string
	}{
		{"\\copy from", `\copy psql.items from '` + file + `'`, 0, "COPY FROM STDIN is not supported"},
		{"\\copy to", `\copy psql.items to '` + file + `.out'`, 0, "COPY TO STDOUT is not supported"},
		{"COPY TO STDOUT", `COPY psql.items TO STDOUT;`, 0, "COPY TO STDOUT is not supported"},
		// An older psql takes the data for statements, which \r clears away.
		{"COPY FROM STDIN", "COPY psql.items FROM STDIN;\n200\tx\t1\n\\.\n\\r\n", 0, "COPY FROM STDIN is not supported"},
		{"COPY among others", `SELECT 'before'\; COPY psql.items TO STDOUT\; SELECT 'behind';`, 0, "COPY TO STDOUT is not supported"},
		{"\\gdesc", `SELECT 1 AS one \gdesc`, 0, "unsupported message (use simple protocol)"},
		{"\\bind", `SELECT $1 \bind 5 \g`, 16, "unsupported message (use simple protocol)"},
		{"\\parse", `SELECT 1 \parse p`, 18, "unsupported message (use simple protocol)"},
		{"pipeline", "\\startpipeline\nSELECT 1 \\bind \\sendpipeline\n\\endpipeline", 18, "unsupported message (use simple protocol)"},
		{"\\lo_import", `\lo_import '` + file + `'`, 0, "unsupported message (use simple protocol): function call"},
		{"DO", `DO $$ BEGIN RAISE NOTICE 'x'; END $$;`, 0, "pgproxy: DO is refused"},
		{"DROP", `DROP TABLE psql.items;`, 0, "pgproxy: DROP TABLE is refused"},
		{"no WHERE", `DELETE FROM psql.items;`, 0, "pgproxy: DELETE"},
		{"application_name", `SET application_name = 'somebody';`, 0, "application_name"},
	}
	eachPsql(t, func(t *testing.T, q psql) {
		p := startProxy(t)
		for _, s := range scripts {
			t.Run(s.name, func(t *testing.T) {
				if q.major < s.since {
					t.Skipf("psql %d has no such command", q.major)
				}
				got := q.run(t, p.at(), s.script+"\nSELECT 'alive', count(*) FROM psql.items;")
				got.want(t, 0, "ERROR:  ", s.piece, " alive    |    20")
				if strings.Contains(got.out, "before") || strings.Contains(got.out, "behind") {
					t.Errorf("a part of the message was run:\n%v", got)
				}
			})
		}
		if b, _ := os.ReadFile(file + ".out"); len(b) > 0 { // there may be no file
			t.Errorf("\\copy has written %q", b)
		}
	})
}

// TestPsqlRefusedInTransaction requires that a refusal fails the transaction
// as any error does.
func TestPsqlRefusedInTransaction(t *testing.T) {
	upstreamtest.Shared(t).Exec(t, psqlTables)
	eachPsql(t, func(t *testing.T, q psql) {
		p := startProxy(t)
		for _, refused := range []string{`DROP TABLE psql.items;`, `COPY psql.items TO STDOUT;`, `SELECT 1 \gdesc`} {
			t.Run(refused, func(t *testing.T) {
				script := "BEGIN;\nUPDATE psql.items SET qty = 99 WHERE id = 5;\n" + refused +
					"\nSELECT 'after';\nCOMMIT;\nSELECT 'qty', qty FROM psql.items WHERE id = 5;"
				got := q.run(t, p.at(), script)
				got.want(t, 0, "ERROR:  ", "current transaction is aborted", "ROLLBACK\n", " qty      |  50")
			})
		}
		t.Run("savepoint", func(t *testing.T) {
			script := "BEGIN;\nUPDATE psql.items SET qty = 60 WHERE id = 6;\nSAVEPOINT s;\nDROP TABLE psql.items;\n" +
				"ROLLBACK TO s;\nCOMMIT;\nSELECT 'qty', qty FROM psql.items WHERE id = 6;"
			q.run(t, p.at(), script).want(t, 0, "ERROR:  pgproxy: ", "COMMIT\n", " qty      |  60")
		})
	})
}

// TestPsqlContact requires that whoever may not raise a limit is told whom to
// ask, and nobody to type what they may not.
func TestPsqlContact(t *testing.T) {
	q := anyPsql(t)
	p := startProxy(t, withRule(func(r *policy.Rule) { r.MaxRows, r.StatementTimeout, r.Contact = 3, 200*time.Millisecond, "#dba" }))
	for _, script := range []string{"SELECT generate_series(1, 5);", "SELECT pg_sleep(60);", "TRUNCATE t;", "SET pgproxy.max_rows = 0;", "SET statement_timeout = 0;"} {
		got := q.run(t, p.at(), script)
		got.want(t, 0, "HINT:  ", " Ask #dba.")
		if _, hint, _ := strings.Cut(got.errs, "HINT:"); strings.Contains(hint, "= 0") {
			t.Errorf("%s: %s", script, hint)
		}
	}
}

// TestPsqlCaps requires that psql shows the rows up to a cap and the error
// that tells of it.
func TestPsqlCaps(t *testing.T) {
	eachPsql(t, func(t *testing.T, q psql) {
		p := startProxy(t, withRule(func(r *policy.Rule) { r.MaxRows, r.MaxBytes, r.MayLift = 3, 2000, true }))
		const three = " n \n---\n 1\n 2\n 3\n(3 rows)\n\n"
		t.Run("rows", func(t *testing.T) {
			got := q.run(t, p.at(), "", "-c", "SELECT n FROM generate_series(1, 5) n")
			got.want(t, 1, "ERROR:  pgproxy: result truncated: max_rows is 3\nDETAIL:  Sent were 3 rows", "HINT:  Ask for less")
			if got.out != three {
				t.Errorf("shown were\n%s", got.out)
			}
		})
		t.Run("exactly the cap", func(t *testing.T) {
			got := q.run(t, p.at(), "", "-c", "SELECT n FROM generate_series(1, 3) n")
			if got != (shown{out: three}) {
				t.Errorf("psql showed\n%v", got)
			}
		})
		t.Run("ON_ERROR_STOP", func(t *testing.T) {
			got := q.run(t, p.at(), "SELECT n FROM generate_series(1, 5) n;\nSELECT 'not reached';", "-v", "ON_ERROR_STOP=1")
			got.want(t, 3, "result truncated")
			if got.out != three {
				t.Errorf("shown were\n%s", got.out)
			}
		})
		t.Run("goes on", func(t *testing.T) {
			got := q.run(t, p.at(), "SELECT n FROM generate_series(1, 5) n;\nSELECT 'reached';")
			got.want(t, 0, three, "result truncated", "reached")
		})
		t.Run("bytes", func(t *testing.T) {
			got := q.run(t, p.at(), "", "-At", "-c", "SELECT repeat(n::text, 900) FROM generate_series(1, 3) n")
			got.want(t, 1, "ERROR:  pgproxy: result truncated: max_bytes is 2000\nDETAIL:  Sent were 2 rows")
			if want := strings.Repeat("1", 900) + "\n" + strings.Repeat("2", 900) + "\n"; got.out != want {
				t.Errorf("shown were\n%s", got.out)
			}
		})
		t.Run("one large value", func(t *testing.T) {
			got := q.run(t, p.at(), "", "-At", "-c", "SELECT repeat('x', 5000)")
			got.want(t, 1, "max_bytes is 2000\nDETAIL:  Sent were 0 rows")
		})
		t.Run("FETCH_COUNT", func(t *testing.T) {
			got := q.run(t, p.at(), "\\set FETCH_COUNT 2\nSELECT n FROM generate_series(1, 9) n;\nSELECT 'reached';", "-At")
			got.want(t, 0, "max_rows is 3", "reached")
			// psql up to 16 shows no row of the FETCH that met the cap.
			if !strings.HasPrefix(got.out, "1\n2") || strings.Contains(got.out, "4") {
				t.Errorf("shown were\n%s", got.out)
			}
		})
		t.Run("lifted", func(t *testing.T) {
			got := q.run(t, p.at(), "SET pgproxy.max_rows = 4;\nSELECT n FROM generate_series(1, 9) n;\nRESET pgproxy.max_rows;\nSHOW pgproxy.max_rows;", "-At")
			got.want(t, 0, "max_rows is 4")
			if got.out != "SET\n1\n2\n3\n4\nRESET\n3\n" {
				t.Errorf("shown were\n%s", got.out)
			}
		})
		t.Run("at connect", func(t *testing.T) {
			got := q.run(t, p.at("PGOPTIONS=-c pgproxy.max_rows=5"), "SELECT n FROM generate_series(1, 9) n;", "-At")
			got.want(t, 0, "max_rows is 5")
			if got.out != "1\n2\n3\n4\n5\n" {
				t.Errorf("shown were\n%s", got.out)
			}
		})
	})
}

// TestPsqlWhoAmI requires that people are told who and where they are, and that
// the server knows them.
func TestPsqlWhoAmI(t *testing.T) {
	eachPsql(t, func(t *testing.T, q psql) {
		p := startProxy(t, func(srv *Server) { srv.QuietLogin = false })
		const stamp = "go-proxy tsnode=alice-laptop|user=alice@example.com"
		got := q.run(t, p.at("PGOPTIONS=-c pgproxy.reason=INC-123"), "SHOW application_name;\nSHOW pgproxy.reason;\n"+
			"SELECT application_name FROM pg_stat_activity WHERE pid = pg_backend_pid();\n"+
			"SELECT current_setting('pgproxy.user'), current_setting('pgproxy.node');", "-At")
		got.want(t, 0, "NOTICE:  pgproxy: you are alice@example.com, database app, write access, recorded\n")
		if want := stamp + "\nINC-123\n" + stamp + "\nalice@example.com|alice-laptop\n"; got.out != want {
			t.Errorf("psql showed:\n%v", got)
		}
		if n := strings.Count(got.errs, "NOTICE"); n != 1 {
			t.Errorf("%d notices:\n%v", n, got)
		}
		rec := p.records.await(t, "the last statement", func(r audit.Record) bool { return r.Event == audit.Query && r.Seq == 4 })
		if rec.Reason != "INC-123" || rec.Client != "psql" || rec.RequestedUser != "app" || rec.ApplicationName != stamp {
			t.Errorf("record: %+v", rec)
		}
	})
}

// TestPsqlTimeouts requires that a timeout says which limit it was and how to
// live with it, and leaves the session alive.
func TestPsqlTimeouts(t *testing.T) {
	q := anyPsql(t)
	p := startProxy(t, withRule(func(r *policy.Rule) { r.StatementTimeout, r.MayLift = 100*time.Millisecond, true }))
	got := q.run(t, p.at(), "SELECT pg_sleep(60);\nSELECT 'alive';")
	got.want(t, 0, "ERROR:  canceling statement due to statement timeout (pgproxy's statement_timeout is 100ms)\nHINT:  Make the statement cheaper. SET pgproxy.statement_timeout = '400ms' raises it for this session.", "alive")

	got = q.run(t, p.at(), "SET pgproxy.statement_timeout = '1min';\nSELECT 'slept', pg_sleep(0.3);\nRESET pgproxy.statement_timeout;\nSELECT pg_sleep(60);")
	got.want(t, 0, " slept ", "is 100ms")
}

// TestPsqlSettings requires that settings given at connect are judged as the
// same SET would be.
func TestPsqlSettings(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	eachPsql(t, func(t *testing.T, q psql) {
		p := startProxy(t)
		for _, c := range []struct {
			env, script string
			code        int
			piece       string
		}{
			{"PGOPTIONS=-c search_path=psql", "SHOW search_path;", 0, " psql"},
			{"PGOPTIONS=-csearch_path=psql --lock-timeout=7s", "SHOW search_path; SHOW lock_timeout;", 0, " 7s"},
			{"PGOPTIONS=-c search_path=a\\ b", "SHOW search_path;", 2, "invalid value for parameter"},
			{"PGTZ=Pacific/Auckland", "SHOW timezone;", 0, "Pacific/Auckland"},
			{"PGDATESTYLE=SQL, DMY", "SHOW datestyle; SELECT date '2026-12-31';", 0, "31/12/2026"},
			{"PGGEQO=off", "SHOW geqo;", 0, "off"},
			{"PGCLIENTENCODING=UTF8", "SHOW client_encoding;", 0, "UTF8"},
			{"PGCLIENTENCODING=LATIN1", "", 2, "HINT:  Unset PGCLIENTENCODING"},
			{"PGOPTIONS=-c statement_timeout=0", "", 2, "statement_timeout"},
			{"PGOPTIONS=-c role=postgres", "", 2, "role"},
			{"PGOPTIONS=-c default_transaction_read_only=off", "", 2, "default_transaction_read_only"},
			{"PGOPTIONS=-c pgproxy.max_rows=0", "", 2, "may_lift"},
			{"PGOPTIONS=-c no_such_setting=1", "", 2, `unrecognized configuration parameter "no_such_setting"`},
			{"PGOPTIONS=-d 5", "", 2, `option "-d" is not accepted`},
		} {
			t.Run(c.env, func(t *testing.T) { q.run(t, p.at(c.env), c.script).want(t, c.code, c.piece) })
		}
	})
	p := startProxy(t)
	for options, code := range map[string]string{
		"-c statement_timeout=0":  codeInsufficientPriv,
		"-c no_such_setting=1":    codeUndefinedObject,
		"-c application_name=bob": codeInsufficientPriv,
	} {
		c := p.dial(t, "127.0.0.1")
		c.send(startupPacket(protocol3, "user", "x", "options", options))
		if said := c.ended(); !strings.Contains(said, "E("+code) {
			t.Errorf("options %q: %s, want %s", options, said, code)
		}
	}
}

// TestPsqlDatabases requires that the served databases can be had, and no
// others.
func TestPsqlDatabases(t *testing.T) {
	q := anyPsql(t)
	p := startProxy(t)
	q.run(t, p.at(), "SELECT current_database();\n\\c postgres\nSELECT current_database();\n\\c - - - -\n", "-At").
		want(t, 0, "app\n", `You are now connected to database "postgres"`, "postgres\n")
	q.run(t, p.at(), "", "-d", "template1").want(t, 2, `FATAL:  pgproxy: database "template1" is not served`, "HINT:  Served to you: app, postgres.")
	q.run(t, p.at(), "\\conninfo").want(t, 0, `database "app" as user "app"`, `host "127.0.0.1"`)
	q.run(t, p.at("PGUSER=nobody"), "SELECT current_user, current_database();", "-At").want(t, 0, "app|app")

	term := q.interactive(t, p.at())
	term.expect("app=>")
	term.enter(`\c template1`)
	term.expect("is not served")
	term.expect("Previous connection kept")
	term.enter("SELECT 'kept ' || current_database();")
	term.expect("kept app")
}

// TestPsqlNotify requires that one session hears of another's NOTIFY.
func TestPsqlNotify(t *testing.T) {
	q := anyPsql(t)
	p := startProxy(t)
	term := q.interactive(t, p.at())
	term.enter("LISTEN psql_news;")
	term.expect("LISTEN\r\n")
	q.run(t, p.at(), "NOTIFY psql_news, 'it is here';").want(t, 0, "NOTIFY")
	term.enter("SELECT 1;")
	term.expect(`Asynchronous notification "psql_news" with payload "it is here" received from server process with PID`)
}

// TestPsqlInterrupt presses Ctrl-C.
func TestPsqlInterrupt(t *testing.T) {
	eachPsql(t, func(t *testing.T, q psql) {
		p := startProxy(t)
		term := q.interactive(t, p.at())
		p.interrupt(t, term)
	})
}

// interrupt presses Ctrl-C on a running statement, alone and in a
// transaction, and requires that the next is not hit.
func (p *proxy) interrupt(t *testing.T, term *terminal) {
	t.Helper()
	for _, status := range []string{"=>", "=*>"} {
		if status == "=*>" {
			term.enter("BEGIN;")
		}
		term.expect("app" + status)
		term.enter("SELECT pg_sleep(10);")
		p.awaitActive(t, "SELECT pg_sleep(10);")
		began := time.Now()
		term.Press(ctrlC)
		term.expect("ERROR:  canceling statement due to user request")
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("Ctrl-C took %v", took)
		}
	}
	term.expect("app=!>")
	term.enter("ROLLBACK;")
	term.expect("app=>")
	term.enter("SELECT 'unharmed', pg_sleep(0.3);")
	term.expect("unharmed |")
	p.records.await(t, "a cancel", func(r audit.Record) bool { return r.Event == audit.Cancel && r.Cancelled })
	p.records.await(t, "a cancelled result", func(r audit.Record) bool {
		return r.Event == audit.Result && r.Cancelled && r.SQLState == codeQueryCanceled
	})
}

// TestPsqlWatch ends a \watch by Ctrl-C, and by its count where psql has one.
func TestPsqlWatch(t *testing.T) {
	eachPsql(t, func(t *testing.T, q psql) {
		p := startProxy(t)
		term := q.interactive(t, p.at())
		term.expect("app=>")
		term.enter(`SELECT 'watched' AS w \watch 0.1`)
		for range 3 {
			term.expect(" watched")
		}
		term.Press(ctrlC)
		term.expect("app=>")
		term.enter("SELECT 'and on';")
		term.expect(" and on")
		if q.major >= 16 {
			got := q.run(t, p.at(), `SELECT 'counted' \watch i=0.05 c=3`, "-At")
			if n := strings.Count(got.out, "counted"); n != 3 {
				t.Errorf("%d times:\n%v", n, got)
			}
		}
	})
}

// TestPsqlTLS connects with every sslmode, with and without TLS on the proxy.
// psql sends its cancel request in plaintext either way.
func TestPsqlTLS(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	config, ca := serverTLS(t)
	with := func(srv *Server) { srv.TLS = config }
	must := func(srv *Server) { srv.TLS, srv.RequireTLS = config, true }
	none := func(*Server) {}
	eachPsql(t, func(t *testing.T, q psql) {
		for _, c := range []struct {
			server, mode string
			option       func(*Server)
			encrypted    bool
			refusal      string
		}{
			{"off", "disable", none, false, ""},
			{"off", "prefer", none, false, ""},
			{"off", "require", none, false, "server does not support SSL, but SSL was required"},
			{"on", "disable", with, false, ""},
			{"on", "prefer", with, true, ""},
			{"on", "require", with, true, ""},
			{"on", "verify-full", with, true, ""},
			{"required", "disable", must, false, "FATAL:  pgproxy: TLS is required\nHINT:  Use sslmode=require or stricter."},
			{"required", "prefer", must, true, ""},
		} {
			t.Run(c.server+" "+c.mode, func(t *testing.T) {
				p := startProxy(t, c.option)
				to := p.at("PGSSLMODE="+c.mode, "PGSSLROOTCERT="+ca)
				got := q.run(t, to, "\\conninfo\nSELECT 'connected';")
				if c.refusal != "" {
					got.want(t, 2, c.refusal)
					return
				}
				got.want(t, 0, " connected\n")
				if strings.Contains(got.out, "TLSv1") != c.encrypted {
					t.Errorf("psql showed:\n%v", got)
				}
			})
		}
		t.Run("interrupt", func(t *testing.T) {
			p := startProxy(t, must)
			p.interrupt(t, q.interactive(t, p.at("PGSSLMODE=require")))
		})
		t.Run("direct", func(t *testing.T) {
			if q.major < 17 {
				t.Skipf("psql %d has no sslnegotiation", q.major)
			}
			p := startProxy(t, must)
			to := p.at("PGSSLMODE=verify-full", "PGSSLROOTCERT="+ca, "PGSSLNEGOTIATION=direct")
			q.run(t, to, `\conninfo`).want(t, 0, "TLSv1.3")
		})
		t.Run("one refusal", func(t *testing.T) {
			p := startProxy(t, with, func(srv *Server) {
				srv.Rules = func(policy.Caller) (policy.Rule, error) {
					return policy.Rule{}, &policy.Refusal{Code: codeInvalidAuthorization, Message: "pgproxy: not you"}
				}
			})
			got := q.run(t, p.at("PGSSLMODE=prefer"), "")
			got.want(t, 2, "FATAL:  pgproxy: not you")
			if n := strings.Count(got.errs, "not you"); n != 1 {
				t.Errorf("psql tried %d times", n)
			}
		})
	})
}

// awaitActive waits until the server runs a statement of exactly this text.
func (p *proxy) awaitActive(t testing.TB, sql string) {
	t.Helper()
	const active = `SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query = `
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		if len(upstreamtest.Shared(t).Exec(t, active+policy.QuoteLiteral(sql))) > 0 {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("the server does not run %s", sql)
}

// interactive runs psql in a terminal until the test ends.
func (q psql) interactive(t testing.TB, to connection) *terminal {
	t.Helper()
	return inTerminal(t, q.command(context.Background(), to))
}

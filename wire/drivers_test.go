package wire

import (
	"context"
	"crypto/tls"
	"database/sql"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgproxy/policy"
	"pgproxy/upstream/upstreamtest"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/lib/pq"
)

// driverTables are what the drivers work on.
const driverTables = `
DROP SCHEMA IF EXISTS drivers CASCADE; CREATE SCHEMA drivers AUTHORIZATION app; SET ROLE app;
CREATE TABLE drivers.t (id int PRIMARY KEY, name text, day date);
INSERT INTO drivers.t VALUES (1, 'one', '2026-01-01'), (2, NULL, NULL);`

func (p *proxy) url() string { return "postgres://x@" + p.addr + "/app?sslmode=disable" }

// wantCode requires a PostgreSQL error of pgx's.
func wantCode(t *testing.T, err error, code, message string) {
	t.Helper()
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	if !ok || pgErr.Code != code || !strings.Contains(pgErr.Message, message) {
		t.Errorf("error %v, want %s: %s", err, code, message)
	}
}

func connectPgx(t *testing.T, p *proxy, mode pgx.QueryExecMode) *pgx.Conn {
	t.Helper()
	config, err := pgx.ParseConfig(p.url())
	if err != nil {
		t.Fatal(err)
	}
	config.DefaultQueryExecMode = mode
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// TestPgx runs pgx in the mode that the hint tells people to use.
func TestPgx(t *testing.T) {
	upstreamtest.Shared(t).Exec(t, driverTables)
	p := startProxy(t, withRule(func(r *policy.Rule) { r.MaxRows = 100 }))
	ctx := t.Context()
	conn := connectPgx(t, p, pgx.QueryExecModeSimpleProtocol)

	const quoted = `it's "quoted" \ and ; -- more`
	var n int
	var text string
	var day time.Time
	err := conn.QueryRow(ctx, "SELECT $1::int + $2::int, $3::text, $4::date", 40, 2, quoted, time.Date(2026, 2, 3, 0, 0, 0, 0, time.UTC)).Scan(&n, &text, &day)
	if err != nil || n != 42 || text != quoted || day.Day() != 3 {
		t.Errorf("%d, %q, %v, %v", n, text, day, err)
	}

	tx, err := conn.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	tag, err := tx.Exec(ctx, "UPDATE drivers.t SET name = $1 WHERE id = $2", "eins", 1)
	if err != nil || tag.RowsAffected() != 1 {
		t.Errorf("%v, %v", tag, err)
	}
	if err := tx.Commit(ctx); err != nil {
		t.Error(err)
	}
	holds(t, "SELECT name FROM drivers.t WHERE id = 1", "eins")

	batch := &pgx.Batch{}
	batch.Queue("INSERT INTO drivers.t VALUES ($1, $2)", 3, "three")
	batch.Queue("SELECT count(*) FROM drivers.t")
	results := conn.SendBatch(ctx, batch)
	if _, err := results.Exec(); err != nil {
		t.Error(err)
	}
	if err := results.QueryRow().Scan(&n); err != nil || n != 3 {
		t.Errorf("%d, %v", n, err)
	}
	if err := results.Close(); err != nil {
		t.Error(err)
	}

	rows, err := conn.Query(ctx, "SELECT generate_series(1, 1000)")
	if err != nil {
		t.Fatal(err)
	}
	for n = 0; rows.Next(); n++ {
	}
	wantCode(t, rows.Err(), "54000", "max_rows is 100")
	if n != 100 {
		t.Errorf("%d rows before the cap", n)
	}
	_, err = conn.CopyFrom(ctx, pgx.Identifier{"drivers", "t"}, []string{"id"}, pgx.CopyFromRows([][]any{{9}}))
	wantCode(t, err, codeFeatureNotSupported, "unsupported message (use simple protocol)") // it asks for the columns' types first
	if err := conn.QueryRow(ctx, "SELECT 7").Scan(&n); err != nil || n != 7 {
		t.Errorf("after the refusals: %d, %v", n, err)
	}
}

// TestPgxExtended requires that a driver in another mode is told so, and can
// go on in the right one on the same connection.
func TestPgxExtended(t *testing.T) {
	p := startProxy(t)
	ctx := t.Context()
	conn := connectPgx(t, p, pgx.QueryExecModeCacheStatement)
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec, pgx.QueryExecModeExec} {
		var n int
		err := conn.QueryRow(ctx, "SELECT $1::int", mode, 5).Scan(&n)
		wantCode(t, err, codeFeatureNotSupported, "unsupported message (use simple protocol)")
		if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && !strings.Contains(pgErr.Hint, "QueryExecModeSimpleProtocol") {
			t.Errorf("hint %q", pgErr.Hint)
		}
		if err := conn.QueryRow(ctx, "SELECT $1::int", pgx.QueryExecModeSimpleProtocol, 6).Scan(&n); err != nil || n != 6 {
			t.Errorf("%v, then simple: %d, %v", mode, n, err)
		}
	}
	batch := &pgx.Batch{}
	batch.Queue("SELECT 1")
	batch.Queue("SELECT 2")
	wantCode(t, conn.SendBatch(ctx, batch).Close(), codeFeatureNotSupported, "unsupported message (use simple protocol)")
	if err := conn.Ping(ctx); err != nil {
		t.Error(err)
	}
}

// TestLibPQ runs lib/pq, which speaks the simple protocol as long as a query
// has no arguments.
func TestLibPQ(t *testing.T) {
	upstreamtest.Shared(t).Exec(t, driverTables)
	p := startProxy(t)
	ctx := t.Context()
	db, err := sql.Open("postgres", p.url())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	conn, err := db.Conn(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()

	var name string
	if err := conn.QueryRowContext(ctx, "SELECT name FROM drivers.t WHERE id = 1").Scan(&name); err != nil || name != "one" {
		t.Errorf("%q, %v", name, err)
	}
	err = conn.QueryRowContext(ctx, "SELECT name FROM drivers.t WHERE id = $1", 1).Scan(&name)
	if pqErr, ok := errors.AsType[*pq.Error](err); !ok || string(pqErr.Code) != codeFeatureNotSupported || !strings.Contains(pqErr.Message, "use simple protocol") {
		t.Errorf("with an argument: %v", err)
	}
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.ExecContext(ctx, "UPDATE drivers.t SET name = 'uno' WHERE id = 1"); err != nil {
		t.Error(err)
	}
	if _, err := tx.ExecContext(ctx, "DROP TABLE drivers.t"); err == nil || !strings.Contains(err.Error(), "DROP TABLE is refused") {
		t.Errorf("DROP TABLE: %v", err)
	}
	if err := tx.Commit(); err == nil {
		t.Error("a failed transaction was committed")
	}
	holds(t, "SELECT name FROM drivers.t WHERE id = 1", "one")
	if err := conn.PingContext(ctx); err != nil {
		t.Error(err)
	}
}

// tool runs one of PostgreSQL's programs.
func (p *proxy) tool(t *testing.T, name string, args ...string) shown {
	t.Helper()
	in := upstreamtest.Shared(t).Install
	path := filepath.Join(in.Bin, name)
	if _, err := os.Stat(path); err != nil {
		if path, err = exec.LookPath(name); err != nil {
			t.Skip(err)
		}
	}
	host, port, _ := net.SplitHostPort(p.addr)
	return run(t, append(in.Env(), "PGHOST="+host, "PGPORT="+port, "PGUSER=app"), path, args...)
}

// run runs a program to its end.
func run(t *testing.T, env []string, path string, args ...string) shown {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = env
	return finish(t, cmd)
}

// TestPgbench runs pgbench's own scripts, reading and writing.
func TestPgbench(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	pg := upstreamtest.Shared(t)
	pg.Exec(t, `DROP DATABASE IF EXISTS bench`)
	pg.Exec(t, `CREATE DATABASE bench OWNER app`)
	t.Cleanup(func() { pg.Exec(t, `DROP DATABASE bench WITH (FORCE)`) })
	bench, err := pg.Pgbench()
	if err != nil {
		t.Skip(err)
	}
	init := run(t, append(pg.Env(), "PGPASSWORD="+upstreamtest.Password), bench, "-q", "-i", "-h", pg.SocketDir, "-p", strings.Split(pg.Addr(), ":")[1], "-U", "app", "bench")
	init.want(t, 0)

	p := startProxy(t, func(srv *Server) { srv.Databases = []string{"bench"} })
	p.tool(t, "pgbench", "-n", "-M", "simple", "-S", "-c", "3", "-t", "50", "bench").
		want(t, 0, "number of transactions actually processed: 150/150", "number of failed transactions: 0 ")
	p.tool(t, "pgbench", "-n", "-M", "simple", "-c", "3", "-t", "20", "bench").
		want(t, 0, "number of transactions actually processed: 60/60", "number of failed transactions: 0 ")
	rows := pg.ExecAs(t, "postgres", "bench", "SELECT count(*) FROM pgbench_history UNION ALL SELECT sum(delta) - (SELECT sum(abalance) FROM pgbench_accounts) FROM pgbench_history")
	if len(rows) != 2 || rows[0][0] != "60" || rows[1][0] != "0" {
		t.Errorf("60 transactions left %v", rows)
	}
	p.tool(t, "pgbench", "-n", "-M", "prepared", "-S", "-t", "1", "bench").
		want(t, 2, "ERROR:  pgproxy: unsupported message (use simple protocol)")
	p.tool(t, "pgbench", "-q", "-i", "bench").want(t, 1, "ERROR:  pgproxy: DROP TABLE is refused")
}

// TestPgIsready requires that the proxy answers it as a server does.
func TestPgIsready(t *testing.T) {
	p := startProxy(t)
	p.tool(t, "pg_isready").want(t, 0, "accepting connections")
}

// TestPgDump requires that pg_dump is told what it cannot have: at write
// access by its first protected setting, as an admin by its COPY. Without the
// data an admin's dump is whole.
func TestPgDump(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	upstreamtest.Shared(t).Exec(t, driverTables)
	p := startProxy(t)
	atWrite := p.tool(t, "pg_dump", "-n", "drivers", "app")
	if strings.Contains(atWrite.errs, "server version mismatch") {
		t.Skip("this machine's pg_dump is older than its server")
	}
	atWrite.want(t, 1, "pg_dump: error: ", "ERROR:  pgproxy: ", "statement_timeout")

	admin := startProxy(t, withRule(func(r *policy.Rule) { r.Access = policy.Admin }))
	admin.tool(t, "pg_dump", "-n", "drivers", "app").want(t, 1, "COPY TO STDOUT is not supported")
	admin.tool(t, "pg_dump", "-n", "drivers", "--schema-only", "app").want(t, 0, "CREATE TABLE drivers.t", "PostgreSQL database dump complete")
	admin.tool(t, "pg_dump", "-n", "drivers", "--inserts", "app").want(t, 0, "INSERT INTO drivers.t VALUES (1, 'one', '2026-01-01');")
}

const psycopg2Script = `
import psycopg2, sys
conn = psycopg2.connect(sys.argv[1])
cur = conn.cursor()
cur.execute("SELECT %s + 1, %s", (41, "it's"))
print("row", cur.fetchone())
cur.execute("UPDATE drivers.t SET name = %s WHERE id = %s", ("psycopg2", 1))
conn.commit()
try:
    cur.execute("DROP TABLE drivers.t")
except psycopg2.Error as e:
    print("refused", e.pgcode, e.diag.message_primary)
conn.rollback()
try:
    cur.copy_expert("COPY drivers.t TO STDOUT", sys.stdout)
except psycopg2.Error as e:
    print("copy", e.pgcode)
conn.rollback()
cur.execute("SELECT name FROM drivers.t WHERE id = 1")
print("then", cur.fetchone()[0])
`

// Up to 3.1, psycopg 3 begins its transactions by the extended protocol.
const psycopg3Script = `
import psycopg, sys
conn = psycopg.connect(sys.argv[1], cursor_factory=psycopg.ClientCursor, autocommit=True)
cur = conn.cursor()
cur.execute("SELECT %s + 1, %s", (41, "it's"))
print("row", cur.fetchone())
cur.execute("UPDATE drivers.t SET name = %s WHERE id = %s", ("psycopg3", 1))
try:
    psycopg.Cursor(conn).execute("SELECT %s", (1,))
except psycopg.Error as e:
    print("refused", e.sqlstate, e.diag.message_primary)
cur.execute("SELECT name FROM drivers.t WHERE id = 1")
print("then", cur.fetchone()[0])
`

// TestPsycopg runs Python's drivers where the machine has them.
func TestPsycopg(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	upstreamtest.Shared(t).Exec(t, driverTables)
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip(err)
	}
	p := startProxy(t)
	for _, driver := range []struct{ module, script, refused string }{
		{"psycopg2", psycopg2Script, "refused 42501 pgproxy: DROP TABLE is refused\ncopy 0A000\n"},
		{"psycopg", psycopg3Script, "refused 0A000 pgproxy: unsupported message (use simple protocol)\n"},
	} {
		t.Run(driver.module, func(t *testing.T) {
			if exec.Command(python, "-c", "import "+driver.module).Run() != nil {
				t.Skipf("python3 has no module %s", driver.module)
			}
			got := run(t, os.Environ(), python, "-c", driver.script, p.url())
			got.want(t, 0, `row (42, "it's")`+"\n"+driver.refused)
		})
	}
}

const nodeScript = `
const { Client } = require('pg')
const main = async () => {
  const client = new Client({ connectionString: process.argv[1] })
  await client.connect()
  console.log('row', (await client.query("SELECT 42 AS n, 'it''s' AS s")).rows[0])
  await client.query('BEGIN')
  await client.query("UPDATE drivers.t SET name = 'node' WHERE id = 1")
  await client.query('COMMIT')
  await client.query('SELECT $1::int', [1]).catch(e => console.log('refused', e.code, e.message))
  await client.query('DROP TABLE drivers.t').catch(e => console.log('refused', e.code, e.message))
  console.log('then', (await client.query('SELECT name FROM drivers.t WHERE id = 1')).rows[0].name)
  await client.end()
}
main().catch(e => { console.error(e); process.exit(1) })
`

// TestNodePostgres runs node-postgres where the machine has it.
func TestNodePostgres(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	upstreamtest.Shared(t).Exec(t, driverTables)
	node, err := exec.LookPath("node")
	if err != nil {
		t.Skip(err)
	}
	if exec.Command(node, "-e", "require('pg')").Run() != nil {
		t.Skip("node has no module pg")
	}
	p := startProxy(t)
	got := run(t, os.Environ(), node, "-e", nodeScript, p.url())
	got.want(t, 0, `row { n: 42, s: "it's" }`+"\n", "refused 0A000 pgproxy: unsupported message (use simple protocol)\n",
		"refused 42501 pgproxy: DROP TABLE is refused\n", "then node\n")
}

// serverTLS is a configuration for clients, and the file of the authority
// that they may trust.
func serverTLS(t testing.TB) (config *tls.Config, caFile string) {
	t.Helper()
	dir := t.TempDir()
	caFile = filepath.Join(dir, "ca.crt")
	cert, key := filepath.Join(dir, "cert"), filepath.Join(dir, "key")
	if err := upstreamtest.MakeCertificate(caFile, cert, key); err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"postgresql"}}, caFile
}

package wire

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"pgproxy/policy"
	"pgproxy/upstream/upstreamtest"
)

// regressFiles are those of PostgreSQL's regression tests that do without its
// library of C functions, and whose output is the same on every server. Each
// may need what those before it have left behind.
var regressFiles = strings.Fields(`test_setup
	boolean char name varchar text int2 int4 int8 oid float4 float8 bit numeric uuid enum money rangetypes
	pg_lsn regproc strings numerology date time timetz timestamp timestamptz interval horology inet macaddr
	expressions unicode xid txid arrays json jsonb jsonpath jsonb_jsonpath xml
	create_type create_table create_function_sql create_aggregate create_operator create_procedure create_view
	constraints triggers inherit select_into select_distinct select_implicit select_having subselect union case
	join aggregates transactions random portals update delete namespace prepared_xacts prepare plancache
	limit plpgsql truncate alter_table sequence polymorphism rowtypes returning with window groupingsets
	domain rangefuncs insert insert_conflict identity generated merge updatable_views rules
	matview lock replica_identity rowsecurity object_address privileges guc errors temp select tsrf tid combocid
	create_schema typed_table event_trigger conversion psql_crosstab async
	comments misc_functions dependency password create_index vacuum`)

// guardedFiles are those that change rows in many ways.
var guardedFiles = strings.Fields(`test_setup triggers inherit subselect transactions portals update delete prepare
	plancache plpgsql returning with insert insert_conflict identity generated merge updatable_views rules rowsecurity
	truncate temp errors`)

// TestRegress has psql run PostgreSQL's own regression SQL, through the proxy
// and straight to another server of the same making, and requires that it
// shows the same, to the byte.
func TestRegress(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	regressions(t, policy.Rule{Access: policy.Admin, Where: policy.WhereFree}, regressFiles)
}

// TestRegressGuarded does the same with caps that are never reached: what the
// proxy wraps around statements that change rows is not to be seen.
func TestRegressGuarded(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	const never = 1 << 40
	regressions(t, policy.Rule{Access: policy.Admin, Where: policy.WhereFree, MaxRows: never, MaxBytes: never, MaxAffectedRows: never,
		StatementTimeout: time.Hour, IdleInTransactionTimeout: time.Hour}, guardedFiles)
}

func regressions(t *testing.T, rule policy.Rule, files []string) {
	r := startRegress(t, rule)
	other := connection{startMajor(t, regressMajor, regressSettings...).Addr(), r.env}
	for _, name := range files {
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(r.file(name))
			if err != nil {
				t.Fatal(err)
			}
			script := speakable(string(text))
			var want, got string
			var both sync.WaitGroup
			both.Go(func() { want = alike(r.run(t, other, script)) })
			both.Go(func() { got = alike(r.run(t, r.proxy.at(r.env...), script)) })
			both.Wait()
			if line, w, g := firstDifference(want, got); line > 0 {
				t.Errorf("line %d:\n got %s\nwant %s", line, g, w)
			}
		})
	}
}

// TestRegressRefused has psql run files that are full of what the proxy does
// not speak: COPY with its data, \gdesc, large objects by function call. What
// comes of it is not compared, but the session outlives it.
func TestRegressRefused(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	r := startRegress(t, policy.Rule{Access: policy.Admin, Where: policy.WhereFree})
	dir := t.TempDir()
	before, after := filepath.Join(dir, "before.sql"), filepath.Join(dir, "after.sql")
	write(t, before, "SELECT pg_backend_pid() AS pid \\gset\n")
	write(t, after, "\\o\nROLLBACK;\nRESET SESSION AUTHORIZATION;\nSELECT 'same session' AS \"The end\" WHERE pg_backend_pid() = :pid;\n")
	for _, name := range strings.Fields("test_setup copy copy2 copyselect copydml largeobject psql") {
		got := r.run(t, r.proxy.at(r.env...), "", "-f", before, "-f", r.file(name), "-f", after)
		if !strings.Contains(got, "\n same session\n(1 row)") {
			t.Errorf("%s ends with\n%s", name, got[max(0, len(got)-2000):])
		}
	}
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// regressMajor is the version that the SQL is of.
const regressMajor = 15

var regressSettings = []upstreamtest.Option{
	upstreamtest.Set("autovacuum", "off"), // or plans differ
	upstreamtest.Set("jit", "off"),
	upstreamtest.Set("max_prepared_transactions", "2"),
}

// regress is a proxy with all its guardrails off, for regression SQL.
type regress struct {
	dir   string
	psql  psql
	proxy *proxy
	env   []string
}

func startRegress(t *testing.T, rule policy.Rule) *regress {
	t.Helper()
	r := &regress{dir: filepath.Join(upstreamtest.CacheDir(), "regress", "15")}
	if _, err := os.Stat(r.dir); err != nil {
		t.Skip("no regression SQL on this machine; .ci/regress gets it")
	}
	server := startMajor(t, regressMajor, regressSettings...)
	path, err := server.Psql()
	if err != nil {
		t.Skip(err)
	}
	r.psql = psqlAt(t, path)
	r.proxy = startProxyTo(t, server.SocketDSN("postgres", "app"), withRule(func(r *policy.Rule) { *r = rule }), func(srv *Server) { srv.Logger = slog.New(slog.DiscardHandler) })
	// As pg_regress has it. There are no C functions.
	r.env = []string{"PGUSER=postgres", "PGDATABASE=app", "PGPASSWORD=" + upstreamtest.Password,
		"PGTZ=PST8PDT", "PGDATESTYLE=Postgres, MDY", "PGOPTIONS=-c intervalstyle=postgres_verbose",
		"PG_ABS_SRCDIR=" + r.dir, "PG_ABS_BUILDDIR=" + t.TempDir(), "PG_LIBDIR=/none", "PG_DLSUFFIX=.so"}
	return r
}

func (r *regress) file(name string) string { return filepath.Join(r.dir, "sql", name+".sql") }

// run returns all that psql shows of a script, errors among the rest.
func (r *regress) run(t *testing.T, to connection, script string, args ...string) string {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := r.psql.command(ctx, to, append(args, "-a", "-q", "-v", "VERBOSITY=verbose")...)
	cmd.Stdin = strings.NewReader(script)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Errorf("psql: %v", err)
	}
	return out.String()
}

var (
	copyStdio = regexp.MustCompile(`(?i)^copy\b[^;]*\b(stdin|stdout)\b[^;]*;`)
	sameXID   = regexp.MustCompile(`(?m)^SELECT a.xmin = b.xmin .*;`) // a savepoint has a transaction ID of its own
	pinnedSet = regexp.MustCompile(`(?im)^(re)?set standard_conforming_strings.*;`)
)

// speakable leaves out of a script what the proxy refuses to everybody, and
// what may differ.
func speakable(script string) string {
	var b strings.Builder
	script = sameXID.ReplaceAllString(pinnedSet.ReplaceAllString(script, ""), "")
	for rest := script; rest != ""; {
		if statement := copyStdio.FindString(rest); statement != "" {
			rest = withoutData(rest[len(statement):])
			continue
		}
		line, after, _ := strings.Cut(rest, "\n")
		b.WriteString(line + "\n")
		rest = after
	}
	return b.String()
}

// withoutData removes the data of a COPY, where the script has any: lines up
// to \. before those of the next statement.
func withoutData(script string) string {
	before, after, found := strings.Cut(script, "\n\\.\n")
	if !found || strings.Contains(before, ";\n") {
		return script
	}
	return after
}

var (
	tempSchema    = regexp.MustCompile(`\bpg_temp_\d+`) // the number is the backend's
	shownError    = regexp.MustCompile(`^ERROR:  [0-9A-Z]{5}: `)
	shownExtra    = regexp.MustCompile(`^(DETAIL|HINT):  `)
	shownLocation = regexp.MustCompile(`^LOCATION:  \w+, ([\w.]+):\d+$`)
)

// alike takes out of what psql shows, VERBOSITY being verbose, what an
// error of the proxy's own lacks: the place in PostgreSQL's source, and where
// a text cannot be read the finer code, detail and hint, which the parser
// library does not tell. What a newer grammar refuses by itself is a syntax
// error, too.
func alike(shown string) string {
	shown = tempSchema.ReplaceAllString(shown, "pg_temp_0")
	shown = strings.ReplaceAll(shown, "ERROR:  22023: unrecognized partitioning strategy", "ERROR:  42601: unrecognized partitioning strategy")
	var lines []string
	for line := range strings.Lines(shown) {
		m := shownLocation.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if m == nil {
			lines = append(lines, line)
			continue
		}
		if m[1] != "gram.y" && m[1] != "scan.l" && m[1] != "parser.c" {
			continue
		}
		for shownExtra.MatchString(lines[len(lines)-1]) {
			lines = lines[:len(lines)-1]
		}
		for i := len(lines) - 1; i >= max(0, len(lines)-4); i-- {
			if shownError.MatchString(lines[i]) {
				lines[i] = shownError.ReplaceAllString(lines[i], "ERROR:  42601: ")
				break
			}
		}
	}
	return strings.Join(lines, "")
}

// firstDifference returns the first line in which two texts differ, 0 for
// none.
func firstDifference(want, got string) (line int, w, g string) {
	a, b := strings.Split(want, "\n"), strings.Split(got, "\n")
	a, b = append(a, "(end)"), append(b, "(end)")
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i + 1, a[i], b[i]
		}
	}
	return 0, "", ""
}

// TestGuardedMessages sends messages that begin and end transactions on their
// way, straight to the server and through the affected-rows guard, and
// requires the same answers and the same rows.
func TestGuardedMessages(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	pg := upstreamtest.Shared(t)
	pg.Exec(t, "DROP SCHEMA IF EXISTS guarded CASCADE; CREATE SCHEMA guarded AUTHORIZATION app")
	p := startProxy(t, withRule(func(r *policy.Rule) { r.MaxAffectedRows = 5; r.Access = policy.Admin }))
	here, there := directly(t, pg), p.login(t)
	for _, message := range []string{
		"INSERT INTO %s VALUES (1); COMMIT",
		"INSERT INTO %s VALUES (1); ROLLBACK",
		"INSERT INTO %s VALUES (1); COMMIT; INSERT INTO %[1]s VALUES (2)",
		"INSERT INTO %s VALUES (1); COMMIT; INSERT INTO %[1]s VALUES (2); COMMIT AND CHAIN",
		"INSERT INTO %s VALUES (1); ROLLBACK; INSERT INTO %[1]s VALUES (2); ROLLBACK AND CHAIN",
		"INSERT INTO %s VALUES (1); COMMIT AND CHAIN; INSERT INTO %[1]s VALUES (2)",
		"INSERT INTO %s VALUES (1); ROLLBACK AND CHAIN; INSERT INTO %[1]s VALUES (2)",
		"INSERT INTO %s VALUES (1); SAVEPOINT a; INSERT INTO %[1]s VALUES (2)",
		"INSERT INTO %s VALUES (1); RELEASE a",
		"INSERT INTO %s VALUES (1); ROLLBACK TO a",
		"COMMIT; INSERT INTO %s VALUES (1)",
		"ROLLBACK; INSERT INTO %s VALUES (1)",
		"SAVEPOINT a; INSERT INTO %s VALUES (1)",
		"COMMIT AND CHAIN; INSERT INTO %s VALUES (1)",
		"INSERT INTO %s VALUES (1); BEGIN; INSERT INTO %[1]s VALUES (2); ROLLBACK",
		"INSERT INTO %s VALUES (1); BEGIN; INSERT INTO %[1]s VALUES (2); COMMIT AND CHAIN; INSERT INTO %[1]s VALUES (3); ROLLBACK",
		"BEGIN; INSERT INTO %s VALUES (1); SAVEPOINT a; INSERT INTO %[1]s VALUES (2); ROLLBACK TO a; COMMIT",
		"BEGIN; INSERT INTO %s VALUES (1); COMMIT; INSERT INTO %[1]s VALUES (2); SELECT 1/0",
		"BEGIN; INSERT INTO %s VALUES (1); COMMIT; INSERT INTO %[1]s VALUES (2), (2); COMMIT; INSERT INTO %[1]s VALUES (3)",
		"INSERT INTO %s VALUES (1); SELECT 1/0; COMMIT",
		"INSERT INTO %s VALUES (1), (1); COMMIT; INSERT INTO %[1]s VALUES (2)",
		"INSERT INTO %s VALUES (1); SET LOCAL work_mem = '2MB'; SHOW work_mem",
		"INSERT INTO %s VALUES (1); LOCK TABLE %[1]s; DECLARE c CURSOR FOR TABLE %[1]s; FETCH c",
		"INSERT INTO %s VALUES (1); VACUUM",
		"INSERT INTO %s VALUES (1); DO 'BEGIN COMMIT; END'",
		"INSERT INTO %s VALUES (1); COMMIT; VACUUM %[1]s",
	} {
		pg.Exec(t, `SET ROLE app; DROP TABLE IF EXISTS guarded.a, guarded.b;
			CREATE TABLE guarded.a (n int UNIQUE DEFERRABLE INITIALLY DEFERRED); CREATE TABLE guarded.b (LIKE guarded.a INCLUDING ALL)`)
		want, got := here.query(fmt.Sprintf(message, "guarded.a")), there.query(fmt.Sprintf(message, "guarded.b"))
		// Of a COMMIT that fails the proxy does not tell that it was idle, too.
		want = strings.ReplaceAll(want, "N(25P01 there is no transaction in progress) E(23505 ", "E(23505 ")
		if got = strings.ReplaceAll(got, "b_n_key", "a_n_key"); got != want {
			t.Errorf("%s\n got %s\nwant %s", message, got, want)
		}
		if want[len(want)-2] != 'I' {
			here.query("ROLLBACK")
			there.query("ROLLBACK")
		}
		rows := pg.Exec(t, "SELECT ARRAY(TABLE guarded.a), ARRAY(TABLE guarded.b)")
		if rows[0][0] != rows[0][1] {
			t.Errorf("%s\n left %s\n want %s", message, rows[0][1], rows[0][0])
		}
	}
}

package wire

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"pgproxy/policy"
	"pgproxy/upstream/upstreamtest"
	"pgproxy/wire/audit"
	"pgproxy/wire/frame"
)

// watched starts a proxy whose callers may only read, before a login that may
// see what others do, as monitoring has it.
func watched(t *testing.T) *proxy {
	t.Helper()
	pg := upstreamtest.Shared(t)
	pg.Exec(t, driverTables)
	pg.Exec(t, `DROP ROLE IF EXISTS watcher; CREATE ROLE watcher LOGIN PASSWORD '`+upstreamtest.Password+`' IN ROLE pg_monitor, app`)
	return startProxyTo(t, pg.DSN("watcher", "app"), withRule(func(r *policy.Rule) { r.Access = policy.Read }))
}

// outsiderEnv is the environment of a program that knows the proxy as its
// server.
func (p *proxy) outsiderEnv(t *testing.T) []string {
	host, port, _ := net.SplitHostPort(p.addr)
	return append(os.Environ(), "PGHOST="+host, "PGPORT="+port, "PGUSER=watcher", "PGDATABASE=app", "PGPASSWORD=",
		"HOME="+t.TempDir(), "TERM=xterm", "LC_ALL=C.UTF-8", "COLUMNS=200", "LINES=50")
}

// outsider finds a program of somebody else's, or skips the test.
func outsider(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skip(err)
	}
	return path
}

// refusals are the statements that were not run as they came.
func (r *records) refusals() (list []string) {
	for _, rec := range r.all() {
		if rec.Event == audit.Query && rec.Verdict == "deny" || rec.Event == audit.Result && rec.SQLState != "" {
			list = append(list, rec.Rule+" "+rec.SQLState+": "+rec.SQL+rec.Error)
		}
	}
	return list
}

// TestCheckPostgres runs the checks of check_postgres that a login of
// pg_monitor's may make directly.
func TestCheckPostgres(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	path := outsider(t, "check_postgres")
	p := watched(t)
	for _, check := range [][]string{
		{"connection"}, {"backends"}, {"locks"}, {"query_time"}, {"txn_time"}, {"txn_idle"}, {"database_size", "--critical=1TB"},
		{"hitratio", "--critical=0%", "--warning=0%"}, {"autovac_freeze"}, {"txn_wraparound"}, {"bloat", "--critical=100GB", "--warning=100GB"}, {"timesync", "--critical=1000"},
		{"sequence"}, {"settings_checksum", "--critical=0"}, {"query_runtime", "--queryname=drivers.t"},
		{"custom_query", "--query=SELECT 1 AS result", "--valtype=integer", "--critical=5"},
	} {
		t.Run(check[0], func(t *testing.T) {
			_, port, _ := net.SplitHostPort(upstreamtest.Shared(t).Addr())
			direct := append(p.outsiderEnv(t), "PGPORT="+port, "PGPASSWORD="+upstreamtest.Password)
			args := append([]string{"--action=" + check[0]}, check[1:]...)
			want := run(t, direct, path, args...)
			got := run(t, p.outsiderEnv(t), path, args...)
			if got.code != want.code {
				t.Errorf("directly:\n%v\nthrough pgproxy:\n%v", want, got)
			}
			if want.code == 0 && !strings.Contains(got.out, " OK: ") {
				t.Errorf("got\n%v", got)
			}
		})
	}
	if list := p.records.refusals(); list != nil {
		t.Errorf("refused or failed: %q", list)
	}
}

// TestPgActivity looks at the running statements with pg_activity. The sizes of
// the server's temporary files, which it shows where it may, are an admin's.
func TestPgActivity(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	path := outsider(t, "pg_activity")
	p := watched(t)
	busy := p.login(t)
	busy.send(frame.AppendQuery(nil, "SELECT 'look at me', pg_sleep(20)"))
	cmd := exec.Command(path, "--refresh=0.5")
	cmd.Env = p.outsiderEnv(t)
	term := inTerminal(t, cmd)
	term.expect("look at me")
	term.Press("2")
	term.expect("WAITING QUERIES")
	term.Press("3")
	term.expect("BLOCKING QUERIES")
	term.Press("q")
	term.expectEnd()
	for _, refused := range p.records.refusals() {
		if !strings.Contains(refused, "pg_ls_tmpdir") {
			t.Errorf("refused or failed: %q", refused)
		}
	}
}

// TestPgcli reads with pgcli. From 3.5 it looks at the catalogue by the extended
// protocol: what a person types runs, \d and completion are told why not.
func TestPgcli(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	path := outsider(t, "pgcli")
	p := watched(t)
	home := t.TempDir()
	config := filepath.Join(home, "config")
	if err := os.WriteFile(config, []byte("[main]\npager = cat\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "--pgclirc", config, "--no-password", "--less-chatty", "--warn=off", "app")
	cmd.Env = p.outsiderEnv(t)
	term := inTerminal(t, cmd)
	term.expect("app>")
	for _, try := range []struct{ line, want string }{
		{`SELECT 'it is ' || 6 * 7 AS answer;`, "it is 42"},
		{`BEGIN;`, "BEGIN"},
		{`SELECT name FROM drivers.t WHERE id = 1;`, "SELECT 1"},
		{`COMMIT;`, "COMMIT"},
		{`SET statement_timeout = '400ms';`, "SET"},
		{`SELECT pg_sleep(10);`, "statement timeout"},
		{`DELETE FROM drivers.t;`, "DELETE is refused"},
	} {
		term.Press(try.line + "\r")
		term.expect("\n")
		term.expect(try.want)
	}
	if out, _ := exec.Command(path, "--version").Output(); !strings.Contains(string(out), " 3.4") {
		term.Press(`\d drivers.t` + "\r")
		term.expect("unsupported message (use simple protocol)")
	}
	term.Press("\\q\r")
	term.expectEnd()
}

package audit

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgproxy/policy"
	"pgproxy/upstream/upstreamtest"
)

var update = flag.Bool("update", false, "write psql.tsv anew, from every psql and server on this machine")

// some is how much of the lists below a test tries that does not write psql.tsv:
// all of it takes minutes.
func some[T any](list []T, n int) []T {
	if *update {
		return list
	}
	return list[:n]
}

// backslashes are psql's commands that ask the catalogue, each tried plain and
// with + and S and both, and with the arguments.
var backslashes = []string{
	"d", "da", "dA", "dAc", "dAf", "dAo", "dAp", "db", "dc", "dconfig", "dC", "dd", "dD", "ddp", "dE", "de", "des", "det", "deu", "dew",
	"df", "dfa", "dfn", "dfp", "dft", "dfw", "dF", "dFd", "dFp", "dFt", "dg", "di", "dl", "dL", "dm", "dn", "do", "dO", "dp", "dP", "dPi", "dPt", "dPn",
	"drds", "drg", "dRp", "dRs", "ds", "dt", "dti", "dtv", "dtvms", "dT", "du", "dv", "dx", "dX", "dy", "l", "lo_list", "sf", "sv", "z",
}

var arguments = []string{
	"", "orders", "public.orders", "*", "crm.*", "app.public.orders", "none",
	"customers", "special_orders", "events", "events_2026", "events_at", "orders_state", "open_orders", "totals", "numbers", "orders_id_seq", "remote", "pair", "mood",
	"twice", "twice(int)", "twice int", "public.twice", "public.twice(int)", "stamp", "===", "=== int int", "btree", "btree int", "file_fdw", "news", "work_mem", "app",
	"pg_catalog.pg_class", "pg_toast.pg_toast_1255", "orders_pkey",
}

// words are the beginnings of statements that psql completes.
var words = []string{
	"SELECT * FROM ", "SELECT * FROM orders JOIN ", "TABLE ", "INSERT INTO ", "INSERT INTO orders (", "UPDATE ", "UPDATE orders SET ", "DELETE FROM ", "MERGE INTO ",
	"MERGE INTO orders USING ", "TRUNCATE ", "COPY ", "LOCK ", "CALL ", "EXPLAIN SELECT * FROM ", "EXECUTE ", "DEALLOCATE ", "LISTEN ", "UNLISTEN ", "NOTIFY ",
	"ALTER TABLE ", "ALTER TABLE orders ADD ", "ALTER TABLE orders DROP ", "ALTER TABLE orders DROP COLUMN ", "ALTER TABLE orders ALTER COLUMN ",
	"ALTER TABLE orders DROP CONSTRAINT ", "ALTER TABLE orders RENAME ", "ALTER TABLE orders VALIDATE CONSTRAINT ", "ALTER TABLE orders DISABLE TRIGGER ",
	"ALTER TABLE orders ENABLE RULE ", "ALTER TABLE orders OWNER TO ", "ALTER TABLE orders INHERIT ", "ALTER TABLE orders CLUSTER ON ", "ALTER TABLE events ATTACH PARTITION ",
	"ALTER TABLE events DETACH PARTITION ", "ALTER TABLE orders SET SCHEMA ", "ALTER TABLE orders SET TABLESPACE ", "ALTER INDEX ", "ALTER VIEW ", "ALTER SEQUENCE ", "ALTER FUNCTION ",
	"ALTER PROCEDURE ", "ALTER AGGREGATE ", "ALTER ROLE ", "ALTER ROLE readers SET ", "ALTER USER ", "ALTER DATABASE ", "ALTER DATABASE app SET ", "ALTER SCHEMA ", "ALTER TYPE ",
	"ALTER TYPE mood RENAME VALUE ", "ALTER DOMAIN ", "ALTER DOMAIN positive DROP CONSTRAINT ", "ALTER EXTENSION ", "ALTER EXTENSION plpgsql UPDATE TO ", "ALTER PUBLICATION ",
	"ALTER PUBLICATION news ADD TABLE ", "ALTER SUBSCRIPTION ", "ALTER POLICY ", "ALTER POLICY own ON ", "ALTER TRIGGER ", "ALTER TRIGGER stamped ON ", "ALTER RULE ", "ALTER RULE kept ON ",
	"ALTER MATERIALIZED VIEW ", "ALTER FOREIGN TABLE ", "ALTER SERVER ", "ALTER SYSTEM SET ", "ALTER STATISTICS ", "ALTER EVENT TRIGGER ", "ALTER LANGUAGE ", "ALTER LARGE OBJECT ",
	"ALTER COLLATION ", "ALTER CONVERSION ", "ALTER OPERATOR ", "ALTER TABLESPACE ", "ALTER TEXT SEARCH CONFIGURATION ", "ALTER FOREIGN DATA WRAPPER ", "ALTER DEFAULT PRIVILEGES IN SCHEMA ",
	"ALTER DEFAULT PRIVILEGES FOR ROLE ", "ALTER GROUP ", "ALTER INDEX orders_state ATTACH PARTITION ",
	"DROP TABLE ", "DROP INDEX ", "DROP VIEW ", "DROP MATERIALIZED VIEW ", "DROP SEQUENCE ", "DROP FUNCTION ", "DROP PROCEDURE ", "DROP AGGREGATE ", "DROP SCHEMA ", "DROP ROLE ", "DROP USER ",
	"DROP DATABASE ", "DROP EXTENSION ", "DROP TYPE ", "DROP DOMAIN ", "DROP TRIGGER ", "DROP TRIGGER stamped ON ", "DROP RULE ", "DROP RULE kept ON ", "DROP POLICY ", "DROP POLICY own ON ",
	"DROP PUBLICATION ", "DROP SUBSCRIPTION ", "DROP SERVER ", "DROP FOREIGN TABLE ", "DROP STATISTICS ", "DROP EVENT TRIGGER ", "DROP LANGUAGE ", "DROP TABLESPACE ", "DROP COLLATION ",
	"DROP OWNED BY ", "DROP FUNCTION twice(", "DROP ACCESS METHOD ", "DROP ROUTINE ", "DROP CAST (", "DROP TRANSFORM FOR ", "DROP FOREIGN DATA WRAPPER ", "DROP CONVERSION ", "DROP TEXT SEARCH CONFIGURATION ",
	"CREATE EXTENSION ", "CREATE EXTENSION hstore VERSION ", "CREATE INDEX ON ", "CREATE INDEX i ON orders (", "CREATE INDEX i ON orders USING ", "CREATE INDEX CONCURRENTLY i ON ", "CREATE TRIGGER t BEFORE INSERT ON ", "CREATE TRIGGER t BEFORE INSERT ON orders EXECUTE FUNCTION ",
	"CREATE POLICY p ON ", "CREATE RULE r AS ON UPDATE TO ", "CREATE DATABASE x TEMPLATE ", "CREATE DATABASE x OWNER ", "CREATE SCHEMA x AUTHORIZATION ", "CREATE TABLE x PARTITION OF ", "CREATE TABLE x (LIKE ", "CREATE TABLE x OF ",
	"CREATE STATISTICS s ON id FROM ", "CREATE PUBLICATION p FOR TABLE ", "CREATE PUBLICATION p FOR TABLES IN SCHEMA ", "CREATE SEQUENCE s AS ", "CREATE DOMAIN d AS ", "CREATE ROLE r IN ROLE ",
	"CREATE EVENT TRIGGER e ON ddl_command_end EXECUTE FUNCTION ", "CREATE FOREIGN TABLE f (a int) SERVER ", "CREATE SERVER s FOREIGN DATA WRAPPER ", "CREATE USER MAPPING FOR ", "CREATE COLLATION c FROM ", "CREATE FUNCTION f() RETURNS ", "CREATE CONVERSION c FOR ",
	"REFRESH MATERIALIZED VIEW ", "REINDEX TABLE ", "REINDEX INDEX ", "REINDEX SCHEMA ", "REINDEX DATABASE ", "REINDEX SYSTEM ", "REINDEX TABLE CONCURRENTLY ", "CLUSTER ", "CLUSTER orders USING ", "VACUUM ", "VACUUM orders (", "VACUUM FULL ", "ANALYZE ", "ANALYZE orders (",
	"GRANT ", "GRANT SELECT ON ", "GRANT SELECT ON TABLE ", "GRANT SELECT ON orders TO ", "GRANT USAGE ON SCHEMA ", "GRANT EXECUTE ON FUNCTION ", "GRANT USAGE ON SEQUENCE ", "GRANT CONNECT ON DATABASE ", "GRANT USAGE ON TYPE ", "GRANT USAGE ON LANGUAGE ", "GRANT USAGE ON FOREIGN SERVER ", "GRANT USAGE ON DOMAIN ", "GRANT CREATE ON TABLESPACE ", "GRANT SET ON PARAMETER ", "GRANT SELECT ON ALL TABLES IN SCHEMA ",
	"REVOKE ", "REVOKE SELECT ON ", "REVOKE SELECT ON orders FROM ", "REASSIGN OWNED BY ", "COMMENT ON TABLE ", "COMMENT ON COLUMN ", "COMMENT ON CONSTRAINT ", "COMMENT ON CONSTRAINT orders_pkey ON ", "COMMENT ON FUNCTION ", "COMMENT ON INDEX ", "COMMENT ON TYPE ", "COMMENT ON RULE ", "COMMENT ON TRIGGER ", "COMMENT ON POLICY ", "COMMENT ON MATERIALIZED VIEW ", "COMMENT ON EVENT TRIGGER ", "SECURITY LABEL ON TABLE ",
	"SET ", "SET search_path TO ", "SET client_min_messages TO ", "SET TimeZone TO ", "SET ROLE ", "SET SESSION AUTHORIZATION ", "SET CONSTRAINTS ", "SET default_tablespace TO ", "SET default_text_search_config TO ", "SHOW ", "RESET ", "CLOSE ", "FETCH FROM ", "DECLARE c CURSOR FOR SELECT * FROM ", "DO LANGUAGE ", "IMPORT FOREIGN SCHEMA x FROM SERVER ",
	`\d `, `\da `, `\dA `, `\dAc `, `\dAo `, `\db `, `\dconfig `, `\dD `, `\des `, `\deu `, `\dew `, `\df `, `\dft `, `\dF `, `\dFd `, `\dFp `, `\dFt `, `\di `, `\dL `, `\dm `, `\dn `, `\dp `, `\dP `, `\dPi `, `\dRp `, `\dRs `, `\ds `, `\dt `, `\dT `, `\du `, `\drds `, `\drg `, `\dv `, `\dx `, `\dX `, `\dy `, `\dE `, `\det `, `\ddp `, `\z `,
	`\c `, `\c app `, `\sf `, `\sv `, `\ef `, `\ev `, `\encoding `, `\password `, `\h SELECT`,
}

// beginnings are of the word to be completed.
var beginnings = []string{"", "o", "public.", "crm.o", "pg_", `"O`}

// byHand are what people ask the catalogue themselves.
var byHand = []string{
	"SELECT 1",
	"SELECT * FROM pg_catalog.pg_class",
	"SELECT * FROM pg_stat_activity WHERE state = 'active'",
	"SELECT c.relname, n.nspname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relname LIKE 'o%'",
	"SELECT pg_catalog.pg_get_viewdef('open_orders'::pg_catalog.regclass)",
	"SELECT relname FROM pg_catalog.pg_class WHERE relkind = 'r' ORDER BY 1 LIMIT 1000",
	"SELECT pid, pg_catalog.pg_blocking_pids(pid) FROM pg_catalog.pg_stat_activity",
	"SELECT table_name FROM information_schema.tables",
	"SELECT rolname, rolpassword FROM pg_catalog.pg_authid",
	"SELECT pg_catalog.pg_terminate_backend(oid::int) FROM pg_catalog.pg_class",
	"SELECT spcname FROM pg_catalog.pg_tablespace",
	"SELECT count(*) FROM orders",
}

// psql's own queries are told from a person's. Every psql is asked everything
// that makes it ask the catalogue, on the oldest and the newest server, and what
// it sends is looked at on its way.
func TestPsqlsOwn(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	found := make(map[string]string) // what it is for, by the hash
	servers := []int{15, 18}
	if *update {
		servers = []int{15, 16, 17, 18}
	}
	judge, err := policy.NewJudge()
	if err != nil {
		t.Fatal(err)
	}
	defer judge.Close()
	for _, major := range servers {
		t.Run(fmt.Sprintf("PostgreSQL %d", major), func(t *testing.T) {
			if !slices.ContainsFunc(upstreamtest.Installs(), func(in upstreamtest.Install) bool { return in.Major == major }) {
				t.Skipf("no PostgreSQL %d on this machine", major)
			}
			s := upstreamtest.Start(t, upstreamtest.Major(major))
			setUp(t, s)
			upstreamtest.Psqls(t, func(t *testing.T, path string) {
				tap := openTap(t, s)
				askBackslashes(t, tap, path, s)
				completeWords(t, tap, path, s)
				queries := tap.take()
				if len(queries) < 100 {
					t.Fatalf("psql has sent %d queries", len(queries))
				}
				for _, q := range queries {
					checkOwn(t, judge, found, q)
				}
			})
		})
	}
	for _, sql := range byHand {
		if psqlsOwn(sql) {
			t.Errorf("typed by a person: %s", sql)
		}
	}
	if *update {
		writeTable(t, found)
	}
}

// checkOwn requires that a query is known, in each way that it may be recorded.
func checkOwn(t *testing.T, judge *policy.Judge, found map[string]string, sql string) {
	t.Helper()
	msg, _ := judge.Parse(t.Context(), sql) // nil where it cannot be read
	for _, how := range []policy.Redaction{policy.Full, policy.Redacted, policy.Normalized} {
		text, _ := policy.Redact(how, sql, msg)
		if *update {
			found[skeletonHash(text)] = strings.Join(strings.Fields(skeleton(text)), " ")
		} else if !psqlsOwn(text) {
			t.Errorf("not known: %.300s", strings.Join(strings.Fields(text), " "))
		}
	}
}

// writeTable writes psql.tsv: what was found, and what stands there already, which
// may be of a psql that this machine lacks.
func writeTable(t *testing.T, found map[string]string) {
	t.Helper()
	lines := make(map[string]string)
	for line := range strings.Lines(string(psqlTSV)) {
		hash, rest, _ := strings.Cut(line, "\t")
		lines[hash] = strings.TrimSuffix(rest, "\n")
	}
	for hash, text := range found {
		lines[hash] = text[:min(len(text), 60)]
	}
	var b strings.Builder
	for _, hash := range slices.Sorted(maps.Keys(lines)) {
		fmt.Fprintf(&b, "%s\t%s\n", hash, lines[hash])
	}
	if err := os.WriteFile("psql.tsv", []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

// setUp makes one of each thing, statement by statement.
func setUp(t *testing.T, s *upstreamtest.Server) {
	t.Helper()
	sql, err := os.ReadFile(filepath.Join("testdata", "psql.sql"))
	if err != nil {
		t.Fatal(err)
	}
	s.Exec(t, string(sql))
}

func psqlCommand(t *testing.T, tap *tap, path string, s *upstreamtest.Server, args ...string) *exec.Cmd {
	t.Helper()
	host, port, err := net.SplitHostPort(tap.ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), path, append([]string{"-X", "-h", host, "-p", port, "-U", "postgres", "-d", "app"}, args...)...)
	cmd.Env = append(s.Env(), "PGPASSWORD="+upstreamtest.Password, "PGSSLMODE=disable", "PGGSSENCMODE=disable", "PSQL_PAGER=cat", "TERM=xterm", "INPUTRC=/dev/null")
	return cmd
}

func askBackslashes(t *testing.T, tap *tap, path string, s *upstreamtest.Server) {
	t.Helper()
	var script strings.Builder
	for _, name := range backslashes {
		for _, arg := range some(arguments, 4) {
			for _, flags := range some([]string{"", "+", "S", "S+"}, 2) {
				if strings.HasSuffix(flags, "+") && (name == "deu" || name == "dRs") {
					continue // these show passwords: who asks for them is to be seen
				}
				fmt.Fprintf(&script, "\\%s%s %s\n", name, flags, arg)
			}
		}
	}
	cmd := psqlCommand(t, tap, path, s, "-f", "-")
	cmd.Stdin = strings.NewReader(script.String())
	if out, err := cmd.CombinedOutput(); err != nil { // an error of a command is none of psql's
		t.Fatalf("%v\n%s", err, bytes.TrimSpace(out[max(0, len(out)-500):]))
	}
}

// completeWords presses the tab key behind each word. Nothing is sent that a
// person would have sent: each line is deleted again.
func completeWords(t *testing.T, tap *tap, path string, s *upstreamtest.Server) {
	t.Helper()
	term := upstreamtest.StartTerminal(t, psqlCommand(t, tap, path, s))
	term.Expect("app=#", 20*time.Second)
	for i, word := range words {
		for k, begin := range some(beginnings, 2) {
			mark := fmt.Sprintf("mark %d-%d", i, k)
			term.Press(word + begin + "\t\x15" + `\echo '` + mark + "'\n")
			term.Expect(mark+"'", 20*time.Second)
			term.Expect(mark, 20*time.Second)
		}
	}
}

// tap carries connections to a server, and keeps the statements.
type tap struct {
	ln   net.Listener
	to   string
	wait sync.WaitGroup

	mu      sync.Mutex
	queries []string
}

func openTap(t *testing.T, s *upstreamtest.Server) *tap {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &tap{ln: ln, to: s.Addr()}
	p.wait.Go(p.serve)
	t.Cleanup(func() {
		ln.Close()
		p.wait.Wait()
	})
	return p
}

func (p *tap) serve() {
	for {
		client, err := p.ln.Accept()
		if err != nil {
			return
		}
		p.wait.Go(func() {
			defer client.Close()
			server, err := net.Dial("tcp", p.to)
			if err != nil {
				return
			}
			defer server.Close()
			p.wait.Go(func() {
				io.Copy(client, server)
				client.Close()
			})
			p.carry(server, client)
		})
	}
}

// carry carries the client's messages, the first of which has no type.
func (p *tap) carry(to io.Writer, from io.Reader) {
	head := make([]byte, 5)
	first := 1 // the startup packet has no type
	for {
		if _, err := io.ReadFull(from, head[first:]); err != nil {
			return
		}
		body := make([]byte, binary.BigEndian.Uint32(head[1:])-4)
		if _, err := io.ReadFull(from, body); err != nil {
			return
		}
		if first == 0 && head[0] == 'Q' {
			p.mu.Lock()
			p.queries = append(p.queries, string(bytes.TrimSuffix(body, []byte{0})))
			p.mu.Unlock()
		}
		if _, err := to.Write(append(append([]byte(nil), head[first:]...), body...)); err != nil {
			return
		}
		first = 0
	}
}

// take returns what was sent, each statement once.
func (p *tap) take() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	slices.Sort(p.queries)
	return slices.Compact(p.queries)
}

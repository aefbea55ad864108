package wire

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"pgproxy/policy"
	"pgproxy/upstream/upstreamtest"
)

// regressFiles are those of PostgreSQL's regression tests that neither need
// its library of C functions nor look at what differs from server to server.
// They run in this order, on what those before them left behind.
var regressFiles = strings.Fields(`test_setup
	boolean char name varchar text int2 int4 int8 oid float4 float8 bit numeric uuid enum money rangetypes
	pg_lsn regproc strings numerology date time timetz timestamp timestamptz interval horology inet macaddr
	expressions unicode xid txid arrays json jsonb jsonpath jsonb_jsonpath xml
	create_type create_table create_function_sql create_aggregate create_operator create_procedure create_view
	constraints triggers inherit select_into select_distinct select_implicit select_having subselect union case
	join aggregates transactions random portals update delete namespace prepared_xacts prepare plancache
	limit plpgsql truncate alter_table sequence polymorphism rowtypes returning with window groupingsets
	domain rangefuncs largeobject insert insert_conflict identity generated merge updatable_views rules
	matview lock replica_identity rowsecurity object_address privileges guc errors temp select tsrf tid combocid
	create_schema typed_table event_trigger foreign_key partition_prune select_parallel conversion copyselect
	copydml copy2 copy psql psql_crosstab async comments misc_functions dependency password create_index vacuum`)

// TestRegress runs PostgreSQL's own regression SQL by psql, through the proxy
// and straight to another server of the same making, and requires that psql
// shows the same.
func TestRegress(t *testing.T) {
	dir := filepath.Join(upstreamtest.CacheDir(), "regress", "15")
	if _, err := os.Stat(dir); err != nil {
		t.Skip("no regression SQL on this machine: run .ci/regress")
	}
	settings := []upstreamtest.Option{upstreamtest.Set("autovacuum", "off"), upstreamtest.Set("max_prepared_transactions", "2")}
	here, there := startMajor(t, 15, settings...), startMajor(t, 15, settings...)
	path, err := there.Psql()
	if err != nil {
		t.Skip(err)
	}
	q := psqlAt(t, path)
	p := startProxyTo(t, there.SocketDSN("postgres", "app"), withRule(func(r *policy.Rule) {
		*r = policy.Rule{Access: policy.Admin, Where: policy.WhereFree}
	}))
	env := []string{"PGUSER=postgres", "PGDATABASE=app", "PGTZ=PST8PDT", "PGDATESTYLE=Postgres, MDY",
		"PGPASSWORD=" + upstreamtest.Password,
		"PGOPTIONS=-c intervalstyle=postgres_verbose", "PG_ABS_SRCDIR=" + dir, "PG_LIBDIR=/nowhere", "PG_DLSUFFIX=.so", "PG_ABS_BUILDDIR=" + t.TempDir()}
	direct, proxied := connection{here.Addr(), env}, p.at(env...)
	for _, name := range regressFiles {
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(filepath.Join(dir, "sql", name+".sql"))
			if err != nil {
				t.Fatal(err)
			}
			script := regressScript(string(text))
			var want, got string
			var wg sync.WaitGroup
			wg.Go(func() { want = regressRun(t, q, direct, script) })
			wg.Go(func() { got = regressRun(t, q, proxied, script) })
			wg.Wait()
			os.WriteFile("/tmp/p9reg/"+name+".want", []byte(want), 0o644)
			os.WriteFile("/tmp/p9reg/"+name+".got", []byte(got), 0o644)
			if got != want {
				t.Errorf("DIFF %d %d", len(want), len(got))
			}
		})
	}
}

var (
	regressCopyIn = regexp.MustCompile(`(?ims)^copy [^;]* from stdin[^;]*;.*?\n\\\.$`)
)

func regressScript(text string) string {
	return regressCopyIn.ReplaceAllString(text, "")
}

func regressRun(t *testing.T, q psql, to connection, script string) string {
	cmd := q.command(t.Context(), to, "-a", "-q", "-v", "HIDE_TABLEAM=on", "-v", "HIDE_TOAST_COMPRESSION=on")
	cmd.Stdin = strings.NewReader(script + "\n\\echo alive\n")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		if _, ok := err.(*exec.ExitError); !ok {
			t.Error(err)
		}
	}
	return out.String()
}

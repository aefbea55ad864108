package policy_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	pg "github.com/pganalyze/pg_query_go/v6"

	"pgproxy/policy"
)

// sqlVariable names a directory of SQL files, such as src/test/regress/sql of
// PostgreSQL's source.
const sqlVariable = "PGPROXY_TEST_SQL"

// TestForeignSQL judges the statements of SQL files that others wrote, one by
// one. No kind of statement may be unknown; what write access refuses is
// listed with -v.
func TestForeignSQL(t *testing.T) {
	dir := os.Getenv(sqlVariable)
	if dir == "" {
		t.Skip(sqlVariable + " names no directory of SQL files")
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.sql"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no SQL files in %s (%v)", dir, err)
	}
	judge, rule, memory := newJudge(t), policy.DefaultRule(), new(policy.Memory)
	refusals := make(map[string]int)
	statements, unread := 0, 0
	for _, file := range files {
		for _, sql := range split(t, file) {
			msg, err := judge.Parse(t.Context(), sql)
			if err != nil { // psql's variables and the data of COPY, mostly
				unread++
				continue
			}
			for _, st := range msg.Statements {
				statements++
				if st.Kind == "UNKNOWN" || !policy.KnownKind(st.Kind) {
					t.Errorf("%s: unknown kind %q: %s", file, st.Kind, sql)
				}
			}
			if d := policy.Decide(t.Context(), &rule, msg, memory, nil); d.Refusal == nil {
				memory.Note(msg, true)
			} else {
				refusals[d.Refusal.Rule+": "+d.Refusal.Message]++
				if d.Refusal.Rule == "unknown" {
					t.Errorf("%s: %s: %s", file, d.Refusal.Detail, sql)
				}
			}
		}
	}
	t.Logf("%d statements read, %d texts not", statements, unread)
	var list []string
	for refusal := range refusals {
		list = append(list, refusal)
	}
	slices.Sort(list)
	for _, refusal := range list {
		t.Logf("%6d  %s", refusals[refusal], refusal)
	}
}

// split cuts a file into its statements and leaves psql's own commands out.
func split(t *testing.T, file string) []string {
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(data)) {
		if !strings.HasPrefix(line, `\`) {
			lines = append(lines, line)
		}
	}
	statements, err := pg.SplitWithScanner(strings.Join(lines, ""), true)
	if err != nil {
		t.Logf("%s: %v", file, err)
	}
	return statements
}

package policy_test

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	pg "github.com/pganalyze/pg_query_go/v6"

	"pgproxy/policy"
	"pgproxy/upstream/upstreamtest"
)

// sqlVariable names a directory of SQL files to judge. Without it they are
// PostgreSQL's regression tests, where .ci/regress has put them.
const sqlVariable = "PGPROXY_TEST_SQL"

// TestForeignSQL judges the statements of SQL files that others wrote, one by
// one. No kind of statement may be unknown. What write access refuses of
// PostgreSQL's own is in testdata/regress-refused.txt, by rule and reason.
func TestForeignSQL(t *testing.T) {
	dir, given := os.LookupEnv(sqlVariable)
	if !given {
		dir = filepath.Join(upstreamtest.CacheDir(), "regress", "15", "sql")
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.sql"))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Skip("no SQL files on this machine; .ci/regress gets PostgreSQL's, " + sqlVariable + " names others")
	}
	judge, rule := newJudge(t), policy.DefaultRule()
	refusals := make(map[string]bool)
	statements, unread, refused := 0, 0, 0
	for _, file := range files {
		memory := new(policy.Memory) // each file is a session
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
			d := policy.Decide(t.Context(), &rule, msg, policy.Session{Memory: memory})
			if d.Refusal == nil {
				memory.Note(msg, len(msg.Statements))
				continue
			}
			refused++
			refusals[d.Refusal.Rule+": "+strings.TrimPrefix(d.Refusal.Message, "pgproxy: ")] = true
			if d.Refusal.Rule == "unknown" {
				t.Errorf("%s: %s: %s", file, d.Refusal.Detail, sql)
			}
		}
	}
	t.Logf("%d statements read, %d refused at write; %d texts not read", statements, refused, unread)
	if !given {
		compareList(t, "testdata/regress-refused.txt", slices.Sorted(maps.Keys(refusals)))
	}
}

// compareList compares lines with those of a file, whose first paragraph is a
// comment.
func compareList(t *testing.T, file string, got []string) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := strings.Cut(string(data), "\n\n")
	want := strings.Split(strings.TrimSpace(list), "\n")
	for _, line := range got {
		if !slices.Contains(want, line) {
			t.Errorf("not in %s: %s", file, line)
		}
	}
	for _, line := range want {
		if !slices.Contains(got, line) {
			t.Errorf("only in %s: %s", file, line)
		}
	}
}

// psqlEnd is a command of psql's that ends a statement.
var psqlEnd = regexp.MustCompile(`\\(g|gx|gset|gexec|gdesc|crosstabview)\b.*`)

// split cuts a file into its statements and leaves psql's own commands out. A
// file that the parser library's own scanner cannot read is cut where lines
// end with a semicolon.
func split(t *testing.T, file string) []string {
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(data)) {
		if line = psqlEnd.ReplaceAllString(line, ";"); !strings.HasPrefix(line, `\`) {
			lines = append(lines, line)
		}
	}
	text := strings.Join(lines, "")
	statements, err := pg.SplitWithScanner(text, true)
	if err != nil {
		return strings.SplitAfter(text, ";\n")
	}
	return statements
}

package policy

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	pg "github.com/pganalyze/pg_query_go/v6"
)

// redactCorpus is the statements of a file in testdata/redact.
func redactCorpus(t testing.TB, name string) []string {
	t.Helper()
	data, err := os.ReadFile("testdata/redact/" + name)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	var statement []string
	for line := range strings.Lines(string(data)) {
		switch {
		case strings.HasPrefix(line, "#"):
		case line == ";;\n":
			list = append(list, strings.TrimSuffix(strings.Join(statement, ""), "\n"))
			statement = nil
		default:
			statement = append(statement, line)
		}
	}
	return list
}

func mustParse(t testing.TB, sql string) *Message {
	t.Helper()
	msg, refusal := parse(sql)
	if refusal != nil {
		t.Fatalf("%s\n%v", sql, refusal)
	}
	return msg
}

var (
	secretMarker = regexp.MustCompile(`(?i)hunter`)
	keptMarker   = regexp.MustCompile(`keep[\w-]*`)
)

// keptWords are the words that have to stay.
func keptWords(sql string) []string {
	return slices.DeleteFunc(keptMarker.FindAllString(sql, -1), func(w string) bool { return w == "keep_not" })
}

func TestRedactSecrets(t *testing.T) {
	corpus := redactCorpus(t, "secrets.sql")
	for _, sql := range corpus {
		msg := mustParse(t, sql)
		got, masked := Redact(Redacted, sql, msg)
		if !masked || secretMarker.MatchString(got) {
			t.Errorf("%s\nbecame %v\n%s", sql, masked, got)
		}
		if kept, want := keptWords(got), keptWords(sql); !slices.Equal(kept, want) {
			t.Errorf("%s\nbecame, with %q for %q\n%s", sql, kept, want, got)
		}
		if full, masked := Redact(Full, sql, msg); full != sql || masked {
			t.Errorf("full is not full: %s", full)
		}
	}
	if len(corpus) < 130 {
		t.Errorf("%d statements", len(corpus))
	}
}

func TestRedactUnreadable(t *testing.T) {
	for _, sql := range redactCorpus(t, "unreadable.sql") {
		if _, refusal := parse(sql); refusal == nil {
			t.Errorf("%s can be read", sql)
		}
		for _, how := range []Redaction{Redacted, Normalized} {
			if got, masked := Redact(how, sql, nil); !masked || secretMarker.MatchString(got) {
				t.Errorf("%s\nbecame %v\n%s", sql, masked, got)
			}
		}
	}
}

func TestRedactPlain(t *testing.T) {
	for _, sql := range redactCorpus(t, "plain.sql") {
		if got, masked := Redact(Redacted, sql, mustParse(t, sql)); masked || got != sql {
			t.Errorf("%s\nbecame\n%s", sql, got)
		}
	}
}

func TestRedactText(t *testing.T) {
	for _, text := range redactCorpus(t, "texts.txt") {
		got := RedactText(text)
		before, _, _ := strings.Cut(got, secretMark)
		if secretMarker.MatchString(got) || !strings.Contains(before, "keep") || RedactText(got) != got {
			t.Errorf("%s\nbecame\n%s", text, got)
		}
	}
	for _, text := range redactCorpus(t, "plaintexts.txt") {
		if got := RedactText(text); got != text {
			t.Errorf("%s\nbecame\n%s", text, got)
		}
	}
}

// TestRedactHead: of a text that could not be read only the head is kept, and
// what is masked in it depends on all of it.
func TestRedactHead(t *testing.T) {
	for _, sql := range redactCorpus(t, "unreadable.sql") {
		for _, n := range []int{1, 5, 10, 20, 30, 50} {
			for _, how := range []Redaction{Redacted, Normalized} {
				if got, _ := RedactHead(how, sql, n); secretMarker.MatchString(got) {
					t.Errorf("%d bytes of %s\nbecame\n%s", n, sql, got)
				}
			}
		}
	}
	for _, tt := range []struct {
		how      Redaction
		sql      string
		n        int
		want     string
		isMasked bool
	}{
		{Redacted, "SELEC 1 FROM orders", 14, "SELEC '[masked]' FROM o", true},
		{Redacted, "SELEC a FROM orders", 14, "SELEC a FROM o", false},
		{Redacted, "SELEC a FROM é", 14, "SELEC a FROM ", false},
		{Redacted, "SELEC 'a long text'", 10, "SELEC '[masked]'", true},
		{Redacted, "SELEC 'hunter2', password", 18, "[masked: 25 bytes that cannot be read as SQL]", true},
		{Normalized, "SELEC a FROM orders", 14, "[masked: 19 bytes that cannot be read as SQL]", true},
		{Full, "SELEC 'hunter2', password", 14, "SELEC 'hunter2", false},
	} {
		if got, masked := RedactHead(tt.how, tt.sql, tt.n); got != tt.want || masked != tt.isMasked {
			t.Errorf("%s: got %q, %v", tt.sql, got, masked)
		}
	}
}

// TestRedactSession: what EXECUTE is given is masked where the text of its
// PREPARE speaks of secrets, and where nobody knows that text.
func TestRedactSession(t *testing.T) {
	var r Redactor
	for _, tt := range []struct {
		sql    string
		masked bool
	}{
		{"EXECUTE up('hunter2')", true}, // nothing is known of it
		{"PREPARE up AS UPDATE keep_users SET password = $1", false},
		{"PREPARE keep_p(text, int) AS SELECT * FROM orders WHERE keep = $1 AND id = $2", false},
		{"EXECUTE up('hunter2')", true},
		{"execute\n \"up\" ($$hunter2$$)", true},
		{"EXECUTE keep_p('keep', 7)", false},
		{"EXECUTE up('hunter2', E'hunter\\'2', 'hunter' || 'hunter')", true},
		{"EXPLAIN (ANALYZE) EXECUTE up('hunter2')", true},
		{"CREATE TEMP TABLE keep_t AS EXECUTE up('hunter2')", true},
		{"EXPLAIN ANALYZE CREATE TEMP TABLE keep_t AS EXECUTE up('hunter2')", true},
		{"SELECT 'keep'; EXECUTE up('hunter2'); SELECT 'keep too'", true},
		{"DEALLOCATE up", false},
		{"EXECUTE up('hunter2')", true},
		{"PREPARE up AS SELECT $1 AS keep_id", false}, // it may have failed
		{"EXECUTE up('hunter2')", true},
		{"PREPARE p2 AS UPDATE keep_users SET api_key = $1; EXECUTE p2('hunter2')", true},
		{"EXECUTE p3('hunter2') /* keep, a name written wrongly: no secret in it */", true},
		{"EXECUTE keep_p('keep', 7)", false},
		{"GRANT EXECUTE ON FUNCTION keep_f(int) TO bob; SELECT 'keep'", false},
	} {
		got, masked := r.Redact(Redacted, tt.sql, mustParse(t, tt.sql))
		if masked != tt.masked || secretMarker.MatchString(got) || !slices.Equal(keptWords(got), keptWords(tt.sql)) && !strings.Contains(tt.sql, "/*") {
			t.Errorf("%s\nbecame %v\n%s", tt.sql, masked, got)
		}
		if full, _ := r.Redact(Full, tt.sql, mustParse(t, tt.sql)); full != tt.sql {
			t.Errorf("full is not full: %s", full)
		}
		if got, _ := r.Redact(Normalized, tt.sql, mustParse(t, tt.sql)); secretMarker.MatchString(got) {
			t.Errorf("%s\nbecame, normalized,\n%s", tt.sql, got)
		}
	}
	for i := range 2 * maxPrepared {
		sql := fmt.Sprintf("PREPARE p%d AS SELECT $1 AS token", i+10)
		r.Redact(Redacted, sql, mustParse(t, sql))
	}
	if len(r.secret) > maxPrepared {
		t.Errorf("%d names are remembered", len(r.secret))
	}
	if got, _ := r.Redact(Redacted, "EXECUTE p1999('hunter2')", mustParse(t, "EXECUTE p1999('hunter2')")); secretMarker.MatchString(got) {
		t.Errorf("became %s", got)
	}
}

func TestNormalized(t *testing.T) {
	for _, name := range []string{"secrets.sql", "plain.sql"} {
		for _, sql := range redactCorpus(t, name) {
			got, _ := Redact(Normalized, sql, mustParse(t, sql))
			if secretMarker.MatchString(got) || strings.Contains(got, "'") || strings.Contains(got, "--") || strings.Contains(got, "/*") {
				t.Errorf("%s\nbecame\n%s", sql, got)
			}
		}
	}
	for sql, want := range map[string]string{
		`SELECT a1, 'x', $1, 1.5e3 FROM "t 1" /* c */WHERE b = E'\'' -- d`: `SELECT a1, ?, $1, ? FROM "t 1"  WHERE b = ?  `,
		`SELECT true, NULL`: `SELECT true, NULL`,
	} {
		got, masked := Redact(Normalized, sql, mustParse(t, sql))
		if got != want || masked == (got == sql) {
			t.Errorf("got %q, %v", got, masked)
		}
	}
}

// TestLexemes compares the lexer with the parser's own, over both corpora.
func TestLexemes(t *testing.T) {
	for _, name := range []string{"secrets.sql", "plain.sql"} {
		for _, sql := range redactCorpus(t, name) {
			compareLexers(t, sql)
		}
	}
}

// compareLexers requires that each literal and comment that the parser's lexer
// sees in a text lies in one that ours sees.
func compareLexers(t *testing.T, sql string) {
	t.Helper()
	tree, err := pg.Scan(sql)
	if err != nil {
		return
	}
	ours := values(sql)
	for _, tok := range tree.Tokens {
		switch tok.Token {
		case pg.Token_SCONST, pg.Token_USCONST, pg.Token_BCONST, pg.Token_XCONST, pg.Token_FCONST, pg.Token_ICONST,
			pg.Token_SQL_COMMENT, pg.Token_C_COMMENT:
		default:
			continue
		}
		for len(ours) > 0 && ours[0].end < int(tok.End) {
			ours = ours[1:]
		}
		if len(ours) == 0 || ours[0].start > int(tok.Start) {
			t.Fatalf("%q: the parser has a %v in %q", sql, tok.Token, sql[tok.Start:tok.End])
		}
	}
}

func FuzzRedact(f *testing.F) {
	for _, name := range []string{"secrets.sql", "plain.sql", "unreadable.sql"} {
		for _, sql := range redactCorpus(f, name) {
			f.Add(sql)
		}
	}
	f.Fuzz(func(t *testing.T, sql string) {
		for _, msg := range []*Message{nil, {}} {
			for _, how := range []Redaction{Redacted, Normalized, Full} {
				got, masked := Redact(how, sql, msg)
				if !masked && got != sql {
					t.Fatalf("changed without a word: %q", got)
				}
				RedactError(how, "23505", sql, sql, got)
				head, _ := RedactHead(how, sql, 20)
				if how != Full && len(sql) > 20 && strings.Contains(head, "hunter") && !strings.Contains(got, "hunter") {
					t.Fatalf("the head shows more: %q", head)
				}
				if text := RedactText(sql); RedactText(text) != text {
					t.Fatalf("%q became %q", text, RedactText(text))
				}
			}
		}
		// Values must not outlive masking, whatever stands around them.
		if len(sql) < 1000 && !strings.Contains(sql, "\x00") {
			compareLexers(t, sql)
			if _, err := pg.Parse(sql); err == nil {
				got, _ := Redact(Normalized, sql, &Message{})
				for l := range lexemes(got) {
					if l.kind == lexString || l.kind == lexNumber {
						t.Fatalf("%q became %q", sql, got)
					}
				}
			}
		}
	})
}

func TestFingerprint(t *testing.T) {
	of := func(sql string) string {
		msg, _ := parse(sql)
		return Fingerprint(sql, msg)
	}
	for _, same := range [][]string{
		{"SELECT 1", "select  2 -- x", "SELECT\n'a'"},
		{"ALTER ROLE bob PASSWORD 'hunter2'", "alter role bob /* x */ password $$x$$"},
		{"SET app.password = hunter2", "SET app.password = 'hunter3'", "set app.password = hunter4"},
		{"SELCT 'a'", "selct 5"},
		{"ALTER ROLE bob PASSWORD hunter2", "ALTER ROLE bob PASSWORD hunter3"},
	} {
		for _, sql := range same {
			if len(of(sql)) != 16 || of(sql) != of(same[0]) {
				t.Errorf("%s has %s, %s has %s", sql, of(sql), same[0], of(same[0]))
			}
		}
	}
	if of("SELECT a FROM t") == of("SELECT b FROM t") || of("ALTER ROLE bob PASSWORD 'x'") == of("ALTER ROLE eve PASSWORD 'x'") {
		t.Error("different statements have the same fingerprint")
	}
}

func TestRedactError(t *testing.T) {
	for _, tt := range []struct {
		how        Redaction
		code, text string
		sql        string
		want       string
	}{
		{Redacted, "42P01", `relation "userz" does not exist`, `SELECT * FROM userz`, `relation "userz" does not exist`},
		{Redacted, "23505", `duplicate key value violates unique constraint "users_email_key"`, `INSERT INTO users VALUES ('x')`,
			`duplicate key value violates unique constraint "users_email_key"`},
		{Redacted, "23505", `Key (email)=(bob@example.com (x)) already exists.`, `INSERT INTO users VALUES ('x')`, `Key (email)=([masked]) already exists.`},
		{Redacted, "23502", `Failing row contains (7, hunter2, null).`, `INSERT INTO users VALUES ('x')`, `Failing row contains ([masked]).`},
		{Redacted, "23505", "Schl\u00fcssel \u00bb(email)=(bob)\u00ab existiert bereits.", ``, "Schl\u00fcssel \u00bb(email)=([masked])\u00ab existiert bereits."},
		{Redacted, "22P02", `invalid input syntax for type integer: "123-45-6789"`, `SELECT ssn::int FROM people`, `invalid input syntax for type integer: "[masked]"`},
		{Redacted, "22P02", `invalid input syntax for type integer: "abc"`, `SELECT 'abc'::int`, `invalid input syntax for type integer: "abc"`},
		{Redacted, "22P02", `invalid input syntax for type integer: "{"password": "hunter2"}"`, `SELECT '{"password": "hunter2"}'::int`,
			`invalid input syntax for type integer: "[masked]"`},
		{Redacted, "22P02", `invalid input syntax for type integer: "{"a": "b"}"`, `SELECT '{"a": "b"}'::int`, `invalid input syntax for type integer: "{"a": "b"}"`},
		{Normalized, "22P02", `invalid input syntax for type integer: "abc"`, `SELECT 'abc'::int`, `invalid input syntax for type integer: "[masked]"`},
		{Full, "22P02", `invalid input syntax for type integer: "abc"`, `SELECT x::int`, `invalid input syntax for type integer: "abc"`},
		{Redacted, "42703", `column "hunter2" does not exist`, `SELECT * FROM u WHERE password = "hunter2"`, `column "[masked]" does not exist`},
		{Redacted, "42601", `syntax error at or near "hunter2"`, `ALTER USER bob PASSWORD hunter2`, `syntax error at or near "[masked]"`},
		{Redacted, "42601", `unterminated quoted string at or near "'hunter2 " x"`, `ALTER USER bob PASSWORD 'hunter2 " x`, `unterminated quoted string at or near "[masked]"`},
		{Redacted, "42601", `syntax error at or near ""a"b""`, `SELECT "a"b""`, `syntax error at or near "[masked]"`},
		{Redacted, "P0001", `no luck with password=hunter2 today`, `SELECT f()`, `no luck with password=[masked]`},
		{Redacted, "08001", `could not connect to "postgres://u:hun/hunter2@h"`, `SELECT f()`, `could not connect to "[masked]"`},
		{Redacted, "08001", `could not connect to postgres://u:hun/hunter2@h`, `SELECT f()`, `could not connect to postgres://[masked]`},
		{Redacted, "22023", `no luck with password; ` + strings.Repeat("hunter", 20), `SELECT pgp_sym_decrypt(x, '` + strings.Repeat("hunter", 200) + `')`,
			`no luck with password; [masked]`},
		{Redacted, "22P02", `bad: ` + strings.Repeat(`"a" `, 30), `SELECT f('a')`, `bad: "[masked]" `},
		{Full, "P0001", `no luck with password=hunter2 today`, `SELECT f()`, `no luck with password=[masked]`},
		{Redacted, "08001", `could not connect to server: password=hunter2 user=u`, `SELECT dblink_connect('password=hunter2 user=u')`,
			`could not connect to server: [masked]`},
	} {
		msg, _ := parse(tt.sql)
		recorded, _ := Redact(tt.how, tt.sql, msg)
		if got := RedactError(tt.how, tt.code, tt.text, tt.sql, recorded); got != tt.want {
			t.Errorf("%s\n got %s\nwant %s", tt.sql, got, tt.want)
		}
	}
}

// TestRedactIsLinear gives texts that are made to be searched again and
// again. The work must stay in proportion to the text.
func TestRedactIsLinear(t *testing.T) {
	const n = 20_000
	for name, sql := range map[string]string{
		"comparisons": "SELECT " + strings.Repeat("password = ", n) + "'hunter2'",
		"not a list":  "SELECT (1" + strings.Repeat(", password", n) + " + 'hunter2')",
		"calls":       "SELECT " + strings.Repeat("crypt(", n) + "'hunter2'",
		"names":       "SELECT " + strings.Repeat("'password', ", n) + "'hunter2'",
		"settings":    "SET a.password = " + strings.Repeat("password, ", n) + "'hunter2'",
		"casts":       "SELECT password" + strings.Repeat("::text", n) + " = 'hunter2'",
		"qualified":   "SELECT 'hunter2' = " + strings.Repeat("password.", n) + "x",
		"strings":     "SELECT " + strings.Repeat("'a'\n", n) + ", password = 'hunter2'",
		"growing":     "SELECT password = 'ask', " + strings.Repeat("crypt('ask'), ", 900) + "'hunter2' AS password",
		"nested":      nestedBodies(2000),
		"passes":      "SELECT '" + strings.Repeat("pass", 20*n) + "', password = 'hunter2'",
		"short":       "SELECT '" + strings.Repeat("pw ", 20*n) + "', password = 'hunter2'",
		"keys":        "SELECT '" + strings.Repeat("md5", 20*n) + "', password = 'hunter2'",
		"signs":       "SELECT 1" + strings.Repeat("+", n) + "password = 'hunter2'",
	} {
		m := newMasker(sql, 0)
		m.mask()
		if limit := 2 * maxWork * (len(m.toks) + 100); m.work > limit {
			t.Errorf("%s: %d tokens looked at, %d wanted", name, m.work, limit)
		}
		got, _ := Redact(Redacted, sql, &Message{})
		RedactError(Redacted, "23505", sql, sql, got)
		if name != "qualified" && secretMarker.MatchString(got) {
			t.Errorf("%s: not masked", name)
		}
	}
}

// TestRedactCost gives long literals that are full of hints. None may cost much
// more than a plain one, measured in the same run.
func TestRedactCost(t *testing.T) {
	const size = 1 << 20
	cost := func(piece string) time.Duration {
		sql := "SELECT '" + strings.Repeat(piece, size/len(piece)) + "'"
		least := time.Hour
		for range 3 {
			began := time.Now()
			recorded, _ := Redact(Redacted, sql, &Message{})
			for _, text := range []string{"no value of the statement's", sql, strings.Repeat(`"a" `, 2000), strings.Repeat(piece, 4<<10)} {
				RedactError(Redacted, "22P02", text, sql, recorded)
				RedactError(Redacted, "22P02", text, sql, "SELECT '[masked]'")
			}
			RedactText(sql)
			least = min(least, time.Since(began))
		}
		return least
	}
	plain := cost("x ")
	for _, piece := range []string{"pass", "pw", "pw ", "pwd", "token.", "md5", "scram-", "connection ", "://", "://x ", "://x", "bearer\n", "crypt_", "passenger "} {
		if got := cost(piece); got > 300*plain {
			t.Errorf("a literal of %q takes %v, a plain one %v", piece, got, plain)
		}
	}
}

// nestedBodies is a DO in a DO, so many deep.
func nestedBodies(n int) string {
	sql := "password = 'hunter2'"
	for i := range n {
		sql = fmt.Sprintf("DO $a%d$ %s $a%d$", i, sql, i)
	}
	return sql
}

func BenchmarkRedact(b *testing.B) {
	for name, sql := range map[string]string{
		"plain":       "SELECT abalance FROM pgbench_accounts WHERE aid = 48213;",
		"secret":      "ALTER ROLE bob PASSWORD 'hunter2'",
		"long hinted": "UPDATE t SET doc = '" + strings.Repeat(`{"a": 1, "b": "passenger"}, `, 1<<20/28) + "' WHERE id = 1",
		"long":        "UPDATE t SET doc = '" + strings.Repeat(`{"a": 1, "b": "some text"}, `, 1<<20/28) + "' WHERE id = 1",
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				Redact(Redacted, sql, &Message{})
			}
		})
	}
}

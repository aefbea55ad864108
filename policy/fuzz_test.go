package policy

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	pg "github.com/pganalyze/pg_query_go/v6"
)

// maxFuzzText keeps the fuzzers' texts where they may be parsed in this
// process.
const maxFuzzText = 2 << 10

// addCorpus gives a fuzzer the texts of the corpus.
func addCorpus(f *testing.F, add func(sql string)) {
	files, err := filepath.Glob("testdata/corpus/*.txt")
	if err != nil || len(files) == 0 {
		f.Fatal("no corpus: ", err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for _, c := range strings.Split(string(data), "\n### ")[1:] {
			_, sql, _ := strings.Cut(c, "\n")
			for message := range strings.SplitSeq(sql, "\n---\n") {
				add(strings.TrimSpace(message))
			}
		}
	}
}

// readable reports whether the fuzzers' text may be given to parse.
func readable(sql string) bool {
	return len(sql) <= maxFuzzText && utf8.ValidString(sql) && !strings.Contains(sql, "\x00")
}

// FuzzVerdict reads any text: nothing panics, statements lie in the text one
// behind the other, and what read access allows write access allows.
func FuzzVerdict(f *testing.F) {
	addCorpus(f, func(sql string) { f.Add(sql) })
	f.Fuzz(func(t *testing.T, sql string) {
		if !readable(sql) {
			t.Skip()
		}
		msg, refusal := parse(sql)
		if refusal != nil {
			if refusal.Position < 0 || refusal.Position > utf8.RuneCountInString(sql)+1 {
				t.Errorf("position %d", refusal.Position)
			}
			return
		}
		end := 0
		for _, st := range msg.Statements {
			if st.Start < end || st.End <= st.Start || st.End > len(sql) {
				t.Errorf("statement from %d to %d behind %d of %d", st.Start, st.End, end, len(sql))
			}
			if st.Reads && st.Changes {
				t.Errorf("%s reads and does more", st.Kind)
			}
			end = st.End
		}
		read, write, admin := allowed(msg, Read), allowed(msg, Write), allowed(msg, Admin)
		if read && !write || write && !admin {
			t.Errorf("read %v, write %v, admin %v", read, write, admin)
		}
	})
}

func allowed(msg *Message, access Access) bool {
	rule := DefaultRule()
	rule.Access = access
	return Decide(context.Background(), &rule, msg, Session{}).Refusal == nil
}

// FuzzScan compares the scan with the parser library's own lexer: where both
// read a text, they find the same statements in it.
func FuzzScan(f *testing.F) {
	addCorpus(f, func(sql string) { f.Add(sql) })
	f.Fuzz(func(t *testing.T, sql string) {
		if !readable(sql) {
			t.Skip()
		}
		seen, refusal := scan(sql)
		if refusal != nil {
			t.Skip()
		}
		tokens, err := pg.Scan(sql)
		if err != nil {
			t.Skip()
		}
		if want := segments(tokens); !reflect.DeepEqual(seen.segments, want) {
			t.Errorf("%q: %v, want %v", sql, seen.segments, want)
		}
	})
}

// TestScanNumbers: what stands right behind a number is read as the parser
// library's lexer reads it, by the scan and by the masking.
func TestScanNumbers(t *testing.T) {
	for _, sql := range []string{"SELECT 0$$;$$", "SELECT 1.5$a$;'$a$ ; SELECT 2", "SELECT .5.5;", "SELECT 1..2"} {
		seen, refusal := scan(sql)
		tokens, err := pg.Scan(sql)
		if refusal != nil || err != nil {
			t.Fatal(sql, refusal, err)
		}
		if want := segments(tokens); !reflect.DeepEqual(seen.segments, want) {
			t.Errorf("%q: %v, want %v", sql, seen.segments, want)
		}
		compareLexers(t, sql)
	}
}

// segments are the texts between semicolons as the library's lexer has them.
func segments(result *pg.ScanResult) []span {
	var all []span
	open := false
	for _, token := range result.Tokens {
		switch {
		case token.Token == pg.Token_SQL_COMMENT || token.Token == pg.Token_C_COMMENT:
		case token.Token == pg.Token_ASCII_59:
			open = false
		case open:
			all[len(all)-1].end = int(token.End)
		default:
			all = append(all, span{int(token.Start), int(token.End)})
			open = true
		}
	}
	return all
}

// FuzzTemplate puts other digits where a template has its zeros: what is kept
// for the one text must be right for the other.
func FuzzTemplate(f *testing.F) {
	addCorpus(f, func(sql string) { f.Add(sql, uint64(1)) })
	f.Add("SELECT 1e-5, 1.5, x1, 0x1F, 1_000, a[1:2], -7, 3*4 FROM t WHERE id=42 AND b<1", uint64(2))
	f.Fuzz(func(t *testing.T, sql string, seed uint64) {
		key, ok := template(nil, sql)
		if !ok || !readable(sql) {
			t.Skip()
		}
		random := rand.New(rand.NewPCG(seed, 0))
		other := []byte(sql)
		for i := range other {
			if key[i+1] != sql[i] || sql[i] == '0' && key[i+1] == '0' && isTemplateDigit(sql, i) {
				other[i] = '0' + byte(random.IntN(10))
			}
		}
		if again, ok := template(nil, string(other)); !ok || string(again) != string(key) {
			t.Fatalf("%q and %q have different templates", sql, other)
		}
		a, refusal := parse(sql)
		if refusal != nil || !a.plain() {
			return
		}
		b, refusal := parse(string(other))
		if refusal != nil { // some numbers are errors: float(0)
			return
		}
		if !reflect.DeepEqual(a, b) {
			t.Errorf("%q and %q are read differently", sql, other)
		}
	})
}

// isTemplateDigit reports whether template would change the digit at i.
func isTemplateDigit(sql string, i int) bool {
	changed := []byte(sql)
	changed[i] = '1'
	key, ok := template(nil, string(changed))
	return ok && key[i+1] == '0'
}

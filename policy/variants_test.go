package policy_test

import (
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	pg "github.com/pganalyze/pg_query_go/v6"

	"pgproxy/policy"
	"pgproxy/policy/policytest"
)

// TestVariants writes every case of the corpus in other ways that PostgreSQL
// reads alike: each gets the verdict of the case.
func TestVariants(t *testing.T) {
	cases, err := policytest.Load("testdata/corpus")
	if err != nil {
		t.Fatal(err)
	}
	judge := newJudge(t)
	for _, c := range cases {
		last := c.Messages[len(c.Messages)-1]
		for name, text := range variants(last) {
			variant := c
			variant.Messages = append(slices.Clone(c.Messages[:len(c.Messages)-1]), text)
			for access, want := range c.Want {
				if got := verdict(t, judge, variant, access); got != want && want != "syntax" {
					t.Errorf("%s: %s at %s: %s, want %s\n%s", c.Name(), name, access, got, want, text)
				}
			}
		}
	}
}

// variants writes a text in other spacing, with comments, and in capitals. A
// text that the lexer does not read has none.
func variants(sql string) map[string]string {
	result, err := pg.Scan(sql)
	if err != nil {
		return nil
	}
	var tokens, capitals []string
	for _, token := range result.Tokens {
		text := sql[token.Start:token.End]
		if token.Token == pg.Token_SQL_COMMENT || token.Token == pg.Token_C_COMMENT {
			continue
		}
		tokens = append(tokens, text)
		if token.Token == pg.Token_IDENT && text[0] != '"' && !strings.HasPrefix(strings.ToLower(text), "u&") || token.KeywordKind != pg.KeywordKind_NO_KEYWORD {
			text = strings.ToUpper(text)
		}
		capitals = append(capitals, text)
	}
	if strings.Contains(sql, "é") || strings.Contains(sql, "ë") {
		capitals = tokens // only ASCII letters are alike in capitals
	}
	return map[string]string{
		"spaces":        "\n\t" + strings.Join(tokens, "  \t") + "\n",
		"comments":      "/* SELECT 1; */ " + strings.Join(tokens, " /* ; -- */ ") + " -- end",
		"line comments": "-- SELECT 1;\n" + strings.Join(tokens, " -- ' ; \n "),
		"capitals":      strings.Join(capitals, " "),
	}
}

// TestCompany puts every refused case of the corpus among harmless statements:
// it stays refused.
func TestCompany(t *testing.T) {
	cases, err := policytest.Load("testdata/corpus")
	if err != nil {
		t.Fatal(err)
	}
	judge := newJudge(t)
	for _, c := range cases {
		last := c.Messages[len(c.Messages)-1]
		for _, text := range []string{
			"SELECT 1; " + last,
			last + "\n; SELECT 1",
			";;" + last + "\n;",
			"BEGIN; " + last + "\n; COMMIT",
		} {
			company := c
			company.Messages = append(slices.Clone(c.Messages[:len(c.Messages)-1]), text)
			for access, want := range c.Want {
				if got := verdict(t, judge, company, access); want != "ok" && got == "ok" {
					t.Errorf("%s: at %s: ok, want %s\n%s", c.Name(), access, want, text)
				}
			}
		}
	}
}

// FuzzVariants writes any text in other ways: a refusal stays a refusal.
func FuzzVariants(f *testing.F) {
	cases, err := policytest.Load("testdata/corpus")
	if err != nil {
		f.Fatal(err)
	}
	for _, c := range cases {
		f.Add(c.Messages[0])
	}
	judge := newJudge(f)
	f.Fuzz(func(t *testing.T, sql string) {
		if len(sql) > 200 || !utf8.ValidString(sql) || strings.Contains(sql, "\x00") { // so that all variants are read in this process
			t.Skip()
		}
		c := policytest.Case{Messages: []string{sql}}
		for _, access := range []policy.Access{policy.Read, policy.Write} {
			want := verdict(t, judge, c, access)
			if want == "ok" || want == "syntax" {
				continue
			}
			for name, text := range variants(sql) {
				variant := policytest.Case{Messages: []string{text}}
				if got := verdict(t, judge, variant, access); got == "ok" {
					t.Errorf("%q is refused (%s), %s allowed: %q", sql, want, name, text)
				}
			}
		}
	})
}

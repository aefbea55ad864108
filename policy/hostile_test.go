package policy_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pgproxy/policy"
)

// hostile are texts that are made to be expensive to read, by their length.
var hostile = map[string]func(n int) string{
	"sum":         func(n int) string { return "SELECT 1" + strings.Repeat("+1", n/2) },
	"signs":       func(n int) string { return "SELECT " + strings.Repeat("+", n) + "1" },
	"minus":       func(n int) string { return "SELECT " + strings.Repeat("- ", n/2) + "a" },
	"casts":       func(n int) string { return "SELECT 1" + strings.Repeat("::a", n/3) },
	"parentheses": func(n int) string { return "SELECT " + strings.Repeat("(", n/2) + "1" + strings.Repeat(")", n/2) },
	"brackets":    func(n int) string { return "SELECT array" + strings.Repeat("[", n/2) + strings.Repeat("]", n/2) },
	"calls":       func(n int) string { return "SELECT " + strings.Repeat("f(", n/3) + strings.Repeat(")", n/3) },
	"subqueries":  func(n int) string { return strings.Repeat("(SELECT ", n/9) + strings.Repeat(")", n/9) },
	"not":         func(n int) string { return "SELECT " + strings.Repeat("NOT ", n/4) + "a" },
	"unions":      func(n int) string { return "SELECT" + strings.Repeat(" UNION SELECT", n/13) },
	"joins":       func(n int) string { return "SELECT FROM a" + strings.Repeat(" NATURAL JOIN a", n/15) },
	"ctes": func(n int) string {
		return strings.Repeat("WITH a AS (", n/19) + "SELECT" + strings.Repeat(") SELECT", n/19)
	},
	"comments":       func(n int) string { return strings.Repeat("/*", n/4) + strings.Repeat("*/", n/4) },
	"open comments":  func(n int) string { return strings.Repeat("/* ", n/3) },
	"short comments": func(n int) string { return strings.Repeat("/**/", n/4) + "SELECT 1" },
	"operators":      func(n int) string { return "SELECT 1 " + strings.Repeat("+-", n/2) + "1" },
	"at signs":       func(n int) string { return "SELECT " + strings.Repeat("@", n) + "1" },
	"slashes":        func(n int) string { return "SELECT 1" + strings.Repeat("/ *", n/3) + "1" },
	"statements":     func(n int) string { return strings.Repeat("a;", n/2) },
	"selects":        func(n int) string { return strings.Repeat("SELECT 1;", n/9) },
	"semicolons":     func(n int) string { return strings.Repeat(";", n) },
	"list":           func(n int) string { return "SELECT 1" + strings.Repeat(",1", n/2) },
	"dollars":        func(n int) string { return strings.Repeat("$a", n/2) },
	"quotes":         func(n int) string { return "SELECT " + strings.Repeat("'", n) },
	"string parts":   func(n int) string { return "SELECT ''" + strings.Repeat("\n''", n/3) },
	"spaces":         func(n int) string { return "SELECT ''" + strings.Repeat("\n", n) },
	"zeros":          func(n int) string { return "SELECT " + strings.Repeat("0", n) },
	"identifier":     func(n int) string { return "SELECT " + strings.Repeat("a", n) },
	"dots":           func(n int) string { return "SELECT a" + strings.Repeat(".a", n/2) },
	"ors":            func(n int) string { return "DELETE FROM t WHERE a=1" + strings.Repeat(" OR a=1", n/7) },
	"and of ors":     func(n int) string { return "DELETE FROM t WHERE true" + strings.Repeat(" AND (a=1 OR b=1)", n/17) },
}

// TestHostile reads hostile texts of many sizes: each is read or refused, and
// soon.
func TestHostile(t *testing.T) {
	judge := newJudge(t)
	sizes := []int{1 << 10, 8 << 10, 64 << 10, 1 << 20}
	if !testing.Short() {
		sizes = append(sizes, 16<<20-64)
	}
	for name, text := range hostile {
		for _, size := range sizes {
			began := time.Now()
			msg, err := judge.Parse(t.Context(), text(size))
			took := time.Since(began)
			if r, ok := err.(*policy.Refusal); err != nil && (!ok || r.Code != "54001" && r.Code != "42601") {
				t.Errorf("%s of %d bytes: %v", name, size, err)
			}
			if took > 3*10*time.Second { // the parser's limit, on a busy machine
				t.Errorf("%s of %d bytes took %v", name, size, took)
			}
			result := "read"
			if err != nil {
				result = err.Error()
			} else if len(msg.Statements) > 0 {
				result = fmt.Sprintf("%d statements", len(msg.Statements))
			}
			t.Logf("%-15s %8d bytes %10v %.80s", name, size, took.Round(time.Microsecond), result)
		}
	}
}

package policy

import (
	"context"
	"errors"
	"strings"
	"testing"
)

// fakeCatalog answers that a table has the primary key (id), or fails.
type fakeCatalog struct {
	rows [][]string
	err  error
}

func (c fakeCatalog) Query(context.Context, string) ([][]string, error) { return c.rows, c.err }
func (c fakeCatalog) Close() error                                      { return nil }

// explainer explains by the text of a policy file.
func explainer(t *testing.T, text string) *Explainer {
	t.Helper()
	p, err := Parse("policy.hujson", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	judge, err := NewJudge()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { judge.Close() })
	return &Explainer{
		Rules:  p.RuleFor,
		Judge:  judge,
		Served: Served{Default: "shop", Names: []string{"crm"}},
	}
}

const explainPolicy = `{
	"callers": {
		"reason@example.com": {"require_reason": true},
		"lift@example.com": {"may_lift": true},
		"asking@example.com": {"access": "read", "elevate": {"access": "write", "by": "asking", "for": "15m"}},
		"why@example.com": {"access": "read", "elevate": {"access": "write", "by": "reason", "for": "15m"}},
		"two@example.com": {"access": "read", "elevate": {"access": "write", "by": "approval", "for": "15m"}},
		"crm@example.com": {"databases": ["crm"]},
		"key@example.com": {"require_where": "key"},
		"tag:ci": {"access": "read"},
		"out@example.com": null
	}
}`

// The verdict of explain is the verdict of a session, in everything that a
// session asks about and the statement's text does not say.
func TestExplain(t *testing.T) {
	for _, tt := range []struct {
		caller, database, reason, sql string
		want                          string // the verdict, in an expectation's words
	}{
		{"", "", "", "SELECT 1", "deny nobody"},
		{"x@example.com", "", "", "SELECT 1", "allow"},
		{"x@example.com", "", "", "DROP TABLE t", "deny access"},
		{"x@example.com", "", "", "SELEC 1", "deny syntax"},
		{"x@example.com", "", "", "SET pgproxy.access = 'write'", "allow"}, // it is there already
		{"x@example.com", "", "", "SET pgproxy.access = 'admin'", "deny elevate"},
		{"asking@example.com", "", "", "DELETE FROM t WHERE id = 1", "deny access"},
		{"asking@example.com", "", "", "SET pgproxy.access = 'write'; DELETE FROM t WHERE id = 1", "allow"},
		{"asking@example.com", "", "", "SET pgproxy.access = 'write'; RESET pgproxy.access; DELETE FROM t WHERE id = 1", "deny access"},
		{"asking@example.com", "", "", "SET pgproxy.access = 'write'; DROP TABLE t", "deny access"},
		{"asking@example.com", "", "", "SET pgproxy.access = 'admin'; DROP TABLE t", "deny elevate"},
		{"why@example.com", "", "", "SET pgproxy.access = 'write'; DELETE FROM t WHERE id = 1", "deny elevate"},
		{"why@example.com", "", "INC-1", "SET pgproxy.access = 'write'; DELETE FROM t WHERE id = 1", "allow"},
		{"why@example.com", "", "", "SET pgproxy.reason = 'INC-1'; SET pgproxy.access = 'write'; DELETE FROM t WHERE id = 1", "allow"},
		{"two@example.com", "", "", "SET pgproxy.access = 'write'", "allow"},
		{"two@example.com", "", "", "SET pgproxy.access = 'write'; DELETE FROM t WHERE id = 1", "deny elevate"},
		{"two@example.com", "", "", "SET pgproxy.approve = 'abc'", "deny may_approve"},
		{"tag:ci", "", "", "SELECT 1", "allow"},
		{"tag:ci", "", "", "DELETE FROM t WHERE id = 1", "deny access"},
		{"tag:other", "", "", "SELECT 1", "deny tagged"},
		{"out@example.com", "", "", "SELECT 1", "deny callers"},

		{"reason@example.com", "", "", "SELECT 1", "allow"},
		{"reason@example.com", "", "", "DELETE FROM t WHERE id = 1", "deny require_reason"},
		{"reason@example.com", "", "INC-123", "DELETE FROM t WHERE id = 1", "allow"},
		{"reason@example.com", "", "", "SET pgproxy.reason = 'INC-123'; DELETE FROM t WHERE id = 1", "allow"},
		{"reason@example.com", "", "INC-123", "RESET pgproxy.reason; DELETE FROM t WHERE id = 1", "deny require_reason"},
		{"reason@example.com", "", "", "DELETE FROM t WHERE id = 1; SET pgproxy.reason = 'INC-123'", "deny own_settings"},

		{"x@example.com", "crm", "", "SELECT 1", "allow"},
		{"x@example.com", "hr", "", "SELECT 1", "deny database"},
		{"crm@example.com", "", "", "SELECT 1", "deny database"},
		{"crm@example.com", "crm", "", "SELECT 1", "allow"},

		{"x@example.com", "", "", "SET pgproxy.max_rows = 20000", "deny may_lift"},
		{"x@example.com", "", "", "SET pgproxy.max_rows = 5", "allow"},
		{"lift@example.com", "", "", "SET pgproxy.max_rows = 20000", "allow"},
		{"lift@example.com", "", "", "SET LOCAL pgproxy.max_rows = 20000", "deny own_settings"},
		{"x@example.com", "", "", "SHOW pgproxy.limits", "allow"},
		{"x@example.com", "", "", "SHOW pgproxy.max_rows; SHOW pgproxy.reason", "allow"},
		{"x@example.com", "", "", "SHOW pgproxy.nosuch", "deny unknown_setting"},
		{"x@example.com", "", "", "SHOW pgproxy.nosuch; SELECT 1", "deny unknown_setting"},
	} {
		x := explainer(t, explainPolicy)
		x.Database, x.Reason = tt.database, tt.reason
		e, err := x.Explain(t.Context(), CallerNamed(tt.caller, ""), tt.sql)
		if err != nil {
			t.Errorf("%s: %s: %v", tt.caller, tt.sql, err)
			continue
		}
		if got := e.verdict(); got != tt.want {
			t.Errorf("%s: %s: %s, want %s", tt.caller, tt.sql, got, tt.want)
		}
	}
}

// What cannot be judged has no verdict, and above all none of yes or no.
func TestExplainNotJudged(t *testing.T) {
	x := explainer(t, explainPolicy)
	key, other := CallerNamed("key@example.com", ""), CallerNamed("x@example.com", "")
	if _, err := x.Explain(t.Context(), key, "DELETE FROM t WHERE id = 1"); err == nil || !strings.Contains(err.Error(), "no database to ask") {
		t.Errorf("without a catalogue: %v", err)
	}
	if e, err := x.Explain(t.Context(), other, "DELETE FROM t WHERE id = 1"); err != nil || !e.Allowed() {
		t.Errorf("without a catalogue, of no keys: %v", err)
	}
	x.Open = func(context.Context, Rule, string) (OpenCatalog, error) {
		return nil, errors.New("no catalogue here")
	}
	for _, caller := range []Caller{key, other} {
		if _, err := x.Explain(t.Context(), caller, "DELETE FROM t WHERE id = 1"); err == nil || !strings.Contains(err.Error(), "no catalogue here") {
			t.Errorf("with a catalogue out of reach: %v", err)
		}
	}
	if e, err := x.Explain(t.Context(), key, "SELECT 1"); err != nil || !e.Allowed() {
		t.Errorf("the catalogue was asked for nothing: %v", err)
	}
	x.Open = func(context.Context, Rule, string) (OpenCatalog, error) {
		return fakeCatalog{err: errors.New("server gone")}, nil
	}
	if _, err := x.Explain(t.Context(), key, "DELETE FROM t WHERE id = 1"); err == nil || !strings.Contains(err.Error(), "server gone") {
		t.Errorf("with a catalogue that fails: %v", err)
	}
	for _, sql := range []string{"", " -- nothing", ";"} {
		if _, err := x.Explain(t.Context(), key, sql); err == nil {
			t.Errorf("%q has a verdict", sql)
		}
	}
	x.Reason = "x" // too short for one
	if _, err := x.Explain(t.Context(), key, "SELECT 1"); err == nil {
		t.Error("a session could not have this reason")
	}
}

func TestExplanationText(t *testing.T) {
	x := explainer(t, explainPolicy)
	for caller, want := range map[string][]string{
		"lift@example.com": {"caller lift@example.com", "database shop", "verdict allow", "kinds SET, SELECT", "databases crm, shop", "max_rows 77", "max_affected_rows 1000"},
		"crm@example.com":  {"verdict deny", `3D000 pgproxy: database "shop" is not served`, "Served to you: crm."},
		"out@example.com":  {"verdict deny", "error 28000", "rule callers"},
	} {
		e, err := x.Explain(t.Context(), CallerNamed(caller, ""), "SET pgproxy.max_rows = 77; SELECT 1")
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		e.WriteTo(&b)
		said := strings.Join(strings.Fields(b.String()), " ")
		for _, text := range want {
			if !strings.Contains(said, text) {
				t.Errorf("%s: %q is missing from\n%s", caller, text, b.String())
			}
		}
	}
}

func TestExpectations(t *testing.T) {
	const text = `-- The policy's own test.

-- expect: x@example.com allow
SELECT 1

-- expect: x@example.com deny access
-- expect: tag:ci  deny  access
-- a remark
DROP TABLE
  t;
-- expect: reason@example.com allow
SET pgproxy.reason = 'INC-123';
DELETE FROM t WHERE id = 1
-- expect: reason@example.com allow
DELETE FROM t WHERE id = 1
--expect: x@example.com deny require_where
DELETE FROM t WHERE id = 1
-- expect: key@example.com allow
DELETE FROM t WHERE id = 1
`
	list, err := ParseExpectations("t.sql", text)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	different, err := explainer(t, explainPolicy).Test(t.Context(), &out, "t.sql", list)
	want := `t.sql:14: reason@example.com: want allow, got deny require_reason (pgproxy: SET pgproxy.reason = 'INC-123' first: statements that change anything need a reason)
t.sql:16: x@example.com: want deny require_where, got allow
`
	if different != 2 || out.String() != want {
		t.Errorf("%d differ:\n%swant\n%s", different, out.String(), want)
	}
	if err == nil || !strings.HasPrefix(err.Error(), "t.sql:18: not judged: ") {
		t.Errorf("not judged: %v", err)
	}
}

// An expectation that is mistyped must not pass for a comment.
func TestExpectationsRefused(t *testing.T) {
	for text, want := range map[string]string{
		"":                                       "no line",
		"SELECT 1\n-- expect: a allow\nSELECT 1": "t:1: a statement without",
		"-- expect a allow\nSELECT 1":            "t:1: not ",
		"-- expect: a allow\nSELECT 1\n-- Expect: a deny\nSELECT 1":      "t:3: not ",
		"-- expect: a deny\nSELECT 1":                                    "t:1: not ",
		"-- expect: a allow access\nSELECT 1":                            "t:1: not ",
		"-- expect: a allow\n\n":                                         "t:1: an expectation without",
		"-- expect: a allow\nSELECT 1\n-- expect: b allow\n-- nothing\n": "t:3: an expectation without",
	} {
		if _, err := ParseExpectations("t", text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

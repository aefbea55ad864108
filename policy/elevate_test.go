package policy

import (
	"strings"
	"testing"
	"time"
)

// Of several the highest access counts, then the easiest consent, then the
// longest time; an elevate to what the sum has already gives nothing.
func TestElevateAddsUp(t *testing.T) {
	const (
		writeAsking1   = `{"access":"read","elevate":{"access":"write","by":"asking","for":"1m"}}`
		writeAsking9   = `{"access":"read","elevate":{"access":"write","by":"asking","for":"9m"}}`
		writeReason20  = `{"access":"read","elevate":{"access":"write","by":"reason","for":"20m"}}`
		adminApproval5 = `{"access":"read","elevate":{"access":"admin","by":"approval","for":"5m"}}`
		adminReason2   = `{"access":"write","elevate":{"access":"admin","by":"reason","for":"2m"}}`
		none           = `{"access":"read"}`
		write          = `{"access":"write"}`
	)
	for _, tt := range []struct {
		grants []string
		want   string // what there is to ask for, in words
	}{
		{[]string{none}, ""},
		{[]string{writeAsking1}, "write access for 1min"},
		{[]string{none, writeReason20}, "write access for 20min, with a reason"},
		{[]string{writeAsking1, writeAsking9}, "write access for 9min"},
		{[]string{writeAsking1, writeReason20}, "write access for 1min"},
		{[]string{writeAsking9, adminApproval5}, "admin access for 5min, with another person's approval"},
		{[]string{writeAsking9, adminApproval5, adminReason2}, "admin access for 2min, with a reason"},
		{[]string{writeAsking9, write}, ""},
	} {
		for range tt.grants { // in each order
			tt.grants = append(tt.grants[1:], tt.grants[0])
			rule, err := Builtin().RuleFor(granted(tt.grants...))
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			if rule.Elevate.Access > rule.Access {
				got = rule.Elevate.String()
			}
			if got != tt.want {
				t.Errorf("%v: got %q, want %q", tt.grants, got, tt.want)
			}
			if told := strings.Contains(strings.Join(rule.Describe(), "; "), "SET pgproxy.access gives "+tt.want); told != (tt.want != "") {
				t.Errorf("%v is described as %v", tt.grants, rule.Describe())
			}
		}
	}
	// Half of a grant is none: without an access it would have the default one.
	for _, grant := range []string{
		`{"elevate":{"access":"write","by":"asking","for":"1m"}}`,
		`{"access":"read","elevate":{"access":"write","by":"asking"}}`,
		`{"access":"read","elevate":{"access":"write","for":"1m"}}`,
	} {
		if rule, err := Builtin().RuleFor(granted(grant)); err == nil {
			t.Errorf("%s gives %+v", grant, rule)
		}
	}
}

// A raised access holds while the rule would give it as easily and for as long.
func TestElevationFollowsTheRule(t *testing.T) {
	rule := func(access Access, e Elevate) Rule {
		r := DefaultRule()
		r.Access, r.Elevate = access, e
		return r
	}
	given := Elevate{Admin, WithReason, 10 * time.Minute}
	l := Overrides{reason: "INC-1"}
	if r := l.Set(rule(Read, given), "access", "write"); r != nil {
		t.Fatal(r)
	}
	for _, tt := range []struct {
		base Rule
		want Access
	}{
		{rule(Read, given), Write},
		{rule(Admin, given), Admin},
		{rule(Read, Elevate{}), Read},
		{rule(Read, Elevate{Write, WithReason, 10 * time.Minute}), Write},
		{rule(Read, Elevate{Write, Asking, time.Hour}), Write},
		{rule(Read, Elevate{Admin, Approval, time.Hour}), Read},
		{rule(Read, Elevate{Admin, Asking, time.Minute}), Read},
	} {
		if got := l.Effective(tt.base).Access; got != tt.want {
			t.Errorf("under %s and %+v: %s, want %s", tt.base.Access, tt.base.Elevate, got, tt.want)
		}
	}
	base := rule(Read, given)
	if r := l.Set(base, "access", "read"); r != nil || l.Effective(base).Access != Read {
		t.Errorf("back to what the rule has: %v, %s", r, l.Effective(base).Access)
	}
	if r := l.Set(base, "access", "root"); r == nil || r.Code != "22023" {
		t.Errorf("an access that there is none of: %v", r)
	}
	write := rule(Write, given)
	if r := l.Set(write, "access", "read"); r == nil || r.Code != "22023" || l.Effective(write).Access != Write {
		t.Errorf("less than the rule has: %v", r)
	}
}

// A refusal says that the session may raise its access, where that helps.
func TestRefusalTellsOfElevate(t *testing.T) {
	x := explainer(t, explainPolicy)
	for caller, want := range map[string]string{
		"asking@example.com": "SET pgproxy.access = 'write' gives write access for 15min.",
		"two@example.com":    "SET pgproxy.access = 'write' gives write access for 15min, with another person's approval.",
	} {
		e, err := x.Explain(t.Context(), CallerNamed(caller, ""), "DELETE FROM t WHERE id = 1")
		if err != nil || e.Decision.Refusal == nil || e.Decision.Refusal.Hint != want {
			t.Errorf("%s: %+v, %v", caller, e.Decision.Refusal, err)
		}
		e, err = x.Explain(t.Context(), CallerNamed(caller, ""), "DROP TABLE t")
		if err != nil || strings.Contains(e.Decision.Refusal.Hint, "SET pgproxy.access") {
			t.Errorf("%s: %+v, %v", caller, e.Decision.Refusal, err)
		}
	}
}

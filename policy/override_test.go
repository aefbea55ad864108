package policy

import (
	"strings"
	"testing"
	"time"
)

func TestOverrides(t *testing.T) {
	fixed, free := DefaultRule(), DefaultRule()
	free.MayLift = true
	for _, tt := range []struct {
		name, value string
		base        Rule
		code        string // of the refusal; empty if done
		get         func(Rule) int64
		want        int64
	}{
		{"max_rows", "5", fixed, "", func(r Rule) int64 { return r.MaxRows }, 5},
		{"MAX_ROWS", " 10000 ", fixed, "", func(r Rule) int64 { return r.MaxRows }, 10000},
		{"max_rows", "10001", fixed, "42501", func(r Rule) int64 { return r.MaxRows }, 10000},
		{"max_rows", "0", fixed, "42501", func(r Rule) int64 { return r.MaxRows }, 10000},
		{"max_rows", "100000", free, "", func(r Rule) int64 { return r.MaxRows }, 100000},
		{"max_rows", "0", free, "", func(r Rule) int64 { return r.MaxRows }, 0},
		{"max_rows", "-1", free, "22023", func(r Rule) int64 { return r.MaxRows }, 10000},
		{"max_rows", "many", free, "22023", func(r Rule) int64 { return r.MaxRows }, 10000},
		{"max_rows", "9223372036854775808", free, "22023", func(r Rule) int64 { return r.MaxRows }, 10000},
		{"max_bytes", "64MB", free, "", func(r Rule) int64 { return r.MaxBytes }, 64 << 20},
		{"max_bytes", "1 KiB", fixed, "", func(r Rule) int64 { return r.MaxBytes }, 1024},
		{"max_bytes", "9223372036854775807kB", free, "22023", func(r Rule) int64 { return r.MaxBytes }, 16 << 20},
		{"max_bytes", "1 parsec", free, "22023", func(r Rule) int64 { return r.MaxBytes }, 16 << 20},
		{"max_affected_rows", "2000", free, "", func(r Rule) int64 { return r.MaxAffectedRows }, 2000},
		{"statement_timeout", "5min", free, "", func(r Rule) int64 { return int64(r.StatementTimeout) }, int64(5 * time.Minute)},
		{"statement_timeout", "1500", fixed, "", func(r Rule) int64 { return int64(r.StatementTimeout) }, int64(1500 * time.Millisecond)},
		{"idle_in_transaction_session_timeout", "5min", fixed, "42501", func(r Rule) int64 { return int64(r.IdleInTransactionTimeout) }, int64(30 * time.Second)},
		{"idle_in_transaction_session_timeout", "5min", free, "", func(r Rule) int64 { return int64(r.IdleInTransactionTimeout) }, int64(5 * time.Minute)},
		{"idle_in_transaction_session_timeout", "5s", fixed, "", func(r Rule) int64 { return int64(r.IdleInTransactionTimeout) }, int64(5 * time.Second)},
		{"statement_timeout", "2147483648", free, "22023", func(r Rule) int64 { return int64(r.StatementTimeout) }, int64(30 * time.Second)},
		{"statement_timeout", "1us", free, "22023", func(r Rule) int64 { return int64(r.StatementTimeout) }, int64(30 * time.Second)},
		{"user", "x", free, "42501", func(r Rule) int64 { return 0 }, 0},
		{"max_row", "1", free, "42704", func(r Rule) int64 { return 0 }, 0},
	} {
		var o Overrides
		refusal := o.Set(tt.base, tt.name, tt.value)
		code := ""
		if refusal != nil {
			code = refusal.Code
		}
		if got := tt.get(o.Effective(tt.base)); code != tt.code || got != tt.want {
			t.Errorf("SET %s = %q: got %q, %d; want %q, %d", tt.name, tt.value, code, got, tt.code, tt.want)
		}
	}
}

// TestOverridesFollowTheRule: a session raised its caps; then its rule lost
// may_lift, or became stricter than what the session had chosen.
func TestOverridesFollowTheRule(t *testing.T) {
	base := DefaultRule()
	base.MayLift = true
	var o Overrides
	for name, value := range map[string]string{"max_rows": "50000", "max_affected_rows": "10"} {
		if r := o.Set(base, name, value); r != nil {
			t.Fatal(r)
		}
	}
	if r := o.Effective(base); r.MaxRows != 50000 || r.MaxAffectedRows != 10 {
		t.Errorf("lifted: %+v", r)
	}
	base.MayLift = false
	if r := o.Effective(base); r.MaxRows != 10000 || r.MaxAffectedRows != 10 {
		t.Errorf("may_lift withdrawn: %+v", r)
	}
	base.MaxAffectedRows = 5
	if r := o.Effective(base); r.MaxAffectedRows != 5 {
		t.Errorf("narrowed: %+v", r)
	}
	if r := o.Reset("max_affected_rows"); r != nil || o.Effective(base).MaxAffectedRows != 5 {
		t.Errorf("reset: %v", r)
	}
	if r := o.Reset("ALL"); r != nil || o.Reason() != "" {
		t.Errorf("reset all: %v", r)
	}
	for name, code := range map[string]string{"nothing": "42704", "session": "42501"} {
		if r := o.Reset(name); r == nil || r.Code != code {
			t.Errorf("reset %s: %v", name, r)
		}
	}
}

func TestReason(t *testing.T) {
	var o Overrides
	if r := o.Set(DefaultRule(), "reason", "  INC-123: \u00e9t\u00e9 "); r != nil || o.Reason() != "INC-123: \u00e9t\u00e9" {
		t.Errorf("got %v, %q", r, o.Reason())
	}
	for _, bad := range []string{"", "  ", "ab", "INC\n123", "INC\x00123", "INC\xff1", strings.Repeat("x", maxReason+1)} {
		if r := o.Set(DefaultRule(), "reason", bad); r == nil || r.Code != "22023" {
			t.Errorf("%q: %v", bad, r)
		}
	}
	if o.Reason() != "INC-123: \u00e9t\u00e9" {
		t.Errorf("a refused reason took the place of a good one: %q", o.Reason())
	}
	if o.Reset("reason") != nil || o.Reason() != "" {
		t.Error("reset")
	}
}

func TestLimits(t *testing.T) {
	rule := DefaultRule()
	rule.MaxRows = 0
	var got []string
	for _, s := range rule.Limits() {
		got = append(got, s.Name+"="+s.Value)
	}
	if want := "max_rows=none max_bytes=16 MiB max_affected_rows=1000 statement_timeout=30s idle_in_transaction_session_timeout=30s dry_run=off"; strings.Join(got, " ") != want {
		t.Errorf("got %v", got)
	}
}

// TestPlainAfterLift: what a session made stricter for itself it may make less
// strict again, up to the policy's limit, by the plain SET too.
func TestPlainAfterLift(t *testing.T) {
	var o Overrides
	if r := o.Set(DefaultRule(), "statement_timeout", "1s"); r != nil {
		t.Fatal(r)
	}
	rule := o.Effective(DefaultRule())
	if rule.StatementTimeout != time.Second {
		t.Fatalf("not made stricter: %v", rule.StatementTimeout)
	}
	for value, want := range map[string]bool{"500ms": true, "20s": true, "30s": true, "31s": false, "0": false} {
		if got := rule.TimeoutWithin("statement_timeout", value); got != want {
			t.Errorf("%s: %v", value, got)
		}
	}
}

func TestLiftHint(t *testing.T) {
	fixed := DefaultRule()
	fixed.Contact = "#dba"
	free := fixed
	free.MayLift = true
	for _, c := range []struct {
		rule       Rule
		name       string
		need       int64
		want, then string // a SET in it, and what it makes of the rule
	}{
		{free, "max_affected_rows", 2999, "SET pgproxy.max_affected_rows = 2999 raises it for this session.", "2999"},
		{free, "max_bytes", 32 << 20, "SET pgproxy.max_bytes = '32 MiB' raises it for this session.", "32 MiB"},
		{free, "statement_timeout", 120_000, "SET pgproxy.statement_timeout = '2min' raises it for this session.", "2min"},
		{fixed, "max_affected_rows", 2999, "max_affected_rows over 1000 needs may_lift in your rule. Ask #dba.", ""},
		{fixed, "idle_in_transaction_session_timeout", 60_000, "idle_in_transaction_session_timeout over 30s needs may_lift in your rule. Ask #dba.", ""},
	} {
		got := c.rule.LiftHint(c.name, c.need)
		if got != c.want {
			t.Errorf("%s: %s", c.name, got)
		}
		if c.then == "" {
			continue
		}
		_, value, _ := strings.Cut(got, "= ")
		value, _, _ = strings.Cut(value, " raises")
		var o Overrides
		if r := o.Set(c.rule, c.name, strings.Trim(value, "'")); r != nil {
			t.Errorf("%s: the hint is refused: %v", c.name, r)
		}
		lim, _ := limitNamed(c.name)
		rule := o.Effective(c.rule)
		if got := lim.format(lim.get(&rule)); got != c.then {
			t.Errorf("%s: the hint makes it %s", c.name, got)
		}
	}
}

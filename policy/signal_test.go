package policy

import (
	"slices"
	"testing"
	"time"
)

// What is taken for a signal, and so served by the proxy; everything else is a
// function call that the server would run.
func TestSignalOf(t *testing.T) {
	judge, err := NewJudge()
	if err != nil {
		t.Fatal(err)
	}
	defer judge.Close()
	for sql, want := range map[string]*Signal{
		"SELECT pg_cancel_backend(42)":                          {CancelBackend, 42, 0, CancelBackend},
		"SELECT pg_cancel_backend(43)":                          {CancelBackend, 43, 0, CancelBackend}, // from the cache, were it kept by its template
		"select pg_catalog.pg_terminate_backend ( 42 ) ;":       {TerminateBackend, 42, 0, TerminateBackend},
		"/* x */ SELECT pg_terminate_backend(42, 5000) AS gone": {TerminateBackend, 42, 5 * time.Second, "gone"},
		`SELECT "pg_catalog"."pg_cancel_backend"(0)`:            {CancelBackend, 0, 0, CancelBackend},
		"SELECT pg_cancel_backend(-1)":                          {CancelBackend, -1, 0, CancelBackend},

		"SELECT public.pg_cancel_backend(42)":                                  nil,
		"SELECT pg_cancel_backend(42, 1)":                                      nil,
		"SELECT pg_terminate_backend(42, -1)":                                  nil,
		"SELECT pg_cancel_backend(NULL)":                                       nil,
		"SELECT pg_cancel_backend('42')":                                       nil,
		"SELECT pg_cancel_backend(42::int)":                                    nil,
		"SELECT pg_cancel_backend(2147483648)":                                 nil,
		"SELECT pg_cancel_backend(pg_backend_pid())":                           nil,
		"SELECT pg_cancel_backend(42), 1":                                      nil,
		"SELECT pg_cancel_backend(42) FROM pg_stat_activity":                   nil,
		"SELECT pg_cancel_backend(42) WHERE true":                              nil,
		"SELECT pg_cancel_backend(42) LIMIT 1":                                 nil,
		"SELECT DISTINCT pg_cancel_backend(42)":                                nil,
		"SELECT pg_cancel_backend(42) FOR UPDATE":                              nil,
		"SELECT pg_cancel_backend(42) UNION SELECT true":                       nil,
		"SELECT pg_cancel_backend(42) INTO TEMP x":                             nil,
		"SELECT pg_cancel_backend(42) OVER ()":                                 nil,
		"SELECT pg_cancel_backend(DISTINCT 42)":                                nil,
		"SELECT pg_cancel_backend(VARIADIC 42)":                                nil,
		"SELECT pg_cancel_backend(pid => 42)":                                  nil,
		"SELECT (pg_cancel_backend(42)).x":                                     nil,
		"WITH x AS (SELECT 1) SELECT pg_cancel_backend(42)":                    nil,
		"SELECT (SELECT pg_cancel_backend(42))":                                nil,
		"EXPLAIN ANALYZE SELECT pg_cancel_backend(42)":                         nil,
		"PREPARE p AS SELECT pg_cancel_backend(42)":                            nil,
		"DECLARE c CURSOR FOR SELECT pg_cancel_backend(42)":                    nil,
		"VALUES (pg_cancel_backend(42))":                                       nil,
		"SELECT pid FROM pg_stat_activity WHERE pg_terminate_backend(pid)":     nil,
		"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = 1": nil,
	} {
		msg, err := judge.Parse(t.Context(), sql)
		if err != nil {
			t.Errorf("%s: %v", sql, err)
			continue
		}
		var got *Signal
		if proxy := msg.Statements[0].Proxy; proxy != nil {
			got = proxy.Signal
		}
		if (got == nil) != (want == nil) || got != nil && *got != *want {
			t.Errorf("%s: got %+v, want %+v", sql, got, want)
		}
	}
}

// Who may signal whom.
func TestSignalVerdict(t *testing.T) {
	judge, err := NewJudge()
	if err != nil {
		t.Fatal(err)
	}
	defer judge.Close()
	own := func(pid int) bool { return pid == 1 }
	rule := func(access Access, change func(*Rule)) *Rule {
		r := DefaultRule()
		r.Access = access
		change(&r)
		return &r
	}
	plain := func(*Rule) {}
	may := func(r *Rule) { r.MaySignal = true }
	for _, tt := range []struct {
		name, sql string
		rule      *Rule
		want      string // the rule that refuses
	}{
		{"own, to read", "SELECT pg_terminate_backend(1)", rule(Read, plain), ""},
		{"own, where it is denied", "SELECT pg_terminate_backend(1)", rule(Read, func(r *Rule) { r.Deny = []string{TerminateBackend} }), ""},
		{"own, without a reason", "SELECT pg_terminate_backend(1)", rule(Read, func(r *Rule) { r.RequireReason = true }), ""},
		{"another", "SELECT pg_terminate_backend(2)", rule(Write, plain), "function"},
		{"another, by may_signal", "SELECT pg_terminate_backend(2)", rule(Read, may), ""},
		{"another, by access", "SELECT pg_terminate_backend(2)", rule(Admin, plain), ""},
		{"another, by allow", "SELECT pg_cancel_backend(2)", rule(Read, func(r *Rule) { r.Allow = []string{CancelBackend} }), ""},
		{"a deny wins", "SELECT pg_terminate_backend(2)", rule(Admin, func(r *Rule) { r.MaySignal, r.Deny = true, []string{TerminateBackend} }), "deny"},
		{"an only without it", "SELECT pg_terminate_backend(2)", rule(Read, func(r *Rule) { r.MaySignal, r.Only = true, []string{"SELECT"} }), "only"},
		{"another, without a reason", "SELECT pg_terminate_backend(2)", rule(Read, func(r *Rule) { r.MaySignal, r.RequireReason = true, true }), "require_reason"},
		{"several", "SELECT pg_cancel_backend(1); SELECT pg_cancel_backend(1)", rule(Read, plain), ""},
		{"one of several is another", "SELECT pg_cancel_backend(1); SELECT pg_cancel_backend(2)", rule(Read, plain), "function"},
		{"behind other statements", "SELECT 1; SELECT pg_cancel_backend(1)", rule(Read, may), "function"},
		{"behind other statements, at admin", "SELECT 1; SELECT pg_cancel_backend(1)", rule(Admin, plain), ""},
		{"a setting behind that", "SELECT 1; SELECT pg_cancel_backend(1); SHOW pgproxy.limits", rule(Admin, plain), "own_settings"},
		{"not plain", "SELECT pg_cancel_backend(pid) FROM pg_stat_activity", rule(Write, may), "function"},
		{"prepared", "PREPARE p AS SELECT pg_cancel_backend(1)", rule(Write, may), "function"},
	} {
		msg, err := judge.Parse(t.Context(), tt.sql)
		if err != nil {
			t.Fatal(err)
		}
		d := Decide(t.Context(), tt.rule, msg, Session{Owns: own})
		got := ""
		if d.Refusal != nil {
			got = d.Refusal.Rule
		}
		if got != tt.want {
			t.Errorf("%s: got %q (%v), want %q", tt.name, got, d.Refusal, tt.want)
		}
		// The page asks the rule, and must come to the same.
		if single := msg.Statements[0].Proxy; single != nil && len(msg.Statements) == 1 && single.Signal.PID == 2 {
			refused := slices.Contains([]string{"function", "deny", "only"}, tt.want)
			if tt.rule.Signals(single.Signal.Function) == refused {
				t.Errorf("%s: the rule itself says otherwise", tt.name)
			}
		}
	}
}

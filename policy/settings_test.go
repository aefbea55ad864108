package policy_test

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgproxy/policy"
	"pgproxy/upstream/upstreamtest"
)

// hiddenSettings are the settings of the table that no server here shows:
// pg_settings leaves them out, they are older names of others, or their library
// needs something that the machine does not have.
var hiddenSettings = []string{
	"default_with_oids", "is_superuser", "role", "seed", "session_authorization", "sort_mem", "ssl_renegotiation_limit", "vacuum_mem",
	"extension_destdir", // Debian's
	"plperl.on_init", "plperl.on_plperl_init", "plperl.on_plperlu_init", "plperl.use_strict",
	"postgis.backend", "sepgsql.debug_audit", "sepgsql.permissive",
}

// TestSettingsOfServers asks real servers, with all their libraries loaded, for
// their settings. The table must have each, with its context; and what only a
// superuser may change, what loads libraries and what is about the server's log
// must not be the session's own there.
func TestSettingsOfServers(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	seen, servers := slices.Clone(hiddenSettings), 0
	upstreamtest.AllVersions(t, func(t *testing.T, s *upstreamtest.Server) {
		conn := connect(t, s, "settings")
		libraries, err := filepath.Glob(query(t, conn, "SELECT setting FROM pg_config WHERE name = 'PKGLIBDIR'")[0][0] + "/*.so")
		if err != nil || len(libraries) == 0 {
			t.Fatalf("no libraries: %v", err)
		}
		for _, path := range libraries {
			if _, err := conn.Exec(t.Context(), fmt.Sprintf("LOAD '%s'", path)).ReadAll(); err != nil {
				t.Logf("%s is not reviewed: %v", filepath.Base(path), err)
			}
		}
		for _, row := range query(t, conn, "SELECT name, context, category FROM pg_settings ORDER BY 1") {
			name, context, category := row[0], row[1], row[2]
			seen = append(seen, name)
			contexts, class := policy.SettingLine(name)
			switch {
			case class == "":
				t.Errorf("%s (%s) is not in settings.tsv", name, context)
			case !slices.Contains(strings.Split(contexts, ","), context):
				t.Errorf("%s has the context %s, in settings.tsv %s", name, context, contexts)
			case context != "user" && class != "server" && class != "proxy",
				class == "session" && (strings.Contains(category, "Logging") || strings.Contains(category, "Preloading")):
				t.Errorf("%s (%s, %s) has the class %s in settings.tsv", name, context, category, class)
			}
		}
		servers++
	}, upstreamtest.Set("shared_preload_libraries", "pg_stat_statements,pg_prewarm"))
	if servers < 5 {
		return
	}
	for _, name := range policy.SettingNames() {
		if !slices.Contains(seen, name) && !strings.HasSuffix(name, ".*") {
			t.Errorf("settings.tsv has %s, which no server has", name)
		}
	}
}

// standIn runs what is said of the timeouts with lock_timeout instead, which the
// server reads and shows in the same way, and which ends nothing here.
var standIn = strings.NewReplacer("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "lock_timeout")

// TestTimeoutValues writes values for the timeouts in many ways. What the
// verdict lets pass, by SET and by set_config, the server does not take or has
// as a value that is within the rule's.
func TestTimeoutValues(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	judge := newJudge(t)
	rule := policy.DefaultRule()
	upstreamtest.Versions(t, func(t *testing.T, s *upstreamtest.Server) {
		conn := connect(t, s, "timeouts")
		allowed, taken := 0, 0
		for _, value := range timeoutValues() {
			for _, sql := range []string{
				"SET statement_timeout = '" + value + "'",
				"SET SESSION statement_timeout = " + value,
				"SELECT set_config('statement_timeout', '" + value + "', false)",
				"SET idle_in_transaction_session_timeout = '" + value + "'",
			} {
				msg, err := judge.Parse(t.Context(), sql)
				if err != nil || policy.Decide(t.Context(), &rule, msg, policy.Session{}).Refusal != nil {
					continue
				}
				allowed++
				if _, err := conn.Exec(t.Context(), standIn.Replace(sql)).ReadAll(); err != nil {
					continue
				}
				taken++
				row := query(t, conn, "SELECT setting, current_setting(name) FROM pg_settings WHERE name = 'lock_timeout'")[0]
				if millis, err := strconv.Atoi(row[0]); err != nil || millis < 1 || millis > 30_000 {
					t.Errorf("%s: it is %s", sql, row[0])
				}
				if !rule.TimeoutWithin("statement_timeout", row[1]) {
					t.Errorf("%s: it is shown as %s, which TimeoutWithin does not know", sql, row[1])
				}
			}
		}
		if taken < 100 {
			t.Errorf("%d values were allowed and %d of them taken: too few to show anything", allowed, taken)
		}
	})
}

// timeoutValues are numbers in many spellings, with units of PostgreSQL's, of Go's and
// of nobody's.
func timeoutValues() []string {
	var values []string
	for _, number := range []string{
		"0", "1", "30", "400", "010", "0100", "08", "0x10", "0x7fffffff", "1e3", "1e9", "1E1", "0.4", "0.5", "1.5", ".5", "5.", "30000", "30001",
		"2147483647", "2147483648", "99999999999999999999", "-1", "+5", " 5 ", "1_000", "0b1", "0o7", "1m30", "NaN", "inf", "1,5", "",
	} {
		for _, unit := range []string{"", "us", "µs", "ns", "ms", " ms", "s", "m", "min", " min ", "h", "d", "MS", "S", "Min", "sec", "ms s", "\u00a0ms"} {
			values = append(values, number+unit)
		}
	}
	return values
}

// TestTimeoutWithin compares what the server shows with a rule.
func TestTimeoutWithin(t *testing.T) {
	upstreamtest.Versions(t, func(t *testing.T, s *upstreamtest.Server) {
		conn := connect(t, s, "within")
		rule := policy.DefaultRule()
		lifts, free := rule, rule
		lifts.MayLift, free.StatementTimeout = true, 0
		for _, c := range []struct {
			value              string
			within, inFreeRule bool
		}{
			{"1", true, true}, {"400ms", true, true}, {"29999", true, true}, {"30s", true, true}, {"0.5min", true, true}, {"30001", false, true},
			{"1min", false, true}, {"90s", false, true}, {"2h", false, true}, {"1d", false, true}, {"2147483647", false, true}, {"0", false, true},
		} {
			shown := query(t, conn, "SELECT set_config('lock_timeout', '"+c.value+"', false)")[0][0]
			if got := rule.TimeoutWithin("statement_timeout", shown); got != c.within {
				t.Errorf("%s, shown as %s: %v", c.value, shown, got)
			}
			if !lifts.TimeoutWithin("statement_timeout", shown) || free.TimeoutWithin("statement_timeout", shown) != c.inFreeRule {
				t.Errorf("%s, shown as %s: not for those who may lift, or who have no limit", c.value, shown)
			}
		}
	})
	rule := policy.DefaultRule()
	if rule.TimeoutWithin("work_mem", "1s") || rule.TimeoutWithin("statement_timeout", "") || rule.TimeoutWithin("statement_timeout", "soon") {
		t.Error("what is no timeout is within the rule")
	}
}

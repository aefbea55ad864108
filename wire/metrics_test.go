package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgproxy/policy"
	"pgproxy/wire/exchange"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// exposed are metrics in Prometheus's text format.
func exposed(collectors ...prometheus.Collector) string {
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(collectors...)
	w := httptest.NewRecorder()
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	return w.Body.String()
}

// What happened is counted, once, under labels that hold nothing of a client's.
func TestMetrics(t *testing.T) {
	p := startProxy(t, func(srv *Server) {
		srv.MaxSessions = 7
		srv.Rules = func(c policy.Caller) (policy.Rule, error) {
			if c.Login == bob.Login {
				return policy.Rule{}, &policy.Refusal{Code: "28000", Message: "no", Rule: "default"}
			}
			rule := policy.DefaultRule()
			rule.MaxRows = 3
			return rule, nil
		}
	})
	c := p.login(t, "application_name", "hostile-client")
	c.query("SELECT 1")
	c.query("SELECT 2; BEGIN; COMMIT")
	c.query("SELECT generate_series(1, 9)")
	c.query("DELETE FROM secret_table")
	c.query("SELEC secret_word")
	c.query("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = 'SECRT'; END $$")
	c.query("SELECT 1/0")
	p.records.failWith(errors.New("disk full"))
	c.query("SELECT 'unrecorded'")
	p.records.failWith(nil)
	if got := p.dial(t, "127.0.0.2").refusal(); !strings.HasPrefix(got, "E(28000") {
		t.Errorf("bob got %s", got)
	}
	p.Cancel(t.Context(), reaper(), p.infoOf(t, c).ID, 0)
	p.await(t, "the numbers of the last statement", func() bool { return p.infoOf(t, c).State == "idle" })

	text := exposed(p.Collectors()...)
	for _, want := range []string{
		`pgproxy_sessions 1`,
		`pgproxy_sessions_limit 7`,
		`pgproxy_statements_total{kind="SELECT",verdict="allow"} 4`,
		`pgproxy_statements_total{kind="BEGIN",verdict="allow"} 1`,
		`pgproxy_statements_total{kind="DELETE",verdict="deny"} 1`,
		`pgproxy_statements_total{kind="DO",verdict="deny"} 1`,
		`pgproxy_statements_total{kind="unread",verdict="deny"} 1`,
		`pgproxy_refusals_total{rule="require_where"} 1`,
		`pgproxy_refusals_total{rule="syntax"} 1`,
		`pgproxy_statement_errors_total{class="22"} 1`,
		`pgproxy_statement_errors_total{class="54"} 1`,
		`pgproxy_statement_duration_seconds_count 4`,
		`pgproxy_rows_total 5`,
		`pgproxy_caps_total{cap="max_rows"} 1`,
		`pgproxy_cancels_total{outcome="idle"} 1`,
		`pgproxy_audit_failures_total 1`,
		`pgproxy_upstream_connect_seconds_count 1`,
		`pgproxy_connections_refused_total{sqlstate="28000"} 1`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("no %s", want)
		}
	}
	for _, secret := range []string{"secret", "alice", "hostile", "SECRT"} {
		if strings.Contains(text, secret) {
			t.Errorf("the metrics tell of %q", secret)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}

// refusal logs in and returns what comes instead of a session.
func (c *client) refusal() string {
	c.t.Helper()
	c.send(startupPacket(protocol3, "user", "x"))
	for {
		if f := c.next(); f.typ == 'E' {
			return f.String()
		}
	}
}

// A counter is there from the start, at 0: all labels that the source can give it
// are known beforehand.
func TestCountersBeginAtZero(t *testing.T) {
	text := exposed((&Server{}).Collectors()...)
	for name, label := range map[string]struct {
		pattern string
		sources []string
	}{
		`pgproxy_sessions_ended_total{reason="%s"} 0`: {`reason\w+ +reason = "([^"]+)"`, []string{"*.go"}},
		`pgproxy_refusals_total{rule="%s"} 0`:         {`(?:\bRule(?:: | = (?:"[0-9A-Z]{5}", )?)|\.refusal\(|\.count\()"([a-z][a-z_ ]*)"`, []string{"*.go", "exchange/*.go", "../policy/*.go"}},
		`pgproxy_caps_total{cap="%s"} 0`:              {`(?:\.reach|\.Capped)\("([^"]+)"`, []string{"*.go", "exchange/*.go"}},
		`pgproxy_cancels_total{outcome="%s"} 0`:       {`cancel[A-Z]\w+ += "([^"]+)"`, []string{"*.go"}},
	} {
		values := inSource(t, label.pattern, label.sources...)
		if len(values) < 3 {
			t.Errorf("%s: the source gives it %q alone", name, values)
		}
		for _, value := range values {
			if want := fmt.Sprintf(name, value); !strings.Contains(text, want+"\n") && !elsewhere[value] {
				t.Errorf("no %s", want)
			}
		}
	}
	for _, want := range []string{
		`pgproxy_statements_total{kind="DELETE",verdict="deny"} 0`, `pgproxy_statements_total{kind="unread",verdict="deny"} 0`,
		`pgproxy_statement_errors_total{class="42"} 0`, `pgproxy_statement_errors_total{class="other"} 0`,
		`pgproxy_connections_refused_total{sqlstate="28000"} 0`, `pgproxy_upstream_connect_failures_total{sqlstate="08001"} 0`,
		`pgproxy_rows_total 0`, `pgproxy_audit_failures_total 0`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("no %s", want)
		}
	}
}

// elsewhere are rules that are not counted as refusals of statements: those that
// refuse a connection, those that allow, and reasons that end no session.
var elsewhere = map[string]bool{
	"callers": true, "database": true, "default": true, "grant": true, "nobody": true, "shared": true, "tagged": true,
	"allow ": true, "own": true,
	string(reasonRefused): true, string(reasonLimit): true,
}

// inSource are the values that a pattern finds in the source.
func inSource(t *testing.T, pattern string, globs ...string) []string {
	t.Helper()
	var values []string
	for _, glob := range globs {
		files, err := filepath.Glob(glob)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range regexp.MustCompile(pattern).FindAllSubmatch(text, -1) {
				values = append(values, string(m[1]))
			}
		}
	}
	slices.Sort(values)
	return slices.Compact(values)
}

func TestErrorClass(t *testing.T) {
	for code, want := range map[string]string{"42P01": "42", "57014": "57", "P0001": "P0", "SECRT": "other", "": "other", "4": "other", "2 42": "other", " 03 ": "other"} {
		if got := errorClass(code); got != want {
			t.Errorf("class of %q is %q, want %q", code, got, want)
		}
	}
}

// Nothing is lost when many count for the first time at once.
func TestTally(t *testing.T) {
	vec := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "n"}, []string{"kind"})
	tally := tally{counter: func(kind string) prometheus.Counter { return vec.WithLabelValues(kind) }}
	kinds := []string{"SELECT", "INSERT", "UPDATE", "DELETE"}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for _, kind := range slices.Repeat(kinds, 100) {
				tally.inc(kind)
			}
		})
	}
	wg.Wait()
	text := exposed(vec)
	for _, kind := range kinds {
		if want := fmt.Sprintf("n{kind=%q} 800\n", kind); !strings.Contains(text, want) {
			t.Errorf("no %s in %s", want, text)
		}
	}
}

// The dashboard asks for metrics and labels that there are.
func TestDashboard(t *testing.T) {
	text, err := os.ReadFile("../.github/grafana-dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Inputs []struct{ Name string } `json:"__inputs"`
		Panels []struct {
			ID         int
			Title      string
			Datasource struct{ UID string }
			Targets    []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	if len(dashboard.Inputs) != 1 || dashboard.Inputs[0].Name != "DS_PROMETHEUS" {
		t.Errorf("inputs: %v", dashboard.Inputs)
	}
	labels := metricLabels(t)
	ids, used := make(map[int]bool), make(map[string]bool)
	name := regexp.MustCompile(`pgproxy_[a-z_]+`)
	by := regexp.MustCompile(`by \(([^)]*)\)`)
	for _, panel := range dashboard.Panels {
		if ids[panel.ID] {
			t.Errorf("two panels have the number %d", panel.ID)
		}
		ids[panel.ID] = true
		for _, target := range panel.Targets {
			if panel.Datasource.UID != "${DS_PROMETHEUS}" {
				t.Errorf("%s: data source %q", panel.Title, panel.Datasource.UID)
			}
			metric := name.FindString(target.Expr)
			has, ok := labels[metric]
			if !ok {
				t.Errorf("%s: no metric %q", panel.Title, metric)
			}
			used[strings.TrimSuffix(metric, "_bucket")] = true
			if m := by.FindStringSubmatch(target.Expr); m != nil && m[1] != "instance" && !slices.Contains(has, m[1]) {
				t.Errorf("%s: %s has no label %q", panel.Title, metric, m[1])
			}
			for _, metric := range name.FindAllString(target.Expr, -1) {
				if _, ok := labels[metric]; !ok {
					t.Errorf("%s: no metric %q", panel.Title, metric)
				}
				used[strings.TrimSuffix(metric, "_bucket")] = true
			}
		}
	}
	for metric := range labels {
		if !strings.HasSuffix(metric, "_bucket") && !used[metric] {
			t.Errorf("no panel shows %s", metric)
		}
	}
}

// metricLabels are the names of a Server's metrics, each with its labels.
func metricLabels(t *testing.T) map[string][]string {
	t.Helper()
	labels := make(map[string][]string)
	pattern := regexp.MustCompile(`fqName: "([^"]*)".*variableLabels: \{([^}]*)\}`)
	for _, c := range new(Server).Collectors() {
		descs := make(chan *prometheus.Desc, 10)
		c.Describe(descs)
		close(descs)
		for desc := range descs {
			m := pattern.FindStringSubmatch(desc.String())
			if m == nil {
				t.Fatalf("cannot read %v", desc)
			}
			if _, ok := c.(prometheus.Histogram); ok {
				labels[m[1]+"_bucket"] = []string{"le"}
			}
			labels[m[1]] = strings.Split(m[2], ",")
		}
	}
	return labels
}

// One statement's share of counting, which is part of every round trip.
func BenchmarkCounting(b *testing.B) {
	var m metrics
	m.init()
	b.ReportAllocs()
	kinds := []string{"SELECT"}
	for b.Loop() {
		m.statement(kinds)
		m.recorded(20*time.Microsecond, nil)
		m.result(300*time.Microsecond, exchange.Outcome{Rows: 1, Bytes: 80})
		m.recorded(20*time.Microsecond, nil)
	}
}

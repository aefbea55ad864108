package policy

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestGrantsAddUp(t *testing.T) {
	for _, tt := range []struct {
		name   string
		grants []string
		want   func(*Rule)
	}{
		{"one, empty, has the defaults", []string{`{}`}, func(r *Rule) {}},
		{"widest access", []string{`{"access":"read"}`, `{"access":"admin"}`, `{"access":"write"}`}, func(r *Rule) { r.Access = Admin }},
		{"union of allow", []string{`{"allow":["vacuum","do"]}`, `{"allow":["VACUUM","CALL"]}`}, func(r *Rule) { r.Allow = []string{"CALL", "DO", "VACUUM"} }},
		{"union of functions", []string{`{"allow":["pg_reload_conf"]}`, `{"allow":["nextval","VACUUM","pg_reload_conf"]}`}, func(r *Rule) { r.Allow = []string{"VACUUM", "nextval", "pg_reload_conf"} }},
		{"union of databases", []string{`{"databases":["a","b"]}`, `{"databases":["c","a"]}`}, func(r *Rule) { r.Databases = []string{"a", "b", "c"} }},
		{"no databases means all", []string{`{"databases":["a"]}`, `{}`}, func(r *Rule) {}},
		{"star means all", []string{`{"databases":["a"]}`, `{"databases":["*"]}`}, func(r *Rule) {}},
		{"highest caps", []string{`{"max_rows":5,"max_bytes":9,"max_affected_rows":1}`, `{"max_rows":7,"max_bytes":3,"max_affected_rows":2}`},
			func(r *Rule) { r.MaxRows, r.MaxBytes, r.MaxAffectedRows = 7, 9, 2 }},
		{"no cap is the highest", []string{`{"max_rows":5,"max_bytes":0}`, `{"max_rows":0}`}, func(r *Rule) { r.MaxRows, r.MaxBytes = 0, 0 }},
		{"longest timeouts", []string{`{"statement_timeout":"1s"}`, `{"statement_timeout":"2min"}`}, func(r *Rule) { r.StatementTimeout = 2 * time.Minute }},
		{"no timeout is the longest", []string{`{"statement_timeout":"0"}`, `{"idle_in_transaction_session_timeout":"0s"}`},
			func(r *Rule) { r.StatementTimeout, r.IdleInTransactionTimeout = 0, 0 }},
		{"permissions", []string{`{"may_lift":true}`, `{"may_kill":true}`, `{"may_observe":true}`, `{"may_signal":true}`}, func(r *Rule) { r.MayLift, r.MayKill, r.MayObserve, r.MaySignal = true, true, true, true }},
		{"loosest check", []string{`{"require_where":"key"}`, `{"require_where":false}`, `{}`}, func(r *Rule) { r.Where = WhereFree }},
		{"key and required", []string{`{"require_where":"key"}`, `{"require_where":true}`}, func(r *Rule) { r.Where = WhereRequired }},
		{"reason if all want it", []string{`{"require_reason":true}`, `{"require_reason":true}`}, func(r *Rule) { r.RequireReason = true }},
		{"no reason if one does not", []string{`{"require_reason":true}`, `{}`}, func(r *Rule) {}},
		{"approver", []string{`{}`, `{"may_approve":true}`}, func(r *Rule) { r.MayApprove = true }},
		{"unreadable gives nothing", []string{`{"access":"read"}`, `{"access":"admin","deny":["DELETE"]}`}, func(r *Rule) { r.Access = Read }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := DefaultRule()
			want.Source = "grant"
			tt.want(&want)
			got, err := Builtin().RuleFor(granted(tt.grants...))
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("got %+v, %v\nwant %+v", got, err, want)
			}
		})
	}
}

// TestGrantsBeatCallers: a caller with a grant is judged by it alone, even
// where the file is wider or refuses.
func TestGrantsBeatCallers(t *testing.T) {
	p := loadTestPolicy(t)
	rule, err := p.RuleFor(granted(`{"access":"read"}`))
	if err != nil || rule.Access != Read || rule.Source != "grant" {
		t.Errorf("got %+v, %v", rule, err)
	}
	c := granted(`{"access":"write"}`)
	c.Login = "mallory@example.com"
	if rule, err := p.RuleFor(c); err != nil || rule.Access != Write {
		t.Errorf("got %+v, %v", rule, err)
	}
	tagged := Caller{Tags: []string{"tag:web"}, Shared: true, Granted: true, Grants: c.Grants}
	if rule, err := p.RuleFor(tagged); err != nil || rule.Access != Write {
		t.Errorf("got %+v, %v", rule, err)
	}
}

func TestUnreadableGrants(t *testing.T) {
	for _, tt := range []struct{ grant, want string }{
		{`{"access":"admin","only":["SELECT"]}`, `grant 1:1:19: field "only" is for the policy file`},
		{`{"acess":"admin"}`, `grant 1:1:2: unknown field "acess"`},
		{`{"max_rows":"100"}`, `grant 1:1:13: must be a whole number`},
		{`"admin"`, `grant 1:1:1: a rule must be an object`},
		{`null`, `grant 1:1:1: a rule must be an object`},
		{`{`, `grant 1:1:2: `},
		{`"` + strings.Repeat("x", maxGrant) + `"`, `larger than`},
	} {
		rules, unreadable := granted(tt.grant).ReadGrants()
		if len(rules) != 0 || len(unreadable) != 1 || !strings.HasPrefix(strings.TrimPrefix(unreadable[0].Error(), "grant 1: "), tt.want) {
			t.Errorf("%.40s: got %v, %v", tt.grant, rules, unreadable)
		}
	}
}

// TestTagsNeverWiden: the rules of several tags, with deny and only, allow no
// kind together that none of them allows alone.
func TestTagsNeverWiden(t *testing.T) {
	for _, tt := range []struct {
		name     string
		a, b     Rule
		wantOnly []string
		ok       bool
	}{
		{"only of one", Rule{Access: Admin, Only: []string{"VACUUM"}}, Rule{Access: Read}, []string{"VACUUM"}, true},
		{"family and tag", Rule{Only: []string{"ALTER", "DO"}}, Rule{Only: []string{"ALTER TABLE", "CALL"}}, []string{"ALTER TABLE"}, true},
		{"functions", Rule{Only: []string{"SELECT", "nextval", "pg_notify"}}, Rule{Only: []string{"SELECT", "nextval"}}, []string{"SELECT", "nextval"}, true},
		{"a function and no kind in common", Rule{Only: []string{"SELECT", "nextval"}}, Rule{Only: []string{"SHOW", "nextval"}}, nil, false},
		{"nothing in common", Rule{Only: []string{"SELECT"}}, Rule{Only: []string{"VACUUM"}}, nil, false},
	} {
		for _, pair := range [][]Rule{{tt.a, tt.b}, {tt.b, tt.a}} {
			sum, ok := mergeRules(pair)
			if ok != tt.ok || ok && !reflect.DeepEqual(sum.Only, tt.wantOnly) {
				t.Errorf("%s: got %v, %v", tt.name, sum.Only, ok)
			}
		}
	}
	sum, _ := mergeRules([]Rule{{Deny: []string{"DELETE"}}, {Deny: []string{"LISTEN"}}})
	if !reflect.DeepEqual(sum.Deny, []string{"DELETE", "LISTEN"}) {
		t.Errorf("deny %v", sum.Deny)
	}
}

func TestKinds(t *testing.T) {
	for _, known := range []string{"ALTER", "alter  table", "CREATE INDEX", "DO", "CALL", "VACUUM", "REFRESH MATERIALIZED VIEW", "SELECT", "DROP OWNED", "COPY"} {
		if !knownKind(normalKind(known)) {
			t.Errorf("%q is unknown", known)
		}
	}
	for _, unknown := range []string{"", "ALTERTABLE", "ALTER TABEL", "SELECT INTO x", "DROP SYSTEM"} {
		if knownKind(normalKind(unknown)) {
			t.Errorf("%q is known", unknown)
		}
	}
	if !coversKind("ALTER", "ALTER TABLE") || coversKind("ALTER TABLE", "ALTER") || coversKind("AL", "ALTER") || coversKind("TEXT SEARCH", "TEXT SEARCH X") {
		t.Error("coversKind")
	}
}

func TestDescribe(t *testing.T) {
	got := strings.Join(DefaultRule().Describe(), "; ")
	want := "write access; at most 10000 rows a statement; at most 16 MiB a statement; at most 1000 rows changed by a statement; " +
		"30s for a statement; 30s idle in a transaction; UPDATE and DELETE need a WHERE clause"
	if got != want {
		t.Errorf("got %s", got)
	}
}

// TestUnknownWords: what is neither a kind nor a function with an effect is an
// error that names what may have been meant.
func TestUnknownWords(t *testing.T) {
	for _, tt := range []struct{ word, want string }{
		{"pg_reload_cnf", `no function with an effect; is it "pg_reload_conf"?`},
		{"PG_RELOAD_CONF", `is it "pg_reload_conf"?`},
		{"TRUNCAT", `is it "TRUNCATE"?`},
		{"alter tabel", `is it "ALTER TABLE"?`},
		{"pg_terminate_backends", `is it "pg_terminate_backend"?`},
		{"my_function", "no function with an effect"},
		{"pg_sleep", "is a function without an effect"},
		{"set_config", "is judged by the setting that it changes"},
		{"pg_file_settings", `name the function that it calls, "pg_show_all_file_settings"`},
		{"pg_reload_conf()", `is it "pg_reload_conf"?`},
	} {
		for _, field := range []string{"allow", "deny", "only"} {
			_, err := Parse("policy", fmt.Appendf(nil, `{"default": {%q: ["SELECT", %q]}}`, field, tt.word))
			if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%q ", tt.word)) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: %v", tt.word, err)
			}
		}
	}
	if _, err := Parse("policy", []byte(`{"default": {"only": ["nextval"]}}`)); err == nil || !strings.Contains(err.Error(), "no statement kind that could call them") {
		t.Errorf("only with functions alone: %v", err)
	}
}

// TestFunctionsAreNoKinds: a word in a rule is either the one or the other.
func TestFunctionsAreNoKinds(t *testing.T) {
	for name := range functions {
		if knownKind(normalKind(name)) || name != strings.ToLower(name) {
			t.Errorf("%s cannot be named in a rule", name)
		}
		if p, err := Parse("policy", fmt.Appendf(nil, `{"default": {"allow": [%q]}}`, name)); err != nil || !matchesAny(p.fallback.Allow, name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

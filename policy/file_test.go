package policy

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"
)

var (
	alice  = Caller{Login: "alice@example.com", Node: "laptop"}
	bob    = Caller{Login: "Bob@example.com", Node: "phone"}
	carol  = Caller{Login: "carol@example.com", Node: "desk"}
	runner = Caller{Tags: []string{"tag:ci"}, Node: "runner"}
)

func loadTestPolicy(t *testing.T) *Policy {
	t.Helper()
	p, err := LoadFile("testdata/rules/good.hujson")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestRuleFor(t *testing.T) {
	p := loadTestPolicy(t)
	shared, stranger := alice, carol
	shared.Shared, stranger.Shared = true, true

	base := DefaultRule()
	byDefault := base
	byDefault.Source, byDefault.Access, byDefault.MaxRows = "default", Read, 500
	forAlice := Rule{
		Source: `callers "alice@example.com"`, Access: Admin, Where: WhereFree,
		StatementTimeout: 5 * time.Minute, MayLift: true, MayObserve: true, MayKill: true, MayApprove: true,
	}
	forBob := base
	forBob.Source = `callers "bob@example.com"`
	forBob.Allow, forBob.Deny = []string{"TRUNCATE", "CREATE INDEX"}, []string{"DELETE", "LISTEN"}
	forBob.Only, forBob.Databases = []string{"SELECT", "ALTER"}, []string{"app", "stats"}
	forBob.Where, forBob.RequireReason, forBob.StatementTimeout = WhereKey, true, 1500*time.Millisecond
	forCI := base
	forCI.Source, forCI.Access, forCI.MaxRows = `callers "tag:ci"`, Read, 100
	forBoth := base
	forCI.Elevate = Elevate{Write, WithReason, 15 * time.Minute}
	forBoth.Elevate = forCI.Elevate
	forBoth.Source, forBoth.MaxRows = `callers "tag:ci" + callers "tag:deploy"`, 100

	for _, tt := range []struct {
		name   string
		caller Caller
		want   Rule
	}{
		{"person nobody names", carol, byDefault},
		{"person by login", alice, forAlice},
		{"login in other case", bob, forBob},
		{"named person on a shared device", shared, forAlice},
		{"tagged node", runner, forCI},
		{"tags add up", Caller{Tags: []string{"tag:ci", "tag:x", "tag:deploy"}}, forBoth},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := p.RuleFor(tt.caller)
			if err != nil || !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %+v, %v\nwant %+v", got, err, tt.want)
			}
		})
	}

	for _, tt := range []struct {
		name   string
		policy *Policy
		caller Caller
		rule   string
		hint   string
	}{
		{"nobody", p, Caller{Node: "x"}, "nobody", ""},
		{"named with null", p, Caller{Login: "mallory@example.com"}, "callers", "gives nothing"},
		{"tagged node not named", p, Caller{Tags: []string{"tag:web"}}, "tagged", "Tagged nodes must be named"},
		{"a login does not speak for tags", p, Caller{Login: "alice@example.com", Tags: []string{"tag:web"}}, "tagged", "Tagged nodes"},
		{"shared device not named", p, stranger, "shared", "shared in"},
		{"tagged, built in", Builtin(), runner, "tagged", "Tagged nodes must be named"},
		{"shared, built in", Builtin(), stranger, "shared", "shared in"},
		{"without a grant, where grants are all there is", GrantsOnly(), carol, "default", "It takes a grant"},
		{"granted, with no value", p, Caller{Login: "alice@example.com", Granted: true}, "grant", "without a rule"},
		{"granted, unreadable", p, granted(`{"access": "admim"}`), "grant", "None of the caller's grants can be read"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rule, err := tt.policy.RuleFor(tt.caller)
			var refusal *Refusal
			if !errors.As(err, &refusal) {
				t.Fatalf("got %+v, %v; want a refusal", rule, err)
			}
			if refusal.Code != "28000" || refusal.Rule != tt.rule || !strings.Contains(refusal.Hint, tt.hint) {
				t.Errorf("got %+v", refusal)
			}
			if rule.Access != NoAccess {
				t.Errorf("a refused caller has access %v", rule.Access)
			}
		})
	}
}

// Where grants are all there is, somebody with one is judged by it, and losing
// it never widens the access.
func TestGrantsOnly(t *testing.T) {
	p := GrantsOnly()
	if rule, err := p.RuleFor(granted(`{"access": "read"}`)); err != nil || rule.Access != Read {
		t.Errorf("with a grant: got %+v, %v", rule, err)
	}
	if rule, ok := p.Default(); ok || rule.Access != NoAccess {
		t.Errorf("the default is %+v, want none", rule)
	}
	if rule, ok := Builtin().Default(); !ok || rule.Access != Write {
		t.Errorf("the built-in default is %+v, %v", rule, ok)
	}
}

func TestDefaults(t *testing.T) {
	rule, err := Builtin().RuleFor(carol)
	want := DefaultRule()
	want.Source = "built-in default"
	if err != nil || !reflect.DeepEqual(rule, want) {
		t.Errorf("built in: got %+v, %v", rule, err)
	}
	for text, access := range map[string]Access{
		`{}`:                Write,
		`{"default": {}}`:   Write,
		`{"default": null}`: NoAccess,
	} {
		p, err := Parse("policy", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if rule, _ := p.RuleFor(carol); rule.Access != access {
			t.Errorf("%s: access %v, want %v", text, rule.Access, access)
		}
	}
}

// TestBadFiles requires of each bad file exactly the errors that its comments
// announce.
func TestBadFiles(t *testing.T) {
	files, err := filepath.Glob("testdata/rules/bad-*.hujson")
	if err != nil || len(files) == 0 {
		t.Fatal("no files", err)
	}
	wantRE := regexp.MustCompile(`// want (.*)`)
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]bool{}
		for _, m := range wantRE.FindAllStringSubmatch(string(data), -1) {
			want[m[1]] = true
		}
		_, err = LoadFile(file)
		if err == nil {
			t.Errorf("%s: no error", file)
			continue
		}
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the error shows a password: %v", file, err)
		}
		for _, line := range strings.Split(err.Error(), "\n") {
			text, ok := strings.CutPrefix(line, file+":")
			if !ok {
				t.Errorf("%s: error without file: %q", file, line)
			}
			found := false
			for w := range want {
				if strings.HasPrefix(text, w) {
					delete(want, w)
					found = true
				}
			}
			if !found {
				t.Errorf("unexpected error %s", line)
			}
		}
		for w := range want {
			t.Errorf("%s: missing error %s", file, w)
		}
	}
}

func TestMissingFile(t *testing.T) {
	if _, err := LoadFile(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func granted(values ...string) Caller {
	c := Caller{Login: "alice@example.com", Granted: true}
	for _, v := range values {
		c.Grants = append(c.Grants, json.RawMessage(v))
	}
	return c
}

func FuzzParse(f *testing.F) {
	files, _ := filepath.Glob("testdata/rules/*.hujson")
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Parse("policy", data)
		if (p == nil) == (err == nil) {
			t.Fatalf("got %v and %v", p, err)
		}
		rule, err := parseGrant("grant", data)
		if err == nil && (rule.Access == NoAccess || rule.MaxRows < 0 || rule.StatementTimeout < 0 || rule.Deny != nil || rule.Only != nil) {
			t.Fatalf("grant read as %+v", rule)
		}
	})
}

// TestContact: each rule, and each refusal of a connection, says whom to ask.
func TestContact(t *testing.T) {
	p := loadTestPolicy(t)
	p.Contact = "#dba"
	for _, c := range []Caller{alice, bob, carol, granted(`{"access":"read"}`)} {
		if rule, err := p.RuleFor(c); err != nil || rule.Contact != "#dba" || rule.Ask() != "Ask #dba." {
			t.Errorf("%s: %+v, %v", c.Who(), rule, err)
		}
	}
	for _, c := range []Caller{{Node: "x"}, {Login: "mallory@example.com"}, {Tags: []string{"tag:web"}}, {Login: "alice@example.com", Granted: true}} {
		_, err := p.RuleFor(c)
		if r, ok := errors.AsType[*Refusal](err); !ok || !strings.HasSuffix(r.Hint, "Ask #dba.") {
			t.Errorf("%+v: %+v", c, err)
		}
	}
	for contact, want := range map[string]string{"": "Ask whoever runs pgproxy.", "https://wiki.example.com/oncall": "Ask: https://wiki.example.com/oncall"} {
		if got := (Rule{Contact: contact}).Ask(); got != want {
			t.Errorf("%q: %s", contact, got)
		}
	}
}

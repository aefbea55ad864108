package policy

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/tailscale/hujson"
)

// Policy says which rule holds for which caller. It is immutable: reading the
// file again makes a new one, and sessions ask for their rule anew.
type Policy struct {
	// UpstreamRead is the connection string of a second login, used upstream
	// for callers whose access is Read; empty means that there is none. It
	// may hold a password and must not be printed.
	UpstreamRead string
	// Contact is whom refusals say to ask: "#dba", a URL; empty for whoever
	// runs pgproxy. It is set before the policy is used.
	Contact string

	fallback *Rule            // for people nobody names; nil refuses them
	callers  map[string]*Rule // by login or tag, folded; a nil rule refuses
}

// Builtin is the policy where there is no file: the default rule for every
// person of the tailnet.
func Builtin() *Policy {
	rule := DefaultRule()
	rule.Source = "built-in default"
	return &Policy{fallback: &rule}
}

// GrantsOnly is the policy where there is no file and access comes by tailnet
// grants. It refuses a caller without a grant. The built-in default must not be
// used here: a caller who loses a read grant would get its write access.
func GrantsOnly() *Policy { return new(Policy) }

// Default is the rule for people of this tailnet whom neither a grant nor the
// policy names; ok is false where they are refused.
func (p *Policy) Default() (rule Rule, ok bool) {
	if p.fallback == nil {
		return Rule{}, false
	}
	return *p.fallback, true
}

// LoadFile reads a policy file. Its error joins everything that is wrong with
// the file, each with line and column.
func LoadFile(path string) (*Policy, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("policy file: %w", err)
	}
	return Parse(path, data)
}

// Parse reads the text of a policy file, HuJSON. The name is the file's, for
// the errors: all of them at once, joined, each a *SyntaxError.
func Parse(name string, data []byte) (*Policy, error) {
	r := newReader(name, data)
	root, ok := r.parse()
	if !ok {
		return nil, errors.Join(r.errs...)
	}
	p := Builtin()
	r.object(root, "the policy", map[string]func(hujson.Value){
		"default":       func(v hujson.Value) { p.fallback = r.ruleOrNull(v, "default") },
		"callers":       func(v hujson.Value) { p.callers = r.callers(v) },
		"upstream_read": func(v hujson.Value) { p.UpstreamRead = r.text(v) },
	})
	if len(r.errs) > 0 {
		return nil, errors.Join(r.errs...)
	}
	return p, nil
}

// callers reads the object from login or tag to rule.
func (r *reader) callers(v hujson.Value) map[string]*Rule {
	callers := map[string]*Rule{}
	obj, ok := v.Value.(*hujson.Object)
	if !ok {
		r.fail(v, "callers must be an object")
		return nil
	}
	for _, m := range obj.Members {
		name := memberName(m)
		if problem := checkCallerName(name); problem != "" {
			r.fail(m.Name, "caller %q %s", name, problem)
		}
		if _, twice := callers[foldName(name)]; twice {
			r.fail(m.Name, "caller %q is named twice", name)
		}
		callers[foldName(name)] = r.ruleOrNull(m.Value, fmt.Sprintf("callers %q", name))
	}
	return callers
}

// ruleOrNull reads a rule; null is nil and refuses the caller.
func (r *reader) ruleOrNull(v hujson.Value, source string) *Rule {
	if v.Value.Kind() == 'n' {
		return nil
	}
	rule := r.rule(v)
	rule.Source = source
	return &rule
}

// checkCallerName says what is wrong with the name of a caller, or nothing.
func checkCallerName(name string) string {
	if tag, ok := strings.CutPrefix(name, "tag:"); ok {
		if tag == "" || strings.ContainsFunc(tag, notInTag) {
			return "is not a tag: letters, digits and hyphens after tag:"
		}
		return ""
	}
	user, domain, ok := strings.Cut(name, "@")
	if !ok || user == "" || domain == "" || strings.ContainsFunc(name, notInLogin) {
		return `is neither a login ("alice@example.com") nor a tag ("tag:ci"); groups are for grants`
	}
	return ""
}

func notInTag(c rune) bool {
	return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-')
}

func notInLogin(c rune) bool { return c <= ' ' || c == 0x7f || c == '*' || c == ',' }

// foldName is the name under which a login or tag is kept. Case is folded,
// ASCII only: a narrowing rule must not be missed for a capital letter.
func foldName(name string) string {
	return strings.Map(func(c rune) rune {
		if c >= 'A' && c <= 'Z' {
			return c + 'a' - 'A'
		}
		return c
	}, name)
}

// RuleFor is the rule for a caller: by grants if the tailnet granted any,
// otherwise by name, otherwise the default, which is for people of this
// tailnet alone. The error is a *Refusal to be sent as FATAL.
func (p *Policy) RuleFor(c Caller) (Rule, error) {
	rule, err := p.ruleFor(c)
	if refusal, ok := errors.AsType[*Refusal](err); ok {
		refusal.Hint = strings.TrimPrefix(refusal.Hint+" "+ask(p.Contact), " ")
	}
	rule.Contact = p.Contact
	return rule, err
}

func (p *Policy) ruleFor(c Caller) (Rule, error) {
	if c.Who() == "" {
		return Rule{}, refuseCaller("nobody", "pgproxy: the tailnet does not say who is calling", "")
	}
	if c.Granted {
		return ruleByGrants(c)
	}
	if rule, named, err := p.ruleByName(c); named {
		return rule, err
	}
	return p.ruleByDefault(c)
}

// ruleByName is the rule that `callers` gives for the login, or for the tags:
// the rules of several tags add up. Named is false when it names none.
func (p *Policy) ruleByName(c Caller) (rule Rule, named bool, err error) {
	names := c.Tags
	if !c.Tagged() {
		names = []string{c.Login}
	}
	var rules []Rule
	for _, name := range names {
		r, ok := p.callers[foldName(name)]
		named = named || ok
		if r != nil {
			rules = append(rules, *r)
		}
	}
	if !named {
		return Rule{}, false, nil
	}
	rule, ok := mergeRules(rules)
	if !ok {
		return Rule{}, true, refuseCaller("callers",
			fmt.Sprintf("pgproxy: no access for %s", c.Who()),
			"The policy file names this caller and gives nothing.")
	}
	return rule, true, nil
}

// ruleByDefault is the rule for those nobody names.
func (p *Policy) ruleByDefault(c Caller) (Rule, error) {
	switch {
	case c.Tagged():
		return Rule{}, refuseCaller("tagged", fmt.Sprintf("pgproxy: no access for %s", c.Who()),
			"Tagged nodes must be named by a grant or in the policy file's callers; the default rule is for people of this tailnet.")
	case c.Shared:
		return Rule{}, refuseCaller("shared", fmt.Sprintf("pgproxy: no access for %s", c.Who()),
			"Devices shared in from another tailnet must be named by a grant or in the policy file's callers; the default rule is for people of this tailnet.")
	case p.fallback == nil:
		return Rule{}, refuseCaller("default", fmt.Sprintf("pgproxy: no access for %s", c.Who()),
			"It takes a grant, or a name in the policy file's callers.")
	}
	return *p.fallback, nil
}

// refuseCaller is the refusal of a connection.
func refuseCaller(rule, message, hint string) *Refusal {
	return &Refusal{Code: "28000", Message: message, Hint: hint, Rule: rule}
}

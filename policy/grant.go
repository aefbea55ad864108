package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// maxGrant bounds one value of the capability, in bytes. A tailnet policy
// file ends at a few hundred kilobytes; a rule has some hundred bytes.
const maxGrant = 64 << 10

// ReadGrants reads the rules in the caller's grants. A value that cannot be
// read gives nothing; the second result says why, for the log.
func (c Caller) ReadGrants() (rules []Rule, unreadable []error) {
	for i, raw := range c.Grants {
		rule, err := parseGrant(fmt.Sprintf("grant %d", i+1), raw)
		if err != nil {
			unreadable = append(unreadable, err)
			continue
		}
		rules = append(rules, rule)
	}
	return rules, unreadable
}

// parseGrant reads one value of the app capability.
func parseGrant(name string, raw []byte) (Rule, error) {
	if len(raw) > maxGrant {
		return Rule{}, fmt.Errorf("%s: larger than %d bytes", name, maxGrant)
	}
	r := newReader(name, raw)
	r.grant = true
	v, ok := r.parse()
	if !ok {
		return Rule{}, errors.Join(r.errs...)
	}
	rule := r.rule(v)
	rule.Source = "grant"
	return rule, errors.Join(r.errs...)
}

// ruleByGrants adds up what the tailnet granted.
func ruleByGrants(c Caller) (Rule, error) {
	rules, unreadable := c.ReadGrants()
	rule, ok := mergeRules(rules)
	if ok {
		return rule, nil
	}
	hint := "The tailnet's grants name this caller without a rule."
	if len(unreadable) > 0 {
		hint = "None of the caller's grants can be read; pgproxy's log says why."
	}
	return Rule{}, refuseCaller("grant", fmt.Sprintf("pgproxy: no access for %s", c.Who()), hint)
}

// mergeRules adds rules up: the widest access, every permission of each, the
// highest caps. Deny and Only, which only the policy file has, still narrow:
// all that one rule denies is denied, and a kind must be in every Only. So
// the sum allows no statement that none of the rules allows. It is false when
// nothing is left.
func mergeRules(rules []Rule) (Rule, bool) {
	if len(rules) == 0 {
		return Rule{}, false
	}
	sum := rules[0]
	for _, r := range rules[1:] {
		var ok bool
		if sum, ok = addRules(sum, r); !ok {
			return Rule{}, false
		}
	}
	return sum, true
}

// addRules is the sum of two rules. The results share no memory with them.
func addRules(a, b Rule) (Rule, bool) {
	only, ok := commonKinds(a.Only, b.Only)
	return Rule{
		Source:                   joinSources(a.Source, b.Source),
		Access:                   max(a.Access, b.Access),
		Allow:                    addLists(a.Allow, b.Allow),
		Deny:                     addLists(a.Deny, b.Deny),
		Only:                     only,
		Where:                    looser(a.Where, b.Where),
		Databases:                addDatabases(a.Databases, b.Databases),
		MaxRows:                  higher(a.MaxRows, b.MaxRows),
		MaxBytes:                 higher(a.MaxBytes, b.MaxBytes),
		MaxAffectedRows:          higher(a.MaxAffectedRows, b.MaxAffectedRows),
		StatementTimeout:         higher(a.StatementTimeout, b.StatementTimeout),
		IdleInTransactionTimeout: higher(a.IdleInTransactionTimeout, b.IdleInTransactionTimeout),
		MayLift:                  a.MayLift || b.MayLift,
		MayObserve:               a.MayObserve || b.MayObserve,
		MayKill:                  a.MayKill || b.MayKill,
		MaySignal:                a.MaySignal || b.MaySignal,
		Elevate:                  wider(a.Elevate, b.Elevate),
		MayApprove:               a.MayApprove || b.MayApprove,
		RequireReason:            a.RequireReason && b.RequireReason,
		Contact:                  a.Contact,
	}, ok
}

func joinSources(a, b string) string {
	if a == b {
		return a
	}
	return a + " + " + b
}

// addLists is the sorted union of two lists.
func addLists(a, b []string) []string {
	if len(a)+len(b) == 0 {
		return nil
	}
	all := slices.Concat(a, b)
	slices.Sort(all)
	return slices.Compact(all)
}

// addDatabases is the union of two lists of which nil means all.
func addDatabases(a, b []string) []string {
	if a == nil || b == nil {
		return nil
	}
	return addLists(a, b)
}

// commonKinds is what two lists of Only have in common; an empty list means
// everything. It is false when both say something and no kind is in both.
func commonKinds(a, b []string) ([]string, bool) {
	if len(a) == 0 || len(b) == 0 {
		return addLists(a, b), true
	}
	var both []string
	for _, x := range a {
		for _, y := range b {
			switch {
			case coversKind(x, y):
				both = append(both, y)
			case coversKind(y, x):
				both = append(both, x)
			}
		}
	}
	return addLists(both, nil), slices.ContainsFunc(both, knownKind)
}

// higher is the larger of two limits of which 0 means none.
func higher[T ~int64](a, b T) T {
	if a == 0 || b == 0 {
		return 0
	}
	return max(a, b)
}

// looser is the check that refuses less.
func looser(a, b WhereCheck) WhereCheck {
	strictness := []WhereCheck{WhereFree, WhereRequired, WhereKey}
	return strictness[min(slices.Index(strictness, a), slices.Index(strictness, b))]
}

// Serves reports whether the rule lets its caller ask for this database.
func (r Rule) Serves(database string) bool {
	return r.Databases == nil || slices.Contains(r.Databases, database)
}

// Describe tells the rule in words, one phrase for each thing that matters to
// a person at the prompt: "write access", "at most 10000 rows a statement".
func (r Rule) Describe() []string {
	words := []string{r.Access.String() + " access"}
	add := func(cond bool, format string, args ...any) {
		if cond {
			words = append(words, fmt.Sprintf(format, args...))
		}
	}
	add(r.MaxRows > 0, "at most %d rows a statement", r.MaxRows)
	add(r.MaxBytes > 0, "at most %s a statement", formatBytes(r.MaxBytes))
	add(r.Access > Read && r.MaxAffectedRows > 0, "at most %d rows changed by a statement", r.MaxAffectedRows)
	add(r.StatementTimeout > 0, "%s for a statement", formatDuration(r.StatementTimeout))
	add(r.IdleInTransactionTimeout > 0, "%s idle in a transaction", formatDuration(r.IdleInTransactionTimeout))
	add(len(r.Only) > 0, "only %s", strings.Join(r.Only, ", "))
	add(len(r.Allow) > 0, "also %s", strings.Join(r.Allow, ", "))
	add(len(r.Deny) > 0, "never %s", strings.Join(r.Deny, ", "))
	add(r.Access > Read && r.Where == WhereRequired, "UPDATE and DELETE need a WHERE clause")
	add(r.Access > Read && r.Where == WhereKey, "UPDATE and DELETE must name a row by its key")
	add(r.Access > Read && r.RequireReason, "writes need pgproxy.reason")
	add(r.Elevate.Access > r.Access, "SET pgproxy.access gives %s", r.Elevate)
	add(r.MayApprove, "other people's access requests may be answered")
	add(r.MayLift, "limits may be lifted for the session")
	add(r.MaySignal, "other backends may be cancelled and ended")
	return words
}

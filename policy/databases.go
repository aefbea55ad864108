package policy

import (
	"fmt"
	"slices"
	"strings"
)

// Served are the databases that pgproxy serves: those a client may ask for, as
// far as its rule lets it.
type Served struct {
	Default string   // for a client that names none
	Names   []string // the others; "*" = any
}

// Choose returns the database for a client that asks for one, or for none (""),
// under a rule. The refusal is of the connection.
func (s Served) Choose(rule *Rule, asked string) (string, *Refusal) {
	name := asked
	if name == "" {
		name = s.Default
	}
	served := name == s.Default || slices.Contains(s.Names, name) || slices.Contains(s.Names, "*")
	if !served || !rule.Serves(name) {
		return "", &Refusal{
			Code: "3D000", Rule: "database",
			Message: fmt.Sprintf("pgproxy: database %q is not served", name),
			Hint:    s.hint(rule),
		}
	}
	return name, nil
}

// hint lists the databases that a client may ask for under a rule.
func (s Served) hint(rule *Rule) string {
	names := s.For(rule)
	if len(names) == 0 {
		return "No database is served to you."
	}
	return "Served to you: " + strings.Join(names, ", ") + "."
}

// For returns the databases that a client may ask for under a rule, sorted. Those
// that only "*" stands for are missing.
func (s Served) For(rule *Rule) []string {
	names := append([]string{s.Default}, s.Names...)
	if slices.Contains(names, "*") {
		names = append(names, rule.Databases...)
	}
	names = slices.DeleteFunc(names, func(n string) bool { return n == "*" || n == "" || !rule.Serves(n) })
	slices.Sort(names)
	return slices.Compact(names)
}

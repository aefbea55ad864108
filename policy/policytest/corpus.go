// Package policytest reads the corpus of verdicts in policy/testdata/corpus,
// for the tests of the policy alone and for those of the whole proxy.
//
// A corpus file holds cases one after the other:
//
//	### access ok ok | TRUNCATE where the policy allows it | allow=TRUNCATE
//	TRUNCATE t
//
// The first line has the verdicts at access read, write and admin: "ok", or
// the name of the rule that refuses (policy.Refusal.Rule). Then come the
// reason for having the case, and parts of the rule: allow, deny, only (kinds
// and functions with commas between them), where (key, free), lift (yes). What
// follows is sent as one
// message; a line of "---" begins the next message of the same session. The
// verdicts are those on the last message; the others are expected to pass
// where it does.
package policytest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"pgproxy/policy"
)

// Case is one case of the corpus.
type Case struct {
	File   string // base name
	Line   int    // of its first line
	Reason string
	// Messages are sent one after the other; the last is judged.
	Messages []string
	// Want is what each access says: "ok", or the name of the rule.
	Want map[policy.Access]string

	options map[string]string
}

// Name is the case's name for a subtest.
func (c Case) Name() string { return fmt.Sprintf("%s:%d", c.File, c.Line) }

// Rule is the built-in rule at an access, with the case's own parts.
func (c Case) Rule(access policy.Access) policy.Rule {
	rule := policy.DefaultRule()
	rule.Access = access
	rule.Allow, rule.Deny, rule.Only = c.kinds("allow"), c.kinds("deny"), c.kinds("only")
	rule.MayLift = c.options["lift"] == "yes"
	switch c.options["where"] {
	case "key":
		rule.Where = policy.WhereKey
	case "free":
		rule.Where = policy.WhereFree
	}
	return rule
}

func (c Case) kinds(option string) []string {
	if c.options[option] == "" {
		return nil
	}
	return strings.Split(c.options[option], ",")
}

// Load reads all files of a corpus directory.
func Load(dir string) ([]Case, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.txt"))
	if err != nil {
		return nil, err
	}
	var cases []Case
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		more, err := parse(filepath.Base(file), string(data))
		if err != nil {
			return nil, err
		}
		cases = append(cases, more...)
	}
	return cases, nil
}

const header = "### "

// parse reads one file. What stands before the first case is a comment.
func parse(file, text string) ([]Case, error) {
	var cases []Case
	var body []string
	flush := func() {
		if len(cases) > 0 {
			text := strings.TrimSpace(strings.Join(body, "\n"))
			cases[len(cases)-1].Messages = strings.Split(text, "\n---\n")
		}
		body = nil
	}
	for i, line := range strings.Split(text, "\n") {
		if !strings.HasPrefix(line, header) {
			body = append(body, line)
			continue
		}
		flush()
		c, err := parseHeader(strings.TrimPrefix(line, header))
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", file, i+1, err)
		}
		c.File, c.Line = file, i+1
		cases = append(cases, c)
	}
	flush()
	return cases, nil
}

func parseHeader(line string) (Case, error) {
	parts := strings.Split(line, "|")
	verdicts := strings.Fields(parts[0])
	if len(parts) < 2 || len(parts) > 3 || len(verdicts) != 3 {
		return Case{}, fmt.Errorf("%q is no header of a case", line)
	}
	c := Case{
		Reason:  strings.TrimSpace(parts[1]),
		Want:    map[policy.Access]string{policy.Read: verdicts[0], policy.Write: verdicts[1], policy.Admin: verdicts[2]},
		options: make(map[string]string),
	}
	if len(parts) == 3 {
		for option := range strings.SplitSeq(parts[2], ";") {
			name, value, ok := strings.Cut(strings.TrimSpace(option), "=")
			if !ok {
				return Case{}, fmt.Errorf("%q is no option", option)
			}
			c.options[name] = value
		}
	}
	return c, nil
}

package config

import (
	"flag"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"pgproxy/policy"
)

// environment names the variables that are not PGPROXY_ and the flag's name:
// those that Tailscale's own programs read, and the connection string.
var environment = map[string]string{
	"hostname":       "TS_HOSTNAME",
	"state-dir":      "TS_STATE_DIR",
	"control-url":    "TS_CONTROL_URL",
	"advertise-tags": "TS_ADVERTISE_TAGS",
	"upstream":       "UPSTREAM_DSN",
	"as":             "", // a question, not a setting, as are those below
	"d":              "",
	"reason":         "",
	"f":              "",
}

func variable(flagName string) string {
	if name, ok := environment[flagName]; ok {
		return name
	}
	return ownVariable(flagName)
}

// ownPrefix begins the names of the variables that are pgproxy's alone.
const ownPrefix = "PGPROXY_"

func ownVariable(flagName string) string {
	return ownPrefix + strings.ToUpper(strings.ReplaceAll(flagName, "-", "_"))
}

// readEnvironment sets the flags that were not given. A variable in pgproxy's
// name that no flag has is an error: it is a flag's, mistyped.
func (c *Config) readEnvironment(environ []string) {
	given := make(map[string]bool)
	c.flags.Visit(func(f *flag.Flag) { given[f.Name] = true })
	flagOf, meant := make(map[string]*flag.Flag), make(map[string]string)
	c.flags.VisitAll(func(f *flag.Flag) {
		if name := variable(f.Name); name != "" {
			flagOf[name] = f
			meant[name], meant[ownVariable(f.Name)] = name, name
		}
	})
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		f := flagOf[name]
		switch {
		case value == "":
		case f == nil && strings.HasPrefix(name, ownPrefix):
			c.errs = append(c.errs, unknownVariable(name, meant))
		case f != nil && !given[f.Name]:
			f.Value.(*collected).name = name
			f.Value.Set(value) // an error is in c.errs
		}
	}
}

// serviceLink are the variables that Kubernetes makes in every container for a
// Service named pgproxy.
var serviceLink = regexp.MustCompile(`^PGPROXY_(SERVICE_HOST|SERVICE_PORT.*|PORT_[0-9]+_.*)$`)

// unknownVariable says which variable was meant: meant has the right names by
// those under which they are looked for.
func unknownVariable(name string, meant map[string]string) error {
	if serviceLink.MatchString(name) {
		return fmt.Errorf("%s is of Kubernetes, for a Service named pgproxy: say enableServiceLinks: false in the pod's spec", name)
	}
	const far = 4 // more than three letters off is another word
	nearest, best := "", far
	for _, known := range slices.Sorted(maps.Keys(meant)) {
		if d := policy.EditDistance(name, known, far-1); d < best {
			nearest, best = meant[known], d
		}
	}
	if nearest == "" {
		return fmt.Errorf("%s is no variable of pgproxy's; pgproxy -h lists them", name)
	}
	return fmt.Errorf("%s is no variable of pgproxy's; %s is", name, nearest)
}

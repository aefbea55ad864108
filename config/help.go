package config

import (
	"flag"
	"fmt"
	"io"
	"strings"
)

// Flag is a flag as it was declared, and its value.
type Flag struct {
	Name, Argument, Variable, Default, Usage string
	Value                                    string
}

// Flags are all flags of the command, by name.
func (c *Config) Flags() []Flag {
	var list []Flag
	c.flags.VisitAll(func(f *flag.Flag) {
		argument, usage := flag.UnquoteUsage(f)
		list = append(list, Flag{f.Name, argument, variable(f.Name), f.DefValue, usage, f.Value.String()})
	})
	return list
}

// PrintHelp writes the commands, and the flags with their variables and defaults.
func (c *Config) PrintHelp(w io.Writer) error {
	var b strings.Builder
	b.WriteString(`pgproxy [flags]                           join the tailnet and serve
pgproxy check [flags]                     read flags and policy, reach the upstream, say what is in force
pgproxy explain [flags] [-as LOGIN] SQL   the verdict on a statement, without running it: exit 0 allowed, 2 refused, 1 not judged
pgproxy explain [flags] -f FILE           the same for a file of statements and what is expected: exit 0 if all hold
pgproxy audit show|verify [flags] FILE…   read and check audit records
pgproxy version
pgproxy help                              this

Flags, each with its environment variable:
`)
	for _, f := range c.Flags() {
		fmt.Fprintf(&b, "\n  -%s", f.Name)
		if f.Argument != "" {
			fmt.Fprintf(&b, " %s", strings.ReplaceAll(f.Argument, " ", "-"))
		}
		if f.Variable != "" {
			fmt.Fprintf(&b, "   %s", f.Variable)
		}
		fmt.Fprintf(&b, "\n        %s", f.Usage)
		if f.Default != "" {
			fmt.Fprintf(&b, " (default %s)", f.Default)
		}
		b.WriteString("\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

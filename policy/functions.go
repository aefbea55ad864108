package policy

import (
	_ "embed"
	"fmt"
	"strings"
)

// functionTable is the reviewed list of functions: every function of
// pg_catalog that PostgreSQL 14 to 18 mark volatile, the stable ones that
// matter, and those of common extensions. Its first lines explain it.
//
//go:embed functions.tsv
var functionTable string

// function is what is known of a function with an effect.
type function struct {
	class   actClass
	needs   Access
	builtin bool // found in pg_catalog only
}

// functions are the functions with an effect, by name.
var functions = readFunctions(functionTable)

// functionClasses are the classes of the table.
var functionClasses = map[string]function{
	"no-effect": {},
	"setting":   {}, // set_config, judged by its arguments
	"changes":   {class: actSequence, needs: Write},
	"server":    {class: actServer, needs: Admin},
	"files":     {class: actFiles, needs: Admin},
	"sql":       {class: actSQL, needs: Admin},
}

// readFunctions reads the table. It is part of the program, so that a mistake
// in it is one of ours.
func readFunctions(table string) map[string]function {
	known := make(map[string]function)
	for line := range strings.Lines(table) {
		line = strings.TrimSuffix(line, "\n")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		fields := strings.Split(line, "\t")
		class, ok := functionClasses[fields[len(fields)-1]]
		if !ok || len(fields) != 3 {
			panic(fmt.Sprintf("policy: functions.tsv: %q", line))
		}
		if class.needs == NoAccess {
			continue
		}
		class.builtin = fields[1] == "pg_catalog"
		known[fields[0]] = class
	}
	return known
}

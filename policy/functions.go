package policy

import (
	_ "embed"
	"fmt"
	"iter"
	"strings"

	pg "github.com/pganalyze/pg_query_go/v6"
)

// functionTable is the reviewed list of functions. Its first lines explain it;
// TestFunctionsOfServers holds it against real servers and their extensions.
//
//go:embed functions.tsv
var functionTable string

// function is what is known of a function with an effect.
type function struct {
	class   effectClass
	needs   Access
	builtin bool // found in pg_catalog only
	lasts   bool // a rollback does not undo it
}

// functions are the functions with an effect, by name; effectViews are the
// views of PostgreSQL's own that call one of them, with its name.
var functions, effectViews = readFunctions(functionTable)

// functionClasses are the classes of the table.
var functionClasses = map[string]function{
	"no-effect": {},
	"setting":   {}, // set_config, judged by its arguments
	"changes":   {class: effectSequence, needs: Write},
	"lasting":   {class: effectSequence, needs: Write, lasts: true},
	"server":    {class: effectServer, needs: Admin, lasts: true},
	"files":     {class: effectFiles, needs: Admin, lasts: true},
	"sql":       {class: effectSQL, needs: Admin, lasts: true},
}

// readFunctions reads the table. It panics on a mistake in it, since the table is
// part of the program.
func readFunctions(table string) (known map[string]function, views map[string]string) {
	known, views = make(map[string]function), make(map[string]string)
	for fields := range tableLines(table, 3) {
		name, schema, class := fields[0], fields[1], fields[2]
		if schema == "view" {
			views[name] = class
			continue
		}
		f, ok := functionClasses[class]
		if !ok {
			panic(fmt.Sprintf("policy: functions.tsv: %q", fields))
		}
		if f.needs > NoAccess {
			f.builtin = schema == "pg_catalog"
			known[name] = f
		}
	}
	return known, views
}

// tableLines yields the fields of each line of an embedded table that is no
// comment. Every line must have as many as there are columns.
func tableLines(table string, columns int) iter.Seq[[]string] {
	return func(yield func([]string) bool) {
		for line := range strings.Lines(table) {
			line = strings.TrimSuffix(line, "\n")
			if line == "" || strings.HasPrefix(line, "#") {
				continue
			}
			fields := strings.Split(line, "\t")
			if len(fields) != columns {
				panic(fmt.Sprintf("policy: a table has the line %q", line))
			}
			if !yield(fields) {
				return
			}
		}
	}
}

// effectFunction reports whether a rule may name a function: it speaks of those
// with an effect, in lower case.
func effectFunction(name string) bool {
	_, ok := functions[name]
	return ok
}

// reviewedFunction reports whether the table has a function.
func reviewedFunction(name string) bool {
	return strings.Contains(functionTable, "\n"+name+"\t")
}

// view adds the effect of calling a function by way of a view of PostgreSQL's own.
func (c *classifier) view(rel *pg.RangeVar, at nodeContext) {
	name, ok := effectViews[rel.Relname]
	if ok && (rel.Schemaname == "" || rel.Schemaname == "pg_catalog") {
		c.function(name, true, int(rel.Location), at)
	}
}

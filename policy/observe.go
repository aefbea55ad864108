package policy

import (
	_ "embed"
	"slices"
	"strings"
	"sync"

	pg "github.com/pganalyze/pg_query_go/v6"
)

// What the wire is told of a statement beside its effects: the settings it changes,
// whether it runs code that the verdict has not seen, and whether it reads a
// table.

// observe notes what a node that is no expression does.
func (c *classifier) observe(n any, at nodeContext) {
	switch n := n.(type) {
	case *pg.VariableSetStmt:
		if at.top && c.st.Proxy == nil { // not of a function, a role or a database
			c.changesSettings(settingsOf(n)...)
		}
	case *pg.TransactionStmt:
		c.changesSettings(modesOf(n.Options, "")...)
	case *pg.DiscardStmt:
		if n.Target == pg.DiscardMode_DISCARD_ALL {
			c.changesSettings(AnySetting)
		}
	case *pg.UpdateStmt:
		if n.Relation.GetRelname() == "pg_settings" && !at.planned {
			c.changesSettings(AnySetting) // by a rule of that view
		}
	case *pg.ExecuteStmt: // planning it runs functions, too
		c.st.Opaque = true
	case *pg.LockingClause:
		return
	}
	if kind := kindOf(n); !at.planned && (kind == nil || !kind.quiet) {
		c.st.Opaque = true
	}
}

// expression notes what an expression or a clause does, and adds its effects.
func (c *classifier) expression(n any, at nodeContext) {
	switch n := n.(type) {
	case *pg.FuncCall:
		c.call(n, at)
	case *pg.ColumnRef:
		if len(n.Fields) > 1 {
			c.attribute(n.Fields[len(n.Fields)-1:], int(n.Location), at)
		}
	case *pg.A_Indirection:
		c.attribute(n.Indirection, location(n.Arg), at)
		for _, name := range n.Indirection {
			if name.GetString_() != nil {
				c.names(own().functions, name)
			}
		}
	case *pg.A_Expr:
		if !betweenKinds[n.Kind] {
			c.names(own().operators, n.Name...)
		}
	case *pg.SubLink:
		c.names(own().operators, n.OperName...)
	case *pg.SortBy:
		c.names(own().operators, n.UseOp...)
	case *pg.TypeName:
		c.names(own().types, n.Names...)
	case *pg.RangeVar:
		c.view(n, at)
		c.st.Looks = c.st.Looks || n.Schemaname != "pg_catalog" && n.Schemaname != "information_schema"
	}
}

// betweenKinds are the expressions whose name is no operator's.
var betweenKinds = map[pg.A_Expr_Kind]bool{
	pg.A_Expr_Kind_AEXPR_BETWEEN: true, pg.A_Expr_Kind_AEXPR_NOT_BETWEEN: true,
	pg.A_Expr_Kind_AEXPR_BETWEEN_SYM: true, pg.A_Expr_Kind_AEXPR_NOT_BETWEEN_SYM: true,
}

// names notes that a function, operator or type is named. list are those of
// PostgreSQL's own.
func (c *classifier) names(list []string, name ...*pg.Node) {
	switch len(name) {
	case 0:
		return
	case 1:
		if _, found := slices.BinarySearch(list, name[0].GetString_().GetSval()); found {
			return
		}
	default:
		if name[len(name)-2].GetString_().GetSval() == "pg_catalog" {
			return
		}
	}
	c.st.facts.Foreign, c.st.Opaque = true, true
}

// changesSettings notes the settings that the statement changes.
func (c *classifier) changesSettings(names ...string) {
	for _, name := range names {
		if !slices.Contains(c.st.Settings, name) {
			c.st.Settings = append(c.st.Settings, name)
		}
	}
}

// maxSettings bounds the settings that are noted of one statement.
const maxSettings = 32

// configures notes a call of set_config.
func (c *classifier) configures(n *pg.FuncCall, at nodeContext) {
	if at.planned || at.stored || c.st.Kind == "PREPARE" || c.st.Kind == "DECLARE CURSOR" {
		return
	}
	c.st.Opaque = true
	name := AnySetting
	if len(n.Args) > 0 {
		if text := unwrapText(n.Args[0]); text != nil && len(c.st.Settings) < maxSettings {
			name = strings.ToLower(*text)
		}
	}
	c.changesSettings(name)
}

// settingsOf returns the settings that a SET or RESET changes.
func settingsOf(n *pg.VariableSetStmt) []string {
	switch n.Kind {
	case pg.VariableSetKind_VAR_RESET_ALL:
		return []string{AnySetting}
	case pg.VariableSetKind_VAR_SET_MULTI:
		if n.Name == "SESSION CHARACTERISTICS" {
			return modesOf(n.Args, "default_")
		}
		return modesOf(n.Args, "")
	}
	return []string{strings.ToLower(n.Name)}
}

// modesOf returns the settings that the modes of a transaction change.
func modesOf(modes []*pg.Node, prefix string) []string {
	var names []string
	for _, mode := range modes {
		if name := mode.GetDefElem().GetDefname(); name != "" && !slices.Contains(names, prefix+name) {
			names = append(names, prefix+name)
		}
	}
	return names
}

// ownTable has the names of the functions, types and operators of pg_catalog in
// PostgreSQL 14 to 18, as the servers list them.
//
//go:embed own.txt
var ownTable string

// ownNames are the names in ownTable, each list sorted.
type ownNames struct{ functions, types, operators []string }

var own = sync.OnceValue(func() *ownNames {
	var names ownNames
	list := &names.functions
	for line := range strings.Lines(ownTable) {
		switch line := strings.TrimSuffix(line, "\n"); {
		case strings.HasPrefix(line, "-- "): // a comment
		case line == "[functions]":
			list = &names.functions
		case line == "[types]":
			list = &names.types
		case line == "[operators]":
			list = &names.operators
		default:
			*list = append(*list, strings.Fields(line)...)
		}
	}
	for _, list := range [][]string{names.functions, names.types, names.operators} {
		slices.Sort(list)
	}
	return &names
})

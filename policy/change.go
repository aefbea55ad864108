package policy

import (
	"fmt"
	"slices"

	pg "github.com/pganalyze/pg_query_go/v6"
)

// change is what require_where asks of an UPDATE, DELETE or MERGE, and of an
// INSERT … ON CONFLICT DO UPDATE.
type change struct {
	// Bare says that there is no WHERE clause.
	Bare bool
	// Only says that the tables that inherit from the table are left out.
	Only bool
	// Pins are the ways in which a row can satisfy the WHERE clause: each is
	// the columns of the table that it compares with constants. Nil when some
	// way is not known.
	Pins [][]string
	// Upsert says that it is an INSERT, which needs no WHERE clause: it changes
	// the rows with which those inserted conflict. Unnamed is why the inserted
	// rows do not name these by a key with constants, "" when they do.
	Upsert  bool
	Unnamed string
}

func updateChange(n *pg.UpdateStmt) *change {
	return changeOf(n.Relation, n.WhereClause)
}

func deleteChange(n *pg.DeleteStmt) *change {
	return changeOf(n.Relation, n.WhereClause)
}

func changeOf(rel *pg.RangeVar, where *pg.Node) *change {
	return &change{Bare: where == nil, Only: !rel.GetInh(), Pins: pinner{rel}.pins(where)}
}

// insertChange returns what an INSERT must say, nil when it changes no row that
// is there. A row that it changes has the values of a row inserted in all
// columns of the conflict target, which is a unique key, or the server refuses
// the INSERT. So it changes one row for each row inserted, and names it where
// those values are constants.
func insertChange(n *pg.InsertStmt) *change {
	conflict := n.OnConflictClause
	if conflict.GetAction() != pg.OnConflictAction_ONCONFLICT_UPDATE {
		return nil
	}
	ch := &change{Upsert: true}
	target, rows := conflictColumns(conflict.Infer), n.SelectStmt.GetSelectStmt().GetValuesLists()
	switch {
	case target == nil:
		ch.Unnamed = "ON CONFLICT does not name the columns of a key"
	case len(rows) == 0:
		ch.Unnamed = "the rows to insert come from a query"
	case n.Override == pg.OverridingKind_OVERRIDING_USER_VALUE:
		ch.Unnamed = "OVERRIDING USER VALUE takes other values than those of the rows"
	}
	for _, column := range target {
		if ch.Unnamed == "" && !allConstant(rows, insertedAt(n.Cols, column)) {
			ch.Unnamed = fmt.Sprintf("column %q is not in the INSERT's list of columns with a constant in each row", column)
		}
	}
	return ch
}

// conflictColumns returns the columns of a conflict target, nil if it is not
// made of columns alone.
func conflictColumns(target *pg.InferClause) []string {
	var columns []string
	for _, e := range target.GetIndexElems() {
		name := e.GetIndexElem().GetName()
		if name == "" || len(columns) == maxColumns {
			return nil
		}
		columns = append(columns, name)
	}
	return columns
}

// insertedAt returns the place of a column in an INSERT's list, -1 for none.
func insertedAt(list []*pg.Node, column string) int {
	return slices.IndexFunc(list, func(n *pg.Node) bool {
		return n.GetResTarget().GetName() == column && len(n.GetResTarget().GetIndirection()) == 0
	})
}

// allConstant reports whether the values at a place are constants in all rows.
func allConstant(rows []*pg.Node, at int) bool {
	for _, row := range rows {
		items := row.GetList().GetItems()
		if at < 0 || at >= len(items) || !isConstant(items[at]) {
			return false
		}
	}
	return true
}

// mergeChange returns what a MERGE must say, nil when it only inserts. Its ON
// condition is the WHERE clause of its WHEN MATCHED branches; what is not
// matched by the source has only the branch's own condition.
func mergeChange(n *pg.MergeStmt) *change {
	ch := &change{Only: !n.Relation.GetInh()}
	p, changes := pinner{n.Relation}, false
	for _, node := range n.MergeWhenClauses {
		when := node.GetMergeWhenClause()
		if when.GetCommandType() != pg.CmdType_CMD_UPDATE && when.GetCommandType() != pg.CmdType_CMD_DELETE {
			continue
		}
		pins := p.pins(when.Condition)
		if when.GetMatchKind() == pg.MergeMatchKind_MERGE_WHEN_MATCHED {
			pins = both(p.pins(n.JoinCondition), pins)
		} else {
			ch.Bare = ch.Bare || when.Condition == nil
		}
		if changes {
			pins = either(ch.Pins, pins)
		}
		ch.Pins, changes = pins, true
	}
	if !changes {
		return nil
	}
	return ch
}

// maxPins bounds the ways in which a WHERE clause may be satisfied. A clause with
// more is taken to name no rows. Ways that pin the same columns count as one.
const maxPins = 64

// pinner reads which columns of a table a condition compares with constants.
type pinner struct{ table *pg.RangeVar }

// pins returns the ways in which a row can satisfy the condition, nil when
// nothing is known of some way.
func (p pinner) pins(condition *pg.Node) [][]string {
	switch n := unwrap(condition).(type) {
	case *pg.BoolExpr:
		return p.boolean(n)
	case *pg.A_Expr:
		if columns := p.comparison(n); len(columns) > 0 {
			return [][]string{columns}
		}
	}
	return nil
}

func (p pinner) boolean(n *pg.BoolExpr) [][]string {
	var ways [][]string
	switch n.Boolop {
	case pg.BoolExprType_AND_EXPR:
		for _, arg := range n.Args {
			ways = both(ways, p.pins(arg))
		}
	case pg.BoolExprType_OR_EXPR:
		for i, arg := range n.Args {
			pins := p.pins(arg)
			if i > 0 {
				pins = either(ways, pins)
			}
			ways = pins
		}
	}
	return ways
}

// both returns the ways of satisfying two conditions at once.
func both(a, b [][]string) [][]string {
	if a == nil {
		return b
	}
	if b == nil || len(a)*len(b) > maxPins {
		return a
	}
	var ways [][]string
	for _, x := range a {
		for _, y := range b {
			ways = addWay(ways, joinColumns(x, y))
		}
	}
	return ways
}

// addWay adds a way to ways, once.
func addWay(ways [][]string, way []string) [][]string {
	if slices.ContainsFunc(ways, func(w []string) bool { return slices.Equal(w, way) }) {
		return ways
	}
	return append(ways, way)
}

// maxColumns bounds the columns of one way: PostgreSQL's limit for the columns
// of an index, so that any one key finds room.
const maxColumns = 32

// joinColumns returns the columns of x and then those of y that are new, and leaves
// both as they are.
func joinColumns(x, y []string) []string {
	all := slices.Clip(x)
	for _, column := range y {
		if len(all) < maxColumns && !slices.Contains(all, column) {
			all = append(all, column)
		}
	}
	return all
}

// either returns the ways of satisfying one condition or the other.
func either(a, b [][]string) [][]string {
	if a == nil || b == nil {
		return nil
	}
	ways := slices.Clip(a)
	for _, way := range b {
		ways = addWay(ways, way)
	}
	if len(ways) > maxPins {
		return nil
	}
	return ways
}

// comparison returns the columns that a comparison with constants pins: col =
// constant, col IN (constants), col = ANY (ARRAY[constants]), and (col, col) =
// (constant, constant). It returns none for any other expression.
func (p pinner) comparison(n *pg.A_Expr) []string {
	if !isEquals(n.Name) {
		return nil
	}
	switch n.Kind {
	case pg.A_Expr_Kind_AEXPR_OP:
		left, right := rowOf(n.Lexpr), rowOf(n.Rexpr)
		if len(left) != len(right) {
			return nil
		}
		var columns []string
		for i := range left {
			columns = append(columns, p.equality(left[i], right[i])...)
		}
		return columns
	case pg.A_Expr_Kind_AEXPR_IN:
		return p.membership(n.Lexpr, n.Rexpr.GetList().GetItems())
	case pg.A_Expr_Kind_AEXPR_OP_ANY:
		return p.membership(n.Lexpr, n.Rexpr.GetAArrayExpr().GetElements())
	}
	return nil
}

// rowOf returns the parts of a row, and any other expression as one of one.
func rowOf(n *pg.Node) []*pg.Node {
	if row := n.GetRowExpr(); row != nil {
		return row.Args
	}
	return []*pg.Node{n}
}

// equality returns the column of an equation with a constant.
func (p pinner) equality(left, right *pg.Node) []string {
	if column := p.column(left); column != "" && isConstant(right) {
		return []string{column}
	}
	if column := p.column(right); column != "" && isConstant(left) {
		return []string{column}
	}
	return nil
}

// membership returns the column that is one of a list of constants.
func (p pinner) membership(left *pg.Node, items []*pg.Node) []string {
	column := p.column(left)
	if column == "" || len(items) == 0 {
		return nil
	}
	for _, item := range items {
		if !isConstant(item) {
			return nil
		}
	}
	return []string{column}
}

// isEquals reports whether an operator is = or OPERATOR(pg_catalog.=).
func isEquals(name []*pg.Node) bool {
	switch len(name) {
	case 1:
		return name[0].GetString_().GetSval() == "="
	case 2:
		return name[0].GetString_().GetSval() == "pg_catalog" && name[1].GetString_().GetSval() == "="
	}
	return false
}

// column returns the name of the table's column that an expression is, "" for
// anything else. A name without its table may be another table's only when
// the table has no such column; then it is in none of the table's keys.
func (p pinner) column(n *pg.Node) string {
	fields := n.GetColumnRef().GetFields()
	names := make([]string, len(fields))
	for i, f := range fields {
		names[i] = f.GetString_().GetSval()
		if names[i] == "" {
			return ""
		}
	}
	alias := p.table.GetAlias().GetAliasname()
	switch {
	case len(names) == 1:
		return names[0]
	case len(names) == 2 && alias != "" && names[0] == alias:
		return names[1]
	case len(names) == 2 && alias == "" && names[0] == p.table.Relname:
		return names[1]
	case len(names) == 3 && alias == "" && names[0] == p.table.Schemaname && names[1] == p.table.Relname:
		return names[2]
	}
	return ""
}

// constantTypes are the built-in types to which a constant may be cast. Types
// that make unequal values equal (float8 for large integers, bpchar) are not
// among them.
var constantTypes = map[string]bool{
	"int2": true, "int4": true, "int8": true, "numeric": true, "bool": true,
	"text": true, "varchar": true, "uuid": true, "oid": true, "bytea": true,
	"date": true, "time": true, "timetz": true, "timestamp": true, "timestamptz": true, "interval": true,
	"inet": true, "cidr": true, "macaddr": true,
}

// isConstant reports whether an expression is a literal, with a sign or a cast
// to a plain built-in type at most. NULL is none: it equals nothing.
func isConstant(n *pg.Node) bool {
	switch n := unwrap(n).(type) {
	case *pg.A_Const:
		return !n.Isnull
	case *pg.TypeCast:
		return isConstant(n.Arg) && isConstantType(n.TypeName)
	case *pg.A_Expr:
		return n.Kind == pg.A_Expr_Kind_AEXPR_OP && n.Lexpr == nil && isSign(n.Name) && isConstant(n.Rexpr)
	}
	return false
}

func isSign(name []*pg.Node) bool {
	return len(name) == 1 && (name[0].GetString_().GetSval() == "-" || name[0].GetString_().GetSval() == "+")
}

func isConstantType(t *pg.TypeName) bool {
	names := t.GetNames()
	if len(names) == 0 || len(names) > 2 || len(t.ArrayBounds) > 0 || t.Setof {
		return false
	}
	if len(names) == 2 && names[0].GetString_().GetSval() != "pg_catalog" {
		return false
	}
	return constantTypes[names[len(names)-1].GetString_().GetSval()]
}

package policy

import (
	"fmt"
	"strings"

	pg "github.com/pganalyze/pg_query_go/v6"
)

// nodeContext is where in a statement a node stands.
type nodeContext struct {
	top     bool // the statement itself
	wrapped bool // what EXPLAIN, PREPARE, DECLARE, COPY, CREATE AS run
	stored  bool // part of a definition: not run now
	// planned says that it stands under EXPLAIN without ANALYZE: no statement
	// and no volatile function is run there. Planning does run the stable and
	// immutable ones, and what the type of a literal calls.
	planned bool

	createAs bool // directly under CREATE TABLE AS
}

// inside returns the context of n's children.
func (ctx nodeContext) inside(n any) nodeContext {
	ctx.top, ctx.wrapped, ctx.createAs = false, false, false
	switch n := n.(type) {
	case *pg.ExplainStmt:
		ctx.wrapped = true
		ctx.planned = ctx.planned || !analyzes(n)
	case *pg.CreateTableAsStmt:
		ctx.wrapped, ctx.createAs = true, true
	case *pg.PrepareStmt, *pg.DeclareCursorStmt, *pg.CopyStmt:
		ctx.wrapped = true
	case *pg.ExecuteStmt: // its arguments are evaluated before anything is planned
		ctx.planned = false
	case *pg.CreateFunctionStmt, *pg.RuleStmt, *pg.ViewStmt, *pg.CreateSchemaStmt, *pg.CreateStmt, *pg.IndexStmt:
		ctx.stored = true
	}
	return ctx
}

// classifier collects the facts of one statement.
type classifier struct {
	st *Statement
	// seen has the effects so far, to drop those that come again. It is used
	// once there are many.
	seen map[effect]bool
}

// classify fills st in from its parse tree. Start and End are set already.
func classify(st *Statement, tree any) {
	c := classifier{st: st}
	if kind := kindOf(tree); kind != nil {
		st.Kind, st.Tags = kind.tag, kind.answers
	} else {
		st.Kind = "UNKNOWN"
	}
	c.visit(tree, nodeContext{top: true})
	if isSelectInto(tree) {
		st.Kind = "CREATE TABLE AS" // but the server answers SELECT
	}
	st.Reads = st.Kind == "SELECT" && !st.facts.beyondRead()
}

// add adds an effect, once: a statement may call a function a hundred thousand
// times.
func (c *classifier) add(a effect) {
	effects := c.st.facts.Effects
	if len(effects) >= 16 && a.Target == nil {
		key := a
		key.Pos = 0
		if c.seen[key] {
			return
		}
		if c.seen == nil {
			c.seen = make(map[effect]bool)
		}
		c.seen[key] = true
	}
	c.st.facts.Effects = append(effects, a)
}

// visit judges a node and then all below it.
func (c *classifier) visit(n any, at nodeContext) {
	if isPart(n) {
		c.expression(n, at)
	} else {
		c.judge(n, at)
		c.observe(n, at)
	}
	eachChild(n, func(child any) { c.visit(child, at.inside(n)) })
}

// judge adds the effects of a node that is no expression.
func (c *classifier) judge(n any, at nodeContext) {
	kind := kindOf(n)
	if kind == nil {
		c.unknown(n)
		return
	}
	switch n := n.(type) {
	case *pg.SelectStmt:
		if at.top || at.wrapped {
			c.statement(kind, kind.access, at)
		}
		if at.top {
			if s := signalOf(n); s != nil {
				c.st.Proxy = &ProxyCommand{Verb: "SELECT", Signal: s}
			}
		}
	case *pg.LockingClause:
		if !at.planned {
			c.add(effect{Kind: kind.tag, Needs: kind.access, Pos: -1})
		}
	case *pg.IntoClause:
		if !at.createAs && !at.planned {
			c.add(effect{Kind: kind.tag, Needs: needs(n, kind), Pos: int(n.Rel.GetLocation())})
		}
	case *pg.InsertStmt:
		c.change(kind, n.Relation, insertChange(n), at)
	case *pg.UpdateStmt:
		c.change(kind, n.Relation, updateChange(n), at)
	case *pg.DeleteStmt:
		c.change(kind, n.Relation, deleteChange(n), at)
	case *pg.MergeStmt:
		c.change(kind, n.Relation, mergeChange(n), at)
	case *pg.VariableSetStmt:
		c.set(n, kind, at)
	default:
		c.utility(n, kind, at)
	}
}

// utility adds the effects of a statement that has no plan of its own.
func (c *classifier) utility(n any, kind *statementKind, at nodeContext) {
	if copies, ok := n.(*pg.CopyStmt); ok && copies.Filename == "" { // before COPY itself, which the policy may allow
		c.add(effect{Class: effectCopyStdio, Needs: neverAllowed, Name: copyName(copies), Pos: -1})
	}
	c.statement(kind, needs(n, kind), at)
	c.session(n, at)
}

// statement adds the effect that a statement of a kind is.
func (c *classifier) statement(kind *statementKind, needs Access, at nodeContext) {
	if at.planned && !at.top {
		return
	}
	c.add(effect{Kind: kind.tag, Needs: needs, Pos: -1, Lasts: kind.lasts})
}

func (c *classifier) unknown(n any) {
	name := strings.TrimPrefix(fmt.Sprintf("%T", n), "*pg_query.")
	c.add(effect{Class: effectUnknown, Needs: Admin, Name: name, Pos: location(n)})
}

// isSelectInto reports whether the statement is a SELECT INTO. The clause
// stands in the first SELECT of a UNION.
func isSelectInto(n any) bool {
	s, ok := n.(*pg.SelectStmt)
	for ok && s != nil {
		if s.IntoClause != nil {
			return true
		}
		s = s.Larg
	}
	return false
}

// change adds an INSERT, UPDATE, DELETE or MERGE. ch is nil for one that changes
// no row that is there.
func (c *classifier) change(kind *statementKind, rel *pg.RangeVar, ch *change, at nodeContext) {
	if at.planned {
		return
	}
	switch {
	case at.stored:
		ch = nil
	case c.st.Kind == "PREPARE":
		c.st.facts.Hides = c.st.facts.Hides || !at.wrapped
	default:
		c.st.Changes = true
		c.st.Hidden = c.st.Hidden || !at.top
	}
	c.add(effect{Kind: kind.tag, Needs: kind.access, Pos: nested(at, rel), Change: ch, Target: relationOf(rel)})
}

// nested returns the position to show for a change: the verb for a statement
// of its own, and otherwise, since the tree does not have it, its table.
func nested(at nodeContext, rel *pg.RangeVar) int {
	if at.top {
		return -1
	}
	return int(rel.GetLocation())
}

// onlyRelation returns the relation that a view selects from, nil if there are
// several or none. With a single one, PostgreSQL makes changes of the view's rows
// in that relation.
func onlyRelation(query *pg.Node) *pg.RangeVar {
	if from := query.GetSelectStmt().GetFromClause(); len(from) == 1 {
		return from[0].GetRangeVar()
	}
	return nil
}

// session adds what a statement does to the session beyond being of its kind,
// and notes it for the wire.
func (c *classifier) session(n any, at nodeContext) {
	switch n := n.(type) {
	case *pg.TransactionStmt:
		c.transaction(n)
	case *pg.VariableShowStmt:
		c.show(n)
	case *pg.DiscardStmt:
		if n.Target == pg.DiscardMode_DISCARD_ALL {
			c.st.facts.ForgetsAll = true
			c.add(effect{Class: effectResetAll, Needs: Admin, Name: "DISCARD ALL", Pos: -1})
		}
	case *pg.ViewStmt:
		if rel := onlyRelation(n.Query); rel != nil {
			c.add(effect{Needs: Read, Pos: int(rel.GetLocation()), Target: relationOf(rel)})
		}
	case *pg.FetchStmt:
		c.st.Cursor = fetchUse(n)
	case *pg.DeclareCursorStmt:
		if !at.top { // EXPLAIN declares none
			break
		}
		const noScroll, hold = 0x0004, 0x0020 // CURSOR_OPT_…, parsenodes.h
		c.st.Cursor = CursorUse{Verb: CursorDeclare, Name: n.Portalname, Hold: n.Options&hold != 0, NoScroll: n.Options&noScroll != 0}
	case *pg.ClosePortalStmt:
		c.st.Cursor = CursorUse{Verb: CursorClose, Name: n.Portalname}
	case *pg.PrepareStmt:
		c.st.facts.Prepares = n.Name
	case *pg.ExecuteStmt:
		c.st.facts.Executes = append(c.st.facts.Executes, execution{Name: n.Name, Pos: -1, Planned: at.planned, Nested: !at.top})
	case *pg.DeallocateStmt:
		c.st.facts.Forgets, c.st.facts.ForgetsAll = n.Name, n.Name == ""
	}
}

// fetchUse describes a FETCH or MOVE. PostgreSQL turns a negative count into the
// other direction when it runs the statement, so the tree still has it.
func fetchUse(n *pg.FetchStmt) CursorUse {
	use := CursorUse{Verb: CursorFetch, Name: n.Portalname, Count: n.HowMany, Forward: true}
	if n.Ismove {
		use.Verb = CursorMove
	}
	switch n.Direction {
	case pg.FetchDirection_FETCH_FORWARD:
	case pg.FetchDirection_FETCH_BACKWARD:
		use.Forward = false
	default:
		use.Count, use.Single = 1, true
		return use
	}
	if use.Count < 0 {
		use.Forward, use.Count = !use.Forward, -use.Count
	}
	use.Single = use.Count == 0 // the current row again
	return use
}

func copyName(n *pg.CopyStmt) string {
	if n.IsFrom {
		return "COPY FROM STDIN"
	}
	return "COPY TO STDOUT"
}

// analyzes reports whether an EXPLAIN may run what it explains: any ANALYZE
// option that is not plainly off, whichever of several would count.
func analyzes(n *pg.ExplainStmt) bool {
	for _, option := range n.Options {
		if e := option.GetDefElem(); strings.EqualFold(e.GetDefname(), "analyze") && !isOff(e.GetArg()) {
			return true
		}
	}
	return false
}

// isOff reports whether an option's value is one of PostgreSQL's words for
// false.
func isOff(value *pg.Node) bool {
	switch v := unwrap(value).(type) {
	case *pg.Integer:
		return v.Ival == 0
	case *pg.Boolean:
		return !v.Boolval
	case *pg.String:
		return strings.EqualFold(v.Sval, "off") || strings.EqualFold(v.Sval, "false")
	}
	return false
}

// location returns where a node stands, -1 if it does not say.
func location(n any) int {
	if node, ok := n.(*pg.Node); ok {
		n = unwrap(node)
	}
	if l, ok := n.(interface{ GetLocation() int32 }); ok {
		return int(l.GetLocation())
	}
	return -1
}

package policy

import (
	"fmt"
	"slices"
	"strings"

	pg "github.com/pganalyze/pg_query_go/v6"
)

// facts are what a verdict about a statement needs to know of it. They depend
// on the text alone, so that they can be kept with it and used for every
// caller. Their fields are exported for the parser process to send them.
type facts struct {
	// Acts are what the statement does, its own kind first. A statement may
	// run when every act may.
	Acts []act
	// Executes are the prepared statements it runs; Prepares is the name of the
	// one it makes, Forgets of the one it drops; ForgetsAll says that it drops
	// all.
	Executes          []execution
	Prepares, Forgets string
	ForgetsAll        bool
	// Hides says of a PREPARE what Statement.Hidden says of a statement.
	Hides bool
	// Configures says that it changes a setting by set_config.
	Configures bool
	// Foreign says that it names a function, operator or type that is not known
	// to be PostgreSQL's own.
	Foreign bool
}

// beyondRead reports whether the statement does something known to have an
// effect.
func (f *facts) beyondRead() bool {
	return f.Configures || slices.ContainsFunc(f.Acts, func(a act) bool { return a.Needs > Read })
}

// act is one thing that a statement does.
type act struct {
	Class actClass
	// Kind is the word that allow, deny and only speak of: a command tag, or
	// the name of a function; empty for an act that the access alone decides.
	Kind string
	// Needs is the least access that permits the act. nobody is beyond Admin.
	Needs Access
	// Name is the function, setting, table or node in question.
	Name string
	// Pos is where the offending word stands: first in bytes from 0, -1 for
	// unknown; once the statement is classified, in characters from 1.
	Pos int
	// Change is set for UPDATE, DELETE, MERGE and ON CONFLICT DO UPDATE that
	// would run.
	Change *change
	// Millis is the value of a timeout that is set; see timeoutMillis.
	Millis int64
	// Target is the table or view whose rows the act changes, or opens to
	// changes by way of a view.
	Target *relation
}

// size is about how much memory the act takes, in bytes.
func (a *act) size() int {
	n := 144
	if a.Target != nil {
		n += 64
	}
	if a.Change != nil {
		n += 80
		for _, way := range a.Change.Pins {
			n += 32 + 24*len(way)
		}
	}
	return n
}

// actClass is the reason why an act is judged, and so the words for refusing
// it.
type actClass int

const (
	actStatement actClass = iota // a kind of statement
	actCopyStdio                 // COPY through the client connection
	actUnknown                   // a node this version does not know
	actSequence                  // a function that changes rows, locks, sequences
	actServer                    // a function that acts on the server or other sessions
	actFiles                     // a function that reads the server's files
	actSQL                       // a function that runs SQL given as text
	actConfig                    // set_config of a setting that cannot be read in the text
	actProtected                 // a setting that belongs to the proxy
	actSuperuser                 // a setting for superusers or the server's configuration
	actNoSetting                 // a setting this version does not know
	actTimeout                   // a timeout of the server's, to some value
	actPinned                    // a setting that decides how text is read
	actReadWrite                 // a transaction made writable
	actResetAll                  // all settings reset at once
)

// nobody is an access above all others: what the proxy does not speak.
const nobody = Admin + 1

// execution is the use of a prepared statement.
type execution struct {
	Name    string
	Pos     int
	Planned bool // only planned, by EXPLAIN
	Nested  bool // in a statement with a command tag of its own
}

// place is where in a statement a node stands.
type place struct {
	top     bool // the statement itself
	wrapped bool // what EXPLAIN, PREPARE, DECLARE, COPY, CREATE AS run
	stored  bool // part of a definition, to run another day
	// planned says that it stands under EXPLAIN without ANALYZE: no statement
	// and no volatile function is run there. Planning does run the stable and
	// immutable ones, and what the type of a literal calls.
	planned bool

	createAs bool // directly under CREATE TABLE AS
}

// inside returns the place of n's children.
func (p place) inside(n any) place {
	p.top, p.wrapped, p.createAs = false, false, false
	switch n := n.(type) {
	case *pg.ExplainStmt:
		p.wrapped = true
		p.planned = p.planned || !analyzes(n)
	case *pg.CreateTableAsStmt:
		p.wrapped, p.createAs = true, true
	case *pg.PrepareStmt, *pg.DeclareCursorStmt, *pg.CopyStmt:
		p.wrapped = true
	case *pg.ExecuteStmt: // its arguments are evaluated before anything is planned
		p.planned = false
	case *pg.CreateFunctionStmt, *pg.RuleStmt, *pg.ViewStmt, *pg.CreateSchemaStmt, *pg.CreateStmt, *pg.IndexStmt:
		p.stored = true
	}
	return p
}

// classifier collects the facts of one statement.
type classifier struct {
	st *Statement
	// seen are the acts so far that one of is enough, once they are many.
	seen map[act]bool
}

// classify fills st in from its parse tree. Start and End are set already.
func classify(st *Statement, tree any) {
	c := classifier{st: st}
	st.Kind = kindOf(tree)
	st.Tags = tagsOf(st.Kind)
	c.visit(tree, place{top: true})
	switch {
	case st.Kind == "":
		st.Kind, st.Tags = "UNKNOWN", nil
	case isSelectInto(tree):
		st.Kind = "CREATE TABLE AS" // but the server answers SELECT
	}
	st.Reads = st.Kind == "SELECT" && !st.facts.beyondRead()
}

// add adds an act, once: a statement may call a function a hundred thousand
// times.
func (c *classifier) add(a act) {
	acts := c.st.facts.Acts
	if len(acts) >= 16 && a.Target == nil {
		key := a
		key.Pos = 0
		if c.seen[key] {
			return
		}
		if c.seen == nil {
			c.seen = make(map[act]bool)
		}
		c.seen[key] = true
	}
	c.st.facts.Acts = append(acts, a)
}

// visit judges a node and then all below it.
func (c *classifier) visit(n any, at place) {
	if expressionNode(n) {
		c.expression(n, at)
	} else {
		c.judge(n, at)
		c.observe(n, at)
	}
	eachChild(n, func(child any) { c.visit(child, at.inside(n)) })
}

// judge adds the acts of a node that is no expression.
func (c *classifier) judge(n any, at place) {
	switch n := n.(type) {
	case *pg.SelectStmt:
		if at.top || at.wrapped {
			c.statement("SELECT", Read, at)
		}
		return
	case *pg.LockingClause:
		if !at.planned {
			kind := lockKinds[n.Strength]
			c.add(act{Kind: kind, Needs: accessFor(kind), Pos: -1})
		}
		return
	case *pg.IntoClause:
		if !at.createAs && !at.planned {
			c.add(act{Kind: "CREATE TABLE AS", Needs: temporary(n.Rel), Pos: int(n.Rel.GetLocation())})
		}
		return
	case *pg.InsertStmt:
		c.change(n, n.Relation, insertChange(n), at)
		return
	case *pg.UpdateStmt:
		c.change(n, n.Relation, updateChange(n), at)
		return
	case *pg.DeleteStmt:
		c.change(n, n.Relation, deleteChange(n), at)
		return
	case *pg.MergeStmt:
		c.change(n, n.Relation, mergeChange(n), at)
		return
	}
	kind := kindOf(n)
	if kind == "" {
		c.unknown(n)
		return
	}
	switch n := n.(type) {
	case *pg.VariableSetStmt:
		c.set(n, kind, at)
		return
	case *pg.CopyStmt:
		if n.Filename == "" { // before COPY itself, which the policy may allow
			c.add(act{Class: actCopyStdio, Needs: nobody, Name: copyName(n), Pos: -1})
		}
	}
	c.statement(kind, needs(n, kind), at)
	c.session(n, at)
}

// statement adds the act that a statement of a kind is.
func (c *classifier) statement(kind string, needs Access, at place) {
	if at.planned && !at.top {
		return
	}
	c.add(act{Kind: kind, Needs: needs, Pos: -1})
}

func (c *classifier) unknown(n any) {
	name := strings.TrimPrefix(fmt.Sprintf("%T", n), "*pg_query.")
	c.add(act{Class: actUnknown, Needs: Admin, Name: name, Pos: location(n)})
}

// needs returns the least access for one statement, which is less than its
// kind's where all it touches is temporary.
func needs(n any, kind string) Access {
	switch n := n.(type) {
	case *pg.CreateStmt:
		return max(temporary(n.Relation), temporaryAll(n.InhRelations)) // it becomes a part of its parents
	case *pg.CreateTableAsStmt:
		if kind == "CREATE TABLE AS" {
			return temporary(n.Into.GetRel())
		}
	case *pg.CreateSeqStmt:
		return temporary(n.Sequence)
	case *pg.ViewStmt:
		return temporary(n.View)
	case *pg.IndexStmt:
		return temporary(n.Relation)
	case *pg.TruncateStmt:
		return temporaryAll(n.Relations)
	case *pg.DropStmt:
		return temporaryDrop(n)
	case *pg.LockStmt:
		if n.Mode == accessShareLock {
			return Read
		}
	}
	return accessFor(kind)
}

// accessShareLock is the mode of the lock that a SELECT takes (lockdefs.h).
const accessShareLock = 1

// temporary returns the access for making or changing a relation: Write where
// it can only be a temporary one.
func temporary(rel *pg.RangeVar) Access {
	if rel.GetRelpersistence() == "t" || rel.GetSchemaname() == "pg_temp" {
		return Write
	}
	return Admin
}

func temporaryAll(relations []*pg.Node) Access {
	for _, r := range relations {
		if temporary(r.GetRangeVar()) != Write {
			return Admin
		}
	}
	return Write
}

// temporaryDrop returns the access for a DROP. Only a name in pg_temp is
// surely temporary, and CASCADE may reach what is not.
func temporaryDrop(n *pg.DropStmt) Access {
	switch n.RemoveType {
	case pg.ObjectType_OBJECT_TABLE, pg.ObjectType_OBJECT_SEQUENCE, pg.ObjectType_OBJECT_VIEW, pg.ObjectType_OBJECT_INDEX:
	default:
		return Admin
	}
	if n.Behavior == pg.DropBehavior_DROP_CASCADE {
		return Admin
	}
	for _, object := range n.Objects {
		names := object.GetList().GetItems()
		if len(names) != 2 || names[0].GetString_().GetSval() != "pg_temp" {
			return Admin
		}
	}
	return Write
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
func (c *classifier) change(n any, rel *pg.RangeVar, ch *change, at place) {
	if at.planned {
		return
	}
	kind := kindOf(n)
	switch {
	case at.stored:
		ch = nil
	case c.st.Kind == "PREPARE":
		c.st.facts.Hides = c.st.facts.Hides || !at.wrapped
	default:
		c.st.Changes = true
		c.st.Hidden = c.st.Hidden || !at.top
	}
	c.add(act{Kind: kind, Needs: Write, Pos: nested(at, rel), Change: ch, Target: relationOf(rel)})
}

// nested returns the position to show for a change: the verb for a statement
// of its own, and otherwise, since the tree does not have it, its table.
func nested(at place, rel *pg.RangeVar) int {
	if at.top {
		return -1
	}
	return int(rel.GetLocation())
}

// onlyRelation returns the relation that a view selects from, if it is the
// only one: PostgreSQL passes changes of such a view's rows on to it. It
// returns nil for any other query.
func onlyRelation(query *pg.Node) *pg.RangeVar {
	if from := query.GetSelectStmt().GetFromClause(); len(from) == 1 {
		return from[0].GetRangeVar()
	}
	return nil
}

// session adds what a statement does to the session beyond being of its kind,
// and notes it for the wire.
func (c *classifier) session(n any, at place) {
	switch n := n.(type) {
	case *pg.TransactionStmt:
		c.transaction(n)
	case *pg.VariableShowStmt:
		c.show(n)
	case *pg.DiscardStmt:
		if n.Target == pg.DiscardMode_DISCARD_ALL {
			c.st.facts.ForgetsAll = true
			c.add(act{Class: actResetAll, Needs: Admin, Name: "DISCARD ALL", Pos: -1})
		}
	case *pg.ViewStmt:
		if rel := onlyRelation(n.Query); rel != nil {
			c.add(act{Needs: Read, Pos: int(rel.GetLocation()), Target: relationOf(rel)})
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

// fetchUse describes a FETCH or MOVE. PostgreSQL's grammar has turned a negative
// count into the other direction only when it runs, so that is done here too.
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

// call adds the act of calling a function with a known effect.
func (c *classifier) call(n *pg.FuncCall, at place) {
	c.names(own().functions, n.Funcname...)
	name, builtin := functionName(n.Funcname)
	if name == "set_config" && builtin {
		c.configures(n, at)
		if at.stored { // it would run with some later statement, unseen
			c.add(act{Class: actConfig, Needs: Admin, Name: name, Pos: int(n.Location)})
			return
		}
		c.setConfig(n, at)
		return
	}
	if name == "ts_rewrite" && len(n.Args) > 2 {
		return // only the form with two arguments runs SQL
	}
	c.function(name, builtin, int(n.Location), at)
}

// attribute judges the names behind dots: PostgreSQL takes (x).f and x.f for
// the call f(x) when x has no column f.
func (c *classifier) attribute(names []*pg.Node, pos int, at place) {
	for _, name := range names {
		if s := name.GetString_(); s != nil {
			c.function(s.Sval, true, pos, at)
		}
	}
}

// function adds the act of calling a function, if it is known to have one.
func (c *classifier) function(name string, builtin bool, pos int, at place) {
	f, ok := functions[name]
	if !ok || f.builtin && !builtin {
		return
	}
	if at.planned && f.needs <= Write && f.builtin && !stableChanges[name] {
		return // planning runs no volatile function
	}
	c.st.Opaque = c.st.Opaque || f.needs > Write
	c.add(act{Class: f.class, Kind: name, Needs: f.needs, Name: name, Pos: pos})
}

// stableChanges are the functions of PostgreSQL's own that are marked stable
// though they change something: planning may run them.
var stableChanges = map[string]bool{"txid_current": true, "pg_current_xact_id": true}

// functionName returns the last part of a function's name, and whether it can
// be a built-in one: without a schema, or in pg_catalog.
func functionName(parts []*pg.Node) (name string, builtin bool) {
	if len(parts) == 0 {
		return "", false
	}
	name = parts[len(parts)-1].GetString_().GetSval()
	if len(parts) == 1 {
		return name, true
	}
	return name, parts[len(parts)-2].GetString_().GetSval() == "pg_catalog"
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

// expressionNode reports whether n is an expression, a clause or a part of a
// definition, which does nothing by itself: what it does is done by what
// stands below it, or it is a function call, which is judged as such.
func expressionNode(n any) bool {
	switch n.(type) {
	case *pg.Integer, *pg.Float, *pg.Boolean, *pg.String, *pg.BitString, *pg.List, *pg.OidList, *pg.IntList,
		*pg.A_Const, *pg.A_Expr, *pg.A_Star, *pg.A_Indices, *pg.A_Indirection, *pg.A_ArrayExpr,
		*pg.ColumnRef, *pg.ParamRef, *pg.FuncCall, *pg.NamedArgExpr, *pg.TypeCast, *pg.TypeName, *pg.CollateClause,
		*pg.BoolExpr, *pg.NullTest, *pg.BooleanTest, *pg.SubLink, *pg.CaseExpr, *pg.CaseWhen, *pg.CoalesceExpr,
		*pg.MinMaxExpr, *pg.RowExpr, *pg.GroupingFunc, *pg.GroupingSet, *pg.SQLValueFunction, *pg.SetToDefault,
		*pg.CurrentOfExpr, *pg.MultiAssignRef, *pg.MergeSupportFunc,
		*pg.XmlExpr, *pg.XmlSerialize,
		*pg.JsonFormat, *pg.JsonReturning, *pg.JsonValueExpr, *pg.JsonIsPredicate, *pg.JsonBehavior, *pg.JsonOutput,
		*pg.JsonArgument, *pg.JsonFuncExpr, *pg.JsonTable, *pg.JsonTableColumn, *pg.JsonTablePathSpec, *pg.JsonKeyValue,
		*pg.JsonParseExpr, *pg.JsonScalarExpr, *pg.JsonSerializeExpr, *pg.JsonObjectConstructor,
		*pg.JsonArrayConstructor, *pg.JsonArrayQueryConstructor, *pg.JsonAggConstructor, *pg.JsonObjectAgg, *pg.JsonArrayAgg,
		// Clauses.
		*pg.ResTarget, *pg.RangeVar, *pg.Alias, *pg.RangeSubselect, *pg.RangeFunction, *pg.RangeTableFunc,
		*pg.RangeTableFuncCol, *pg.RangeTableSample, *pg.JoinExpr, *pg.SortBy, *pg.WindowDef, *pg.WithClause,
		*pg.CommonTableExpr, *pg.CTESearchClause, *pg.CTECycleClause, *pg.OnConflictClause, *pg.InferClause,
		*pg.IndexElem, *pg.MergeWhenClause,
		// Parts of utility statements.
		*pg.DefElem, *pg.RoleSpec, *pg.ColumnDef, *pg.Constraint, *pg.TableLikeClause, *pg.PartitionSpec,
		*pg.PartitionElem, *pg.PartitionBoundSpec, *pg.PartitionRangeDatum, *pg.SinglePartitionSpec, *pg.PartitionCmd,
		*pg.AlterTableCmd, *pg.ReplicaIdentityStmt, *pg.AccessPriv, *pg.ObjectWithArgs, *pg.FunctionParameter,
		*pg.CreateOpClassItem, *pg.TriggerTransition, *pg.StatsElem, *pg.VacuumRelation, *pg.PublicationObjSpec,
		*pg.PublicationTable, *pg.ReturnStmt:
		return true
	}
	return false
}

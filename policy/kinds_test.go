package policy

import (
	"reflect"
	"strings"
	"testing"

	pg "github.com/pganalyze/pg_query_go/v6"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// notInTable are the nodes that the table leaves out, so that a text in which
// one turned up would need admin access: the wrapper of a statement, what only
// PL/pgSQL's own parser makes, and what the server makes of a statement after
// parsing it.
var notInTable = strings.Fields(`
	RawStmt PLAssignStmt SetOperationStmt
	Aggref AlternativeSubPlan ArrayCoerceExpr ArrayExpr CallContext CaseTestExpr CoerceToDomain CoerceToDomainValue CoerceViaIO CollateExpr
	ConvertRowtypeExpr DistinctExpr FieldSelect FieldStore FromExpr FuncExpr InferenceElem InlineCodeBlock JsonConstructorExpr
	JsonExpr JsonTablePathScan JsonTablePath JsonTableSiblingJoin MergeAction NextValueExpr NullIfExpr OnConflictExpr OpExpr Param
	Query RTEPermissionInfo RangeTblEntry RangeTblFunction RangeTblRef RelabelType RowCompareExpr RowMarkClause
	ScalarArrayOpExpr SortGroupClause SubPlan SubscriptingRef TableFunc TableSampleClause TargetEntry Var WindowClause
	WindowFunc WindowFuncRunCondition WithCheckOption`)

// TestKindTable holds the table against the parser: each node that a statement
// may have is in it once, or is left out on purpose. Reading the table has
// checked that its names are the parser's.
func TestKindTable(t *testing.T) {
	left := make(map[string]bool)
	for _, name := range notInTable {
		left[name] = true
	}
	nodes := new(pg.Node).ProtoReflect().Descriptor().Oneofs().Get(0).Fields()
	for i := range nodes.Len() {
		name := string(nodes.Get(i).Message().Name())
		node := reflect.PointerTo(nodeTypes[name])
		kind, part := len(kinds.cases[node]) > 0, kinds.parts[node]
		switch {
		case kind && part, left[name] && (kind || part):
			t.Errorf("%s is two things", name)
		case !kind && !part && !left[name]:
			t.Errorf("%s is missing", name)
		}
		delete(left, name)
	}
	for name := range left {
		if nodeTypes[name] == nil {
			t.Errorf("the parser has no node %s", name)
		}
	}
}

// TestKindTableLines: no two lines say the same, and none stands behind the one
// for all nodes of its type, where it would never count.
func TestKindTableLines(t *testing.T) {
	seen, closed := make(map[string]bool), make(map[string]bool)
	for f := range tableLines(kindTable, 6) {
		node, when, tag := f[0], f[1], f[2]
		key := node + " " + when
		if node == "-" {
			key += tag
		}
		if seen[key] || closed[node] {
			t.Errorf("%q never counts", f)
		}
		seen[key] = true
		closed[node] = node != "-" && when == "-"
	}
}

// TestKindsWithoutLine: a value that the table does not have is unknown.
func TestKindsWithoutLine(t *testing.T) {
	for _, n := range []any{&pg.TransactionStmt{}, &pg.DiscardStmt{}, &pg.DropStmt{}, &pg.DropStmt{RemoveType: pg.ObjectType_OBJECT_LARGEOBJECT}, &pg.RawStmt{}} {
		if kind := kindOf(n); kind != nil {
			t.Errorf("%T: %s", n, kind.tag)
		}
	}
}

// TestKindTableMistakes: a wrong line stops the program from starting.
func TestKindTableMistakes(t *testing.T) {
	for _, line := range []string{
		"NoStmt	-	NO	read	=	-",
		"LoadStmt	no=1	LOAD	read	=	-",
		"TransactionStmt	kind=NO	BEGIN	read	=	-",
		"ObjectType	NO	* NO	read	=	-",
		"LoadStmt	-	LOAD	all	=	-",
		"LoadStmt	-	LOAD	read	=	loud",
		"LoadStmt	-	LOAD	read	=",
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%q is read", line)
				}
			}()
			readKinds(line)
		}()
	}
}

// TestKindObjects: a node whose kind depends on a type of object names a field
// that holds one.
func TestKindObjects(t *testing.T) {
	for node, cases := range kinds.cases {
		for _, c := range cases {
			if c.kind == nil && (c.object.Kind() != protoreflect.EnumKind || c.object.Enum().Name() != "ObjectType") {
				t.Errorf("%v: field %s", node, c.object.Name())
			}
		}
	}
}

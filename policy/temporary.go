package policy

import pg "github.com/pganalyze/pg_query_go/v6"

// needs returns the least access for one statement, which is less than its
// kind's where all it touches is temporary.
func needs(n any, kind *statementKind) Access {
	switch n := n.(type) {
	case *pg.IntoClause:
		return temporary(n.Rel)
	case *pg.CreateStmt:
		return max(temporary(n.Relation), temporaryAll(n.InhRelations)) // it becomes a part of its parents
	case *pg.CreateTableAsStmt:
		if n.Objtype != pg.ObjectType_OBJECT_MATVIEW {
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
	return kind.access
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

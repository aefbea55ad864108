package policy

import pg "github.com/pganalyze/pg_query_go/v6"

// needs returns the least access for one statement, which is less than its
// kind's where all it touches is temporary.
func needs(n any, kind *statementKind) Access {
	switch n := n.(type) {
	case *pg.IntoClause:
		return relationAccess(n.Rel)
	case *pg.CreateStmt:
		return max(relationAccess(n.Relation), relationsAccess(n.InhRelations)) // it becomes a part of its parents
	case *pg.CreateTableAsStmt:
		if n.Objtype != pg.ObjectType_OBJECT_MATVIEW {
			return relationAccess(n.Into.GetRel())
		}
	case *pg.CreateSeqStmt:
		return relationAccess(n.Sequence)
	case *pg.ViewStmt:
		return relationAccess(n.View)
	case *pg.IndexStmt:
		return relationAccess(n.Relation)
	case *pg.TruncateStmt:
		return relationsAccess(n.Relations)
	case *pg.DropStmt:
		return dropAccess(n)
	case *pg.LockStmt:
		if n.Mode == accessShareLock {
			return Read
		}
	}
	return kind.access
}

// accessShareLock is the mode of the lock that a SELECT takes (lockdefs.h).
const accessShareLock = 1

// relationAccess returns the access for making or changing a relation: Write where
// it can only be a temporary one.
func relationAccess(rel *pg.RangeVar) Access {
	if rel.GetRelpersistence() == "t" || rel.GetSchemaname() == "pg_temp" {
		return Write
	}
	return Admin
}

func relationsAccess(relations []*pg.Node) Access {
	for _, r := range relations {
		if relationAccess(r.GetRangeVar()) != Write {
			return Admin
		}
	}
	return Write
}

// dropAccess returns the access for a DROP. Only a name in pg_temp is
// surely temporary, and CASCADE may reach what is not.
func dropAccess(n *pg.DropStmt) Access {
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

package policy

import pg "github.com/pganalyze/pg_query_go/v6"

// objectNames are the words for object types in command tags, as far as
// CREATE, ALTER and DROP of them share a node type.
var objectNames = map[pg.ObjectType]string{
	pg.ObjectType_OBJECT_ACCESS_METHOD:   "ACCESS METHOD",
	pg.ObjectType_OBJECT_AGGREGATE:       "AGGREGATE",
	pg.ObjectType_OBJECT_ATTRIBUTE:       "TYPE",
	pg.ObjectType_OBJECT_CAST:            "CAST",
	pg.ObjectType_OBJECT_COLLATION:       "COLLATION",
	pg.ObjectType_OBJECT_COLUMN:          "TABLE",
	pg.ObjectType_OBJECT_CONVERSION:      "CONVERSION",
	pg.ObjectType_OBJECT_DATABASE:        "DATABASE",
	pg.ObjectType_OBJECT_DOMAIN:          "DOMAIN",
	pg.ObjectType_OBJECT_DOMCONSTRAINT:   "DOMAIN",
	pg.ObjectType_OBJECT_EVENT_TRIGGER:   "EVENT TRIGGER",
	pg.ObjectType_OBJECT_EXTENSION:       "EXTENSION",
	pg.ObjectType_OBJECT_FDW:             "FOREIGN DATA WRAPPER",
	pg.ObjectType_OBJECT_FOREIGN_SERVER:  "SERVER",
	pg.ObjectType_OBJECT_FOREIGN_TABLE:   "FOREIGN TABLE",
	pg.ObjectType_OBJECT_FUNCTION:        "FUNCTION",
	pg.ObjectType_OBJECT_INDEX:           "INDEX",
	pg.ObjectType_OBJECT_LANGUAGE:        "LANGUAGE",
	pg.ObjectType_OBJECT_LARGEOBJECT:     "LARGE OBJECT",
	pg.ObjectType_OBJECT_MATVIEW:         "MATERIALIZED VIEW",
	pg.ObjectType_OBJECT_OPCLASS:         "OPERATOR CLASS",
	pg.ObjectType_OBJECT_OPERATOR:        "OPERATOR",
	pg.ObjectType_OBJECT_OPFAMILY:        "OPERATOR FAMILY",
	pg.ObjectType_OBJECT_POLICY:          "POLICY",
	pg.ObjectType_OBJECT_PROCEDURE:       "PROCEDURE",
	pg.ObjectType_OBJECT_PUBLICATION:     "PUBLICATION",
	pg.ObjectType_OBJECT_ROLE:            "ROLE",
	pg.ObjectType_OBJECT_ROUTINE:         "ROUTINE",
	pg.ObjectType_OBJECT_RULE:            "RULE",
	pg.ObjectType_OBJECT_SCHEMA:          "SCHEMA",
	pg.ObjectType_OBJECT_SEQUENCE:        "SEQUENCE",
	pg.ObjectType_OBJECT_STATISTIC_EXT:   "STATISTICS",
	pg.ObjectType_OBJECT_SUBSCRIPTION:    "SUBSCRIPTION",
	pg.ObjectType_OBJECT_TABCONSTRAINT:   "TABLE",
	pg.ObjectType_OBJECT_TABLE:           "TABLE",
	pg.ObjectType_OBJECT_TABLESPACE:      "TABLESPACE",
	pg.ObjectType_OBJECT_TRANSFORM:       "TRANSFORM",
	pg.ObjectType_OBJECT_TRIGGER:         "TRIGGER",
	pg.ObjectType_OBJECT_TSCONFIGURATION: "TEXT SEARCH CONFIGURATION",
	pg.ObjectType_OBJECT_TSDICTIONARY:    "TEXT SEARCH DICTIONARY",
	pg.ObjectType_OBJECT_TSPARSER:        "TEXT SEARCH PARSER",
	pg.ObjectType_OBJECT_TSTEMPLATE:      "TEXT SEARCH TEMPLATE",
	pg.ObjectType_OBJECT_TYPE:            "TYPE",
	pg.ObjectType_OBJECT_USER_MAPPING:    "USER MAPPING",
	pg.ObjectType_OBJECT_VIEW:            "VIEW",
}

// lockKinds are the tags of a SELECT that locks rows.
var lockKinds = map[pg.LockClauseStrength]string{
	pg.LockClauseStrength_LCS_FORKEYSHARE:    "SELECT FOR KEY SHARE",
	pg.LockClauseStrength_LCS_FORSHARE:       "SELECT FOR SHARE",
	pg.LockClauseStrength_LCS_FORNOKEYUPDATE: "SELECT FOR NO KEY UPDATE",
	pg.LockClauseStrength_LCS_FORUPDATE:      "SELECT FOR UPDATE",
}

// kindOf returns the command tag of a statement node, as CreateCommandTag in
// PostgreSQL's utility.c does, and "" for a node that is not a statement.
func kindOf(n any) string {
	switch n := n.(type) {
	// Statements with an optimizer behind them.
	case *pg.SelectStmt:
		return "SELECT"
	case *pg.InsertStmt:
		return "INSERT"
	case *pg.UpdateStmt:
		return "UPDATE"
	case *pg.DeleteStmt:
		return "DELETE"
	case *pg.MergeStmt:
		return "MERGE"

	// The session and its transaction.
	case *pg.TransactionStmt:
		return transactionKinds[n.Kind]
	case *pg.VariableSetStmt:
		if n.Kind == pg.VariableSetKind_VAR_RESET || n.Kind == pg.VariableSetKind_VAR_RESET_ALL {
			return "RESET"
		}
		return "SET"
	case *pg.VariableShowStmt:
		return "SHOW"
	case *pg.ConstraintsSetStmt:
		return "SET CONSTRAINTS"
	case *pg.DiscardStmt:
		return discardKinds[n.Target]
	case *pg.ListenStmt:
		return "LISTEN"
	case *pg.UnlistenStmt:
		return "UNLISTEN"
	case *pg.NotifyStmt:
		return "NOTIFY"
	case *pg.DeclareCursorStmt:
		return "DECLARE CURSOR"
	case *pg.FetchStmt:
		if n.Ismove {
			return "MOVE"
		}
		return "FETCH"
	case *pg.ClosePortalStmt:
		if n.Portalname == "" {
			return "CLOSE CURSOR ALL"
		}
		return "CLOSE CURSOR"
	case *pg.PrepareStmt:
		return "PREPARE"
	case *pg.ExecuteStmt:
		return "EXECUTE"
	case *pg.DeallocateStmt:
		if n.Name == "" {
			return "DEALLOCATE ALL"
		}
		return "DEALLOCATE"
	case *pg.ExplainStmt:
		return "EXPLAIN"
	}
	if kind := definitionKind(n); kind != "" {
		return kind
	}
	return maintenanceKind(n)
}

var transactionKinds = map[pg.TransactionStmtKind]string{
	pg.TransactionStmtKind_TRANS_STMT_BEGIN:             "BEGIN",
	pg.TransactionStmtKind_TRANS_STMT_START:             "START TRANSACTION",
	pg.TransactionStmtKind_TRANS_STMT_COMMIT:            "COMMIT",
	pg.TransactionStmtKind_TRANS_STMT_ROLLBACK:          "ROLLBACK",
	pg.TransactionStmtKind_TRANS_STMT_SAVEPOINT:         "SAVEPOINT",
	pg.TransactionStmtKind_TRANS_STMT_RELEASE:           "RELEASE",
	pg.TransactionStmtKind_TRANS_STMT_ROLLBACK_TO:       "ROLLBACK",
	pg.TransactionStmtKind_TRANS_STMT_PREPARE:           "PREPARE TRANSACTION",
	pg.TransactionStmtKind_TRANS_STMT_COMMIT_PREPARED:   "COMMIT PREPARED",
	pg.TransactionStmtKind_TRANS_STMT_ROLLBACK_PREPARED: "ROLLBACK PREPARED",
}

var discardKinds = map[pg.DiscardMode]string{
	pg.DiscardMode_DISCARD_ALL:       "DISCARD ALL",
	pg.DiscardMode_DISCARD_PLANS:     "DISCARD PLANS",
	pg.DiscardMode_DISCARD_SEQUENCES: "DISCARD SEQUENCES",
	pg.DiscardMode_DISCARD_TEMP:      "DISCARD TEMP",
}

// maintenanceKind names the statements that act on the server, on privileges,
// or run code.
func maintenanceKind(n any) string {
	switch n := n.(type) {
	case *pg.CopyStmt:
		return "COPY"
	case *pg.DoStmt:
		return "DO"
	case *pg.CallStmt:
		return "CALL"
	case *pg.LockStmt:
		return "LOCK TABLE"
	case *pg.TruncateStmt:
		return "TRUNCATE TABLE"
	case *pg.VacuumStmt:
		if n.IsVacuumcmd {
			return "VACUUM"
		}
		return "ANALYZE"
	case *pg.ClusterStmt:
		return "CLUSTER"
	case *pg.ReindexStmt:
		return "REINDEX"
	case *pg.RefreshMatViewStmt:
		return "REFRESH MATERIALIZED VIEW"
	case *pg.CheckPointStmt:
		return "CHECKPOINT"
	case *pg.LoadStmt:
		return "LOAD"
	case *pg.CommentStmt:
		return "COMMENT"
	case *pg.SecLabelStmt:
		return "SECURITY LABEL"
	case *pg.GrantStmt:
		return grantKind(n.IsGrant, "")
	case *pg.GrantRoleStmt:
		return grantKind(n.IsGrant, " ROLE")
	case *pg.AlterSystemStmt:
		return "ALTER SYSTEM"
	case *pg.DropOwnedStmt:
		return "DROP OWNED"
	case *pg.ReassignOwnedStmt:
		return "REASSIGN OWNED"
	case *pg.ImportForeignSchemaStmt:
		return "IMPORT FOREIGN SCHEMA"
	}
	return ""
}

func grantKind(grant bool, suffix string) string {
	if grant {
		return "GRANT" + suffix
	}
	return "REVOKE" + suffix
}

// definitionKind names the statements that define, alter and drop objects.
func definitionKind(n any) string {
	switch n := n.(type) {
	case *pg.DropStmt:
		return objectKind("DROP", n.RemoveType)
	case *pg.RenameStmt:
		if n.RenameType == pg.ObjectType_OBJECT_COLUMN {
			return objectKind("ALTER", n.RelationType)
		}
		return objectKind("ALTER", n.RenameType)
	case *pg.AlterTableStmt:
		return objectKind("ALTER", n.Objtype)
	case *pg.AlterTableMoveAllStmt:
		return objectKind("ALTER", n.Objtype)
	case *pg.AlterObjectDependsStmt:
		return objectKind("ALTER", n.ObjectType)
	case *pg.AlterObjectSchemaStmt:
		return objectKind("ALTER", n.ObjectType)
	case *pg.AlterOwnerStmt:
		return objectKind("ALTER", n.ObjectType)
	case *pg.AlterFunctionStmt:
		return objectKind("ALTER", n.Objtype)
	case *pg.DefineStmt:
		return objectKind("CREATE", n.Kind)
	case *pg.CreateTableAsStmt:
		if n.Objtype == pg.ObjectType_OBJECT_MATVIEW {
			return "CREATE MATERIALIZED VIEW"
		}
		return "CREATE TABLE AS"
	case *pg.CreateFunctionStmt:
		if n.IsProcedure {
			return "CREATE PROCEDURE"
		}
		return "CREATE FUNCTION"
	case *pg.CreateSchemaStmt:
		return "CREATE SCHEMA"
	case *pg.CreateStmt:
		return "CREATE TABLE"
	case *pg.CreateForeignTableStmt:
		return "CREATE FOREIGN TABLE"
	case *pg.CreateSeqStmt:
		return "CREATE SEQUENCE"
	case *pg.ViewStmt:
		return "CREATE VIEW"
	case *pg.IndexStmt:
		return "CREATE INDEX"
	case *pg.CreateStatsStmt:
		return "CREATE STATISTICS"
	case *pg.RuleStmt:
		return "CREATE RULE"
	case *pg.CreateTrigStmt:
		return "CREATE TRIGGER"
	case *pg.CreateEventTrigStmt:
		return "CREATE EVENT TRIGGER"
	case *pg.CreateDomainStmt:
		return "CREATE DOMAIN"
	case *pg.CompositeTypeStmt, *pg.CreateEnumStmt, *pg.CreateRangeStmt:
		return "CREATE TYPE"
	case *pg.CreateExtensionStmt:
		return "CREATE EXTENSION"
	case *pg.CreateRoleStmt:
		return "CREATE ROLE"
	case *pg.CreatedbStmt:
		return "CREATE DATABASE"
	case *pg.CreateTableSpaceStmt:
		return "CREATE TABLESPACE"
	case *pg.CreateFdwStmt:
		return "CREATE FOREIGN DATA WRAPPER"
	case *pg.CreateForeignServerStmt:
		return "CREATE SERVER"
	case *pg.CreateUserMappingStmt:
		return "CREATE USER MAPPING"
	case *pg.CreatePolicyStmt:
		return "CREATE POLICY"
	case *pg.CreateAmStmt:
		return "CREATE ACCESS METHOD"
	case *pg.CreatePLangStmt:
		return "CREATE LANGUAGE"
	case *pg.CreateOpClassStmt:
		return "CREATE OPERATOR CLASS"
	case *pg.CreateOpFamilyStmt:
		return "CREATE OPERATOR FAMILY"
	case *pg.CreateConversionStmt:
		return "CREATE CONVERSION"
	case *pg.CreateCastStmt:
		return "CREATE CAST"
	case *pg.CreateTransformStmt:
		return "CREATE TRANSFORM"
	case *pg.CreatePublicationStmt:
		return "CREATE PUBLICATION"
	case *pg.CreateSubscriptionStmt:
		return "CREATE SUBSCRIPTION"
	case *pg.AlterCollationStmt:
		return "ALTER COLLATION"
	case *pg.AlterDomainStmt:
		return "ALTER DOMAIN"
	case *pg.AlterEnumStmt, *pg.AlterTypeStmt:
		return "ALTER TYPE"
	case *pg.AlterExtensionStmt, *pg.AlterExtensionContentsStmt:
		return "ALTER EXTENSION"
	case *pg.AlterRoleStmt, *pg.AlterRoleSetStmt:
		return "ALTER ROLE"
	case *pg.AlterDatabaseStmt, *pg.AlterDatabaseSetStmt, *pg.AlterDatabaseRefreshCollStmt:
		return "ALTER DATABASE"
	case *pg.AlterTableSpaceOptionsStmt:
		return "ALTER TABLESPACE"
	case *pg.AlterFdwStmt:
		return "ALTER FOREIGN DATA WRAPPER"
	case *pg.AlterForeignServerStmt:
		return "ALTER SERVER"
	case *pg.AlterUserMappingStmt:
		return "ALTER USER MAPPING"
	case *pg.AlterPolicyStmt:
		return "ALTER POLICY"
	case *pg.AlterEventTrigStmt:
		return "ALTER EVENT TRIGGER"
	case *pg.AlterSeqStmt:
		return "ALTER SEQUENCE"
	case *pg.AlterStatsStmt:
		return "ALTER STATISTICS"
	case *pg.AlterOpFamilyStmt:
		return "ALTER OPERATOR FAMILY"
	case *pg.AlterOperatorStmt:
		return "ALTER OPERATOR"
	case *pg.AlterTSDictionaryStmt:
		return "ALTER TEXT SEARCH DICTIONARY"
	case *pg.AlterTSConfigurationStmt:
		return "ALTER TEXT SEARCH CONFIGURATION"
	case *pg.AlterPublicationStmt:
		return "ALTER PUBLICATION"
	case *pg.AlterSubscriptionStmt:
		return "ALTER SUBSCRIPTION"
	case *pg.AlterDefaultPrivilegesStmt:
		return "ALTER DEFAULT PRIVILEGES"
	case *pg.DropRoleStmt:
		return "DROP ROLE"
	case *pg.DropdbStmt:
		return "DROP DATABASE"
	case *pg.DropTableSpaceStmt:
		return "DROP TABLESPACE"
	case *pg.DropUserMappingStmt:
		return "DROP USER MAPPING"
	case *pg.DropSubscriptionStmt:
		return "DROP SUBSCRIPTION"
	}
	return ""
}

// objectKind joins a verb and an object type; an object type it does not know
// leaves no kind, and so the statement unknown.
func objectKind(verb string, object pg.ObjectType) string {
	if name, ok := objectNames[object]; ok {
		return verb + " " + name
	}
	return ""
}

// kindAccess is the least access for each kind that is not for admins alone.
var kindAccess = map[string]Access{
	"SELECT":            Read,
	"EXPLAIN":           Read,
	"SHOW":              Read,
	"SET":               Read, // which setting is judged by itself
	"RESET":             Read,
	"SET CONSTRAINTS":   Read,
	"BEGIN":             Read,
	"START TRANSACTION": Read,
	"COMMIT":            Read,
	"ROLLBACK":          Read,
	"SAVEPOINT":         Read,
	"RELEASE":           Read,
	"DECLARE CURSOR":    Read,
	"FETCH":             Read,
	"MOVE":              Read,
	"CLOSE CURSOR":      Read,
	"CLOSE CURSOR ALL":  Read,
	"PREPARE":           Read,
	"EXECUTE":           Read, // what was prepared is judged by itself
	"DEALLOCATE":        Read,
	"DEALLOCATE ALL":    Read,
	"DISCARD PLANS":     Read,
	"DISCARD SEQUENCES": Read,
	"DISCARD TEMP":      Read,
	"LISTEN":            Read,
	"UNLISTEN":          Read,

	"INSERT":                   Write,
	"UPDATE":                   Write,
	"DELETE":                   Write,
	"MERGE":                    Write,
	"SELECT FOR KEY SHARE":     Write,
	"SELECT FOR SHARE":         Write,
	"SELECT FOR NO KEY UPDATE": Write,
	"SELECT FOR UPDATE":        Write,
	"NOTIFY":                   Write,
}

// readingKinds are the kinds of statements that return rows and may do nothing
// else.
var readingKinds = map[string]bool{"SELECT": true, "FETCH": true, "SHOW": true, "EXPLAIN": true, "EXECUTE": true}

// quietKinds are the kinds of statements that run no code but what they name.
// Rows that are changed have triggers, and definitions have event triggers.
var quietKinds = map[string]bool{
	"SELECT": true, "EXPLAIN": true, "SHOW": true, "SET": true, "RESET": true,
	"BEGIN": true, "START TRANSACTION": true, "COMMIT": true, "ROLLBACK": true, "SAVEPOINT": true, "RELEASE": true,
	"DECLARE CURSOR": true, "CLOSE CURSOR": true, "CLOSE CURSOR ALL": true,
	"PREPARE": true, "DEALLOCATE": true, "DEALLOCATE ALL": true,
	"DISCARD PLANS": true, "DISCARD SEQUENCES": true, "DISCARD TEMP": true, "DISCARD ALL": true,
	"LISTEN": true, "UNLISTEN": true, "NOTIFY": true, "LOCK TABLE": true, "CHECKPOINT": true,
}

// accessFor returns the least access that permits a kind of statement.
func accessFor(kind string) Access {
	if access, ok := kindAccess[kind]; ok {
		return access
	}
	return Admin
}

// tagsOf returns the command tags with which the server may answer a
// statement of a kind.
func tagsOf(kind string) []string {
	switch kind {
	case "EXECUTE":
		return nil // the prepared statement's
	case "CREATE TABLE AS", "CREATE MATERIALIZED VIEW":
		return []string{"SELECT", kind} // the second WITH NO DATA
	case "COMMIT", "PREPARE TRANSACTION":
		return []string{kind, "ROLLBACK"} // a failed transaction is rolled back
	}
	return []string{kind}
}

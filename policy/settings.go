package policy

import (
	_ "embed"
	"fmt"
	"strconv"
	"strings"

	pg "github.com/pganalyze/pg_query_go/v6"
)

// ownPrefix is the prefix of the proxy's own settings.
const ownPrefix = "pgproxy."

// settingTable is the reviewed list of settings. Its first lines explain it;
// TestSettingsOfServers holds it against real servers.
//
//go:embed settings.tsv
var settingTable string

// settingClass says to whom a setting belongs.
type settingClass int

const (
	settingUnknown settingClass = iota // PostgreSQL 14 to 18 have no such setting
	settingSession
	settingServer
	settingProxy
	settingTimeout
	settingPinned
)

// settingClasses are the classes of the table.
var settingClasses = map[string]settingClass{
	"session": settingSession,
	"server":  settingServer,
	"proxy":   settingProxy,
	"timeout": settingTimeout,
	"pinned":  settingPinned,
}

// settings are the classes of the table's settings, by name in lower case.
var settings = readSettings(settingTable)

// readSettings reads the table. It panics on a mistake in it, since the table is
// part of the program.
func readSettings(table string) map[string]settingClass {
	known := make(map[string]settingClass)
	for fields := range tableLines(table, 3) {
		class, ok := settingClasses[fields[2]]
		if !ok {
			panic(fmt.Sprintf("policy: settings.tsv: %q", fields))
		}
		known[strings.ToLower(fields[0])] = class
	}
	return known
}

// classOfSetting returns the class of a setting, by its name in lower case.
func classOfSetting(name string) settingClass {
	if class, ok := settings[name]; ok {
		return class
	}
	prefix, _, custom := strings.Cut(name, ".")
	if !custom {
		return settingUnknown
	}
	if prefix+"." == ownPrefix {
		return settingProxy
	}
	if class, ok := settings[prefix+".*"]; ok {
		return class
	}
	return settingSession
}

// identitySettings are the settings of ours that the server holds, for
// triggers and logs: who the session is. They are set in the startup packet.
var identitySettings = map[string]bool{"user": true, "node": true, "session": true}

// isPin reports whether a value is the one that a setting is pinned to.
func isPin(name, value string) bool {
	if name == "client_encoding" {
		return isUTF8(value)
	}
	return isOn(value)
}

// isUTF8 knows PostgreSQL's names for UTF-8: it ignores case and all signs.
func isUTF8(encoding string) bool {
	var b strings.Builder
	for _, r := range strings.ToLower(encoding) {
		if 'a' <= r && r <= 'z' || '0' <= r && r <= '9' {
			b.WriteRune(r)
		}
	}
	return b.String() == "utf8" || b.String() == "unicode"
}

// isOn knows PostgreSQL's words for true, which may be cut short.
func isOn(value string) bool {
	v := strings.ToLower(strings.TrimSpace(value))
	return v == "on" || v == "1" || v != "" && (strings.HasPrefix("true", v) || strings.HasPrefix("yes", v))
}

// set judges SET and RESET, and those that stand inside a definition.
func (c *classifier) set(n *pg.VariableSetStmt, kind *statementKind, at nodeContext) {
	name := strings.ToLower(n.Name)
	if at.top {
		if c.st.Proxy = proxySetting(n, name); c.st.Proxy != nil {
			c.statement(kind, Read, at)
			return
		}
		c.statement(kind, Read, at)
	} else if classOfSetting(name) == settingPinned {
		return // the setting of a function or a role: not this session's
	}
	switch n.Kind {
	case pg.VariableSetKind_VAR_RESET_ALL:
		c.add(effect{Class: effectResetAll, Needs: Admin, Name: "RESET ALL", Pos: -1})
	case pg.VariableSetKind_VAR_SET_MULTI:
		c.setTransaction(n)
	case pg.VariableSetKind_VAR_SET_VALUE:
		value := settingValue(n.Args)
		c.setting(name, &value, -1, !at.top)
	default:
		c.setting(name, nil, -1, !at.top)
	}
}

// maxName bounds the name of a setting in a refusal, in bytes. set_config takes
// any text for one.
const maxName = 100

// setting adds the effect of changing a setting, if it is one of those that not
// everybody may change. value is nil for a reset, which returns to the value of
// the startup packet: the proxy's own, or one that was judged there. stored says
// that it stands in a definition, for others to meet.
func (c *classifier) setting(name string, value *string, pos int, stored bool) {
	switch class := classOfSetting(name); {
	case class == settingSession:
	case class == settingPinned:
		if value != nil && !isPin(name, *value) {
			c.add(effect{Class: effectPinned, Needs: neverAllowed, Name: name, Pos: pos})
		}
	case class == settingTimeout && !stored:
		if value != nil {
			c.add(effect{Class: effectTimeout, Needs: Read, Name: name, Pos: pos, Millis: timeoutMillis(*value)})
		}
	default:
		if len(name) > maxName {
			name = strings.ToValidUTF8(name[:maxName], "") + "…"
		}
		c.add(effect{Class: settingEffects[class], Needs: Admin, Name: name, Pos: pos})
	}
}

// settingEffects are the effects of changing settings that need admin access; a
// timeout does in a definition.
var settingEffects = map[settingClass]effectClass{
	settingUnknown: effectNoSetting,
	settingServer:  effectSuperuser,
	settingProxy:   effectProtected,
	settingTimeout: effectProtected,
}

// proxySetting returns the proxy's own command that a SET or RESET is, nil if
// it is the server's. The identity settings are the server's.
func proxySetting(n *pg.VariableSetStmt, name string) *ProxyCommand {
	own, ok := strings.CutPrefix(name, ownPrefix)
	if !ok || identitySettings[own] {
		return nil
	}
	if n.Kind == pg.VariableSetKind_VAR_SET_VALUE {
		return &ProxyCommand{Verb: "SET", Name: own, Value: settingValue(n.Args), Local: n.IsLocal}
	}
	return &ProxyCommand{Verb: "RESET", Name: own, Local: n.IsLocal}
}

// show finds the SHOW commands that the proxy answers. The user and node are
// the server's to show; the session's description is not.
func (c *classifier) show(n *pg.VariableShowStmt) {
	own, ok := strings.CutPrefix(strings.ToLower(n.Name), ownPrefix)
	if ok && own != "user" && own != "node" {
		c.st.Proxy = &ProxyCommand{Verb: "SHOW", Name: own}
	}
}

// settingValue is the text of a SET's value, as SHOW would have it.
func settingValue(args []*pg.Node) string {
	values := make([]string, len(args))
	for i, arg := range args {
		values[i] = constantText(arg)
	}
	return strings.Join(values, ", ")
}

// constantText is the text of a literal; "" for anything else.
func constantText(n *pg.Node) string {
	switch n := unwrap(n).(type) {
	case *pg.TypeCast: // SET TIME ZONE INTERVAL '1' HOUR
		return constantText(n.Arg)
	case *pg.A_Const:
		switch v := n.Val.(type) {
		case *pg.A_Const_Sval:
			return v.Sval.Sval
		case *pg.A_Const_Ival:
			return strconv.Itoa(int(v.Ival.Ival))
		case *pg.A_Const_Fval:
			return v.Fval.Fval
		case *pg.A_Const_Boolval:
			return strconv.FormatBool(v.Boolval.Boolval)
		}
	}
	return ""
}

// setTransaction judges SET TRANSACTION and SET SESSION CHARACTERISTICS: the
// one changes this transaction, the other a protected setting.
func (c *classifier) setTransaction(n *pg.VariableSetStmt) {
	if n.Name != "SESSION CHARACTERISTICS" {
		c.readWrite(n.Args)
		return
	}
	for _, arg := range n.Args {
		if e := arg.GetDefElem(); e.GetDefname() == "transaction_read_only" {
			c.setting("default_transaction_read_only", nil, int(e.GetLocation()), false)
		}
	}
}

// transaction judges BEGIN, COMMIT and their kin, and notes what they do to
// the block.
func (c *classifier) transaction(n *pg.TransactionStmt) {
	switch n.Kind {
	case pg.TransactionStmtKind_TRANS_STMT_BEGIN, pg.TransactionStmtKind_TRANS_STMT_START:
		c.st.Tx = TxBegin
	case pg.TransactionStmtKind_TRANS_STMT_COMMIT:
		c.st.Tx = TxCommit
	case pg.TransactionStmtKind_TRANS_STMT_ROLLBACK:
		c.st.Tx = TxRollback
	case pg.TransactionStmtKind_TRANS_STMT_SAVEPOINT, pg.TransactionStmtKind_TRANS_STMT_RELEASE:
		c.st.Tx = TxSavepoint
	case pg.TransactionStmtKind_TRANS_STMT_ROLLBACK_TO:
		c.st.Tx = TxRollbackTo
	default:
		c.st.Tx = TxPrepare
	}
	c.st.Chains = n.Chain
	c.readWrite(n.Options)
	if n.Chain { // the next transaction is as writable as this one was
		c.add(effect{Class: effectReadWrite, Needs: Write, Name: c.st.Kind + " AND CHAIN", Pos: -1})
	}
}

// readWrite adds the effect of making a transaction writable. Of several modes
// PostgreSQL takes the last; one that says READ WRITE is enough here.
func (c *classifier) readWrite(modes []*pg.Node) {
	for _, mode := range modes {
		e := mode.GetDefElem()
		if e.GetDefname() == "transaction_read_only" && constantText(e.GetArg()) != "1" {
			c.add(effect{Class: effectReadWrite, Needs: Write, Name: "READ WRITE", Pos: int(e.GetLocation())})
			return
		}
	}
}

// setConfig judges set_config(name, value, is_local): as the SET that it is
// where its arguments are constants, and otherwise as one of any setting.
func (c *classifier) setConfig(n *pg.FuncCall, at nodeContext) {
	if at.planned {
		return
	}
	name, value, ok := setConfigArguments(n)
	if !ok {
		c.add(effect{Class: effectConfig, Needs: Admin, Name: "set_config", Pos: int(n.Location)})
		return
	}
	c.setting(strings.ToLower(name), value, int(n.Location), at.stored)
	c.st.facts.Configures = true
}

// setConfigArguments returns the constant arguments of a set_config call.
func setConfigArguments(n *pg.FuncCall) (name string, value *string, ok bool) {
	if len(n.Args) != 3 || n.FuncVariadic {
		return "", nil, false
	}
	texts := make([]string, 2)
	for i := range texts {
		s := unwrapText(n.Args[i])
		if s == nil {
			return "", nil, false
		}
		texts[i] = *s
	}
	return texts[0], &texts[1], true
}

// unwrapText returns a string literal, with a cast to text at most.
func unwrapText(n *pg.Node) *string {
	switch n := unwrap(n).(type) {
	case *pg.A_Const:
		if s, ok := n.Val.(*pg.A_Const_Sval); ok && !n.Isnull {
			return &s.Sval.Sval
		}
	case *pg.TypeCast:
		if names := n.TypeName.GetNames(); len(names) > 0 && names[len(names)-1].GetString_().GetSval() == "text" {
			return unwrapText(n.Arg)
		}
	}
	return nil
}

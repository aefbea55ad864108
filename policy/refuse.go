package policy

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// The refusals of a verdict. Each names the effect in the message, the rule in
// the detail and the way out in the hint.

// refuseMixed refuses one of the proxy's own statements behind one of the
// server's: the proxy answers it without the server, and so only first.
func refuseMixed(st *Statement) *Refusal {
	return &Refusal{
		Code: "0A000", Rule: "own_settings",
		Message: fmt.Sprintf("pgproxy: %s pgproxy.%s cannot stand behind other statements", st.Proxy.Verb, st.Proxy.Name),
		Detail:  "pgproxy answers it without the server.",
		Hint:    "Send it by itself, or first.",
	}
}

// refuseWithoutReason refuses a message that does more than read, where the rule
// wants a reason for it.
func refuseWithoutReason() *Refusal {
	return &Refusal{
		Code: "42501", Rule: "require_reason",
		Message: "pgproxy: SET pgproxy.reason = 'INC-123' first: statements that change anything need a reason",
		Detail:  "The policy says require_reason.",
		Hint:    "Then send it again. At connect: PGOPTIONS='-c pgproxy.reason=INC-123'.",
	}
}

// refuseForAll refuses what no access permits.
func refuseForAll(a *effect, pos int) *Refusal {
	if a.Class == effectCopyStdio {
		return &Refusal{
			Code: "0A000", Rule: "copy", Position: pos,
			Message: a.Name + " is not supported",
			Detail:  "pgproxy relays statements and their results, not COPY data.",
			Hint:    "Use SELECT (psql: \\g FILE, \\pset format csv) or INSERT … VALUES.",
		}
	}
	return &Refusal{
		Code: "42501", Rule: "pinned_setting", Position: pos,
		Message: fmt.Sprintf("pgproxy: changing %s is refused", a.Name),
		Detail:  "pgproxy and the server must read a text alike: client_encoding is UTF8 and standard_conforming_strings is on.",
		Hint:    pinnedHints[a.Name],
	}
}

var pinnedHints = map[string]string{
	"client_encoding":             "Unset PGCLIENTENCODING, or set it to UTF8 (psql: \\encoding UTF8), and let the terminal or the program convert.",
	"standard_conforming_strings": "Leave it on, and write strings with backslash escapes as E'…'.",
}

func refuseDenied(rule *Rule, a *effect, pos int) *Refusal {
	return &Refusal{
		Code: "42501", Rule: "deny", Position: pos,
		Message: fmt.Sprintf("pgproxy: %s is refused", a.Kind),
		Detail:  fmt.Sprintf("The policy denies %s.", a.Kind),
		Hint:    fmt.Sprintf("Your rule%s would have to leave it out of \"deny\". %s", rule.source(), rule.Ask()),
	}
}

func refuseOnly(rule *Rule, a *effect, pos int) *Refusal {
	return &Refusal{
		Code: "42501", Rule: "only", Position: pos,
		Message: fmt.Sprintf("pgproxy: %s is refused", a.Kind),
		Detail:  fmt.Sprintf("The policy allows nothing but %s.", strings.Join(rule.Only, ", ")),
		Hint:    fmt.Sprintf("Your rule%s would have to name it in \"only\". %s", rule.source(), rule.Ask()),
	}
}

// refuseTimeout refuses a plain SET of a timeout.
func refuseTimeout(rule *Rule, a *effect, pos int) *Refusal {
	lim, _ := limitNamed(a.Name)
	r := refuseLift(rule.policy(), lim)
	if a.Millis < 0 {
		r.Message = fmt.Sprintf("pgproxy: changing %s to a value that pgproxy does not understand is refused", a.Name)
		r.Detail = fmt.Sprintf("pgproxy must know whether it is above %s.", lim.format(lim.get(rule.policy())))
		r.Hint = lim.hint
	}
	r.Rule, r.Position = "protected_setting", pos
	return r
}

// refuseLift refuses a value above a rule's limit.
func refuseLift(rule *Rule, lim limit) *Refusal {
	most := lim.format(lim.get(rule))
	return &Refusal{
		Code: "42501", Rule: "may_lift",
		Message: fmt.Sprintf("pgproxy: %s may not be raised over %s", lim.name, most),
		Detail:  fmt.Sprintf("may_lift is false in your rule%s.", rule.source()),
		Hint:    fmt.Sprintf("Up to %s may be set; more needs may_lift. %s", most, rule.Ask()),
	}
}

// source names where the rule comes from, in parentheses behind "your rule".
func (r *Rule) source() string {
	if r.Source == "" {
		return ""
	}
	return " (" + r.Source + ")"
}

// refuseDryRun refuses what a dry run could not take back.
func refuseDryRun(a *effect, pos int) *Refusal {
	return &Refusal{
		Code: "25001", Rule: "dry_run", Position: pos,
		Message: fmt.Sprintf("pgproxy: %s cannot be taken back, and so not be tried in a dry run", a.Kind),
		Detail:  "pgproxy.dry_run is on.",
		Hint:    "SET pgproxy.dry_run = off, and send it again.",
	}
}

// RefuseDryRunInTransaction refuses to begin or end a dry run inside of a
// transaction, which is kept or taken back as a whole.
func RefuseDryRunInTransaction() *Refusal {
	return &Refusal{
		Code: "25001", Rule: "dry_run",
		Message: "pgproxy: pgproxy.dry_run cannot be changed inside of a transaction",
		Hint:    "COMMIT or ROLLBACK first.",
	}
}

func refuseBare(a *effect, pos int) *Refusal {
	r := &Refusal{
		Code: "42501", Rule: "require_where", Position: pos,
		Message: fmt.Sprintf("pgproxy: %s without a WHERE clause is refused", a.Kind),
		Detail:  "The policy requires a WHERE clause (require_where).",
		Hint:    "Say which rows are meant, or WHERE true for all of them.",
	}
	if a.Kind == "MERGE" {
		r.Message = "pgproxy: MERGE that changes all unmatched rows is refused"
		r.Hint = "Say which rows are meant: WHEN NOT MATCHED BY SOURCE AND …"
	}
	return r
}

func refuseKey(a *effect, pos int, why string) *Refusal {
	r := &Refusal{
		Code: "42501", Rule: "require_where", Position: pos,
		Message: fmt.Sprintf("pgproxy: %s that does not name its rows by key is refused", a.Kind),
		Detail:  fmt.Sprintf("The policy requires the primary key or another unique key to be compared with constants (require_where \"key\"): %s.", why),
		Hint:    "Write WHERE id = 42, or WHERE id IN (1, 2), with all columns of the key.",
	}
	if a.Change.Upsert {
		r.Message = "pgproxy: INSERT with ON CONFLICT DO UPDATE that does not name its rows by key is refused"
		r.Detail = fmt.Sprintf("The policy requires the key of each row that is changed to be a constant (require_where \"key\"): %s.", why)
		r.Hint = "Write INSERT INTO t (id, …) VALUES (42, …) ON CONFLICT (id) DO UPDATE …, or ON CONFLICT DO NOTHING."
	}
	return r
}

// refuseCatalog refuses a change of rows of one of PostgreSQL's own relations.
func refuseCatalog(rule *Rule, name string, pos int) *Refusal {
	return &Refusal{
		Code: "42501", Rule: "catalog", Position: pos,
		Message: fmt.Sprintf("pgproxy: changing rows of %s is refused", name),
		Detail:  fmt.Sprintf("Access %q does not include changes of the system catalogue, by way of a view either.", rule.Access),
		Hint:    "A table of yours that is named like one can be named with its schema.",
	}
}

// refuseUnsettled refuses a change of rows of what may be one of PostgreSQL's
// own relations by the time that it is run.
func refuseUnsettled(t *relation, pos int) *Refusal {
	return &Refusal{
		Code: "42501", Rule: "catalog", Position: pos,
		Message: fmt.Sprintf("pgproxy: changing rows of %s is refused", t.Name),
		Detail:  "An earlier statement of the same message may make this a name of the system catalogue's.",
		Hint:    "Send the statements one by one, or name the table with its schema.",
	}
}

// refuseUnread refuses a change of rows of a relation that cannot be looked up.
func refuseUnread(t *relation, pos int, err error) *Refusal {
	r := &Refusal{
		Code: "42501", Rule: "catalog", Position: pos,
		Message: fmt.Sprintf("pgproxy: changing rows of %s is refused", t.Name),
		Detail:  "pgproxy could not look up whether it belongs to the system catalogue.",
		Hint:    "Try again.",
	}
	switch {
	case errors.Is(err, ErrFailedTransaction):
		r.Detail = "In a failed transaction pgproxy cannot look up whether it belongs to the system catalogue."
		r.Hint = "Send ROLLBACK by itself first."
	case errors.Is(err, errLookups):
		r.Detail = "The message changes too many tables to look them all up."
		r.Hint = "Send the statements one by one."
	}
	return r
}

// refuseAccess refuses an effect that needs more than the rule's access.
func refuseAccess(rule *Rule, a *effect, pos int) *Refusal {
	r := &Refusal{Code: "42501", Rule: "access", Position: pos}
	access := fmt.Sprintf("Access %q", rule.Access)
	switch a.Class {
	case effectStatement:
		r.Message = fmt.Sprintf("pgproxy: %s is refused", a.Kind)
		r.Detail = fmt.Sprintf("%s does not include %s.", access, a.Kind)
		r.Hint = statementHint(rule, a)
	case effectUnknown:
		r.Rule = "unknown"
		r.Message = "pgproxy: this statement is refused"
		r.Detail = fmt.Sprintf("It has a part that this version of pgproxy does not know (%s); only access \"admin\" includes it.", a.Name)
		r.Hint = rule.Ask()
	case effectSequence, effectServer, effectFiles, effectSQL:
		r.Rule = "function"
		r.Message = fmt.Sprintf("pgproxy: function %s is refused", a.Name)
		r.Detail = fmt.Sprintf("It %s; access %q includes that.", functionEffects[a.Class], a.Needs)
		r.Hint = sentences(insteadOfFunction[a.Name], wayOut(rule, a.Needs, a.Name))
	case effectConfig:
		r.Rule = "protected_setting"
		r.Message = "pgproxy: set_config of a setting that is not a constant is refused"
		r.Detail = access + " does not include settings that belong to pgproxy, and this may be one."
		r.Hint = "Give the name and the value as plain string constants, or use SET."
	case effectProtected:
		r.Rule = "protected_setting"
		r.Message = fmt.Sprintf("pgproxy: changing %s is refused", a.Name)
		r.Detail = fmt.Sprintf("The setting belongs to pgproxy at access %q.", rule.Access)
		r.Hint = settingHint(rule, a.Name)
	case effectSuperuser:
		r.Rule = "protected_setting"
		r.Message = fmt.Sprintf("pgproxy: changing %s is refused", a.Name)
		r.Detail = access + " does not include settings that only a superuser or the server's configuration changes."
		r.Hint = wayOut(rule, Admin, "")
	case effectNoSetting:
		r.Code = "42704"
		r.Rule = "unknown_setting"
		r.Message = fmt.Sprintf("unrecognized configuration parameter %q", a.Name)
		r.Detail = fmt.Sprintf("pgproxy knows the settings of PostgreSQL 14 to 18; others need access \"admin\", and yours is %q.", rule.Access)
		r.Hint = unknownSettingHint(rule, a.Name)
	case effectReadWrite:
		r.Rule = "read_only"
		r.Message = fmt.Sprintf("pgproxy: %s is refused", a.Name)
		r.Detail = access + " has read-only transactions."
		r.Hint = wayOut(rule, Write, "")
	case effectResetAll:
		r.Rule = "protected_setting"
		r.Message = fmt.Sprintf("pgproxy: %s is refused", a.Name)
		r.Detail = fmt.Sprintf("It would reset settings that belong to pgproxy at access %q.", rule.Access)
		r.Hint = "Use RESET name for single settings, DISCARD PLANS, TEMP or SEQUENCES, and DEALLOCATE ALL."
	}
	return r
}

// functionEffects say what the functions of a class do.
var functionEffects = map[effectClass]string{
	effectSequence: "changes sequences, locks, notifications or transaction IDs",
	effectServer:   "acts on the server, on other sessions or on large objects",
	effectFiles:    "reads or writes files of the server",
	effectSQL:      "runs SQL that is given as text",
}

// insteadOfFunction says what does the same, or some of it, and is permitted.
var insteadOfFunction = map[string]string{
	CancelBackend:    "Name the process ID, in a statement of its own: SELECT pg_cancel_backend(42). SHOW pgproxy.blockers shows them. Others than your own sessions' need may_signal.",
	TerminateBackend: "Name the process ID, in a statement of its own: SELECT pg_terminate_backend(42). SHOW pgproxy.blockers shows them. Others than your own sessions' need may_signal.",
}

// statementHint says what is permitted instead of a kind of statement, and then
// what would permit it.
func statementHint(rule *Rule, a *effect) string {
	word := a.Kind
	if word == "TRUNCATE TABLE" {
		word = "TRUNCATE"
	}
	return sentences(insteadOfStatement(rule, a.Kind), wayOut(rule, a.Needs, word))
}

func insteadOfStatement(rule *Rule, kind string) string {
	switch kind {
	case "TRUNCATE TABLE", "DROP TABLE":
		return sentences(deleteInstead(rule), temporaryInstead(rule, "A temporary table is included when it is named as one: pg_temp.name."))
	case "DROP VIEW", "DROP SEQUENCE", "DROP INDEX":
		return temporaryInstead(rule, "A temporary one is included when it is named as one: pg_temp.name.")
	case "CREATE TABLE", "CREATE TABLE AS", "CREATE VIEW", "CREATE SEQUENCE":
		return temporaryInstead(rule, "Temporary ones are included: CREATE TEMP ….")
	case "LOCK TABLE":
		return "LOCK TABLE … IN ACCESS SHARE MODE is included."
	case "COPY":
		return "SELECT is included (psql: \\g FILE, \\pset format csv)."
	}
	return ""
}

// deleteInstead tells of DELETE, to those who may.
func deleteInstead(rule *Rule) string {
	switch {
	case !rule.permits("DELETE", Write):
		return ""
	case rule.MaxAffectedRows == 0:
		return "DELETE FROM … WHERE … is included."
	}
	return fmt.Sprintf("DELETE FROM … WHERE … is included, up to %d rows a statement.", rule.MaxAffectedRows)
}

func temporaryInstead(rule *Rule, hint string) string {
	if rule.Access < Write {
		return ""
	}
	return hint
}

// permits reports whether the rule permits a kind that needs an access.
func (r *Rule) permits(kind string, needs Access) bool {
	return !matchesAny(r.Deny, kind) && (len(r.Only) == 0 || matchesAny(r.Only, kind)) && (r.Access >= needs || matchesAny(r.Allow, kind))
}

// wayOut says what the caller's rule would need, and whom to ask for it. word
// is what "allow" would have to name, empty for what the access alone decides.
func wayOut(rule *Rule, needs Access, word string) string {
	needed := fmt.Sprintf("access %q", needs)
	if word != "" {
		needed += fmt.Sprintf(" or \"allow\": [%q]", word)
	}
	if raise := rule.raise(needs); raise != "" {
		return raise
	}
	return fmt.Sprintf("Your rule%s would need %s. %s", rule.source(), needed, rule.Ask())
}

// settingHint says how to come by what a protected setting would give.
func settingHint(rule *Rule, name string) string {
	own, isOwn := strings.CutPrefix(name, ownPrefix)
	_, isLimit := limitNamed(own)
	switch {
	case isOwn && identitySettings[own]:
		return "It says who you are, for triggers and the server's log."
	case isOwn && (isLimit || own == "reason"):
		return fmt.Sprintf("SET %s = … is a statement of its own.", name)
	case isLimit: // a timeout, in a definition
		return "It may be made stricter for the session, by SET. " + wayOut(rule, Admin, "")
	case name == "application_name":
		return "It says who you are. The name that your client gives at connect is kept in the audit record."
	case strings.HasSuffix(name, "transaction_read_only") && rule.Access >= Write:
		return "BEGIN READ ONLY, or SET TRANSACTION READ ONLY, is included."
	}
	return wayOut(rule, Admin, "")
}

// unknownSettingHint names the settings that may have been meant.
func unknownSettingHint(rule *Rule, name string) string {
	near := nearest(name, slices.Sorted(maps.Keys(settings)))
	if len(near) == 0 {
		return rule.Ask()
	}
	return fmt.Sprintf("Is it %s? %s", strings.Join(near, " or "), rule.Ask())
}

// sentences joins those that are not empty.
func sentences(list ...string) string {
	return strings.Join(slices.DeleteFunc(list, func(s string) bool { return s == "" }), " ")
}

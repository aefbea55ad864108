package policy

import (
	"fmt"
	"strings"
)

// The refusals of a verdict. Each names the act in the message, the rule in
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

// refuseForAll refuses what no access permits.
func refuseForAll(a *act, pos int) *Refusal {
	if a.Class == actCopyStdio {
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
		Hint:    "psql converts to the terminal's encoding by itself where the terminal is set to UTF-8.",
	}
}

func refuseDenied(a *act, pos int) *Refusal {
	return &Refusal{
		Code: "42501", Rule: "deny", Position: pos,
		Message: fmt.Sprintf("pgproxy: %s is refused", a.Kind),
		Detail:  fmt.Sprintf("The policy denies %s.", a.Kind),
	}
}

func refuseOnly(rule *Rule, a *act, pos int) *Refusal {
	return &Refusal{
		Code: "42501", Rule: "only", Position: pos,
		Message: fmt.Sprintf("pgproxy: %s is refused", a.Kind),
		Detail:  fmt.Sprintf("The policy allows nothing but %s.", strings.Join(rule.Only, ", ")),
	}
}

func refuseBare(a *act, pos int) *Refusal {
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

func refuseKey(a *act, pos int, why string) *Refusal {
	return &Refusal{
		Code: "42501", Rule: "require_where", Position: pos,
		Message: fmt.Sprintf("pgproxy: %s that does not name its rows by key is refused", a.Kind),
		Detail:  fmt.Sprintf("The policy requires the primary key or another unique key to be compared with constants (require_where \"key\"): %s.", why),
		Hint:    "Write WHERE id = 42, or WHERE id IN (1, 2), with all columns of the key.",
	}
}

// refuseAccess refuses an act that needs more than the rule's access.
func refuseAccess(rule *Rule, a *act, pos int) *Refusal {
	r := &Refusal{Code: "42501", Rule: "access", Position: pos}
	access := fmt.Sprintf("Access %q", rule.Access)
	switch a.Class {
	case actStatement:
		r.Message = fmt.Sprintf("pgproxy: %s is refused", a.Kind)
		r.Detail = fmt.Sprintf("%s does not include %s.", access, a.Kind)
		r.Hint = statementHint(rule, a)
	case actUnknown:
		r.Rule = "unknown"
		r.Message = "pgproxy: this statement is refused"
		r.Detail = fmt.Sprintf("It has a part that this version of pgproxy does not know (%s); only access \"admin\" includes it.", a.Name)
	case actCatalog:
		r.Rule = "catalog"
		r.Message = fmt.Sprintf("pgproxy: changing rows of %s is refused", a.Name)
		r.Detail = access + " does not include changes of the system catalogue."
		r.Hint = "A table of yours whose name begins with pg_ can be named with its schema."
	case actSequence, actServer, actFiles, actSQL:
		r.Rule = "function"
		r.Message = fmt.Sprintf("pgproxy: function %s is refused", a.Name)
		r.Detail = fmt.Sprintf("It %s; access %q includes that.", functionEffects[a.Class], a.Needs)
	case actConfig:
		r.Rule = "protected_setting"
		r.Message = "pgproxy: set_config of a setting that is not a constant is refused"
		r.Detail = access + " does not include settings that belong to pgproxy, and this may be one."
		r.Hint = "Give the name and the value as plain string constants, or use SET."
	case actProtected:
		r.Rule = "protected_setting"
		r.Message = fmt.Sprintf("pgproxy: changing %s is refused", a.Name)
		r.Detail = fmt.Sprintf("The setting belongs to pgproxy at access %q.", rule.Access)
		r.Hint = settingHint(a.Name)
	case actReadWrite:
		r.Rule = "read_only"
		r.Message = fmt.Sprintf("pgproxy: %s is refused", a.Name)
		r.Detail = access + " has read-only transactions."
	case actResetAll:
		r.Rule = "protected_setting"
		r.Message = fmt.Sprintf("pgproxy: %s is refused", a.Name)
		r.Detail = fmt.Sprintf("It would reset settings that belong to pgproxy at access %q.", rule.Access)
		r.Hint = "Use RESET name for single settings, DISCARD PLANS, TEMP or SEQUENCES, and DEALLOCATE ALL."
	}
	return r
}

// functionEffects say what the functions of a class do.
var functionEffects = map[actClass]string{
	actSequence: "changes sequences, locks, notifications or transaction IDs",
	actServer:   "acts on the server, on other sessions or on large objects",
	actFiles:    "reads or writes files of the server",
	actSQL:      "runs SQL that is given as text",
}

// statementHint says what would permit a kind of statement.
func statementHint(rule *Rule, a *act) string {
	switch {
	case rule.Access == Write && (strings.HasPrefix(a.Kind, "CREATE TABLE") || a.Kind == "CREATE VIEW" || a.Kind == "CREATE SEQUENCE"):
		return "Temporary ones are included: CREATE TEMP …"
	case rule.Access == Write && (a.Kind == "DROP TABLE" || a.Kind == "TRUNCATE TABLE"):
		return "A temporary table is included when it is named as one: pg_temp.name."
	case a.Needs == Write:
		return fmt.Sprintf("Access \"write\" includes it, or \"allow\": [%q] in the policy.", a.Kind)
	}
	return fmt.Sprintf("Access \"admin\" includes it, or \"allow\": [%q] in the policy.", a.Kind)
}

// settingHint says how to come by what a protected setting would give.
func settingHint(name string) string {
	if name == "statement_timeout" {
		return "SET pgproxy.statement_timeout, where the policy says may_lift."
	}
	return ""
}

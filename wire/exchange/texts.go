package exchange

import (
	"fmt"

	"pgproxy/policy"
	"pgproxy/wire/frame"
)

// SQLSTATEs that an exchange gives, by PostgreSQL's names (errcodes.txt).
const (
	codeWarning             = "01000"
	codeFeatureNotSupported = "0A000"
	codeSyntaxError         = "42601"
	codeLimitExceeded       = "54000"
	codeQueryCanceled       = "57014"
	codeInternal            = "XX000"
)

func errorNotice(code, message string) *frame.Notice {
	return &frame.Notice{Severity: "ERROR", Code: code, Message: message}
}

func warning(format string, args ...any) *frame.Notice {
	return &frame.Notice{Severity: "WARNING", Code: codeWarning, Message: fmt.Sprintf(format, args...)}
}

// noTransactionWarning is the server's own, where pgproxy's transaction keeps it
// from being said.
func noTransactionWarning() *frame.Notice {
	return &frame.Notice{Severity: "WARNING", Code: "25P01", Message: "there is no transaction in progress"}
}

// copyError is the answer to COPY in every form that needs the client.
func copyError() *frame.Notice {
	n := errorNotice(codeFeatureNotSupported, "pgproxy: COPY FROM STDIN and COPY TO STDOUT are not supported")
	n.Hint = "To read, use SELECT (psql: \\g FILE, \\pset format csv). To write a few rows, use INSERT."
	return n
}

// truncationError tells that a cap has cut a result short.
func truncationError(a *Answer) *frame.Notice {
	if a.capped == "statement_timeout" {
		return timeoutError(a.rule)
	}
	n := errorNotice(codeLimitExceeded, "pgproxy: result truncated: "+capWords(a))
	n.Detail = fmt.Sprintf("Sent were %s and %s.", policy.Count(a.stmtRows, "row"), policy.Count(a.stmtBytes, "byte"))
	if a.fetch() != nil {
		n.Detail += " A cursor's rows count together, whatever the number of FETCHes."
	}
	n.Hint = "Ask for less (WHERE, LIMIT, fewer columns). " + a.rule.LiftHint(a.capped, neededFor(a))
	return n
}

// neededFor is the cap that the result needs: what came of it, where the server
// has sent it to its end, and otherwise ten times the cap.
func neededFor(a *Answer) int64 {
	switch {
	case a.capped == "max_bytes":
		return 10 * a.rule.MaxBytes
	case a.allReads || a.fetch() != nil:
		return 10 * a.rule.MaxRows
	}
	return a.stmtRows + a.dropped
}

// truncationWarning tells the same of a statement that has done its work, and
// must not be taken for one that failed.
func truncationWarning(a *Answer) *frame.Notice {
	n := truncationError(a)
	n.Severity, n.Code = "WARNING", codeWarning
	n.Message = fmt.Sprintf("pgproxy: only the first %s of the result were sent: %s; the statement itself was completed", policy.Count(a.stmtRows, "row"), capWords(a))
	switch a.stmtRows {
	case 0:
		n.Message = fmt.Sprintf("pgproxy: no row of the result was sent: %s; the statement itself was completed", capWords(a))
	case 1:
		n.Message = fmt.Sprintf("pgproxy: only the first row of the result was sent: %s; the statement itself was completed", capWords(a))
	}
	return n
}

func capWords(a *Answer) string {
	switch a.capped {
	case "statement_timeout":
		return fmt.Sprintf("statement_timeout is %v", a.rule.StatementTimeout)
	case "max_bytes":
		return fmt.Sprintf("max_bytes is %d", a.rule.MaxBytes)
	}
	return fmt.Sprintf("max_rows is %d", a.rule.MaxRows)
}

func mutedWarning(rule *policy.Rule, what string) *frame.Notice {
	return warning("pgproxy: %s were left out: max_bytes is %d", what, rule.MaxBytes)
}

// timeoutError tells which limit has ended a statement, whoever kept it.
func timeoutError(rule *policy.Rule) *frame.Notice {
	n := errorNotice(codeQueryCanceled, fmt.Sprintf("canceling statement due to statement timeout (pgproxy's statement_timeout is %v)", rule.StatementTimeout))
	n.Hint = "Make the statement cheaper. " + rule.LiftHint("statement_timeout", (4*rule.StatementTimeout).Milliseconds())
	return n
}

// cancelError tells that a statement was cancelled, and by whom if it was not
// its own client.
func cancelError(by string) *frame.Notice { return errorNotice(codeQueryCanceled, CancelWords(by)) }

// CancelWords tell that a statement was cancelled: PostgreSQL's own for its client,
// by being empty.
func CancelWords(by string) string {
	if by != "" {
		return "pgproxy: canceling statement: " + by + " has cancelled it"
	}
	return "canceling statement due to user request"
}

// affectedError tells of a change that was over the cap and was taken back.
func affectedError(rule *policy.Rule, changed, byItself int64) *frame.Notice {
	n := errorNotice(codeLimitExceeded, fmt.Sprintf("pgproxy: the statement changed %s, max_affected_rows is %d; it was rolled back", policy.Count(changed, "row"), rule.MaxAffectedRows))
	n.Hint = "Narrow its WHERE. " + rule.LiftHint("max_affected_rows", changed)
	if byItself < changed {
		n.Detail = fmt.Sprintf("%s by itself; the others by foreign keys, triggers or WITH clauses.", policy.Count(byItself, "row"))
	}
	return n
}

// uncountedError refuses a change whose rows the server does not count.
func uncountedError(rule *policy.Rule) *frame.Notice {
	n := errorNotice(codeLimitExceeded, fmt.Sprintf("pgproxy: the rows that the statement changes cannot be counted, max_affected_rows is %d; it was rolled back", rule.MaxAffectedRows))
	n.Detail = "The server's setting track_counts is off, and the statement changes rows in a WITH clause."
	n.Hint = "Write the change without WITH. " + rule.Ask()
	return n
}

// unguardedWarning tells of a change that was over the cap and could not be
// taken back.
func unguardedWarning(rule *policy.Rule, changed int64) *frame.Notice {
	return warning("pgproxy: the statement changed %s, max_affected_rows is %d; it could not be rolled back", policy.Count(changed, "row"), rule.MaxAffectedRows)
}

package wire

import (
	"pgproxy/policy"
	"pgproxy/wire/audit"
)

// deniedSQL is how much of a statement that was refused is kept, in bytes. Its
// length and hash tell the rest.
const deniedSQL = 4 << 10

// redact masks secrets in the texts of a record that a client chose, whatever
// -audit-sql says: that is of statements, which were masked when they were read.
// Every record passes here.
func redact(rec *audit.Record) {
	for _, text := range []*string{&rec.Client, &rec.RequestedUser, &rec.Reason, &rec.EndReason, &rec.Database, &rec.Error, &rec.VictimApplicationName} {
		*text = policy.RedactText(*text)
	}
}

// redactStatement sets what records and people may see of a statement.
func (j *journal) redactStatement(st *statement) {
	if st.msg != nil {
		st.shown, st.masked = j.redactor.Redact(j.srv.Redaction, st.sql, st.msg)
	} else {
		st.shown, st.masked = policy.RedactHead(j.srv.Redaction, st.sql, deniedSQL)
	}
}

// redactError is an error's text beside its statement.
func (j *journal) redactError(st *statement, code, text string) string {
	return policy.RedactError(j.srv.Redaction, code, text, st.sql, st.shown)
}

// keepHead cuts the statement of a refusal's record.
func (st *statement) keepHead(rec *audit.Record) {
	switch whole := len(st.sql); {
	case st.msg != nil:
		rec.CutSQL(deniedSQL)
	case whole <= deniedSQL:
	case st.masked: // only its head was: there is nothing to be hashed
		rec.SQLCut, rec.SQLLength = true, int64(whole)
	default:
		rec.SQL = st.sql
		rec.CutSQL(deniedSQL)
	}
}

// redactLift is the statement that changes a setting of the proxy's own, or was
// refused, as its record has it. What is no good value may be anything and is
// masked. A good one is kept with -audit-sql normalized, too: it is no data.
func (j *journal) redactLift(rec *audit.Record, verb, name, value string, r *policy.Refusal) {
	how := j.srv.Redaction
	switch good := r == nil || r.Rule == "may_lift"; {
	case how == policy.Full:
	case good:
		how = policy.Redacted
	default:
		how = policy.Normalized
	}
	sql := verb + " pgproxy." + policy.RedactText(name)
	if verb == "SET" {
		sql += " = " + policy.QuoteLiteral(value)
	}
	rec.SQL, rec.SQLRedacted = policy.Redact(how, sql, &policy.Message{})
	if r != nil {
		rec.SQLState, rec.Rule = r.Code, r.Rule
		rec.Error = policy.RedactError(how, r.Code, r.Message, sql, rec.SQL)
	}
}

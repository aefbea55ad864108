package wire

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"pgproxy/policy"
	"pgproxy/wire/audit"
)

// reported is what the server reports of settings that belong to the proxy
// (ParameterStatus), against what they should be. It notices changes that
// nothing in a statement's text told of.
type reported struct {
	want    map[string]string // by name
	changed map[string]string // those that differ, as last reported

	// What the server was last told to keep.
	readOnly bool
	// open says that at read access transactions may write: see admitWrites.
	open            bool
	admin           bool // an admin may have changed what nobody else may
	timeout, idleTx time.Duration
}

// pinned are watched for everybody: with another value of these the server
// reads a statement's text differently from the proxy.
var pinned = []string{"client_encoding", "standard_conforming_strings"}

// belonging are watched at every access but admin.
var belonging = []string{"application_name", "default_transaction_read_only", "session_authorization", "is_superuser"}

// begin takes the values that the session starts with, under rule, for those
// it should keep.
func (r *reported) begin(rule policy.Rule, params map[string]string) {
	r.want = make(map[string]string)
	for _, name := range slices.Concat(pinned, belonging) {
		if v, ok := params[name]; ok {
			r.want[name] = v
		}
	}
	r.readOnly, r.admin = rule.Access == policy.Read, rule.Access == policy.Admin
	r.timeout, r.idleTx = rule.StatementTimeout, rule.IdleInTransactionTimeout
}

// tampered are the settings that differ and that nobody under rule may change.
func (r *reported) tampered(rule policy.Rule) []string {
	names := slices.Sorted(maps.Keys(r.changed))
	if rule.Access == policy.Admin {
		names = slices.DeleteFunc(names, func(name string) bool { return slices.Contains(belonging, name) })
	}
	return names
}

// note takes the body of a ParameterStatus.
func (r *reported) note(body []byte) {
	name, rest, ok := cstring(body)
	if !ok {
		return
	}
	want, watched := r.want[name]
	if !watched {
		return
	}
	value, _, _ := cstring(rest)
	if value == want {
		delete(r.changed, name)
		return
	}
	if r.changed == nil {
		r.changed = make(map[string]string)
	}
	r.changed[name] = value
}

// putBack is the statement that gives a setting its value back.
func putBack(name, value string) string {
	switch name {
	case "session_authorization":
		return "RESET SESSION AUTHORIZATION"
	case "is_superuser":
		return "RESET ROLE"
	}
	return "SET " + name + " TO " + quoteLiteral(value)
}

// tampered records the protected settings that a statement was seen to have
// changed.
func (s *session) tampered(seq int64) {
	for _, name := range s.settings.tampered(s.inForce()) {
		rec := s.newRecord(audit.Tamper)
		rec.Seq, rec.Tampered = seq, name
		s.srv.record(rec)
		s.srv.metrics.refusal("tamper")
		s.log.Warn("a protected setting was changed", "seq", seq, "setting", name)
	}
}

// restore makes the server's settings what they should be before a statement
// is sent: those that were changed behind the proxy's back are put back, and
// those that follow from the rule follow it when it has changed. Inside of a
// failed transaction nothing can be set, and nothing can be done either.
func (s *session) restore() *sessionError {
	if s.status == 'E' {
		return nil
	}
	for _, name := range s.settings.tampered(s.inForce()) {
		if e := s.set(putBack(name, s.settings.want[name])); e != nil {
			return e
		}
		if _, still := s.settings.changed[name]; still {
			return s.notRestored(fmt.Errorf("setting %s was changed and could not be put back", name))
		}
	}
	return s.follow()
}

// admitWrites lets the server take writes at read access, where the rule
// allows some, from statements that it allows, and in transactions that the
// client begins, which may come to those. writes says that the statement does
// more than read.
func (s *session) admitWrites(st *statement, writes bool) *sessionError {
	r := &s.settings
	allows := st.rule.Access == policy.Read && st.rule.Allow != nil
	begins := func(stmt policy.Statement) bool { return stmt.Tx == policy.TxBegin }
	open := allows && (writes || slices.ContainsFunc(st.msg.Statements, begins))
	if open == r.open || s.status != 'I' {
		return nil
	}
	r.open = open
	return s.follow()
}

// follow tells the server what follows from the rule.
func (s *session) follow() *sessionError {
	rule := s.inForce()
	r := &s.settings
	if readOnly := rule.Access == policy.Read && !(r.open && rule.Allow != nil); readOnly != r.readOnly {
		value := "off"
		if readOnly {
			value = "on"
		}
		if _, watched := r.want["default_transaction_read_only"]; watched {
			r.want["default_transaction_read_only"] = value
		}
		sql := "SET default_transaction_read_only TO " + value
		if readOnly && s.status == 'T' {
			sql += "; SET TRANSACTION READ ONLY"
		}
		if e := s.set(sql); e != nil {
			return e
		}
		r.readOnly = readOnly
	}
	if r.admin && rule.Access != policy.Admin {
		if e := s.set(resetAdmin); e != nil {
			return e
		}
	}
	if s.status != 'I' {
		return nil // what is set inside of a transaction may be rolled back with it
	}
	if rule.Access != policy.Admin && r.admin {
		s.ownTimeout, r.timeout, r.idleTx = false, -1, -1
	}
	r.admin = rule.Access == policy.Admin
	if rule.StatementTimeout != r.timeout && !s.ownTimeout {
		if e := s.set("SET statement_timeout TO " + serverMillis(rule.StatementTimeout)); e != nil {
			return e
		}
		r.timeout = rule.StatementTimeout
	}
	if rule.IdleInTransactionTimeout != r.idleTx {
		if e := s.set("SET idle_in_transaction_session_timeout TO " + serverMillis(rule.IdleInTransactionTimeout)); e != nil {
			return e
		}
		r.idleTx = rule.IdleInTransactionTimeout
	}
	return nil
}

// resetAdmin takes back what an admin may have made of the session: it does not
// outlive being one. Of the settings that only a superuser may even reset, it
// touches those alone that were changed.
const resetAdmin = `RESET SESSION AUTHORIZATION; RESET ROLE; RESET pgproxy."user"; RESET pgproxy.node; RESET pgproxy.session;
SELECT pg_catalog.set_config(name, reset_val, false) FROM pg_catalog.pg_settings
WHERE name OPERATOR(pg_catalog.=) 'session_replication_role' AND setting OPERATOR(pg_catalog.<>) reset_val`

// set runs a SET of the proxy's own.
func (s *session) set(sql string) *sessionError {
	r, e := s.own(sql)
	if e != nil {
		return e
	}
	s.emit(r.async)
	if e := s.settled(); e != nil {
		return e // and what has failed was cancelled for it
	}
	if r.failure != nil {
		return s.notRestored(fmt.Errorf("%s: %s", sql, r.failure.message))
	}
	return nil
}

func (s *session) notRestored(cause error) *sessionError {
	e := fatal(codeAdminShutdown, "pgproxy: session closed: a setting that belongs to pgproxy could not be put back", reasonTampered)
	e.cause = cause
	return e
}

// itoa is for rows of text.
func itoa(n int64) string { return strconv.FormatInt(n, 10) }

package wire

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"pgproxy/policy"
	"pgproxy/wire/audit"
	"pgproxy/wire/exchange"
	"pgproxy/wire/frame"
)

// chooseDatabase settles which database the session is for. A client that
// names none, or the one that libpq makes up from the user's name, gets the
// default.
func (s *session) chooseDatabase() *sessionError {
	asked := s.startup.database
	if asked == s.startup.user {
		asked = ""
	}
	served := policy.Served{Default: s.srv.Database, Names: s.srv.Databases}
	name, r := served.Choose(&s.rule, asked)
	if r != nil {
		return s.refusal(r)
	}
	s.database = name
	return nil
}

// parameters are the upstream connection's startup parameters: the caller's
// stamp and identity, the rule's timeouts, and of the client's own settings
// those that the same SET would be allowed to change. With them it returns the
// rule they follow.
func (s *session) parameters() (map[string]string, policy.Rule, *sessionError) {
	s.stamp = Stamp(s.caller, s.id)
	asked := slices.Clone(s.startup.settings)
	options, e := parseOptions(s.startup.options)
	if e != nil {
		return nil, policy.Rule{}, e
	}
	theirs, e := s.admitSettings(append(asked, options...))
	if e != nil {
		return nil, policy.Rule{}, e
	}
	rule := s.inForce()
	params := map[string]string{
		"application_name":                    s.stamp,
		"pgproxy.user":                        s.caller.Who(),
		"pgproxy.node":                        s.caller.Node,
		"pgproxy.session":                     s.id,
		"statement_timeout":                   exchange.Millis(rule.StatementTimeout),
		"idle_in_transaction_session_timeout": exchange.Millis(rule.IdleInTransactionTimeout),
	}
	if rule.Access == policy.Read {
		params["default_transaction_read_only"] = "on"
		s.readLogin = true
	}
	_, set := theirs["statement_timeout"]
	s.ownTimeout = set && rule.Access == policy.Admin
	maps.Copy(params, theirs)
	return params, rule, nil
}

// admitSettings judges settings given at connect as the SET of the same name
// and value. Those of the proxy's own take effect here.
func (s *session) admitSettings(asked []setting) (map[string]string, *sessionError) {
	admitted := make(map[string]string, len(asked))
	for _, a := range asked {
		name := strings.ToLower(a.name)
		if !utf8.ValidString(a.name) || !utf8.ValidString(a.value) {
			return nil, fatal(codeBadEncoding, "pgproxy: a startup parameter is not valid UTF-8", reasonRefused)
		}
		if isStartupWord(name) {
			return nil, fatal(codeUndefinedObject, fmt.Sprintf("unrecognized configuration parameter %q", a.name), reasonRefused)
		}
		if name == quietSetting {
			s.quiet = s.quiet || isOn(a.value)
			continue
		}
		if own, ok := strings.CutPrefix(name, "pgproxy."); ok {
			if r := s.lift("SET", own, a.value); r != nil {
				return nil, s.refusal(r)
			}
			continue
		}
		if name == "client_encoding" && isUTF8(a.value) {
			continue // pinned upstream
		}
		if r := s.judgeSetting(a); r != nil {
			e := s.refusal(r)
			e.position = 0
			return nil, e
		}
		admitted[name] = a.value
	}
	return admitted, nil
}

// quietSetting turns the login NOTICE off, for people's own scripts:
// PGOPTIONS='-c pgproxy.quiet=on'.
const quietSetting = "pgproxy.quiet"

// isOn knows PostgreSQL's words for true.
func isOn(value string) bool {
	switch strings.ToLower(value) {
	case "on", "true", "yes", "1", "t", "y":
		return true
	}
	return false
}

// isStartupWord reports whether a name, in lower case, means something of its
// own in a startup message, whose parameters are settings otherwise. Passed on
// as a setting, "options" would be read by the server as switches that nobody
// has judged.
func isStartupWord(name string) bool {
	switch name {
	case "user", "database", "options", "replication":
		return true
	}
	return strings.HasPrefix(name, "_pq_.")
}

// isUTF8 reports whether a client_encoding can be had. SQL_ASCII is what a
// client in the C locale asks for: it takes the bytes as they come, and they
// come in UTF-8.
func isUTF8(encoding string) bool {
	var name strings.Builder
	for _, r := range strings.ToLower(encoding) {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			name.WriteRune(r)
		}
	}
	switch name.String() {
	case "utf8", "unicode", "sqlascii":
		return true
	}
	return false
}

func (s *session) judgeSetting(a setting) *policy.Refusal {
	parts := strings.Split(a.name, ".")
	for i, part := range parts {
		parts[i] = quoteIdent(part)
	}
	msg, err := s.srv.Judge.Parse(s.ctx, "SET "+strings.Join(parts, ".")+" TO "+quoteLiteral(a.value))
	if err != nil {
		return &policy.Refusal{Code: codeUndefinedObject, Message: fmt.Sprintf("unrecognized configuration parameter %q", a.name), Rule: "parse"}
	}
	rule := s.inForce()
	d := policy.Decide(s.ctx, &rule, msg, &s.memory, nil)
	if d.Refusal != nil {
		r := *d.Refusal
		if !strings.Contains(r.Message, a.name) {
			r.Message += fmt.Sprintf(" (%s, given at connect)", a.name)
		}
		return &r
	}
	return nil
}

// appendWelcome appends all that stands between AuthenticationOk and the first
// ReadyForQuery, inclusive.
func (s *session) appendWelcome(dst []byte) []byte {
	for _, n := range s.up.Notices {
		if b, err := n.Encode(nil); err == nil {
			dst = append(dst, b...)
		}
	}
	if !s.quiet {
		dst = s.notice().append(dst)
	}
	for _, name := range slices.Sorted(maps.Keys(s.up.Params)) {
		dst = frame.AppendParameter(dst, name, s.up.Params[name])
	}
	key := binary.BigEndian.AppendUint32(nil, s.up.PID)
	dst = frame.Append(dst, 'K', append(key, s.up.Key...)...)
	return frame.AppendReady(dst, s.backend.Status())
}

// noticeWidth is what psql shows of a NOTICE in a line of 100 columns.
const noticeWidth = 100 - len("NOTICE:  ")

// notice tells the person where they are, in one line: what does not fit is
// left out, and SHOW pgproxy.limits tells the rest.
func (s *session) notice() *sessionError {
	rule := s.inForce()
	who, database := shorten(s.caller.Who(), 32), shorten(s.database, 14)
	message := fmt.Sprintf("pgproxy: you are %s, database %s, %s access", who, database, rule.Access)
	more := []string{", recorded", "; SHOW pgproxy.limits"}
	if d := s.srv.IdleTimeout; d > 0 {
		more = slices.Insert(more, 0, fmt.Sprintf(", until %s idle", policy.FormatDuration(d)))
	}
	for _, part := range more {
		if utf8.RuneCountInString(message+part) <= noticeWidth {
			message += part
		}
	}
	return &sessionError{severity: "NOTICE", code: "00000", message: message}
}

// shorten cuts a name in its middle to at most n characters, so that two names
// which differ at their ends still do.
func shorten(name string, n int) string {
	r := []rune(name)
	if len(r) <= n {
		return name
	}
	return string(r[:n/2]) + "…" + string(r[len(r)-(n-n/2-1):])
}

// lift changes one of the session's own settings, and records it. The settings
// of the server that follow from it are put right before the next statement.
func (s *session) lift(verb, name, value string) *policy.Refusal {
	asked := value
	if name == "reason" {
		value = policy.RedactText(value) // it is shown to others
	}
	s.mu.Lock()
	var r *policy.Refusal
	if verb == "SET" {
		r = s.lifts.Set(s.base, name, value)
	} else {
		r = s.lifts.Reset(name)
	}
	if r == nil {
		s.rule = s.lifts.Effective(s.base)
	}
	s.mu.Unlock()
	s.recordLift(verb, name, asked, r)
	return r
}

// recordLift records a change of the session's own settings, or its refusal.
func (s *session) recordLift(verb, name, value string, r *policy.Refusal) {
	rec := s.newRecord(audit.Lift)
	rec.Seq, rec.Verdict = s.seq, "allow"
	if r != nil {
		rec.Verdict = "deny"
	}
	s.redactLift(rec, verb, name, value, r)
	s.srv.record(rec)
}

package wire

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"unicode/utf8"

	"pgproxy/policy"
	"pgproxy/upstream"
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
	rule := s.ruling.rule()
	served := policy.Served{Default: s.srv.Database, Names: s.srv.Databases}
	name, r := served.Choose(&rule, asked)
	if r != nil {
		return s.refusal(r)
	}
	s.database = name
	s.about.Database = name
	return nil
}

// readSettings reads the settings that the client gave at connect, and keeps
// those that the same SET would be allowed to change.
func (s *session) readSettings() *sessionError {
	s.stamp = Stamp(s.caller, s.id)
	s.about.ApplicationName = s.stamp
	options, e := parseOptions(s.startup.options)
	if e != nil {
		return e
	}
	s.theirs, e = s.admitSettings(append(slices.Clone(s.startup.settings), options...))
	return e
}

// parameters are the startup parameters of an upstream connection under a rule:
// the caller's stamp and identity, the rule's timeouts, and the client's own
// settings.
func (s *session) parameters(rule *policy.Rule) map[string]string {
	params := map[string]string{
		"application_name":                    s.stamp,
		"pgproxy.user":                        s.caller.Who(),
		"pgproxy.node":                        s.caller.Node,
		"pgproxy.session":                     s.id,
		"statement_timeout":                   exchange.Millis(rule.StatementTimeout),
		"idle_in_transaction_session_timeout": exchange.Millis(rule.IdleInTransactionTimeout),
	}
	s.talk.readLogin.Store(rule.Access == policy.Read)
	if rule.Access == policy.Read {
		params["default_transaction_read_only"] = "on"
	}
	_, set := s.theirs["statement_timeout"]
	s.talk.ownTimeout = set && rule.Access == policy.Admin
	maps.Copy(params, s.theirs)
	return params
}

// appendWelcome appends all that stands between AuthenticationOk and the first
// ReadyForQuery, inclusive.
func (s *session) appendWelcome(dst []byte) []byte {
	up := s.up.Load()
	for _, n := range up.Notices {
		if b, err := n.Encode(nil); err == nil {
			dst = append(dst, b...)
		}
	}
	if !s.talk.quiet {
		dst = s.notice().append(dst)
	}
	dst = appendParameters(dst, up)
	key := binary.BigEndian.AppendUint32(nil, s.key.pid)
	dst = frame.Append(dst, 'K', append(key, s.key.key...)...)
	return frame.AppendReady(dst, s.backend.Status())
}

// appendParameters appends what the server has said of its settings.
func appendParameters(dst []byte, up *upstream.Conn) []byte {
	for _, name := range slices.Sorted(maps.Keys(up.Params)) {
		dst = frame.AppendParameter(dst, name, up.Params[name])
	}
	return dst
}

// noticeWidth is what psql shows of a NOTICE in a line of 100 columns.
const noticeWidth = 100 - len("NOTICE:  ")

// notice tells the person where they are, in one line: names that do not fit are
// shortened, and SHOW pgproxy.limits tells the rest. Its detail is the address of
// the session's transcript.
func (s *session) notice() *sessionError {
	rule := s.ruling.rule()
	who, database := shorten(s.caller.Who(), 32), shorten(s.database, 14)
	what := fmt.Sprintf("%s, database %s, %s access", who, database, rule.Access)
	until := ""
	if d := s.srv.IdleTimeout; d > 0 {
		until = fmt.Sprintf(", until %s idle", policy.FormatDuration(d))
	}
	var variants []string // from the one that tells the most
	if more := rule.Elevate.Access; more > rule.Access {
		variants = append(variants,
			fmt.Sprintf("pgproxy: you are %s, recorded; SET pgproxy.access for %s", what, more),
			fmt.Sprintf("pgproxy: %s, recorded; SET pgproxy.access for %s", what, more),
			fmt.Sprintf("pgproxy: %s, recorded; ask for %s", what, more))
	}
	variants = append(variants,
		"pgproxy: you are "+what+until+", recorded; SHOW pgproxy.limits",
		"pgproxy: you are "+what+until+", recorded",
		"pgproxy: "+what+until+", recorded",
		"pgproxy: "+what+", recorded")
	message := ""
	for _, message = range variants {
		if utf8.RuneCountInString(message) <= noticeWidth {
			break
		}
	}
	e := notice(message)
	if s.srv.Transcripts != "" {
		e.detail = "Transcript: " + s.srv.Transcripts + s.id
	}
	return e
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

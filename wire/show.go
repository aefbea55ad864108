package wire

import (
	"encoding/binary"
	"time"

	"pgproxy/policy"
)

// ownPrefix serves the proxy's own statements, SHOW, SET and RESET of
// pgproxy.…, at the beginning of a message. It returns what is left for the
// server: st itself when there are none, nil when there is nothing.
func (s *session) ownPrefix(st *statement) (*statement, *sessionError) {
	list := st.msg.Statements
	n := 0
	for n < len(list) && list[n].Proxy != nil {
		n++
	}
	for i := n; i < len(list); i++ {
		if list[i].Proxy != nil {
			return nil, s.deny(st, policy.Decision{Kinds: st.kinds(), Refusal: &policy.Refusal{
				Code: codeFeatureNotSupported, Message: "pgproxy: a setting of pgproxy's own cannot stand behind other statements",
				Hint: "Send it by itself, or first.", Rule: "own_settings",
			}})
		}
	}
	if n == 0 {
		return st, nil
	}
	rec := s.queryRecord(st)
	rec.Verdict, rec.Rule, rec.Kinds = "allow", "own", st.kinds()
	if err := s.srv.write(rec); err != nil {
		return nil, s.answer(s.unrecorded("ERROR", err))
	}
	for i := range n {
		if e := s.serveOwn(list[i].Proxy); e != nil {
			s.recordResult(st, outcome{sqlstate: e.code, failure: e.message, affected: -1})
			return nil, s.answer(e)
		}
	}
	if n == len(list) {
		s.recordResult(st, outcome{tag: list[n-1].Proxy.Verb, affected: -1})
		s.emit(appendReady(nil, s.status))
		return nil, nil
	}
	return s.withoutPrefix(st, list[n].Start)
}

// withoutPrefix is the message with its beginning blanked out, so that
// positions in the server's errors stay right. It is read anew: what is judged
// is what is sent.
func (s *session) withoutPrefix(st *statement, end int) (*statement, *sessionError) {
	rest := s.begin()
	if r := s.read(rest, blank(st.sql[:end])+st.sql[end:]); r != nil {
		return nil, s.deny(rest, policy.Decision{Refusal: r})
	}
	return rest, nil
}

// kinds are the kinds of the message's statements.
func (st *statement) kinds() []string {
	kinds := make([]string, len(st.msg.Statements))
	for i := range kinds {
		kinds[i] = st.msg.Statements[i].Kind
	}
	return kinds
}

// serveOwn serves one of the proxy's own statements.
func (s *session) serveOwn(cmd *policy.ProxyCommand) *sessionError {
	if cmd.Verb == "SHOW" {
		return s.show(cmd.Name)
	}
	if cmd.Local {
		return statementError(codeFeatureNotSupported, "pgproxy: pgproxy's settings hold for the session, SET LOCAL is not supported")
	}
	if r := s.lift(cmd.Verb, cmd.Name, cmd.Value); r != nil {
		e := refused("ERROR", r)
		e.position = 0
		return e
	}
	s.emit(appendComplete(nil, cmd.Verb))
	return nil
}

// show answers SHOW pgproxy.name.
func (s *session) show(name string) *sessionError {
	s.mu.Lock()
	rule, reason := s.rule, s.lifts.Reason()
	s.mu.Unlock()
	switch name {
	case "session":
		s.table([]string{"property", "value"}, [][]string{
			{"session", s.id}, {"user", s.caller.Who()}, {"node", s.caller.Node}, {"address", s.caller.Addr},
			{"database", s.database}, {"upstream", s.up.Addr}, {"upstream_pid", itoa(int64(s.up.PID))},
			{"application_name", s.stamp}, {"since", s.began.UTC().Format(time.RFC3339)}, {"reason", reason},
		})
	case "limits":
		var rows [][]string
		for _, l := range rule.Limits() {
			rows = append(rows, []string{l.Name, l.Value})
		}
		s.table([]string{"limit", "value"}, rows)
	case "access":
		var rows [][]string
		for _, line := range rule.Describe() {
			rows = append(rows, []string{line})
		}
		s.table([]string{"access"}, rows)
	case "sessions":
		s.table(sessionColumns, s.sessionRows())
	case "reason":
		s.table([]string{name}, [][]string{{reason}})
	default:
		for _, l := range rule.Limits() {
			if l.Name == name {
				s.table([]string{name}, [][]string{{l.Value}})
				return nil
			}
		}
		return statementError(codeUndefinedObject, `unrecognized configuration parameter "pgproxy.`+name+`"`).
			withHint("There are session, limits, access, sessions, and each limit by its name.")
	}
	return nil
}

// table emits a result of text columns.
func (s *session) table(names []string, rows [][]string) {
	body := binary.BigEndian.AppendUint16(nil, uint16(len(names)))
	for _, name := range names {
		body = append(append(body, name...), 0)
		body = append(body, 0, 0, 0, 0, 0, 0) // no table, no column
		body = binary.BigEndian.AppendUint32(body, 25)
		body = append(body, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0) // any length, text format
	}
	s.emit(appendFrame(nil, 'T', body...))
	for _, row := range rows {
		body := binary.BigEndian.AppendUint16(nil, uint16(len(row)))
		for _, v := range row {
			body = binary.BigEndian.AppendUint32(body, uint32(len(v)))
			body = append(body, v...)
		}
		s.emit(appendFrame(nil, 'D', body...))
	}
	s.emit(appendComplete(nil, "SHOW"))
}

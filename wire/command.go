package wire

import (
	"encoding/binary"
	"strconv"
	"time"

	"pgproxy/policy"
	"pgproxy/wire/frame"
)

// tryOwn looks at pgproxy's own statements, SHOW, SET and RESET of pgproxy.…,
// at the beginning of a message, and says whether one of them is refused. It
// changes nothing, other than what the rest of the message is judged by: the
// message is judged as a whole, and runs as a whole or not at all.
func (s *session) tryOwn(st *statement) *policy.Refusal {
	list := st.msg.Statements
	for st.own < len(list) && list[st.own].Proxy != nil {
		st.own++
	}
	if st.own == 0 {
		return nil
	}
	commands := make([]*policy.ProxyCommand, st.own)
	for i := range commands {
		commands[i] = list[i].Proxy
	}
	rule, reason, bad, refusal := s.ruling.try(commands)
	if refusal != nil {
		refusal.Position = 0
		s.lifted(st.seq, commands[bad].Verb, commands[bad].Name, commands[bad].Value, refusal)
		return refusal
	}
	st.rule, st.reason = rule, reason
	return nil
}

// kinds are the kinds of the message's statements.
func (st *statement) kinds() []string {
	kinds := make([]string, len(st.msg.Statements))
	for i := range kinds {
		kinds[i] = st.msg.Statements[i].Kind
	}
	return kinds
}

// serveOwn serves pgproxy's own statements at the beginning of a message. It
// returns the last one's tag.
func (s *session) serveOwn(st *statement) (tag string, e *sessionError) {
	for i := range st.own {
		cmd := st.msg.Statements[i].Proxy
		if tag = cmd.Verb; tag == "SHOW" {
			if e := s.show(cmd.Name); e != nil {
				return tag, e
			}
			continue
		}
		if r := s.lift(cmd.Verb, cmd.Name, cmd.Value); r != nil {
			return tag, refused("ERROR", r)
		}
		s.Send(frame.AppendComplete(nil, tag))
	}
	return tag, nil
}

// show answers SHOW pgproxy.name.
func (s *session) show(name string) *sessionError {
	rule, reason := s.ruling.both()
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
	s.Send(frame.Append(nil, 'T', body...))
	for _, row := range rows {
		body := binary.BigEndian.AppendUint16(nil, uint16(len(row)))
		for _, v := range row {
			body = binary.BigEndian.AppendUint32(body, uint32(len(v)))
			body = append(body, v...)
		}
		s.Send(frame.Append(nil, 'D', body...))
	}
	s.Send(frame.AppendComplete(nil, "SHOW"))
}

// itoa is for rows of text.
func itoa(n int64) string { return strconv.FormatInt(n, 10) }

// lift changes one of the session's own settings, and records it. The settings
// of the server that follow from it are put right before the next statement.
func (s *session) lift(verb, name, value string) *policy.Refusal {
	asked := value
	if name == "reason" {
		value = policy.RedactText(value) // it is shown to others
	}
	r := s.ruling.set(verb, name, value)
	s.lifted(s.life.statement(), verb, name, asked, r)
	return r
}

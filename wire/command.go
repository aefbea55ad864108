package wire

import (
	"encoding/binary"
	"slices"
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
	if st.own = st.msg.Own(); st.own == 0 {
		return nil
	}
	own := st.msg.Statements[:st.own]
	rule, reason, bad, refusal := s.ruling.try(own)
	if i := slices.IndexFunc(own, func(o policy.Statement) bool { return setsDryRun(o.Proxy, st.rule.DryRun) }); i >= 0 && refusal == nil && s.backend.Status() != 'I' {
		bad, refusal = i, policy.RefuseDryRunInTransaction()
	}
	if refusal != nil {
		refusal.Position = 0
		s.notDone(st, own[bad].Proxy, refusal)
		return refusal
	}
	if refusal := s.raisesAlone(st, &rule); refusal != nil {
		return refusal
	}
	st.rule, st.reason = rule, reason
	return nil
}

// setsDryRun reports whether a command may begin or end a dry run, whatever the
// commands behind it make of that: one of those may fail.
func setsDryRun(cmd *policy.ProxyCommand, dry bool) bool {
	return cmd.Verb != "SHOW" && (cmd.Name == "dry_run" || cmd.Name == "all" && dry)
}

// serveOwn serves pgproxy's own statements at the beginning of a message. It
// returns the last one's tag.
func (s *session) serveOwn(st *statement) (tag string, e *sessionError) {
	for i := range st.own {
		cmd := st.msg.Statements[i].Proxy
		switch tag = cmd.Verb; {
		case cmd.Signal != nil:
			tag = "SELECT 1"
			if e := s.serveSignal(st, cmd.Signal); e != nil {
				return "", e
			}
			continue
		case tag == "SHOW":
			if e := s.show(cmd.Name); e != nil {
				return "", e
			}
			continue
		}
		if e := s.set(cmd); e != nil {
			return tag, e
		}
		s.Send(frame.AppendComplete(nil, tag))
	}
	return tag, nil
}

// set serves a SET or RESET.
func (s *session) set(cmd *policy.ProxyCommand) *sessionError {
	switch {
	case cmd.Verb == "SET" && cmd.Name == "access":
		return s.setAccess(cmd)
	case cmd.Name == "approve", cmd.Name == "refuse":
		return s.answerRequest(cmd.Value, cmd.Name == "approve")
	}
	if r := s.lift(cmd.Verb, cmd.Name, cmd.Value); r != nil {
		return refused("ERROR", r)
	}
	s.tellOver() // RESET may end a raised access
	return s.settleLogin()
}

// notDone records one of pgproxy's own statements that is refused.
func (s *session) notDone(st *statement, cmd *policy.ProxyCommand, r *policy.Refusal) {
	if cmd.Name != "access" {
		s.lifted(st.seq, cmd.Verb, cmd.Name, cmd.Value, r)
		return
	}
	access, _ := policy.ReadAccess(cmd.Value)
	if err := s.elevated(stepRefused, elevation{Elevate: policy.Elevate{Access: access}}, r); err != nil {
		s.unrecorded("ERROR", err)
	}
}

// shows are the answers to SHOW pgproxy.…, by policy.Shows.
var shows = map[string]func(*session) *sessionError{
	"session": func(s *session) *sessionError {
		return s.table([]string{"property", "value"}, [][]string{
			{"session", s.id}, {"user", s.caller.Who()}, {"node", s.caller.Node}, {"address", s.caller.Addr},
			{"database", s.database}, {"upstream", s.up.Load().Addr}, {"upstream_pid", itoa(int64(s.up.Load().PID))},
			{"application_name", s.stamp}, {"since", s.began.UTC().Format(time.RFC3339)}, {"reason", s.ruling.reason()},
		})
	},
	"limits": func(s *session) *sessionError {
		var rows [][]string
		for _, l := range s.ruling.rule().Limits() {
			rows = append(rows, []string{l.Name, l.Value})
		}
		return s.table([]string{"limit", "value"}, rows)
	},
	"access": func(s *session) *sessionError {
		var rows [][]string
		for _, line := range s.ruling.rule().Describe() {
			rows = append(rows, []string{line})
		}
		if e, ok := s.ruling.elevation(); ok {
			rows = append(rows, []string{e.words() + ", then " + s.ruling.policy().Access.String() + " access again"})
		}
		return s.table([]string{"access"}, rows)
	},
	"requests": func(s *session) *sessionError { return s.table(requestColumns, s.requestRows()) },
	"sessions": func(s *session) *sessionError { return s.table(sessionColumns, s.sessionRows()) },
	"blockers": (*session).showBlockers,
}

// show answers SHOW pgproxy.name, for a name that policy.Decide let pass: one of
// shows, or a setting of the session's own.
func (s *session) show(name string) *sessionError {
	if answer := shows[name]; answer != nil {
		return answer(s)
	}
	rule, value := s.ruling.both()
	for _, l := range rule.Limits() {
		if l.Name == name {
			value = l.Value
		}
	}
	return s.table([]string{name}, [][]string{{value}})
}

// table emits the result of a SHOW.
func (s *session) table(names []string, rows [][]string) *sessionError {
	s.result(names, textType, rows, "SHOW")
	return nil
}

// result emits a result whose columns are of one type.
func (s *session) result(names []string, typ uint32, rows [][]string, tag string) {
	body := binary.BigEndian.AppendUint16(nil, uint16(len(names)))
	for _, name := range names {
		body = append(append(body, name...), 0)
		body = append(body, 0, 0, 0, 0, 0, 0) // no table, no column
		body = binary.BigEndian.AppendUint32(body, typ)
		length := []byte{0xff, 0xff}
		if typ == boolType {
			length = []byte{0, 1}
		}
		body = append(append(body, length...), 0xff, 0xff, 0xff, 0xff, 0, 0) // no modifier, text format
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
	s.Send(frame.AppendComplete(nil, tag))
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

package policy

// maxPrepared bounds the prepared statements a session's memory holds. One
// beyond it is unknown, and so refused below admin access.
const maxPrepared = 1000

// Memory is what one session has prepared so far. The zero value is empty. It
// is not safe for concurrent use.
//
// It errs on the side of remembering: a name keeps everything that was ever
// prepared under it until it was surely dropped, since PREPARE is not undone
// by a rollback and a string may fail after it.
type Memory struct {
	prepared map[string]prepared
}

// prepared is all that may hide under one name.
type prepared struct {
	acts  []act
	hides bool // the tag of its EXECUTE may leave out rows it changes
}

// Note is called when the server has answered a message. completed is how many
// of its statements have ended well, by the server's own tags: only those are
// learnt from and forgotten by.
func (m *Memory) Note(msg *Message, completed int) {
	for i := range min(completed, len(msg.Statements)) {
		f := &msg.Statements[i].facts
		switch {
		case f.Prepares != "":
			m.prepare(f)
		case f.Forgets == "":
		case f.Forgets == "*":
			clear(m.prepared)
		default:
			delete(m.prepared, f.Forgets)
		}
	}
}

func (m *Memory) prepare(f *facts) {
	p, known := m.prepared[f.Prepares]
	if !known && len(m.prepared) >= maxPrepared {
		return
	}
	if m.prepared == nil {
		m.prepared = make(map[string]prepared)
	}
	m.prepared[f.Prepares] = prepared{merge(p.acts, f.Acts), p.hides || f.Hides}
}

// merge adds the acts of one PREPARE to those already known under its name.
func merge(known, acts []act) []act {
	if known == nil {
		return acts
	}
	merged := append([]act(nil), known...)
	for _, a := range acts {
		if !contains(merged, a) {
			merged = append(merged, a)
		}
	}
	return merged
}

// contains reports whether an act of the same weight is among acts. Changes
// are compared by identity: each may touch another table.
func contains(acts []act, a act) bool {
	for _, b := range acts {
		if a.Class == b.Class && a.Kind == b.Kind && a.Needs == b.Needs && a.Name == b.Name && a.Change == b.Change && a.Millis == b.Millis {
			return true
		}
	}
	return false
}

// Changes reports whether the statement at an index of a message changes rows:
// as its own Changes, and for one that executes prepared statements whether one
// of those does. A name it does not know may.
func (m *Memory) Changes(msg *Message, i int) bool {
	st := &msg.Statements[i]
	return st.Changes || m.executes(st, func(p prepared, known bool, _ execution) bool {
		return !known || changes(p.acts)
	})
}

// Hidden reports whether the command tag's count leaves out rows that the
// statement at an index changes: as its own Hidden, and for one that executes
// prepared statements whether it may be so for one of those.
func (m *Memory) Hidden(msg *Message, i int) bool {
	st := &msg.Statements[i]
	return st.Hidden || m.executes(st, func(p prepared, known bool, e execution) bool {
		return !known || p.hides || e.Nested && changes(p.acts)
	})
}

// Reads reports whether the statement at an index does nothing but read,
// whatever its kind: SELECT, FETCH, SHOW, an EXPLAIN that runs nothing, and the
// EXECUTE of what only reads. A result of it that is cut short is an error;
// that of a statement which has changed something is not.
func (m *Memory) Reads(msg *Message, i int) bool {
	st := &msg.Statements[i]
	return st.Reads || st.Cursor.Verb == CursorFetch
}

// executes reports whether test is true of a prepared statement that st runs.
func (m *Memory) executes(st *Statement, test func(prepared, bool, execution) bool) bool {
	for _, e := range st.facts.Executes {
		p, known := m.prepared[e.Name]
		if !e.Planned && test(p, known, e) {
			return true
		}
	}
	return false
}

// changes reports whether acts change rows.
func changes(acts []act) bool {
	for _, a := range acts {
		switch a.Kind {
		case "INSERT", "UPDATE", "DELETE", "MERGE":
			return true
		}
	}
	return false
}

// lookup returns what may hide under a prepared statement's name.
func (m *Memory) lookup(name string) (acts []act, known bool) {
	if m == nil {
		return nil, false
	}
	p, known := m.prepared[name]
	return p.acts, known
}

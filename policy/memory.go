package policy

import (
	"iter"
	"slices"
	"strings"
	"unicode/utf8"
)

// Bounds of a session's memory: of the prepared statements it holds, of what it
// keeps for one name, for all of them and for one message, in bytes, and of the
// tables it knows. What is beyond them is unknown, and so refused below admin
// access.
const (
	maxPrepared       = 1000
	maxPreparedName   = 64 << 10
	maxPreparedMemory = 2 << 20
	maxPlain          = 1000
)

// Memory is what one session has prepared so far. The zero value is empty. It
// is not safe for concurrent use.
//
// A name keeps everything that was prepared under it until the server has said
// that it was dropped. So what it remembers may be more than the server has, and
// is never less.
type Memory struct {
	prepared map[string]prepared
	weight   int // of prepared

	// plain are tables whose rows are no catalogue's, as far as this session
	// has done nothing since by which their names may mean something else.
	// moved says that it has, perhaps in a transaction whose end undoes it.
	plain map[relation]bool
	moved bool
}

// prepared is all that was prepared under one name.
type prepared struct {
	versions []version
	weight   int // in bytes
}

// version is what one PREPARE has prepared. It is immutable.
type version struct {
	effects []effect
	changes bool // it changes rows
	hides   bool // the tag of its EXECUTE may leave out rows it changes
	reads   bool // it does nothing but read
	weight  int  // in bytes
}

func versionOf(f *facts) version {
	v := version{effects: f.Effects, changes: changesRows(f.Effects), hides: f.Hides, reads: !f.beyondRead()}
	for k := range f.Effects {
		v.weight += f.Effects[k].size()
	}
	return v
}

// changesRows reports whether effects change rows.
func changesRows(effects []effect) bool {
	return slices.ContainsFunc(effects, func(a effect) bool { return a.Target != nil && a.Needs > Read })
}

// preparing is what the statements of a message prepare under one name.
type preparing struct {
	at       []int // the statements' indexes, in order
	versions []version
}

// preparations returns what a message prepares, by name.
func (m *Message) preparations() map[string]preparing {
	var names map[string]preparing
	for i := range m.Statements {
		f := &m.Statements[i].facts
		if f.Prepares == "" || uncertainName(f.Prepares) {
			continue
		}
		if names == nil {
			names = make(map[string]preparing)
		}
		p := names[f.Prepares]
		names[f.Prepares] = preparing{append(p.at, i), append(p.versions, versionOf(f))}
	}
	return names
}

// uncertainName reports whether the server may take a name for another one than
// the parser does, so that nothing can be remembered under it. Both fold the
// case and cut at 63 bytes, but the server does so in the encoding of its
// database, which may have one byte where UTF-8 has two, and lower case letters
// for more than A to Z.
func uncertainName(name string) bool {
	return strings.IndexFunc(name, func(r rune) bool { return r >= utf8.RuneSelf }) >= 0
}

// Note is called when the server has answered a message. completed is how many
// of its statements have ended well, by the server's own tags. Only these are
// taken to have prepared or dropped something.
func (m *Memory) Note(msg *Message, completed int) {
	for i := range msg.Statements {
		m.settle(&msg.Statements[i])
	}
	for i := range min(completed, len(msg.Statements)) {
		f := &msg.Statements[i].facts
		switch {
		case f.Prepares != "" && !uncertainName(f.Prepares):
			m.learn(f.Prepares, versionOf(f))
		case f.ForgetsAll:
			clear(m.prepared)
			m.weight = 0
		case f.Forgets != "":
			m.forget(f.Forgets)
		}
	}
}

// settle forgets the tables it knows where a statement may have changed what
// their names mean, whether it has ended well or not.
func (m *Memory) settle(st *Statement) {
	ends := st.Tx == TxCommit || st.Tx == TxRollback || st.Tx == TxRollbackTo || st.Tx == TxPrepare
	switch {
	case ends && !m.moved:
	case ends:
		clear(m.plain)
		m.moved = st.Tx == TxRollbackTo
	case unsettles(st):
		clear(m.plain)
		m.moved = true
	}
}

// learn adds a version to those of a name. A name that has too many is unknown.
func (m *Memory) learn(name string, v version) {
	p, known := m.prepared[name]
	for _, old := range p.versions {
		if &old.effects[0] == &v.effects[0] {
			return
		}
	}
	switch {
	case !known && len(m.prepared) >= maxPrepared:
		return
	case p.weight+v.weight > maxPreparedName, m.weight+v.weight > maxPreparedMemory:
		m.forget(name)
		return
	}
	if m.prepared == nil {
		m.prepared = make(map[string]prepared)
	}
	m.prepared[name] = prepared{append(p.versions, v), p.weight + v.weight}
	m.weight += v.weight
}

func (m *Memory) forget(name string) {
	m.weight -= m.prepared[name].weight
	delete(m.prepared, name)
}

// hidden is all that may hide under a prepared statement's name.
type hidden struct{ before, here []version }

func (h hidden) all() iter.Seq[*version] {
	return func(yield func(*version) bool) {
		for _, list := range [2][]version{h.before, h.here} {
			for k := range list {
				if !yield(&list[k]) {
					return
				}
			}
		}
	}
}

// under returns what may hide under a prepared statement's name when the
// statement at an index of a message runs: all that was prepared under it
// before, and earlier in the message. A DEALLOCATE in the message takes nothing
// away, since only the server can say that it was run. This is the only place
// that looks a name up.
func (m *Memory) under(msg *Message, i int, name string) (h hidden, known bool) {
	weight := 0
	if m != nil {
		p := m.prepared[name]
		h.before, weight = p.versions, p.weight
	}
	here, n := msg.prepares[name], 0
	for n < len(here.at) && here.at[n] < i {
		if weight += here.versions[n].weight; weight > maxPreparedName {
			return hidden{}, false
		}
		n++
	}
	h.here = here.versions[:n]
	return h, len(h.before)+n > 0
}

// Changes reports whether the statement at an index of a message changes rows:
// as its own Changes, and for one that executes prepared statements whether one
// of those does. A name it does not know may.
func (m *Memory) Changes(msg *Message, i int) bool {
	return msg.Statements[i].Changes || m.runs(msg, i, func(v *version, _ execution) bool { return v.changes })
}

// Hidden reports whether the command tag's count leaves out rows that the
// statement at an index changes: as its own Hidden, and for one that executes
// prepared statements whether it may be so for one of those.
func (m *Memory) Hidden(msg *Message, i int) bool {
	return msg.Statements[i].Hidden || m.runs(msg, i, func(v *version, e execution) bool { return v.hides || e.Nested && v.changes })
}

// Reads reports whether the statement at an index does nothing but read,
// whatever its kind: SELECT, FETCH, SHOW, an EXPLAIN that runs nothing, and the
// EXECUTE of what only reads. A result of it that is cut short is an error;
// that of a statement which has changed something is not.
func (m *Memory) Reads(msg *Message, i int) bool {
	st := &msg.Statements[i]
	return kinds.rows[st.Kind] && !st.facts.beyondRead() && !m.runs(msg, i, func(v *version, _ execution) bool { return !v.reads })
}

// runs reports whether test is true of something that a statement runs by
// EXECUTE, or might be: of a name it does not know.
func (m *Memory) runs(msg *Message, i int, test func(*version, execution) bool) bool {
	for _, e := range msg.Statements[i].facts.Executes {
		if e.Planned {
			continue
		}
		h, known := m.under(msg, i, e.Name)
		if !known {
			return true
		}
		for v := range h.all() {
			if test(v, e) {
				return true
			}
		}
	}
	return false
}

// isPlain reports whether a relation is known to be no catalogue's.
func (m *Memory) isPlain(r *relation) bool {
	return m != nil && m.plain[relation{Schema: r.Schema, Name: r.Name}]
}

func (m *Memory) notePlain(r *relation) {
	switch {
	case m == nil:
		return
	case m.plain == nil || len(m.plain) >= maxPlain:
		m.plain = make(map[relation]bool)
	}
	m.plain[relation{Schema: r.Schema, Name: r.Name}] = true
}

package wire

import (
	"slices"
	"strings"
)

// checkTag compares a completion with the statement it should belong to. It
// is a cheap proof that proxy and server read the text alike: a difference
// means that one of them was deceived, and ends the session.
func (s *session) checkTag(st *statement, tag string) {
	c := &st.cycle
	if c.index >= len(st.msg.Statements) {
		c.mismatch = "completion of a statement that was not read"
		return
	}
	want := st.msg.Statements[c.index].Tags
	if want != nil && !slices.Contains(want, tagName(tag)) {
		c.mismatch = "completion " + tagName(tag) + " of " + st.msg.Statements[c.index].Kind
	}
}

// checkEnd does the same at the end of an answer without an error: every
// statement must have been completed.
func (s *session) checkEnd(st *statement) {
	c := &st.cycle
	if c.sqlstate == "" && !c.silenced && c.index < len(st.msg.Statements) {
		c.mismatch = "end of the answer before " + st.msg.Statements[c.index].Kind
	}
}

// tagName is a command tag without its counts.
func tagName(tag string) string { return strings.TrimRight(tag, " 0123456789") }

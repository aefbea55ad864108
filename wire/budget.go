package wire

import "pgproxy/policy"

// fetchBudget makes the row cap hold for a cursor as a whole. psql up to 16
// fetches a large result in many small FETCHes (FETCH_COUNT), and so may
// anyone: their rows add up until the transaction ends.
type fetchBudget struct {
	rows    int64 // passed by FETCH so far
	fetched bool  // the current message has a FETCH
}

// rowLimit is how many rows the current statement may still send.
func (b *fetchBudget) rowLimit(st *statement, limit int64) int64 {
	if !st.fetches() {
		return limit
	}
	return max(limit-b.rows, 0)
}

// add counts the rows of a statement that has ended.
func (b *fetchBudget) add(st *statement, rows int64) {
	if st.fetches() {
		b.rows += rows
		b.fetched = true
	}
}

// ended is told the transaction status after a message. A cursor WITH HOLD
// outlives its transaction, and so does what was fetched from it, until
// something else has been asked for.
func (b *fetchBudget) ended(status byte) {
	if status == 'I' && !b.fetched {
		b.rows = 0
	}
	b.fetched = false
}

// fetches reports whether the statement being answered is a FETCH.
func (st *statement) fetches() bool {
	i := st.cycle.index
	if i >= len(st.msg.Statements) {
		return false
	}
	return st.msg.Statements[i].Cursor.Verb == policy.CursorFetch
}

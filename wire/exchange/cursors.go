package exchange

import "pgproxy/policy"

// maxCursors bounds the cursors that are remembered. With more open at a time,
// all that were not remembered share one budget.
const maxCursors = 1000

// cursors keeps what was sent of each open cursor, so that the caps on rows and
// bytes hold for a cursor as a whole: psql (up to 16, with FETCH_COUNT) and
// psycopg2 fetch a large result in many small FETCHes, and so may anyone.
type cursors struct {
	open map[string]*cursor
}

type cursor struct {
	rows, bytes    int64
	hold, noScroll bool
}

// sent is what was sent of a cursor so far.
func (c *cursors) sent(name string) (rows, bytes int64) {
	if k := c.open[c.key(name)]; k != nil {
		return k.rows, k.bytes
	}
	return 0, 0
}

// noScroll reports whether a cursor was declared as one that cannot go back.
func (c *cursors) noScroll(name string) bool {
	k := c.open[c.key(name)]
	return k != nil && k.noScroll
}

// key is the name under which a cursor is remembered.
func (c *cursors) key(name string) string {
	if len(c.open) >= maxCursors && c.open[name] == nil {
		return ""
	}
	return name
}

// note takes a statement that the server has completed, with what it sent.
func (c *cursors) note(use *policy.CursorUse, rows, bytes int64) {
	switch use.Verb {
	case policy.CursorDeclare:
		c.put(use.Name, &cursor{hold: use.Hold, noScroll: use.NoScroll})
	case policy.CursorFetch:
		k := c.open[c.key(use.Name)]
		if k == nil { // declared by a function
			k = &cursor{}
			c.put(use.Name, k)
		}
		k.rows += rows
		k.bytes += bytes
	case policy.CursorClose:
		if use.Name == "" {
			clear(c.open)
		} else {
			delete(c.open, use.Name)
		}
	}
}

func (c *cursors) put(name string, k *cursor) {
	if c.open == nil {
		c.open = make(map[string]*cursor)
	}
	c.open[c.key(name)] = k
}

// transactionEnded forgets the cursors that end with their transaction.
func (c *cursors) transactionEnded() {
	for name, k := range c.open {
		if !k.hold {
			delete(c.open, name)
		}
	}
}

package policy

import "sync"

// Bounds of the cache, in bytes: of one text, of one that has a template, and
// of each of the two generations.
const (
	maxCachedText   = 64 << 10
	maxTemplate     = 512
	generationBytes = 16 << 20
)

// cache keeps the messages of texts that were read. It has two generations. A
// text that is used moves into the young one. When the young one is full, it
// replaces the old one, which is dropped. The zero value is empty. It is safe
// for concurrent use.
//
// A text without quotes, comments and the like is kept under its template:
// the text with every digit of every number as 0. See template.
type cache struct {
	mu         sync.Mutex
	young, old map[string]*Message
	bytes      int // of young
}

// get returns the message of a text, nil if it is not kept.
func (c *cache) get(sql string) *Message {
	if len(sql) > maxCachedText {
		return nil
	}
	var buffer [maxTemplate]byte
	key, ok := template(buffer[:0], sql)
	c.mu.Lock()
	defer c.mu.Unlock()
	if ok {
		if msg := c.young[string(key)]; msg != nil {
			return msg
		}
	}
	if msg := c.young[sql]; msg != nil {
		return msg
	}
	if ok {
		if msg := c.old[string(key)]; msg != nil {
			c.putLocked(string(key), msg)
			return msg
		}
	}
	msg := c.old[sql]
	if msg != nil {
		c.putLocked(sql, msg)
	}
	return msg
}

// put keeps the message of a text.
func (c *cache) put(sql string, msg *Message) {
	if len(sql) > maxCachedText {
		return
	}
	var buffer [maxTemplate]byte
	if key, ok := template(buffer[:0], sql); ok && msg.plain() {
		sql = string(key)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.putLocked(sql, msg)
}

func (c *cache) putLocked(key string, msg *Message) {
	if c.bytes > generationBytes {
		c.young, c.old, c.bytes = nil, c.young, 0
	}
	if c.young == nil {
		c.young = make(map[string]*Message)
	}
	c.young[key] = msg
	c.bytes += len(key) + msg.size()
}

// size is about how much memory the message takes, in bytes.
func (m *Message) size() int {
	n := 256
	for i := range m.Statements {
		st := &m.Statements[i]
		n += 448 + 32*len(st.Settings) + 48*len(st.facts.Executes)
		for k := range st.facts.Effects {
			n += st.facts.Effects[k].size()
		}
		if st.facts.Prepares != "" {
			n += 256 // in prepares
		}
	}
	return n
}

// plain reports whether what is done with the message cannot depend on the value
// of a number in it.
func (m *Message) plain() bool {
	for i := range m.Statements {
		if m.Statements[i].Proxy != nil {
			return false
		}
		switch m.Statements[i].Kind {
		case "SELECT", "INSERT", "UPDATE", "DELETE":
		default:
			return false
		}
	}
	return true
}

// template appends to key the text with each digit of each number as 0, behind
// a zero byte, which no text has, and reports whether all texts with this
// template are the same statements with other numbers.
//
// That is true when every run of digits that it changes is an integer constant,
// the parser's token ICONST. So it changes runs of up to nine digits, which fit
// an integer, between characters that belong to no number, name or parameter. A
// text with a quote, a dollar sign, a backslash, a comment or a byte beyond ASCII
// has no template: there, digits may be part of something else. A run keeps its
// length, so that positions in the text stay right.
func template(key []byte, sql string) (_ []byte, ok bool) {
	if len(sql) >= maxTemplate {
		return nil, false
	}
	key = append(key, 0)
	for i := 0; i < len(sql); i++ {
		c := sql[i]
		switch {
		case c >= 0x80, c == '\'', c == '"', c == '$', c == '\\', c == 0:
			return nil, false
		case (c == '-' || c == '/') && i+1 < len(sql) && (sql[i+1] == '-' || sql[i+1] == '*'):
			return nil, false
		case isDigit(c) && startsNumber(sql, i):
			end := i
			for end < len(sql) && isDigit(sql[end]) {
				end++
			}
			if end-i <= 9 && (end == len(sql) || separates(sql[end])) {
				key = append(key, "000000000"[:end-i]...)
			} else {
				key = append(key, sql[i:end]...)
			}
			i = end - 1
		default:
			key = append(key, c)
		}
	}
	return key, true
}

// startsNumber reports whether the digit at i is the first character of a
// number: behind nothing that a name or a number may end in, nor behind the
// sign of an exponent.
func startsNumber(sql string, i int) bool {
	switch {
	case i == 0:
		return true
	case i > 1 && (sql[i-1] == '+' || sql[i-1] == '-') && sql[i-2]|0x20 == 'e':
		return false
	}
	return separates(sql[i-1])
}

// separates reports whether a character can be part of no number and no name.
func separates(c byte) bool {
	switch c {
	case ' ', '\t', '\n', '\r', '\f', '(', ')', ',', ';', '=', '<', '>', '+', '-', '*', '%':
		return true
	}
	return false
}

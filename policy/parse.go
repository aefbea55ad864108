package policy

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"strings"
	"unicode/utf8"

	pg "github.com/pganalyze/pg_query_go/v6"
	"github.com/pganalyze/pg_query_go/v6/parser"
)

// MaxText is the largest text in bytes that is read at all.
const MaxText = 16 << 20

// parse reads a text with PostgreSQL's grammar and classifies its statements.
// It runs C code whose stack grows with the depth of the text. The caller must
// have bounded the text, or be a process whose crash does no harm.
func parse(sql string) (*Message, *Refusal) {
	seen, refusal := scan(sql)
	if refusal != nil {
		return nil, refusal
	}
	tree, err := parseTree(sql, &seen)
	if err != nil {
		return nil, parseRefusal(sql, err)
	}
	msg := &Message{
		Statements:  make([]Statement, len(tree.Stmts)),
		Fingerprint: hex.EncodeToString(binary.BigEndian.AppendUint64(nil, seen.fingerprint)),
	}
	segments := seen.segments
	characters := characterCounter{sql: sql}
	for i, raw := range tree.Stmts {
		st := &msg.Statements[i]
		var ok bool
		if st.Start, st.End, segments, ok = extent(raw, len(sql), segments); !ok {
			return nil, syntaxRefusal(sql, int(raw.StmtLocation), "pgproxy cannot tell where this statement ends")
		}
		classify(st, unwrap(raw.Stmt))
		for j := range st.facts.Effects {
			characters.place(&st.facts.Effects[j].Pos, st.Start)
			if t := st.facts.Effects[j].Target; t != nil {
				characters.place(&t.Pos, st.Start)
			}
		}
		for j := range st.facts.Executes {
			characters.place(&st.facts.Executes[j].Pos, st.Start)
		}
	}
	msg.seal()
	return msg, nil
}

// parseTree runs the parser. The parser library keeps comments as tokens,
// which makes it stumble where PostgreSQL looks at two tokens at once (NOT /*
// */ IN). Then the comments are blanked in place, as the library's own lexer
// finds them; the scan has refused the one case where it would find others
// than the server.
func parseTree(sql string, seen *scanned) (*pg.ParseResult, error) {
	tree, err := pg.Parse(sql)
	if err != nil && seen.comments {
		if _, ok := errors.AsType[*parser.Error](err); ok {
			return parseBlanked(sql)
		}
	}
	return tree, err
}

func parseBlanked(sql string) (*pg.ParseResult, error) {
	tokens, err := pg.Scan(sql)
	if err != nil {
		return nil, err
	}
	text := []byte(sql)
	for _, t := range tokens.Tokens {
		if t.Token != pg.Token_SQL_COMMENT && t.Token != pg.Token_C_COMMENT {
			continue
		}
		for i := t.Start; i < t.End; i++ {
			text[i] = ' '
		}
	}
	return pg.Parse(string(text))
}

// seal fills in the fields that are derived from the statements.
func (m *Message) seal() {
	m.prepares = m.preparations()
	m.kinds = make([]string, len(m.Statements))
	for i := range m.Statements {
		m.kinds[i] = m.Statements[i].Kind
	}
}

// extent finds the text of a statement: the segments between semicolons that
// lie in the parser's region for it, which begins right behind the last
// statement's semicolon and may hold several where a body is in BEGIN ATOMIC.
func extent(raw *pg.RawStmt, size int, segments []span) (start, end int, rest []span, ok bool) {
	from, to := int(raw.StmtLocation), int(raw.StmtLocation+raw.StmtLen)
	if raw.StmtLen == 0 {
		to = size
	}
	n := 0
	for n < len(segments) && segments[n].end <= to {
		n++
	}
	if n == 0 || segments[0].start < from {
		return 0, 0, nil, false
	}
	return segments[0].start, segments[n-1].end, segments[n:], true
}

// characterCounter turns byte offsets into positions in characters from 1.
// It goes on from the last offset, so that many positions near to each other
// cost one pass.
type characterCounter struct {
	sql          string
	bytes, runes int
}

// place turns *pos from a byte offset, or -1 for start, into characters.
func (c *characterCounter) place(pos *int, start int) {
	if *pos < 0 || *pos > len(c.sql) {
		*pos = start
	}
	if *pos < c.bytes {
		c.runes -= utf8.RuneCountInString(c.sql[*pos:c.bytes])
	} else {
		c.runes += utf8.RuneCountInString(c.sql[c.bytes:*pos])
	}
	c.bytes = *pos
	*pos = c.runes + 1
}

// parseRefusal turns the parser's error into a refusal.
func parseRefusal(sql string, err error) *Refusal {
	perr, ok := errors.AsType[*parser.Error](err)
	if !ok { // the tree is deeper than the protobuf library reads
		return tooComplex(sql, 0, "the statement is nested too deep")
	}
	if strings.HasPrefix(perr.Message, "memory exhausted") || strings.HasPrefix(perr.Message, "stack depth limit") {
		return tooComplex(sql, perr.Cursorpos-1, "the statement is nested too deep")
	}
	r := &Refusal{Code: "42601", Message: perr.Message, Rule: "syntax"}
	if perr.Cursorpos > 0 {
		r.Position = perr.Cursorpos
	}
	if newerGrammar(sql) {
		r.Hint = "pgproxy reads PostgreSQL 17's grammar; syntax that only newer servers have is refused."
	}
	return r
}

// newerWords are the words of the syntax that PostgreSQL 18 and 19 added.
var newerWords = []string{
	"virtual", "enforced", "without overlaps", "period", "returning with", "group by all",
	"graph_table", "property graph", "for portion of", "repack", "do select",
}

// newerGrammar reports whether a text that has a syntax error might be right
// for a server newer than the parser.
func newerGrammar(sql string) bool {
	words := strings.Join(strings.Fields(strings.ToLower(sql)), " ")
	for _, word := range newerWords {
		if strings.Contains(words, word) {
			return true
		}
	}
	return false
}

// syntaxRefusal refuses a text that is not read, at a byte offset.
func syntaxRefusal(sql string, pos int, message string) *Refusal {
	characterCounter := characterCounter{sql: sql}
	characterCounter.place(&pos, 0)
	return &Refusal{Code: "42601", Message: message, Position: pos, Rule: "syntax"}
}

// tooComplex refuses a text for its shape, at a byte offset.
func tooComplex(sql string, pos int, why string) *Refusal {
	r := syntaxRefusal(sql, pos, "statement too complex: "+why)
	r.Code, r.Rule = "54001", "too_complex"
	r.Hint = "Write it with less nesting, or in several statements."
	return r
}

// tooLarge refuses a text for its size.
func tooLarge(why string) *Refusal {
	return &Refusal{
		Code: "54001", Message: "statement too large: " + why, Rule: "too_large",
		Hint: "Send it in several statements.",
	}
}

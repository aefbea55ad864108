package policy

import (
	"iter"
	"strings"
)

// lexeme is a token of a text, or a comment. White space is none. Both the scan
// and the masking take texts apart by lexemes, so that they agree on where a
// literal ends.
type lexeme struct {
	span
	kind lexemeKind
	// divided says of a string constant that a comment stands between its parts.
	divided bool
}

type lexemeKind byte

const (
	lexWord    lexemeKind = iota // keyword or identifier
	lexQuoted                    // "identifier"
	lexString                    // 'text', with any prefix
	lexDollar                    // $$text$$
	lexNumber                    // 1.5e3
	lexParam                     // $1
	lexSign                      // one character of an operator, or punctuation
	lexComment                   // of either form
)

// literal reports whether the token stands for a value.
func (l lexeme) literal() bool {
	return l.kind == lexString || l.kind == lexDollar || l.kind == lexNumber
}

// lexemes splits a text by the rules of PostgreSQL's scan.l, with
// standard_conforming_strings on. It takes any text, in linear time: what is not
// closed goes on to the end.
func lexemes(sql string) iter.Seq[lexeme] {
	return func(yield func(lexeme) bool) {
		for pos := 0; pos < len(sql); {
			if isSpace(sql[pos]) {
				pos++
				continue
			}
			l := lexemeAt(sql, pos)
			if !yield(l) {
				return
			}
			pos = l.end
		}
	}
}

// lexemeAt returns the lexeme that begins at pos, where there is no white space.
func lexemeAt(sql string, pos int) lexeme {
	c, next := sql[pos], byteAt(sql, pos+1)
	switch {
	case isIdentStart(c):
		return wordAt(sql, pos)
	case c == '-' && next == '-':
		return lexeme{span: span{pos, lineEnd(sql, pos)}, kind: lexComment}
	case c == '/' && next == '*':
		return lexeme{span: span{pos, blockEnd(sql, pos, nil)}, kind: lexComment}
	case c == '\'':
		return constantAt(sql, pos, pos+1, false)
	case c == '"':
		return lexeme{span: span{pos, identifierEnd(sql, pos+1)}, kind: lexQuoted}
	case isDigit(c), c == '.' && isDigit(next):
		return lexeme{span: span{pos, numberEnd(sql, pos)}, kind: lexNumber}
	case c == '$':
		end, kind := dollarEnd(sql, pos)
		return lexeme{span: span{pos, end}, kind: kind}
	}
	return lexeme{span: span{pos, pos + 1}, kind: lexSign}
}

// byteAt returns the byte at pos, 0 past the end.
func byteAt(sql string, pos int) byte {
	if pos < len(sql) {
		return sql[pos]
	}
	return 0
}

// wordAt reads a word, or the string or quoted identifier that begins with a
// letter: B, E, N, X, U&.
func wordAt(sql string, pos int) lexeme {
	c, next := sql[pos]|0x20, byteAt(sql, pos+1)
	switch {
	case next == '\'' && (c == 'b' || c == 'x' || c == 'n' || c == 'e'):
		return constantAt(sql, pos, pos+2, c == 'e')
	case next == '&' && c == 'u' && byteAt(sql, pos+2) == '\'':
		return constantAt(sql, pos, pos+3, false)
	case next == '&' && c == 'u' && byteAt(sql, pos+2) == '"':
		return lexeme{span: span{pos, identifierEnd(sql, pos+3)}, kind: lexQuoted}
	}
	end := pos
	for end < len(sql) && isIdentPart(sql[end]) {
		end++
	}
	return lexeme{span: span{pos, end}, kind: lexWord}
}

// constantAt reads the string constant at start, whose inside starts at pos.
func constantAt(sql string, start, pos int, escapes bool) lexeme {
	end, gap := constantEnd(sql, pos, escapes)
	return lexeme{span: span{start, end}, kind: lexString, divided: gap > 0}
}

// constantEnd returns the end of the string constant whose inside starts at pos,
// with the parts that continue it on later lines. gap is the end of the first
// part that a comment divides from the next, 0 for none.
func constantEnd(sql string, pos int, escapes bool) (end, gap int) {
	for {
		end = stringEnd(sql, pos, escapes)
		next, comment := continuation(sql, end)
		if next < 0 {
			return end, gap
		}
		if comment && gap == 0 {
			gap = end
		}
		pos = next + 1
	}
}

// dollarEnd returns the end of what the dollar sign at pos begins.
func dollarEnd(sql string, pos int) (int, lexemeKind) {
	end := pos + 1
	if end < len(sql) && isDigit(sql[end]) {
		for end < len(sql) && isDigit(sql[end]) {
			end++
		}
		return end, lexParam
	}
	for end < len(sql) && isIdentPart(sql[end]) && sql[end] != '$' {
		end++
	}
	if end == len(sql) || sql[end] != '$' {
		return pos + 1, lexSign
	}
	end++
	if n := strings.Index(sql[end:], sql[pos:end]); n >= 0 {
		return end + n + end - pos, lexDollar
	}
	return len(sql), lexDollar
}

// blockEnd returns the end of the block comment at pos, with those nested in it.
// Unless it is nil, opened is called for each of them, with its place and depth.
func blockEnd(sql string, pos int, opened func(pos, depth int)) int {
	for depth := 0; pos < len(sql); {
		switch {
		case strings.HasPrefix(sql[pos:], "/*"):
			depth++
			if opened != nil {
				opened(pos, depth)
			}
			pos += 2
		case strings.HasPrefix(sql[pos:], "*/"):
			pos += 2
			if depth--; depth == 0 {
				return pos
			}
		default:
			pos++
		}
	}
	return len(sql)
}

// stringEnd returns the position behind the closing quote of the string whose
// inside starts at pos, or the end of the text.
func stringEnd(sql string, pos int, escapes bool) int {
	for pos < len(sql) {
		switch {
		case sql[pos] == '\\' && escapes:
			pos += 2
		case sql[pos] != '\'':
			pos++
		case pos+1 < len(sql) && sql[pos+1] == '\'':
			pos += 2
		default:
			return pos + 1
		}
	}
	return len(sql)
}

// continuation finds the quote that continues a string which was closed just
// before pos: the standard joins two constants with a line break between
// them. It returns -1 when there is none, and whether a comment lies between.
func continuation(sql string, pos int) (next int, comment bool) {
	line := false
	for pos < len(sql) {
		switch c := sql[pos]; {
		case isSpace(c):
			line = line || c == '\n' || c == '\r'
			pos++
		case c == '-' && strings.HasPrefix(sql[pos:], "--"):
			comment = true
			pos = lineEnd(sql, pos)
		case c == '\'' && line:
			return pos, comment
		default:
			return -1, false
		}
	}
	return -1, false
}

// identifierEnd returns the position behind the closing double quote.
func identifierEnd(sql string, pos int) int {
	for pos < len(sql) {
		switch {
		case sql[pos] != '"':
			pos++
		case pos+1 < len(sql) && sql[pos+1] == '"':
			pos += 2
		default:
			return pos + 1
		}
	}
	return len(sql)
}

// numberEnd returns the position behind the number at pos, with the letters
// that PostgreSQL calls junk. A dollar sign is none of them: 0$$x$$ is a number
// and a string.
func numberEnd(sql string, pos int) int {
	point := false
	for pos < len(sql) {
		switch c := sql[pos]; {
		case isIdentPart(c) && c != '$':
		case c == '.' && !point && !strings.HasPrefix(sql[pos:], ".."):
			point = true
		case (c == '+' || c == '-') && sql[pos-1]|0x20 == 'e' && pos+1 < len(sql) && isDigit(sql[pos+1]):
		default:
			return pos
		}
		pos++
	}
	return pos
}

// lineEnd returns the position of the line break that ends a comment.
func lineEnd(sql string, pos int) int {
	if n := strings.IndexAny(sql[pos:], "\n\r"); n >= 0 {
		return pos + n
	}
	return len(sql)
}

func isSpace(c byte) bool { return c == ' ' || '\t' <= c && c <= '\r' }

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func isIdentStart(c byte) bool {
	return 'a' <= c|0x20 && c|0x20 <= 'z' || c == '_' || c >= 0x80
}

func isIdentPart(c byte) bool { return isIdentStart(c) || isDigit(c) || c == '$' }

func isOperatorChar(c byte) bool {
	switch c {
	case '~', '!', '@', '#', '^', '&', '|', '`', '?', '+', '-', '*', '/', '%', '<', '>', '=':
		return true
	}
	return false
}

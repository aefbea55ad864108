package policy

import (
	"iter"
	"strings"
)

// lexeme is a token of a text, or a comment, for masking. White space is
// none.
type lexeme struct {
	span
	kind lexemeKind
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

// lexemes splits a text by PostgreSQL's lexical rules. It takes any text, in
// linear time: what is not closed goes on to the end.
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

func lexemeAt(sql string, pos int) lexeme {
	c, rest := sql[pos], sql[pos:]
	at := func(end int, kind lexemeKind) lexeme { return lexeme{span{pos, min(end, len(sql))}, kind} }
	switch {
	case strings.HasPrefix(rest, "--"):
		return at(lineEnd(sql, pos), lexComment)
	case strings.HasPrefix(rest, "/*"):
		return at(blockEnd(sql, pos), lexComment)
	case c == '\'':
		return at(constantEnd(sql, pos+1, false), lexString)
	case c == '"':
		return at(identifierEnd(sql, pos+1), lexQuoted)
	case isIdentStart(c):
		return wordAt(sql, pos)
	case isDigit(c), c == '.' && len(rest) > 1 && isDigit(rest[1]):
		end := numberEnd(sql, pos+1)
		if n := strings.IndexByte(sql[pos:end], '$'); n > 0 {
			end = pos + n // 0$$x$$ is a number and a string
		}
		return at(end, lexNumber)
	case c == '$':
		end, kind := dollarEnd(sql, pos)
		return at(end, kind)
	}
	return at(pos+1, lexSign)
}

// wordAt reads a word, or the string or quoted identifier whose prefix it is.
func wordAt(sql string, pos int) lexeme {
	end := pos
	for end < len(sql) && isIdentPart(sql[end]) {
		end++
	}
	prefix, rest := strings.ToLower(sql[pos:end]), sql[end:]
	switch {
	case strings.HasPrefix(rest, "'") && (prefix == "b" || prefix == "x" || prefix == "n" || prefix == "e"):
		return lexeme{span{pos, constantEnd(sql, end+1, prefix == "e")}, lexString}
	case strings.HasPrefix(rest, "&'") && prefix == "u":
		return lexeme{span{pos, constantEnd(sql, end+2, false)}, lexString}
	case strings.HasPrefix(rest, `&"`) && prefix == "u":
		return lexeme{span{pos, identifierEnd(sql, end+2)}, lexQuoted}
	}
	return lexeme{span{pos, end}, lexWord}
}

// constantEnd returns the end of the string constant whose inside starts at
// pos, with the parts that continue it on later lines.
func constantEnd(sql string, pos int, escapes bool) int {
	for {
		end := min(stringEnd(sql, pos, escapes), len(sql))
		next, _ := continuation(sql, end)
		if next < 0 {
			return end
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

// blockEnd returns the end of the block comment at pos, with those nested in
// it.
func blockEnd(sql string, pos int) int {
	for depth := 0; pos < len(sql); {
		switch {
		case strings.HasPrefix(sql[pos:], "/*"):
			depth++
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

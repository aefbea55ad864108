package policy

import (
	"regexp"
	"strconv"
	"strings"
)

// Escapes of string constants (scan.l): of E'…', and of U&'…' with its usual
// escape character.
var (
	escape        = regexp.MustCompile(`\\(?:x[0-9A-Fa-f]{1,2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|[0-7]{1,3}|(?s:.))`)
	unicodeEscape = regexp.MustCompile(`\\(?:\+[0-9A-Fa-f]{6}|[0-9A-Fa-f]{4}|\\)`)
)

// unescaped is what the inside of an E'…' or U&'…' string says, for looking for
// secrets in it: a code that is no character is left out.
func unescaped(inside string, unicode bool) string {
	if !strings.Contains(inside, `\`) {
		return inside
	}
	if unicode {
		return unicodeEscape.ReplaceAllStringFunc(inside, func(e string) string {
			return character(strings.TrimLeft(e[1:], "+"), 16, e[1:])
		})
	}
	return escape.ReplaceAllStringFunc(inside, func(e string) string {
		switch {
		case len(e) > 2 && strings.ContainsRune("xuU", rune(e[1])):
			return character(e[2:], 16, "")
		case e[1] >= '0' && e[1] <= '7':
			return character(e[1:], 8, "")
		}
		if c, ok := map[byte]string{'n': "\n", 't': "\t", 'r': "\r", 'b': "\b", 'f': "\f"}[e[1]]; ok {
			return c
		}
		return e[1:]
	})
}

// character is the one of a code, and otherwise if it is no code.
func character(code string, base int, otherwise string) string {
	n, err := strconv.ParseInt(code, base, 32)
	if err != nil {
		return otherwise
	}
	return string(rune(n))
}

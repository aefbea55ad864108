package audit

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"regexp"
	"strings"
	"sync"
)

// psqlTSV has the hash of the skeleton of each query that psql is known to ask
// the catalogue by itself, for \d and its family and to complete a word, and
// what it asked it for. TestPsqlsOwn makes it from real psql programs.
//
//go:embed psql.tsv
var psqlTSV []byte

var psqlQueries = sync.OnceValue(func() map[string]bool {
	known := make(map[string]bool)
	for line := range bytes.Lines(psqlTSV) {
		hash, _, _ := bytes.Cut(line, []byte("\t"))
		known[string(hash)] = true
	}
	return known
})

// psqlsOwn reports whether a statement is one that psql makes by itself. It
// must be psql's own text but for the values in it: a statement that only looks
// like one, or does anything else, is not. A person who types the same text
// cannot be told from psql.
func psqlsOwn(sql string) bool {
	return psqlQueries()[skeletonHash(sql)]
}

func skeletonHash(sql string) string {
	sum := sha256.Sum256([]byte(skeleton(sql)))
	return hex.EncodeToString(sum[:16])
}

var valueList = regexp.MustCompile(`\?(?:, ?\?)+`)

// skeleton is a text with each literal as a question mark, lists of them as
// one, and white space as one blank. Comments, and strings in dollar signs, stay
// as they are: psql makes none, so that nothing can hide in what this takes
// for a literal.
func skeleton(sql string) string {
	sql = strings.TrimRight(sql, " \t\r\n;")
	b := make([]byte, 0, len(sql))
	for i := 0; i < len(sql); {
		switch c := sql[i]; {
		case c == '\'':
			escapes := false
			if n := len(b); n > 0 && (b[n-1] == 'E' || b[n-1] == 'e') && (n == 1 || !inWord(b[n-2])) {
				b, escapes = b[:n-1], true
			}
			i = endOfString(sql, i, escapes)
			b = append(b, '?')
		case c >= '0' && c <= '9' && (len(b) == 0 || !inWord(b[len(b)-1])):
			for i < len(sql) && sql[i] >= '0' && sql[i] <= '9' {
				i++
			}
			b = append(b, '?')
		case c == '"':
			end := i + 1
			for end < len(sql) && sql[end] != '"' {
				end++
			}
			end = min(end+1, len(sql))
			b = append(b, sql[i:end]...)
			i = end
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			if len(b) > 0 && b[len(b)-1] != ' ' {
				b = append(b, ' ')
			}
			i++
		default:
			b = append(b, c)
			i++
		}
	}
	return valueList.ReplaceAllString(string(b), "?")
}

// endOfString returns where the string ends that begins at start.
func endOfString(sql string, start int, escapes bool) int {
	for i := start + 1; i < len(sql); i++ {
		switch {
		case sql[i] == '\\' && escapes:
			i++
		case sql[i] == '\'' && i+1 < len(sql) && sql[i+1] == '\'':
			i++
		case sql[i] == '\'':
			return i + 1
		}
	}
	return len(sql)
}

func inWord(c byte) bool {
	return c == '_' || c == '$' || c >= 0x80 || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

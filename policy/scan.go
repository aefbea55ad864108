package policy

import "strings"

// Bounds on what the lexers, PostgreSQL's as well as the parser library's, are
// given. Both are quadratic in two shapes of text, deeply nested comments and
// long runs of operator characters, and neither can be interrupted there.
const (
	// maxCommentDepth is how deep block comments may nest.
	maxCommentDepth = 32
	// maxTokens bounds the parse tree: a token costs the parser up to a
	// kilobyte, a literal of any length counts as one.
	maxTokens = 400_000
	// maxStatements bounds what is kept of a text.
	maxStatements = 10_000
)

// span is a part of a text, in bytes.
type span struct{ start, end int }

// scanned is what one linear pass over a text tells.
type scanned struct {
	// segments are the texts between semicolons that hold a token, from the
	// first byte of the first token to the last byte of the last one.
	segments []span
	// fingerprint is a hash of the tokens with every literal taken as equal.
	fingerprint uint64
	tokens      int
	comments    bool // there are some
}

// scanner splits a text into tokens exactly as PostgreSQL's scan.l does with
// standard_conforming_strings on, but keeps nothing of them. It exists to
// bound the cost of the real lexers before they run, not to judge.
type scanner struct {
	sql string
	pos int
	out scanned

	hash     uint64
	segStart int // start of the segment being read, -1 between segments
	lastEnd  int // end of the last token
	runEnd   int // end of the run of operator characters that pos is in
	cost     int // characters the real lexer looks at, counting each visit
	refusal  *Refusal
}

// scan reads the whole text. It refuses what would cost the real lexers more
// than linear time, what the parser library reads unlike the server, and what
// is larger than the parser may be given.
func scan(sql string) (scanned, *Refusal) {
	s := scanner{sql: sql, segStart: -1, hash: fnvOffset}
	for s.pos < len(sql) && s.refusal == nil {
		s.next()
	}
	s.endSegment()
	if s.refusal != nil {
		return scanned{}, s.refusal
	}
	s.out.fingerprint = s.hash
	return s.out, nil
}

// next reads one token, comment or white space character.
func (s *scanner) next() {
	c := s.sql[s.pos]
	switch {
	case isSpace(c):
		s.pos++
	case c == '-' && s.at(1) == '-':
		s.out.comments = true
		s.pos = lineEnd(s.sql, s.pos)
	case c == '/' && s.at(1) == '*':
		s.out.comments = true
		s.blockComment()
	case c == ';':
		s.pos++
		s.add(";")
		s.count()
		s.endSegment()
	default:
		s.token(c)
	}
}

// token reads one token, whose first byte is c.
func (s *scanner) token(c byte) {
	start := s.pos
	if s.segStart < 0 {
		s.segStart = start
	}
	switch {
	case c == '\'':
		s.quoted(start+1, false)
	case c == '"':
		s.pos = identifierEnd(s.sql, start+1)
		s.add(s.sql[start:s.pos])
	case isIdentStart(c):
		s.word(start)
	case isDigit(c), c == '.' && isDigit(s.at(1)):
		s.pos = numberEnd(s.sql, start)
		s.add("?")
	case c == '$':
		s.dollar(start)
	case isOperatorChar(c):
		s.operator(start)
	default:
		s.pos++
		s.add(s.sql[start:s.pos])
	}
	s.lastEnd = s.pos
	s.count()
}

func (s *scanner) count() {
	if s.out.tokens++; s.out.tokens > maxTokens {
		s.refusal = tooLarge("the text has more than 400000 words, signs and values")
	}
}

// at returns the byte n after the current one, 0 past the end.
func (s *scanner) at(n int) byte {
	if s.pos+n < len(s.sql) {
		return s.sql[s.pos+n]
	}
	return 0
}

func (s *scanner) endSegment() {
	if s.segStart >= 0 {
		s.out.segments = append(s.out.segments, span{s.segStart, s.lastEnd})
		s.segStart = -1
	}
	if len(s.out.segments) > maxStatements {
		s.refusal = tooLarge("the text has more than 10000 statements")
	}
}

// word reads an identifier, a keyword, or a string with a prefix: B, E, N, X,
// U&.
func (s *scanner) word(start int) {
	c, next := s.sql[start]|0x20, s.at(1)
	switch {
	case next == '\'' && (c == 'b' || c == 'x' || c == 'n'):
		s.quoted(start+2, false)
		return
	case next == '\'' && c == 'e':
		s.quoted(start+2, true)
		return
	case c == 'u' && next == '&' && s.at(2) == '\'':
		s.quoted(start+3, false)
		return
	case c == 'u' && next == '&' && s.at(2) == '"':
		s.pos = identifierEnd(s.sql, start+3)
		s.add(s.sql[start:s.pos])
		return
	}
	for s.pos < len(s.sql) && isIdentPart(s.sql[s.pos]) {
		s.pos++
	}
	s.add(s.sql[start:s.pos])
}

// quoted reads a string literal from behind its opening quote, with the parts
// that continue it on later lines.
func (s *scanner) quoted(pos int, escapes bool) {
	s.add("?")
	for {
		pos = stringEnd(s.sql, pos, escapes)
		next, comment := continuation(s.sql, pos)
		if next < 0 {
			s.pos = pos
			return
		}
		if comment {
			s.refusal = syntaxRefusal(s.sql, pos, "pgproxy cannot read a comment between the parts of one string constant")
			s.refusal.Hint = "Write the string as one constant, or join the parts with ||."
			return
		}
		pos = next + 1
	}
}

// dollar reads a dollar-quoted string, a parameter ($1), or a lone sign.
func (s *scanner) dollar(start int) {
	end := start + 1
	if isDigit(s.at(1)) {
		for end < len(s.sql) && isDigit(s.sql[end]) {
			end++
		}
		s.pos = end
		s.add("$?")
		return
	}
	for end < len(s.sql) && (isIdentStart(s.sql[end]) || end > start+1 && isDigit(s.sql[end])) {
		end++
	}
	if end >= len(s.sql) || s.sql[end] != '$' {
		s.pos = start + 1
		s.add("$")
		return
	}
	delimiter := s.sql[start : end+1]
	s.add("?")
	if n := strings.Index(s.sql[end+1:], delimiter); n >= 0 {
		s.pos = end + 1 + n + len(delimiter)
	} else {
		s.pos = len(s.sql)
	}
}

// operator reads one operator. PostgreSQL matches the whole run of operator
// characters, then gives back what does not belong to it, which is where the
// quadratic time comes from.
func (s *scanner) operator(start int) {
	n := s.run(start) - start
	text := s.sql[start : start+n]
	s.charge(n)
	if i := strings.Index(text, "/*"); i > 0 {
		text = text[:i]
	}
	if i := strings.Index(text, "--"); i > 0 {
		text = text[:i]
	}
	if !strings.ContainsAny(text[:len(text)-1], "~!@#^&|`?%") {
		for len(text) > 1 && (text[len(text)-1] == '+' || text[len(text)-1] == '-') {
			text = text[:len(text)-1]
		}
	}
	s.pos = start + len(text)
	s.add(text)
}

// blockComment reads a block comment with those nested in it, to the end of
// the text if it has none.
func (s *scanner) blockComment() {
	start, depth := s.pos, 0
	for s.pos < len(s.sql) {
		switch {
		case s.sql[s.pos] == '/' && s.at(1) == '*':
			s.charge(s.run(s.pos) - s.pos)
			s.pos += 2
			if depth++; depth > maxCommentDepth {
				s.refusal = tooComplex(s.sql, start, "comments are nested more than 32 deep")
			}
		case s.sql[s.pos] == '*' && s.at(1) == '/':
			s.pos += 2
			depth--
		default:
			s.pos++
		}
		if depth == 0 || s.refusal != nil {
			return
		}
	}
}

// run returns the end of the run of operator characters at pos. It looks at
// each character once, however often it is asked.
func (s *scanner) run(pos int) int {
	if pos < s.runEnd {
		return s.runEnd
	}
	end := pos
	for end < len(s.sql) && isOperatorChar(s.sql[end]) {
		end++
	}
	s.runEnd = end
	return end
}

// charge counts n characters looked at, and refuses when the sum is out of
// proportion to the text.
func (s *scanner) charge(n int) {
	s.cost += n
	if s.cost > 2*len(s.sql)+1<<20 {
		s.refusal = tooComplex(s.sql, s.pos, "a run of operator characters is too long")
	}
}

// The fingerprint is FNV-1a over the tokens.
const (
	fnvOffset = 14695981039346656037
	fnvPrime  = 1099511628211
)

// add puts one token into the fingerprint, its letters in lower case.
func (s *scanner) add(token string) {
	h := s.hash
	for i := range len(token) {
		c := token[i]
		if 'A' <= c && c <= 'Z' && token[0] != '"' {
			c |= 0x20
		}
		h = (h ^ uint64(c)) * fnvPrime
	}
	s.hash = (h ^ ' ') * fnvPrime
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
// that PostgreSQL calls junk.
func numberEnd(sql string, pos int) int {
	point := false
	for pos < len(sql) {
		switch c := sql[pos]; {
		case isIdentPart(c):
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

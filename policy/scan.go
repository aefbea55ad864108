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

// scanner goes once over the lexemes of a text and keeps nothing of them. It
// exists to bound the cost of the real lexers before they run, not to judge.
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
	if isSpace(s.sql[s.pos]) {
		s.pos++
		return
	}
	l := lexemeAt(s.sql, s.pos)
	switch {
	case l.kind == lexComment:
		s.comment(l)
	case s.sql[s.pos] == ';':
		s.add(";")
		s.count()
		s.endSegment()
	default:
		l.end = s.token(l)
	}
	s.pos = l.end
}

// token reads one token and returns its end. It goes beyond l for an operator,
// whose characters are a lexeme each.
func (s *scanner) token(l lexeme) (end int) {
	if s.segStart < 0 {
		s.segStart = l.start
	}
	end = l.end
	switch l.kind {
	case lexString:
		s.add("?")
		if l.divided {
			s.refusal = refuseDivided(s.sql, l)
		}
	case lexDollar, lexNumber:
		s.add("?")
	case lexParam:
		s.add("$?")
	case lexSign:
		if isOperatorChar(s.sql[l.start]) {
			end = s.operator(l.start)
		}
		s.add(s.sql[l.start:end])
	default:
		s.add(s.sql[l.start:l.end])
	}
	s.lastEnd = end
	s.count()
	return end
}

// refuseDivided refuses a string constant with a comment between its parts: the
// parser library ends it there, and the server does not.
func refuseDivided(sql string, l lexeme) *Refusal {
	inside := l.start + strings.IndexByte(sql[l.start:l.end], '\'') + 1
	_, gap := constantEnd(sql, inside, sql[l.start]|0x20 == 'e')
	r := syntaxRefusal(sql, gap, "pgproxy cannot read a comment between the parts of one string constant")
	r.Hint = "Write the string as one constant, or join the parts with ||."
	return r
}

func (s *scanner) count() {
	if s.out.tokens++; s.out.tokens > maxTokens {
		s.refusal = tooLarge("the text has more than 400000 words, signs and values")
	}
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

// operator returns the end of the operator at start. PostgreSQL matches the
// whole run of operator characters, then gives back what does not belong to it,
// which is where the quadratic time comes from.
func (s *scanner) operator(start int) (end int) {
	n := s.run(start) - start
	text := s.sql[start : start+n]
	s.charge(start, n)
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
	return start + len(text)
}

// comment charges for a block comment, and bounds how deep others nest in it. A
// comment that goes to the end of the line costs nothing more.
func (s *scanner) comment(l lexeme) {
	s.out.comments = true
	if s.sql[l.start] == '-' {
		return
	}
	blockEnd(s.sql[:l.end], l.start, func(pos, depth int) {
		if s.refusal != nil {
			return
		}
		s.charge(pos, s.run(pos)-pos)
		if depth > maxCommentDepth {
			s.refusal = tooComplex(s.sql, l.start, "comments are nested more than 32 deep")
		}
	})
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

// charge counts n characters looked at from pos on, and refuses when the sum is
// out of proportion to the text.
func (s *scanner) charge(pos, n int) {
	s.cost += n
	if s.cost > 2*len(s.sql)+1<<20 {
		s.refusal = tooComplex(s.sql, pos, "a run of operator characters is too long")
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

package policy

import (
	"slices"
	"strings"
)

// Where a secret may be in a statement. The masker looks for names that
// say so, and masks the value that goes with the name; where it can't tell
// which value that is, it masks every literal of the statement. It masks too much
// rather than too little.
//
// It reads tokens and not the parse tree. The tree says where the values of
// options and constants begin, but comments, the bodies of functions and
// passwords in the wrong quotes are not in it as values. Texts that cannot be
// parsed need the tokens anyway, and a second way beside them could disagree.

// masker finds the secrets of one text.
type masker struct {
	sql    string
	base   int      // where the text begins in the whole
	depth  int      // bodies around the text
	toks   []lexeme // without comments
	masked []bool   // by token
	inner  []span   // inside of tokens, in the whole
	others []span   // comments, in the whole
	work   int      // tokens looked at, counting each visit
}

// maxWork bounds how often a token is looked at, on average. In a text that needs
// more, all literals are masked.
const maxWork = 40

// maxBodyDepth is how deep bodies in bodies are read; what is deeper is
// masked.
const maxBodyDepth = 4

// secrets returns the parts of a text that hold secrets, in order. The text is
// one that the parser has read.
func secrets(sql string) []span {
	if !hinted(sql) {
		return nil
	}
	return secretsIn(sql, 0, 0)
}

// secretsIn is secrets for a text that begins at base in the whole, so many
// bodies deep.
func secretsIn(sql string, base, depth int) []span {
	m := newMasker(sql, base)
	m.depth = depth
	m.mask()
	return m.spans()
}

func newMasker(sql string, base int) *masker {
	m := &masker{sql: sql, base: base}
	for l := range lexemes(sql) {
		switch {
		case l.kind != lexComment:
			m.toks = append(m.toks, l)
		case hinted(sql[l.start:l.end]):
			m.others = append(m.others, m.whole(l.span))
		}
	}
	m.masked = make([]bool, len(m.toks))
	return m
}

// mask marks what is secret, statement by statement.
func (m *masker) mask() {
	for begin := 0; begin < len(m.toks); {
		end := begin
		for end < len(m.toks) && m.text(end) != ";" {
			end++
		}
		statement{m, begin, end}.mask()
		begin = end + 1
	}
	if m.overBudget() {
		statement{m, 0, len(m.toks)}.all(0, len(m.toks))
	}
}

// overBudget reports whether too many tokens were looked at.
func (m *masker) overBudget() bool { return m.work > maxWork*(len(m.toks)+100) }

func (m *masker) whole(s span) span { return span{m.base + s.start, m.base + s.end} }

// spans is the result: all that is masked, in order.
func (m *masker) spans() []span {
	list := slices.Concat(m.others, m.inner)
	for i, masked := range m.masked {
		if masked {
			list = append(list, m.whole(m.toks[i].span))
		}
	}
	return mergeSpans(list)
}

// text is a token as it stands, in lower case; for a name without its quotes.
func (m *masker) text(i int) string {
	if i < 0 || i >= len(m.toks) {
		return ""
	}
	m.work++
	t := m.toks[i]
	s := m.sql[t.start:t.end]
	if t.kind == lexQuoted {
		s = strings.TrimSuffix(s[strings.IndexByte(s, '"')+1:], `"`)
	}
	return strings.ToLower(s)
}

func (m *masker) isName(i int) bool {
	return i >= 0 && i < len(m.toks) && (m.toks[i].kind == lexWord || m.toks[i].kind == lexQuoted)
}

func (m *masker) isLiteral(i int) bool { return i >= 0 && i < len(m.toks) && m.toks[i].literal() }

// statement is the tokens of one statement, without its semicolon.
type statement struct {
	*masker
	begin, end int
}

// mask marks what is secret in the statement.
func (s statement) mask() {
	if s.text(s.begin+1) == "user" && s.text(s.begin+2) == "mapping" {
		s.all(s.begin, s.end)
		return
	}
	for i := s.begin; i < s.end && !s.overBudget(); i++ {
		switch s.toks[i].kind {
		case lexQuoted:
			s.masked[i] = s.masked[i] || judgeText(s.text(i)) == carriesSecret
			s.name(i)
		case lexWord:
			s.name(i)
		case lexString:
			s.content(i)
		case lexDollar:
			s.body(i)
		}
	}
}

// all marks every literal from one token up to another.
func (s statement) all(from, to int) {
	s.work += to - from
	for i := from; i < min(to, s.end); i++ {
		s.masked[i] = s.masked[i] || s.isLiteral(i)
	}
}

// content judges a string by what is in it.
func (s statement) content(i int) {
	found := judgeText(s.inside(i))
	switch text := s.sql[s.toks[i].start:s.toks[i].end]; {
	case text[0]|0x20 == 'e':
		found = max(found, judgeText(unescaped(s.inside(i), false)))
	case text[0]|0x20 == 'u':
		found = max(found, judgeText(unescaped(s.inside(i), true)))
		if s.text(i+1) == "uescape" { // with another escape character
			found = carriesSecret
		}
	}
	switch found {
	case carriesSecret:
		s.masked[i] = true
	case announcesSecret:
		if s.text(i-1) != "(" || s.text(i-2) != "set_config" { // setConfig masks its value
			s.all(s.begin, s.end)
		}
	}
}

// inside is what a string says, with its escapes.
func (s statement) inside(i int) string {
	text := s.sql[s.toks[i].start:s.toks[i].end]
	return strings.Trim(text[strings.IndexByte(text, '\'')+1:], "'")
}

// setConfig masks set_config's value if its name, right behind the
// parenthesis at open, is that of a secret or no constant.
func (s statement) setConfig(open int) {
	switch {
	case s.isName(open + 1), s.text(open+2) != ",", s.toks[open+1].kind != lexString:
		s.all(open, s.closing(open))
	case secretName(strings.ToLower(s.inside(open + 1))):
		s.all(open+2, s.closing(open))
	}
}

// body judges a dollar-quoted string: as a program if it can be one.
func (s statement) body(i int) {
	if first := s.text(s.begin); first != "do" && first != "create" {
		s.content(i)
		return
	}
	text := s.sql[s.toks[i].start:s.toks[i].end]
	delimiter := strings.IndexByte(text[1:], '$') + 2
	if len(text) < 2*delimiter || s.depth == maxBodyDepth {
		s.masked[i] = true
		return
	}
	from := s.base + s.toks[i].start + delimiter
	s.inner = append(s.inner, secretsIn(text[delimiter:len(text)-delimiter], from, s.depth+1)...)
}

// name judges a name and what follows it.
func (s statement) name(i int) {
	name, next := s.text(i), s.text(i+1)
	switch {
	case (name == "connection" || name == "program") && s.isLiteral(i+1):
		s.masked[i+1] = true
	case name == "set_config" && next == "(":
		s.setConfig(i + 1)
	case next == "(" && secretCall(name):
		s.all(i+1, s.closing(i+1))
	case secretName(name):
		s.value(i)
	}
}

// value marks the value that goes with the secret name at i.
func (s statement) value(i int) {
	if s.isLiteral(i + 1) {
		s.masked[i+1] = true // PASSWORD 'x', OPTIONS (password 'x')
		return
	}
	s.reversed(i)
	next := i + 1
	for s.text(next) == ")" || s.text(next) == "]" || s.text(next) == "." || s.text(next) == "*" || s.cast(next) {
		next++
	}
	switch {
	case s.text(s.begin) == "set",
		s.text(next) == "to" && s.afterSet(i),
		s.text(next) == "=" && s.utility():
		s.setting(next)
	case s.comparison(next):
		s.operand(next)
	case s.text(i-1) == "as", s.columnList(i), s.utility() && s.text(next) != "null":
		s.all(s.begin, s.end)
	}
}

// cast reports whether the token is a part of a cast: ::text.
func (s statement) cast(i int) bool {
	return s.text(i) == ":" && s.text(i+1) == ":" ||
		s.text(i) == ":" && s.text(i-1) == ":" ||
		s.isName(i) && s.text(i-1) == ":" && s.text(i-2) == ":"
}

// utility reports whether the statement is of the kinds whose values are
// options and settings, and not data.
func (s statement) utility() bool {
	switch s.text(s.begin) {
	case "alter", "create", "comment", "security", "import", "copy", "grant", "revoke":
		return true
	}
	return false
}

// afterSet reports whether the name, with its qualifiers, stands behind SET.
func (s statement) afterSet(i int) bool {
	for s.text(i-1) == "." {
		i -= 2
	}
	switch s.text(i - 1) {
	case "set", "session", "local":
		return true
	}
	return false
}

// setting marks all that follows, names as well, for SET app.password = x.
func (s statement) setting(from int) {
	for i := from; i < s.end; i++ {
		word := s.text(i)
		if s.toks[i].kind != lexSign && word != "to" && word != "default" && word != "null" {
			s.masked[i] = true
		}
	}
}

// comparisonWords are operators that are words.
var comparisonWords = []string{"like", "ilike", "in", "is", "not", "similar", "between", "any", "all", "some", "operator"}

// comparison reports whether the token is an operator.
func (s statement) comparison(i int) bool {
	if i >= s.end {
		return false
	}
	t := s.toks[i]
	if t.kind == lexSign {
		return strings.IndexByte("=<>!~@#%^&|?:+-*/", s.sql[t.start]) >= 0
	}
	return slices.Contains(comparisonWords, s.text(i))
}

// operandEnds are the words behind an operand, at its own depth.
var operandEnds = []string{
	"and", "or", "where", "from", "returning", "order", "group", "limit", "having", "union",
	"when", "then", "else", "end", "on", "set", "as",
}

// operand marks the literals of the expression that an operator at from joins
// to a secret name.
func (s statement) operand(from int) {
	depth, between := 0, s.text(from) == "between" || s.text(from+1) == "between"
	for i := from; i < s.end; i++ {
		switch text := s.text(i); {
		case text == "(" || text == "[":
			depth++
		case (text == ")" || text == "]" || text == ",") && depth == 0:
			return
		case text == ")" || text == "]":
			depth--
		case depth == 0 && s.toks[i].kind == lexWord && slices.Contains(operandEnds, text) && !(between && text == "and"):
			return
		case s.isLiteral(i):
			s.masked[i] = true
		case s.toks[i].kind == lexQuoted && s.text(i-1) != "." && !s.joins(i+1):
			s.masked[i] = true // a password in the wrong quotes
		}
	}
}

// reversed marks the literal in 'x' = password.
func (s statement) reversed(i int) {
	for i > s.begin && (s.joins(i-1) || s.isName(i-1) && s.joins(i)) {
		i--
	}
	op := i - 1
	for op > s.begin && s.comparison(op) {
		op--
	}
	if op < i-1 && op >= s.begin && s.isLiteral(op) {
		s.masked[op] = true
	}
}

// joins reports whether the token stands between a qualifier or a function and
// a name.
func (s statement) joins(i int) bool { return s.text(i) == "." || s.text(i) == "(" }

// columnList reports whether the name is in a list of names in parentheses, as
// INSERT has it: the values are elsewhere, in the same order.
func (s statement) columnList(i int) bool {
	open := i
	for open > s.begin && (s.isName(open) || s.text(open) == "," || s.text(open) == ".") {
		if s.isName(open) && s.isName(open-1) {
			return false
		}
		open--
	}
	return s.text(open) == "(" && s.listEnd(i)
}

// listEnd reports whether nothing but names follows up to the parenthesis.
func (s statement) listEnd(i int) bool {
	for ; i < s.end; i++ {
		switch {
		case s.text(i) == ")":
			return true
		case !s.isName(i) && s.text(i) != "," && s.text(i) != ".", s.isName(i) && s.isName(i+1):
			return false
		}
	}
	return false
}

// closing returns the token behind the parenthesis that closes the one at i.
func (s statement) closing(i int) int {
	depth := 0
	for ; i < s.end; i++ {
		switch s.text(i) {
		case "(":
			depth++
		case ")":
			if depth--; depth == 0 {
				return i + 1
			}
		}
	}
	return s.end
}

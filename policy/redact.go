package policy

import (
	"cmp"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"unicode/utf8"
)

// Redaction says how much of a statement's literals a record keeps.
type Redaction int

const (
	// Redacted masks passwords, keys and connection strings. What cannot be
	// parsed loses every literal, and whatever else might be secret.
	Redacted Redaction = iota
	// Normalized masks every literal and drops comments.
	Normalized
	// Full masks nothing in statements.
	Full
)

// ParseRedaction reads the name of a Redaction: full, redacted or normalized.
func ParseRedaction(name string) (Redaction, error) {
	switch name {
	case "redacted":
		return Redacted, nil
	case "normalized":
		return Normalized, nil
	case "full":
		return Full, nil
	}
	return 0, errors.New("not full, redacted or normalized")
}

// marks take the place of what is masked: of a value and of a comment.
var marks = map[Redaction]struct{ value, comment string }{
	Redacted:   {"'[masked]'", "/* [masked] */"},
	Normalized: {"?", " "},
}

// Redact returns a message's text as it may be recorded and shown, and
// whether anything in it was masked. The message is what Judge.Parse made of
// the text, nil if it could not be read. Then more is masked, since the text may
// hold anything. Redact does not call the parser.
//
// It knows nothing of what the session has prepared: see Redactor.
func Redact(how Redaction, sql string, msg *Message) (text string, masked bool) {
	return redact(how, sql, msg, false)
}

// redact is Redact. With arguments it masks what EXECUTE is given, too.
func redact(how Redaction, sql string, msg *Message, arguments bool) (text string, masked bool) {
	switch {
	case how == Full:
		return sql, false
	case msg == nil && (how == Normalized || mayHoldSecret(sql)):
		return maskWhole(sql)
	case msg == nil:
		return maskSpans(how, sql, values(sql))
	case how == Normalized:
		// A password may stand there as a name: SET app.password = x.
		return maskSpans(how, sql, mergeSpans(append(values(sql), secrets(sql)...)))
	}
	spans := secrets(sql)
	if arguments {
		spans = mergeSpans(append(spans, executeArguments(sql)...))
	}
	return maskSpans(how, sql, spans)
}

// RedactHead is Redact for a text that could not be read, and that nobody will
// ever see more of than n bytes. What it masks depends on all of the text.
func RedactHead(how Redaction, sql string, n int) (head string, masked bool) {
	if len(sql) <= n {
		return Redact(how, sql, nil)
	}
	if how == Normalized || how == Redacted && mayHoldSecret(sql) {
		return maskWhole(sql)
	}
	for n > 0 && !utf8.RuneStart(sql[n]) {
		n--
	}
	return Redact(how, strings.Clone(sql[:n]), nil)
}

// Redactor masks the statements of one session. It remembers which prepared
// statements have parameters that may be secret, and masks what EXECUTE gives
// them: the text of the EXECUTE itself does not show it. The zero value is ready.
// It is not safe for concurrent use.
type Redactor struct {
	// secret has the names that were prepared, and whether the text of one of
	// their PREPAREs speaks of secrets.
	secret map[string]bool
}

// Redact is Redact for the session's next message.
func (r *Redactor) Redact(how Redaction, sql string, msg *Message) (text string, masked bool) {
	return redact(how, sql, msg, msg != nil && r.secretArguments(sql, msg))
}

// secretArguments learns from a message's PREPAREs, and reports whether its
// EXECUTEs may have secret arguments. A name that was never prepared may have
// been written wrongly, and counts as secret.
func (r *Redactor) secretArguments(sql string, msg *Message) bool {
	secret := false
	for i := range msg.Statements {
		f := &msg.Statements[i].facts
		if f.Prepares != "" {
			r.learn(f.Prepares, hinted(sql))
		}
		for _, e := range f.Executes {
			known, ok := r.secret[e.Name]
			secret = secret || known || !ok
		}
	}
	return secret
}

// learn remembers a name for good: a PREPARE of the same name may fail and leave
// the older one in place. Names beyond maxPrepared stay unknown.
func (r *Redactor) learn(name string, secret bool) {
	if r.secret == nil {
		r.secret = make(map[string]bool)
	}
	if known, ok := r.secret[name]; ok || len(r.secret) < maxPrepared {
		r.secret[name] = known || secret
	}
}

// executeArguments are the literals behind EXECUTE, up to the end of the
// statement.
func executeArguments(sql string) []span {
	var spans []span
	inside := false
	for l := range lexemes(sql) {
		switch {
		case l.kind == lexWord && strings.EqualFold(sql[l.start:l.end], "execute"):
			inside = true
		case sql[l.start] == ';':
			inside = false
		case inside && l.literal():
			spans = append(spans, l.span)
		}
	}
	return spans
}

// maxUnread is how much is looked at of a text that could not be read, in bytes,
// to tell whether it is like another one.
const maxUnread = 64 << 10

// Fingerprint is the same for texts that differ in values, spacing, case and
// comments only, also for what could not be parsed. A password counts as a
// value even where it stands as a bare word, or the fingerprint would let one
// guess it; where it cannot be told apart, all texts have the same one. The
// arguments are as in Redact.
func Fingerprint(sql string, msg *Message) string {
	text := ""
	switch {
	case msg != nil && !hinted(sql):
		return msg.Fingerprint
	case msg != nil:
		text, _ = Redact(Normalized, sql, msg)
	case !mayHoldSecret(sql):
		sql = sql[:min(len(sql), maxUnread)]
		text, _ = maskSpans(Normalized, sql, values(sql))
	}
	sum := fnv.New64a()
	for l := range lexemes(text) {
		token := text[l.start:l.end]
		if l.kind == lexWord {
			token = strings.ToLower(token)
		}
		sum.Write([]byte(token))
		sum.Write([]byte{' '})
	}
	return fmt.Sprintf("%016x", sum.Sum64())
}

// maskWhole keeps nothing but the length. It keeps no hash, by which a guess of
// the text could be checked.
func maskWhole(sql string) (string, bool) {
	if strings.TrimSpace(sql) == "" {
		return sql, false
	}
	return fmt.Sprintf("[masked: %d bytes that cannot be read as SQL]", len(sql)), true
}

// mayHoldSecret reports whether a text that cannot be parsed speaks of
// secrets, or begins as the statements do that set them. Then even its words
// can't be kept: the quotes around the password may be what is missing.
func mayHoldSecret(sql string) bool {
	if hinted(sql) {
		return true
	}
	for l := range lexemes(sql) {
		if l.kind == lexWord {
			switch strings.ToLower(sql[l.start:l.end]) {
			case "alter", "create", "set", "do", "copy":
				return true
			}
			return false
		}
	}
	return false
}

// values are the literals and comments of a text.
func values(sql string) []span {
	var spans []span
	for l := range lexemes(sql) {
		if l.literal() || l.kind == lexComment {
			spans = append(spans, l.span)
		}
	}
	return spans
}

// mergeSpans sorts spans and drops those inside of others. Two that overlap
// in part do not occur: each is a token, or inside of one.
func mergeSpans(list []span) []span {
	slices.SortFunc(list, func(a, b span) int {
		return cmp.Or(a.start-b.start, b.end-a.end)
	})
	var merged []span
	end := 0
	for _, s := range list {
		if s.end > end {
			merged = append(merged, s)
			end = s.end
		}
	}
	return merged
}

// maskSpans puts marks in the place of spans, which are in order.
func maskSpans(how Redaction, sql string, spans []span) (string, bool) {
	if len(spans) == 0 {
		return sql, false
	}
	var b strings.Builder
	end := 0
	for _, s := range spans {
		b.WriteString(sql[end:s.start])
		if c := sql[s.start:]; strings.HasPrefix(c, "--") || strings.HasPrefix(c, "/*") {
			b.WriteString(marks[how].comment)
		} else {
			b.WriteString(marks[how].value)
		}
		end = s.end
	}
	b.WriteString(sql[end:])
	return b.String(), true
}

// maxErrorText is how much of an error text is kept, in bytes.
const maxErrorText = 8 << 10

// RedactError returns an error text of the server or the parser as it may be
// recorded beside its statement: it may quote what the record shows of the statement
// anyway, and names from the catalogue, but no row and nothing that was
// masked. The code is the error's SQLSTATE; sql is the statement, and recorded
// what Redact made of it. With Full it masks no more than RedactText.
func RedactError(how Redaction, code, text, sql, recorded string) string {
	if how == Full {
		return RedactText(text)
	}
	if len(text) > maxErrorText {
		text = strings.ToValidUTF8(text[:maxErrorText], "") + "…"
	}
	text = maskRows(code, text)
	text = maskQuotes(text, func(quoted string, named bool) bool {
		return strings.Contains(recorded, quoted) || named && !strings.Contains(sql, quoted)
	})
	return RedactText(maskKnown(text, sql, recorded))
}

// maskRows masks rows and keys, which integrity errors show in parentheses:
// Key (id)=(7) already exists. Failing row contains (7, x).
func maskRows(code, text string) string {
	if !strings.HasPrefix(code, "23") {
		return text
	}
	open, shut := strings.Index(text, ")=("), strings.LastIndexByte(text, ')')
	if open >= 0 {
		open += len(")=(")
	} else {
		open = strings.IndexByte(text, '(') + 1
	}
	if open <= 0 || shut < open {
		return text
	}
	return text[:open] + secretMark + text[shut:]
}

// nouns stand before the quoted name of something in the catalogue.
var nouns = map[string]bool{
	"relation": true, "table": true, "column": true, "constraint": true, "index": true,
	"schema": true, "function": true, "role": true, "database": true, "type": true, "view": true,
	"sequence": true, "trigger": true, "parameter": true, "cursor": true, "extension": true,
	"user": true, "host": true, "policy": true, "partition": true, "server": true, "subscription": true, "publication": true,
}

// maxQuotes is how many quotation marks a text may have.
const maxQuotes = 40

// maskQuotes masks each quoted part of a text, unless keep says otherwise of
// it. Named tells keep that a noun of the catalogue stands before it.
func maskQuotes(text string, keep func(quoted string, named bool) bool) string {
	// A value at the end may have quotes in it:
	// invalid input syntax for type integer: "{"a": "b"}"
	if i := strings.Index(text, `: "`) + len(`: `); i > len(`: `) && strings.HasSuffix(text, `"`) && strings.Count(text[i:], `"`) > 2 {
		value := text[i+1 : len(text)-1]
		if !keep(value, false) {
			value = secretMark
		}
		return maskQuotes(text[:i], keep) + `"` + value + `"`
	}
	// With quotes inside of quotes, or one missing, the quoted parts cannot be
	// told apart. With many, looking for each in a long statement takes too long.
	if n := strings.Count(text, `"`); n%2 == 1 || n > maxQuotes || strings.Contains(text, `""`) {
		from, to := strings.IndexByte(text, '"'), strings.LastIndexByte(text, '"')
		if from == to {
			return text[:from+1] + secretMark
		}
		return text[:from+1] + secretMark + text[to:]
	}
	var b strings.Builder
	for {
		from := strings.IndexByte(text, '"')
		if from < 0 {
			b.WriteString(text)
			return b.String()
		}
		size := strings.IndexByte(text[from+1:], '"')
		before, quoted := text[:from], text[from+1:from+1+size]
		words := strings.Fields(before)
		named := len(words) > 0 && nouns[words[len(words)-1]]
		if !keep(quoted, named) {
			quoted = secretMark
		}
		b.WriteString(before)
		b.WriteString(`"` + quoted + `"`)
		text = text[from+size+2:]
	}
}

const (
	// minKnown is the length from which a masked value is looked for in error
	// texts; a shorter one would be found in any word.
	minKnown = 3
	// maxNeedle is how much of a value is looked for. Where a text repeats the
	// beginning of a longer one it may have been cut, and nothing is kept from
	// there on.
	maxNeedle = 64
	// maxKnown is how many values are found in a text. With more, nothing is
	// kept of it.
	maxKnown = 100
	// maxKnownTokens is how many tokens are looked at for them. No statement
	// that was read has more.
	maxKnownTokens = 2 * maxTokens
)

// maskKnown masks the values that were masked in the statement, wherever the
// text repeats them. The text is short and the statement may be long: it is
// gone through once.
func maskKnown(text, sql, recorded string) string {
	if recorded == sql {
		return text
	}
	found := make(map[string]bool)
	var known []string
	tokens := 0
	for l := range lexemes(sql) {
		if tokens++; tokens > maxKnownTokens {
			break
		}
		if l.kind != lexString && l.kind != lexDollar {
			continue
		}
		value := strings.Trim(sql[l.start:l.end], "'$")
		needle := value[:min(len(value), maxNeedle)]
		if len(value) < minKnown || found[needle] || !strings.Contains(text, needle) {
			continue
		}
		if len(found) == maxKnown {
			return secretMark
		}
		found[needle] = true
		switch {
		case strings.Contains(recorded, needle):
		case len(value) > maxNeedle:
			text = text[:strings.Index(text, needle)] + secretMark
		default:
			known = append(known, needle, secretMark)
		}
	}
	return strings.NewReplacer(known...).Replace(text)
}

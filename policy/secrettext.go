package policy

import (
	"regexp"
	"strings"
	"unicode/utf8"
)

// finding is what a text says of secrets.
type finding int

const (
	// nothingSecret is said.
	nothingSecret finding = iota
	// announcesSecret: the text is a secret's name, or a piece of a statement
	// or connection string that ends where the secret begins.
	announcesSecret
	// carriesSecret: the secret is in it.
	carriesSecret
)

// judgeText looks for secrets in what a string says: SQL, JSON, YAML, a
// connection string, a URL, a key. It takes linear time.
func judgeText(text string) finding {
	found, _ := findSecret(text)
	return found
}

// maxLooks bounds the names of secrets that are looked at in one text. The rest of
// a text with more is taken for a secret, so that the time stays bounded.
const maxLooks = 10_000

// findSecret is judgeText, and tells where the first secret begins that the
// text carries.
func findSecret(text string) (found finding, at int) {
	for pos, looks := 0, 0; looks < maxLooks; looks++ {
		var hint string
		if pos, hint = nextName(text, pos); pos < 0 {
			return found, len(text)
		}
		f, at, next := judgeHint(text, pos, hint)
		if f == carriesSecret {
			return f, at
		}
		found, pos = max(found, f), next
	}
	return carriesSecret, 0
}

// nextName is nextHint without the hints in words that are not the names of
// secrets. Each word is looked at once, however many hints it has.
func nextName(text string, pos int) (int, string) {
	for {
		var hint string
		if pos, hint = nextHint(text, pos); pos < 0 || forms[hint] != nil {
			return pos, hint
		}
		begin, end := wordAround(text, pos)
		if secretName(strings.ToLower(text[begin:end])) {
			return pos, hint
		}
		pos = end
	}
}

// judgeHint looks at the surroundings of a hint that nextName has found. At is
// where the secret begins, if there is one; next is where to go on looking.
func judgeHint(text string, pos int, hint string) (found finding, at, next int) {
	if form := forms[hint]; form != nil {
		next = pos + len(hint)
		found, at = form(text, pos, next)
		return found, at, next
	}
	begin, next := wordAround(text, pos)
	found, at = judgeTail(text, begin, next)
	return found, at, next
}

// form judges a hint, from pos to end in a text, that need not be a part of a
// secret's name.
type form func(text string, pos, end int) (found finding, at int)

// forms are judged by what follows the hint.
var forms = func() map[string]form {
	tail := func(text string, pos, end int) (finding, int) { return judgeTail(text, pos, end) }
	bare := func(text string, pos, _ int) (finding, int) {
		return carriesIf(bareSecret.MatchString(window(text, pos))), pos
	}
	all := map[string]form{
		"://": func(text string, _, end int) (finding, int) { return carriesIf(urlSecret(window(text, end))), end },
		"bearer": func(text string, _, end int) (finding, int) {
			return carriesIf(strings.TrimSpace(text[end:]) != ""), end
		},
		"connection": tail, "mapping": tail, "authorization": tail,
		"scram-": bare, "md5": bare, "eyj": bare,
	}
	for _, start := range keyStarts {
		all[start] = func(_ string, pos, _ int) (finding, int) { return carriesSecret, pos }
	}
	return all
}()

func carriesIf(yes bool) finding {
	if yes {
		return carriesSecret
	}
	return nothingSecret
}

// maxWindow is how far from a hint its surroundings reach, in bytes.
const maxWindow = 256

func window(text string, pos int) string { return text[pos:min(len(text), pos+maxWindow)] }

// urlSecret reports whether a URL, from behind its ://, has a password. That may
// hold any character, those that end the host of a URL, too: there is no telling
// u:pa/ss@host from host:port/path@. What goes on beyond the window is taken
// for a password.
func urlSecret(url string) bool {
	ended := len(url) < maxWindow
	if n := strings.IndexAny(url, " \t\r\n\f\v\""); n >= 0 {
		url, ended = url[:n], true
	}
	colon := strings.IndexByte(url, ':')
	if colon < 0 {
		return false
	}
	at := strings.LastIndexByte(url, '@')
	return at > colon+1 || !ended && !portBehind.MatchString(url[colon:])
}

var (
	portBehind = regexp.MustCompile(`^:\d{1,5}[/?#]`)
	// bareSecret matches what is a secret by its form: the hash of a password,
	// a JSON Web Token.
	bareSecret = regexp.MustCompile(`(?i)^(?:scram-sha-256\$|md5[0-9a-f]{32}|eyj[\w-]{8,}\.eyj)`)

	// valueBehind matches what stands behind the name of a secret when the value
	// follows: password=x, "password": "x", password 'x', <password>x.
	valueBehind = regexp.MustCompile(`^(?:["'\\]*\s*(?:=>|:=|[=:]|["'$])\s*["'\\]*[^\s%"'\\]|["'\\]*>\s*[^\s<])`)
	// saidBehind matches it in a sentence: the password is x.
	saidBehind = regexp.MustCompile(`(?i)^\s+(?:is|was)\s+["'\\]*(\w+)`)
	// valueElsewhere matches what stands there when it comes from somewhere
	// else: the end, or a placeholder for format.
	valueElsewhere = regexp.MustCompile(`^(?:\W*$|\W*%[-\d$]*[sIL]|\W*\$\d)`)
)

// judgeTail looks at what stands behind a secret's name, which is from begin to
// end.
func judgeTail(text string, begin, end int) (found finding, at int) {
	tail := window(text, end)
	if valueElsewhere.MatchString(tail) {
		return announcesSecret, 0
	}
	if begin > 0 && isQuote(text[begin-1]) {
		// What closes the name's quotes does not open the value's.
		for len(tail) > 0 && isQuote(tail[0]) {
			tail, end = tail[1:], end+1
		}
	}
	if m := valueBehind.FindStringIndex(tail); m != nil {
		_, size := utf8.DecodeLastRuneInString(tail[:m[1]]) // the value's first character
		return carriesSecret, end + m[1] - size
	}
	if m := saidBehind.FindStringSubmatchIndex(tail); m != nil {
		switch strings.ToLower(tail[m[2]:m[3]]) {
		case "null", "not", "distinct": // SQL
		default:
			return carriesSecret, end + m[2]
		}
	}
	return nothingSecret, 0
}

func isQuote(c byte) bool { return c == '"' || c == '\'' || c == '\\' }

// wordAround returns the word at pos, with its hyphens; of a very long one, a
// part.
func wordAround(text string, pos int) (begin, end int) {
	begin, end = pos, pos
	for begin > 0 && pos-begin < maxWindow && isWordPart(text[begin-1]) {
		begin--
	}
	for end < len(text) && end-pos < maxWindow && isWordPart(text[end]) {
		end++
	}
	return begin, end
}

func isWordPart(c byte) bool { return isIdentPart(c) || c == '-' }

// secretMark takes the place of a secret in a text that is no SQL.
const secretMark = "[masked]"

// RedactText returns a text that is no SQL as it may be recorded and shown: a
// reason, a name, an error. From the first thing on that looks like a secret
// nothing is kept, since there is no telling where it ends. Applied twice it
// changes nothing more.
func RedactText(text string) string {
	if found, at := findSecret(text); found == carriesSecret {
		return text[:at] + secretMark
	}
	return text
}

package policy

import (
	"regexp"
	"strings"
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
	found := nothingSecret
	for pos := 0; ; pos++ {
		var hint string
		if pos, hint = nextHint(text, pos); pos < 0 {
			return found
		}
		found = max(found, judgeHint(text, pos, hint))
		if found == carriesSecret {
			return found
		}
	}
}

// judgeHint looks at the surroundings of one hint.
func judgeHint(text string, pos int, hint string) finding {
	rest := text[pos:]
	switch hint {
	case "://":
		return carriesIf(urlPassword.MatchString(rest[:min(len(rest), maxWindow)]))
	case "scram-", "md5":
		return carriesIf(passwordHash.MatchString(rest[:min(len(rest), maxWindow)]))
	case "tskey-", "private key":
		return carriesSecret
	case "connection", "mapping", "authorization":
		return judgeTail(rest[len(hint):])
	case "bearer":
		return carriesIf(strings.TrimSpace(rest[len(hint):]) != "")
	}
	begin, end := wordAround(text, pos)
	if secretName(strings.ToLower(text[begin:end])) {
		return judgeTail(text[end:])
	}
	return nothingSecret
}

func carriesIf(yes bool) finding {
	if yes {
		return carriesSecret
	}
	return nothingSecret
}

// maxWindow is how far from a hint its surroundings reach, in bytes.
const maxWindow = 256

var (
	urlPassword  = regexp.MustCompile(`^://[^\s/@:]*:[^\s/@]+@`)
	passwordHash = regexp.MustCompile(`(?i)^(?:scram-sha-256\$|md5[0-9a-f]{32})`)

	// valueBehind matches what stands behind the name of a secret when the value
	// follows: password=x, "password": "x", password 'x', Bearer x.
	valueBehind = regexp.MustCompile(`^["'\\]*\s*(?:=>|:=|[=:]|["'$])\s*["'\\]*[^\s%"'\\]`)
	// valueElsewhere matches what stands there when it comes from somewhere
	// else: the end, or a placeholder for format.
	valueElsewhere = regexp.MustCompile(`^(?:\W*$|\W*%[-\d$]*[sIL]|\W*\$\d)`)
)

// judgeTail looks at what stands behind a secret's name.
func judgeTail(tail string) finding {
	tail = tail[:min(len(tail), maxWindow)]
	switch {
	case valueElsewhere.MatchString(tail):
		return announcesSecret
	case valueBehind.MatchString(tail):
		return carriesSecret
	}
	return nothingSecret
}

// wordAround returns the word at pos, with its dots and hyphens; of a very
// long one, a part.
func wordAround(text string, pos int) (begin, end int) {
	begin, end = pos, pos
	for begin > 0 && pos-begin < maxWindow && isIdentPart(text[begin-1]) {
		begin--
	}
	for end < len(text) && end-pos < maxWindow && isIdentPart(text[end]) {
		end++
	}
	return begin, end
}

package policy

import (
	"slices"
	"strings"
)

// secretParts are what the name of a secret contains.
var secretParts = []string{
	"passw", "passphrase", "passcode", "pwd", "secret", "token", "credential",
	"apikey", "api_key", "access_key", "private_key", "privatekey",
	"encryption_key", "signing_key", "sslkey", "conninfo", "jwt", "bearer",
	"authorization",
	"api-key", "access-key", "private-key", "encryption-key", "signing-key",
}

// secretEnds are the last words of names that are those of secrets: db_pass,
// app.pw. They are too short to be looked for inside of words.
var secretEnds = []string{"pass", "pw"}

// plainNames contain a secret's name and hold none.
var plainNames = []string{"password_encryption", "password_required", "authorization"}

// secretCalls are functions whose arguments are keys, plain text or
// connection strings: dblink's and pgcrypto's. A name ending in an underscore
// stands for all that begin so.
var secretCalls = []string{
	"dblink", "dblink_", "pgp_", "crypt", "hmac", "digest",
	"encrypt", "decrypt", "encrypt_iv", "decrypt_iv",
}

// keyStarts are the beginnings of keys that well-known services give out.
var keyStarts = []string{"private key", "tskey-", "ghp_", "github_pat_", "glpat-", "xoxb-", "xoxp-", "sk_live_"}

// hints are such that a text without any of them, in upper or lower case, has
// nothing to mask. Most texts have none, and are not looked at further.
var hints = slices.Concat([]string{
	"pass", "pw", "crypt", "dblink", "pgp_", "hmac", "digest",
	"connection", "program", "mapping", "set_config", "://", "u&", "scram-", "md5", "eyj",
}, keyStarts, secretParts)

// hintsBy are the hints by their first two bytes, of which five bits each are
// looked at: those are the same in capitals.
var hintsBy = func() (by [1 << 10][]string) {
	for _, h := range hints {
		by[pairOf(h[0], h[1])] = append(by[pairOf(h[0], h[1])], h)
	}
	return by
}()

func pairOf(a, b byte) int { return int(a&31)<<5 | int(b&31) }

// nextHint returns the place of the first hint from pos on, and the hint; -1
// if there is none.
func nextHint(sql string, pos int) (int, string) {
	for ; pos+1 < len(sql); pos++ {
		for _, h := range hintsBy[pairOf(sql[pos], sql[pos+1])] {
			if len(sql)-pos >= len(h) && equalFold(sql[pos:pos+len(h)], h) {
				return pos, h
			}
		}
	}
	return -1, ""
}

// hinted reports whether the text contains a hint.
func hinted(sql string) bool {
	pos, _ := nextHint(sql, 0)
	return pos >= 0
}

// equalFold compares s with an ASCII text in lower case of the same length.
func equalFold(s, low string) bool {
	for i := range len(low) {
		c := s[i]
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		if c != low[i] {
			return false
		}
	}
	return true
}

// secretName reports whether a name, in lower case, is that of a secret.
func secretName(name string) bool {
	if slices.Contains(plainNames, name) {
		return false
	}
	return slices.Contains(secretEnds, name[strings.LastIndexAny(name, "._-")+1:]) ||
		slices.ContainsFunc(secretParts, func(part string) bool { return strings.Contains(name, part) })
}

func secretCall(name string) bool {
	return secretName(name) || slices.ContainsFunc(secretCalls, func(call string) bool {
		return name == call || strings.HasSuffix(call, "_") && strings.HasPrefix(name, call)
	})
}

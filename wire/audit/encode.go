package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"time"
	"unicode/utf8"
)

// appendRecord appends r as a JSON object without its closing brace, which
// the chain's fields precede. A statement longer than maxSQL bytes is cut. It is
// written by hand as two records are encoded for each statement of a session.
func appendRecord(b []byte, r *Record, maxSQL int) []byte {
	b = append(b, `{"time":"`...)
	b = r.Time.UTC().AppendFormat(b, time.RFC3339Nano)
	b = append(b, '"')
	b = appendText(b, "event", string(r.Event))
	b = appendText(b, "session", r.Session)
	b = appendInt(b, "seq", r.Seq)

	b = appendText(b, "user", r.User)
	b = appendText(b, "node", r.Node)
	b = appendText(b, "node_id", r.NodeID)
	b = appendList(b, "tags", r.Tags)
	b = appendText(b, "addr", r.Addr)

	b = appendText(b, "database", r.Database)
	b = appendText(b, "upstream", r.Upstream)
	b = appendInt(b, "upstream_pid", int64(r.UpstreamPID))
	b = appendText(b, "application_name", r.ApplicationName)
	b = appendText(b, "client", r.Client)
	b = appendText(b, "requested_user", r.RequestedUser)
	b = appendText(b, "reason", r.Reason)

	b = appendSQL(b, r.SQL, maxSQL)
	b = appendTrue(b, "sql_redacted", r.SQLRedacted)
	b = appendText(b, "fingerprint", r.Fingerprint)
	b = appendList(b, "kinds", r.Kinds)
	b = appendText(b, "verdict", r.Verdict)
	b = appendText(b, "rule", r.Rule)

	b = appendText(b, "tag", r.Tag)
	b = appendIntPtr(b, "rows", r.Rows)
	b = appendIntPtr(b, "bytes", r.Bytes)
	b = appendIntPtr(b, "affected", r.Affected)
	b = appendTrue(b, "truncated", r.Truncated)
	if r.DurationMS != nil {
		b = append(b, `,"duration_ms":`...)
		b = strconv.AppendFloat(b, *r.DurationMS, 'f', -1, 64)
	}
	b = appendText(b, "sqlstate", r.SQLState)
	b = appendText(b, "error", r.Error)
	b = appendText(b, "tx", r.TX)
	b = appendTrue(b, "cancelled", r.Cancelled)
	b = appendText(b, "tampered", r.Tampered)
	return appendIntPtr(b, "statements", r.Statements)
}

// appendSQL appends the statement, cut at maxSQL bytes. Where the record does
// not hold the statement as it is, its length and hash tell what it was: of
// the text in the record, that is after masking, so that the hash tells
// nothing of a secret.
func appendSQL(b []byte, sql string, maxSQL int) []byte {
	kept := cutText(sql, maxSQL)
	b = appendText(b, "sql", kept)
	if len(kept) == len(sql) && utf8.ValidString(sql) {
		return b
	}
	sum := sha256.Sum256([]byte(sql))
	b = appendInt(b, "sql_length", int64(len(sql)))
	b = appendText(b, "sql_sha256", hex.EncodeToString(sum[:]))
	return appendTrue(b, "sql_cut", len(kept) < len(sql))
}

// cutText is the longest prefix of s of at most n bytes that ends with a
// character.
func cutText(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

func appendName(b []byte, name string) []byte {
	b = append(b, ',', '"')
	b = append(b, name...)
	return append(b, '"', ':')
}

func appendText(b []byte, name, s string) []byte {
	if s == "" {
		return b
	}
	return appendString(appendName(b, name), s)
}

func appendInt(b []byte, name string, n int64) []byte {
	if n == 0 {
		return b
	}
	return strconv.AppendInt(appendName(b, name), n, 10)
}

func appendIntPtr(b []byte, name string, n *int64) []byte {
	if n == nil {
		return b
	}
	return strconv.AppendInt(appendName(b, name), *n, 10)
}

func appendTrue(b []byte, name string, v bool) []byte {
	if !v {
		return b
	}
	return append(appendName(b, name), "true"...)
}

func appendList(b []byte, name string, list []string) []byte {
	if len(list) == 0 {
		return b
	}
	b = append(appendName(b, name), '[')
	for i, s := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(b, s)
	}
	return append(b, ']')
}

// appendString appends s as a JSON string. Bytes that are not UTF-8, which
// JSON has no way to say, become U+FFFD.
func appendString(b []byte, s string) []byte {
	const hexDigits = "0123456789abcdef"
	b = append(b, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= utf8.RuneSelf {
			r, size := utf8.DecodeRuneInString(s[i:])
			if r == utf8.RuneError && size == 1 {
				b = append(append(b, s[start:i]...), `\ufffd`...)
				start = i + 1
			}
			i += size
			continue
		}
		if c >= ' ' && c != '"' && c != '\\' {
			i++
			continue
		}
		b = append(b, s[start:i]...)
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		case '\t':
			b = append(b, '\\', 't')
		default:
			b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
		i++
		start = i
	}
	b = append(b, s[start:]...)
	return append(b, '"')
}

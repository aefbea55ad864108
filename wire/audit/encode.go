package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// appendRecord appends r as a JSON object without its closing brace, which
// the chain's fields precede. A statement longer than maxSQL bytes, or twice that
// as JSON, is cut. It is written by hand as two records are encoded for each
// statement of a session.
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
	b = appendText(b, "end_reason", r.EndReason)

	b = appendTrue(b, "dry_run", r.DryRun)
	b = appendSQL(b, r, maxSQL)
	b = appendTrue(b, "sql_redacted", r.SQLRedacted)
	b = appendText(b, "fingerprint", r.Fingerprint)
	b = appendList(b, "kinds", r.Kinds)
	b = appendText(b, "verdict", r.Verdict)
	b = appendText(b, "rule", r.Rule)

	b = appendInt(b, "pid", r.PID)
	b = appendText(b, "function", r.Function)
	b = appendText(b, "backend_start", r.BackendStart)
	b = appendText(b, "victim_role", r.VictimRole)
	b = appendText(b, "victim_application_name", r.VictimApplicationName)
	b = appendText(b, "victim_addr", r.VictimAddr)
	b = appendText(b, "victim_user", r.VictimUser)
	b = appendText(b, "victim_session", r.VictimSession)
	b = appendText(b, "step", r.Step)
	b = appendText(b, "access", r.Access)
	if r.Until != nil {
		b = append(b, `,"until":"`...)
		b = r.Until.UTC().AppendFormat(b, time.RFC3339Nano)
		b = append(b, '"')
	}
	b = appendText(b, "approver", r.Approver)
	b = appendText(b, "request", r.Request)

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
	b = appendIntPtr(b, "statements", r.Statements)
	return appendText(b, "observer", r.Observer)
}

// appendSQL appends the statement and what is to be known of one that the
// record does not hold as it is.
func appendSQL(b []byte, r *Record, maxSQL int) []byte {
	sql, length, sum, cut := r.SQL, r.SQLLength, r.SQLSHA256, r.SQLCut
	if kept := cutText(sql, maxSQL, 2*maxSQL); len(kept) < len(sql) || !utf8.ValidString(sql) {
		length, sum, cut = max(length, int64(len(sql))), textSum(sql), cut || len(kept) < len(sql)
		sql = kept
	}
	if len(sql) > longText {
		b = slices.Grow(b, jsonSize(sql)+longText)
	}
	b = appendText(b, "sql", sql)
	b = appendInt(b, "sql_length", length)
	b = appendText(b, "sql_sha256", sum)
	return appendTrue(b, "sql_cut", cut)
}

// CutSQL keeps no more than the first n bytes of the statement, up to the end
// of a character. The record then tells the length and the hash of all of it.
func (r *Record) CutSQL(n int) {
	kept := cutText(r.SQL, n, 6*n)
	if len(kept) == len(r.SQL) {
		return
	}
	r.SQLLength, r.SQLSHA256, r.SQLCut = int64(len(r.SQL)), textSum(r.SQL), true
	r.SQL = strings.Clone(kept) // which does not keep the rest in memory
}

// longText is the length in bytes from which a buffer is made in the right size
// at once, rather than by doubling.
const longText = 16 << 10

// cutText is the longest prefix of s, up to the end of a character, of at most
// n bytes, and of at most so many as JSON.
func cutText(s string, n, asJSON int) string {
	if len(s) <= n && 6*len(s) <= asJSON {
		return s
	}
	for i := 0; i < len(s); {
		size, width := jsonWidth(s, i)
		n, asJSON = n-size, asJSON-width
		if n < 0 || asJSON < 0 {
			return s[:i]
		}
		i += size
	}
	return s
}

// jsonSize is the length of s as JSON, without the quotes around it.
func jsonSize(s string) int {
	n := 0
	for i := 0; i < len(s); {
		size, width := jsonWidth(s, i)
		i, n = i+size, n+width
	}
	return n
}

// jsonWidth is how many bytes the character at s[i] has, and how many as JSON.
func jsonWidth(s string, i int) (size, width int) {
	switch c := s[i]; {
	case c >= utf8.RuneSelf:
		r, size := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && size == 1 {
			return 1, 6
		}
		return size, size
	case c == '"' || c == '\\' || shortEscape(c) != 0:
		return 1, 2
	case c < ' ':
		return 1, 6
	}
	return 1, 1
}

// textSum is the SHA-256 of a text, in hexadecimal. The text is copied piece by
// piece.
func textSum(s string) string {
	h := sha256.New()
	var piece [8 << 10]byte
	for len(s) > 0 {
		n := copy(piece[:], s)
		h.Write(piece[:n])
		s = s[n:]
	}
	return hex.EncodeToString(h.Sum(nil))
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
		switch e := shortEscape(c); {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case e != 0:
			b = append(b, '\\', e)
		default:
			b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
		i++
		start = i
	}
	b = append(b, s[start:]...)
	return append(b, '"')
}

// shortEscape is the letter that stands for a control character behind a
// backslash, 0 where there is none.
func shortEscape(c byte) byte {
	switch c {
	case '\b':
		return 'b'
	case '\f':
		return 'f'
	case '\n':
		return 'n'
	case '\r':
		return 'r'
	case '\t':
		return 't'
	}
	return 0
}

package trail

import (
	"bytes"
	"encoding/json"
	"strconv"
	"time"

	"pgproxy/wire/audit"
)

// head is the beginning of a record, by which most are passed over.
type head struct {
	time, event, session, user []byte
	seq                        int64
}

// headOf reads the beginning of a record; ok is false if the line is none.
func headOf(text []byte) (h head, ok bool) {
	if h, ok = writersHead(text); ok {
		return h, true
	}
	var r audit.Record
	if json.Unmarshal(text, &r) != nil || r.Time.IsZero() {
		return head{}, false
	}
	return head{
		time: []byte(r.Time.Format(time.RFC3339Nano)), event: []byte(r.Event),
		session: []byte(r.Session), user: []byte(r.User), seq: r.Seq,
	}, true
}

// writersHead reads it as the Writer puts it: these fields, in this order. It
// takes no more than the beginning of a line.
func writersHead(text []byte) (h head, ok bool) {
	for _, f := range []struct {
		name   string
		value  *[]byte
		always bool
	}{
		{`{"time":"`, &h.time, true},
		{`,"event":"`, &h.event, true},
		{`,"session":"`, &h.session, false},
		{`,"seq":`, nil, false},
		{`,"user":"`, &h.user, false},
	} {
		rest, has := bytes.CutPrefix(text, []byte(f.name))
		switch {
		case !has && f.always:
			return h, false
		case !has:
			continue
		case f.value == nil:
			n := 0
			for n < len(rest) && rest[n] >= '0' && rest[n] <= '9' {
				n++
			}
			seq, err := strconv.ParseInt(string(rest[:n]), 10, 64)
			if err != nil {
				return h, false
			}
			h.seq, text = seq, rest[n:]
			continue
		}
		end := bytes.IndexByte(rest, '"')
		if end < 0 || bytes.IndexByte(rest[:end], '\\') >= 0 {
			return h, false
		}
		*f.value, text = rest[:end], rest[end+1:]
	}
	return h, true
}

// when is the record's time; zero if it has none that can be read.
func (h head) when() time.Time {
	t, _ := time.Parse(time.RFC3339Nano, string(h.time))
	return t
}

// shownText is how much of a statement is returned, in bytes.
const shownText = 16 << 10

// decode reads a record. It keeps nothing of the text.
func decode(l line) (*audit.Record, bool) {
	r := new(audit.Record)
	if json.Unmarshal(l.text, r) != nil {
		return nil, false
	}
	r.SQLCut = r.SQLCut || l.clipped
	return r, true
}

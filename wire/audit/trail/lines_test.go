package trail

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"pgproxy/wire/audit"
)

// hostileLines are what may stand in a file: records, long ones, and what is
// none.
var hostileLines = []string{
	`{"time":"2026-11-24T10:41:30Z","event":"query","session":"a1","seq":7,"user":"alice@example.com","sql":"SELECT 1"}` + "\n",
	`{"time":"2026-11-24T10:41:30Z","event":"query","session":"a\"1","user":"x","sql":"\",\"event\":\"connect\" {\"time\":\"\u0041"}` + "\n",
	"\n\n", `{"torn`, `{"time":"2026-11-24T10:41:30Z","event":"result","seq":99999999999999999999}` + "\n", "\x00\xff\n",
	`{"event":"query","time":"2026-11-24T10:41:30+02:00"}` + "\n", `null` + "\n", `{"time":"x","event":"y"}` + "\n", `[]`,
}

// FuzzLines: whatever is in a file, its lines are the same in both directions,
// and together they are the file.
func FuzzLines(f *testing.F) {
	all := strings.Join(hostileLines, "")
	for _, block := range []byte{1, 2, 16, 100, 255} {
		f.Add([]byte(all), block, byte(200))
	}
	for _, l := range hostileLines {
		f.Add([]byte(l), byte(8), byte(3))
	}
	f.Fuzz(func(t *testing.T, data []byte, block, longest byte) {
		data = data[:min(len(data), 2<<10)]
		open := func() *lines {
			return &lines{f: bytes.NewReader(data), size: int64(len(data)), block: int64(block) + 1, longest: int64(block) + int64(longest) + 1}
		}
		// Pieces of what is too long are cut at other places.
		whole := open()
		whole.longest = maxLine
		var forwards, backwards [][2]int64
		for at := int64(0); at < whole.size; {
			l, err := whole.after(at)
			if err != nil || l.from != at || l.to <= at {
				t.Fatalf("after %d: %d to %d, %v", at, l.from, l.to, err)
			}
			check(t, data, l)
			forwards, at = append(forwards, [2]int64{l.from, l.to}), l.to
		}
		for at := whole.size; at > 0; {
			l, err := whole.before(at)
			if err != nil || l.to != at || l.from >= at {
				t.Fatalf("before %d: %d to %d, %v", at, l.from, l.to, err)
			}
			check(t, data, l)
			backwards, at = append(backwards, [2]int64{l.from, l.to}), l.from
		}
		slices.Reverse(backwards)
		if !slices.Equal(forwards, backwards) {
			t.Fatalf("forwards %v\nbackwards %v", forwards, backwards)
		}
		r := open()
		for at := r.size; at > 0; {
			l, err := r.before(at)
			if err != nil || l.from >= at {
				t.Fatalf("before %d in pieces: %v, %v", at, l, err)
			}
			at = l.from
		}
		for at := int64(0); at <= r.size; at++ {
			from, err := r.start(at)
			if err != nil || from < at || from > 0 && from < r.size && data[from-1] != '\n' && r.longest > r.size {
				t.Fatalf("start at %d: %d, %v", at, from, err)
			}
		}
	})
}

// check holds a line against the file, and its beginning against JSON.
func check(t *testing.T, data []byte, l line) {
	t.Helper()
	text := bytes.TrimSuffix(data[l.from:l.to], []byte("\n"))
	if !bytes.Equal(text, l.text) {
		t.Fatalf("%q, want %q", l.text, text)
	}
	if bytes.IndexByte(text, '\n') >= 0 {
		t.Fatalf("two lines in one: %q", text)
	}
	var r audit.Record
	if h, ok := writersHead(text); ok && utf8.Valid(text) && json.Unmarshal(text, &r) == nil && !repeats(text) {
		if string(h.event) != string(r.Event) || string(h.session) != r.Session || string(h.user) != r.User || h.seq != r.Seq || !h.when().Equal(r.Time) {
			t.Fatalf("%q begins with %+v", text, h)
		}
	}
}

// repeats reports whether a field of the beginning stands twice, in any case of
// letters, or at another place: the Writer makes no such line.
func repeats(text []byte) bool {
	for _, name := range []string{"time", "event", "session", "seq", "user"} {
		if bytes.Count(bytes.ToLower(text), []byte(`"`+name+`":`)) != strings.Count(string(text), `"`+name+`":`) || bytes.Count(text, []byte(`"`+name+`"`)) > 1 ||
			bytes.Contains(text, []byte(`\u`)) || bytes.Contains(text, []byte(" ")) {
			return true
		}
		h, _ := writersHead(text)
		if name == "session" && h.session == nil || name == "seq" && h.seq == 0 || name == "user" && h.user == nil {
			if bytes.Contains(text, []byte(`"`+name+`"`)) {
				return true
			}
		}
	}
	return false
}

// A text that is too long is cut while it is read, between two characters, and
// the rest of the line stays what it was.
func TestClip(t *testing.T) {
	for _, unit := range []string{"x", "é", "𝄞", `"`, `\`, "\x01", "\n"} {
		for shift := range 7 {
			want := audit.Record{Event: audit.Query, Session: "a1", SQL: strings.Repeat("-", shift) + strings.Repeat(unit, 3*maxText), Verdict: "deny", Rule: "write"}
			in, err := json.Marshal(want)
			if err != nil {
				t.Fatal(err)
			}
			out, clipped, err := clip(nil, bytes.NewReader(in))
			var got audit.Record
			if err != nil || !clipped || json.Unmarshal(out, &got) != nil {
				t.Fatalf("%q: %v, clipped %v", unit, err, clipped)
			}
			if len(out) > maxText+1000 || !strings.HasPrefix(want.SQL, got.SQL) || len(got.SQL) < maxText/7 {
				t.Errorf("%q: %d bytes are left, and %d of the statement", unit, len(out), len(got.SQL))
			}
			if got.Verdict != "deny" || got.Rule != "write" {
				t.Errorf("%q: what stands behind the statement is %q %q", unit, got.Verdict, got.Rule)
			}
		}
	}
	if _, _, err := clip(nil, strings.NewReader(strings.Repeat(`"",`, maxClipped))); err != errEndless {
		t.Errorf("many short texts: %v", err)
	}
}

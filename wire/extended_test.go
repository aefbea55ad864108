package wire

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgproxy/wire/audit"

	"pgproxy/wire/frame"
)

const (
	refusal      = "E(0A000 pgproxy: unsupported message (use simple protocol))"
	refusalOfF   = "E(0A000 pgproxy: unsupported message (use simple protocol): function call)"
	brokenStatus = "E(08P01 invalid message format)"
)

// Messages of the extended protocol, as a driver sends them.
var (
	parse    = frame.Append(nil, 'P', []byte("\x00UPDATE extended SET n = 7 WHERE id = 1\x00\x00\x00")...)
	bind     = frame.Append(nil, 'B', []byte("\x00\x00\x00\x00\x00\x00\x00\x00")...)
	describe = frame.Append(nil, 'D', []byte("P\x00")...)
	execute  = frame.Append(nil, 'E', []byte("\x00\x00\x00\x00\x00")...)
	closeIt  = frame.Append(nil, 'C', []byte("P\x00")...)
	flush    = frame.Append(nil, 'H')
	syncNow  = frame.Append(nil, 'S')
	call     = frame.Append(nil, 'F', []byte("\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")...)
	copyData = frame.Append(nil, 'd', []byte("1\t7\n")...)
	copyDone = frame.Append(nil, 'c')
	copyFail = frame.Append(nil, 'f', []byte("no\x00")...)
	update   = frame.AppendQuery(nil, "UPDATE extended SET n = 7 WHERE id = 1")
)

// Messages of the extended protocol are refused once for each Sync, as an
// error of PostgreSQL's own would be: what stands before Sync is not run, what
// stands behind it is.
func TestExtendedProtocolIsRefused(t *testing.T) {
	makeTable(t, "extended")
	p := startProxy(t)
	for _, tt := range []struct {
		name string
		send [][]byte
		want string // Z stands for ReadyForQuery with the status
	}{
		{"P B D E S", [][]byte{parse, bind, describe, execute, syncNow}, refusal + " Z"},
		{"P Q S", [][]byte{parse, update, syncNow}, refusal + " Z"},
		{"P Q F d c f H S", [][]byte{parse, update, call, copyData, copyDone, copyFail, flush, syncNow}, refusal + " Z"},
		{"P P S S", [][]byte{parse, parse, syncNow, syncNow}, refusal + " Z Z"},
		{"P S P S", [][]byte{parse, syncNow, parse, syncNow}, refusal + " Z " + refusal + " Z"},
		{"S S S", [][]byte{syncNow, syncNow, syncNow}, "Z Z Z"},
		{"B", [][]byte{bind, syncNow}, refusal + " Z"},
		{"D", [][]byte{describe, syncNow}, refusal + " Z"},
		{"E", [][]byte{execute, syncNow}, refusal + " Z"},
		{"C", [][]byte{closeIt, syncNow}, refusal + " Z"},
		{"H", [][]byte{flush, flush, syncNow}, "Z"},
		{"d c f", [][]byte{copyData, copyDone, copyFail, syncNow}, "Z"},
		{"F", [][]byte{call, syncNow}, refusalOfF + " Z Z"},
		{"F F", [][]byte{call, call}, refusalOfF + " Z " + refusalOfF + " Z"},
		{"Sync with a body", [][]byte{frame.Append(nil, 'S', 0)}, brokenStatus + " Z"},
		{"P, Sync with a body", [][]byte{parse, frame.Append(nil, 'S', 0), syncNow}, refusal + " " + brokenStatus + " Z Z"},
	} {
		for _, state := range []struct{ name, begin, status, after string }{
			{"idle", "", "I", "I"},
			{"in transaction", "BEGIN", "T", "E"},
			{"in a failed transaction", "BEGIN; SELECT 1/0", "E", "E"},
		} {
			t.Run(tt.name+" "+state.name, func(t *testing.T) {
				c := p.login(t)
				if state.begin != "" {
					c.query(state.begin)
				}
				after := state.after
				if !strings.Contains(tt.want, "E(") {
					after = state.status
				}
				// A Sync changes nothing by itself.
				want := strings.ReplaceAll(tt.want, "Z", "Z("+after+")")
				c.send(slices.Concat(tt.send...))
				var got []string
				for range strings.Count(tt.want, "Z") {
					got = append(got, c.answer())
				}
				if got := strings.Join(got, " "); got != want {
					t.Errorf("\n got %s\nwant %s", got, want)
				}
				c.want("COMMIT", map[string]string{
					"I": "N(25P01 there is no transaction in progress) C(COMMIT) Z(I)", "T": "C(COMMIT) Z(I)", "E": "C(ROLLBACK) Z(I)",
				}[after])
				c.want("SELECT 1", "D(1) C(SELECT 1) Z(I)")
			})
		}
	}
	if got := value(t, "extended"); got != "0" {
		t.Errorf("the row holds %s", got)
	}
	for _, rec := range p.records.all() {
		if strings.Contains(rec.SQL, "extended") {
			t.Errorf("a statement was recorded that must not run: %+v", rec)
		}
	}
}

// The refusal comes at once, for a driver that flushes and waits for it.
func TestExtendedRefusalIsFlushed(t *testing.T) {
	p := startProxy(t)
	c := p.login(t)
	c.send(parse)
	f := c.next()
	if f.String() != refusal {
		t.Errorf("got %s", f)
	}
	if hint := frame.ParseErrorFields(f.body).Hint; !strings.Contains(hint, "QueryExecModeSimpleProtocol") || !strings.Contains(hint, "preferQueryMode=simple") {
		t.Errorf("hint: %s", hint)
	}
	c.send(syncNow)
	if got := c.answer(); got != "Z(I)" {
		t.Errorf("got %s", got)
	}
}

// Terminate ends the session while messages are being skipped, too.
func TestTerminateWhileSkipping(t *testing.T) {
	makeTable(t, "extended")
	p := startProxy(t)
	c := p.login(t)
	c.send(slices.Concat(parse, update, frame.Append(nil, 'X'), update))
	if got := c.ended(); got != refusal {
		t.Errorf("got %s", got)
	}
	p.disconnected(t, reasonClient)
	if got := value(t, "extended"); got != "0" {
		t.Errorf("the row holds %s", got)
	}
}

// What is not the protocol ends the session, with PostgreSQL's words where it
// has any.
func TestNotTheProtocol(t *testing.T) {
	unknown := func(typ byte) string { return fmt.Sprintf("E(08P01 invalid frontend message type %d)", typ) }
	for _, tt := range []struct {
		name string
		send []byte
		want string
	}{
		{"password message", frame.Append(nil, 'p', 'x', 0), unknown('p')},
		{"unknown type", frame.Append(nil, 'q'), unknown('q')},
		{"type zero", frame.Append(nil, 0), unknown(0)},
		{"HTTP", []byte("GET / HTTP/1.1\r\n\r\n"), unknown('G')},
		{"unknown type while skipping", append(slices.Clone(parse), frame.Append(nil, 'q')...), refusal + " " + unknown('q')},
		{"length zero", []byte{'Q', 0, 0, 0, 0}, ""},
		{"length three", []byte{'Q', 0, 0, 0, 3}, ""},
		{"negative length", []byte{'Q', 0xff, 0xff, 0xff, 0xff}, ""},
		{"length three while skipping", append(slices.Clone(parse), 'S', 0, 0, 0, 3), refusal},
		{"Sync too long", []byte{'S', 0, 0, 0x27, 0x11}, ""},
		{"Execute too long", []byte{'E', 0, 0, 0x27, 0x11}, ""},
		{"Query of 1 GiB", []byte{'Q', 0x3f, 0xff, 0xff, 0xff}, ""},
		{"Query of 2 GiB", []byte{'Q', 0x7f, 0xff, 0xff, 0xff}, ""},
		{"Parse of 2 GiB", []byte{'P', 0x7f, 0xff, 0xff, 0xff}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := startProxy(t)
			c := p.login(t)
			c.send(tt.send)
			if got := c.ended(); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			p.disconnected(t, reasonProtocol)
		})
	}
}

// A Query's text is checked before anybody reads it.
func TestQueryText(t *testing.T) {
	p := startProxy(t)
	c := p.login(t)
	for _, tt := range []struct{ name, body, want string }{
		{"bytes behind the end", "SELECT 1\x00DROP TABLE x\x00", "E(08P01 invalid message format) Z(I)"},
		{"two ends", "SELECT 1\x00\x00", "E(08P01 invalid message format) Z(I)"},
		{"no end", "SELECT 1", "E(08P01 invalid string in message) Z(I)"},
		{"nothing", "", "E(08P01 invalid string in message) Z(I)"},
		{"empty", "\x00", "I Z(I)"},
		{"comment", "-- nothing\x00", "I Z(I)"},
		{"semicolons", " ; ;\x00", "I Z(I)"},
		{"not UTF-8", "SELECT '\xff'\x00", `E(22021 invalid byte sequence for encoding "UTF8": 0xff) Z(I)`},
		{"not UTF-8 in a comment", "SELECT 1 -- \xc3\x00", `E(22021 invalid byte sequence for encoding "UTF8": 0xc3) Z(I)`},
		{"overlong", "SELECT '\xc0\x80'\x00", `E(22021 invalid byte sequence for encoding "UTF8": 0xc0) Z(I)`},
		{"surrogate", "SELECT '\xed\xa0\x80'\x00", `E(22021 invalid byte sequence for encoding "UTF8": 0xed) Z(I)`},
		{"UTF-8", "SELECT 'ü\U0001f418'\x00", "D(ü\U0001f418) C(SELECT 1) Z(I)"},
	} {
		c.send(frame.Append(nil, 'Q', []byte(tt.body)...))
		if got := c.answer(); got != tt.want {
			t.Errorf("%s\n got %s\nwant %s", tt.name, got, tt.want)
		}
	}
	c.want("BEGIN", "C(BEGIN) Z(T)")
	c.send(frame.Append(nil, 'Q'))
	if got := c.answer(); got != "E(08P01 invalid string in message) Z(E)" {
		t.Errorf("in a transaction: %s", got)
	}
	for _, rec := range p.records.all() {
		if strings.Contains(rec.SQL, "DROP") {
			t.Errorf("recorded %+v", rec)
		}
	}
}

// A statement that is too long is thrown away as it comes. What stands in it
// is no message.
func TestQueryTooLong(t *testing.T) {
	makeTable(t, "extended")
	p := startProxy(t)
	c := p.login(t)
	hidden := slices.Repeat(update, (maxStatement+100)/len(update)+1)
	c.send(append(frame.Append(nil, 'Q', hidden...), frame.AppendQuery(nil, "SELECT 1")...))
	if got, want := c.answer(), fmt.Sprintf("E(54001 pgproxy: a statement of %d bytes is too long) Z(I)", len(hidden)); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := c.answer(); got != "D(1) C(SELECT 1) Z(I)" {
		t.Errorf("the next: %s", got)
	}
	if got := value(t, "extended"); got != "0" {
		t.Errorf("the row holds %s", got)
	}
}

// Statements sent ahead run one after the other; an error stops none of them.
func TestPipelinedQueries(t *testing.T) {
	p := startProxy(t)
	c := p.login(t)
	c.send(slices.Concat(frame.AppendQuery(nil, "SELECT 1"), frame.AppendQuery(nil, "SELECT 1/0"), frame.AppendQuery(nil, "SELECT 3"), frame.Append(nil, 'X')))
	const want = "T D(1) C(SELECT 1) Z(I) E(22012 division by zero) Z(I) T D(3) C(SELECT 1) Z(I)"
	if got := c.ended(); got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
	p.disconnected(t, reasonClient)
	var sql []string
	for _, rec := range p.records.all() {
		if rec.Event == audit.Query {
			sql = append(sql, rec.SQL)
		}
	}
	if !slices.Equal(sql, []string{"SELECT 1", "SELECT 1/0", "SELECT 3"}) {
		t.Errorf("recorded %q", sql)
	}
}

// A message may come a byte at a time.
func TestMessagesInPieces(t *testing.T) {
	p := startProxy(t)
	c := p.login(t)
	for _, b := range slices.Concat(frame.AppendQuery(nil, "SELECT 1"), parse, syncNow) {
		c.send([]byte{b})
	}
	if got := c.answer() + " " + c.answer(); got != "D(1) C(SELECT 1) Z(I) "+refusal+" Z(I)" {
		t.Errorf("got %s", got)
	}
}

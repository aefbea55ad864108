package trail

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgproxy/wire/audit"
)

func everybody(string) bool { return true }

func only(user string) func(string) bool { return func(u string) bool { return u == user } }

// noon is when the logs of the tests begin.
var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

// writeLog writes records to a log, in files of at most so many bytes. Times that
// are not set are a second apart.
func writeLog(t testing.TB, maxSize int64, records ...audit.Record) *Log {
	t.Helper()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	w, err := audit.Open(path, audit.Options{Sync: audit.SyncNever, MaxSize: maxSize})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for i := range records {
		if records[i].Time.IsZero() {
			records[i].Time = noon.Add(time.Duration(i) * time.Second)
		}
		if err := w.Write(&records[i]); err != nil {
			t.Fatal(err)
		}
	}
	return newLog(t, path)
}

func newLog(t testing.TB, path string) *Log {
	t.Helper()
	l, err := New(path)
	if err != nil {
		t.Fatal(err)
	}
	l.Budget = time.Minute // the machine may be slow
	return l
}

// said are the statements of a page, each with its outcome.
func said(page Page) string {
	var list []string
	for _, st := range page.Steps {
		text := st.SQL + "=" + st.Outcome()
		if st.Unread {
			text += "?"
		}
		list = append(list, text)
	}
	return strings.Join(list, " ")
}

func find(t *testing.T, l *Log, q Search) Page {
	t.Helper()
	if q.Sees == nil {
		q.Sees = everybody
	}
	if q.Max == 0 {
		q.Max = 100
	}
	page, err := l.History(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	return page
}

func query(session, user string, seq int64, sql string) audit.Record {
	return audit.Record{Event: audit.Query, Session: session, User: user, Seq: seq, SQL: sql, Verdict: "allow"}
}

func answer(session, user string, seq int64, sqlstate string) audit.Record {
	r := audit.Record{Event: audit.Result, Session: session, User: user, Seq: seq, SQLState: sqlstate}
	if sqlstate != "" {
		r.Error = "it failed with Zorn"
	} else {
		r.Tag = "SELECT 1"
	}
	return r
}

// evening are two people's statements, side by side.
func evening() []audit.Record {
	refused := query("b", "bob", 2, "b2")
	refused.Verdict, refused.Rule, refused.SQLState = "deny", "write", "42501"
	cut := answer("a", "alice", 3, "54000")
	cut.Truncated = true
	return []audit.Record{
		{Event: audit.Connect, Session: "a", User: "alice"},
		query("a", "alice", 1, "a1"),
		{Event: audit.Connect, Session: "b", User: "bob"},
		query("b", "bob", 1, "b1"),
		answer("a", "alice", 1, ""),
		query("a", "alice", 2, "a2"), // killed: no result
		answer("b", "bob", 1, "42601"),
		refused,
		query("a", "alice", 3, "a3 Straße"),
		cut,
		query("b", "bob", 3, "b3 'quoted\" back\\slash'"),
		{Event: audit.Disconnect, Session: "a", User: "alice"},
	}
}

func TestHistory(t *testing.T) {
	for _, maxSize := range []int64{0, 700} { // in one file, and in one for nearly each record
		l := writeLog(t, maxSize, evening()...)
		for _, tt := range []struct {
			name string
			Search
			want string
		}{
			{"all", Search{}, `b3 'quoted" back\slash'=unknown a3 Straße=truncated b2=denied a2=unknown b1=error a1=ok`},
			{"own", Search{Sees: only("alice")}, "a3 Straße=truncated a2=unknown a1=ok"},
			{"nobody's", Search{Sees: only("carol")}, ""},
			{"others by name", Search{Sees: only("alice"), Person: "bob"}, ""},
			{"person", Search{Person: "OB"}, `b3 'quoted" back\slash'=unknown b2=denied b1=error`},
			{"outcome", Search{Outcome: "denied"}, "b2=denied"},
			{"unknown", Search{Outcome: "unknown", Person: "alice"}, "a2=unknown"},
			{"text", Search{Text: "A1"}, "a1=ok"},
			{"text beyond ASCII", Search{Text: "straße"}, "a3 Straße=truncated"},
			{"text that JSON escapes", Search{Text: `" back\`}, `b3 'quoted" back\slash'=unknown`},
			{"text of an error", Search{Text: "zorn"}, "a3 Straße=truncated b1=error"},
			{"since", Search{Since: noon.Add(7 * time.Second)}, `b3 'quoted" back\slash'=unknown a3 Straße=truncated b2=denied`},
			{"until", Search{Until: noon.Add(3 * time.Second)}, "b1=error a1=ok"},
			{"both", Search{Since: noon.Add(2 * time.Second), Until: noon.Add(7 * time.Second)}, "b2=denied a2=unknown b1=error"},
		} {
			page := find(t, l, tt.Search)
			if got := said(page); got != tt.want || !page.Next.IsZero() || page.Late {
				t.Errorf("%s in files of %d: %s, want %s; %+v", tt.name, maxSize, got, tt.want, page.Progress)
			}
		}
		// A page at a time: what stands across the border has its outcome.
		for size := 1; size < 7; size++ {
			var pages []string
			for q := (Search{Max: size}); ; {
				page := find(t, l, q)
				if s := said(page); s != "" {
					pages = append(pages, s)
				}
				if page.Next.IsZero() {
					break
				}
				var err error
				if q.From, err = ParsePosition(page.Next.String()); err != nil || q.From != page.Next {
					t.Fatalf("%v is read as %v: %v", page.Next, q.From, err)
				}
			}
			if got, want := strings.Join(pages, " "), said(find(t, l, Search{})); got != want {
				t.Errorf("%d a page in files of %d: %s, want %s", size, maxSize, got, want)
			}
		}
	}
}

// A position stays good when the file is put aside, and when it is deleted.
func TestPositionOfAFilePutAside(t *testing.T) {
	l := writeLog(t, 0, evening()...)
	first := find(t, l, Search{Max: 3})
	if err := os.Rename(l.path, l.path+".1"); err != nil {
		t.Fatal(err)
	}
	if got, want := said(find(t, l, Search{From: first.Next})), "a2=unknown b1=error a1=ok"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if err := os.Remove(l.path + ".1"); err != nil {
		t.Fatal(err)
	}
	if page := find(t, l, Search{From: first.Next}); len(page.Steps) > 0 || !page.Next.IsZero() {
		t.Errorf("%+v", page)
	}
	for _, s := range []string{"x", "1.-5", "1", ".", "zzzzzzzzzzzzzzzzzzzz.1", "1.1.1"} {
		if p, err := ParsePosition(s); err == nil {
			t.Errorf("%q is %v", s, p)
		}
	}
}

// Positions that no page gave lead to records, and never into one.
func TestAnyPosition(t *testing.T) {
	inside := query("x", "mallory", 1, "\n"+`{"time":"2026-11-24T12:00:00Z","event":"query","session":"y","user":"alice","sql":"forged"}`+"\n")
	l := writeLog(t, 0, append(evening(), inside)...)
	size := find(t, l, Search{}).Read
	whole := "SELECT"
	for _, st := range find(t, l, Search{}).Steps {
		whole += st.SQL + "\x00"
	}
	for at := int64(0); at < size+10; at += 3 {
		for _, st := range find(t, l, Search{From: Position{noon.UnixNano(), at}}).Steps {
			if !strings.Contains(whole, st.SQL+"\x00") || st.SQL == "forged" {
				t.Fatalf("from %d: %q", at, st.SQL)
			}
		}
		story, err := l.Story(t.Context(), Session{"y", everybody}, Position{noon.UnixNano(), at})
		if err != nil || story.About != nil {
			t.Fatalf("from %d: a forged session, %v", at, err)
		}
	}
}

func told(s Story) string {
	var list []string
	for _, st := range s.Steps {
		text := string(st.Event)
		if st.Event == audit.Query {
			text = st.SQL + "=" + st.Outcome()
		}
		list = append(list, text)
	}
	return strings.Join(list, " ")
}

func TestStory(t *testing.T) {
	for _, maxSize := range []int64{0, 700} {
		l := writeLog(t, maxSize, evening()...)
		for _, tt := range []struct {
			Session
			at    time.Time
			want  string
			whole bool
		}{
			{Session{"a", everybody}, time.Time{}, "connect a1=ok a2=unknown a3 Straße=truncated disconnect", true},
			{Session{"a", only("alice")}, noon.Add(5 * time.Second), "connect a1=ok a2=unknown a3 Straße=truncated disconnect", true},
			{Session{"b", everybody}, noon, "connect b1=error b2=denied b3 'quoted\" back\\slash'=unknown", true},
			{Session{"a", only("bob")}, time.Time{}, "", false},
			{Session{"nobody", everybody}, time.Time{}, "", false},
			{Session{"a", everybody}, noon.Add(time.Hour), "", false}, // it was not there then
			{Session{"", everybody}, time.Time{}, "", false},
		} {
			start, err := l.Find(t.Context(), tt.Session, Position{}, tt.at)
			if err != nil || start.Found != (tt.want != "") || start.Whole != tt.whole || start.Late {
				t.Errorf("%s at %v: %+v, %v", tt.ID, tt.at, start, err)
			}
			if !start.Found {
				if !start.Next.IsZero() {
					t.Errorf("%s: not found, and yet more: %v", tt.ID, start.Next)
				}
				continue
			}
			story, err := l.Story(t.Context(), tt.Session, start.Position)
			if got := told(story); err != nil || got != tt.want || story.Ended != (tt.ID == "a") || !story.Next.IsZero() {
				t.Errorf("%s in files of %d: %s, want %s; %+v, %v", tt.ID, maxSize, got, tt.want, story.Progress, err)
			}
		}
	}
}

// A long session is told in parts, and none is lost between them.
func TestStoryInParts(t *testing.T) {
	records := []audit.Record{{Event: audit.Connect, Session: "a", User: "alice"}}
	const n = 2*storySteps + 10
	for i := range int64(n) {
		records = append(records, query("a", "alice", i+1, fmt.Sprint(i)), query("z", "bob", i+1, "other"), answer("a", "alice", i+1, ""))
	}
	l := writeLog(t, 64<<10, records...)
	start, err := l.Since(t.Context(), noon)
	if err != nil {
		t.Fatal(err)
	}
	seen, parts := 0, 0
	for at := start; parts == 0 || !at.IsZero(); parts++ {
		story, err := l.Story(t.Context(), Session{"a", everybody}, at)
		if err != nil {
			t.Fatal(err)
		}
		for _, st := range story.Steps {
			if st.Event != audit.Query {
				continue
			}
			if st.SQL != fmt.Sprint(seen) || st.Outcome() != "ok" {
				t.Fatalf("statement %d is %q, %s", seen, st.SQL, st.Outcome())
			}
			seen++
		}
		at = story.Next
	}
	if seen != n || parts < 3 {
		t.Errorf("%d statements in %d parts, want %d", seen, parts, n)
	}
}

// What is no record is passed over, and a statement of mebibytes is shown in part.
func TestHostileLog(t *testing.T) {
	huge := query("h", "alice", 1, strings.Repeat("'\"\n", 1<<20))
	l := writeLog(t, 0, evening()...)
	f, err := os.OpenFile(l.path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString(strings.Join(hostileLines, ""))
	f.Write(make([]byte, 3*blockSize)) // a hole, as a crash leaves
	f.Close()
	w, err := audit.Open(l.path, audit.Options{Sync: audit.SyncNever})
	if err != nil {
		t.Fatal(err)
	}
	huge.Time = noon.Add(time.Hour)
	last := answer("h", "alice", 1, "")
	last.Time = noon.Add(time.Hour)
	for _, r := range []audit.Record{huge, last} {
		if err := w.Write(&r); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	page := find(t, l, Search{Sees: only("alice")})
	if n := len(page.Steps); n != 4 {
		t.Fatalf("%d statements: %.200s", n, said(page))
	}
	if st := page.Steps[0]; st.Outcome() != "ok" || !st.SQLCut || len(st.SQL) > shownText || !strings.HasPrefix(huge.SQL, st.SQL) {
		t.Errorf("%s, cut %v, %d bytes", st.Outcome(), st.SQLCut, len(st.SQL))
	}
	if got := said(find(t, l, Search{Text: "a1", Until: noon.Add(time.Minute)})); got != "a1=ok" {
		t.Errorf("before all that: %s", got)
	}
}

// While records are written and files put aside, nothing is missed and nothing is
// there twice.
func TestWhileWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	w, err := audit.Open(path, audit.Options{Sync: audit.SyncNever, MaxSize: 4 << 10})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	l := newLog(t, path)
	const n = 600
	written := make(chan int64, n)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(written)
		for i := range int64(n) {
			q, a := query("a", "alice", i+1, fmt.Sprint(i+1)), answer("a", "alice", i+1, "")
			q.Time, a.Time = time.Now(), time.Now()
			if w.Write(&q) != nil || w.Write(&a) != nil {
				t.Error("not written")
				return
			}
			written <- i + 1
		}
	})
	defer wg.Wait()
	for least := range written {
		want, q := int64(0), Search{Max: 100}
		for {
			page := find(t, l, q)
			for _, st := range page.Steps {
				if want == 0 {
					if want = st.Seq; want < least {
						t.Fatalf("the newest is %d, and %d is written", want, least)
					}
				}
				if st.Seq != want || st.Outcome() != "ok" && want != page.Steps[0].Seq {
					t.Fatalf("statement %d, %s; want %d", st.Seq, st.Outcome(), want)
				}
				want--
			}
			if page.Next.IsZero() {
				break
			}
			q.From = page.Next
		}
		if want != 0 {
			t.Fatalf("%d statements are missing", want)
		}
		for len(written) > 0 && least < n-1 { // as many as were written meanwhile
			least = <-written
		}
	}
}

// A request whose time is up says how far it has come, and goes on from there.
func TestOutOfTime(t *testing.T) {
	var records []audit.Record
	for i := range int64(5000) {
		records = append(records, query("a", "alice", i+1, strings.Repeat("x", 500)))
	}
	records[0].SQL = "the needle"
	l := writeLog(t, 0, records...)
	l.Budget = 0
	var page Page
	requests := 0
	for q := (Search{Text: "needle"}); len(page.Steps) == 0; requests++ {
		before := page.Left
		page = find(t, l, q)
		if requests > 0 && page.Left >= before {
			t.Fatalf("%d bytes were left, and are: %d", before, page.Left)
		}
		if len(page.Steps) == 0 && (!page.Late || page.Next.IsZero() || page.Reached.IsZero()) {
			t.Fatalf("nothing, and no more: %+v", page.Progress)
		}
		q.From = page.Next
	}
	if requests < 3 {
		t.Errorf("%d requests: the time was never up", requests)
	}
}

// What cannot be read back says so; a slot is given back and waited for.
func TestNew(t *testing.T) {
	if _, err := New("-"); err != ErrNoFile {
		t.Errorf("standard output: %v", err)
	}
	if _, err := New("/dev/null"); err != ErrNoFile {
		t.Errorf("a device: %v", err)
	}
	l := newLog(t, filepath.Join(t.TempDir(), "none"))
	if page := find(t, l, Search{}); len(page.Steps) > 0 || !page.Next.IsZero() {
		t.Errorf("no file: %+v", page)
	}
	for range readers {
		l.slots <- struct{}{}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.History(ctx, Search{Sees: everybody, Max: 1}); err != context.Canceled {
		t.Errorf("with no slot: %v", err)
	}
}

// Files are in the order of their records, whatever their names; a copy is read
// once, and other files not at all.
func TestFiles(t *testing.T) {
	l := writeLog(t, 700, evening()...)
	want := said(find(t, l, Search{}))
	names, err := l.aside()
	if err != nil || len(names) < 3 {
		t.Fatalf("%v, %v", names, err)
	}
	slices.Sort(names)
	for i, name := range names { // as logrotate numbers them
		if err := os.Rename(name, fmt.Sprintf("%s.%d", l.path, len(names)-i)); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(l.path)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{".bak": text, ".sha256": []byte("abc"), ".empty": nil} {
		if err := os.WriteFile(l.path+name, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(l.path+".d", 0o700); err != nil {
		t.Fatal(err)
	}
	if got := said(find(t, l, Search{})); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

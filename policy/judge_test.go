package policy

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestLargeTexts reads texts that people do send.
func TestLargeTexts(t *testing.T) {
	j := newJudge(t)
	document := strings.Repeat(`{"k": "v++ -- /* */ $$", "n": [1, 2, 3]},`, 26_000)
	script := strings.Repeat("UPDATE orders SET status = 'sent' WHERE id = 4711;\n", 800)
	rows := strings.Repeat("(1, 'a', now(), NULL, 2.5),\n", 5000)
	for name, c := range map[string]struct {
		sql        string
		statements int
	}{
		"a document of 1 MiB":  {"UPDATE orders SET doc = '" + document + "' WHERE id = 1", 1},
		"in dollar quotes":     {"UPDATE orders SET doc = $doc$" + document + "$doc$ WHERE id = 1", 1},
		"in an escape string":  {"UPDATE orders SET doc = E'" + document + "' WHERE id = 1", 1},
		"16 MiB":               {"SELECT '" + strings.Repeat("x", MaxText-9) + "'", 1},
		"a script":             {script, 800},
		"many rows":            {"INSERT INTO orders VALUES " + rows + "(1, 'a', now(), NULL, 2.5)", 1},
		"a banner in comments": {strings.Repeat("/*"+strings.Repeat("*", 77)+"/\n"+strings.Repeat("-", 80)+"\n", 500) + "SELECT 1", 1},
		"a long list":          {"SELECT * FROM orders WHERE id IN (1" + strings.Repeat(", 4711", 20_000) + ")", 1},
	} {
		msg, err := j.Parse(t.Context(), c.sql)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if len(msg.Statements) != c.statements {
			t.Errorf("%s: %d statements, want %d", name, len(msg.Statements), c.statements)
		}
	}
	_, err := j.Parse(t.Context(), strings.Repeat(" ", MaxText+1))
	if r, ok := err.(*Refusal); !ok || r.Code != "54001" {
		t.Errorf("a text beyond the limit: %v", err)
	}
}

// TestOutside compares what a parser process makes of a text with what this
// process makes of it.
func TestOutside(t *testing.T) {
	j := newJudge(t)
	for _, sql := range []string{
		"SELECT 1; UPDATE t SET a = 1 WHERE b = 2 OR c IN (3, 4)",
		"PREPARE p AS WITH d AS (DELETE FROM a.t WHERE x = 1 RETURNING *) SELECT pg_read_file('x') FROM d",
		"EXPLAIN ANALYZE EXECUTE p; DEALLOCATE ALL; FETCH c; VACUUM",
		"SET LOCAL pgproxy.max_rows = 5; SHOW pgproxy.limits; BEGIN; SET role = x",
		"INSERT INTO t (id) SELECT f() ON CONFLICT (id) DO UPDATE SET a = 1; SELECT set_config('a.b', '', true); DEALLOCATE \"*\"",
		"",
	} {
		inside, refusal := parse(sql)
		if refusal != nil {
			t.Fatalf("%s: %v", sql, refusal)
		}
		outside, refusal := j.parseOutside(t.Context(), "", sql)
		if refusal != nil {
			t.Fatalf("%s: %v", sql, refusal)
		}
		if a, b := fmt.Sprintf("%+v", describe(inside)), fmt.Sprintf("%+v", describe(outside)); a != b {
			t.Errorf("%s:\ninside  %s\noutside %s", sql, a, b)
		}
	}
	_, inside := parse("SELECT é FROM t WHERE x y z")
	_, outside := j.parseOutside(t.Context(), "", "SELECT é FROM t WHERE x y z")
	if inside == nil || outside == nil || *inside != *outside {
		t.Errorf("refusals: inside %+v, outside %+v", inside, outside)
	}
}

// describe shows all of a message, behind pointers too.
func describe(msg *Message) []string {
	lines := []string{msg.Fingerprint, strings.Join(msg.kinds, " ")}
	for _, st := range msg.Statements {
		if st.Proxy != nil {
			lines = append(lines, fmt.Sprintf("%+v", *st.Proxy))
			st.Proxy = nil
		}
		for i, a := range st.facts.Effects {
			if a.Change != nil {
				lines = append(lines, fmt.Sprintf("%+v", *a.Change))
			}
			if a.Target != nil {
				lines = append(lines, fmt.Sprintf("%+v", *a.Target))
			}
			st.facts.Effects[i].Change, st.facts.Effects[i].Target = nil, nil
		}
		lines = append(lines, fmt.Sprintf("%+v", st))
	}
	return lines
}

// TestCrash overflows the stack of a parser process: the text is refused, and
// the next one is read.
func TestCrash(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	j := newJudge(t)
	for range 3 {
		_, err := j.Parse(t.Context(), "SELECT 1"+strings.Repeat("+1", 100_000))
		if r, ok := err.(*Refusal); !ok || r.Code != "54001" {
			t.Fatalf("%v", err)
		}
		if _, err := j.Parse(t.Context(), "SELECT '"+strings.Repeat("x", 5000)+"'"); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCanceled gives up on a text: its process ends with it.
func TestCanceled(t *testing.T) {
	j := newJudge(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := j.Parse(ctx, "SELECT '"+strings.Repeat("x", 5000)+"'")
	if r, ok := err.(*Refusal); !ok || r.Code != "57014" {
		t.Errorf("%v", err)
	}
}

// TestBadText gives bytes that no client may send.
func TestBadText(t *testing.T) {
	j := newJudge(t)
	for _, sql := range []string{"SELECT 1\x00; DROP TABLE t", "SELECT '\xff'", "SELECT 1 -- \xc3"} {
		_, err := j.Parse(t.Context(), sql)
		if r, ok := err.(*Refusal); !ok || r.Code != "22021" {
			t.Errorf("%q: %v", sql, err)
		}
	}
}

// TestUnderLoad keeps the parser processes busy with hostile texts while
// others read theirs.
func TestUnderLoad(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	j := newJudge(t)
	hostile := []string{
		"SELECT 1" + strings.Repeat("+1", 150_000),
		"SELECT 1" + strings.Repeat("::a", 60_000),
		strings.Repeat("SELECT 1;", 9_000),
	}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var answered atomic.Int64
	for i := range 8 {
		wg.Go(func() {
			for n := i; ctx.Err() == nil; n++ {
				_, _ = j.Parse(ctx, hostile[n%len(hostile)]+fmt.Sprint(n))
				answered.Add(1)
			}
		})
	}
	var took []time.Duration
	for answered.Load() < 12 || len(took) < 400 {
		began := time.Now()
		if _, err := j.Parse(t.Context(), fmt.Sprintf("SELECT a%d FROM t WHERE id = 1", len(took))); err != nil {
			t.Error(err)
		}
		took = append(took, time.Since(began))
	}
	stop()
	wg.Wait()
	slices.Sort(took)
	median, most := took[len(took)/2], took[len(took)*99/100]
	t.Logf("%d statements beside %d hostile ones: median %v, 99 of 100 within %v", len(took), answered.Load(), median, most)
	if median > 10*time.Millisecond {
		t.Errorf("a small statement takes %v beside hostile ones", median)
	}
}

// TestFairParsers has one caller send text after text, each of which keeps a
// parser process for a while. Another's are read between them: not one waits
// until one of those has been read.
func TestFairParsers(t *testing.T) {
	j := newJudge(t)
	ctx, stop := context.WithCancel(t.Context())
	slow := "SELECT 1 WHERE a IN (" + strings.Repeat("1,", 100_000)
	var wg sync.WaitGroup
	var answered atomic.Int64
	begun := make(chan struct{}, 6)
	for i := range cap(begun) {
		wg.Go(func() {
			begun <- struct{}{}
			for n := 0; ctx.Err() == nil; n++ {
				_, _ = j.ParseFor(ctx, "mallory", fmt.Sprintf("%s%d)", slow, 1000*i+n))
				answered.Add(1)
			}
		})
	}
	for range cap(begun) {
		<-begun
	}
	const texts = 30
	for i := range texts {
		sql := fmt.Sprintf("SELECT '%s%d'", strings.Repeat("x", 5000), i)
		if _, err := j.ParseFor(t.Context(), "alice", sql); err != nil {
			t.Error(err)
		}
	}
	if n := answered.Load(); n > texts/2 {
		t.Errorf("%d of the one's texts were read while %d of the other's were", n, texts)
	}
	stop()
	wg.Wait()
}

// stackVariable makes a test process parse its hostile texts and exit: see
// TestStack.
const stackVariable = "PGPROXY_TEST_STACK"

// TestStack checks stackPerByte: on a stack of 1 MiB, texts of twice the size
// that is reckoned with for it do not overflow it, nested in all the ways that
// the grammar has.
func TestStack(t *testing.T) {
	const stack = 1 << 20
	if os.Getenv(stackVariable) != "" {
		done := make(chan struct{})
		go func() { // on a thread with the stack of any other
			defer close(done)
			for _, sql := range deepTexts(2 * stack / stackPerByte) {
				_, _ = parse(sql)
			}
		}()
		<-done
		return
	}
	cmd := exec.Command("sh", "-c", `ulimit -s 1024 && ulimit -c 0 && exec "$0" -test.run '^TestStack$'`, os.Args[0])
	cmd.Env = append(os.Environ(), stackVariable+"=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%.2000s", err, out)
	}
}

// deepTexts are texts of a size that nest as deep as they can.
func deepTexts(size int) []string {
	var texts []string
	for _, shape := range []struct{ head, open, close, tail string }{
		{"SELECT 1", "+1", "", ""},
		{"SELECT ", "+", "", "1"},
		{"SELECT ", "- ", "", "a"},
		{"SELECT 1", "::a", "", ""},
		{"SELECT ", "(", ")", ""},
		{"SELECT array", "[", "]", ""},
		{"SELECT ", "f(", ")", ""},
		{"SELECT ", "(1,", "1)", ""},
		{"SELECT ", "NOT ", "", "a"},
		{"SELECT ", "@ ", "", "1"},
		{"SELECT ", "json(", ")", ""},
		{"", "(SELECT ", ")", ""},
		{"SELECT", " UNION SELECT", "", ""},
		{"", "WITH a AS(", ")SELECT", ""},
		{"SELECT FROM a", " NATURAL JOIN a", "", ""},
		{"SELECT a", " ISNULL", "", ""},
		{"SELECT a", " COLLATE a", "", ""},
		{"SELECT a", " IN(a)", "", ""},
	} {
		n := size / (len(shape.open) + len(shape.close))
		texts = append(texts, shape.head+strings.Repeat(shape.open, n)+strings.Repeat(shape.close, n)+shape.tail)
	}
	return texts
}

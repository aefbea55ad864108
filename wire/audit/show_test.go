package audit

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// storyLog is a log of two people's sessions.
func storyLog(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "audit.log")
	w := open(t, path, Options{MaxSQL: 60})
	now := time.Now().UTC()
	rows, ms := int64(3), 12.345
	until := time.Date(2026, 11, 22, 10, 15, 0, 0, time.UTC)
	for i, r := range []Record{
		{Event: Connect, Session: "a1b2", User: "alice@example.com", Node: "laptop", Database: "app", Upstream: "db:5432", Client: "psql"},
		{Event: Connect, Session: "c3d4", User: "bob@example.com", Node: "phone", Database: "app", Upstream: "db:5432"},
		{Event: Query, Session: "a1b2", Seq: 1, SQL: "SELECT *\nFROM orders", Verdict: "allow"},
		{Event: Result, Session: "a1b2", Seq: 1, Tag: "SELECT 3", Rows: &rows, DurationMS: &ms},
		{Event: Query, Session: "c3d4", User: "bob@example.com", Seq: 1, SQL: "DELETE FROM orders", Verdict: "deny", Rule: "require_where", SQLState: "42501", Error: "no WHERE"},
		{Event: Query, Session: "c3d4", Seq: 2, SQL: "SELECT '\x1b[2J\u202e" + strings.Repeat("x", 100) + "'", Verdict: "allow"},
		{Event: Result, Session: "c3d4", Seq: 2, Truncated: true, Cancelled: true, Affected: &rows, SQLState: "54000", Error: "row cap"},
		{Event: Tamper, Session: "c3d4", Tampered: "application_name"},
		{Event: Elevate, Session: "c3d4", Step: "given", Access: "write", Approver: "bob@example.com on phone", Request: "k3v9qa", Until: &until},
		{Event: Disconnect, Session: "a1b2", EndReason: "client closed", Reason: "INC-123", DurationMS: &ms},
	} {
		r.Time = now.Add(time.Duration(i-20) * time.Minute)
		if err := w.Write(&r); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	f.WriteString(`{"torn`)
	return path
}

func show(t *testing.T, args ...string) string {
	t.Helper()
	var out, errs strings.Builder
	if err := Command(context.Background(), append([]string{"show"}, args...), &out, &errs); err != nil {
		t.Fatalf("%v %s", err, errs.String())
	}
	return out.String()
}

func TestShow(t *testing.T) {
	path := storyLog(t)
	all := show(t, path)
	for _, want := range []string{
		" UTC ──\n",
		"write access given by bob@example.com on phone (request k3v9qa) until 10:15:00",
		"a1b2  alice@example.com (laptop)  connected to app on db:5432, with psql\n",
		"a1b2  alice@example.com  SELECT *\n        FROM orders\n",
		"→ SELECT 3, 3 rows sent (12 ms)\n",
		"DELETE FROM orders\n        REFUSED by rule require_where ERROR 42501: no WHERE\n",
		`SELECT '\x1b[2J\u202exxx`, "… (cut: ",
		"3 rows changed, cut off by a cap, cancelled ERROR 54000: row cap",
		"tamper application_name",
		"disconnect: client closed (12 ms) [INC-123]",
		"(6 bytes that are no record)",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("missing %q in\n%s", want, all)
		}
	}
	if strings.ContainsAny(all, "\x1b\u202e") {
		t.Error("a control character got through")
	}
	if got := show(t, "-session", "a1", path); strings.Count(got, "\n") != 6 || strings.Contains(got, "bob") {
		t.Errorf("one session:\n%s", got)
	}
	if got := show(t, "-user", "Bob@example.com", path); strings.Count(got, "c3d4") != 6 || strings.Contains(got, "alice") {
		t.Errorf("one person:\n%s", got)
	}
	if got := show(t, "-since", "14m30s", path); strings.Contains(got, "row cap") == strings.Contains(got, "DELETE") {
		t.Errorf("since:\n%s", got)
	}
	for _, line := range strings.Split(strings.TrimSpace(show(t, "-json", "-user", "alice@example.com", path)), "\n") {
		var r Record
		if err := json.Unmarshal([]byte(line), &r); err != nil || r.Session != "a1b2" {
			t.Errorf("%v: %s", err, line)
		}
	}
}

func TestDuration(t *testing.T) {
	for ms, want := range map[float64]string{
		0: "0.0 ms", 0.31: "0.3 ms", 9.94: "9.9 ms", 9.96: "10 ms", 349.6: "350 ms", 999.4: "999 ms", 999.6: "1.0 s", 1234: "1.2 s", 9960: "10 s", 45_400: "45 s",
		59_700: "1 min", 125_000: "2 min 5 s", 3_599_700: "1 h", 3_600_000: "1 h", 7_265_000: "2 h 1 min", 86_400_000: "1 d", 100 * 3_600_000: "4 d 4 h",
	} {
		if got := duration(ms); got != want {
			t.Errorf("%v ms: %q, want %q", ms, got, want)
		}
	}
}

func TestSince(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	for s, want := range map[string]string{
		"90m": "2026-11-24T10:30:00Z", "2h": "2026-11-24T10:00:00Z", "1d": "2026-11-23T12:00:00Z", "2w": "2026-11-10T12:00:00Z", "1d12h": "2026-11-23T00:00:00Z",
		"30s": "2026-11-24T11:59:30Z", "5min": "2026-11-24T11:55:00Z",
		"2026-11-22": "2026-11-22T00:00:00Z", "2026-11-22 10:41": "2026-11-22T10:41:00Z", "2026-11-22T10:41": "2026-11-22T10:41:00Z", "2026-11-22 10:41:30": "2026-11-22T10:41:30Z",
		"2026-11-22T10:41:30+02:00": "2026-11-22T08:41:30Z",
	} {
		if got, err := ParseTime(s, now); err != nil || got.UTC().Format(time.RFC3339) != want {
			t.Errorf("%s: %v, %v; want %s", s, got, err, want)
		}
	}
	for _, s := range []string{"", "1", "d", "1y", "-1d", "1d 2h", "yesterday", "2026-13-01", "999999999w", "60000d60000d"} {
		if got, err := ParseTime(s, now); err == nil {
			t.Errorf("%q is %v", s, got)
		}
	}
}

// A wrong value gets one line that says what is right, and not all flags.
func TestWrongFlag(t *testing.T) {
	for _, args := range [][]string{{"show", "-since", "yesterday", "x"}, {"show", "-nope", "x"}, {"verify", "-nope", "x"}, {"show", "-markdown", "-f", "x"}} {
		var out, errs strings.Builder
		err := Command(t.Context(), args, &out, &errs)
		if err == nil || strings.Contains(err.Error(), "\n") || out.String()+errs.String() != "" {
			t.Errorf("%q: %v\n%s%s", args, err, out.String(), errs.String())
		}
	}
	var out strings.Builder
	if err := Command(t.Context(), []string{"show", "-h"}, &out, io.Discard); err != nil || !strings.Contains(out.String(), "1d or 2w") {
		t.Errorf("%v\n%s", err, out.String())
	}
}

// asksItself is what psql sends for \d.
const asksItself = `SELECT c.oid,
  n.nspname,
  c.relname
FROM pg_catalog.pg_class c
     LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relname OPERATOR(pg_catalog.~) '^(orders)$' COLLATE pg_catalog.default
  AND pg_catalog.pg_table_is_visible(c.oid)
ORDER BY 2, 3;`

// clientsLog is a log of a psql that asks the catalogue by itself, of one whose
// question was refused, and of a program that has copied it.
func clientsLog(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "audit.log")
	w := open(t, path, Options{})
	rows := int64(1)
	for _, r := range []Record{
		{Event: Connect, Session: "a1", User: "alice@example.com", Node: "laptop", Client: "psql", Database: "app", Upstream: "db:5432"},
		{Event: Query, Session: "a1", Seq: 1, SQL: asksItself, Verdict: "allow"},
		{Event: Result, Session: "a1", Seq: 1, Tag: "SELECT 1", Rows: &rows},
		{Event: Query, Session: "a1", Seq: 2, SQL: "UPDATE orders SET state = 'a|b`c' WHERE id = 7", Verdict: "allow", Reason: "INC-123"},
		{Event: Result, Session: "a1", Seq: 2, Tag: "UPDATE 1", Affected: &rows},
		{Event: Query, Session: "a1", Seq: 3, SQL: asksItself, Verdict: "deny", Rule: "only"},
		{Event: Query, Session: "a1", Seq: 4, SQL: strings.Replace(asksItself, "c.oid,", "c.oid, pg_catalog.pg_read_file('x'),", 1), Verdict: "allow"},
		{Event: Tamper, Session: "a1", Tampered: "statement_timeout"},
		{Event: Observe, Session: "a1", Observer: "oncall@example.com on phone"},
		{Event: "later", Session: "a1"},
		{Event: Connect, Session: "b2", User: "bob@example.com", Client: "report.py"},
		{Event: Query, Session: "b2", Seq: 1, SQL: asksItself, Verdict: "allow"},
		{Event: Result, Session: "b2", Seq: 1, Tag: "SELECT 1", Rows: &rows},
	} {
		r.Time = time.Date(2026, 11, 24, 10, 41, 30, 0, time.UTC)
		if err := w.Write(&r); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	return path
}

func TestHidesThePsqlsOwn(t *testing.T) {
	path := clientsLog(t)
	var out, errs strings.Builder
	if err := Command(t.Context(), []string{"show", path}, &out, &errs); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), "nspname"); n != 3 || strings.Count(out.String(), "→") != 2 {
		t.Errorf("%d catalogue queries, want the one refused, the one changed and the program's:\n%s", n, out.String())
	}
	if want := "(1 statement of psql's own, "; !strings.Contains(errs.String(), want) {
		t.Errorf("%q, want %q", errs.String(), want)
	}
	if all := show(t, "-all", path); strings.Count(all, "nspname") != 4 || strings.Count(all, "→") != 3 {
		t.Errorf("-all shows not all:\n%s", all)
	}
}

func TestMarkdown(t *testing.T) {
	got := show(t, "-markdown", "-user", "alice@example.com", clientsLog(t))
	for _, want := range []string{
		"# Session a1, 2026-11-24 10:41 to 10:41 UTC\n\n- a1: alice@example.com (laptop), database app on db:5432, with psql; connected 2026-11-24 10:41:30.\n\n" +
			"4 statements: 1 refused, 1 without an outcome on record, 1 psql's own. Reasons given: INC-123.\n\n| time (UTC) | person | what | outcome |\n|---|---|---|---|\n",
		"| 10:41:30 | alice@example.com (laptop) | connected to app on db:5432, with psql | |\n",
		"| 10:41:30 | alice@example.com | *psql asked the catalogue by itself: 1 statement* | |\n",
		"| 10:41:30 | alice@example.com | `` UPDATE orders SET state = 'a\\|b`c' WHERE id = 7 `` | UPDATE 1, 1 row changed |\n",
		"| REFUSED by rule only |\n", "| not on record |\n",
		"| tamper statement\\_timeout | |\n", "| session seen by oncall@example.com on phone | |\n", "| later | |\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing from\n%s", want, got)
		}
	}
	if n := strings.Count(got, "nspname"); n != 2 {
		t.Errorf("%d catalogue queries, want the one refused and the one changed:\n%s", n, got)
	}
	if got := show(t, "-markdown", "-all", clientsLog(t)); strings.Count(got, "nspname") != 4 || !strings.HasPrefix(got, "# Timeline, ") || strings.Count(got, "\n- ") != 2 {
		t.Errorf("two sessions, with psql's own:\n%s", got)
	}
	if got := show(t, "-markdown", "-since", "1m", clientsLog(t)); !strings.Contains(got, "Nothing on record.") {
		t.Error(got)
	}
}

func TestCommandUsage(t *testing.T) {
	for _, args := range [][]string{nil, {"show"}, {"verify"}, {"burn"}, {"show", "-nope", "x"}, {"show", "/nonexistent"}} {
		if err := Command(context.Background(), args, io.Discard, io.Discard); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
	if err := Command(context.Background(), []string{"show", "-h"}, io.Discard, io.Discard); err != nil {
		t.Error(err)
	}
}

// TestFollow writes, rotates and writes on, and reads along.
func TestFollow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	w := open(t, path, Options{})
	write(t, w, "one")
	r, out := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- Command(ctx, []string{"show", "-json", "-f", path}, out, io.Discard) }()
	records := json.NewDecoder(r)
	for i, sql := range []string{"one", "two", "three", "four"} {
		switch i {
		case 2:
			if err := os.Rename(path, path+".1"); err != nil {
				t.Fatal(err)
			}
			if err := w.Reopen(); err != nil {
				t.Fatal(err)
			}
		}
		if i > 0 {
			write(t, w, sql)
		}
		var got Record
		if err := records.Decode(&got); err != nil || got.SQL != sql {
			t.Fatalf("got %q, %v; want %q", got.SQL, err, sql)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

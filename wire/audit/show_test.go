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
	for i, r := range []Record{
		{Event: Connect, Session: "a1b2", User: "alice@example.com", Node: "laptop", Database: "app", Upstream: "db:5432", Client: "psql"},
		{Event: Connect, Session: "c3d4", User: "bob@example.com", Node: "phone", Database: "app", Upstream: "db:5432"},
		{Event: Query, Session: "a1b2", Seq: 1, SQL: "SELECT *\nFROM orders", Verdict: "allow"},
		{Event: Result, Session: "a1b2", Seq: 1, Tag: "SELECT 3", Rows: &rows, DurationMS: &ms},
		{Event: Query, Session: "c3d4", User: "bob@example.com", Seq: 1, SQL: "DELETE FROM orders", Verdict: "deny", Rule: "require_where", SQLState: "42501", Error: "no WHERE"},
		{Event: Query, Session: "c3d4", Seq: 2, SQL: "SELECT '\x1b[2J\u202e" + strings.Repeat("x", 100) + "'", Verdict: "allow"},
		{Event: Result, Session: "c3d4", Seq: 2, Truncated: true, Cancelled: true, Affected: &rows, SQLState: "54000", Error: "row cap"},
		{Event: Tamper, Session: "c3d4", Tampered: "application_name"},
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
		"a1b2  alice@example.com (laptop)  connected to app on db:5432, with psql\n",
		"a1b2  alice@example.com  SELECT *\n        FROM orders\n",
		"→ SELECT 3, 3 rows sent (12.3 ms)\n",
		"DELETE FROM orders\n        REFUSED by rule require_where ERROR 42501: no WHERE\n",
		`SELECT '\x1b[2J\u202exxx`, "… (cut: ",
		"3 rows changed, cut off by a cap, cancelled ERROR 54000: row cap",
		"tamper application_name",
		"disconnect: client closed (12.3 ms) [INC-123]",
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
	if got := show(t, "-user", "Bob@example.com", path); strings.Count(got, "c3d4") != 5 || strings.Contains(got, "alice") {
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

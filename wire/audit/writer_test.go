package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func open(t testing.TB, path string, o Options) *Writer {
	t.Helper()
	w, err := Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	})
	return w
}

func write(t testing.TB, w *Writer, sql ...string) {
	t.Helper()
	for _, s := range sql {
		if err := w.Write(&Record{Time: time.Now(), Event: Query, SQL: s}); err != nil {
			t.Fatal(err)
		}
	}
}

// statements are the SQL of the records in the files, in order.
func statements(t testing.TB, files ...string) []string {
	t.Helper()
	var list []string
	err := eachLine(files, func(_ Place, line []byte) error {
		var r Record
		if json.Unmarshal(line, &r) == nil {
			list = append(list, r.SQL)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func sound(t testing.TB, want int64, files ...string) Report {
	t.Helper()
	report, err := Verify(files...)
	if err != nil {
		t.Fatal(err)
	}
	if report.Break != nil {
		t.Fatalf("chain broken at %v", report.Break)
	}
	if report.Records != want {
		t.Fatalf("%d records, want %d", report.Records, want)
	}
	return report
}

func TestWriteAndReopen(t *testing.T) {
	for _, mode := range []Sync{SyncAlways, SyncInterval, SyncNever} {
		path := filepath.Join(t.TempDir(), "audit.log")
		w := open(t, path, Options{Sync: mode})
		write(t, w, "one", "two")
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Fatalf("mode %v, %v", info.Mode(), err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if err := w.Write(&Record{}); !errors.Is(err, os.ErrClosed) {
			t.Errorf("write after close: %v", err)
		}
		write(t, open(t, path, Options{Sync: mode}), "three")
		if got := statements(t, path); strings.Join(got, " ") != "one two three" {
			t.Errorf("got %q", got)
		}
		if r := sound(t, 3, path); len(r.Notes) != 1 {
			t.Errorf("notes %v", r.Notes)
		}
	}
}

func TestSecondProcessIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	open(t, path, Options{})
	if _, err := Open(path, Options{}); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("got %v", err)
	}
}

// TestConcurrent has many sessions write at once while the log is rotated in
// both ways: no record may be lost, doubled, split or out of its session's order.
func TestConcurrent(t *testing.T) {
	for _, mode := range []Sync{SyncAlways, SyncInterval} {
		dir := t.TempDir()
		path := filepath.Join(dir, "audit.log")
		w := open(t, path, Options{Sync: mode, MaxSize: 20_000})
		const sessions, each = 16, 60
		var wg sync.WaitGroup
		for s := range sessions {
			wg.Go(func() {
				for i := range each {
					if err := w.Write(&Record{Time: time.Now(), Session: fmt.Sprint(s), Seq: int64(i + 1), SQL: strings.Repeat("x", 50)}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		for i := range 10 {
			if err := os.Rename(path, fmt.Sprintf("%s-%d", path, i)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Error(err)
			}
			if err := w.Reopen(); err != nil {
				t.Error(err)
			}
		}
		wg.Wait()
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		files, _ := filepath.Glob(path + "*")
		if len(files) < 15 {
			t.Errorf("only %d files", len(files))
		}
		last := map[string]int64{}
		eachLine(files, func(at Place, line []byte) error {
			var r Record
			if err := json.Unmarshal(line, &r); err != nil {
				t.Errorf("%v: %v", at, err)
			}
			if r.Seq != last[r.Session]+1 {
				t.Errorf("%v: session %s has %d after %d", at, r.Session, r.Seq, last[r.Session])
			}
			last[r.Session] = r.Seq
			return nil
		})
		sound(t, sessions*each, files...)
	}
}

func TestRotationBySize(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	w := open(t, path, Options{MaxSize: 1000})
	for range 20 {
		write(t, w, "SELECT 1")
	}
	write(t, w, strings.Repeat("x", 3000)) // larger than a whole file may be
	write(t, w, "last")
	files, _ := filepath.Glob(path + "*")
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil || len(data) == 0 || data[len(data)-1] != '\n' || len(data) > 1000 && bytes.Count(data, []byte("\n")) != 1 {
			t.Errorf("%s: %d bytes, %v", f, len(data), err)
		}
	}
	sound(t, 22, files...)
}

// TestRestartAfterRotation: the process ended after the log was moved away and
// before it wrote a record to the new one.
func TestRestartAfterRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	w := open(t, path, Options{})
	write(t, w, "one")
	w.Close()
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	write(t, open(t, path, Options{}), "two")
	if r := sound(t, 2, path, path+".1"); len(r.Notes) != 1 {
		t.Errorf("notes %v", r.Notes)
	}
}

func TestTornLine(t *testing.T) {
	for name, tt := range map[string]struct {
		spoil func([]byte) []byte
		want  string
		notes int
	}{
		"cut in the middle": {func(b []byte) []byte { return b[:len(b)-100] }, "one two four", 2},
		"newline lost":      {func(b []byte) []byte { return b[:len(b)-1] }, "one two three four", 1},
		"zeros at the end":  {func(b []byte) []byte { return append(b, make([]byte, 4096)...) }, "one two three four", 2},
		"garbage lines":     {func(b []byte) []byte { return append(b, "what?\nis this\n"...) }, "one two three four", 2},
		"all torn":          {func(b []byte) []byte { return b[:10] }, "four", 2},
		"empty":             {func(b []byte) []byte { return nil }, "four", 1},
		"far back": {func(b []byte) []byte { return append(b, bytes.Repeat([]byte("y"), 3*tailWindow)...) },
			"one two three four", 2},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "audit.log")
			w := open(t, path, Options{})
			write(t, w, "one", "two", "three")
			w.Close()
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, tt.spoil(data), 0o600); err != nil {
				t.Fatal(err)
			}
			w = open(t, path, Options{})
			write(t, w, "four")
			want := strings.Fields(tt.want)
			if got := statements(t, path); strings.Join(got, " ") != tt.want {
				t.Errorf("got %q", got)
			}
			if r := sound(t, int64(len(want)), path); len(r.Notes) != tt.notes {
				t.Errorf("notes %v", r.Notes)
			}
		})
	}
}

// TestLongLastLine: the last record is longer than what is read at first.
func TestLongLastLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	w := open(t, path, Options{})
	write(t, w, "one", strings.Repeat("x", 20*tailWindow))
	w.Close()
	write(t, open(t, path, Options{}), "three")
	if r := sound(t, 3, path); len(r.Notes) != 1 {
		t.Errorf("notes %v", r.Notes)
	}
}

// TestRemoved: somebody deletes the log, and then its folder.
func TestRemoved(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	path := filepath.Join(dir, "audit.log")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	w := open(t, path, Options{})
	w.lookInterval = 0
	write(t, w, "one")
	os.Remove(path)
	write(t, w, "two")
	if got := statements(t, path); strings.Join(got, " ") != "two" {
		t.Errorf("got %q", got)
	}
	os.RemoveAll(dir)
	if err := w.Write(&Record{SQL: "three"}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if w.Healthy() == nil {
		t.Error("healthy without a folder")
	}
	os.Mkdir(dir, 0o700)
	if err := w.Healthy(); err != nil {
		t.Error(err)
	}
	write(t, w, "four")
	if r := sound(t, 1, path); len(r.Notes) != 1 {
		t.Errorf("notes %v", r.Notes)
	}
}

// TestCopyTruncate is logrotate's other way.
func TestCopyTruncate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	w := open(t, path, Options{})
	write(t, w, "one")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	os.WriteFile(path+".1", data, 0o600)
	os.Truncate(path, 0)
	write(t, w, "two")
	sound(t, 2, path+".1", path)
}

// TestPipe writes to a named pipe whose reader goes away and comes back.
func TestPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, Options{}); err == nil || !strings.Contains(err.Error(), "a FIFO that nobody reads") {
		t.Fatalf("no reader: %v", err)
	}
	reader := openPipe(t, path)
	w := open(t, path, Options{Sync: SyncAlways})
	write(t, w, "one")
	first := readSome(t, reader)
	reader.Close()
	if err := w.Write(&Record{SQL: "two"}); !errors.Is(err, unix.EPIPE) {
		t.Fatalf("reader gone: %v", err)
	}
	if err := w.Write(&Record{SQL: "three"}); err == nil || !strings.Contains(err.Error(), "a FIFO that nobody reads") {
		t.Fatalf("reader still gone: %v", err)
	}
	reader = openPipe(t, path)
	write(t, w, "four")
	got := filepath.Join(t.TempDir(), "got")
	if err := os.WriteFile(got, append(first, readSome(t, reader)...), 0o600); err != nil {
		t.Fatal(err)
	}
	if s := strings.Join(statements(t, got), " "); s != "one four" {
		t.Errorf("got %q", s)
	}
	sound(t, 2, got)
}

func openPipe(t *testing.T, path string) *os.File {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func readSome(t *testing.T, f *os.File) []byte {
	buf := make([]byte, 1<<16)
	n, err := f.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

// TestTornInPipe: a pipe takes a part of a record and then no more, as nobody
// reads. The next record closes the line and says how much of it is no
// record.
func TestTornInPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	reader := openPipe(t, path)
	w := open(t, path, Options{})
	w.pipeTimeout = 50 * time.Millisecond
	write(t, w, "one")
	if err := w.Write(&Record{SQL: strings.Repeat("x", 1<<20)}); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("nobody reads: %v", err)
	}
	got, err := io.ReadAll(reader) // to the end, as the writer has let go of it
	if err != nil {
		t.Fatal(err)
	}
	write(t, w, "three")
	got = append(got, readSome(t, reader)...)
	copied := filepath.Join(t.TempDir(), "got")
	if err := os.WriteFile(copied, got, 0o600); err != nil {
		t.Fatal(err)
	}
	if s := strings.Join(statements(t, copied), " "); s != "one three" {
		t.Errorf("got %q", s)
	}
	if rep := sound(t, 2, copied); len(rep.Notes) != 2 {
		t.Errorf("notes %v", rep.Notes)
	}
}

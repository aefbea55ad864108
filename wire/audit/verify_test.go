package audit

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// sampleLog is a log of ten records, as lines.
func sampleLog(t *testing.T) [][]byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "audit.log")
	w := open(t, path, Options{})
	for i := range 10 {
		write(t, w, fmt.Sprintf("SELECT %d", i))
	}
	w.Close()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return slices.Collect(bytes.Lines(data))
}

// seal1 makes a line of a record's fields.
func seal1(fields string, prev link) ([]byte, link) {
	b := []byte(fields + chainMark)
	return closeRecord(b, sha256.Sum256(b), prev, 0)
}

// TestTampering alters a log in the ways people do, and requires the line
// where it shows.
func TestTampering(t *testing.T) {
	for _, tt := range []struct {
		name   string
		tamper func([][]byte) [][]byte
		line   int // 0 for a sound log
		what   string
	}{
		{"nothing", func(l [][]byte) [][]byte { return l }, 0, ""},
		{"a line removed", func(l [][]byte) [][]byte { return slices.Delete(l, 4, 5) }, 5, "missing or altered"},
		{"a statement altered", func(l [][]byte) [][]byte {
			l[4] = bytes.Replace(l[4], []byte("SELECT 4"), []byte("SELECT 5"), 1)
			return l
		}, 5, "was altered"},
		{"the last altered", func(l [][]byte) [][]byte { l[9] = bytes.Replace(l[9], []byte("SELECT"), []byte("DELETE"), 1); return l }, 10, "was altered"},
		{"a hash altered", func(l [][]byte) [][]byte { l[4][len(l[4])-5] ^= 1; return l }, 5, "was altered"},
		{"lines swapped", func(l [][]byte) [][]byte { l[4], l[5] = l[5], l[4]; return l }, 5, "missing or altered"},
		{"a line doubled", func(l [][]byte) [][]byte { return slices.Insert(l, 4, l[4]) }, 6, "missing or altered"},
		{"a line put in", func(l [][]byte) [][]byte { return slices.Insert(l, 4, []byte("{\"sql\":\"SELECT 3\"}\n")) }, 5, "no record"},
		{"a good record, sealed anew", func(l [][]byte) [][]byte {
			prev, _, _ := links(bytes.TrimSuffix(l[4], []byte("\n")))
			l[4], _ = seal1(`{"sql":"SELECT 5"`, prev)
			return l
		}, 6, "missing or altered"},
		{"the hash cut off", func(l [][]byte) [][]byte { l[4] = append(l[4][:40], '\n'); return l }, 5, "no record"},
		{"the first gone", func(l [][]byte) [][]byte { return l[1:] }, 0, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "audit.log")
			if err := os.WriteFile(path, bytes.Join(tt.tamper(sampleLog(t)), nil), 0o600); err != nil {
				t.Fatal(err)
			}
			report, err := Verify(path)
			if err != nil {
				t.Fatal(err)
			}
			switch b := report.Break; {
			case tt.line == 0 && b != nil:
				t.Errorf("broken at %v", b)
			case tt.line > 0 && (b == nil || b.Line != tt.line || b.File != path || !strings.Contains(b.What, tt.what)):
				t.Errorf("got %v, want line %d: %s", b, tt.line, tt.what)
			}
			var out, errs strings.Builder
			err = Command(context.Background(), []string{"verify", path}, &out, &errs)
			if (err == nil) != (tt.line == 0) {
				t.Errorf("command: %v\n%s", err, out.String())
			}
		})
	}
}

// TestTornBytesGone: a crash left a torn line, and somebody tidied it up.
func TestTornBytesGone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	lines := sampleLog(t)
	os.WriteFile(path, append(bytes.Join(lines, nil), `{"time":"torn`...), 0o600)
	w := open(t, path, Options{})
	write(t, w, "next")
	w.Close()
	sound(t, 11, path)
	data, _ := os.ReadFile(path)
	os.WriteFile(path, bytes.Replace(data, []byte(`{"time":"torn`+"\n"), nil, 1), 0o600)
	report, err := Verify(path)
	if err != nil || report.Break == nil || report.Break.Line != 11 || !strings.Contains(report.Break.What, "torn bytes") {
		t.Errorf("got %v, %v", report.Break, err)
	}
}

func TestVerifyAcrossFiles(t *testing.T) {
	dir := t.TempDir()
	lines := sampleLog(t)
	name := func(s string) string { return filepath.Join(dir, s) }
	os.WriteFile(name("audit.log"), bytes.Join(lines[7:], nil), 0o600)
	os.WriteFile(name("audit.log.1"), bytes.Join(lines[3:7], nil), 0o600)
	f, err := os.Create(name("audit.log.2.gz"))
	if err != nil {
		t.Fatal(err)
	}
	z := gzip.NewWriter(f)
	z.Write(bytes.Join(lines[:3], nil))
	z.Close()
	f.Close()
	report := sound(t, 10, name("audit.log"), name("audit.log.1"), name("audit.log.2.gz"))

	var out, errs strings.Builder
	args := []string{"verify", "-seen", report.Hash, name("audit.log"), name("audit.log.1"), name("audit.log.2.gz")}
	if err := Command(context.Background(), args, &out, &errs); err != nil || !strings.Contains(out.String(), "sound: 10 records") {
		t.Errorf("%v\n%s", err, out.String())
	}
	args[2] = strings.Repeat("a", 64)
	if err := Command(context.Background(), args, &out, &errs); err == nil || !strings.Contains(err.Error(), "no record has the hash") {
		t.Errorf("got %v", err)
	}
	missing, err := Verify(name("audit.log"), name("audit.log.2.gz"))
	if err != nil || missing.Break == nil || missing.Break.File != name("audit.log") || missing.Break.Line != 1 {
		t.Errorf("a file is missing: %v, %v", missing.Break, err)
	}
	if _, err := Verify(name("none")); !os.IsNotExist(err) {
		t.Errorf("got %v", err)
	}
}

// oldLog is a log of a version whose records were hashed in one piece, with a
// line that a crash has torn.
const oldLog = "testdata/chain1.jsonl"

// TestOldLog goes on with a log of an older version: it is sound before and
// after, and what is altered on either side of the seam is found.
func TestOldLog(t *testing.T) {
	report := sound(t, 5, oldLog)
	if len(report.Notes) != 2 || report.Hash != "9be87414fd4712cbfe7ba6dd9c4f5e56af9ff469f35c8e1c7a5bcecb397db0fe" {
		t.Errorf("the old log alone: %+v", report)
	}
	old, err := os.ReadFile(oldLog)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "audit.log")
	if err := os.WriteFile(path, append(old, `{"torn`...), 0o600); err != nil {
		t.Fatal(err)
	}
	w := open(t, path, Options{})
	write(t, w, "six", "seven")
	w.Close()
	sound(t, 7, path)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(data, []byte(chainMark)); n != 2 {
		t.Errorf("%d lines of the new kind", n)
	}
	out := show(t, path)
	for _, want := range []string{"update orders", "disconnect", "seven"} {
		if !strings.Contains(out, want) {
			t.Errorf("audit show lacks %q:\n%s", want, out)
		}
	}
	for _, tt := range []struct {
		from, to string
		line     int
	}{
		{"'paid'", "'lost'", 2},
		{`"torn":28`, `"torn":29`, 4},
		{`"torn":7`, `"torn":6`, 7},
		{`"sql":"six"`, `"sql":"sex"`, 7},
		{`"chain":2,"torn"`, `"chain":3,"torn"`, 7},
		{`,"chain":2`, ``, 7}, // the first of them
		{`"reason":"client"`, `"reason":"client","chain":2`, 6},
	} {
		altered := bytes.Replace(data, []byte(tt.from), []byte(tt.to), 1)
		if bytes.Equal(altered, data) {
			t.Fatalf("%s is not there", tt.from)
		}
		os.WriteFile(path, altered, 0o600)
		report, err := Verify(path)
		if err != nil || report.Break == nil || report.Break.Line != tt.line {
			t.Errorf("%s for %s: found %v, %v; want line %d", tt.to, tt.from, report.Break, err, tt.line)
		}
	}
}

func FuzzTail(f *testing.F) {
	f.Add([]byte("x\n"))
	f.Add([]byte("\x00\n\n\n"))
	f.Fuzz(func(t *testing.T, junk []byte) {
		line, hash := seal1(`{"a":1`, origin)
		got, err := readTail(bytes.NewReader(append(line, junk...)), int64(len(line)+len(junk)))
		want := tail{last: hash, dirty: int64(len(junk)), open: len(junk) > 0 && junk[len(junk)-1] != '\n'}
		if err != nil || got != want {
			t.Fatalf("got %+v, %v; want %+v", got, err, want)
		}
	})
}

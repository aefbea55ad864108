package audit

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What Check says is what Open does, and Check leaves everything as it was.
func TestCheck(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	inUse := open(t, in("used"), Options{})
	write(t, inUse, "one")
	for _, name := range []string{"good", "torn"} {
		w := open(t, in(name), Options{})
		write(t, w, "one")
		w.Close()
	}
	f, err := os.OpenFile(in("torn"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString(`{"torn`)
	f.Close()
	for _, name := range []string{"fifo", "read"} {
		if err := unix.Mkfifo(in(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	reader, err := os.OpenFile(in("read"), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()

	for _, tt := range []struct{ name, want string }{
		{"new", ""},
		{"good", ""},
		{"torn", ""},
		{"read", ""},
		{"used", "in use by another process"},
		{"none/new", "no such file or directory"},
		{"good/new", "not a directory"},
		{".", "is a directory"},
		{"fifo", "is a FIFO that nobody reads: start what reads it first"},
	} {
		before := listing(t, dir)
		err := Check(in(tt.name))
		if after := listing(t, dir); after != before {
			t.Errorf("%s: Check has changed\n%sinto\n%s", tt.name, before, after)
		}
		w, openErr := Open(in(tt.name), Options{})
		if openErr == nil {
			w.Close()
		}
		if tt.want == "" {
			if err != nil || openErr != nil {
				t.Errorf("%s: Check %v, Open %v", tt.name, err, openErr)
			}
			continue
		}
		for _, err := range []error{err, openErr} {
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
			}
		}
	}
	if err := Check("-"); err != nil {
		t.Error(err)
	}
}

// listing is everything in a directory, with what is in the files.
func listing(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		b.WriteString(info.Name() + " " + info.Mode().String() + " " + info.ModTime().String())
		if info.Mode().IsRegular() {
			text, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				t.Fatal(err)
			}
			b.Write(text)
		}
		b.WriteString("\n")
	}
	return b.String()
}

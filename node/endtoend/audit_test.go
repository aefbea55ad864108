package endtoend

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"pgproxy/wire/audit"
)

// tinyDisk mounts a file system of this many bytes for the test.
func tinyDisk(t *testing.T, size string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting a tmpfs needs root")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("mounting a tmpfs needs CAP_SYS_ADMIN: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill writes a file till the disk is full.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var chunk [512]byte
	for err == nil {
		_, err = f.Write(chunk[:])
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
}

// A full disk: nothing runs unrecorded, sessions stay, and all works again as
// soon as there is room.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	dir := tinyDisk(t, "256k")
	p := start(t, "-audit-log", filepath.Join(dir, "audit.jsonl"), "-audit-sync", "always")
	table(t, "unrecorded", "n int", "SELECT 0 WHERE false")
	s := p.connect(t, alice)
	fill(t, filepath.Join(dir, "other"))

	// What is left of the log's last page takes a few records yet.
	const insert = "INSERT INTO unrecorded VALUES (1)"
	before, full := 0, error(nil)
	for ; full == nil && before < 100; before++ {
		_, full = s.try(t.Context(), insert)
	}
	before-- // the one that failed
	if e := wantCode(t, "with a full disk", full, "58030"); e.Severity != "ERROR" || e.Hint == "" {
		t.Errorf("told %+v", e)
	}
	_, err := p.tryConnect(t, bob)
	wantCode(t, "a new session with a full disk", err, "58030")
	if ready, _ := p.browse(t, alice, "GET", "/readyz"); ready != 503 {
		t.Errorf("/readyz says %d with a full disk, want 503", ready)
	}
	if n := postgres.Exec(t, "SELECT count(*) FROM unrecorded")[0][0]; n != strconv.Itoa(before) {
		t.Errorf("%s statements ran, and %d were recorded", n, before)
	}

	if err := os.Remove(filepath.Join(dir, "other")); err != nil {
		t.Fatal(err)
	}
	s.query(t, insert)
	p.connect(t, bob)
	if ready, body := p.browse(t, alice, "GET", "/readyz"); ready != 200 {
		t.Errorf("/readyz says %d with room again: %s", ready, body)
	}
	if n := postgres.Exec(t, "SELECT count(*) FROM unrecorded")[0][0]; n != strconv.Itoa(before+1) {
		t.Errorf("%s statements ran, and %d were recorded", n, before+1)
	}
}

// logrotate: rename, SIGHUP. No record is lost or split, and the chain goes on.
func TestRotation(t *testing.T) {
	t.Parallel()
	p := start(t)
	s := p.connect(t, alice)
	s.query(t, "SELECT 'before'")
	old := p.audit + ".1"
	if err := os.Rename(p.audit, old); err != nil {
		t.Fatal(err)
	}
	s.query(t, "SELECT 'between'")
	p.hangUp(t, "audit log reopened")
	s.query(t, "SELECT 'after'")

	for file, want := range map[string]string{old: "SELECT 'before' SELECT 'between'", p.audit: "SELECT 'after'"} {
		var queries []string
		for _, r := range readRecords(t, file) {
			if r.Event == audit.Query && r.Session == s.id && r.Seq > 1 { // the first asked for the session's name
				queries = append(queries, r.SQL)
			}
		}
		if got := strings.Join(queries, " "); got != want {
			t.Errorf("%s has %q, want %q", filepath.Base(file), got, want)
		}
		if fi, err := os.Stat(file); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v; want mode 0600", filepath.Base(file), fi, err)
		}
	}
	verify := func(files ...string) (string, error) {
		out, err := exec.Command(binary, append([]string{"audit", "verify"}, files...)...).CombinedOutput()
		return string(out), err
	}
	if out, err := verify(p.audit, old); err != nil || !strings.Contains(out, "sound: ") {
		t.Errorf("audit verify: %v\n%s", err, out)
	}

	// A record that says something else shows.
	records, err := os.ReadFile(old)
	if err != nil {
		t.Fatal(err)
	}
	write(t, old, strings.Replace(string(records), "between", "BETWEEN", 1))
	if out, err := verify(p.audit, old); err == nil || !strings.Contains(out, "altered") {
		t.Errorf("audit verify of an altered record: %v\n%s", err, out)
	}
}

// The transcript that a person reads.
func TestShowRecords(t *testing.T) {
	t.Parallel()
	p := start(t)
	a, b := p.connect(t, alice), p.connect(t, bob)
	a.query(t, "SELECT 'of alice'")
	b.query(t, "SELECT 'of bob'")
	b.refused(t, "DROP TABLE everything", "42501")
	out, err := exec.Command(binary, "audit", "show", "-user", "bob@example.com", p.audit).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for text, want := range map[string]bool{"bob@example.com": true, "bob-phone": true, "of bob": true, "DROP TABLE everything": true, "REFUSED": true, "of alice": false} {
		if strings.Contains(string(out), text) != want {
			t.Errorf("%q is in the transcript: %v, want %v\n%s", text, !want, want, out)
		}
	}
}

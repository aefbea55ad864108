package audit

import (
	"bufio"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// crashEnv makes the test binary the process that is killed: the path of the log and
// the name of the sync mode.
const crashEnv = "PGPROXY_TEST_AUDIT_CRASH"

func TestMain(m *testing.M) {
	if os.Getenv(stdoutEnv) != "" {
		fmt.Fprintln(os.Stderr, writeToStdout())
		os.Exit(0)
	}
	if job, ok := os.LookupEnv(crashEnv); ok {
		fmt.Fprintln(os.Stderr, writeUntilKilled(job))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// stdoutEnv makes the test binary a process that writes records to its
// standard output.
const stdoutEnv = "PGPROXY_TEST_AUDIT_STDOUT"

// writeToStdout writes a record, waits for a line of input, and tries again.
func writeToStdout() error {
	w, err := Open("-", Options{Sync: SyncAlways})
	if err != nil {
		return err
	}
	if err := w.Write(&Record{SQL: "one"}); err != nil {
		return err
	}
	line, err := bufio.NewReader(os.Stdin).ReadString('\n')
	if err != nil {
		return err
	}
	if line == "fill\n" { // until the pipe, which nobody reads, takes no more
		w.pipeTimeout = 50 * time.Millisecond
		for err == nil {
			err = w.Write(&Record{SQL: strings.Repeat("x", 4096)})
		}
		return err
	}
	return w.Write(&Record{SQL: "two"})
}

// TestStdoutStuck: whoever reads standard output no longer does. A write must
// not wait for ever, and all sessions with it.
func TestStdoutStuck(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), stdoutEnv+"=1")
	cmd.Stdin = strings.NewReader("fill\n")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdout.Close()
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	cmd.Process.Wait() // not cmd.Wait, which closes stdout
	cmd.Wait()
	if !strings.Contains(stderr.String(), "i/o timeout") {
		t.Errorf("the process ended with %q", stderr.String())
	}
}

// TestStdoutClosed: whoever reads standard output goes away. That is an error
// to the writer, and not the end of the process, as Go would have it.
func TestStdoutClosed(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), stdoutEnv+"=1")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || !strings.Contains(line, `"sql":"one"`) {
		t.Errorf("got %q, %v", line, err)
	}
	stdout.Close()
	stdin.Write([]byte("\n"))
	if err := cmd.Wait(); err != nil || !strings.Contains(stderr.String(), "broken pipe") {
		t.Errorf("ended with %v, said %q", err, stderr.String())
	}
}

// writeUntilKilled writes records from several goroutines, and acknowledges
// each on standard output once Write has returned.
func writeUntilKilled(job string) error {
	path, mode, _ := strings.Cut(job, "|")
	sync, err := ParseSync(mode)
	if err != nil {
		return err
	}
	w, err := Open(path, Options{Sync: sync, MaxSize: 100_000})
	if err != nil {
		return err
	}
	failed := make(chan error)
	for g := range 8 {
		go func() {
			for i := 0; ; i++ {
				mark := fmt.Sprintf("mark-%d-%d-%d", os.Getpid(), g, i)
				if err := w.Write(&Record{Time: time.Now(), Event: Query, SQL: mark + strings.Repeat(" ", rand.IntN(2000))}); err != nil {
					failed <- err
				}
				if _, err := os.Stdout.WriteString(mark + "\n"); err != nil {
					failed <- err
				}
			}
		}()
	}
	return <-failed
}

// TestKilled kills a writing process at random moments: whatever it
// acknowledged is in the log, and the next process goes on with the chain.
func TestKilled(t *testing.T) {
	rounds := 200
	if testing.Short() {
		rounds = 20
	}
	path := filepath.Join(t.TempDir(), "audit.log")
	acked := map[string]bool{}
	for round := range rounds {
		mode := []string{"always", "interval", "never"}[round%3]
		for _, mark := range killedRound(t, path+"|"+mode, rand.IntN(60)) {
			acked[mark] = true
		}
	}
	w := open(t, path, Options{})
	write(t, w, "after")
	files, err := filepath.Glob(path + "*")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, sql := range statements(t, files...) {
		mark := strings.TrimRight(sql, " ")
		if seen[mark] {
			t.Errorf("%s is in the log twice", mark)
		}
		seen[mark] = true
	}
	for mark := range acked {
		if !seen[mark] {
			t.Errorf("%s was acknowledged and is not in the log", mark)
		}
	}
	report := sound(t, int64(len(seen)), files...)
	t.Logf("%d records in %d files, %d acknowledged, notes %v", report.Records, len(files), len(acked), report.Notes)
	if len(acked) < rounds {
		t.Errorf("only %d records in %d rounds", len(acked), rounds)
	}
}

// killedRound runs one process and kills it after some acknowledgements. It returns all
// that came.
func killedRound(t *testing.T, job string, after int) []string {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crashEnv+"="+job)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var marks []string
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		marks = append(marks, lines.Text())
		if len(marks) == after+1 {
			cmd.Process.Kill()
		}
	}
	cmd.Wait()
	if len(marks) <= after {
		t.Fatalf("the process ended by itself: %s", stderr.String())
	}
	return marks
}

// TestDiskFull fills a small disk: records are refused, none is torn, and
// writing goes on when there is room.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Skip("needs the right to mount a tmpfs:", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	for _, mode := range []Sync{SyncAlways, SyncInterval} {
		path := filepath.Join(dir, fmt.Sprint("audit", mode))
		w := open(t, path, Options{Sync: mode})
		for round := range 3 {
			write(t, w, fmt.Sprint("before ", round))
			n := fill(t, w)
			if err := w.Healthy(); !errors.Is(err, unix.ENOSPC) {
				t.Errorf("healthy on a full disk: %v", err)
			}
			files, _ := filepath.Glob(path + "*")
			sound(t, int64(n+1), files...)
			// What logrotate does, with the oldest gone.
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			if err := w.Healthy(); err != nil {
				t.Errorf("not healthy with room again: %v", err)
			}
		}
		write(t, w, "after")
		sound(t, 1, path)
		w.Close()
		os.Remove(path)
	}
}

// fill writes records until one is refused, and then some more in vain. It
// returns how many there were.
func fill(t *testing.T, w *Writer) int {
	t.Helper()
	for n := 0; n < 1000; n++ {
		err := w.Write(&Record{Time: time.Now(), SQL: strings.Repeat("x", 5000)})
		if err == nil {
			continue
		}
		for range 3 {
			if err = w.Write(&Record{SQL: strings.Repeat("y", 5000)}); !errors.Is(err, unix.ENOSPC) {
				t.Errorf("on a full disk: %v", err)
			}
		}
		return n
	}
	t.Fatal("the disk is never full")
	return 0
}

// TestFileLimit lets the kernel take a part of a record and refuse the rest: the part must
// not stay in the file.
func TestFileLimit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	w := open(t, path, Options{})
	write(t, w, "one")
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 1000, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	err := w.Write(&Record{SQL: strings.Repeat("x", 2000)})
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(err, unix.EFBIG) {
		t.Fatalf("got %v", err)
	}
	data, err := os.ReadFile(path)
	if err != nil || !strings.HasSuffix(string(data), "}\n") || strings.Contains(string(data), "xxx") {
		t.Errorf("file holds %q, %v", data, err)
	}
	write(t, w, "three")
	if r := sound(t, 2, path); len(r.Notes) != 1 {
		t.Errorf("notes %v", r.Notes)
	}
}

func TestFullDevice(t *testing.T) {
	w := open(t, "/dev/full", Options{Sync: SyncAlways})
	for range 2 {
		if err := w.Write(&Record{}); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("got %v", err)
		}
	}
}

// TestFailingSync has a file that takes writes and can't be brought to the
// disk: a pipe in its place. The record is refused, and the file opened again.
func TestFailingSync(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	w := open(t, path, Options{Sync: SyncAlways})
	write(t, w, "one")
	r, p, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	w.mu.Lock()
	w.f.Close()
	w.f = p
	w.mu.Unlock()
	if err := w.Write(&Record{SQL: "two"}); !errors.Is(err, unix.EINVAL) {
		t.Fatalf("got %v", err)
	}
	write(t, w, "three")
	sound(t, 2, path)
}

// TestClosedUnderneath: the descriptor is gone.
func TestClosedUnderneath(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	w := open(t, path, Options{})
	write(t, w, "one")
	w.mu.Lock()
	w.f.Close()
	w.mu.Unlock()
	if err := w.Write(&Record{SQL: "two"}); err == nil {
		t.Error("a write to a closed file succeeded")
	}
	write(t, w, "three")
	sound(t, 2, path)
}

package main

import (
	"bufio"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"pgproxy/upstream/upstreamtest"
)

// beDemo in the environment makes the test binary the demo.
const beDemo = "PGPROXY_TEST_BE_DEMO"

func TestMain(m *testing.M) {
	if os.Getenv(beDemo) != "" {
		os.Args = os.Args[:1]
		main()
		return
	}
	os.Exit(m.Run())
}

var (
	psqlCommand = regexp.MustCompile(`^    ((?:LD_LIBRARY_PATH=\S+ )?\S*psql -h 127\.0\.0\.1 -p \d+ -d shop)$`)
	recordsPath = regexp.MustCompile(`^Audit records: +(\S+)$`)
)

// Without a terminal the demo prints what to type. What it prints is typed
// here, as both people; the records of it come; and nothing is left.
func TestDemo(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	tmp := t.TempDir()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), beDemo+"=1", "TMPDIR="+tmp)
	cmd.Stderr = os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 30 * time.Second
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	// Root's PostgreSQL is somebody else's, who must get in.
	for dir := tmp; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	var printed []string
	until := func(text string) {
		t.Helper()
		for lines.Scan() {
			printed = append(printed, lines.Text())
			if strings.Contains(lines.Text(), text) {
				return
			}
		}
		cmd.Wait()
		t.Fatalf("the demo ended before it said %q; it said\n%s", text, strings.Join(printed, "\n"))
	}
	until("the audit records as they come")

	var commands []string
	var records string
	for _, line := range printed {
		if m := psqlCommand.FindStringSubmatch(line); m != nil {
			commands = append(commands, m[1])
		}
		if m := recordsPath.FindStringSubmatch(line); m != nil {
			records = m[1]
		}
	}
	if len(commands) != len(people) {
		t.Fatalf("the demo printed the commands %q, want one for each of %d people", commands, len(people))
	}
	for i, p := range people {
		out, err := psql(ctx, commands[i], "SELECT current_setting('application_name')")
		if want := "go-proxy tsnode=" + p.device + "|user=" + p.login; err != nil || !strings.Contains(out, want) {
			t.Errorf("%s: %v, want %q in\n%s", commands[i], err, want, out)
		}
		until(p.login + " (" + p.device + ")  connected to shop")
		until("SELECT current_setting('application_name')")
	}
	const stuck = "UPDATE orders SET status = 'paid' WHERE id = 1337"
	if out, err := psql(ctx, commands[0], stuck); err != nil || !strings.Contains(out, "UPDATE 1") {
		t.Errorf("alice may not update: %v\n%s", err, out)
	}
	until(stuck)
	if out, err := psql(ctx, commands[1], stuck); err == nil || !strings.Contains(out, "ERROR") {
		t.Errorf("bob may update: %v\n%s", err, out)
	}
	until("REFUSED")

	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for lines.Scan() {
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("the demo ended with %v", err)
	}
	if _, err := os.Stat(records); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the records are left: %v", err)
	}
	left, err := os.ReadDir(tmp)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range left {
		t.Errorf("left in the temporary directory: %s", entry.Name())
	}
}

// psql runs a command as the demo printed it, with a statement.
func psql(ctx context.Context, command, statement string) (string, error) {
	cmd := exec.CommandContext(ctx, "sh", "-c", command+` -XAt -v ON_ERROR_STOP=1 -c "$1"`, "sh", statement)
	cmd.Env = upstreamtest.Installs()[0].Env()
	out, err := cmd.CombinedOutput()
	return string(out), err
}

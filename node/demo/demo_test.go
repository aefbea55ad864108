package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
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
	pageAddress = regexp.MustCompile(`^    (http://127\.0\.0\.1:\d+/)$`)
	psqlCommand = regexp.MustCompile(`^    (\S*psql -h 127\.0\.0\.1 -p \d+ -d shop)$`)
	stepLine    = regexp.MustCompile(`^ *\d+\.\d s  \S`)
	endCommand  = regexp.MustCompile(`SELECT pg_terminate_backend\(\d+\);`)
	recordsPath = regexp.MustCompile(`^Audit records: +(\S+)$`)
)

// Without a terminal the demo prints what to type. What it prints is typed
// here, as both people; the records of it come; and nothing is left.
func TestDemo(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
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
	letIn(t, tmp)
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

	var commands, pages []string
	var records string
	steps := 0
	for _, line := range printed {
		if stepLine.MatchString(line) {
			steps++
		}
		if m := psqlCommand.FindStringSubmatch(line); m != nil {
			commands = append(commands, m[1])
		}
		if m := pageAddress.FindStringSubmatch(line); m != nil {
			pages = append(pages, m[1])
		}
		if m := recordsPath.FindStringSubmatch(line); m != nil {
			records = m[1]
		}
	}
	if len(commands) != len(people) {
		t.Fatalf("the demo printed the commands %q, want one for each of %d people", commands, len(people))
	}
	if want := 4 + len(people); steps != want {
		t.Errorf("the demo printed %d steps, want %d:\n%s", steps, want, strings.Join(printed, "\n"))
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
	blocked := "alice sees who blocks whom, and ends it"
	out, err := psql(ctx, commands[0], "SHOW pgproxy.blockers")
	if err != nil || !strings.Contains(out, "nightly-import") || !strings.Contains(out, "event-worker") {
		t.Errorf("%s: %v\n%s", blocked, err, out)
	}
	end := endCommand.FindString(strings.Join(printed, "\n"))
	if out, err := psql(ctx, commands[1], end); err == nil {
		t.Errorf("bob may end the import: %s", out)
	}
	if out, err := psql(ctx, commands[0], end); err != nil || !strings.HasSuffix(out, "\nt\n") {
		t.Errorf("%s: %s: %v\n%s", blocked, end, err, out)
	}
	until("signal: pg_terminate_backend(")

	asking := make(chan string, 1)
	go func() {
		out, err := psql(ctx, commands[1], "SET pgproxy.access = 'write'; SET pgproxy.dry_run = on", stuck)
		asking <- fmt.Sprint(out, err)
	}()
	until("write access asked")
	request, err := psql(ctx, commands[0], "SHOW pgproxy.requests")
	request = strings.TrimSpace(request)
	id, _, _ := strings.Cut(request[strings.LastIndexByte(request, '\n')+1:], "|") // behind the NOTICE
	if out, err2 := psql(ctx, commands[0], "SET pgproxy.approve = '"+id+"'"); err != nil || err2 != nil {
		t.Errorf("alice may not approve: %v, %v\n%s%s", err, err2, request, out)
	}
	if out := <-asking; !strings.Contains(out, "dry run: nothing was kept") || !strings.Contains(out, "UPDATE 1") {
		t.Errorf("bob's dry run: %s", out)
	}
	if len(pages) != len(people) {
		t.Fatalf("the demo printed the pages %q", pages)
	}
	for i, page := range pages {
		answer, err := http.Get(page + "sessions.json")
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			t.Errorf("%s's page answers %s", people[i].login, answer.Status)
		}
	}

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

// psql runs a command as the demo printed it, with statements.
func psql(ctx context.Context, command string, statements ...string) (string, error) {
	args := []string{"-c", command + ` -XAt -v ON_ERROR_STOP=1 "$@"`, "sh"}
	for _, statement := range statements {
		args = append(args, "-c", statement)
	}
	cmd := exec.CommandContext(ctx, "sh", args...)
	cmd.Env = upstreamtest.Installs()[0].Env()
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// Where the machine has no psql of its own, the command is still one to type.
func TestPsqlCommand(t *testing.T) {
	installs := upstreamtest.Installs()
	if len(installs) == 0 {
		t.Skip("no PostgreSQL on this machine")
	}
	s := &stage{dir: t.TempDir(), postgres: &upstreamtest.Server{Install: installs[0]}}
	t.Setenv("PATH", s.dir)
	command := s.psqlCommand()
	if command != filepath.Join(s.dir, "psql") {
		t.Fatal(command)
	}
	out, err := exec.CommandContext(t.Context(), command, "--version").CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "psql ") {
		t.Errorf("%v\n%s", err, out)
	}
}

// letIn lets everybody into a test's directory: root's PostgreSQL is somebody
// else's.
func letIn(t *testing.T, tmp string) {
	t.Helper()
	for dir := tmp; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// However "make demo" is ended, it leaves no process and no file.
func TestMakeDemoLeavesNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	if _, err := exec.LookPath("make"); err != nil {
		t.Skip(err)
	}
	kill := func(program string) func(*testing.T, *upstreamtest.Terminal, map[int]string) {
		return func(t *testing.T, _ *upstreamtest.Terminal, mine map[int]string) {
			t.Helper()
			for pid, name := range mine {
				if filepath.Base(name) == program {
					if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
						t.Fatal(err)
					}
					return
				}
			}
			t.Fatalf("no %s in %v", program, mine)
		}
	}
	hangUp := func(_ *testing.T, term *upstreamtest.Terminal, _ map[int]string) { term.Master.Close() }
	for _, tt := range []struct {
		name, shown string // when it has shown this, it is ended
		end         func(*testing.T, *upstreamtest.Terminal, map[int]string)
	}{
		{"make is killed while it compiles", "Compiling the demo", kill("make")},
		{"its terminal is closed", "shop=>", hangUp},
		{"make is killed", "shop=>", kill("make")},
		{"the demo is killed", "shop=>", kill("demo")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tmp, err := os.MkdirTemp("", "") // t.TempDir's are too long for a Unix socket
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(tmp) })
			letIn(t, tmp)
			cmd := exec.CommandContext(t.Context(), "make", "demo")
			cmd.Dir = filepath.Join("..", "..")
			cmd.Env = append(os.Environ(), "TMPDIR="+tmp, "PSQL_PAGER=cat", "TERM=xterm")
			term := upstreamtest.StartTerminal(t, cmd)
			term.Expect(tt.shown, 5*time.Minute)
			tt.end(t, term, running(t, tmp))
			for late := time.After(time.Minute); ; time.Sleep(50 * time.Millisecond) { // nothing tells of the end of other people's processes
				left, err := os.ReadDir(tmp)
				if err != nil {
					t.Fatal(err)
				}
				mine := running(t, tmp)
				if len(left) == 0 && len(mine) == 0 {
					return
				}
				select {
				case <-late:
					t.Fatalf("left: files %v, processes %v", left, mine)
				default:
				}
			}
		})
	}
}

// running are the programs that have the test's directory in their environment
// or their arguments, by process ID.
func running(t *testing.T, tmp string) map[int]string {
	t.Helper()
	found := make(map[int]string)
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		environ, _ := os.ReadFile(filepath.Join(dir, "environ")) // gone, or somebody else's
		arguments, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		if !strings.Contains(string(environ), tmp) && !strings.Contains(string(arguments), tmp) {
			continue
		}
		program, _, _ := strings.Cut(string(arguments), "\x00")
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err == nil && program != "" {
			found[pid] = program
		}
	}
	return found
}

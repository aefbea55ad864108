package wire

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const ctrlC = "\x03"

// terminal is a program that runs in a terminal of its own.
type terminal struct {
	t      testing.TB
	master *os.File

	mu    sync.Mutex
	text  string // not yet expected
	grown chan struct{}
	over  bool
}

// inTerminal runs a program in a terminal until the test ends.
func inTerminal(t testing.TB, cmd *exec.Cmd) *terminal {
	t.Helper()
	master, slave := openTerminal(t)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Pdeathsig: syscall.SIGKILL}
	err := cmd.Start()
	slave.Close()
	if err != nil {
		t.Fatal(err)
	}
	term := &terminal{t: t, master: master, grown: make(chan struct{})}
	var reader sync.WaitGroup
	reader.Go(term.read)
	t.Cleanup(func() {
		cmd.Process.Kill() // it may have ended already
		cmd.Wait()
		master.Close()
		reader.Wait()
	})
	return term
}

// openTerminal opens a pseudo-terminal.
func openTerminal(t testing.TB) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skip(err)
	}
	raw, err := master.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var number int
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0)
		if failed == nil {
			number, failed = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
		if failed == nil {
			failed = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: 50, Col: 200})
		}
	})
	if err = errors.Join(err, failed); err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return master, slave
}

func (m *terminal) read() {
	var b [4096]byte
	for {
		n, err := m.master.Read(b[:])
		m.mu.Lock()
		m.text += string(b[:n])
		m.over = err != nil
		close(m.grown)
		m.grown = make(chan struct{})
		m.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// expect waits until the program has shown a text, and passes over it.
func (m *terminal) expect(text string) {
	m.t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		m.mu.Lock()
		all, over, grown := m.text, m.over, m.grown
		if _, after, ok := strings.Cut(all, text); ok {
			m.text = after
			m.mu.Unlock()
			return
		}
		m.mu.Unlock()
		if over {
			m.t.Fatalf("the program ended without showing %q:\n%s", text, all)
		}
		select {
		case <-grown:
		case <-timeout:
			m.t.Fatalf("%q was not shown:\n%s", text, all)
		}
	}
}

// enter types a line, and waits for its echo.
func (m *terminal) enter(line string) {
	m.t.Helper()
	m.press(line + "\n")
	m.expect(line)
}

// closed waits until the program has ended.
func (m *terminal) closed() {
	m.t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		m.mu.Lock()
		all, over, grown := m.text, m.over, m.grown
		m.mu.Unlock()
		if over {
			return
		}
		select {
		case <-grown:
		case <-timeout:
			m.t.Fatalf("the program has not ended:\n%s", all)
		}
	}
}

// press types keys.
func (m *terminal) press(keys string) {
	m.t.Helper()
	if _, err := io.WriteString(m.master, keys); err != nil {
		m.t.Fatal(err)
	}
}

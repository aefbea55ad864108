package upstreamtest

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

// Terminal is a program that runs in a terminal of its own.
type Terminal struct {
	// Master is the terminal's other side. Closing it is what closing a
	// terminal's window is.
	Master *os.File

	tb    testing.TB
	mu    sync.Mutex
	text  string // shown, and not yet expected
	grown chan struct{}
	over  bool
	read  sync.WaitGroup
}

// StartTerminal starts a program in a terminal. It is killed at the test's end;
// the test may wait for it before.
func StartTerminal(tb testing.TB, cmd *exec.Cmd) *Terminal {
	tb.Helper()
	master, slave, err := openTerminal()
	if err != nil {
		tb.Skipf("no terminal: %v", err)
	}
	defer slave.Close()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty = true, true
	if err := cmd.Start(); err != nil {
		master.Close()
		tb.Fatal(err)
	}
	t := &Terminal{Master: master, tb: tb, grown: make(chan struct{})}
	t.read.Go(t.keepReading)
	tb.Cleanup(func() {
		cmd.Process.Kill() // it may have ended already
		cmd.Wait()
		master.Close()
		t.read.Wait()
	})
	return t
}

func openTerminal() (master, slave *os.File, err error) {
	master, err = os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			master.Close()
		}
	}()
	raw, err := master.SyscallConn()
	if err != nil {
		return nil, nil, err
	}
	var number int
	var failed error
	err = raw.Control(func(fd uintptr) {
		if failed = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); failed == nil {
			number, failed = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
		if failed == nil { // a size, without which some programs draw nothing
			failed = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: 50, Col: 200})
		}
	})
	if err = errors.Join(err, failed); err != nil {
		return nil, nil, err
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	return master, slave, err
}

func (t *Terminal) keepReading() {
	var b [4096]byte
	for {
		n, err := t.Master.Read(b[:])
		t.mu.Lock()
		t.text += string(b[:n])
		t.over = err != nil
		close(t.grown)
		t.grown = make(chan struct{})
		t.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// Expect waits until the program has shown a text, and passes over it.
func (t *Terminal) Expect(text string, limit time.Duration) (before string) {
	t.tb.Helper()
	late := time.After(limit)
	for {
		t.mu.Lock()
		all, over, grown := t.text, t.over, t.grown
		before, after, ok := strings.Cut(all, text)
		if ok {
			t.text = after
		}
		t.mu.Unlock()
		switch {
		case ok:
			return before
		case over:
			t.tb.Fatalf("the program ended without showing %q:\n%s", text, all)
		}
		select {
		case <-grown:
		case <-late:
			t.tb.Fatalf("%q was not shown within %v:\n%s", text, limit, all)
		}
	}
}

// ExpectEnd waits until the program has ended.
func (t *Terminal) ExpectEnd(limit time.Duration) {
	t.tb.Helper()
	late := time.After(limit)
	for {
		t.mu.Lock()
		all, over, grown := t.text, t.over, t.grown
		t.mu.Unlock()
		if over {
			return
		}
		select {
		case <-grown:
		case <-late:
			t.tb.Fatalf("the program has not ended within %v:\n%s", limit, all)
		}
	}
}

// Press types keys.
func (t *Terminal) Press(keys string) {
	t.tb.Helper()
	if _, err := io.WriteString(t.Master, keys); err != nil {
		t.tb.Fatal(err)
	}
}

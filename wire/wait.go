package wire

import (
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// eagerWait is how long a session that is alone waits for a socket in the
// kernel before it leaves the waiting to the Go scheduler.
const eagerWait = 5 * time.Millisecond

// eager is a way to wait for a socket that costs one system call and one
// wake-up of the waiting thread. The scheduler's own takes several, with idle
// threads spinning meanwhile: measured on two cores with one client, a
// statement costs 29 µs of processor time instead of 52, and nearly twice as
// many go through in a second. But a thread that waits in the kernel keeps
// others from running, so it is for the session that has the server to itself;
// with eight clients it would be slower.
type eager struct {
	srv *Server
	raw syscall.RawConn
}

// newEager returns nil for a connection that is no plain socket: tsnet's, or
// TLS, whose data may have been read already.
func newEager(srv *Server, conn net.Conn) *eager {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	return &eager{srv, raw}
}

// wait returns when the socket can be read, or after eagerWait, or at once
// when other sessions are busy. What it finds is for the read that follows to
// tell.
func (e *eager) wait() {
	if e == nil || e.srv.busy.Load() > 1 {
		return
	}
	e.raw.Control(func(fd uintptr) {
		unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(eagerWait.Milliseconds()))
	})
}

// setBusyLocked counts the session among those with something to do, or not.
// Who has sent a message is busy until it has rested for a tick.
func (s *session) setBusyLocked(busy bool) {
	switch {
	case busy && !s.busy:
		s.srv.busy.Add(1)
	case !busy && s.busy:
		s.srv.busy.Add(-1)
	}
	s.busy = busy
}

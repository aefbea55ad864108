package wire

import (
	"errors"
	"io"
	"sync/atomic"
	"time"

	"pgproxy/wire/frame"
)

// smallWrite: writes of up to this many bytes are coalesced.
const smallWrite = 4 << 10

// past is a deadline that has gone by: setting it wakes a blocked read.
var past = time.Unix(1, 0)

// clientConn is the client's end of a session: its connection, what was read from
// it ahead, and what is queued for it.
//
// One goroutine at a time reads, and one writes: see doc.go.
type clientConn struct {
	frame.Reader        // of Conn
	out          []byte // copied bytes, not yet written
	direct       []byte // the same where they lie, in the server's buffer
	// writing is when a write began, in Unix nanoseconds; 0 between writes.
	writing atomic.Int64
	// lost says that the client cannot be written to any more.
	lost atomic.Bool
	// onLost is told so, and why, once.
	onLost func(reason)
}

// Send queues bytes. They may lie in the server's buffer, and so must be kept
// or flushed before it is filled again.
func (c *clientConn) Send(b []byte) {
	if len(b) == 0 {
		return
	}
	if len(c.direct) > smallWrite {
		c.Flush()
	}
	if len(c.out) == 0 && c.direct == nil {
		c.direct = b
		return
	}
	c.out = append(append(c.out, c.direct...), b...)
	c.direct = nil
}

// Keep makes what was queued independent of the server's buffer.
func (c *clientConn) Keep() {
	if len(c.direct) > smallWrite {
		c.Flush()
	}
	c.out = append(c.out, c.direct...)
	c.direct = nil
}

// Flush writes what was queued.
func (c *clientConn) Flush() {
	b := c.direct
	if b == nil {
		b = c.out
	}
	c.direct = nil
	if len(b) > 0 {
		c.write(b)
	}
	if c.out = c.out[:0]; cap(c.out) > frame.MinBuffer {
		c.out = nil
	}
}

// write writes, or notes that the client is lost: the session then runs on until
// the server has come to rest.
func (c *clientConn) write(b []byte) {
	if c.lost.Load() {
		return
	}
	c.writing.Store(time.Now().UnixNano())
	_, err := c.Conn.Write(b)
	c.writing.Store(0)
	if err != nil {
		c.lose(reasonClientLost)
	}
}

// lose says that nothing more can be written. What the upstream still runs for
// the client is cancelled, and its answer thrown away.
func (c *clientConn) lose(why reason) {
	if c.lost.CompareAndSwap(false, true) {
		c.onLost(why)
	}
}

// stalled ends a write that has waited for longer than patience. It may be
// called from any goroutine.
func (c *clientConn) stalled(now time.Time, patience func() time.Duration) {
	if began := c.writing.Load(); began != 0 && now.UnixNano()-began > int64(patience()) {
		c.lose(reasonSlow)
		c.Conn.SetWriteDeadline(past)
	}
}

// watch reads ahead, a buffer and no further, until the client has ended or the
// read is woken. The end of its stream means that nobody waits for the result: a
// client that only shuts down its sending side is taken for gone too, as by
// PostgreSQL's own client_connection_check_interval.
func (c *clientConn) watch() {
	for c.Buffered() < frame.MinBuffer {
		if err := c.Fill(2 * frame.MinBuffer); err != nil {
			if !frame.IsDeadline(err) {
				c.lose(reasonClientLost)
			}
			return
		}
	}
}

// deadline bounds what comes next on the connection; 0 lifts the bound.
func (c *clientConn) deadline(d time.Duration) {
	var t time.Time
	if d > 0 {
		t = time.Now().Add(d)
	}
	c.Conn.SetDeadline(t)
}

// closeGently lets the last bytes arrive: a connection closed with unread
// input is reset, and the reset may overtake them.
func (c *clientConn) closeGently() {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok && cw.CloseWrite() == nil {
		c.Conn.SetReadDeadline(time.Now().Add(time.Second))
		var b [512]byte
		for n := 0; n < 1<<20; {
			m, err := c.Conn.Read(b[:])
			if err != nil {
				break
			}
			n += m
		}
	}
	c.Conn.Close()
}

// clientEnded is the end of the session that a failed read from the client
// means.
func clientEnded(err error) *sessionError {
	if errors.Is(err, io.EOF) {
		return silent(reasonClient, nil)
	}
	return silent(reasonClientLost, err)
}

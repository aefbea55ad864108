package upstream

import (
	"encoding/binary"
	"io"
	"net"
	"time"
)

// frameReader reads for pgconn while it connects. A Read never returns bytes of
// two frames, so that when ReadyForQuery has come, none of what follows is in
// pgconn's buffer, and the session finds it in the connection.
type frameReader struct {
	r      io.Reader
	header [5]byte
	have   int    // bytes of the header read
	left   uint32 // bytes of the body still to read
}

func (f *frameReader) Read(p []byte) (int, error) {
	if f.have < len(f.header) {
		n, err := f.r.Read(p[:min(len(p), len(f.header)-f.have)])
		f.have += copy(f.header[f.have:], p[:n])
		if f.have == len(f.header) {
			// A length below 4 is pgconn's to refuse; it must not wrap here.
			f.begin(max(binary.BigEndian.Uint32(f.header[1:]), 4) - 4)
		}
		return n, err
	}
	n, err := f.r.Read(p[:min(uint64(len(p)), uint64(f.left))])
	f.begin(f.left - uint32(n))
	return n, err
}

// begin goes on with left bytes of a body, or with the next header.
func (f *frameReader) begin(left uint32) {
	f.left = left
	if left == 0 {
		f.have = 0
	}
}

// takeOver returns the connection with everything on it that pgconn has not
// consumed. When a write was slow (a TLS handshake over a long line is enough),
// pgconn reads in the background and hands the bytes to frames; that reader may
// still be at it, with bytes of the session. A deadline in the past ends it, and
// what it has read is read here.
func takeOver(conn net.Conn, frames *frameReader) net.Conn {
	conn.SetReadDeadline(time.Unix(1, 0))
	pending, _ := io.ReadAll(frames.r) // ends in the deadline's error
	conn.SetDeadline(time.Time{})
	if len(pending) == 0 {
		return conn
	}
	return &pendingConn{Conn: conn, pending: pending}
}

// pendingConn is a connection of which some bytes have been read already.
type pendingConn struct {
	net.Conn
	pending []byte
}

func (c *pendingConn) Read(p []byte) (int, error) {
	if len(c.pending) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.pending)
	c.pending = c.pending[n:]
	return n, nil
}

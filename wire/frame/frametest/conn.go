// Package frametest has a connection for tests that need no socket.
package frametest

import (
	"bytes"
	"io"
	"net"
	"time"
)

// Conn is a connection whose input is known, and comes in pieces of at most
// Chunk bytes; 0 = all at once. What is written to it is kept in Out.
type Conn struct {
	net.Conn
	In    []byte
	Chunk int
	Taken int // bytes read
	Out   bytes.Buffer
}

func (c *Conn) Read(b []byte) (int, error) {
	if len(c.In) == 0 {
		return 0, io.EOF
	}
	n := len(c.In)
	if c.Chunk > 0 {
		n = min(n, c.Chunk)
	}
	n = copy(b, c.In[:n])
	c.In = c.In[n:]
	c.Taken += n
	return n, nil
}

func (c *Conn) Write(b []byte) (int, error)      { return c.Out.Write(b) }
func (c *Conn) Close() error                     { return nil }
func (c *Conn) SetDeadline(time.Time) error      { return nil }
func (c *Conn) SetReadDeadline(time.Time) error  { return nil }
func (c *Conn) SetWriteDeadline(time.Time) error { return nil }
func (c *Conn) RemoteAddr() net.Addr             { return &net.TCPAddr{} }

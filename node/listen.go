package node

import (
	"errors"
	"net"
)

// listener accepts tailnet connections whose addresses stay known.
type listener struct{ net.Listener }

// Accept returns the next connection, as a [net.Conn] with a CloseWrite
// method. A connection that its peer has reset before we could ask for its
// address is dropped: nobody could say whose it is.
func (l listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		local, remote := c.LocalAddr(), c.RemoteAddr()
		if local == nil || remote == nil {
			c.Close()
			continue
		}
		return &conn{Conn: c, local: local, remote: remote}, nil
	}
}

// conn is a tailnet connection with its addresses as they were when it was
// accepted: tsnet's own return nil once the peer has reset the connection.
type conn struct {
	net.Conn
	local, remote net.Addr
}

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

// CloseWrite ends the sending half, as [net.TCPConn] does.
func (c *conn) CloseWrite() error {
	half, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok {
		return errors.ErrUnsupported
	}
	return half.CloseWrite()
}

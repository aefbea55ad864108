package upstream

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// Outcome is what is known about a cancel request.
type Outcome int

const (
	// Unknown: the request was sent, and the server may have acted on it, or
	// may yet.
	Unknown Outcome = iota
	// Delivered: the server has signalled the backend. A cancel hits nothing
	// that is sent from now on.
	Delivered
	// NotDelivered: the request has not left the proxy.
	NotDelivered
)

// String returns the outcome as logs and records spell it.
func (o Outcome) String() string {
	switch o {
	case Delivered:
		return "delivered"
	case NotDelivered:
		return "not delivered"
	}
	return "unknown"
}

// Request codes of packets that have no type byte.
const (
	cancelRequestCode = 80877102
	sslRequestCode    = 80877103
)

// Cancel asks the server to end what this connection is running. It opens a
// connection of its own, to the same address with the same TLS, and waits until
// the server closes it, which it does after signalling the backend; ctx must
// bound that wait. The error says why the outcome is not Delivered, for the
// log. Cancel is safe for use from any goroutine, at any time, also after
// Close.
func (c *Conn) Cancel(ctx context.Context) (Outcome, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, c.network, c.Addr)
	if err != nil {
		return NotDelivered, fmt.Errorf("cancel request: %w", err)
	}
	defer conn.Close()
	// The end of ctx fails all reads and writes from there on.
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	secure, err := c.secure(ctx, conn)
	if err != nil {
		return NotDelivered, fmt.Errorf("cancel request: %w", err)
	}
	if err := sendCancel(secure, c.PID, c.Key); err != nil {
		return Unknown, fmt.Errorf("cancel request: %w", err)
	}
	return Delivered, nil
}

// secure puts the session's TLS on conn, or returns it as it is.
func (c *Conn) secure(ctx context.Context, conn net.Conn) (net.Conn, error) {
	if c.tls == nil {
		return conn, nil
	}
	if !c.direct {
		if err := requestTLS(conn); err != nil {
			return nil, err
		}
	}
	tlsConn := tls.Client(conn, c.tls)
	return tlsConn, tlsConn.HandshakeContext(ctx)
}

// requestTLS asks for TLS in PostgreSQL's way, before its handshake.
func requestTLS(conn net.Conn) error {
	packet := binary.BigEndian.AppendUint32(nil, 8)
	packet = binary.BigEndian.AppendUint32(packet, sslRequestCode)
	if _, err := conn.Write(packet); err != nil {
		return err
	}
	var answer [1]byte
	if _, err := io.ReadFull(conn, answer[:]); err != nil {
		return err
	}
	if answer[0] != 'S' {
		return errors.New("server refused TLS connection")
	}
	return nil
}

// sendCancel sends the request and waits for the end of the connection. A
// server that says anything instead could not take the request.
func sendCancel(conn net.Conn, pid uint32, key []byte) error {
	packet := binary.BigEndian.AppendUint32(nil, uint32(12+len(key)))
	packet = binary.BigEndian.AppendUint32(packet, cancelRequestCode)
	packet = binary.BigEndian.AppendUint32(packet, pid)
	packet = append(packet, key...)
	if _, err := conn.Write(packet); err != nil {
		return err
	}
	n, err := conn.Read(packet)
	switch {
	case n > 0:
		return errors.New("the server answered where it should have closed the connection")
	case errors.Is(err, io.EOF):
		return nil
	}
	return err
}

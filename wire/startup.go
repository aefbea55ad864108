package wire

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"pgproxy/wire/frame"
)

// Request codes and protocol versions of the first packet (pqcomm.h).
const (
	codeSSLRequest    = 1234<<16 | 5679
	codeGSSENCRequest = 1234<<16 | 5680
	codeCancelRequest = 1234<<16 | 5678
	protocol3         = 3 << 16

	maxStartupPacket = 10000 // MAX_STARTUP_PACKET_LENGTH, without the length word
	maxCancelKey     = 256   // MAX_CANCEL_KEY_LENGTH

	handshakeTimeout = 10 * time.Second // a TLS handshake
)

// setting is one name and value of the startup message or of its options.
type setting struct{ name, value string }

// startup is what a client said before its session: either a startup message
// or a cancel request.
type startup struct {
	conn net.Conn // the client's connection, inside TLS where it asked for it
	tls  bool

	cancel *cancelKey // set for a CancelRequest; nothing below is

	user, database string
	client         string // the client's own application_name
	replication    string
	options        string
	settings       []setting // everything else, each name once, last value
	negotiate      bool      // answer NegotiateProtocolVersion
	unknown        []string  // the _pq_. options it asked for
}

// readStartup reads a connection's first packets, up to and including the
// startup message or cancel request. It reads exactly the packets' bytes and
// nothing beyond, since what follows may belong to TLS (CVE-2021-23214). The
// caller has set the login deadline. A silent error closes the connection
// without a word, as PostgreSQL does; any other is sent as it is, before
// AuthenticationOk.
func readStartup(ctx context.Context, conn net.Conn, config *tls.Config) (*startup, *sessionError) {
	st := &startup{conn: conn}
	var first [1]byte
	if _, err := io.ReadFull(conn, first[:]); err != nil {
		return nil, silent(reasonClient, nil)
	}
	head := first[:]
	if first[0] == 0x16 { // a TLS ClientHello: sslnegotiation=direct
		if config == nil {
			return nil, silent(reasonProtocol, nil)
		}
		if err := st.handshake(ctx, &prefixConn{Conn: conn, prefix: head}, config); err != nil {
			return nil, err
		}
		if st.conn.(*tls.Conn).ConnectionState().NegotiatedProtocol != "postgresql" {
			return nil, silent(reasonProtocol, fmt.Errorf("direct TLS without ALPN postgresql"))
		}
		head = nil
	}
	var askedTLS, askedGSS bool
	for {
		packet, err := readStartupPacket(st.conn, head)
		if err != nil {
			return nil, silent(reasonProtocol, err)
		}
		head = nil
		code := binary.BigEndian.Uint32(packet)
		switch {
		case code == codeCancelRequest:
			return st, st.parseCancel(packet[4:])
		case code == codeSSLRequest && !st.tls && !askedTLS:
			askedTLS = true
			if config == nil {
				if _, err := st.conn.Write([]byte{'N'}); err != nil {
					return nil, silent(reasonClientLost, err)
				}
				continue
			}
			if _, err := st.conn.Write([]byte{'S'}); err != nil {
				return nil, silent(reasonClientLost, err)
			}
			if err := st.handshake(ctx, st.conn, config); err != nil {
				return nil, err
			}
		case code == codeGSSENCRequest && !st.tls && !askedGSS:
			askedGSS = true
			if _, err := st.conn.Write([]byte{'N'}); err != nil {
				return nil, silent(reasonClientLost, err)
			}
		default:
			return st, st.parseMessage(code, packet[4:])
		}
	}
}

// readStartupPacket reads one length-prefixed packet; head holds its bytes
// already read.
func readStartupPacket(conn net.Conn, head []byte) ([]byte, error) {
	var length [4]byte
	n := copy(length[:], head)
	if _, err := io.ReadFull(conn, length[n:]); err != nil {
		return nil, err
	}
	size := int64(binary.BigEndian.Uint32(length[:])) - 4
	if size < 4 || size > maxStartupPacket {
		return nil, fmt.Errorf("startup packet of %d bytes", size)
	}
	packet := make([]byte, size)
	_, err := io.ReadFull(conn, packet)
	return packet, err
}

func (st *startup) handshake(ctx context.Context, conn net.Conn, config *tls.Config) *sessionError {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	c := tls.Server(conn, config)
	if err := c.HandshakeContext(ctx); err != nil {
		return silent(reasonProtocol, fmt.Errorf("TLS handshake: %w", err))
	}
	st.conn, st.tls = c, true
	return nil
}

func (st *startup) parseCancel(body []byte) *sessionError {
	if len(body) < 5 || len(body) > 4+maxCancelKey {
		return silent(reasonProtocol, fmt.Errorf("cancel request with a key of %d bytes", len(body)-4))
	}
	st.cancel = &cancelKey{pid: binary.BigEndian.Uint32(body), key: string(body[4:])}
	return nil
}

// parseMessage reads a startup message as ProcessStartupPacket does
// (backend_startup.c), and gives its errors in PostgreSQL's words.
func (st *startup) parseMessage(version uint32, body []byte) *sessionError {
	major, minor := version>>16, version&0xffff
	if major != 3 {
		e := fatal(codeFeatureNotSupported, fmt.Sprintf("unsupported frontend protocol %d.%d: server supports 3.0 to 3.0", major, minor), reasonProtocol)
		if major == 2 {
			return st.refuseVersion2(e)
		}
		return e
	}
	st.negotiate = minor != 0
	if err := st.parseParameters(body); err != nil {
		return err
	}
	if st.negotiate {
		if _, err := st.conn.Write(st.appendNegotiate(nil)); err != nil {
			return silent(reasonClientLost, err)
		}
	}
	if st.user == "" {
		return fatal(codeInvalidAuthorization, "no PostgreSQL user name specified in startup packet", reasonProtocol)
	}
	return nil
}

// refuseVersion2 answers in the form a protocol 2 client reads.
func (st *startup) refuseVersion2(e *sessionError) *sessionError {
	st.conn.Write([]byte("EFATAL:  " + e.message + "\n\x00"))
	e.quiet = true
	return e
}

func (st *startup) parseParameters(body []byte) *sessionError {
	layout := fatal(codeProtocolViolation, "invalid startup packet layout: expected terminator as last byte", reasonProtocol)
	rest := body
	for len(rest) > 0 && rest[0] != 0 {
		name, after, ok := frame.CString(rest)
		if !ok {
			return layout
		}
		value, after, ok := frame.CString(after)
		if !ok {
			return layout
		}
		rest = after
		st.set(name, value)
	}
	if len(rest) != 1 {
		return layout
	}
	return nil
}

func (st *startup) set(name, value string) {
	switch {
	case strings.HasPrefix(name, "_pq_."):
		st.negotiate = true
		st.unknown = append(st.unknown, name)
	case name == "user":
		st.user = value
	case name == "database":
		st.database = value
	case name == "replication":
		st.replication = value
	case name == "options":
		st.options = value
	case strings.EqualFold(name, "application_name"):
		st.client = value
	default:
		for i := range st.settings {
			if strings.EqualFold(st.settings[i].name, name) {
				st.settings[i].value = value
				return
			}
		}
		st.settings = append(st.settings, setting{name, value})
	}
}

// appendNegotiate appends NegotiateProtocolVersion. The version is whole and
// not the minor number alone: libpq 18 hangs up on the latter.
func (st *startup) appendNegotiate(dst []byte) []byte {
	body := binary.BigEndian.AppendUint32(nil, protocol3)
	body = binary.BigEndian.AppendUint32(body, uint32(len(st.unknown)))
	for _, name := range st.unknown {
		body = append(append(body, name...), 0)
	}
	return frame.Append(dst, 'v', body...)
}

// wantsReplication reports whether the replication parameter asks for a
// walsender, in any of its spellings.
func (st *startup) wantsReplication() bool {
	switch strings.ToLower(st.replication) {
	case "", "false", "off", "0", "no", "f", "n":
		return false
	}
	return true
}

// prefixConn gives back bytes that were read from a connection too early.
type prefixConn struct {
	net.Conn
	prefix []byte
}

func (c *prefixConn) Read(b []byte) (int, error) {
	if len(c.prefix) > 0 {
		n := copy(b, c.prefix)
		c.prefix = c.prefix[n:]
		return n, nil
	}
	return c.Conn.Read(b)
}

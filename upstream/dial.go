package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// checkInterval makes the server itself notice within seconds that the proxy
// is gone (a crash, a lost machine) and end what it was running for it.
const checkInterval = "client_connection_check_interval"

// Request is what a session wants of its upstream connection.
type Request struct {
	// Database is the database to connect to; empty means Config.Database.
	Database string
	// Params are the session's startup parameters: its stamp, its identity,
	// its timeouts, the client's settings. They are there from the first
	// moment, so that the server's log has them in its connection lines.
	Params map[string]string
}

// Conn is one upstream connection, authenticated, idle and outside of a
// transaction. Who dialled it owns it and must close it.
type Conn struct {
	// Net carries raw protocol frames, the next byte read being the first
	// after ReadyForQuery. It has no deadline.
	Net net.Conn
	// PID and Key are the server's BackendKeyData; the key has four bytes.
	PID uint32
	Key []byte
	// Params are the ParameterStatus values reported while connecting.
	Params map[string]string
	// Notices came before ReadyForQuery, in this order.
	Notices []*pgproto3.NoticeResponse
	// Addr is the address that answered, "192.0.2.7:5432" or a socket's path.
	Addr string
	// Database is the database connected to.
	Database string
	// Login is the Config that has dialled, as its Describe tells it.
	Login string
	// Version is the server's major version, 0 when it does not say.
	Version int

	network string
	tls     *tls.Config // nil is plaintext
	direct  bool        // TLS from the first byte, without SSLRequest
}

// Dial opens a connection for one session. It takes no longer than ctx allows
// for all hosts together, and returns a [*DialError] when it fails.
func (c *Config) Dial(ctx context.Context, req Request) (*Conn, error) {
	withCheck := !c.noCheckInterval.Load()
	conn, err := c.dial(ctx, req, withCheck)
	if withCheck && refusesParameter(err, checkInterval) {
		conn, err = c.dial(ctx, req, false)
		if err == nil { // otherwise it was another parameter, a client's perhaps
			c.noCheckInterval.Store(true)
		}
	}
	if err != nil {
		return nil, newDialError(ctx, err)
	}
	return conn, nil
}

// refusesParameter says that the server did not accept the startup parameter:
// it does not know it, or not on its platform.
func refusesParameter(err error, name string) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	return ok && strings.Contains(pgErr.Message, name)
}

// attempt is what one call of dial learns on the way. Its own goroutine alone
// writes to it.
type attempt struct {
	network, address string // the last one tried, and so the one connected to
	frames           *frameReader
	notices          []*pgproto3.NoticeResponse
}

// connecting marks the context of a dial: see pgConfig.
type connecting struct{}

func (c *Config) dial(ctx context.Context, req Request, withCheck bool) (*Conn, error) {
	var at attempt
	pg := c.pgConfig(ctx, req, &at)
	if withCheck {
		pg.RuntimeParams[checkInterval] = "10s"
	}
	pc, err := pgconn.ConnectConfig(context.WithValue(ctx, connecting{}, true), pg)
	if err != nil {
		return nil, err
	}
	hc, err := pc.Hijack()
	if err != nil {
		return nil, err // not possible for a connection just made
	}
	conn := at.handOver(hc)
	conn.Login = c.Describe()
	if err := check(hc); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// pgConfig returns a config for one dial, which reports to at.
func (c *Config) pgConfig(ctx context.Context, req Request, at *attempt) *pgconn.Config {
	pg := c.pg.Copy()
	if req.Database != "" {
		pg.Database = req.Database
	}
	pg.RuntimeParams = maps.Clone(req.Params)
	if pg.RuntimeParams == nil {
		pg.RuntimeParams = make(map[string]string)
	}
	pg.RuntimeParams["client_encoding"] = "UTF8"
	pg.RuntimeParams["standard_conforming_strings"] = "on"
	pg.ConnectTimeout = hostTimeout(ctx, pg)
	pg.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		if ctx.Value(connecting{}) == nil {
			// When a server breaks off the login, pgconn sends it a cancel request
			// from a goroutine that nobody waits for, without a key.
			return nil, errors.New("no cancel request for a connection that was never ready")
		}
		at.network, at.address = network, address
		return c.pg.DialFunc(ctx, network, address)
	}
	pg.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		at.frames, at.notices = &frameReader{r: r}, nil
		return pgproto3.NewFrontend(at.frames, w)
	}
	pg.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		at.notices = append(at.notices, noticeResponse(n))
	}
	return pg
}

// hostTimeout is how long one host may take. pgconn counts its timeout for
// each address; without one, a host that accepts and then says nothing would
// use up the time of those after it.
func hostTimeout(ctx context.Context, pg *pgconn.Config) time.Duration {
	deadline, ok := ctx.Deadline()
	if pg.ConnectTimeout != 0 || !ok {
		return pg.ConnectTimeout
	}
	hosts := map[string]bool{pg.Host: true}
	for _, f := range pg.Fallbacks {
		hosts[f.Host] = true
	}
	if len(hosts) == 1 {
		return 0
	}
	return time.Until(deadline) / time.Duration(len(hosts))
}

// dialHalf connects within half of the time left, so that the next address of
// a name gets its turn when packets to this one vanish.
func dialHalf(ctx context.Context, network, address string) (net.Conn, error) {
	var d net.Dialer
	if deadline, ok := ctx.Deadline(); ok {
		d.Timeout = time.Until(deadline) / 2
	}
	return d.DialContext(ctx, network, address)
}

// handOver takes the connection out of pgconn's hands.
func (at *attempt) handOver(hc *pgconn.HijackedConn) *Conn {
	return &Conn{
		Net:      takeOver(hc.Conn, at.frames),
		PID:      hc.PID,
		Key:      hc.SecretKey,
		Params:   hc.ParameterStatuses,
		Notices:  at.notices,
		Addr:     at.address,
		Database: hc.Config.Database,
		Version:  majorVersion(hc.ParameterStatuses["server_version"]),
		network:  at.network,
		tls:      hc.TLSConfig,
		direct:   hc.Config.SSLNegotiation == "direct",
	}
}

// check refuses a server, or a pooler in between, whose answer a session
// cannot be built on.
func check(hc *pgconn.HijackedConn) error {
	switch {
	case hc.TxStatus != 'I':
		return fmt.Errorf("the new connection is in transaction status %q", hc.TxStatus)
	case len(hc.SecretKey) != 4:
		return fmt.Errorf("the cancel key has %d bytes, protocol 3.0 has 4", len(hc.SecretKey))
	}
	for name, want := range map[string]string{"client_encoding": "UTF8", "standard_conforming_strings": "on"} {
		if got := hc.ParameterStatuses[name]; got != want {
			return fmt.Errorf("the server reports %s=%q, not %q", name, got, want)
		}
	}
	return nil
}

// majorVersion reads "18.4 (Debian 18.4-1)" as 18, and "19beta1" as 19.
func majorVersion(s string) int {
	digits := strings.IndexFunc(s+".", func(r rune) bool { return r < '0' || r > '9' })
	v, _ := strconv.Atoi(s[:digits]) // no digits: 0
	return v
}

// noticeResponse turns pgconn's notice back into the message it was.
func noticeResponse(n *pgconn.Notice) *pgproto3.NoticeResponse {
	return &pgproto3.NoticeResponse{
		Severity:            n.Severity,
		SeverityUnlocalized: n.SeverityUnlocalized,
		Code:                n.Code,
		Message:             n.Message,
		Detail:              n.Detail,
		Hint:                n.Hint,
		Position:            n.Position,
		InternalPosition:    n.InternalPosition,
		InternalQuery:       n.InternalQuery,
		Where:               n.Where,
		SchemaName:          n.SchemaName,
		TableName:           n.TableName,
		ColumnName:          n.ColumnName,
		DataTypeName:        n.DataTypeName,
		ConstraintName:      n.ConstraintName,
		File:                n.File,
		Line:                n.Line,
		Routine:             n.Routine,
	}
}

// Close says goodbye and closes the connection. It must not be called between
// two halves of a frame: close Net then. A server that does not read is not
// waited for.
func (c *Conn) Close() error {
	c.Net.SetWriteDeadline(time.Now().Add(time.Second))
	c.Net.Write([]byte{'X', 0, 0, 0, 4}) // Terminate; an error ends in Close all the same
	return c.Net.Close()
}

package upstream

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/jackc/pgx/v5/pgconn"
)

// Config is the upstream as the operator's connection string names it: hosts,
// login, and TLS decided once and for all. It is immutable, apart from what it
// learns about the server, and safe for concurrent use.
type Config struct {
	pg *pgconn.Config

	// noCheckInterval is set once the server has said that it does not know
	// client_connection_check_interval (older than 14, or not on Linux).
	noCheckInterval atomic.Bool
}

// allowedKeys are what a connection string may say. Everything else that libpq
// or a pool knows would travel as a startup parameter, and those are the
// proxy's to set.
var allowedKeys = []string{
	"host", "port", "dbname", "user", "password", "passfile", "connect_timeout",
	"sslmode", "sslrootcert", "sslcert", "sslkey", "sslpassword", "sslcertmode", "sslsni", "sslnegotiation",
	"target_session_attrs", "channel_binding", "require_auth",
}

// ClearEnvironment removes libpq's PG* variables from the process's
// environment, all but PGPASSWORD and PGPASSFILE: pgconn takes whatever the
// connection string leaves open from them, and a stray PGHOST or PGOPTIONS must
// not decide what a production session talks to.
func ClearEnvironment() {
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		switch {
		case !strings.HasPrefix(name, "PG"), strings.HasPrefix(name, "PGPROXY_"):
		case name == "PGPASSWORD", name == "PGPASSFILE":
		default:
			os.Unsetenv(name)
		}
	}
}

// ParseConfig reads a libpq connection string, a URL or keywords and values.
// The password may also come from PGPASSWORD or a pass file; of the rest of
// the environment nothing is used (see [ClearEnvironment], which it calls).
//
// It refuses keys it does not know and TLS that could fall back to plaintext,
// unless every host is this machine. Its errors hold neither the password nor
// the connection string.
func ParseConfig(dsn string) (*Config, error) {
	if strings.TrimSpace(dsn) == "" {
		return nil, errors.New("the connection string is empty")
	}
	if isURL(dsn) && strings.Count(dsn, "@") > 1 {
		return nil, errors.New("the connection URL has more than one @: write those of the password and elsewhere as %40")
	}
	ClearEnvironment()
	pg, err := pgconn.ParseConfigWithOptions(dsn, pgconn.ParseConfigOptions{ConnStringAllowedKeys: allowedKeys})
	if err != nil {
		return nil, parseError(dsn, err)
	}
	// Protocol 3.2 has longer cancel keys, which clients of 3.0 cannot hold.
	pg.MinProtocolVersion, pg.MaxProtocolVersion = "3.0", "3.0"
	pg.DialFunc = dialHalf
	c := &Config{pg: pg}
	if pg.User == "" {
		return nil, errors.New("the connection string names no user: add user=")
	}
	if pg.Database == "" {
		pg.Database = pg.User
	}
	if err := c.checkFallback(); err != nil {
		return nil, err
	}
	return c, nil
}

func isURL(dsn string) bool {
	return strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://")
}

var (
	refusedKey = regexp.MustCompile(`^connection string key "([a-z_]{1,63})" is not in`)
	detailMark = regexp.MustCompile(`[:(]`)
)

// parseError says what is wrong with a connection string without quoting it.
// pgconn's own text is only as clean as the string was well-formed: with a
// stray space or slash, pieces of the password stand where a key or a port
// should, so no more than pgconn's fixed words pass.
func parseError(dsn string, err error) error {
	msg := strings.TrimPrefix(err.Error(), pgconn.NewParseConfigError(dsn, "", nil).Error())
	if m := refusedKey.FindStringSubmatch(msg); m != nil {
		return refusedKeyError(m[1])
	}
	switch {
	case strings.HasPrefix(msg, "connection string key"):
		return errors.New("the connection string has a key that pgproxy does not know (not shown: it may be part of a mistyped password)")
	case strings.HasPrefix(msg, "failed to parse as"):
		return errors.New("the connection string cannot be read: it must be a postgres:// URL, with special characters of the password percent-encoded, " +
			"or keyword=value pairs, with values that hold spaces in single quotes")
	case strings.HasPrefix(msg, "failed to configure TLS"):
		return fmt.Errorf("the connection string's TLS settings: %w", errors.Unwrap(err))
	case strings.HasPrefix(msg, "could not match"):
		return errors.New("the connection string has another number of ports than hosts")
	}
	return errors.New("the connection string has an " + strings.TrimSpace(detailMark.Split(msg, 2)[0]))
}

func refusedKeyError(key string) error {
	switch key {
	case "application_name", "client_encoding", "options", "standard_conforming_strings", "statement_timeout":
		return fmt.Errorf("the connection string must not set %q: the proxy sets the session's parameters itself", key)
	}
	return fmt.Errorf("the connection string has a key that pgproxy does not support: %q", key)
}

// target is one way to reach one host; pgconn tries them in order.
type target struct {
	host string
	port uint16
	tls  *tls.Config // nil is plaintext
}

// targets returns all ways to reach the upstream, in pgconn's order.
func (c *Config) targets() []target {
	ts := []target{{c.pg.Host, c.pg.Port, c.pg.TLSConfig}}
	for _, f := range c.pg.Fallbacks {
		ts = append(ts, target{f.Host, f.Port, f.TLSConfig})
	}
	return ts
}

// address returns "host:port", or a Unix socket's path.
func (t target) address() string {
	_, address := pgconn.NetworkAddress(t.host, t.port)
	return address
}

// local says that packets to the target do not leave this machine.
func (t target) local() bool {
	if network, _ := pgconn.NetworkAddress(t.host, t.port); network == "unix" || t.host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(t.host)
	return err == nil && ip.Unmap().IsLoopback()
}

// checkFallback refuses a host that would be tried both with TLS and without:
// whoever can drop packets would choose plaintext for us.
func (c *Config) checkFallback() error {
	ts := c.targets()
	for _, t := range ts {
		if t.local() || t.tls != nil {
			continue
		}
		if slices.ContainsFunc(ts, func(o target) bool { return o.tls != nil && o.address() == t.address() }) {
			return fmt.Errorf("the connection to %s could fall back to plaintext: add sslmode=verify-full "+
				"(and sslrootcert=FILE for a private CA), or sslmode=disable to do without TLS on purpose", t.address())
		}
	}
	return nil
}

// Database is the database that the connection string names, or libpq's
// default, the user's name.
func (c *Config) Database() string { return c.pg.Database }

// User is the login role.
func (c *Config) User() string { return c.pg.User }

// Describe names the upstream for logs and people: "app@db1:5432,db2:5432/shop,
// TLS verify-full". It never holds the password.
func (c *Config) Describe() string {
	var addresses, security []string
	for _, t := range c.targets() {
		if !slices.Contains(addresses, t.address()) {
			addresses = append(addresses, t.address())
		}
		if s := describeTLS(t); !slices.Contains(security, s) {
			security = append(security, s)
		}
	}
	return fmt.Sprintf("%s@%s/%s, %s", c.pg.User, strings.Join(addresses, ","), c.pg.Database, strings.Join(security, " or "))
}

func describeTLS(t target) string {
	network, _ := pgconn.NetworkAddress(t.host, t.port)
	switch {
	case network == "unix":
		return "Unix socket"
	case t.tls == nil:
		return "no TLS"
	case !t.tls.InsecureSkipVerify:
		return "TLS verify-full"
	case t.tls.VerifyPeerCertificate != nil:
		return "TLS verify-ca"
	}
	return "TLS unverified (anyone in between can read along; sslmode=verify-full checks the server)"
}

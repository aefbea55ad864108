package config

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"pgproxy/node"
	"pgproxy/node/loopback"
	"pgproxy/policy"
	"pgproxy/wire/audit"
)

// declare declares every flag: the one place for name, default and help, from
// which the environment variable follows.
func (c *Config) declare(command string) {
	fs := flag.NewFlagSet("pgproxy "+command, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	c.flags = fs

	hostname, _ := os.Hostname() // without one, the device has no name

	fs.Var(checked(&c.Hostname, "pgproxy", node.CheckHostname), "hostname", "`name` in the tailnet")
	fs.Var(number(&c.Port, 5432, 1, 65535), "port", "tailnet `port` for clients")
	fs.Var(number(&c.DebugPort, 80, 0, 65535), "debug-port", "tailnet `port` for the status page and metrics; 0 = off")
	fs.Var(checked(&c.HealthListen, "", checkAddress), "health-listen", "plain TCP `address` for /healthz, /readyz and /metrics, e.g. :8081; empty = off")
	fs.StringVar(&c.StateDir, "state-dir", "", "`directory` of the tailnet node's state; empty = under the user's configuration directory")
	fs.Var(checked(&c.ControlURL, "", node.CheckControlURL), "control-url", "`URL` of the coordination server; empty = Tailscale's")
	fs.StringVar(&c.AuthKeyFile, "authkey-file", "", "`file` with the auth key; otherwise TS_AUTHKEY, TS_CLIENT_SECRET and the like")
	fs.Var(list(&c.AdvertiseTags, node.CheckTag), "advertise-tags", "`tags` to ask for, comma-separated, e.g. tag:pgproxy")
	fs.BoolVar(&c.Ephemeral, "ephemeral", false, "let the tailnet forget the node when it is gone")
	fs.Var(checked(&c.DevListen, "", loopback.Check), "dev-listen", "serve this loopback `address` INSTEAD OF A TAILNET, to try things: everybody is -dev-user")
	fs.StringVar(&c.DevUser, "dev-user", "dev@localhost", "`login` of all callers of -dev-listen")
	fs.StringVar(&c.DevNode, "dev-node", hostname, "device `name` of all callers of -dev-listen")
	fs.StringVar(&c.UpstreamDSN, "upstream", "", "`connection string` of PostgreSQL, a URL or keywords; required. Its password may also come by PGPASSWORD or a pass file")
	fs.Var(list(&c.Databases, nil), "databases", "database `names` that a client may ask for, comma-separated, * = any; empty = the connection string's")
	fs.StringVar(&c.PolicyFile, "policy", "", "policy `file` (HuJSON); empty = built in: everybody may read and write, with limits")
	fs.Var(checked(&c.Capability, "", node.CheckCapability), "capability", "`name` of the app capability to read from tailnet grants, e.g. corp.example/cap/pgproxy")
	fs.StringVar(&c.AuditLog, "audit-log", "-", "`file` for audit records, - = stdout")
	fs.TextVar(&c.AuditSync, "audit-sync", audit.SyncInterval, "`when` records are on disk: always = before a statement is sent, interval = within a second, never = when the kernel likes")
	fs.Var(number(&c.AuditMaxSize, 0, 0, 1<<20), "audit-max-size", "`MiB` past which the audit file is put aside under a name with the time; 0 = never")
	fs.TextVar(&c.AuditSQL, "audit-sql", policy.Redacted, "`how` statements are recorded: full, redacted (without secrets), normalized (without any literal)")
	fs.StringVar(&c.TLS, "tls", "off", "TLS for clients: off, tailnet (certificate of the MagicDNS name), or `CERTFILE:KEYFILE`")
	fs.BoolVar(&c.RequireTLS, "require-tls", false, "refuse clients without TLS")
	fs.Var(number(&c.MaxSessions, 100, 0, 1<<20), "max-sessions", "`sessions` at a time; 0 = no limit")
	fs.Var(number(&c.MaxSessionsPerUser, 10, 0, 1<<20), "max-sessions-per-user", "`sessions` of one user at a time; 0 = no limit")
	fs.Var(timeout(&c.ConnectTimeout, 10*time.Second, 1), "connect-timeout", "`time` for the upstream connection, all hosts together")
	fs.Var(timeout(&c.LoginTimeout, 30*time.Second, 1), "login-timeout", "`time` from accept to startup message")
	fs.Var(timeout(&c.IdleTimeout, 30*time.Minute, 0), "idle-timeout", "`time` that a session may do nothing; 0 = for ever")
	fs.Var(timeout(&c.DrainTimeout, 30*time.Second, 0), "drain-timeout", "`time` for statements and transactions to finish on SIGTERM; a second signal ends at once")
	fs.Var(checked(&c.Contact, "", checkContact), "contact", "`whom` to ask for what only somebody else can allow, named in refusals, e.g. #dba or a URL")
	fs.StringVar(&c.NotifyURLFile, "notify-url-file", "", "`file` with the URL of a webhook that is told of access requests, tampering and refused connections; empty = off")
	fs.BoolVar(&c.QuietLogin, "quiet-login", false, "no NOTICE at login")
	fs.Var(choice(&c.LogFormat, "auto", "auto", "text", "json"), "log-format", "`format` of the log: text, json, auto = coloured on a terminal and JSON otherwise")
	fs.Var(choice(&c.LogLevel, "info", "debug", "info", "warn", "error"), "log-level", "lowest `level` that is logged: debug (with the tailnet's own chatter), info, warn, error")
	if command == "explain" {
		fs.StringVar(&c.As, "as", "", "`login` or tag to judge for; empty = somebody whom the policy does not name")
		fs.StringVar(&c.Database, "d", "", "`database` that is asked for at login; empty = none by name")
		fs.StringVar(&c.Reason, "reason", "", "`text` of pgproxy.reason in the session")
		fs.StringVar(&c.File, "f", "", "`file` of statements, each under a line \"-- expect: LOGIN allow\" or \"-- expect: LOGIN deny RULE\"; exit 0 if all hold")
	}
	fs.VisitAll(func(f *flag.Flag) { f.Value = &collected{f.Value, "-" + f.Name, &c.errs} })
}

// checkAddress reports what is wrong with an address to listen on.
func checkAddress(address string) error {
	_, port, err := net.SplitHostPort(address)
	if err == nil {
		_, err = net.LookupPort("tcp", port)
	}
	return err
}

// checkContact takes what fits into a line of an error.
func checkContact(text string) error {
	if len(text) > 200 || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return errors.New("not a line of at most 200 bytes")
	}
	return nil
}

// collected is a flag whose wrong values do not end the parsing: they are told
// all at once.
type collected struct {
	flag.Value
	name string // as typed: the flag, or the environment variable
	errs *[]error
}

// Set never fails. It does not quote the value, which may be a secret in the
// wrong place.
func (v *collected) Set(s string) error {
	if err := v.Value.Set(s); err != nil {
		*v.errs = append(*v.errs, fmt.Errorf("%s: %w", v.name, err))
	}
	return nil
}

// String is called on the zero value, too, by package flag.
func (v *collected) String() string {
	if v.Value == nil {
		return ""
	}
	return v.Value.String()
}

// IsBoolFlag lets package flag take -name for -name=true.
func (v *collected) IsBoolFlag() bool {
	b, ok := v.Value.(interface{ IsBoolFlag() bool })
	return ok && b.IsBoolFlag()
}

// value is a flag.Value made of two functions.
type value struct {
	set  func(string) error
	show func() string
}

func (v value) Set(s string) error { return v.set(s) }

func (v value) String() string {
	if v.show == nil {
		return ""
	}
	return v.show()
}

func number(p *int, def, low, high int) flag.Value {
	*p = def
	return value{func(s string) error {
		n, err := strconv.Atoi(s)
		if err != nil || n < low || n > high {
			return fmt.Errorf("not a number from %d to %d", low, high)
		}
		*p = n
		return nil
	}, func() string { return strconv.Itoa(*p) }}
}

func timeout(p *time.Duration, def, low time.Duration) flag.Value {
	*p = def
	return value{func(s string) error {
		d, err := time.ParseDuration(s)
		if err != nil || d < low {
			return errors.New("not a time such as 30s or 5m")
		}
		*p = d
		return nil
	}, func() string { return p.String() }}
}

// list is a list of items that each pass a check, nil = any.
func list(p *[]string, check func(string) error) flag.Value {
	return value{func(s string) error {
		*p = nil
		for item := range strings.SplitSeq(s, ",") {
			if item = strings.TrimSpace(item); item == "" {
				continue
			}
			if check != nil {
				if err := check(item); err != nil {
					return err
				}
			}
			*p = append(*p, item)
		}
		return nil
	}, func() string { return strings.Join(*p, ",") }}
}

// checked is a text that must pass a check, or be empty where that is the
// default.
func checked(p *string, def string, check func(string) error) flag.Value {
	*p = def
	return value{func(s string) error {
		*p = s // one that is wrong, too: other flags depend on it
		if s == "" && def == "" {
			return nil
		}
		return check(s)
	}, func() string { return *p }}
}

func choice(p *string, def string, choices ...string) flag.Value {
	*p = def
	return value{func(s string) error {
		if !slices.Contains(choices, s) {
			return fmt.Errorf("not one of %s", strings.Join(choices, ", "))
		}
		*p = s
		return nil
	}, func() string { return *p }}
}

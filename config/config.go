// Package config is what pgproxy is told. Parse reads flags and environment, Load
// reads the files that they name, and Check says what would be in force.
package config

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/lmittmann/tint"
	"golang.org/x/term"

	"pgproxy/policy"
	"pgproxy/wire/audit"
)

// Config is what flags and environment say.
type Config struct {
	flags *flag.FlagSet
	errs  []error // what is wrong with the values, as typed

	Hostname, StateDir, ControlURL, AuthKeyFile string
	Port, DebugPort                             int
	AdvertiseTags                               []string
	Ephemeral                                   bool

	DevListen, DevUser, DevNode string
	HealthListen                string

	UpstreamDSN string
	Databases   []string
	PolicyFile  string
	Capability  string

	AuditLog     string
	AuditSync    audit.Sync
	AuditSQL     policy.Redaction
	AuditMaxSize int // MiB

	TLS        string // off, tailnet or CERTFILE:KEYFILE
	RequireTLS bool

	MaxSessions, MaxSessionsPerUser                         int
	ConnectTimeout, LoginTimeout, IdleTimeout, DrainTimeout time.Duration
	QuietLogin                                              bool
	Contact                                                 string
	NotifyURLFile                                           string

	LogFormat, LogLevel string

	// Of explain: whose verdict, for which database, with which reason, on
	// which statement or file of them.
	As, Database, Reason, SQL, File string
}

// Parse reads flags, and the environment for those that are not given. What is
// wrong with the values is kept, for Load to tell together with what it finds.
// The error is flag.ErrHelp where the help is asked for; the Config can print it.
func Parse(command string, args, environ []string) (*Config, error) {
	c := new(Config)
	c.declare(command)
	if err := c.flags.Parse(args); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			err = fmt.Errorf("%w; pgproxy -h lists the flags", err)
		}
		return c, err
	}
	c.readEnvironment(environ)
	switch rest := c.flags.Args(); {
	case command == "explain" && len(rest) == 1 && c.File == "":
		c.SQL = rest[0]
	case command == "explain" && (len(rest) > 0 || c.File == ""):
		c.errs = append(c.errs, errors.New("explain wants one argument, the SQL, or -f FILE and none"))
	case c.File != "" && c.As != "":
		c.errs = append(c.errs, errors.New("-as: the lines of -f say for whom"))
	case len(rest) > 0:
		c.errs = append(c.errs, fmt.Errorf("unexpected argument %q", rest[0]))
	}
	c.errs = append(c.errs, c.contradictions(command)...)
	return c, nil
}

// Err joins what is wrong with the values.
func (c *Config) Err() error { return errors.Join(c.errs...) }

// contradictions reports values that are each right alone and contradict each
// other.
func (c *Config) contradictions(command string) []error {
	var errs []error
	if c.UpstreamDSN == "" && command != "explain" {
		errs = append(errs, errors.New("-upstream is missing: the PostgreSQL to connect to, e.g. -upstream 'host=db.example.com user=app dbname=shop sslmode=verify-full', or UPSTREAM_DSN"))
	}
	if c.DevListen != "" && c.TLS == "tailnet" {
		errs = append(errs, errors.New("-tls tailnet: there is no tailnet with -dev-listen"))
	}
	if c.DevListen == "" && c.Port == c.DebugPort {
		errs = append(errs, fmt.Errorf("-port and -debug-port are both %d", c.Port))
	}
	if c.RequireTLS && c.TLS == "off" {
		errs = append(errs, errors.New("-require-tls: there is no TLS to require with -tls off"))
	}
	return errs
}

// Logger is where the operator reads what happens now. The audit records are
// not its business.
func (c *Config) Logger(w io.Writer) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		panic(err) // the flag allows slog's names only
	}
	options := &slog.HandlerOptions{Level: level, ReplaceAttr: plainDuration}
	f, isFile := w.(*os.File)
	switch {
	case c.LogFormat == "text":
		return slog.New(slog.NewTextHandler(w, options))
	case c.LogFormat == "auto" && isFile && term.IsTerminal(int(f.Fd())):
		return slog.New(tint.NewTextHandler(w, &tint.Options{Level: level, TimeFormat: time.TimeOnly}))
	}
	return slog.New(slog.NewJSONHandler(w, options))
}

// plainDuration has durations in JSON as people write them, not in nanoseconds.
func plainDuration(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.StringValue(a.Value.Duration().String())
	}
	return a
}

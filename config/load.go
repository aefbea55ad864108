package config

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"pgproxy/node"
	"pgproxy/policy"
	"pgproxy/upstream"
	"pgproxy/wire/certfile"
	"pgproxy/wire/notify"
)

// Loaded is a Config with the files that it names. Nothing of it is started.
type Loaded struct {
	*Config
	Log      *slog.Logger
	Upstream *upstream.Config // nil for an explain without one
	AuthKey  string           // for a node that has not joined yet
	// ClientTLS is nil where TLS is off. With -tls tailnet it has no certificate
	// yet.
	ClientTLS *tls.Config
	// NotifyURL is the webhook's, a secret; empty = none.
	NotifyURL string

	inForce atomic.Pointer[inForce]
	state   node.State // as CheckPlaces found it
	unread  sync.Map   // text of grants that could not be read, each logged once
}

// inForce is the policy as it was read last.
type inForce struct {
	*policy.Policy
	readLogin *upstream.Config // for those who may only read; nil = the one login
}

// Load reads everything that the configuration names. Its error joins all that
// is wrong, with flags and files alike; the Loaded then has what could be read.
func (c *Config) Load(log *slog.Logger) (*Loaded, error) {
	p := &Loaded{Config: c, Log: log}
	errs := c.errs
	collect := func(name string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	var err error
	if c.UpstreamDSN != "" {
		p.Upstream, err = upstream.ParseConfig(c.UpstreamDSN)
		collect("-upstream", err)
	}
	collect("-policy", p.ReadPolicy())
	collect("-authkey-file", p.readAuthKey())
	collect("-tls", p.readTLS())
	if c.NotifyURLFile != "" {
		p.NotifyURL, err = notify.ReadURL(c.NotifyURLFile)
		collect("-notify-url-file", err)
	}
	return p, errors.Join(errs...)
}

// readAuthKey reads the key for a node that has not joined yet. One that has
// needs none: then the file may be empty or gone.
func (p *Loaded) readAuthKey() error {
	if p.AuthKeyFile == "" {
		return nil
	}
	b, err := os.ReadFile(p.AuthKeyFile)
	p.AuthKey = strings.TrimSpace(string(b))
	if err == nil && p.AuthKey == "" {
		err = fmt.Errorf("%s is empty", p.AuthKeyFile)
	}
	if err != nil {
		if state, _ := node.CheckState(p.StateDir); state.Saved {
			return nil
		}
	}
	return err
}

// ReadPolicy puts the policy file in force, or leaves what was.
func (p *Loaded) ReadPolicy() error {
	if p.PolicyFile == "" {
		now := p.withoutFile()
		now.Contact = p.Contact
		p.inForce.Store(&inForce{Policy: now})
		return nil
	}
	read, err := policy.LoadFile(p.PolicyFile)
	if err != nil {
		return err
	}
	read.Contact = p.Contact
	next := &inForce{Policy: read}
	if read.UpstreamRead != "" {
		if next.readLogin, err = upstream.ParseConfig(read.UpstreamRead); err != nil {
			return fmt.Errorf("upstream_read: %w", err)
		}
	}
	p.inForce.Store(next)
	return nil
}

func (p *Loaded) withoutFile() *policy.Policy {
	if p.Capability != "" {
		return policy.GrantsOnly()
	}
	return policy.Builtin()
}

// fallback says what a caller without a grant falls back to where access comes
// by grants; it is empty where that is nothing. A grant that is taken away may
// then leave its caller with more than it gave.
func (p *Loaded) fallback() string {
	rule, ok := p.inForce.Load().Default()
	if p.Capability == "" || !ok {
		return ""
	}
	return "whoever has no grant, or loses one, has the policy file's default: " + strings.Join(rule.Describe(), ", ")
}

// WarnOfFallback tells the operator, who may have meant to refuse them.
func (p *Loaded) WarnOfFallback() {
	if said := p.fallback(); said != "" {
		p.Log.Warn(said, "fix", `"default": null in the policy file refuses them`)
	}
}

func (p *Loaded) readTLS() error {
	switch p.TLS {
	case "off":
		return nil
	case "tailnet":
		p.ClientTLS = serverTLS(nil)
		return nil
	}
	certFile, keyFile, ok := strings.Cut(p.TLS, ":")
	if !ok {
		return fmt.Errorf("%q is not off, tailnet or CERTFILE:KEYFILE", p.TLS)
	}
	pair, err := certfile.Load(certFile, keyFile, p.Log)
	if err != nil {
		return err
	}
	p.ClientTLS = serverTLS(pair.GetCertificate)
	return nil
}

// serverTLS is TLS as clients of PostgreSQL expect it: those that begin with it
// (sslnegotiation=direct) insist on the protocol's name.
func serverTLS(certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"postgresql"}, GetCertificate: certificate}
}

// Rule is the rule in force for a caller. It says so in the log when a grant of
// theirs cannot be read, and so gives nothing.
func (p *Loaded) Rule(caller policy.Caller) (policy.Rule, error) {
	_, unreadable := caller.ReadGrants()
	for _, err := range unreadable {
		if _, known := p.unread.LoadOrStore(caller.Who()+err.Error(), true); !known {
			p.Log.Warn("a grant cannot be read and gives nothing", "user", caller.Who(), "capability", p.Capability, "err", err)
		}
	}
	return p.inForce.Load().RuleFor(caller)
}

// Dial opens a session's upstream connection. A session that may only read goes
// to the login for that, where the policy names one.
func (p *Loaded) Dial(ctx context.Context, req upstream.Request) (*upstream.Conn, error) {
	return p.loginFor(req.Params["default_transaction_read_only"] == "on").Dial(ctx, req)
}

// Login is the login of sessions with that access, as Config.Describe of package
// upstream tells it.
func (p *Loaded) Login(access policy.Access) string {
	return p.loginFor(access == policy.Read).Describe()
}

func (p *Loaded) loginFor(readOnly bool) *upstream.Config {
	if read := p.inForce.Load().readLogin; read != nil && readOnly {
		return read
	}
	return p.Upstream
}

// Greet logs in to a database and out, in the time that a session would have.
func (p *Loaded) Greet(ctx context.Context, login *upstream.Config, database string) (upstream.Greeting, error) {
	ctx, cancel := context.WithTimeout(ctx, p.ConnectTimeout)
	defer cancel()
	return login.Greet(ctx, database)
}

// OpenCatalog opens a connection for a verdict about which the database is asked.
func (p *Loaded) OpenCatalog(ctx context.Context, rule policy.Rule, database string) (policy.OpenCatalog, error) {
	ctx, cancel := context.WithTimeout(ctx, p.ConnectTimeout)
	defer cancel()
	params := map[string]string{"application_name": upstream.HelperName("explain"), "statement_timeout": "10s"}
	if rule.Access == policy.Read {
		params["default_transaction_read_only"] = "on"
	}
	conn, err := p.Dial(ctx, upstream.Request{Database: database, Params: params})
	if err != nil {
		return nil, err // not a *Conn of nil
	}
	return conn, nil
}

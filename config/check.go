package config

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"pgproxy/node"
	"pgproxy/node/loopback"
	"pgproxy/upstream"
	"pgproxy/wire/audit"
)

// CheckPlaces looks at what serving needs of this machine, beside the audit log:
// addresses to listen on, and a place for the node's state. It makes and keeps
// nothing.
func (p *Loaded) CheckPlaces() error {
	var errs []error
	var open []net.Listener // at the same time: two flags may name one address
	defer func() {
		for _, ln := range open {
			ln.Close()
		}
	}()
	listen := func(name, address string, check func(string) error) {
		if address == "" || check(address) != nil {
			return // off, or an error already
		}
		ln, err := net.Listen("tcp", address)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
			return
		}
		open = append(open, ln)
	}
	listen("-dev-listen", p.DevListen, loopback.Check)
	listen("-health-listen", p.HealthListen, checkAddress)
	if p.DevListen == "" {
		var err error
		if p.state, err = node.CheckState(p.StateDir); err != nil {
			errs = append(errs, fmt.Errorf("state directory: %w", err))
		}
	}
	return errors.Join(errs...)
}

// Check writes what would be in force, or returns all that is wrong: with what
// serving reads, by Load, and with what it uses.
func (c *Config) Check(ctx context.Context, log *slog.Logger, stdout io.Writer) error {
	p, err := c.Load(log)
	errs := []error{err, p.CheckPlaces(), audit.Check(c.AuditLog)}
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	if p.Upstream != nil {
		errs = append(errs, p.checkLogin(ctx, w, "upstream", p.Upstream))
	}
	if now := p.inForce.Load(); now != nil {
		if now.readLogin != nil {
			errs = append(errs, p.checkLogin(ctx, w, "upstream for read access", now.readLogin))
		}
		p.describePolicy(w, now)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	p.describe(w)
	w.Flush() // a strings.Builder takes everything
	_, err = io.WriteString(stdout, b.String())
	return err
}

// checkLogin logs in to each database that a client may name.
func (p *Loaded) checkLogin(ctx context.Context, w io.Writer, name string, login *upstream.Config) error {
	server, err := p.Greet(ctx, login, p.UpstreamDatabase())
	if err != nil {
		return fmt.Errorf("%s %s: %w", name, login.Describe(), err)
	}
	fmt.Fprintf(w, "%s\t%s\n", name, login.Describe())
	fmt.Fprintf(w, "\tPostgreSQL %s at %s, reached in %s\n", server.Version, server.Addr, server.Took.Round(time.Millisecond))
	if server.Superuser {
		fmt.Fprintf(w, "\tWARNING: %s is a superuser; a login with no more rights than people need is the strongest wall\n", login.User())
	}
	warnEncoding(w, p.UpstreamDatabase(), server)
	var errs []error
	for _, database := range p.Databases {
		if database == "*" || database == p.UpstreamDatabase() {
			continue
		}
		server, err := p.Greet(ctx, login, database)
		if err != nil {
			errs = append(errs, fmt.Errorf("-databases: %s: %s: %w", database, name, err))
			continue
		}
		warnEncoding(w, database, server)
	}
	return errors.Join(errs...)
}

func warnEncoding(w io.Writer, database string, server upstream.Greeting) {
	if server.Encoding != "UTF8" {
		fmt.Fprintf(w, "\tWARNING: database %s is in %s; pgproxy is made for UTF8\n", database, server.Encoding)
	}
}

// UpstreamDatabase is the database of a client that names none.
func (p *Loaded) UpstreamDatabase() string {
	if p.Upstream == nil {
		return "" // explain, or a connection string that cannot be read
	}
	return p.Upstream.Database()
}

// describePolicy says what holds for a person whom the policy does not name.
func (p *Loaded) describePolicy(w io.Writer, now *inForce) {
	source := "built in"
	switch {
	case p.PolicyFile != "":
		source = p.PolicyFile
	case p.Capability != "":
		source = "none: access comes by grants alone"
	}
	fmt.Fprintf(w, "policy\t%s\n", source)
	if rule, ok := now.Default(); ok {
		fmt.Fprintf(w, "\tpeople it does not name: %s\n", strings.Join(rule.Describe(), ", "))
	} else {
		fmt.Fprintln(w, "\tpeople it does not name: refused")
	}
	if p.Capability != "" {
		fmt.Fprintf(w, "\tgrants: app capability %s\n", p.Capability)
	}
	if said := p.fallback(); said != "" {
		fmt.Fprintf(w, "\tWARNING: %s; \"default\": null refuses them\n", said)
	}
}

// describe says the rest of what is in force.
func (p *Loaded) describe(w io.Writer) {
	if p.DevListen != "" {
		fmt.Fprintf(w, "clients\tDEVELOPMENT MODE: %s, everybody is %s on %s\n", p.DevListen, p.DevUser, p.DevNode)
	} else {
		fmt.Fprintf(w, "clients\ttailnet node %s, port %d\n", p.Hostname, p.Port)
		fmt.Fprintf(w, "\tstate in %s; %s\n", p.state.Dir, p.joining())
		if p.state.Open {
			fmt.Fprintf(w, "\tWARNING: others can look into %s; pgproxy will close it, if it may\n", p.state.Dir)
		}
	}
	required := ""
	if p.RequireTLS {
		required = ", required"
	}
	fmt.Fprintf(w, "\tTLS %s%s\n", p.TLS, required)
	served := p.Databases
	if len(served) == 0 {
		served = []string{p.UpstreamDatabase()}
	}
	fmt.Fprintf(w, "databases\t%s\n", strings.Join(served, ", "))
	fmt.Fprintf(w, "sessions\t%d at a time, %d of one user (0 = no limit)\n", p.MaxSessions, p.MaxSessionsPerUser)
	fmt.Fprintf(w, "timeouts\tconnect %s, login %s, idle %s, drain %s\n", p.ConnectTimeout, p.LoginTimeout, p.IdleTimeout, p.DrainTimeout)
	if p.NotifyURL != "" {
		fmt.Fprintf(w, "webhook\tthe URL in %s is told of access requests, tampering and refused connections\n", p.NotifyURLFile)
	}
	fmt.Fprintf(w, "audit\t%s, sync %s, SQL %s\n", p.AuditLog, p.AuditSync, p.AuditSQL)
}

// joining says what will let the node in.
func (p *Loaded) joining() string {
	switch {
	case p.state.Saved:
		return "it has joined before, and needs no key"
	case p.AuthKey != "":
		return "it joins with the key in " + p.AuthKeyFile
	}
	for _, name := range node.KeyVariables {
		if os.Getenv(name) != "" {
			return "it joins with " + name
		}
	}
	return "there is no key, so somebody has to open the login URL that it logs"
}

// Command pgproxy lets the people of a tailnet use a PostgreSQL database under
// their own names: it joins the tailnet as a node, asks who is calling, stamps
// the person into the session, keeps a record of every statement, and refuses
// those that a tired person should not run on production.
//
//	pgproxy [flags]                           join the tailnet and serve
//	pgproxy check [flags]                     read flags and policy, reach the upstream
//	pgproxy explain [flags] [-as LOGIN] SQL   the verdict on a statement, without running it
//	pgproxy explain [flags] -f FILE           the same for a file of statements and what is expected
//	pgproxy audit show|verify [flags] FILE…   read and check audit records
//	pgproxy version
//
// Run pgproxy -h for the flags.
package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"pgproxy/config"
	"pgproxy/node"
	"pgproxy/node/loopback"
	"pgproxy/policy"
	"pgproxy/wire"
	"pgproxy/wire/audit"
	"pgproxy/wire/audit/trail"
	"pgproxy/wire/health"
	"pgproxy/wire/notify"
	"pgproxy/wire/status"
)

func main() {
	args := os.Args[1:]
	os.Args = os.Args[:1] // -upstream may hold a password, and debug pages show os.Args
	err := run(context.Background(), args, os.Environ(), os.Stdout, os.Stderr)
	switch {
	case err == nil:
	case errors.Is(err, errRefused):
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "pgproxy: "+strings.ReplaceAll(err.Error(), "\n", "\npgproxy: "))
		os.Exit(1)
	}
}

// errRefused is explain's answer of no, which it has printed.
var errRefused = errors.New("refused")

// run is the program, from its arguments to its error. When ctx ends, a proxy
// that serves drains as on SIGTERM.
func run(ctx context.Context, args, environ []string, stdout, stderr io.Writer) error {
	command := "serve"
	switch {
	case len(args) == 0:
	case slices.Contains([]string{"-v", "-version", "--version"}, args[0]):
		command = "version"
	case !strings.HasPrefix(args[0], "-"):
		command, args = args[0], args[1:]
	}
	var do func(context.Context, *config.Config, io.Writer, io.Writer) error
	switch command {
	case "serve":
		do = serve
	case "check":
		do = check
	case "explain":
		do = explain
	case "audit":
		return audit.Command(ctx, args, stdout, stderr)
	case "version":
		_, err := fmt.Fprintln(stdout, version())
		return err
	case "help":
		command, args = "serve", []string{"-h"}
	default:
		return fmt.Errorf("unknown command %q: it is check, explain, audit, version or help, and without one pgproxy serves", command)
	}
	c, err := config.Parse(command, args, environ)
	if errors.Is(err, flag.ErrHelp) {
		return c.PrintHelp(stdout)
	}
	if err != nil {
		return err
	}
	return do(ctx, c, stdout, stderr)
}

// version names the build.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "pgproxy, built without module information"
	}
	v := "pgproxy " + info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			v += " (" + s.Value + ")"
		}
	}
	return v + " " + info.GoVersion
}

// proxy is what the configuration leads to.
type proxy struct {
	*config.Loaded
	serving  atomic.Bool      // there are clients, or could be
	notifier *notify.Notifier // nil = there is no webhook
}

// serve runs the proxy until ctx ends or a signal comes, and then drains it. A
// second signal ends the drain at once.
func serve(ctx context.Context, c *config.Config, _, stderr io.Writer) error {
	ctx, drain := context.WithCancel(ctx)
	hurry, end := context.WithCancel(context.Background())
	returned := make(chan struct{})
	var watching sync.WaitGroup
	defer watching.Wait()
	defer end()
	defer drain()
	defer close(returned)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	watching.Go(func() {
		defer signal.Stop(signals) // a third is the system's to answer
		for _, act := range []func(){drain, end} {
			select {
			case <-signals:
				act()
			case <-returned:
				return
			}
		}
	})

	log := c.Logger(stderr)
	loaded, err := c.Load(log)
	p := &proxy{Loaded: loaded}
	if p.NotifyURL != "" {
		p.notifier = notify.New(p.NotifyURL, p.Hostname, log)
	}
	if err = errors.Join(err, p.CheckPlaces()); err != nil {
		return err
	}
	records, err := audit.Open(c.AuditLog, audit.Options{Sync: c.AuditSync, MaxSize: int64(c.AuditMaxSize) << 20, Logger: log})
	if err != nil {
		return err
	}
	defer records.Close()
	judge, err := policy.NewJudge()
	if err != nil {
		return err
	}
	defer judge.Close()
	p.WarnOfFallback()
	at, err := p.place()
	if err != nil {
		return err
	}
	defer at.Close()
	return p.run(ctx, hurry, p.server(at, records, judge), at, records)
}

// place is where clients come from: a *node.Node of the tailnet, or this
// machine's *loopback.Node.
type place interface {
	Up(context.Context) error
	Ready() error
	Control() error
	Relay() error
	Notes() []string
	Names() (dnsName string, addrs []netip.Addr)
	Listen(port int) (net.Listener, error)
	WhoIs(ctx context.Context, remote net.Addr, port int) (policy.Caller, error)
	Watch(ctx context.Context, changed func())
	GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error)
	Close() error
}

// place prepares the node, or what takes its place with -dev-listen.
func (p *proxy) place() (place, error) {
	if p.DevListen == "" {
		return node.New(node.Config{
			Hostname:      p.Hostname,
			StateDir:      p.StateDir,
			ControlURL:    p.ControlURL,
			AuthKey:       p.AuthKey,
			AdvertiseTags: p.AdvertiseTags,
			Ephemeral:     p.Ephemeral,
			Capability:    p.Capability,
			Logger:        p.Log,
			Verbose:       p.LogLevel == "debug",
		})
	}
	at, port, err := loopback.New(p.DevListen, p.DevUser, p.DevNode)
	if err != nil {
		return nil, fmt.Errorf("-dev-listen: %w", err)
	}
	p.Port = port
	return at, nil
}

// whoIs says who is at an address and may reach one of our ports. It marks the
// failures that say nothing about the caller, so that live sessions go on with
// what was known.
func whoIs(at place, port int) func(context.Context, net.Addr) (policy.Caller, error) {
	return func(ctx context.Context, remote net.Addr) (policy.Caller, error) {
		caller, err := at.WhoIs(ctx, remote, port)
		if _, refused := errors.AsType[*policy.Refusal](err); err != nil && !refused && !errors.Is(err, node.ErrNobody) {
			err = fmt.Errorf("%w: %w", wire.ErrUnavailable, err)
		}
		return caller, err
	}
}

// listen joins the tailnet and opens the ports for clients and for the status
// page, which may be nil. It fetches the node's certificate first if clients are
// to see one.
func (p *proxy) listen(ctx context.Context, at place) (clients, page net.Listener, err error) {
	if err := at.Up(ctx); err != nil {
		return nil, nil, err
	}
	if p.TLS == "tailnet" {
		if _, err := at.GetCertificate(nil); err != nil {
			return nil, nil, err
		}
		p.ClientTLS.GetCertificate = at.GetCertificate
	}
	if clients, err = at.Listen(p.Port); err != nil {
		return nil, nil, err
	}
	if p.DevListen != "" {
		p.Log.Warn("DEVELOPMENT MODE: NO TAILNET, NO IDENTITY. Whoever reaches this address is let in as one user",
			"address", clients.Addr().String(), "user", p.DevUser, "node", p.DevNode)
	}
	if p.DebugPort == 0 {
		return clients, nil, nil
	}
	page, err = at.Listen(p.DebugPort)
	if err != nil && p.DevListen != "" {
		// The default, 80, is not everybody's to open there, and no reason not
		// to try the rest.
		p.Log.Info("no status page; -debug-port with a free port above 1023 gives one", "err", err)
		return clients, nil, nil
	}
	return clients, page, err
}

func (p *proxy) server(at place, records *audit.Writer, judge *policy.Judge) *wire.Server {
	srv := &wire.Server{
		WhoIs:              whoIs(at, p.Port),
		Rules:              p.Rule,
		Dial:               p.Dial,
		Login:              p.Login,
		Judge:              judge,
		Audit:              records,
		Redaction:          p.AuditSQL,
		Database:           p.Upstream.Database(),
		Databases:          p.Databases,
		TLS:                p.ClientTLS,
		RequireTLS:         p.RequireTLS,
		MaxSessions:        p.MaxSessions,
		MaxSessionsPerUser: p.MaxSessionsPerUser,
		LoginTimeout:       p.LoginTimeout,
		ConnectTimeout:     p.ConnectTimeout,
		IdleTimeout:        p.IdleTimeout,
		QuietLogin:         p.QuietLogin,
		Logger:             p.Log,
	}
	if p.notifier != nil {
		srv.Notify = p.notifier.Tell
	}
	return srv
}

// run serves until ctx ends, then drains until hurry ends. It waits for all that
// it starts.
func (p *proxy) run(ctx, hurry context.Context, srv *wire.Server, at place, records *audit.Writer) error {
	background, cancel := context.WithCancel(context.Background()) // outlives ctx by the drain
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer cancel()

	if p.notifier != nil {
		tasks.Go(func() { p.notifier.Run(background) })
	}
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	tasks.Go(func() { p.reload(background, hangups, srv, records) })
	// Joining may wait for a person. Whoever watches the process learns
	// meanwhile that it lives, and what it waits for.
	reach := health.NewProbe(10*time.Second, p.reachUpstream)
	tasks.Go(func() { reach.Watch(background) })
	ops := p.ops(srv, at, records, reach)
	if p.HealthListen != "" {
		ln, err := net.Listen("tcp", p.HealthListen)
		if err != nil {
			return fmt.Errorf("-health-listen: %w", err)
		}
		p.Log.Info("health", "address", ln.Addr().String())
		tasks.Go(func() { health.Serve(background, ln, ops, p.Log) })
	}
	clients, page, err := p.listen(ctx, at)
	if err != nil && ctx.Err() != nil {
		p.Log.Info("stopped before there were clients", "err", err)
		return nil
	}
	if err != nil {
		return err
	}
	if page != nil {
		srv.StatusPage = p.pageURL(at, page)
		p.Log.Info("status page", "address", page.Addr().String(), "url", srv.StatusPage)
		past := p.trail()
		if past != nil {
			srv.Transcripts = srv.StatusPage + "sessions/"
		}
		tasks.Go(func() { health.Serve(background, page, p.page(srv, at, reach, ops, records, past), p.Log) })
	}
	tasks.Go(func() { at.Watch(background, func() { srv.Recheck(background) }) })

	served := make(chan error, 1)
	tasks.Go(func() { served <- srv.Serve(clients) })
	p.serving.Store(true)
	p.Log.Info("serving", "address", clients.Addr().String(), "upstream", p.Upstream.Describe(), "version", version())
	select {
	case err := <-served:
		srv.Close()
		return fmt.Errorf("accepting connections: %w", err)
	case <-ctx.Done():
	}
	p.Log.Info("draining: no new sessions; statements and transactions may finish", "timeout", p.DrainTimeout)
	tasks.Go(func() {
		select {
		case <-hurry.Done():
			srv.Close()
		case <-background.Done():
		}
	})
	drain, stop := context.WithTimeout(hurry, p.DrainTimeout)
	defer stop()
	switch err := srv.Shutdown(drain); {
	case errors.Is(err, context.Canceled):
		p.Log.Warn("a second signal; what was running was cancelled")
	case err != nil:
		p.Log.Warn("the drain timeout has passed; what was running was cancelled")
	}
	p.Log.Info("stopped")
	return nil
}

// pageURL is where people find the status page.
func (p *proxy) pageURL(at place, ln net.Listener) string {
	host, port, _ := net.SplitHostPort(ln.Addr().String()) // it comes from a listener
	if name, addrs := at.Names(); name != "" {
		host = name
	} else if len(addrs) > 0 {
		host = addrs[0].String()
	}
	return (&url.URL{Scheme: "http", Host: strings.TrimSuffix(net.JoinHostPort(host, port), ":80"), Path: "/"}).String()
}

// trail is the audit log for those who look back; nil if it is no file.
func (p *proxy) trail() *trail.Log {
	records, err := trail.New(p.AuditLog)
	if err != nil {
		p.Log.Info("no transcripts on the status page; -audit-log with a file gives them", "err", err)
		return nil
	}
	return records
}

// page is the status page.
func (p *proxy) page(srv *wire.Server, at place, reach *health.Probe, ops http.Handler, records *audit.Writer, past *trail.Log) http.Handler {
	name, _ := at.Names()
	return (&status.Page{
		Name: p.Hostname, Hosts: []string{name}, Upstream: p.Upstream.Describe(), Notes: at.Notes,
		Server: srv, Log: past, WhoIs: whoIs(at, p.DebugPort), Rules: p.Rule, Reach: reach.Last, Ops: ops, Logger: p.Log,
		Checks: []health.Check{
			{Name: "Tailnet", Run: func(context.Context) error { return at.Ready() }, Tell: true},
			{Name: "Control", Run: func(context.Context) error { return at.Control() }, Tell: true},
			{Name: "DERP", Run: func(context.Context) error { return at.Relay() }, Tell: true},
			{Name: "Audit", Run: func(context.Context) error { return records.Healthy() }},
		},
	}).Handler()
}

// reload reopens the audit log and reads the policy again on each SIGHUP.
func (p *proxy) reload(ctx context.Context, hangups <-chan os.Signal, srv *wire.Server, records *audit.Writer) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangups:
		}
		if err := records.Reopen(); err != nil {
			p.Log.Error("audit log not reopened; statements are refused until it can be written", "err", err)
		}
		if err := p.ReadPolicy(); err != nil {
			p.Log.Error("policy not read again; the one before it stays in force", "err", err)
			continue
		}
		p.WarnOfFallback()
		srv.Recheck(ctx)
		p.Log.Info("audit log reopened, policy read again")
	}
}

// ops serves probes and scrapes.
func (p *proxy) ops(srv *wire.Server, at place, records *audit.Writer, reach *health.Probe) http.Handler {
	collectors := srv.Collectors()
	if p.notifier != nil {
		collectors = append(collectors, p.notifier.Collector())
	}
	return health.Handler(health.NewRegistry(collectors...),
		health.Check{Name: "tailnet", Run: func(context.Context) error { return at.Ready() }, Tell: true, Notes: at.Notes},
		health.NotWhile("not serving yet", func() bool { return !p.serving.Load() }),
		health.Check{Name: "audit log", Run: func(context.Context) error { return records.Healthy() }},
		health.NotWhile("draining", srv.Draining),
		health.NotWhile("too many sessions", srv.Full),
		reach.Check("upstream"),
	)
}

// reachUpstream logs in and out.
func (p *proxy) reachUpstream(ctx context.Context) error {
	_, err := p.Greet(ctx, p.Upstream, "")
	if err != nil {
		p.Log.Warn("the upstream is out of reach", "err", err)
	}
	return err
}

// check says what would be in force, or all that is wrong.
func check(ctx context.Context, c *config.Config, stdout, stderr io.Writer) error {
	return c.Check(ctx, c.Logger(stderr), stdout)
}

// explain says what would come of a statement, or compares a file of them with
// what it expects. Its error is errRefused where the answer is no.
func explain(ctx context.Context, c *config.Config, stdout, stderr io.Writer) error {
	p, err := c.Load(c.Logger(stderr))
	if err != nil {
		return err
	}
	judge, err := policy.NewJudge()
	if err != nil {
		return err
	}
	defer judge.Close()
	x := &policy.Explainer{
		Rules: p.Rule, Judge: judge, Served: policy.Served{Default: p.UpstreamDatabase(), Names: p.Databases},
		Database: c.Database, Reason: c.Reason, Capability: c.Capability,
	}
	if p.Upstream != nil {
		x.Open = p.OpenCatalog
	}
	var yes bool
	if c.File != "" {
		yes, err = x.TestFile(ctx, stdout, c.File)
	} else {
		yes, err = x.Print(ctx, stdout, policy.CallerNamed(cmp.Or(c.As, "somebody"), ""), c.SQL)
	}
	if err == nil && !yes {
		return errRefused
	}
	return err
}

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
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/signal"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/lmittmann/tint"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/term"

	"pgproxy/node"
	"pgproxy/node/loopback"
	"pgproxy/policy"
	"pgproxy/upstream"
	"pgproxy/wire"
	"pgproxy/wire/audit"
	"pgproxy/wire/certfile"
	"pgproxy/wire/health"
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
	var do func(context.Context, *config, io.Writer, io.Writer) error
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
	c, err := parse(command, args, environ)
	if errors.Is(err, flag.ErrHelp) {
		return c.printHelp(stdout)
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

// config is what flags and environment say.
type config struct {
	flags *flag.FlagSet
	errs  []error // what is wrong with the values, as typed

	hostname, stateDir, controlURL, authKeyFile string
	port, debugPort                             int
	advertiseTags                               []string
	ephemeral                                   bool

	devListen, devUser, devNode string
	healthListen                string

	upstreamDSN string
	databases   []string
	policyFile  string
	capability  string

	auditLog     string
	auditSync    audit.Sync
	auditSQL     policy.Redaction
	auditMaxSize int

	tls        string
	requireTLS bool

	maxSessions, maxSessionsPerUser                         int
	connectTimeout, loginTimeout, idleTimeout, drainTimeout time.Duration
	quietLogin                                              bool
	contact                                                 string

	logFormat, logLevel string

	// Of explain: whose verdict, for which database, with which reason, on
	// which statement or file of them.
	as, database, reason, sql, file string
}

// declare declares every flag: the one place for name, default and help, from
// which the environment variable follows.
func (c *config) declare(command string) {
	fs := flag.NewFlagSet("pgproxy "+command, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	c.flags = fs

	hostname, _ := os.Hostname() // without one, the device has no name

	fs.Var(checked(&c.hostname, "pgproxy", node.CheckHostname), "hostname", "`name` in the tailnet")
	fs.Var(number(&c.port, 5432, 1, 65535), "port", "tailnet `port` for clients")
	fs.Var(number(&c.debugPort, 80, 0, 65535), "debug-port", "tailnet `port` for the status page and metrics; 0 = off")
	fs.Var(checked(&c.healthListen, "", checkAddress), "health-listen", "plain TCP `address` for /healthz, /readyz and /metrics, e.g. :8081; empty = off")
	fs.StringVar(&c.stateDir, "state-dir", "", "`directory` of the tailnet node's state; empty = under the user's configuration directory")
	fs.Var(checked(&c.controlURL, "", node.CheckControlURL), "control-url", "`URL` of the coordination server; empty = Tailscale's")
	fs.StringVar(&c.authKeyFile, "authkey-file", "", "`file` with the auth key; otherwise TS_AUTHKEY, TS_CLIENT_SECRET and the like")
	fs.Var(list(&c.advertiseTags, node.CheckTag), "advertise-tags", "`tags` to ask for, comma-separated, e.g. tag:pgproxy")
	fs.BoolVar(&c.ephemeral, "ephemeral", false, "let the tailnet forget the node when it is gone")
	fs.Var(checked(&c.devListen, "", loopback.Check), "dev-listen", "serve this loopback `address` INSTEAD OF A TAILNET, to try things: everybody is -dev-user")
	fs.StringVar(&c.devUser, "dev-user", "dev@localhost", "`login` of all callers of -dev-listen")
	fs.StringVar(&c.devNode, "dev-node", hostname, "device `name` of all callers of -dev-listen")
	fs.StringVar(&c.upstreamDSN, "upstream", "", "`connection string` of PostgreSQL, a URL or keywords; required. Its password may also come by PGPASSWORD or a pass file")
	fs.Var(list(&c.databases, nil), "databases", "database `names` that a client may ask for, comma-separated, * = any; empty = the connection string's")
	fs.StringVar(&c.policyFile, "policy", "", "policy `file` (HuJSON); empty = built in: everybody may read and write, with limits")
	fs.Var(checked(&c.capability, "", node.CheckCapability), "capability", "`name` of the app capability to read from tailnet grants, e.g. corp.example/cap/pgproxy")
	fs.StringVar(&c.auditLog, "audit-log", "-", "`file` for audit records, - = stdout")
	fs.Var(named(&c.auditSync, "interval", audit.ParseSync), "audit-sync", "`when` records are on disk: always = before a statement is sent, interval = within a second, never = when the kernel likes")
	fs.Var(number(&c.auditMaxSize, 0, 0, 1<<20), "audit-max-size", "`MiB` past which the audit file is put aside under a name with the time; 0 = never")
	fs.Var(named(&c.auditSQL, "redacted", policy.ParseRedaction), "audit-sql", "`how` statements are recorded: full, redacted (without secrets), normalized (without any literal)")
	fs.StringVar(&c.tls, "tls", "off", "TLS for clients: off, tailnet (certificate of the MagicDNS name), or `CERTFILE:KEYFILE`")
	fs.BoolVar(&c.requireTLS, "require-tls", false, "refuse clients without TLS")
	fs.Var(number(&c.maxSessions, 100, 0, 1<<20), "max-sessions", "`sessions` at a time; 0 = no limit")
	fs.Var(number(&c.maxSessionsPerUser, 10, 0, 1<<20), "max-sessions-per-user", "`sessions` of one user at a time; 0 = no limit")
	fs.Var(timeout(&c.connectTimeout, 10*time.Second, 1), "connect-timeout", "`time` for the upstream connection, all hosts together")
	fs.Var(timeout(&c.loginTimeout, 30*time.Second, 1), "login-timeout", "`time` from accept to startup message")
	fs.Var(timeout(&c.idleTimeout, 30*time.Minute, 0), "idle-timeout", "`time` that a session may do nothing; 0 = for ever")
	fs.Var(timeout(&c.drainTimeout, 30*time.Second, 0), "drain-timeout", "`time` for statements and transactions to finish on SIGTERM; a second signal ends at once")
	fs.Var(checked(&c.contact, "", checkContact), "contact", "`whom` to ask for what only somebody else can allow, named in refusals, e.g. #dba or a URL")
	fs.BoolVar(&c.quietLogin, "quiet-login", false, "no NOTICE at login")
	fs.Var(choice(&c.logFormat, "auto", "auto", "text", "json"), "log-format", "`format` of the log: text, json, auto = coloured on a terminal and JSON otherwise")
	fs.Var(choice(&c.logLevel, "info", "debug", "info", "warn", "error"), "log-level", "lowest `level` that is logged: debug (with the tailnet's own chatter), info, warn, error")
	if command == "explain" {
		fs.StringVar(&c.as, "as", "", "`login` or tag to judge for; empty = somebody whom the policy does not name")
		fs.StringVar(&c.database, "d", "", "`database` that is asked for at login; empty = none by name")
		fs.StringVar(&c.reason, "reason", "", "`text` of pgproxy.reason in the session")
		fs.StringVar(&c.file, "f", "", "`file` of statements, each under a line \"-- expect: LOGIN allow\" or \"-- expect: LOGIN deny RULE\"; exit 0 if all hold")
	}
	fs.VisitAll(func(f *flag.Flag) { f.Value = &collected{f.Value, "-" + f.Name, &c.errs} })
}

// environment names the variables that are not PGPROXY_ and the flag's name:
// those that Tailscale's own programs read, and the connection string.
var environment = map[string]string{
	"hostname":       "TS_HOSTNAME",
	"state-dir":      "TS_STATE_DIR",
	"control-url":    "TS_CONTROL_URL",
	"advertise-tags": "TS_ADVERTISE_TAGS",
	"upstream":       "UPSTREAM_DSN",
	"as":             "", // a question, not a setting, as are those below
	"d":              "",
	"reason":         "",
	"f":              "",
}

func variable(flagName string) string {
	if name, ok := environment[flagName]; ok {
		return name
	}
	return ownVariable(flagName)
}

// ownPrefix begins the names of the variables that are pgproxy's alone.
const ownPrefix = "PGPROXY_"

func ownVariable(flagName string) string {
	return ownPrefix + strings.ToUpper(strings.ReplaceAll(flagName, "-", "_"))
}

// parse reads flags, and the environment for those that are not given. What is
// wrong with the values is left in errs, for load to tell together with what it
// finds.
func parse(command string, args, environ []string) (*config, error) {
	c := new(config)
	c.declare(command)
	if err := c.flags.Parse(args); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			err = fmt.Errorf("%w; pgproxy -h lists the flags", err)
		}
		return c, err
	}
	c.readEnvironment(environ)
	switch rest := c.flags.Args(); {
	case command == "explain" && len(rest) == 1 && c.file == "":
		c.sql = rest[0]
	case command == "explain" && (len(rest) > 0 || c.file == ""):
		c.errs = append(c.errs, errors.New("explain wants one argument, the SQL, or -f FILE and none"))
	case c.file != "" && c.as != "":
		c.errs = append(c.errs, errors.New("-as: the lines of -f say for whom"))
	case len(rest) > 0:
		c.errs = append(c.errs, fmt.Errorf("unexpected argument %q", rest[0]))
	}
	c.errs = append(c.errs, c.contradictions(command)...)
	return c, nil
}

// readEnvironment sets the flags that were not given. A variable in pgproxy's
// name that no flag has is an error: it is a flag's, mistyped.
func (c *config) readEnvironment(environ []string) {
	given := make(map[string]bool)
	c.flags.Visit(func(f *flag.Flag) { given[f.Name] = true })
	flagOf, meant := make(map[string]*flag.Flag), make(map[string]string)
	c.flags.VisitAll(func(f *flag.Flag) {
		if name := variable(f.Name); name != "" {
			flagOf[name] = f
			meant[name], meant[ownVariable(f.Name)] = name, name
		}
	})
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		f := flagOf[name]
		switch {
		case value == "":
		case f == nil && strings.HasPrefix(name, ownPrefix):
			c.errs = append(c.errs, unknownVariable(name, meant))
		case f != nil && !given[f.Name]:
			f.Value.(*collected).name = name
			f.Value.Set(value) // an error is in c.errs
		}
	}
}

// serviceLink are the variables that Kubernetes makes in every container for a
// Service named pgproxy.
var serviceLink = regexp.MustCompile(`^PGPROXY_(SERVICE_HOST|SERVICE_PORT.*|PORT_[0-9]+_.*)$`)

// unknownVariable says which variable was meant: meant has the right names by
// those under which they are looked for.
func unknownVariable(name string, meant map[string]string) error {
	if serviceLink.MatchString(name) {
		return fmt.Errorf("%s is of Kubernetes, for a Service named pgproxy: say enableServiceLinks: false in the pod's spec", name)
	}
	nearest, best := "", 4 // more than three letters off is another word
	for _, known := range slices.Sorted(maps.Keys(meant)) {
		if d := distance(name, known); d < best {
			nearest, best = meant[known], d
		}
	}
	if nearest == "" {
		return fmt.Errorf("%s is no variable of pgproxy's; pgproxy -h lists them", name)
	}
	return fmt.Errorf("%s is no variable of pgproxy's; %s is", name, nearest)
}

// distance is how many letters must be put in, left out or changed to make b of
// a.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// contradictions are what is wrong with values that are each right alone.
func (c *config) contradictions(command string) []error {
	var errs []error
	if c.upstreamDSN == "" && command != "explain" {
		errs = append(errs, errors.New("-upstream is missing: the PostgreSQL to connect to, e.g. -upstream 'host=db.example.com user=app dbname=shop sslmode=verify-full', or UPSTREAM_DSN"))
	}
	if c.devListen != "" && c.tls == "tailnet" {
		errs = append(errs, errors.New("-tls tailnet: there is no tailnet with -dev-listen"))
	}
	if c.devListen == "" && c.port == c.debugPort {
		errs = append(errs, fmt.Errorf("-port and -debug-port are both %d", c.port))
	}
	if c.requireTLS && c.tls == "off" {
		errs = append(errs, errors.New("-require-tls: there is no TLS to require with -tls off"))
	}
	return errs
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

// printHelp lists the flags with their variables and defaults.
func (c *config) printHelp(w io.Writer) error {
	var b strings.Builder
	b.WriteString(`pgproxy [flags]                           join the tailnet and serve
pgproxy check [flags]                     read flags and policy, reach the upstream, say what is in force
pgproxy explain [flags] [-as LOGIN] SQL   the verdict on a statement, without running it: exit 0 allowed, 2 refused, 1 not judged
pgproxy explain [flags] -f FILE           the same for a file of statements and what is expected: exit 0 if all hold
pgproxy audit show|verify [flags] FILE…   read and check audit records
pgproxy version
pgproxy help                              this

Flags, each with its environment variable:
`)
	c.flags.VisitAll(func(f *flag.Flag) {
		argument, usage := flag.UnquoteUsage(f)
		fmt.Fprintf(&b, "\n  -%s", f.Name)
		if argument != "" {
			fmt.Fprintf(&b, " %s", strings.ReplaceAll(argument, " ", "-"))
		}
		if name := variable(f.Name); name != "" {
			fmt.Fprintf(&b, "   %s", name)
		}
		fmt.Fprintf(&b, "\n        %s", usage)
		if f.DefValue != "" {
			fmt.Fprintf(&b, " (default %s)", f.DefValue)
		}
		b.WriteString("\n")
	})
	_, err := io.WriteString(w, b.String())
	return err
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

// named is a value that its own package knows by a name.
func named[T any](p *T, name string, parse func(string) (T, error)) flag.Value {
	v := value{func(s string) (err error) {
		if *p, err = parse(s); err == nil {
			name = s
		}
		return err
	}, func() string { return name }}
	if err := v.set(name); err != nil {
		panic(err) // the default is one of the names
	}
	return v
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

// logger is where the operator reads what happens now. The audit records are
// not its business.
func (c *config) logger(w io.Writer) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.logLevel)); err != nil {
		panic(err) // the flag allows slog's names only
	}
	options := &slog.HandlerOptions{Level: level, ReplaceAttr: plainDuration}
	f, isFile := w.(*os.File)
	switch {
	case c.logFormat == "text":
		return slog.New(slog.NewTextHandler(w, options))
	case c.logFormat == "auto" && isFile && term.IsTerminal(int(f.Fd())):
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

// proxy is what the configuration leads to: files read, nothing started.
type proxy struct {
	*config
	log      *slog.Logger
	upstream *upstream.Config // nil for an explain without one
	inForce  atomic.Pointer[inForce]
	authKey  string
	tls      *tls.Config // nil = off; without a certificate yet for -tls tailnet
	state    node.State  // as checkPlaces found it
	unread   sync.Map    // text of grants that could not be read, each logged once
	serving  atomic.Bool // there are clients, or could be
}

// inForce is the policy as it was read last.
type inForce struct {
	*policy.Policy
	readLogin *upstream.Config // for those who may only read; nil = the one login
}

// load reads everything that the configuration names. Its error joins all that
// is wrong, with flags and files alike; the proxy then has what could be read.
func (c *config) load(log *slog.Logger) (*proxy, error) {
	p := &proxy{config: c, log: log}
	errs := c.errs
	collect := func(name string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	var err error
	if c.upstreamDSN != "" {
		p.upstream, err = upstream.ParseConfig(c.upstreamDSN)
		collect("-upstream", err)
	}
	collect("-policy", p.readPolicy())
	collect("-authkey-file", p.readAuthKey())
	collect("-tls", p.readTLS())
	return p, errors.Join(errs...)
}

// readAuthKey reads the key for a node that has not joined yet. One that has
// needs none: then the file may be empty or gone.
func (p *proxy) readAuthKey() error {
	if p.authKeyFile == "" {
		return nil
	}
	b, err := os.ReadFile(p.authKeyFile)
	p.authKey = strings.TrimSpace(string(b))
	if err == nil && p.authKey == "" {
		err = fmt.Errorf("%s is empty", p.authKeyFile)
	}
	if err != nil {
		if state, _ := node.CheckState(p.stateDir); state.Saved {
			return nil
		}
	}
	return err
}

// checkPlaces looks at what serving needs of this machine, beside the audit log:
// addresses to listen on, and a place for the node's state. It makes and keeps
// nothing.
func (p *proxy) checkPlaces() error {
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
	listen("-dev-listen", p.devListen, loopback.Check)
	listen("-health-listen", p.healthListen, checkAddress)
	if p.devListen == "" {
		var err error
		if p.state, err = node.CheckState(p.stateDir); err != nil {
			errs = append(errs, fmt.Errorf("state directory: %w", err))
		}
	}
	return errors.Join(errs...)
}

// readPolicy puts the policy file in force, or leaves what was.
func (p *proxy) readPolicy() error {
	if p.policyFile == "" {
		now := p.withoutFile()
		now.Contact = p.contact
		p.inForce.Store(&inForce{Policy: now})
		return nil
	}
	read, err := policy.LoadFile(p.policyFile)
	if err != nil {
		return err
	}
	read.Contact = p.contact
	next := &inForce{Policy: read}
	if read.UpstreamRead != "" {
		if next.readLogin, err = upstream.ParseConfig(read.UpstreamRead); err != nil {
			return fmt.Errorf("upstream_read: %w", err)
		}
	}
	p.inForce.Store(next)
	return nil
}

func (p *proxy) withoutFile() *policy.Policy {
	if p.capability != "" {
		return policy.GrantsOnly()
	}
	return policy.Builtin()
}

// fallback says what a caller without a grant falls back to where access comes
// by grants; it is empty where that is nothing. A grant that is taken away may
// then leave its caller with more than it gave.
func (p *proxy) fallback() string {
	rule, ok := p.inForce.Load().Default()
	if p.capability == "" || !ok {
		return ""
	}
	return "whoever has no grant, or loses one, has the policy file's default: " + strings.Join(rule.Describe(), ", ")
}

// warnOfFallback tells the operator, who may have meant to refuse them.
func (p *proxy) warnOfFallback() {
	if said := p.fallback(); said != "" {
		p.log.Warn(said, "fix", `"default": null in the policy file refuses them`)
	}
}

func (p *proxy) readTLS() error {
	switch p.config.tls {
	case "off":
		return nil
	case "tailnet":
		p.tls = serverTLS(nil)
		return nil
	}
	certFile, keyFile, ok := strings.Cut(p.config.tls, ":")
	if !ok {
		return fmt.Errorf("%q is not off, tailnet or CERTFILE:KEYFILE", p.config.tls)
	}
	pair, err := certfile.Load(certFile, keyFile, p.log)
	if err != nil {
		return err
	}
	p.tls = serverTLS(pair.GetCertificate)
	return nil
}

// serverTLS is TLS as clients of PostgreSQL expect it: those that begin with it
// (sslnegotiation=direct) insist on the protocol's name.
func serverTLS(certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"postgresql"}, GetCertificate: certificate}
}

// rule is the rule in force for a caller. It says so in the log when a grant of
// theirs cannot be read, and so gives nothing.
func (p *proxy) rule(caller policy.Caller) (policy.Rule, error) {
	_, unreadable := caller.ReadGrants()
	for _, err := range unreadable {
		if _, known := p.unread.LoadOrStore(caller.Who()+err.Error(), true); !known {
			p.log.Warn("a grant cannot be read and gives nothing", "user", caller.Who(), "capability", p.capability, "err", err)
		}
	}
	return p.inForce.Load().RuleFor(caller)
}

// dial opens a session's upstream connection. A session that may only read goes
// to the login for that, where the policy names one.
func (p *proxy) dial(ctx context.Context, req upstream.Request) (*upstream.Conn, error) {
	login := p.upstream
	if read := p.inForce.Load().readLogin; read != nil && req.Params["default_transaction_read_only"] == "on" {
		login = read
	}
	return login.Dial(ctx, req)
}

// serve runs the proxy until ctx ends or a signal comes, and then drains it. A
// second signal ends the drain at once.
func serve(ctx context.Context, c *config, _, stderr io.Writer) error {
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

	log := c.logger(stderr)
	p, err := c.load(log)
	if err = errors.Join(err, p.checkPlaces()); err != nil {
		return err
	}
	records, err := audit.Open(c.auditLog, audit.Options{Sync: c.auditSync, MaxSize: int64(c.auditMaxSize) << 20, Logger: log})
	if err != nil {
		return err
	}
	defer records.Close()
	judge, err := policy.NewJudge()
	if err != nil {
		return err
	}
	defer judge.Close()
	p.warnOfFallback()
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
	if p.devListen == "" {
		return node.New(node.Config{
			Hostname:      p.hostname,
			StateDir:      p.stateDir,
			ControlURL:    p.controlURL,
			AuthKey:       p.authKey,
			AdvertiseTags: p.advertiseTags,
			Ephemeral:     p.ephemeral,
			Capability:    p.capability,
			Logger:        p.log,
			Verbose:       p.logLevel == "debug",
		})
	}
	host, port, err := net.SplitHostPort(p.devListen)
	if err == nil {
		p.port, err = net.LookupPort("tcp", port)
	}
	if err != nil {
		return nil, fmt.Errorf("-dev-listen: %w", err)
	}
	return &loopback.Node{Host: host, Caller: policy.CallerNamed(p.devUser, p.devNode)}, nil
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
	if p.config.tls == "tailnet" {
		if _, err := at.GetCertificate(nil); err != nil {
			return nil, nil, err
		}
		p.tls.GetCertificate = at.GetCertificate
	}
	if clients, err = at.Listen(p.port); err != nil {
		return nil, nil, err
	}
	if p.devListen != "" {
		p.log.Warn("DEVELOPMENT MODE: NO TAILNET, NO IDENTITY. Whoever reaches this address is let in as one user",
			"address", clients.Addr().String(), "user", p.devUser, "node", p.devNode)
	}
	if p.debugPort == 0 {
		return clients, nil, nil
	}
	page, err = at.Listen(p.debugPort)
	if err != nil && p.devListen != "" {
		// The default, 80, is not everybody's to open there, and no reason not
		// to try the rest.
		p.log.Info("no status page; -debug-port with a free port above 1023 gives one", "err", err)
		return clients, nil, nil
	}
	return clients, page, err
}

func (p *proxy) server(at place, records *audit.Writer, judge *policy.Judge) *wire.Server {
	return &wire.Server{
		WhoIs:              whoIs(at, p.port),
		Rules:              p.rule,
		Dial:               p.dial,
		Judge:              judge,
		Audit:              records,
		Redaction:          p.auditSQL,
		Database:           p.upstream.Database(),
		Databases:          p.databases,
		TLS:                p.tls,
		RequireTLS:         p.requireTLS,
		MaxSessions:        p.maxSessions,
		MaxSessionsPerUser: p.maxSessionsPerUser,
		LoginTimeout:       p.loginTimeout,
		ConnectTimeout:     p.connectTimeout,
		IdleTimeout:        p.idleTimeout,
		QuietLogin:         p.quietLogin,
		Logger:             p.log,
	}
}

// run serves until ctx ends, then drains until hurry ends. It waits for all that
// it starts.
func (p *proxy) run(ctx, hurry context.Context, srv *wire.Server, at place, records *audit.Writer) error {
	background, cancel := context.WithCancel(context.Background()) // outlives ctx by the drain
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer cancel()

	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	tasks.Go(func() { p.reload(background, hangups, srv, records) })
	// Joining may wait for a person. Whoever watches the process learns
	// meanwhile that it lives, and what it waits for.
	reach := health.NewProbe(10*time.Second, p.reachUpstream)
	tasks.Go(func() { reach.Watch(background) })
	ops := p.ops(srv, at, records, reach)
	if p.healthListen != "" {
		ln, err := net.Listen("tcp", p.healthListen)
		if err != nil {
			return fmt.Errorf("-health-listen: %w", err)
		}
		p.log.Info("health", "address", ln.Addr().String())
		tasks.Go(func() { health.Serve(background, ln, ops, p.log) })
	}
	clients, page, err := p.listen(ctx, at)
	if err != nil && ctx.Err() != nil {
		p.log.Info("stopped before there were clients", "err", err)
		return nil
	}
	if err != nil {
		return err
	}
	if page != nil {
		srv.StatusPage = p.pageURL(at, page)
		p.log.Info("status page", "address", page.Addr().String(), "url", srv.StatusPage)
		tasks.Go(func() { health.Serve(background, page, p.page(srv, at, reach, ops), p.log) })
	}
	tasks.Go(func() { at.Watch(background, func() { srv.Recheck(background) }) })

	served := make(chan error, 1)
	tasks.Go(func() { served <- srv.Serve(clients) })
	p.serving.Store(true)
	p.log.Info("serving", "address", clients.Addr().String(), "upstream", p.upstream.Describe(), "version", version())
	select {
	case err := <-served:
		srv.Close()
		return fmt.Errorf("accepting connections: %w", err)
	case <-ctx.Done():
	}
	p.log.Info("draining: no new sessions; statements and transactions may finish", "timeout", p.drainTimeout)
	tasks.Go(func() {
		select {
		case <-hurry.Done():
			srv.Close()
		case <-background.Done():
		}
	})
	drain, stop := context.WithTimeout(hurry, p.drainTimeout)
	defer stop()
	switch err := srv.Shutdown(drain); {
	case errors.Is(err, context.Canceled):
		p.log.Warn("a second signal; what was running was cancelled")
	case err != nil:
		p.log.Warn("the drain timeout has passed; what was running was cancelled")
	}
	p.log.Info("stopped")
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

// page is the status page.
func (p *proxy) page(srv *wire.Server, at place, reach *health.Probe, ops http.Handler) http.Handler {
	name, _ := at.Names()
	return (&status.Page{
		Name: p.hostname, Hosts: []string{name}, Upstream: p.upstream.Describe(), Notes: at.Notes,
		Server: srv, WhoIs: whoIs(at, p.debugPort), Rules: p.rule, Reach: reach.Last, Ops: ops, Logger: p.log,
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
			p.log.Error("audit log not reopened; statements are refused until it can be written", "err", err)
		}
		if err := p.readPolicy(); err != nil {
			p.log.Error("policy not read again; the one before it stays in force", "err", err)
			continue
		}
		p.warnOfFallback()
		srv.Recheck(ctx)
		p.log.Info("audit log reopened, policy read again")
	}
}

// ops serves probes and scrapes.
func (p *proxy) ops(srv *wire.Server, at place, records *audit.Writer, reach *health.Probe) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(srv.Collectors()...)
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return health.Handler(registry,
		health.Check{Name: "tailnet", Run: func(context.Context) error { return at.Ready() }, Tell: true, Notes: at.Notes},
		health.Check{Name: "not serving yet", Run: func(context.Context) error { return unless(!p.serving.Load()) }},
		health.Check{Name: "audit log", Run: func(context.Context) error { return records.Healthy() }},
		health.Check{Name: "draining", Run: func(context.Context) error { return unless(srv.Draining()) }},
		health.Check{Name: "too many sessions", Run: func(context.Context) error { return unless(srv.Full()) }},
		reach.Check("upstream"),
	)
}

var errNotReady = errors.New("not ready")

// unless makes a condition of being ready out of one that must not hold.
func unless(condition bool) error {
	if condition {
		return errNotReady
	}
	return nil
}

// reachUpstream logs in and out.
func (p *proxy) reachUpstream(ctx context.Context) error {
	_, err := p.greet(ctx, p.upstream, "")
	if err != nil {
		p.log.Warn("the upstream is out of reach", "err", err)
	}
	return err
}

// greet logs in to a database and out, in the time that a session would have.
func (p *proxy) greet(ctx context.Context, login *upstream.Config, database string) (upstream.Greeting, error) {
	ctx, cancel := context.WithTimeout(ctx, p.connectTimeout)
	defer cancel()
	return login.Greet(ctx, database)
}

// check says what would be in force, or all that is wrong: with what serving
// reads, by load, and with what it uses.
func check(ctx context.Context, c *config, stdout, stderr io.Writer) error {
	p, err := c.load(c.logger(stderr))
	errs := []error{err, p.checkPlaces(), audit.Check(c.auditLog)}
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	if p.upstream != nil {
		errs = append(errs, p.checkLogin(ctx, w, "upstream", p.upstream))
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
func (p *proxy) checkLogin(ctx context.Context, w io.Writer, name string, login *upstream.Config) error {
	server, err := p.greet(ctx, login, p.upstreamDatabase())
	if err != nil {
		return fmt.Errorf("%s %s: %w", name, login.Describe(), err)
	}
	fmt.Fprintf(w, "%s\t%s\n", name, login.Describe())
	fmt.Fprintf(w, "\tPostgreSQL %s at %s, reached in %s\n", server.Version, server.Addr, server.Took.Round(time.Millisecond))
	if server.Superuser {
		fmt.Fprintf(w, "\tWARNING: %s is a superuser; a login with no more rights than people need is the strongest wall\n", login.User())
	}
	warnEncoding(w, p.upstreamDatabase(), server)
	var errs []error
	for _, database := range p.databases {
		if database == "*" || database == p.upstreamDatabase() {
			continue
		}
		server, err := p.greet(ctx, login, database)
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

// upstreamDatabase is the database of a client that names none.
func (p *proxy) upstreamDatabase() string {
	if p.upstream == nil {
		return "" // explain, or a connection string that cannot be read
	}
	return p.upstream.Database()
}

// describePolicy says what holds for a person whom the policy does not name.
func (p *proxy) describePolicy(w io.Writer, now *inForce) {
	source := "built in"
	switch {
	case p.policyFile != "":
		source = p.policyFile
	case p.capability != "":
		source = "none: access comes by grants alone"
	}
	fmt.Fprintf(w, "policy\t%s\n", source)
	if rule, ok := now.Default(); ok {
		fmt.Fprintf(w, "\tpeople it does not name: %s\n", strings.Join(rule.Describe(), ", "))
	} else {
		fmt.Fprintln(w, "\tpeople it does not name: refused")
	}
	if p.capability != "" {
		fmt.Fprintf(w, "\tgrants: app capability %s\n", p.capability)
	}
	if said := p.fallback(); said != "" {
		fmt.Fprintf(w, "\tWARNING: %s; \"default\": null refuses them\n", said)
	}
}

// describe says the rest of what is in force.
func (p *proxy) describe(w io.Writer) {
	if p.devListen != "" {
		fmt.Fprintf(w, "clients\tDEVELOPMENT MODE: %s, everybody is %s on %s\n", p.devListen, p.devUser, p.devNode)
	} else {
		fmt.Fprintf(w, "clients\ttailnet node %s, port %d\n", p.hostname, p.port)
		fmt.Fprintf(w, "\tstate in %s; %s\n", p.state.Dir, p.joining())
		if p.state.Open {
			fmt.Fprintf(w, "\tWARNING: others can look into %s; pgproxy will close it, if it may\n", p.state.Dir)
		}
	}
	required := ""
	if p.requireTLS {
		required = ", required"
	}
	fmt.Fprintf(w, "\tTLS %s%s\n", p.config.tls, required)
	served := p.databases
	if len(served) == 0 {
		served = []string{p.upstreamDatabase()}
	}
	fmt.Fprintf(w, "databases\t%s\n", strings.Join(served, ", "))
	fmt.Fprintf(w, "sessions\t%d at a time, %d of one user (0 = no limit)\n", p.maxSessions, p.maxSessionsPerUser)
	fmt.Fprintf(w, "timeouts\tconnect %s, login %s, idle %s, drain %s\n", p.connectTimeout, p.loginTimeout, p.idleTimeout, p.drainTimeout)
	fmt.Fprintf(w, "audit\t%s, sync %s, SQL %s\n", p.auditLog, p.flags.Lookup("audit-sync").Value, p.flags.Lookup("audit-sql").Value)
}

// joining says what will let the node in.
func (p *proxy) joining() string {
	switch {
	case p.state.Saved:
		return "it has joined before, and needs no key"
	case p.authKey != "":
		return "it joins with the key in " + p.authKeyFile
	}
	for _, name := range node.KeyVariables {
		if os.Getenv(name) != "" {
			return "it joins with " + name
		}
	}
	return "there is no key, so somebody has to open the login URL that it logs"
}

// explain says what would come of a statement, or compares a file of them with
// what it expects. Its error is errRefused where the answer is no.
func explain(ctx context.Context, c *config, stdout, stderr io.Writer) error {
	p, err := c.load(c.logger(stderr))
	if err != nil {
		return err
	}
	judge, err := policy.NewJudge()
	if err != nil {
		return err
	}
	defer judge.Close()
	x := &policy.Explainer{
		Rules: p.rule, Judge: judge, Served: policy.Served{Default: p.upstreamDatabase(), Names: p.databases},
		Database: c.database, Reason: c.reason, Capability: c.capability,
	}
	if p.upstream != nil {
		x.Open = p.openCatalog
	}
	if c.file != "" {
		return explainFile(ctx, x, c.file, stdout)
	}
	e, err := x.Explain(ctx, policy.CallerNamed(cmp.Or(c.as, "somebody"), ""), c.sql)
	if err != nil {
		return fmt.Errorf("not judged: %w", err)
	}
	if _, err := e.WriteTo(stdout); err != nil {
		return err
	}
	if !e.Allowed() {
		return errRefused
	}
	return nil
}

// explainFile is a policy's own test.
func explainFile(ctx context.Context, x *policy.Explainer, file string, stdout io.Writer) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("-f: %w", err)
	}
	list, err := policy.ParseExpectations(file, string(text))
	if err != nil {
		return err
	}
	different, err := x.Test(ctx, stdout, file, list)
	if err != nil {
		return err
	}
	if different > 0 {
		fmt.Fprintf(stdout, "%d of %d expectations do not hold\n", different, len(list))
		return errRefused
	}
	_, err = fmt.Fprintf(stdout, "%d expectations hold\n", len(list))
	return err
}

// openCatalog opens a connection for a verdict about which the database is asked.
func (p *proxy) openCatalog(ctx context.Context, rule policy.Rule, database string) (policy.OpenCatalog, error) {
	ctx, cancel := context.WithTimeout(ctx, p.connectTimeout)
	defer cancel()
	params := map[string]string{"application_name": "go-proxy explain", "statement_timeout": "10s"}
	if rule.Access == policy.Read {
		params["default_transaction_read_only"] = "on"
	}
	conn, err := p.dial(ctx, upstream.Request{Database: database, Params: params})
	if err != nil {
		return nil, err // not a *Conn of nil
	}
	return conn, nil
}

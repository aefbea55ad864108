// Package node is pgproxy's place in the tailnet: it joins as a node of its
// own, listens on the node's addresses and nowhere else, says who a remote
// address is, and notices when that answer may have changed.
//
// Nothing of Tailscale leaves this package but net.Listener and net.Conn; who
// is asking leaves it as a [policy.Caller].
package node

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"tailscale.com/client/local"
	"tailscale.com/hostinfo"
	"tailscale.com/ipn"
	"tailscale.com/ipn/ipnstate"
	"tailscale.com/ipn/store"
	"tailscale.com/tailcfg"
	"tailscale.com/tsnet"
	"tailscale.com/types/logger"
)

const (
	defaultHostname = "pgproxy"

	// upTimeout is how long joining may take when nobody has to do anything.
	upTimeout = time.Minute
	// loginTimeout is how long joining may take when a person has to open
	// the login URL first.
	loginTimeout = 10 * time.Minute

	// localAPITimeout bounds a question to our own tsnet server, which
	// answers from memory.
	localAPITimeout = 2 * time.Second
	// certTimeout bounds the making of a certificate, which waits for DNS and
	// for Let's Encrypt: half a minute is usual.
	certTimeout = 2 * time.Minute
)

// Config says how to join. The zero value joins Tailscale's own control plane
// as "pgproxy", with what the environment says (TS_AUTHKEY, TS_CLIENT_SECRET
// and the others that tsnet reads).
type Config struct {
	// Hostname is the name asked for in the tailnet; empty means "pgproxy".
	Hostname string
	// StateDir keeps the node's keys. It is created with mode 0700; empty
	// means tsnet's default, under the user's configuration directory.
	StateDir string
	// Store keeps the state in place of a file in StateDir; nil means the
	// file. A mem.Store wants Ephemeral.
	Store ipn.StateStore
	// ControlURL is the coordination server; empty means TS_CONTROL_URL, and
	// Tailscale's where that is empty too.
	ControlURL string
	// AuthKey admits a node that has no saved state. Empty leaves it to the
	// environment, or to a person who opens the login URL.
	AuthKey string
	// AdvertiseTags are the tags asked for, each with its "tag:" prefix.
	AdvertiseTags []string
	// Ephemeral has the tailnet forget the node soon after it is gone.
	Ephemeral bool
	// Capability names the app capability whose values WhoIs returns as
	// grants; empty means none.
	Capability string
	// UpTimeout bounds joining; zero means one minute, or ten where a person
	// has to log the node in.
	UpTimeout time.Duration
	// Logger is where the node reports; nil means slog.Default.
	Logger *slog.Logger
	// Verbose sends tsnet's own chatter to Logger, at debug level.
	Verbose bool
}

// Node is a joined node of the tailnet. Its methods are safe for concurrent
// use. The caller of [Start] owns it and must close it.
type Node struct {
	srv        *tsnet.Server
	lc         *local.Client
	capability tailcfg.PeerCapability
	log        *slog.Logger
	dnsName    string
	ips        []netip.Addr

	// controlGrace is how long the coordination server may be out of reach
	// before Watch says so: streams break and come back all the time.
	controlGrace time.Duration

	mu sync.Mutex
	// nextExpiry is the earliest moment at which the key of a peer that
	// WhoIs has answered for expires; zero means none is known.
	nextExpiry time.Time
}

// Start joins the tailnet and returns when the node is up. On failure the
// error says what the node was waiting for; it never holds a key.
func Start(ctx context.Context, cfg Config) (*Node, error) {
	cfg.Hostname = cmp.Or(cfg.Hostname, defaultHostname)
	cfg.Logger = cmp.Or(cfg.Logger, slog.Default())
	dir, err := stateDir(cfg.StateDir, cfg.Logger)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	if cfg.Store == nil {
		cfg.Store, err = store.New(logger.Discard, filepath.Join(dir, stateFile))
		if err != nil {
			return nil, fmt.Errorf("state: %w", err)
		}
	}
	how := howToJoin(cfg)
	how.report(cfg.Logger)

	hostinfo.SetApp("pgproxy")
	n := &Node{
		srv: &tsnet.Server{
			Dir:           dir,
			Store:         cfg.Store,
			Hostname:      cfg.Hostname,
			ControlURL:    cfg.ControlURL,
			AuthKey:       cfg.AuthKey,
			AdvertiseTags: cfg.AdvertiseTags,
			Ephemeral:     cfg.Ephemeral,
			UserLogf:      debugLogf(cfg.Logger),
		},
		capability:   tailcfg.PeerCapability(cfg.Capability),
		log:          cfg.Logger,
		controlGrace: 10 * time.Second,
	}
	if cfg.Verbose {
		n.srv.Logf = debugLogf(cfg.Logger)
	}

	ctx, cancel := context.WithTimeout(ctx, cmp.Or(cfg.UpTimeout, how.timeout()))
	defer cancel()
	status, err := n.up(ctx)
	if err != nil {
		return nil, redact(fmt.Errorf("joining the tailnet as %q: %w", cfg.Hostname, err), cfg.AuthKey)
	}
	n.dnsName = strings.TrimSuffix(status.Self.DNSName, ".")
	n.ips = status.TailscaleIPs
	n.log.Info("joined the tailnet", "name", n.dnsName, "addresses", n.ips)
	n.warnIfUntagged(status.Self)
	return n, nil
}

// Close leaves the tailnet: it closes the listeners and all that tsnet runs,
// which takes a second or two. Connections that were accepted end with it.
func (n *Node) Close() error { return n.srv.Close() }

// Listen listens for TCP on the node's own tailnet addresses. The connections
// it accepts know their RemoteAddr even when the peer has reset them.
func (n *Node) Listen(port int) (net.Listener, error) {
	ln, err := n.srv.Listen("tcp", ":"+strconv.Itoa(port))
	if err != nil {
		return nil, err
	}
	return listener{ln}, nil
}

// Names returns the node's MagicDNS name, without a final dot, and its
// tailnet addresses, as they were when it joined. The name is empty in a
// tailnet without MagicDNS.
func (n *Node) Names() (dnsName string, addrs []netip.Addr) { return n.dnsName, n.ips }

// Ready returns nil while the node is part of the tailnet, and otherwise what
// it is waiting for. A coordination server out of reach does not make the node
// unready: it goes on with what it knows.
func (n *Node) Ready() error {
	ctx, cancel := context.WithTimeout(context.Background(), localAPITimeout)
	defer cancel()
	status, err := n.lc.StatusWithoutPeers(ctx)
	if err != nil {
		return fmt.Errorf("tailnet: %w", err)
	}
	if status.BackendState != ipn.Running.String() {
		return fmt.Errorf("tailnet: node is %s", status.BackendState)
	}
	return nil
}

// GetCertificate returns the certificate of the node's MagicDNS name, whatever
// name the client asks for: psql asks for what its user typed, if anything. It
// is for [tls.Config], which calls it for every handshake, and renews the
// certificate when that is due. Called with nil before serving, it fetches the
// first certificate, so that nobody's login has to wait for it.
func (n *Node) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	domains := n.srv.CertDomains()
	if len(domains) == 0 {
		return nil, errors.New("tailnet certificate: HTTPS certificates are not enabled for this tailnet (admin console, DNS page)")
	}
	parent := context.Background()
	if hello != nil {
		parent = hello.Context()
	}
	ctx, cancel := context.WithTimeout(parent, certTimeout)
	defer cancel()
	certPEM, keyPEM, err := n.lc.CertPair(ctx, domains[0])
	if err != nil {
		return nil, fmt.Errorf("tailnet certificate for %s: %w", domains[0], err)
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("tailnet certificate for %s: %w", domains[0], err)
	}
	return &cert, nil
}

// warnIfUntagged says that access will stop when the node's key expires, which
// tagged nodes are spared.
func (n *Node) warnIfUntagged(self *ipnstate.PeerStatus) {
	if self.Tags != nil && self.Tags.Len() > 0 {
		return
	}
	args := []any{"fix", "join with a tag (-advertise-tags), or disable key expiry for this node"}
	if self.KeyExpiry != nil {
		args = append(args, "expires", *self.KeyExpiry)
	}
	n.log.Warn("this node has no tag: all access stops when its key expires", args...)
}

// stateFile is the file of the state in the state directory.
const stateFile = "tailscaled.state"

// stateDirPath returns dir, or tsnet's default where it is empty.
func stateDirPath(dir string) (string, error) {
	if dir != "" {
		return dir, nil
	}
	conf, err := os.UserConfigDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(conf, "tsnet-pgproxy"), nil
}

func notDirectory(path string) error {
	return &fs.PathError{Op: "open", Path: path, Err: errors.New("not a directory")}
}

// stateDir returns the path of a state directory, after seeing to it that it
// exists and that only its owner can look inside.
func stateDir(dir string, log *slog.Logger) (string, error) {
	dir, err := stateDirPath(dir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	fi, err := os.Stat(dir)
	if err != nil {
		return "", err
	}
	if !fi.IsDir() {
		return "", notDirectory(dir)
	}
	if fi.Mode().Perm()&0o077 != 0 {
		// A mounted volume may belong to somebody else; the state file
		// itself is 0600 either way.
		if err := os.Chmod(dir, 0o700); err != nil {
			log.Warn("others can look into the state directory", "dir", dir, "mode", fi.Mode().Perm().String(), "err", err)
		}
	}
	return dir, nil
}

// joining is what lets a node in: state saved earlier, a key, or a person.
type joining struct{ saved, key bool }

// howToJoin looks for saved state in the store, and for a key where tsnet
// would look for it.
func howToJoin(cfg Config) joining {
	profile, err := cfg.Store.ReadState(ipn.CurrentProfileStateKey)
	how := joining{
		saved: err == nil && len(profile) > 0,
		key:   cfg.AuthKey != "",
	}
	for _, name := range KeyVariables {
		how.key = how.key || os.Getenv(name) != ""
	}
	return how
}

func (j joining) report(log *slog.Logger) {
	switch {
	case j.saved && j.key:
		log.Info("joining the tailnet with saved state; the auth key is not needed and not used")
	case j.saved:
		log.Info("joining the tailnet with saved state")
	case j.key:
		log.Info("joining the tailnet with an auth key")
	default:
		log.Info("joining the tailnet: no saved state and no auth key, so somebody has to log this node in")
	}
}

func (j joining) timeout() time.Duration {
	if j.saved || j.key {
		return upTimeout
	}
	return loginTimeout
}

// debugLogf returns a printf-like function that logs at debug level.
func debugLogf(log *slog.Logger) logger.Logf {
	return func(format string, args ...any) {
		if !log.Enabled(context.Background(), slog.LevelDebug) {
			return
		}
		log.Debug(strings.TrimSpace(fmt.Sprintf(format, args...)), "from", "tsnet")
	}
}

// redact returns err without secret in its text. The wrapped error is dropped
// where the text had to change.
func redact(err error, secret string) error {
	if text := err.Error(); secret != "" && strings.Contains(text, secret) {
		return errors.New(strings.ReplaceAll(text, secret, "[auth key]"))
	}
	return err
}

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
	"sync/atomic"
	"time"

	"tailscale.com/client/local"
	"tailscale.com/hostinfo"
	"tailscale.com/ipn"
	"tailscale.com/ipn/ipnstate"
	"tailscale.com/ipn/store"
	"tailscale.com/tailcfg"
	"tailscale.com/tsnet"
	"tailscale.com/types/logger"
	"tailscale.com/util/dnsname"
)

const (
	defaultHostname = "pgproxy"

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
	// UpTimeout bounds joining; zero means that Up waits until it is told to
	// stop. A program that ends and is started again asks the coordination
	// server more often than one that waits.
	UpTimeout time.Duration
	// Logger is where the node reports; nil means slog.Default.
	Logger *slog.Logger
	// Verbose sends tsnet's own chatter to Logger, at debug level.
	Verbose bool
}

// Node is a node of the tailnet. Its methods are safe for concurrent use; but
// for Up, Ready and Close they are for a node that is up. The caller of [New]
// owns it and must close it.
type Node struct {
	srv        *tsnet.Server
	newServer  func() *tsnet.Server // one that failed to start cannot start again
	lc         *local.Client        // set by Up
	capability tailcfg.PeerCapability
	log        *slog.Logger
	mask       mask
	upTimeout  time.Duration
	dnsName    string // set by Up
	ips        []netip.Addr

	// probeEvery is how often joining asks whether the coordination server is
	// there at all, while that is not known.
	probeEvery time.Duration
	// controlGrace is how long the coordination server may be out of reach
	// before Watch says so: streams break and come back all the time.
	controlGrace time.Duration

	// away and relayLost are what Watch has found: see Control and Relay.
	away, relayLost atomic.Bool

	mu sync.Mutex
	// waitsFor is what Up waits for; empty once the node is up.
	waitsFor string
	// nextExpiry is the earliest moment at which the key of a peer that
	// WhoIs has answered for expires; zero means none is known.
	nextExpiry time.Time
}

// New prepares a node, which is then to be brought up. It sees to the state
// directory and reaches for nothing else.
func New(cfg Config) (*Node, error) {
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
	howToJoin(cfg).report(cfg.Logger)

	hostinfo.SetApp("pgproxy")
	n := &Node{
		capability:   tailcfg.PeerCapability(cfg.Capability),
		log:          cfg.Logger,
		mask:         newMask(cfg.AuthKey),
		upTimeout:    cfg.UpTimeout,
		probeEvery:   10 * time.Second,
		controlGrace: 10 * time.Second,
		waitsFor:     stillJoining,
	}
	n.newServer = func() *tsnet.Server {
		srv := &tsnet.Server{
			Dir:           dir,
			Store:         cfg.Store,
			Hostname:      cfg.Hostname,
			ControlURL:    cfg.ControlURL,
			AuthKey:       cfg.AuthKey,
			AdvertiseTags: cfg.AdvertiseTags,
			Ephemeral:     cfg.Ephemeral,
			UserLogf:      n.debugf,
		}
		if cfg.Verbose {
			srv.Logf = n.debugf
		}
		return srv
	}
	n.srv = n.newServer()
	return n, nil
}

// Close leaves the tailnet: it closes the listeners and all that tsnet runs,
// which takes a second or two. Connections that were accepted end with it. It
// must not be called while Up runs.
func (n *Node) Close() error {
	if n.lc == nil {
		return nil // tsnet was never started
	}
	return n.srv.Close()
}

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

// stillJoining is what Ready says where nothing better is known.
const stillJoining = "the node is joining the tailnet"

// waitFor lets Ready say what the node waits for.
func (n *Node) waitFor(what string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.waitsFor = what
}

// Ready returns nil while the node is part of the tailnet, and otherwise what
// it is waiting for, in words that anybody may read. A coordination server out
// of reach does not make a node unready that is up: it goes on with what it
// knows.
func (n *Node) Ready() error {
	status, err := n.status()
	switch {
	case err != nil:
		return err
	case status.BackendState == ipn.NeedsLogin.String():
		return errors.New("the node's key has expired or was revoked (NeedsLogin): somebody has to log it in again")
	case status.BackendState != ipn.Running.String():
		return fmt.Errorf("the node is %s", status.BackendState)
	}
	return nil
}

// Control returns nil unless the coordination server has been out of reach for a
// while, as [Node.Watch] has found. The error may be read by anybody.
func (n *Node) Control() error { return n.link(&n.away, errAway) }

// Relay returns nil unless the home relay (DERP) is lost, as [Node.Watch] has
// found. The error may be read by anybody.
func (n *Node) Relay() error { return n.link(&n.relayLost, errRelayLost) }

var (
	errAway      = errors.New("the coordination server is out of reach: sessions go on with what was last known of the tailnet")
	errRelayLost = errors.New("the home relay (DERP) is lost: devices without a direct path cannot reach this node")
)

func (n *Node) link(lost *atomic.Bool, err error) error {
	if lost.Load() {
		return err
	}
	return nil
}

// status is tsnet's own view of a node that is up. The error says what a node
// waits for that is not.
func (n *Node) status() (*ipnstate.Status, error) {
	n.mu.Lock()
	waitsFor := n.waitsFor
	n.mu.Unlock()
	if waitsFor != "" {
		return nil, errors.New(waitsFor)
	}
	ctx, cancel := context.WithTimeout(context.Background(), localAPITimeout)
	defer cancel()
	status, err := n.lc.StatusWithoutPeers(ctx)
	if err != nil {
		n.log.Warn("tsnet does not answer", "err", n.mask.err(err))
		return nil, errors.New("the node does not answer")
	}
	return status, nil
}

// Notes are what the operator should know of a node that is up and works, in
// words that anybody may read.
func (n *Node) Notes() []string {
	status, err := n.status()
	if err != nil || status.Self == nil {
		return nil
	}
	if note := n.nameTaken(status.Self.DNSName); note != "" {
		return []string{note}
	}
	return nil
}

// nameTaken says that the node has not got the name it asked for. The
// coordination server then appends a number.
func (n *Node) nameTaken(dnsName string) string {
	name, _, _ := strings.Cut(dnsName, ".")
	wanted := dnsname.SanitizeHostname(n.srv.Hostname)
	number, ok := strings.CutPrefix(name, wanted+"-")
	if _, err := strconv.ParseUint(number, 10, 32); !ok || err != nil {
		return ""
	}
	return fmt.Sprintf("another node has the name %s, and this one is %s: who connects to %s does not reach this node", wanted, name, wanted)
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

// admission is what lets a node in: state saved earlier, a key, or a person.
type admission struct{ saved, key bool }

// howToJoin looks for saved state in the store, and for a key where tsnet
// would look for it.
func howToJoin(cfg Config) admission {
	profile, err := cfg.Store.ReadState(ipn.CurrentProfileStateKey)
	how := admission{
		saved: err == nil && len(profile) > 0,
		key:   cfg.AuthKey != "",
	}
	for _, name := range KeyVariables {
		how.key = how.key || os.Getenv(name) != ""
	}
	return how
}

func (a admission) report(log *slog.Logger) {
	switch {
	case a.saved && a.key:
		log.Info("joining the tailnet with saved state; the auth key is not needed and not used")
	case a.saved:
		log.Info("joining the tailnet with saved state")
	case a.key:
		log.Info("joining the tailnet with an auth key")
	default:
		log.Info("joining the tailnet: no saved state and no auth key, so somebody has to log this node in")
	}
}

// debugf is a logger.Logf for tsnet. It hides keys.
func (n *Node) debugf(format string, args ...any) {
	if n.log.Enabled(context.Background(), slog.LevelDebug) {
		n.log.Debug(n.mask.text(strings.TrimSpace(fmt.Sprintf(format, args...))), "from", "tsnet")
	}
}

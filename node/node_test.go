package node_test

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"pgproxy/node"
	"pgproxy/node/nodetest"
	"pgproxy/policy"

	"tailscale.com/ipn/store/mem"
	"tailscale.com/tstest"
)

const (
	capability = "corp.example/cap/pgproxy"
	// soon is how fast a change of the tailnet must show.
	soon = time.Second
	// patience is for everything that has to happen, some time.
	patience = 30 * time.Second
)

// logged is a log that tests read while it is written.
type logged struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *logged) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// config joins tn as pgproxy-prod, with its state in memory.
func config(tn *nodetest.Test, log *logged) node.Config {
	return node.Config{
		Hostname:   "pgproxy-prod",
		ControlURL: tn.ControlURL(),
		AuthKey:    tn.AuthKey(),
		Ephemeral:  true,
		Store:      new(mem.Store),
		Capability: capability,
		UpTimeout:  patience,
		Logger:     log.logger(),
	}
}

// up makes a node and brings it up.
func up(ctx context.Context, cfg node.Config) (*node.Node, error) {
	n, err := node.New(cfg)
	if err == nil {
		err = n.Up(ctx)
	}
	return n, err
}

func start(t *testing.T, cfg node.Config) *node.Node {
	t.Helper()
	if cfg.StateDir == "" {
		cfg.StateDir = t.TempDir()
	}
	n, err := up(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return n
}

// connect dials n from p, and returns both ends of the connection.
func connect(t *testing.T, p *nodetest.Peer, ln net.Listener, addr string) (client, server net.Conn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	type accepted struct {
		c   net.Conn
		err error
	}
	got := make(chan accepted, 1)
	go func() {
		c, err := ln.Accept()
		got <- accepted{c, err}
	}()
	client, err := p.Dial(ctx, addr)
	if err != nil {
		ln.Close()
		t.Fatalf("%s dials %s: %v", p.Name, addr, err)
	}
	t.Cleanup(func() { client.Close() })
	a := <-got
	if a.err != nil {
		t.Fatalf("Accept: %v", a.err)
	}
	t.Cleanup(func() { a.c.Close() })
	return client, a.c
}

func whoIs(t *testing.T, n *node.Node, remote net.Addr) policy.Caller {
	t.Helper()
	c, err := n.WhoIs(t.Context(), remote, 5432)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestWhoIs(t *testing.T) {
	tn := nodetest.New(t)
	tn.Grant("alice@example.com", capability, `{"access": "read"}`, `{"access":"write", "max_rows": 5}`)
	tn.Grant("tag:ci", capability)
	n := start(t, config(tn, new(logged)))
	ln, err := n.Listen(5432)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()

	tests := []struct {
		peer *nodetest.Peer
		want policy.Caller
	}{
		{
			peer: tn.Person("alice@example.com", "alice-laptop"),
			want: policy.Caller{
				Login: "alice@example.com", Node: "alice-laptop", Granted: true,
				Grants: raw(`{"access":"read"}`, `{"access":"write","max_rows":5}`),
			},
		},
		{
			peer: tn.Person("bob@example.com", "bob-phone"),
			want: policy.Caller{Login: "bob@example.com", Node: "bob-phone"},
		},
		{
			peer: tn.Tagged("tag:ci", "runner"),
			want: policy.Caller{Tags: []string{"tag:ci"}, Node: "runner", Granted: true},
		},
		{
			peer: tn.SharedIn("carol@elsewhere.example", "carol-tablet"),
			want: policy.Caller{Login: "carol@elsewhere.example", Node: "carol-tablet", Shared: true},
		},
	}
	ids := map[string]bool{}
	for _, tt := range tests {
		t.Run(tt.peer.Name, func(t *testing.T) {
			_, conn := connect(t, tt.peer, ln, "pgproxy-prod."+nodetest.Domain+":5432")
			got := whoIs(t, n, conn.RemoteAddr())
			if got.NodeID == "" || ids[got.NodeID] {
				t.Errorf("NodeID is %q, want one of its own", got.NodeID)
			}
			ids[got.NodeID] = true
			tt.want.NodeID = got.NodeID
			tt.want.Addr = conn.RemoteAddr().String()
			equal(t, got, tt.want)
			if host, _, _ := net.SplitHostPort(got.Addr); host != tt.peer.Addr().String() {
				t.Errorf("Addr is %s, want the address %s", got.Addr, tt.peer.Addr())
			}
		})
	}

	t.Run("unknown address", func(t *testing.T) {
		for _, addr := range []string{"100.64.200.200:1000", "127.0.0.1:1000", "192.0.2.1:0"} {
			c, err := n.WhoIs(t.Context(), fakeAddr(addr), 5432)
			if err == nil {
				t.Errorf("%s is %+v, want an error", addr, c)
			}
		}
	})
	t.Run("no address", func(t *testing.T) {
		for _, addr := range []net.Addr{nil, fakeAddr(""), fakeAddr("pipe")} {
			if c, err := n.WhoIs(t.Context(), addr, 5432); err == nil {
				t.Errorf("%v is %+v, want an error", addr, c)
			}
		}
	})
	t.Run("context done", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if c, err := n.WhoIs(ctx, fakeAddr("100.64.0.1:1"), 5432); err == nil {
			t.Errorf("got %+v, want an error", c)
		}
	})
}

func TestNames(t *testing.T) {
	tn := nodetest.New(t)
	n := start(t, config(tn, new(logged)))
	name, addrs := n.Names()
	if want := "pgproxy-prod." + nodetest.Domain; name != want {
		t.Errorf("name is %q, want %q", name, want)
	}
	if len(addrs) != 2 || !addrs[0].Is4() || !addrs[1].Is6() {
		t.Errorf("addresses are %v, want an IPv4 and an IPv6 one", addrs)
	}
	if err := n.Ready(); err != nil {
		t.Errorf("Ready: %v", err)
	}
}

// The host's own addresses must not answer, only the node's.
func TestListenOnTailnetOnly(t *testing.T) {
	tn := nodetest.New(t)
	n := start(t, config(tn, new(logged)))
	ln, err := n.Listen(5433)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	alice := tn.Person("alice@example.com", "alice-laptop")
	_, addrs := n.Names()
	for _, addr := range addrs {
		connect(t, alice, ln, net.JoinHostPort(addr.String(), "5433"))
	}
	local, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range local {
		ip := a.(*net.IPNet).IP
		c, err := net.DialTimeout("tcp", net.JoinHostPort(ip.String(), "5433"), soon)
		if err == nil {
			c.Close()
			t.Errorf("the host answers at %s", c.RemoteAddr())
		}
	}
}

func TestHalfClose(t *testing.T) {
	tn := nodetest.New(t)
	n := start(t, config(tn, new(logged)))
	ln, err := n.Listen(5432)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, server := connect(t, tn.Person("alice@example.com", "alice-laptop"), ln, "pgproxy-prod:5432")
	if _, err := server.Write([]byte("bye")); err != nil {
		t.Fatal(err)
	}
	if err := server.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	client.SetReadDeadline(time.Now().Add(patience))
	var got bytes.Buffer
	if _, err := got.ReadFrom(client); err != nil || got.String() != "bye" {
		t.Errorf("client reads %q, %v; want bye and the end", got.String(), err)
	}
}

func TestStateDir(t *testing.T) {
	tn := nodetest.New(t)
	dir := t.TempDir() + "/deep/state"
	log := new(logged)
	cfg := config(tn, log)
	cfg.Store, cfg.Ephemeral, cfg.StateDir = nil, false, dir

	n, err := up(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	_, first := n.Names()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if mode := modeOf(t, dir); mode != 0o700 {
		t.Errorf("state directory has mode %o, want 700", mode)
	}
	if !strings.Contains(log.String(), "joining the tailnet with an auth key") {
		t.Errorf("log does not say that the key was used:\n%s", log)
	}

	log = new(logged)
	cfg.Logger = log.logger()
	n = start(t, cfg)
	if _, again := n.Names(); again[0] != first[0] {
		t.Errorf("back as %v, want the %v of before", again, first)
	}
	if !strings.Contains(log.String(), "saved state; the auth key is not needed and not used") {
		t.Errorf("log does not say that the key was not needed:\n%s", log)
	}
}

func TestUntaggedIsWarned(t *testing.T) {
	tn := nodetest.New(t)
	for _, tags := range [][]string{nil, {"tag:pgproxy"}} {
		log := new(logged)
		cfg := config(tn, log)
		cfg.AdvertiseTags = tags
		start(t, cfg)
		if warned := strings.Contains(log.String(), "this node has no tag"); warned != (tags == nil) {
			t.Errorf("tags %v: warned is %v; log:\n%s", tags, warned, log)
		}
	}
}

// tsnet's own chatter is for those who ask.
func TestVerbose(t *testing.T) {
	tn := nodetest.New(t)
	quiet, verbose := new(logged), new(logged)
	start(t, config(tn, quiet))
	cfg := config(tn, verbose)
	cfg.Verbose = true
	start(t, cfg)
	if strings.Contains(quiet.String(), "magicsock") {
		t.Errorf("tsnet's chatter in the log:\n%s", quiet)
	}
	if !strings.Contains(verbose.String(), "magicsock") {
		t.Errorf("no chatter in the verbose log:\n%s", verbose)
	}
}

// Nothing is left running when Watch has returned and Close too.
func TestLeavesNothing(t *testing.T) {
	tstest.ResourceCheck(t)
	watch(t).tn.Person("alice@example.com", "alice-laptop")
}

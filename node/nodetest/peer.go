package nodetest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"tailscale.com/ipn/ipnstate"
	"tailscale.com/ipn/store/mem"
	"tailscale.com/tsnet"
	"tailscale.com/types/logger"
	"tailscale.com/wgengine/filter"
)

// Peer is a joined device.
type Peer struct {
	// Name is its name in the tailnet.
	Name string
	srv  *tsnet.Server

	filter *filter.Filter // what Silence has taken away; the Tailnet's mu guards it

	resetting sync.Mutex // held by DialReset
}

// Join lets a device join, and returns when it is up. The tailnet's Close
// closes it.
func (tn *Tailnet) Join(ctx context.Context, d Device) (*Peer, error) {
	tn.mu.Lock()
	if _, taken := tn.devices[d.Name]; taken {
		tn.mu.Unlock()
		return nil, fmt.Errorf("there is a device %q already", d.Name)
	}
	tn.devices[d.Name] = d
	tn.mu.Unlock()

	p := &Peer{
		Name: d.Name,
		srv: &tsnet.Server{
			Dir:        tn.peerDir(d.Name),
			Store:      new(mem.Store),
			Ephemeral:  true,
			Hostname:   d.Name,
			ControlURL: tn.ControlURL(),
			AuthKey:    tn.AuthKey(),
			UserLogf:   logger.Discard,
		},
	}
	if _, err := p.srv.Up(ctx); err != nil {
		tn.mu.Lock()
		delete(tn.devices, d.Name)
		tn.mu.Unlock()
		return nil, errors.Join(fmt.Errorf("joining %s: %w", d.Name, err), p.srv.Close())
	}
	tn.mu.Lock()
	defer tn.mu.Unlock()
	tn.peers = append(tn.peers, p)
	return p, nil
}

// Dial connects to a TCP address in the tailnet: "pgproxy-prod:5432". It waits
// until the device has heard where that is: tsnet looks for what it does not
// know outside of the tailnet, and a handshake that comes too early costs the
// five seconds to the next.
func (p *Peer) Dial(ctx context.Context, addr string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	lc, err := p.srv.LocalClient()
	if err != nil {
		return nil, err
	}
	for {
		status, err := lc.Status(ctx)
		if err != nil {
			return nil, err
		}
		if knows(status, host) {
			return p.srv.Dial(ctx, "tcp", addr)
		}
		select {
		case <-time.After(lookAgain):
		case <-ctx.Done():
			return nil, fmt.Errorf("%s knows no %s: %w", p.Name, host, ctx.Err())
		}
	}
}

// lookAgain is how often a device that does not know another yet looks again.
const lookAgain = 10 * time.Millisecond

// knows reports whether a device knows another by its name or address, and how
// to reach it.
func knows(status *ipnstate.Status, host string) bool {
	for _, peer := range status.Peer {
		name := strings.TrimSuffix(peer.DNSName, ".")
		label, _, _ := strings.Cut(name, ".")
		isIt := host == label || host == name || slices.ContainsFunc(peer.TailscaleIPs, func(a netip.Addr) bool { return a.String() == host })
		if isIt && peer.Relay != "" {
			return true
		}
	}
	return false
}

// Addr is the device's IPv4 address.
func (p *Peer) Addr() netip.Addr {
	ip4, _ := p.srv.TailscaleIPs()
	return ip4
}

// Silence lets no packet into a device and none out, as when it has crashed,
// sleeps or is out of reach: nothing is closed and nobody is told. The device
// hears nothing of the tailnet until Wake, either.
func (tn *Tailnet) Silence(p *Peer) error {
	tn.mu.Lock()
	defer tn.mu.Unlock()
	m, err := tn.memberLocked(p.Name)
	if err != nil {
		return err
	}
	m.silent = true
	tun := p.srv.Sys().Tun.Get()
	p.filter = tun.GetFilter()
	for range 20 {
		tun.SetFilter(nil)
		time.Sleep(lookAgain) // a map that was on its way may put a filter back
	}
	return nil
}

// Wake ends Silence.
func (tn *Tailnet) Wake(p *Peer) error {
	tn.mu.Lock()
	defer tn.mu.Unlock()
	m, err := tn.memberLocked(p.Name)
	if err != nil {
		return err
	}
	m.silent = false
	p.srv.Sys().Tun.Get().SetFilter(p.filter)
	for s := range tn.streams {
		if s.m == m {
			s.push(tn.wholeMapLocked(m)) // for what has changed since
		}
	}
	return nil
}

// Close lets the device leave. Closing it again does nothing.
func (p *Peer) Close() error {
	if err := p.srv.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

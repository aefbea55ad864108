package nodetest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"tailscale.com/ipn/store/mem"
	"tailscale.com/tsnet"
	"tailscale.com/types/logger"
)

// Peer is a joined device.
type Peer struct {
	// Name is its name in the tailnet.
	Name string
	srv  *tsnet.Server

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

// Dial connects to a TCP address in the tailnet: "pgproxy-prod:5432".
func (p *Peer) Dial(ctx context.Context, addr string) (net.Conn, error) {
	return p.srv.Dial(ctx, "tcp", addr)
}

// Addr is the device's IPv4 address.
func (p *Peer) Addr() netip.Addr {
	ip4, _ := p.srv.TailscaleIPs()
	return ip4
}

// Close lets the device leave. Closing it again does nothing.
func (p *Peer) Close() error {
	if err := p.srv.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

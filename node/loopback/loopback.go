// Package loopback takes a tailnet node's place on one machine, to try things:
// it listens on loopback, and everybody who connects is the same caller.
package loopback

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"pgproxy/policy"
)

// Check refuses an address that others than this machine could reach: whoever
// reaches it is let in.
func Check(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err == nil {
		_, err = net.LookupPort("tcp", port)
	}
	if err != nil {
		return err
	}
	if ip, err := netip.ParseAddr(host); host == "localhost" || err == nil && ip.IsLoopback() {
		return nil
	}
	return fmt.Errorf("%q is not a loopback address (127.0.0.1, [::1] or localhost), and whoever reaches it is let in", address)
}

// Node has the methods of a node of the tailnet. The zero value is not usable.
type Node struct {
	// Host is the loopback host to listen on.
	Host string
	// Caller is everybody. Its Addr is filled in.
	Caller policy.Caller
}

// New prepares a node on the host of an address, and returns the address's port
// for Listen. Everybody is the user on the device.
func New(address, user, device string) (*Node, int, error) {
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return nil, 0, err
	}
	port, err := net.LookupPort("tcp", service)
	return &Node{Host: host, Caller: policy.CallerNamed(user, device)}, port, err
}

// Up has nothing to wait for.
func (n *Node) Up(context.Context) error { return nil }

// Ready always returns nil.
func (n *Node) Ready() error { return nil }

// Control always returns nil.
func (n *Node) Control() error { return nil }

// Relay always returns nil.
func (n *Node) Relay() error { return nil }

// Notes are none.
func (n *Node) Notes() []string { return nil }

// Names returns no name and no address.
func (n *Node) Names() (string, []netip.Addr) { return "", nil }

// Listen listens on a port of the host; 0 is any that is free.
func (n *Node) Listen(port int) (net.Listener, error) {
	ln, err := net.Listen("tcp", net.JoinHostPort(n.Host, strconv.Itoa(port)))
	if err != nil {
		return nil, err
	}
	if err := Check(ln.Addr().String()); err != nil { // what "localhost" came out as
		ln.Close()
		return nil, err
	}
	return ln, nil
}

// WhoIs says that it is the one caller.
func (n *Node) WhoIs(_ context.Context, remote net.Addr, _ int) (policy.Caller, error) {
	caller := n.Caller
	caller.Addr = remote.String()
	return caller, nil
}

// Watch returns when ctx ends: nothing changes.
func (n *Node) Watch(ctx context.Context, _ func()) { <-ctx.Done() }

// GetCertificate fails.
func (n *Node) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return nil, errors.New("there is no tailnet to have a certificate of")
}

// Close has nothing to close but what Listen returned, which is its caller's.
func (n *Node) Close() error { return nil }

package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"pgproxy/policy"

	"tailscale.com/client/local"
	"tailscale.com/client/tailscale/apitype"
	"tailscale.com/tailcfg"
	"tailscale.com/wgengine/filter"
)

// ErrNobody is returned by [Node.WhoIs] when the tailnet knows nobody at an
// address, or nobody whose key is still good.
var ErrNobody = errors.New("nobody in this tailnet")

// WhoIs says who is at remote, the address of a connection accepted by
// [Node.Listen] on port, as the tailnet has it now. Any error means that the
// caller must be refused: it is not known, or, with a *[policy.Refusal], it is
// known and the tailnet does not let it reach the port. A packet filter stops
// new connections alone, so those that live must ask again when it changes.
func (n *Node) WhoIs(ctx context.Context, remote net.Addr, port int) (policy.Caller, error) {
	if remote == nil {
		return policy.Caller{}, errors.New("whois: connection has no remote address")
	}
	addr, err := netip.ParseAddrPort(remote.String())
	if err != nil {
		return policy.Caller{}, fmt.Errorf("whois: %w", err)
	}
	// Asked without the port: with one, tsnet looks for a connection that it
	// relays from this host, which is no caller of ours, and holds its lock
	// for most of a second before it says that there is none.
	who, err := n.lc.WhoIs(ctx, addr.Addr().String())
	if errors.Is(err, local.ErrPeerNotFound) {
		err = ErrNobody
	}
	if err != nil {
		return policy.Caller{}, fmt.Errorf("whois %s: %w", addr, err)
	}
	caller, err := callerOf(who, addr, n.capability, time.Now())
	if err != nil {
		return policy.Caller{}, fmt.Errorf("whois %s: %w", addr, err)
	}
	n.noteExpiry(who.Node.KeyExpiry)
	if !n.reaches(addr.Addr(), port) {
		return caller, &policy.Refusal{
			Code:    "28000",
			Message: fmt.Sprintf("pgproxy: the tailnet does not let %s reach port %d of this node", caller.Node, port),
			Hint:    "The access rules of the tailnet's policy file (grants, ACLs) decide that.",
			Rule:    "network access",
		}
	}
	return caller, nil
}

// reaches reports whether the packet filter in force lets a new connection from
// src reach a TCP port of the node.
func (n *Node) reaches(src netip.Addr, port int) bool {
	src = src.Unmap()
	ip4, ip6 := n.srv.TailscaleIPs()
	dst := ip4
	if src.Is6() {
		dst = ip6
	}
	return dst.IsValid() && n.filter().CheckTCP(src, dst, uint16(port)) == filter.Accept
}

// callerOf turns tsnet's answer into ours, at the time now. It fails where the
// answer does not name somebody.
func callerOf(who *apitype.WhoIsResponse, addr netip.AddrPort, capability tailcfg.PeerCapability, now time.Time) (policy.Caller, error) {
	if who == nil || who.Node == nil {
		return policy.Caller{}, ErrNobody
	}
	peer := who.Node
	// A full network map has Expired set by the client, a change to it only
	// by the server: the time decides where neither did.
	if peer.Expired || !peer.KeyExpiry.IsZero() && !peer.KeyExpiry.After(now) {
		return policy.Caller{}, fmt.Errorf("%w: the key of %s has expired", ErrNobody, deviceName(peer))
	}
	caller := policy.Caller{
		Tags:   slices.Clone(peer.Tags),
		Node:   deviceName(peer),
		NodeID: string(peer.StableID),
		Addr:   addr.String(),
		// ShareeNode is a device of somebody our node was shared with,
		// Sharer marks a device that was shared with us.
		Shared: peer.Sharer != 0 || peer.Hostinfo.Valid() && peer.Hostinfo.ShareeNode(),
	}
	if !peer.IsTagged() {
		login, err := loginOf(who.UserProfile)
		if err != nil {
			return policy.Caller{}, fmt.Errorf("%w: %s %w", ErrNobody, caller.Node, err)
		}
		caller.Login = login
	}
	if capability != "" {
		values, ok := who.CapMap[capability]
		caller.Granted = ok
		for _, v := range values {
			caller.Grants = append(caller.Grants, compact(v))
		}
	}
	return caller, nil
}

// compact returns a capability's value without the white space that tsnet's
// local API puts in.
func compact(v tailcfg.RawMessage) json.RawMessage {
	var buf bytes.Buffer
	if err := json.Compact(&buf, []byte(v)); err != nil {
		return json.RawMessage(v) // for the policy to refuse
	}
	return buf.Bytes()
}

// loginOf returns the login name of a person.
func loginOf(profile *tailcfg.UserProfile) (string, error) {
	switch {
	case profile == nil || profile.LoginName == "":
		return "", errors.New("has no user")
	case profile.LoginName == "tagged-devices":
		// The name of the user that owns all tagged nodes: no person.
		return "", errors.New("belongs to no person, and has no tag")
	}
	return profile.LoginName, nil
}

// deviceName is the first label of the peer's name in the tailnet. A device of
// another tailnet has that tailnet's domain, which goes too.
func deviceName(peer *tailcfg.Node) string {
	if name, _, _ := strings.Cut(peer.Name, "."); name != "" {
		return name
	}
	if peer.ComputedName != "" {
		return peer.ComputedName
	}
	return string(peer.StableID)
}

// noteExpiry remembers when a peer's key expires, for Watch. Zero means never.
func (n *Node) noteExpiry(t time.Time) {
	if t.IsZero() {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.nextExpiry.IsZero() || t.Before(n.nextExpiry) {
		n.nextExpiry = t
	}
}

// takeExpired reports whether a key that noteExpiry was told of has expired by
// now. It then forgets them all: asking again notes those that are left.
func (n *Node) takeExpired(now time.Time) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.nextExpiry.IsZero() || n.nextExpiry.After(now) {
		return false
	}
	n.nextExpiry = time.Time{}
	return true
}

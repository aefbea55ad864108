package nodetest

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/tstest/integration/testcontrol"
)

// keyLifetime is how long the key of an untagged device is good.
const keyLifetime = 180 * 24 * time.Hour

// Device is whose a device is. It has a login or tags.
type Device struct {
	// Name is its host name, and its name in the tailnet unless another
	// device has that name.
	Name string
	// Login owns it.
	Login string
	// Tags are what it is instead of somebody's.
	Tags []string
	// Shared says that it is of another tailnet, to whose owner this
	// tailnet's nodes were shared.
	Shared bool
}

// member is a device that has joined. tn.mu guards it.
type member struct {
	device  Device
	name    string // first label, unique
	node    tailcfg.Node
	removed bool
	silent  bool // is told nothing; see Silence
}

// grant is one capability that a source has on every node.
type grant struct {
	src        string
	capability tailcfg.PeerCapability
	values     []tailcfg.RawMessage
}

// Grant gives src a capability on every node, with these values (JSON), in
// place of those it had. src is a login, a tag, a device's name, or "*". No
// values at all is a capability without values.
//
// As with Tailscale's own server, nothing but the nodes' packet filters
// changes.
func (tn *Tailnet) Grant(src, capability string, values ...string) {
	g := grant{src: src, capability: tailcfg.PeerCapability(capability)}
	for _, v := range values {
		g.values = append(g.values, tailcfg.RawMessage(v))
	}
	tn.mu.Lock()
	defer tn.mu.Unlock()
	tn.revokeLocked(src, capability)
	tn.grants = append(tn.grants, g)
	tn.sendFiltersLocked()
}

// Revoke takes a capability from src.
func (tn *Tailnet) Revoke(src, capability string) {
	tn.mu.Lock()
	defer tn.mu.Unlock()
	tn.revokeLocked(src, capability)
	tn.sendFiltersLocked()
}

func (tn *Tailnet) revokeLocked(src, capability string) {
	tn.grants = slices.DeleteFunc(tn.grants, func(g grant) bool {
		return g.src == src && string(g.capability) == capability
	})
}

// Restrict lets src reach these TCP ports of every node and nothing else; no
// ports at all is no network access. src is as in Grant, without "*". Whom no
// Restrict names reaches every port. As with Grant, nothing but the nodes'
// packet filters changes.
func (tn *Tailnet) Restrict(src string, ports ...uint16) {
	tn.mu.Lock()
	defer tn.mu.Unlock()
	tn.reach[src] = ports
	tn.sendFiltersLocked()
}

// Unrestrict ends Restrict.
func (tn *Tailnet) Unrestrict(src string) {
	tn.mu.Lock()
	defer tn.mu.Unlock()
	delete(tn.reach, src)
	tn.sendFiltersLocked()
}

// Approve lets a node in that waits for approval.
func (tn *Tailnet) Approve(name string) error {
	return tn.change(name, func(m *member) { m.node.MachineAuthorized = true })
}

// Remove removes a device from the tailnet: the others no longer see it. It is
// not told, and cannot come back but as a new device.
func (tn *Tailnet) Remove(name string) error {
	tn.mu.Lock()
	defer tn.mu.Unlock()
	m, err := tn.memberLocked(name)
	if err != nil {
		return err
	}
	m.removed = true
	delete(tn.devices, m.device.Name)
	for s := range tn.streams {
		if s.m != m && !s.m.silent {
			s.push(&tailcfg.MapResponse{PeersRemoved: []tailcfg.NodeID{m.node.ID}})
		}
	}
	tn.sendFiltersLocked()
	return nil
}

// Expire lets a device's key be expired, as an admin can.
func (tn *Tailnet) Expire(name string) error {
	return tn.ExpireAt(name, time.Now().Add(-time.Minute))
}

// Extend gives a device's key its whole lifetime again.
func (tn *Tailnet) Extend(name string) error {
	return tn.ExpireAt(name, time.Now().Add(keyLifetime))
}

// ExpireAt sets when a device's key expires.
func (tn *Tailnet) ExpireAt(name string, at time.Time) error {
	return tn.change(name, func(m *member) {
		m.node.KeyExpiry = at
		m.node.Expired = !at.After(time.Now())
	})
}

// Retag gives a device these tags in place of those it has; none gives it back
// to the login it joined with.
func (tn *Tailnet) Retag(name string, tags ...string) error {
	return tn.change(name, func(m *member) {
		m.device.Tags = tags
		tn.ownLocked(m)
	})
}

// change changes a member, and lets every node know.
func (tn *Tailnet) change(name string, f func(*member)) error {
	tn.mu.Lock()
	defer tn.mu.Unlock()
	m, err := tn.memberLocked(name)
	if err != nil {
		return err
	}
	f(m)
	tn.sendMemberLocked(m)
	for s := range tn.streams {
		if s.m == m {
			s.push(&tailcfg.MapResponse{Node: m.self(), UserProfiles: tn.profilesLocked()})
		}
	}
	tn.sendFiltersLocked()
	return nil
}

func (tn *Tailnet) memberLocked(name string) (*member, error) {
	for _, m := range tn.members {
		if m.name == name && !m.removed {
			return m, nil
		}
	}
	return nil, fmt.Errorf("no device %q in the tailnet", name)
}

// serveMap answers one map request of a node. It is testcontrol's
// AltMapStream.
func (tn *Tailnet) serveMap(ctx context.Context, w testcontrol.MapStreamWriter, req *tailcfg.MapRequest) {
	tn.serving.Add(1)
	defer tn.serving.Done()
	m := tn.admit(req)
	if m == nil {
		return
	}
	if !req.Stream {
		// Where a node is (endpoints, disco key, home relay) comes in
		// these requests only, and not with the stream.
		tn.locate(m, req)
		w.SendMapMessage(&tailcfg.MapResponse{})
		return
	}

	s := newStream(m)
	tn.mu.Lock()
	if !m.removed {
		s.push(tn.wholeMapLocked(m))
		tn.streams[s] = true
	}
	tn.mu.Unlock()
	s.run(ctx, w)
	tn.mu.Lock()
	delete(tn.streams, s)
	tn.mu.Unlock()
}

// admit returns the member that makes a request. A node that has registered
// becomes a member with its first request.
func (tn *Tailnet) admit(req *tailcfg.MapRequest) *member {
	tn.mu.Lock()
	defer tn.mu.Unlock()
	if m := tn.members[req.NodeKey]; m != nil {
		return m
	}
	registered := tn.control.Node(req.NodeKey)
	if registered == nil {
		return nil
	}
	host := registered.Hostinfo.Hostname()
	device, known := tn.devices[host]
	if !known {
		device = Device{Name: host, Login: ServiceOwner, Tags: registered.Hostinfo.RequestTags().AsSlice()}
	}
	m := &member{device: device, name: tn.freeNameLocked(host), node: *registered}
	domain := Domain
	if device.Shared {
		domain = OtherDomain
		hi := m.node.Hostinfo.AsStruct()
		hi.ShareeNode = true
		m.node.Hostinfo = hi.View()
	}
	m.node.Name = m.name + "." + domain + "."
	m.node.Online = new(true)
	m.node.MachineAuthorized = !tn.opts.NeedApproval
	tn.ownLocked(m)
	tn.members[req.NodeKey] = m
	tn.sendMemberLocked(m)
	tn.sendFiltersLocked()
	return m
}

// freeNameLocked returns host, or the first of host-1, host-2, … that no
// device has.
func (tn *Tailnet) freeNameLocked(host string) string {
	name := host
	for i := 1; ; i++ {
		if _, err := tn.memberLocked(name); err != nil {
			return name
		}
		name = fmt.Sprintf("%s-%d", host, i)
	}
}

// ownLocked makes the node its owner's. Keys of tagged devices don't expire.
func (tn *Tailnet) ownLocked(m *member) {
	m.node.Tags = m.device.Tags
	m.node.Expired = false
	if len(m.device.Tags) > 0 {
		m.node.User = tn.userLocked("tagged-devices")
		m.node.KeyExpiry = time.Time{}
		return
	}
	m.node.User = tn.userLocked(m.device.Login)
	m.node.KeyExpiry = time.Now().Add(keyLifetime)
}

func (tn *Tailnet) userLocked(login string) tailcfg.UserID {
	id, ok := tn.users[login]
	if !ok {
		// Clear of the IDs that testcontrol gives at registration.
		id = tailcfg.UserID(1000 + len(tn.users))
		tn.users[login] = id
	}
	return id
}

// locate takes over where a node says it is, and tells the others.
func (tn *Tailnet) locate(m *member, req *tailcfg.MapRequest) {
	tn.mu.Lock()
	defer tn.mu.Unlock()
	m.node.Endpoints = req.Endpoints
	m.node.DiscoKey = req.DiscoKey
	m.node.Cap = req.Version
	if req.Hostinfo != nil {
		hi := req.Hostinfo.Clone()
		hi.ShareeNode = m.device.Shared
		m.node.Hostinfo = hi.View()
		if hi.NetInfo != nil && hi.NetInfo.PreferredDERP != 0 {
			m.node.HomeDERP = hi.NetInfo.PreferredDERP
		}
	}
	tn.sendMemberLocked(m)
}

// wholeMapLocked is what a node is told first.
func (tn *Tailnet) wholeMapLocked(m *member) *tailcfg.MapResponse {
	res := &tailcfg.MapResponse{
		Node:            m.self(),
		DERPMap:         tn.control.DERPMap,
		Peers:           []*tailcfg.Node{},
		DNSConfig:       tn.dnsLocked(m),
		Domain:          "example.com",
		CollectServices: "false",
		PacketFilters:   tn.filtersLocked(m),
		UserProfiles:    tn.profilesLocked(),
		ControlTime:     new(time.Now().UTC()),
	}
	for _, other := range tn.members {
		if other != m && !other.removed {
			res.Peers = append(res.Peers, other.peer())
		}
	}
	slices.SortFunc(res.Peers, func(a, b *tailcfg.Node) int { return int(a.ID - b.ID) })
	return res
}

// sendMemberLocked tells all other nodes how m is now.
func (tn *Tailnet) sendMemberLocked(m *member) {
	if m.removed {
		return
	}
	for s := range tn.streams {
		if s.m != m && !s.m.silent {
			s.push(&tailcfg.MapResponse{
				PeersChanged: []*tailcfg.Node{m.peer()},
				UserProfiles: tn.profilesLocked(),
			})
		}
	}
}

// sendFiltersLocked sends every node its packet filter.
func (tn *Tailnet) sendFiltersLocked() {
	for s := range tn.streams {
		if !s.m.silent {
			s.push(&tailcfg.MapResponse{PacketFilters: tn.filtersLocked(s.m)})
		}
	}
}

// filtersLocked is a node's packet filter: who may reach it, and who has the
// capabilities granted.
func (tn *Tailnet) filtersLocked(m *member) map[string][]tailcfg.FilterRule {
	rules := tn.reachLocked(m)
	for _, g := range tn.grants {
		sources := tn.addressesLocked(g.src)
		if len(sources) == 0 {
			continue
		}
		rules = append(rules, tailcfg.FilterRule{
			SrcIPs: sources,
			CapGrant: []tailcfg.CapGrant{{
				Dsts:   m.node.Addresses,
				CapMap: tailcfg.PeerCapMap{g.capability: g.values},
			}},
		})
	}
	return map[string][]tailcfg.FilterRule{"base": rules}
}

// reachLocked are the rules of who may reach a node: everybody may, but for
// those whom Restrict names.
func (tn *Tailnet) reachLocked(m *member) []tailcfg.FilterRule {
	if len(tn.reach) == 0 {
		return slices.Clone(tailcfg.FilterAllowAll)
	}
	var rules []tailcfg.FilterRule
	for _, other := range tn.members {
		if other.removed {
			continue
		}
		rule := tailcfg.FilterRule{SrcIPs: texts(other.node.Addresses)}
		for _, dst := range texts(m.node.Addresses) {
			for _, ports := range tn.portsLocked(other) {
				rule.DstPorts = append(rule.DstPorts, tailcfg.NetPortRange{IP: dst, Ports: ports})
			}
		}
		if len(rule.DstPorts) > 0 {
			rules = append(rules, rule)
		}
	}
	slices.SortFunc(rules, func(a, b tailcfg.FilterRule) int { return slices.Compare(a.SrcIPs, b.SrcIPs) })
	return rules
}

// portsLocked are the ports that a device may reach.
func (tn *Tailnet) portsLocked(m *member) []tailcfg.PortRange {
	restricted := false
	var open []tailcfg.PortRange
	for src, ports := range tn.reach {
		if !m.answersTo(src) {
			continue
		}
		restricted = true
		for _, p := range ports {
			open = append(open, tailcfg.PortRange{First: p, Last: p})
		}
	}
	if !restricted {
		return []tailcfg.PortRange{tailcfg.PortRangeAny}
	}
	return open
}

func texts(prefixes []netip.Prefix) []string {
	var list []string
	for _, p := range prefixes {
		list = append(list, p.String())
	}
	return list
}

// addressesLocked are the addresses of the devices that src names.
func (tn *Tailnet) addressesLocked(src string) []string {
	if src == "*" {
		return []string{"*"}
	}
	var addrs []string
	for _, m := range tn.members {
		if m.removed || !m.answersTo(src) {
			continue
		}
		addrs = append(addrs, texts(m.node.Addresses)...)
	}
	slices.Sort(addrs)
	return addrs
}

// answersTo reports whether src names the device, its owner, or a tag of it.
func (m *member) answersTo(src string) bool {
	switch {
	case strings.HasPrefix(src, "tag:"):
		return slices.Contains(m.device.Tags, src)
	case strings.Contains(src, "@"):
		return len(m.device.Tags) == 0 && m.device.Login == src
	}
	return m.name == src
}

func (tn *Tailnet) profilesLocked() []tailcfg.UserProfile {
	var all []tailcfg.UserProfile
	for login, id := range tn.users {
		all = append(all, tailcfg.UserProfile{ID: id, LoginName: login, DisplayName: login})
	}
	return all
}

// self is the node as it sees itself.
func (m *member) self() *tailcfg.Node { return m.node.Clone() }

// dnsLocked has MagicDNS on, and certificates unless the tailnet gives none.
func (tn *Tailnet) dnsLocked(m *member) *tailcfg.DNSConfig {
	dns := &tailcfg.DNSConfig{Proxied: true, Domains: []string{Domain}}
	if !tn.opts.NoHTTPS {
		dns.CertDomains = []string{strings.TrimSuffix(m.node.Name, ".")}
	}
	return dns
}

// peer is the node as others see it.
func (m *member) peer() *tailcfg.Node {
	n := m.node.Clone()
	if n.Expired {
		// As Tailscale's server does.
		n.Endpoints = nil
		n.HomeDERP = 0
	}
	return n
}

package node

import (
	"encoding/json"
	"errors"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"pgproxy/policy"

	"tailscale.com/client/tailscale/apitype"
	"tailscale.com/tailcfg"
)

// What a live tailnet can't easily be made to answer.
func TestCallerOf(t *testing.T) {
	const capability = "corp.example/cap/pgproxy"
	var (
		now   = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
		addr  = netip.MustParseAddrPort("100.64.0.7:1234")
		alice = &tailcfg.UserProfile{LoginName: "alice@example.com"}
		owner = &tailcfg.UserProfile{LoginName: "tagged-devices"}
	)
	node := func(change func(*tailcfg.Node)) *tailcfg.Node {
		n := &tailcfg.Node{StableID: "n7", Name: "laptop.tail1234.ts.net."}
		if change != nil {
			change(n)
		}
		return n
	}
	tests := []struct {
		name string
		who  *apitype.WhoIsResponse
		want policy.Caller
		err  error
	}{
		{name: "no answer", err: ErrNobody},
		{name: "no node", who: &apitype.WhoIsResponse{UserProfile: alice}, err: ErrNobody},
		{name: "no user", who: &apitype.WhoIsResponse{Node: node(nil)}, err: ErrNobody},
		{name: "no login", who: &apitype.WhoIsResponse{Node: node(nil), UserProfile: &tailcfg.UserProfile{}}, err: ErrNobody},
		{name: "tagged-devices without a tag", who: &apitype.WhoIsResponse{Node: node(nil), UserProfile: owner}, err: ErrNobody},
		{
			name: "flagged as expired",
			who:  &apitype.WhoIsResponse{Node: node(func(n *tailcfg.Node) { n.Expired = true }), UserProfile: alice},
			err:  ErrNobody,
		},
		{
			name: "expires now",
			who:  &apitype.WhoIsResponse{Node: node(func(n *tailcfg.Node) { n.KeyExpiry = now }), UserProfile: alice},
			err:  ErrNobody,
		},
		{
			name: "expires later",
			who:  &apitype.WhoIsResponse{Node: node(func(n *tailcfg.Node) { n.KeyExpiry = now.Add(1) }), UserProfile: alice},
			want: policy.Caller{Login: "alice@example.com", Node: "laptop"},
		},
		{
			name: "tags, and no user",
			who:  &apitype.WhoIsResponse{Node: node(func(n *tailcfg.Node) { n.Tags = []string{"tag:ci", "tag:prod"} })},
			want: policy.Caller{Tags: []string{"tag:ci", "tag:prod"}, Node: "laptop"},
		},
		{
			name: "tags outweigh a login",
			who:  &apitype.WhoIsResponse{Node: node(func(n *tailcfg.Node) { n.Tags = []string{"tag:ci"} }), UserProfile: alice},
			want: policy.Caller{Tags: []string{"tag:ci"}, Node: "laptop"},
		},
		{
			name: "shared with us",
			who:  &apitype.WhoIsResponse{Node: node(func(n *tailcfg.Node) { n.Sharer = 7 }), UserProfile: alice},
			want: policy.Caller{Login: "alice@example.com", Node: "laptop", Shared: true},
		},
		{
			name: "no MagicDNS name",
			who:  &apitype.WhoIsResponse{Node: node(func(n *tailcfg.Node) { n.Name, n.ComputedName = "", "box" }), UserProfile: alice},
			want: policy.Caller{Login: "alice@example.com", Node: "box"},
		},
		{
			name: "no name at all",
			who:  &apitype.WhoIsResponse{Node: node(func(n *tailcfg.Node) { n.Name = "" }), UserProfile: alice},
			want: policy.Caller{Login: "alice@example.com", Node: "n7"},
		},
		{
			name: "another capability",
			who: &apitype.WhoIsResponse{Node: node(nil), UserProfile: alice, CapMap: tailcfg.PeerCapMap{
				capability + "2": {`{}`},
			}},
			want: policy.Caller{Login: "alice@example.com", Node: "laptop"},
		},
		{
			name: "a value that is not JSON",
			who: &apitype.WhoIsResponse{Node: node(nil), UserProfile: alice, CapMap: tailcfg.PeerCapMap{
				capability: {`{ "access": "read" }`, `{"access":`},
			}},
			want: policy.Caller{
				Login: "alice@example.com", Node: "laptop", Granted: true,
				Grants: []json.RawMessage{json.RawMessage(`{"access":"read"}`), json.RawMessage(`{"access":`)},
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := callerOf(tt.who, addr, capability, now)
			if !errors.Is(err, tt.err) {
				t.Fatalf("error is %v, want %v", err, tt.err)
			}
			if err == nil {
				tt.want.NodeID, tt.want.Addr = "n7", addr.String()
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
		})
	}
	t.Run("no capability asked for", func(t *testing.T) {
		who := &apitype.WhoIsResponse{Node: node(nil), UserProfile: alice, CapMap: tailcfg.PeerCapMap{"": {`{}`}}}
		if got, err := callerOf(who, addr, "", now); err != nil || got.Granted || got.Grants != nil {
			t.Errorf("got %+v, %v; want no grants", got, err)
		}
	})
}

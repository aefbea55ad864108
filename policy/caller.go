package policy

import (
	"encoding/json"
	"strings"
)

// Caller is who is asking, in our words and not Tailscale's: a person on a
// device, or a tagged node. The node package makes one for every connection;
// from then on nothing else of the tailnet is known here.
type Caller struct {
	// Login is the person's login name ("alice@example.com"). It is empty
	// for a tagged node, which is no person.
	Login string
	// Tags are the node's tags, each with its "tag:" prefix. A caller with
	// tags is judged by them and never by a login.
	Tags []string
	// Node is the device's name in the tailnet, without its domain.
	Node string
	// NodeID is the node's stable ID, which survives renames.
	NodeID string
	// Addr is the caller's tailnet address and port.
	Addr string
	// Shared says that the device belongs to another tailnet and was shared
	// into this one.
	Shared bool
	// Granted says that the tailnet's grants name this caller for our
	// capability, whether or not the values could be read.
	Granted bool
	// Grants are the capability's values as the tailnet sent them.
	Grants []json.RawMessage
}

// Tagged reports whether the caller is a tagged node.
func (c Caller) Tagged() bool { return len(c.Tags) > 0 }

// Who is the caller's name for stamps, records and limits: the login, or the
// tags joined by commas. It is empty when the caller has neither.
func (c Caller) Who() string {
	if c.Tagged() {
		return strings.Join(c.Tags, ",")
	}
	return c.Login
}

// CallerNamed is a caller by a login, or by tags joined by commas, on a device.
func CallerNamed(name, device string) Caller {
	if strings.HasPrefix(name, "tag:") {
		return Caller{Tags: strings.Split(name, ","), Node: device}
	}
	return Caller{Login: name, Node: device}
}

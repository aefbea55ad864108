package wire

import (
	"strings"

	"pgproxy/policy"
)

// maxName is the longest application_name: NAMEDATALEN - 1 bytes.
const maxName = 63

// Stamp is the application_name a caller's upstream connection bears:
//
//	go-proxy tsnode=<device>|user=<who>
//
// in at most 63 bytes of printable ASCII. Where that is too short the device
// gives way first. A login that does not fit by itself is cut, and ends with
// "~" and the session's id, so that no two people share a stamp; the settings
// pgproxy.user, pgproxy.node and pgproxy.session say all of it.
func Stamp(c policy.Caller, session string) string {
	const before, between = "go-proxy tsnode=", "|user="
	who, device := printable(c.Who()), printable(c.Node)
	room := maxName - len(before) - len(between)
	if len(who) > room {
		id := "~" + session
		who = who[:room-len(id)] + id
	}
	device = device[:min(len(device), room-len(who))]
	return before + device + between + who
}

// printable replaces each character outside of printable ASCII with one
// question mark.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}

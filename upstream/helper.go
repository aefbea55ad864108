package upstream

import "strings"

// Connections that serve no session bear the name of what they do, so that
// people see whose they are. A session's has "tsnode=" there: see wire.Stamp.
const (
	ownName     = "go-proxy "
	sessionName = ownName + "tsnode="
)

// HelperName is the application_name of a connection that serves no session.
func HelperName(task string) string { return ownName + task }

// IsHelper reports whether an application_name is one of HelperName's, of
// whichever pgproxy.
func IsHelper(applicationName string) bool {
	return strings.HasPrefix(applicationName, ownName) && !strings.HasPrefix(applicationName, sessionName)
}

// IsSession reports whether an application_name is that of a session, of
// whichever pgproxy.
func IsSession(applicationName string) bool { return strings.HasPrefix(applicationName, sessionName) }

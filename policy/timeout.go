package policy

import (
	"strings"
	"time"
)

// TimeoutWithin reports whether a value of statement_timeout or
// idle_in_transaction_session_timeout, as the server shows it ("400ms", "30s",
// "0"), is one that this rule lets its caller set: not above what the policy
// gives, or any for those who may lift and for admins.
func (r *Rule) TimeoutWithin(name, serverValue string) bool {
	return r.timeoutWithin(name, timeoutMillis(serverValue))
}

// timeoutWithin is TimeoutWithin of milliseconds; see timeoutMillis.
func (r *Rule) timeoutWithin(name string, millis int64) bool {
	if r.Access == Admin {
		return true
	}
	lim, ok := limitNamed(name)
	return ok && millis >= 0 && (r.MayLift || !looserLimit(millis, lim.get(r.policy())))
}

// Within reports whether a value of a timeout, as the server shows it, is not
// above the one that this rule has now.
func (r *Rule) Within(name, serverValue string) bool {
	lim, ok := limitNamed(name)
	millis := timeoutMillis(serverValue)
	return ok && millis >= 0 && !looserLimit(millis, lim.get(r))
}

// policy is the rule as the policy gives it.
func (r *Rule) policy() *Rule {
	if r.given != nil {
		return r.given
	}
	return r
}

// timeoutMillis is the value of a timeout in milliseconds, 0 for none, -1 for
// one that is not understood. What it understands the server reads as the same
// value or does not take.
func timeoutMillis(value string) int64 {
	millis, ok := parseTimeout(strings.TrimSpace(value))
	if !ok {
		return -1
	}
	return millis
}

// FormatDuration is a duration as people write it: "30s", "5m", "1h30m".
func FormatDuration(d time.Duration) string { return formatDuration(d) }

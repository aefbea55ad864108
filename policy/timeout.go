package policy

import "time"

// TimeoutWithin reports whether a value of statement_timeout or
// idle_in_transaction_session_timeout, as the server shows it ("400ms", "30s",
// "0"), is not wider than the rule.
func (r *Rule) TimeoutWithin(name, value string) bool {
	limit := r.StatementTimeout
	if name == "idle_in_transaction_session_timeout" {
		limit = r.IdleInTransactionTimeout
	}
	d, err := parseDuration(value, time.Millisecond)
	return err == nil && (limit == 0 || d > 0 && d <= max(limit, time.Millisecond))
}

// FormatDuration is a duration as people write it: "30s", "5m", "1h30m".
func FormatDuration(d time.Duration) string { return formatDuration(d) }

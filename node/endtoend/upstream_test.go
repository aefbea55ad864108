package endtoend

import (
	"net"
	"strings"
	"testing"

	"pgproxy/wire/audit"
)

// An upstream that nobody answers for: people are told so, and neither where
// it is nor how to log in there.
func TestUpstreamAway(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	p := startAs(t, tailnet, "pgproxy-without-upstream", []string{"UPSTREAM_DSN=postgres://app:hunter2@" + addr + "/app?sslmode=disable"})
	_, err := p.tryConnect(t, alice)
	e := wantCode(t, "without an upstream", err, "08001")
	_, port, _ := net.SplitHostPort(addr)
	if told := e.Message + e.Detail + e.Hint; e.Severity != "FATAL" || strings.Contains(told, port) || strings.Contains(told, "127.0.0.1") {
		t.Errorf("told %+v", e)
	}
	r := p.record(t, "the refusal", func(r audit.Record) bool { return r.Event == audit.Refuse })
	if r.User != "alice@example.com" || r.SQLState != "08001" {
		t.Errorf("recorded as %+v", r)
	}
	if code, body := p.browse(t, alice, "GET", "/readyz"); code != 503 || !strings.Contains(body, "upstream") || strings.Contains(body, port) {
		t.Errorf("/readyz: %d %s", code, body)
	}
	if strings.Contains(p.log.String(), "hunter2") {
		t.Error("the password is in the log")
	}
}

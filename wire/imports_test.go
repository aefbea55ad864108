package wire_test

import (
	"strings"
	"testing"

	"tailscale.com/tstest/deptest"
)

// Imports point one way: of ours, wire sees policy, upstream and its own audit.
// Of Tailscale it knows nothing, so that a session needs no tailnet.
func TestImports(t *testing.T) {
	ours := map[string]bool{"pgproxy/wire/audit": true, "pgproxy/policy": true, "pgproxy/upstream": true}
	deptest.DepChecker{
		OnDep: func(dep string) {
			switch {
			case strings.HasPrefix(dep, "pgproxy/policy/"): // policy's own insides
			case strings.HasPrefix(dep, "pgproxy/") && !ours[dep]:
				t.Errorf("wire depends on %s", dep)
			case strings.HasPrefix(dep, "tailscale.com"):
				t.Errorf("wire depends on %s: who asks is node's", dep)
			}
		},
		BadDeps: map[string]string{
			"testing":                   "helpers of tests stay in tests",
			"github.com/lmittmann/tint": "how a log looks is main's",
		},
	}.Check(t)
}

// Policy is a leaf: no network, no logging, none of ours.
func TestPolicyImports(t *testing.T) {
	t.Chdir("../policy")
	deptest.DepChecker{
		OnDep: func(dep string) {
			switch {
			case strings.HasPrefix(dep, "pgproxy/") && !strings.HasPrefix(dep, "pgproxy/policy/"):
				t.Errorf("policy depends on %s", dep)
			case strings.HasPrefix(dep, "tailscale.com"), strings.HasPrefix(dep, "github.com/jackc/"):
				t.Errorf("policy depends on %s: it knows callers and statements, nobody's connections", dep)
			}
		},
		BadDeps: map[string]string{
			"net":      "policy reaches nobody",
			"net/http": "policy reaches nobody",
			"log":      "policy logs nothing, its callers do",
			"log/slog": "policy logs nothing, its callers do",
		},
	}.Check(t)
}

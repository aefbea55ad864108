package wire_test

import (
	"strings"
	"testing"

	"tailscale.com/tstest/deptest"
)

// Imports point one way: of ours, wire sees policy, upstream and the packages
// below itself. Of Tailscale it knows nothing, so that a session needs no
// tailnet.
func TestImports(t *testing.T) {
	ours := map[string]bool{
		"pgproxy/wire/audit": true, "pgproxy/wire/exchange": true, "pgproxy/wire/frame": true,
		"pgproxy/policy": true, "pgproxy/upstream": true, "pgproxy/upstream/activity": true,
	}
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

// An exchange knows policy and upstream, and nothing of sessions and records.
func TestExchangeImports(t *testing.T) {
	t.Chdir("exchange")
	ours := map[string]bool{"pgproxy/wire/frame": true, "pgproxy/policy": true, "pgproxy/upstream": true}
	deptest.DepChecker{
		OnDep: func(dep string) {
			if strings.HasPrefix(dep, "pgproxy/") && !strings.HasPrefix(dep, "pgproxy/policy/") && !ours[dep] || strings.HasPrefix(dep, "tailscale.com") {
				t.Errorf("exchange depends on %s", dep)
			}
		},
		BadDeps: map[string]string{
			"testing":  "helpers of tests stay in tests",
			"log/slog": "the session logs",
		},
	}.Check(t)
}

// Frames are bytes.
func TestFrameImports(t *testing.T) {
	t.Chdir("frame")
	deptest.DepChecker{
		OnDep: func(dep string) {
			if strings.HasPrefix(dep, "pgproxy/") || strings.HasPrefix(dep, "tailscale.com") {
				t.Errorf("frame depends on %s", dep)
			}
		},
		BadDeps: map[string]string{"testing": "helpers of tests stay in tests"},
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

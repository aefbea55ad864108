package status

import (
	"strings"
	"testing"

	"tailscale.com/tstest/deptest"
)

// The page knows sessions, and people by what it is told of them.
func TestImports(t *testing.T) {
	deptest.DepChecker{
		OnDep: func(dep string) {
			if dep == "pgproxy/node" || strings.HasPrefix(dep, "tailscale.com") {
				t.Errorf("wire/status depends on %s: who asks is node's", dep)
			}
		},
		BadDeps: map[string]string{"testing": "helpers of tests stay in tests"},
	}.Check(t)
}

package node_test

import (
	"strings"
	"testing"

	"tailscale.com/tstest/deptest"
)

// Imports point one way: of ours, node sees policy and nothing else.
func TestImports(t *testing.T) {
	deptest.DepChecker{
		OnDep: func(dep string) {
			ours := strings.HasPrefix(dep, "pgproxy/")
			if ours && dep != "pgproxy/policy" && !strings.HasPrefix(dep, "pgproxy/policy/") {
				t.Errorf("node depends on %s; of this module it may know policy alone", dep)
			}
		},
		BadDeps: map[string]string{
			"github.com/jackc/pgx/v5/pgproto3":             "what is said is wire's",
			"github.com/jackc/pgx/v5/pgconn":               "to whom is upstream's",
			"tailscale.com/tstest/integration/testcontrol": "a control plane is for tests",
		},
	}.Check(t)
}

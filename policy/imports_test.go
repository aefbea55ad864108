package policy

import (
	"testing"

	"tailscale.com/tstest/deptest"
)

func TestImports(t *testing.T) {
	const leaf = "policy is a leaf: who may run what, without network, clock and log"
	deptest.DepChecker{
		BadDeps: map[string]string{
			"pgproxy/node":            leaf,
			"pgproxy/wire":            leaf,
			"pgproxy/upstream":        leaf,
			"log/slog":                leaf,
			"net":                     leaf,
			"tailscale.com/tailcfg":   "Tailscale stays in node",
			"tailscale.com/tsnet":     "Tailscale stays in node",
			"testing":                 "test helpers stay in policytest",
			"github.com/jackc/pgx/v5": "the database stays behind Catalog",
		},
	}.Check(t)
}

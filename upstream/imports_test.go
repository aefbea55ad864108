package upstream

import (
	"testing"

	"tailscale.com/tstest/deptest"
)

func TestImports(t *testing.T) {
	const leaf = "upstream is a leaf: the database side knows neither who asks nor what is said"
	deptest.DepChecker{
		BadDeps: map[string]string{
			"pgproxy/node":                        leaf,
			"pgproxy/wire":                        leaf,
			"pgproxy/policy":                      leaf,
			"tailscale.com/tsnet":                 "Tailscale stays in node",
			"testing":                             "test helpers stay in upstreamtest",
			"github.com/pganalyze/pg_query_go/v6": "the parser stays in policy",
			"github.com/jackc/pgx/v5":             "pgconn and pgproto3 are enough",
		},
	}.Check(t)
}

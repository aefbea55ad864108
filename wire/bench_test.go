package wire

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"pgproxy/policy"
	"pgproxy/upstream/upstreamtest"
	"pgproxy/wire/audit"
)

// open connects to the proxy and, for comparison, to the server itself.
func open(b *testing.B, dsn string) *pgconn.PgConn {
	b.Helper()
	c, err := pgconn.Connect(context.Background(), dsn)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close(context.Background()) })
	return c
}

// ways are the proxy and the direct way, side by side.
func ways(b *testing.B, f func(b *testing.B, c *pgconn.PgConn)) {
	pg := upstreamtest.Shared(b)
	log, err := audit.Open(filepath.Join(b.TempDir(), "audit.jsonl"), audit.Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { log.Close() })
	p := startProxy(b, withRule(func(r *policy.Rule) { r.MaxRows, r.MaxBytes = 0, 0 }),
		func(srv *Server) { srv.Logger, srv.Audit = slog.New(slog.DiscardHandler), log })
	b.Run("direct", func(b *testing.B) { f(b, open(b, pg.DSN("app", "app"))) })
	b.Run("pgproxy", func(b *testing.B) { f(b, open(b, "postgres://x@"+p.addr+"/app?sslmode=disable")) })
}

func BenchmarkSelect(b *testing.B) {
	ways(b, func(b *testing.B, c *pgconn.PgConn) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := c.Exec(b.Context(), "SELECT 1").ReadAll(); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkRows(b *testing.B) {
	ways(b, func(b *testing.B, c *pgconn.PgConn) {
		b.ReportAllocs()
		b.SetBytes(100_000 * 111)
		for b.Loop() {
			r := c.Exec(b.Context(), "SELECT repeat('x', 100) FROM generate_series(1, 100000)")
			rows := 0
			for r.NextResult() {
				for rr := r.ResultReader(); rr.NextRow(); rows++ {
				}
			}
			if err := r.Close(); err != nil || rows != 100_000 {
				b.Fatal(rows, err)
			}
		}
	})
}

// BenchmarkNewText is a statement whose text is new each time, as most are.
func BenchmarkNewText(b *testing.B) {
	ways(b, func(b *testing.B, c *pgconn.PgConn) {
		b.ReportAllocs()
		n := 0
		for b.Loop() {
			n++
			if _, err := c.Exec(b.Context(), fmt.Sprintf("SELECT relname FROM pg_class WHERE oid = %d", n)).ReadAll(); err != nil {
				b.Fatal(err)
			}
		}
	})
}

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

// BenchmarkGuardedUpdate changes one row, with and without the guard of
// max_affected_rows, in a database of few and of 10 000 tables.
func BenchmarkGuardedUpdate(b *testing.B) {
	pg := upstreamtest.Shared(b)
	pg.Exec(b, `DROP SCHEMA IF EXISTS guardbench CASCADE; CREATE SCHEMA guardbench AUTHORIZATION app; SET ROLE app;
		CREATE TABLE guardbench.t (id int PRIMARY KEY, n int); INSERT INTO guardbench.t SELECT i, 0 FROM generate_series(1, 1000) i`)
	b.Cleanup(func() { dropTables(b, pg) })
	for _, tables := range []int{10, 10_000} {
		for from := 0; from < tables; from += 500 { // each takes a lock until its transaction ends
			pg.Exec(b, fmt.Sprintf(`DO $$ BEGIN FOR i IN %d..%d LOOP EXECUTE format('CREATE TABLE IF NOT EXISTS guardbench.x%%s (id int)', i); END LOOP; END $$`, from, min(from+499, tables)))
		}
		for name, limit := range map[string]int64{"guarded": 1000, "unguarded": 0} {
			b.Run(fmt.Sprintf("%s/%d tables", name, tables), func(b *testing.B) {
				p := startProxy(b, withRule(func(r *policy.Rule) { r.MaxAffectedRows = limit }),
					func(srv *Server) { srv.Logger, srv.Audit = slog.New(slog.DiscardHandler), discard{} })
				c := open(b, "postgres://x@"+p.addr+"/app?sslmode=disable")
				for b.Loop() {
					if _, err := c.Exec(b.Context(), "UPDATE guardbench.t SET n = n + 1 WHERE id = 7").ReadAll(); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// dropTables drops the benchmark's tables, some at a time.
func dropTables(b *testing.B, pg *upstreamtest.Server) {
	for range 25 {
		pg.Exec(b, `DO $$ DECLARE r record; BEGIN FOR r IN SELECT oid::regclass::text AS t FROM pg_class WHERE relnamespace = 'guardbench'::regnamespace AND relkind = 'r' LIMIT 500 LOOP EXECUTE 'DROP TABLE ' || r.t; END LOOP; END $$`)
	}
}

// discard is an audit log that keeps nothing.
type discard struct{}

func (discard) Write(*audit.Record) error { return nil }

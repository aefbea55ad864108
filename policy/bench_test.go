package policy

import (
	"fmt"
	"strings"
	"testing"

	pg "github.com/pganalyze/pg_query_go/v6"
)

const benchSelect = "SELECT abalance FROM pgbench_accounts WHERE aid = 4711"

// benchCatalog is like what psql sends for \d.
const benchCatalog = `SELECT c.oid, n.nspname, c.relname FROM pg_catalog.pg_class c
     LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relname OPERATOR(pg_catalog.~) '^(orders)$' COLLATE pg_catalog.default
  AND pg_catalog.pg_table_is_visible(c.oid) ORDER BY 2, 3`

func verdict(b *testing.B, j *Judge, sql string) {
	msg, err := j.Parse(b.Context(), sql)
	if err != nil {
		b.Fatal(err)
	}
	rule := DefaultRule()
	if d := Decide(b.Context(), &rule, msg, Session{}); d.Refusal != nil {
		b.Fatal(d.Refusal)
	}
}

func newJudge(t testing.TB) *Judge {
	j, err := NewJudge()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	return j
}

// BenchmarkVerdict is what a statement costs before it is sent: one never
// seen, the same with the parser library alone, one seen before, one seen
// before with another number, and two that a parser process reads.
func BenchmarkVerdict(b *testing.B) {
	b.Run("parser alone", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := pg.Parse(benchSelect); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("cold", func(b *testing.B) {
		j, n := newJudge(b), 0
		b.ReportAllocs()
		for b.Loop() {
			n++
			verdict(b, j, fmt.Sprintf("SELECT abalance FROM pgbench_accounts WHERE aid%d = 4711", n))
		}
	})
	b.Run("catalogue parser alone", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := pg.Parse(benchCatalog); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("catalogue cold", func(b *testing.B) {
		j, n := newJudge(b), 0
		b.ReportAllocs()
		for b.Loop() {
			n++
			verdict(b, j, fmt.Sprintf("%s -- %d", benchCatalog, n))
		}
	})
	b.Run("repeated", func(b *testing.B) {
		j := newJudge(b)
		b.ReportAllocs()
		for b.Loop() {
			verdict(b, j, benchSelect)
		}
	})
	b.Run("other number", func(b *testing.B) {
		j, n := newJudge(b), 1000
		verdict(b, j, benchSelect)
		b.ReportAllocs()
		for b.Loop() {
			n = 1000 + (n+1)%9000
			verdict(b, j, fmt.Sprintf("SELECT abalance FROM pgbench_accounts WHERE aid = %d", n))
		}
	})
	b.Run("4 KiB", func(b *testing.B) {
		j, n := newJudge(b), 0
		list := strings.Repeat("column_name, ", 320)
		b.ReportAllocs()
		for b.Loop() {
			n++
			verdict(b, j, fmt.Sprintf("SELECT %s1 FROM orders%d", list, n))
		}
	})
	b.Run("4 KiB parser alone", func(b *testing.B) {
		sql := "SELECT " + strings.Repeat("column_name, ", 320) + "1 FROM orders"
		b.ReportAllocs()
		for b.Loop() {
			if _, err := pg.Parse(sql); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("1 MiB", func(b *testing.B) {
		j := newJudge(b)
		sql := "UPDATE orders SET doc = '" + strings.Repeat(`{"k": "v"},`, 95_000) + "' WHERE id = 1"
		b.SetBytes(int64(len(sql)))
		b.ReportAllocs()
		for b.Loop() {
			verdict(b, j, sql)
		}
	})
}

// BenchmarkScan is the pass over a text that bounds what the parser costs.
func BenchmarkScan(b *testing.B) {
	for name, sql := range map[string]string{
		"catalogue": benchCatalog,
		"columns":   "SELECT " + strings.Repeat("column_name, ", 3200) + "1 FROM orders",
		"values":    "INSERT INTO t VALUES " + strings.Repeat("(1, 'abc', 2.5, E'x\\n'), ", 3200) + "(1)",
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(sql)))
			for b.Loop() {
				if _, refusal := scan(sql); refusal != nil {
					b.Fatal(refusal)
				}
			}
		})
	}
}

package trail

import (
	"fmt"
	"testing"
	"time"

	"pgproxy/wire/audit"
)

// benchSize is how large the log of the benchmarks is, in bytes.
const benchSize = 300 << 20

// BenchmarkLog has requests on a log of some hundred MiB: what is asked for most,
// and what takes the whole log.
func BenchmarkLog(b *testing.B) {
	var records []audit.Record
	for i := range int64(1000) {
		session := fmt.Sprintf("session%05d", i%100)
		q, a := query(session, fmt.Sprintf("user%d@example.com", i%20), i+1, "SELECT abalance FROM pgbench_accounts WHERE aid = 48213"), answer(session, "", i+1, "")
		q.Node, q.Upstream, q.ApplicationName, q.Client = "laptop", "db.internal:5432", "go-proxy tsnode=laptop|user=alice@example.com", "psql"
		a.User, a.Node, a.Upstream, a.ApplicationName, a.Client = q.User, q.Node, q.Upstream, q.ApplicationName, q.Client
		records = append(records, q, a)
	}
	first := writeLog(b, 0)
	w, err := audit.Open(first.path, audit.Options{Sync: audit.SyncNever, MaxSize: benchSize / 4})
	if err != nil {
		b.Fatal(err)
	}
	const each = 750 // about what a record takes, in bytes
	n := benchSize / each
	for i := range n {
		r := records[i%len(records)]
		r.Time = noon.Add(time.Duration(i) * time.Millisecond)
		if err := w.Write(&r); err != nil {
			b.Fatal(err)
		}
	}
	w.Close()
	middle := noon.Add(time.Duration(n/2) * time.Millisecond)
	for _, bench := range []struct {
		name string
		Search
	}{
		{"newest", Search{}},
		{"until", Search{Until: middle}},
		{"person", Search{Person: "nobody"}},
		{"text", Search{Text: "nothing like it"}},
		{"outcome", Search{Outcome: "denied", Person: "user7@"}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			l := newLog(b, first.path)
			q := bench.Search
			q.Sees, q.Max = everybody, 50
			var read int64
			for b.Loop() {
				page, err := l.History(b.Context(), q)
				if err != nil || page.Late {
					b.Fatal(err, page.Progress)
				}
				read += page.Read
			}
			b.ReportMetric(float64(read)/b.Elapsed().Seconds()/1e6, "MB/s")
		})
	}
	b.Run("session", func(b *testing.B) {
		l := newLog(b, first.path)
		for b.Loop() {
			if start, err := l.Find(b.Context(), Session{"nobody", everybody}, Position{}, time.Time{}); err != nil || start.Found || start.Late {
				b.Fatal(err)
			}
		}
	})
}

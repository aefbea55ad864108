package audit

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// benchRecord is what a session writes before a statement.
func benchRecord() *Record {
	return &Record{
		Time: time.Now(), Event: Query, Session: "0f3a9c1b2d4e5f60", Seq: 7,
		User: "alice@example.com", Node: "alice-laptop", NodeID: "nABCDEF1CNTRL", Addr: "100.101.102.103:51234",
		Database: "app", Upstream: "db.internal:5432", UpstreamPID: 12345,
		ApplicationName: "go-proxy tsnode=alice-laptop|user=alice@example.com", Client: "psql",
		SQL: "SELECT abalance FROM pgbench_accounts WHERE aid = 48213;", Fingerprint: "a0ead580058af585",
		Kinds: []string{"SELECT"}, Verdict: "allow", Rule: "default",
	}
}

func BenchmarkEncode(b *testing.B) {
	r, buf := benchRecord(), []byte(nil)
	b.ReportAllocs()
	for b.Loop() {
		buf = appendRecord(buf[:0], r, DefaultMaxSQL)
	}
	b.SetBytes(int64(len(buf)))
}

func BenchmarkWrite(b *testing.B) {
	for _, mode := range []string{"never", "interval", "always"} {
		for _, writers := range []int{1, 8, 64} {
			b.Run(fmt.Sprintf("%s/%d", mode, writers), func(b *testing.B) {
				sync, err := ParseSync(mode)
				if err != nil {
					b.Fatal(err)
				}
				w := open(b, filepath.Join(b.TempDir(), "audit.log"), Options{Sync: sync})
				b.ReportAllocs()
				runWriters(b, w, writers)
			})
		}
	}
}

// runWriters shares b.N writes among so many goroutines.
func runWriters(b *testing.B, w *Writer, writers int) {
	var wg sync.WaitGroup
	b.ResetTimer()
	for i := range writers {
		wg.Go(func() {
			r := benchRecord()
			for n := i; n < b.N; n += writers {
				if err := w.Write(r); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// BenchmarkWriteLong has a statement of a mebibyte.
func BenchmarkWriteLong(b *testing.B) {
	w := open(b, filepath.Join(b.TempDir(), "audit.log"), Options{Sync: SyncNever})
	r := benchRecord()
	r.SQL = strings.Repeat("'0123456789abcde',\n", 1<<20/19)
	b.SetBytes(int64(len(r.SQL)))
	b.ReportAllocs()
	for b.Loop() {
		if err := w.Write(r); err != nil {
			b.Fatal(err)
		}
	}
}

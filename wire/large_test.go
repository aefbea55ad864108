package wire

import (
	"bufio"
	"encoding/binary"
	"io"
	"runtime"
	"strings"
	"testing"
	"time"

	"pgproxy/policy"
	"pgproxy/wire/audit"

	"pgproxy/wire/frame"
)

// flat is how much the process's heap may grow while a result of any size
// passes, in bytes.
const flat = 32 << 20

// heap is the size of the process's live and not yet collected objects.
func heap() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// passed is what came of a large result.
type passed struct {
	rows, bytes int64
	rest        string // the frames that were no rows
	peak        uint64 // the largest heap that was seen
}

// pass takes the answer to a query, and throws its rows away as they come.
func (c *client) pass() passed {
	c.t.Helper()
	c.conn.SetDeadline(time.Now().Add(2 * time.Minute))
	r := bufio.NewReaderSize(c.conn, 64<<10)
	var p passed
	var rest []string
	for sampled := int64(0); ; {
		var head [frame.HeaderLen]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			c.t.Fatal(err)
		}
		size := int64(binary.BigEndian.Uint32(head[1:])) - 4
		if head[0] == 'D' {
			p.rows++
			p.bytes += frame.HeaderLen + size
			for size > 0 {
				n, err := io.CopyN(io.Discard, r, min(size, 1<<20))
				if err != nil {
					c.t.Fatal(err)
				}
				size -= n
				if sampled += n; sampled >= 8<<20 {
					sampled = 0
					p.peak = max(p.peak, heap())
				}
			}
			continue
		}
		f := reply{head[0], make([]byte, size)}
		if _, err := io.ReadFull(r, f.body); err != nil {
			c.t.Fatal(err)
		}
		rest = append(rest, f.String())
		if f.typ == 'Z' {
			p.rest = strings.Join(rest, " ")
			return p
		}
	}
}

// TestLargeResult streams 1 GB of rows and a value of 100 MB in no more memory
// than small ones take.
func TestLargeResult(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	p := startProxy(t, withRule(func(r *policy.Rule) { r.MaxRows, r.MaxBytes, r.StatementTimeout = 0, 0, 2*time.Minute }))
	c := p.login(t)
	c.want("SELECT 1", "D(1) C(SELECT 1) Z(I)")
	runtime.GC()
	before := heap()
	for i, tt := range []struct {
		name, sql, rest string
		rows, rowBytes  int64 // rowBytes: a row's value
	}{
		{"1 GB", "SELECT repeat('x', 8192) FROM generate_series(1, 131072)", "T C(SELECT 131072) Z(I)", 131072, 8192},
		{"100 MB", "SELECT repeat('x', 100000000)", "T C(SELECT 1) Z(I)", 1, 100_000_000},
	} {
		c.send(frame.AppendQuery(nil, tt.sql))
		got := c.pass()
		const overhead = frame.HeaderLen + 2 + 4 // a row's columns, a column's length
		if got.rest != tt.rest || got.rows != tt.rows || got.bytes != tt.rows*(tt.rowBytes+overhead) {
			t.Errorf("%s: %d rows, %d bytes, %s", tt.name, got.rows, got.bytes, got.rest)
		}
		if got.peak > before+flat {
			t.Errorf("%s: the heap grew from %d to %d bytes", tt.name, before, got.peak)
		}
		rec := p.records.await(t, tt.name, func(r audit.Record) bool { return r.Event == audit.Result && r.Seq == int64(i+2) })
		if *rec.Rows != tt.rows || *rec.Bytes < got.bytes || rec.Truncated {
			t.Errorf("%s: record of %d rows, %d bytes", tt.name, *rec.Rows, *rec.Bytes)
		}
	}
}

// TestLargeValueCapped requires that a value beyond the default cap costs
// neither the client nor the proxy anything.
func TestLargeValueCapped(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	p := startProxy(t)
	c := p.login(t)
	runtime.GC()
	before := heap()
	c.wantLike("SELECT repeat('x', 100000000)", `C\(SELECT [01]\) E\(54000 pgproxy: result truncated: max_bytes is 16777216\) Z\(I\)`)
	if after := heap(); after > before+flat {
		t.Errorf("the heap grew from %d to %d bytes", before, after)
	}
	c.want("SELECT 'alive'", "D(alive) C(SELECT 1) Z(I)")
}

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pgproxy/upstream/upstreamtest"
)

// clientCounts are the numbers of clients that pgbench runs with.
var clientCounts = []int{1, 8, 64}

// measurements are all numbers; those of pgbench come first.
func measurements(pg *upstreamtest.Server) []measurement {
	var list []measurement
	for _, clients := range clientCounts {
		list = append(list, measurement{fmt.Sprintf("statements/s, %d clients", clients), "%.0f",
			func(ctx context.Context, addr string) (float64, error) { return pgbench(ctx, pg, addr, clients) }})
	}
	return append(list,
		measurement{"first row, ms", "%.3f", firstRow},
		measurement{"1 000 000 rows of 100 B, s", "%.2f", millionRows},
		measurement{"connect to ready, ms", "%.2f", connect},
	)
}

var tps = regexp.MustCompile(`tps = ([0-9.]+) \(without`)

// pgbench runs select-only transactions by the simple protocol.
func pgbench(ctx context.Context, pg *upstreamtest.Server, addr string, clients int) (float64, error) {
	path, err := pg.Pgbench()
	if err != nil {
		return 0, err
	}
	host, port, _ := net.SplitHostPort(addr)
	cmd := exec.CommandContext(ctx, path, "-n", "-M", "simple", "-S", "-c", strconv.Itoa(clients), "-j", strconv.Itoa(min(clients, 2)),
		"-T", strconv.Itoa(*seconds), "-h", host, "-p", port, "-U", "app", "app")
	cmd.Env = append(pg.Env(), "PGSSLMODE=disable")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("pgbench: %w\n%s", err, out)
	}
	m := tps.FindSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("pgbench printed no result:\n%s", out)
	}
	return strconv.ParseFloat(string(m[1]), 64)
}

// open connects as a client would; an address is all that differs.
func open(ctx context.Context, addr string) (*pgconn.PgConn, error) {
	return pgconn.Connect(ctx, "postgres://app@"+addr+"/app?sslmode=disable")
}

// firstRow is the time from sending a query to reading its first row.
func firstRow(ctx context.Context, addr string) (float64, error) {
	c, err := open(ctx, addr)
	if err != nil {
		return 0, err
	}
	defer c.Close(ctx)
	const n = 2000
	began := time.Now()
	for range n {
		r := c.Exec(ctx, "SELECT 1")
		if !r.NextResult() || !r.ResultReader().NextRow() {
			return 0, errors.Join(errors.New("no row"), r.Close())
		}
		if err := r.Close(); err != nil {
			return 0, err
		}
	}
	return time.Since(began).Seconds() * 1000 / n, nil
}

// millionRows reads a large result and checks that it is whole.
func millionRows(ctx context.Context, addr string) (float64, error) {
	c, err := open(ctx, addr)
	if err != nil {
		return 0, err
	}
	defer c.Close(ctx)
	began := time.Now()
	r := c.Exec(ctx, "SELECT repeat('x', 100) FROM generate_series(1, 1000000)")
	rows := 0
	for r.NextResult() {
		for rr := r.ResultReader(); rr.NextRow(); rows++ {
			if len(rr.Values()[0]) != 100 {
				return 0, errors.New("a row is not whole")
			}
		}
	}
	if err := r.Close(); err != nil {
		return 0, err
	}
	if rows != 1_000_000 {
		return 0, fmt.Errorf("%d rows", rows)
	}
	return time.Since(began).Seconds(), nil
}

// connect is the time from dialling to ReadyForQuery.
func connect(ctx context.Context, addr string) (float64, error) {
	const n = 50
	var total time.Duration
	for range n {
		began := time.Now()
		c, err := open(ctx, addr)
		if err != nil {
			return 0, err
		}
		total += time.Since(began)
		c.Close(ctx)
	}
	return total.Seconds() * 1000 / n, nil
}

// ticks is how many units of /proc/PID/stat a second has (USER_HZ).
const ticks = 100

// processor prints how much processor time each way spends on a statement.
func processor(ctx context.Context, w io.Writer, pg *upstreamtest.Server, targets []target) error {
	const clients = 8
	for _, t := range targets {
		if t.proc == nil {
			continue
		}
		before, err := processorTime(t.proc.Pid)
		if err != nil {
			return err
		}
		rate, err := pgbench(ctx, pg, t.addr, clients)
		if err != nil {
			return err
		}
		after, err := processorTime(t.proc.Pid)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "%s: %.0f us of processor time for a statement, %d clients\n", t.name, (after-before).Seconds()*1e6/(rate*float64(*seconds)), clients)
	}
	return nil
}

// processorTime is what a process has used, user and system together.
func processorTime(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name in parentheses may hold anything. utime and stime are the fields
	// 14 and 15: see proc_pid_stat(5).
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 13 {
		return 0, errors.New("no processor time")
	}
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * time.Second / ticks, errors.Join(err1, err2)
}

// memory prints what an idle session costs in resident memory.
func memory(ctx context.Context, w io.Writer, pg *upstreamtest.Server, targets []target) error {
	for _, t := range targets {
		if t.proc == nil {
			continue
		}
		before, err := resident(t.proc.Pid)
		if err != nil {
			return err
		}
		after, err := withIdle(ctx, t, *idle)
		if err != nil {
			return fmt.Errorf("idle sessions of %s: %w", t.name, err)
		}
		fmt.Fprintf(w, "%s: %.1f KiB resident for each of %d idle sessions (%.1f MiB before, %.1f MiB with them)\n", t.name,
			float64(after-before)/1024/float64(*idle), *idle, float64(before)/(1<<20), float64(after)/(1<<20))
		if err := awaitQuiet(ctx, pg); err != nil {
			return err
		}
	}
	return nil
}

// awaitQuiet waits until the server has let go of the sessions that were closed:
// what is measured next would wait for it otherwise.
func awaitQuiet(ctx context.Context, pg *upstreamtest.Server) error {
	for {
		rows, err := pg.Query(ctx, "postgres", "app", "SELECT count(*) < 10 FROM pg_stat_activity")
		if err != nil {
			return err
		}
		if rows[0][0] == "t" {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// withIdle opens sessions, runs a statement in each, lets them rest, and
// returns the resident memory meanwhile.
func withIdle(ctx context.Context, t target, n int) (int64, error) {
	var conns []*pgconn.PgConn
	defer func() {
		for _, c := range conns {
			c.Close(ctx)
		}
	}()
	for range n {
		c, err := open(ctx, t.addr)
		if err != nil {
			return 0, err
		}
		conns = append(conns, c)
		if _, err := c.Exec(ctx, "SELECT 1").ReadAll(); err != nil {
			return 0, err
		}
	}
	time.Sleep(3 * time.Second)
	return resident(t.proc.Pid)
}

// resident is a process's resident memory in bytes.
func resident(pid int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.New("no VmRSS")
}

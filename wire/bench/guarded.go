package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"pgproxy/upstream/upstreamtest"
)

// farAway is how much longer a round trip to a server takes that is far away.
const farAway = 5 * time.Millisecond

// guarded measures what max_affected_rows costs a change of one row, here and
// where the server is far away.
func guarded(ctx context.Context, w io.Writer, pg *upstreamtest.Server, dir string, near []target) error {
	fmt.Fprintln(w, "\nA change of one row, guarded by max_affected_rows:")
	one := measurement{"UPDATE, ms", "%.2f", oneUpdate}
	if err := measure(ctx, w, []measurement{one}, near[:min(2, len(near))]); err != nil {
		return err
	}
	far := &field{pg: pg, dir: dir}
	defer far.stop()
	if err := far.start(ctx, "direct, far", far.relay(farAway)); err != nil {
		return err
	}
	if len(far.targets) == 0 {
		return nil // -only
	}
	_, port, _ := strings.Cut(far.targets[0].addr, ":")
	dsn := strings.Replace(pg.DSN("app", "app"), fmt.Sprint(pg.Port), port, 1)
	if err := far.start(ctx, "pgproxy, far", far.proxy("interval", filepath.Join(dir, "far.jsonl"), dsn)); err != nil {
		return err
	}
	one.name = fmt.Sprintf("UPDATE, ms, with %v to the server", farAway)
	return measure(ctx, w, []measurement{one}, far.targets)
}

// oneUpdate is the time that a change of one row takes, in milliseconds.
func oneUpdate(ctx context.Context, addr string) (float64, error) {
	c, err := open(ctx, addr)
	if err != nil {
		return 0, err
	}
	defer c.Close(ctx)
	const n = 300
	began := time.Now()
	for range n {
		if _, err := c.Exec(ctx, "UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = 7").ReadAll(); err != nil {
			return 0, err
		}
	}
	return time.Since(began).Seconds() * 1000 / n, nil
}

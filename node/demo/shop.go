package main

import (
	"context"
	_ "embed"
	"fmt"
	"time"

	"pgproxy/upstream/upstreamtest"

	"github.com/jackc/pgx/v5/pgconn"
)

// database is the shop's.
const database = "shop"

//go:embed shop.sql
var shopSQL string

// loadShop makes the shop's database. Its owner is who pgproxy logs in as.
func loadShop(ctx context.Context, pg *upstreamtest.Server) error {
	if _, err := pg.Query(ctx, "postgres", "postgres", "CREATE DATABASE "+database+" OWNER app"); err != nil {
		return fmt.Errorf("the shop: %w", err)
	}
	if _, err := pg.Query(ctx, "app", database, shopSQL); err != nil {
		return fmt.Errorf("the shop: %w", err)
	}
	if _, err := pg.Query(ctx, "app", database, "ANALYZE"); err != nil {
		return fmt.Errorf("the shop: %w", err)
	}
	return nil
}

// jobs are two programs of the shop's: the nightly import holds locks on a few
// events, and has forgotten about them; the worker waits for one of those.
type jobs struct {
	importer, worker *pgconn.PgConn
	waited           chan struct{} // closed when the worker waits no more
}

func startJobs(ctx context.Context, pg *upstreamtest.Server) (*jobs, error) {
	j := &jobs{waited: make(chan struct{})}
	var err error
	if j.importer, err = pg.Connect(ctx, "app", database, "nightly-import"); err != nil {
		return nil, fmt.Errorf("the import: %w", err)
	}
	if err := j.importer.Exec(ctx, "BEGIN; UPDATE events SET handled = true WHERE id <= 25").Close(); err != nil {
		j.importer.Close(ctx)
		return nil, fmt.Errorf("the import: %w", err)
	}
	if j.worker, err = pg.Connect(ctx, "app", database, "event-worker"); err != nil {
		j.importer.Close(ctx)
		return nil, fmt.Errorf("the worker: %w", err)
	}
	go func() {
		defer close(j.waited)
		// It waits until somebody ends the import, or the demo.
		j.worker.Exec(context.WithoutCancel(ctx), "UPDATE events SET handled = true WHERE id = 13").Close()
	}()
	return j, nil
}

// stop ends both. The import's locks go first, so that the worker waits no more.
func (j *jobs) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	j.importer.Close(ctx)
	<-j.waited
	j.worker.Close(ctx)
}

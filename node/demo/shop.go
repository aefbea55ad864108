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

// importer is the shop's nightly import, which holds a lock on a few events
// and has forgotten about them.
type importer struct{ conn *pgconn.PgConn }

func startImporter(ctx context.Context, pg *upstreamtest.Server) (*importer, error) {
	config, err := pgconn.ParseConfig(pg.SocketDSN("app", database))
	if err != nil {
		return nil, err
	}
	config.RuntimeParams["application_name"] = "nightly-import"
	conn, err := pgconn.ConnectConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("the import: %w", err)
	}
	i := &importer{conn: conn}
	if err := conn.Exec(ctx, "BEGIN; UPDATE events SET handled = true WHERE id <= 25").Close(); err != nil {
		i.stop()
		return nil, fmt.Errorf("the import: %w", err)
	}
	return i, nil
}

func (i *importer) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	i.conn.Close(ctx)
}

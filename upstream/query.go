package upstream

import (
	"cmp"
	"context"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// Query runs one statement of the proxy's own and returns its rows as text, ""
// for NULL. It is for a connection that serves no session: nobody else may use
// Net meanwhile. What the server refuses is a *pgconn.PgError; after any other
// error, and after a FATAL, the connection is to be closed.
func (c *Conn) Query(ctx context.Context, sql string) ([][]string, error) {
	stop := context.AfterFunc(ctx, func() { c.Net.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	fe := pgproto3.NewFrontend(c.Net, c.Net)
	fe.Send(&pgproto3.Query{String: sql})
	if err := fe.Flush(); err != nil {
		return nil, err
	}
	var rows [][]string
	var failed error
	for {
		msg, err := fe.Receive()
		if err != nil {
			return nil, cmp.Or(failed, err) // a FATAL is the last word
		}
		switch msg := msg.(type) {
		case *pgproto3.DataRow:
			rows = append(rows, texts(msg.Values))
		case *pgproto3.ErrorResponse:
			failed = pgconn.ErrorResponseToPgError(msg)
		case *pgproto3.ReadyForQuery:
			return rows, failed
		}
	}
}

func texts(values [][]byte) []string {
	row := make([]string, len(values))
	for i, v := range values {
		row[i] = string(v)
	}
	return row
}

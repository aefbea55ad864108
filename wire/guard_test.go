package wire

import (
	"context"
	"net"
	"reflect"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"pgproxy/upstream"
	"pgproxy/upstream/upstreamtest"
)

// writesTo counts what is written to upstream connections: each write is a round
// trip, since pgproxy reads the answers before it writes again.
func writesTo(n *atomic.Int64) func(*Server) {
	return func(srv *Server) {
		dial := srv.Dial
		srv.Dial = func(ctx context.Context, r upstream.Request) (*upstream.Conn, error) {
			up, err := dial(ctx, r)
			if err == nil {
				up.Net = &countedWrites{Conn: up.Net, n: n}
			}
			return up, err
		}
	}
}

type countedWrites struct {
	net.Conn
	n *atomic.Int64
}

func (c *countedWrites) Write(b []byte) (int, error) {
	c.n.Add(1)
	return c.Conn.Write(b)
}

// A guarded statement needs two round trips by itself, and in a transaction of
// the client's no more than an unguarded one.
func TestGuardRoundTrips(t *testing.T) {
	freshCaps(t)
	var writes atomic.Int64
	p := startProxy(t, writesTo(&writes))
	c := p.login(t)
	c.query("UPDATE caps.t SET n = 0 WHERE id = 1") // learns the settings
	for _, step := range []struct {
		sql, answer string
		trips       int64
	}{
		{"UPDATE caps.t SET n = 1 WHERE id = 1", "C(UPDATE 1) Z(I)", 2},
		{"INSERT INTO caps.t (id, n) VALUES (7001, 1); DELETE FROM caps.t WHERE id = 7001", "C(INSERT 0 1) C(DELETE 1) Z(I)", 3},
		{"BEGIN", "C(BEGIN) Z(T)", 1},
		{"UPDATE caps.t SET n = 2 WHERE id = 1", "C(UPDATE 1) Z(T)", 1},
		{"UPDATE caps.t SET n = 3 WHERE id = 1", "C(UPDATE 1) Z(T)", 1},
		{"SELECT n FROM caps.t WHERE id = 1", "D(3) C(SELECT 1) Z(T)", 1},
		{"UPDATE caps.t SET n = 4 WHERE id = 1; UPDATE caps.t SET n = 5 WHERE id = 1", "C(UPDATE 1) C(UPDATE 1) Z(T)", 2},
		{"SAVEPOINT s", "C(SAVEPOINT) Z(T)", 1},
		{"UPDATE caps.t SET n = 6 WHERE id = 1", "C(UPDATE 1) Z(T)", 1},
		{"ROLLBACK TO s", "C(ROLLBACK) Z(T)", 1},
		{"UPDATE caps.t SET n = 7 WHERE id = 2", "C(UPDATE 1) Z(T)", 1},
		{"RELEASE s", "C(RELEASE) Z(T)", 1},
		{"COMMIT", "C(COMMIT) Z(I)", 1},
	} {
		before := writes.Load()
		c.want(step.sql, step.answer)
		if n := writes.Load() - before; n != step.trips {
			t.Errorf("%s: %d round trips, want %d", step.sql, n, step.trips)
		}
	}
	holds(t, "SELECT id, n FROM caps.t WHERE n <> 0 ORDER BY id", "1,5 2,7")
}

// When what opens the guard fails, the statement behind it does not run, and the
// client is told why.
func TestUnguardedIsNotRun(t *testing.T) {
	pg := upstreamtest.Start(t)
	pg.ExecAs(t, "postgres", "app", `CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (1, 0); GRANT ALL ON t TO app;
		REVOKE EXECUTE ON FUNCTION pg_stat_get_xact_tuples_inserted(oid) FROM public`)
	p := startProxyTo(t, pg.DSN("app", "app"))
	c := p.login(t)
	c.wantPart("UPDATE t SET n = 1 WHERE id = 1", "E(42501 permission denied for function pg_stat_get_xact_tuples_inserted", "Z(I)")
	c.want("SELECT n FROM t", "D(0) C(SELECT 1) Z(I)")
	c.query("BEGIN")
	c.wantPart("UPDATE t SET n = 1 WHERE id = 1", "E(42501 permission denied for function pg_stat_get_xact_tuples_inserted", "Z(E)")
	c.want("ROLLBACK", "C(ROLLBACK) Z(I)")
	c.want("SELECT n FROM t", "D(0) C(SELECT 1) Z(I)")
	pg.ExecAs(t, "postgres", "app", "GRANT EXECUTE ON FUNCTION pg_stat_get_xact_tuples_inserted(oid) TO public")
	c.want("UPDATE t SET n = 1 WHERE id = 1", "C(UPDATE 1) Z(I)")
}

// The guard rests on this: behind a failed message of the extended protocol the
// server skips Query messages until a Sync, and reports the failure at once.
func TestServerSkipsQueriesBehindAFailure(t *testing.T) {
	upstreamtest.AllVersions(t, func(t *testing.T, pg *upstreamtest.Server) {
		conn, err := pgconn.Connect(t.Context(), pg.DSN("app", "app"))
		if err != nil {
			t.Fatal(err)
		}
		h, err := conn.Hijack()
		if err != nil {
			t.Fatal(err)
		}
		defer h.Conn.Close()
		until := func(last pgproto3.BackendMessage) pgproto3.BackendMessage {
			for {
				m, err := h.Frontend.Receive()
				if err != nil {
					t.Fatal(err)
				}
				if reflect.TypeOf(m) == reflect.TypeOf(last) {
					return m
				}
			}
		}
		for first, code := range map[string]string{
			"SAVEPOINT nobody": "25P01", // there is no transaction
			"SELECT 1 / 0":     "22012",
			"BEGIN; BEGIN":     "42601",
		} {
			h.Frontend.Send(&pgproto3.Parse{Query: first})
			h.Frontend.Send(&pgproto3.Bind{})
			h.Frontend.Send(&pgproto3.Execute{})
			h.Frontend.Send(&pgproto3.Query{String: "CREATE TABLE behind ()"})
			if err := h.Frontend.Flush(); err != nil {
				t.Fatal(err)
			}
			if e := until(&pgproto3.ErrorResponse{}).(*pgproto3.ErrorResponse); e.Code != code {
				t.Errorf("%s: %s %s, want %s", first, e.Code, e.Message, code)
			}
			h.Frontend.Send(&pgproto3.Sync{})
			if err := h.Frontend.Flush(); err != nil {
				t.Fatal(err)
			}
			until(&pgproto3.ReadyForQuery{})
		}
		if rows := pg.Exec(t, "SELECT 1 FROM pg_class WHERE relname = 'behind'"); len(rows) != 0 {
			t.Error("the Query message was not skipped")
		}
	})
}

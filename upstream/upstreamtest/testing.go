package upstreamtest

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// Start runs a server for one test.
func Start(tb testing.TB, opts ...Option) *Server {
	tb.Helper()
	s, err := Run(tb.Context(), opts...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Stop(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

// shared is the server of the test process, which [Main] stops.
var shared struct {
	mu     sync.Mutex
	inMain bool
	server *Server
}

// Shared returns one server for all tests of a package, without TLS, started
// when first asked for. The package's TestMain must be
//
//	func TestMain(m *testing.M) { upstreamtest.Main(m) }
func Shared(tb testing.TB) *Server {
	tb.Helper()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if !shared.inMain {
		tb.Fatal("upstreamtest.Shared needs upstreamtest.Main in TestMain")
	}
	if shared.server == nil {
		s, err := Run(context.Background())
		if err != nil {
			tb.Fatal(err)
		}
		shared.server = s
	}
	return shared.server
}

// Main runs a package's tests, stops the shared server, and exits.
func Main(m *testing.M) {
	shared.inMain = true
	code := m.Run()
	if shared.server != nil {
		if err := shared.server.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	os.Exit(code)
}

// Versions runs a test against a server of each major version from 15 to 18. A
// version that this machine does not have is skipped by name.
func Versions(t *testing.T, test func(t *testing.T, s *Server), opts ...Option) {
	versionsFrom(t, 15, test, opts)
}

// AllVersions is Versions from 14 on, for tables that must know what every
// server has.
func AllVersions(t *testing.T, test func(t *testing.T, s *Server), opts ...Option) {
	versionsFrom(t, 14, test, opts)
}

func versionsFrom(t *testing.T, first int, test func(t *testing.T, s *Server), opts []Option) {
	for major := first; major <= 18; major++ {
		t.Run(fmt.Sprintf("PostgreSQL %d", major), func(t *testing.T) {
			if _, err := pick(major); err != nil {
				t.Skip(err)
			}
			test(t, Start(t, append(opts, Major(major))...))
		})
	}
}

// Psqls runs a test with the psql of each major version from 15 to 18. One that
// this machine does not have is skipped by name. Run it with [Install.Env].
func Psqls(t *testing.T, test func(t *testing.T, psql string)) {
	for major := 15; major <= 18; major++ {
		t.Run(fmt.Sprintf("psql %d", major), func(t *testing.T) {
			path, ok := psqls()[major]
			if !ok {
				t.Skipf("no psql %d on this machine; .ci/clients gets 17 and 18", major)
			}
			test(t, path)
		})
	}
}

// Exec runs SQL as the superuser in the database "app" and returns the rows of
// the last statement that has any, NULL as "".
func (s *Server) Exec(tb testing.TB, sql string) [][]string {
	tb.Helper()
	return s.ExecAs(tb, "postgres", "app", sql)
}

// ExecAs is Exec as another role, in another database.
func (s *Server) ExecAs(tb testing.TB, role, database, sql string) [][]string {
	tb.Helper()
	rows, err := s.Query(context.Background(), role, database, sql)
	if err != nil {
		tb.Fatalf("%s: %v", sql, err)
	}
	return rows
}

// Program is a connection to the database "app" for one test, of a program of that
// name. See Connect.
func (s *Server) Program(tb testing.TB, role, name string) *pgconn.PgConn {
	tb.Helper()
	conn, err := s.Connect(tb.Context(), role, "app", name)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// Connect opens a connection over the Unix socket. name is its application_name;
// empty = none. The caller closes it.
func (s *Server) Connect(ctx context.Context, role, database, name string) (*pgconn.PgConn, error) {
	config, err := pgconn.ParseConfig(s.SocketDSN(role, database))
	if err != nil {
		return nil, err
	}
	if name != "" {
		config.RuntimeParams["application_name"] = name
	}
	return pgconn.ConnectConfig(ctx, config)
}

// Query is ExecAs for where there is no test.
func (s *Server) Query(ctx context.Context, role, database, sql string) ([][]string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	conn, err := s.Connect(ctx, role, database, "")
	if err != nil {
		return nil, err
	}
	defer conn.Close(ctx)
	results, err := conn.Exec(ctx, sql).ReadAll()
	if err != nil {
		return nil, err
	}
	var rows [][]string
	for _, r := range results {
		if len(r.FieldDescriptions) > 0 {
			rows = texts(r.Rows)
		}
	}
	return rows, nil
}

func texts(rows [][][]byte) [][]string {
	out := make([][]string, len(rows))
	for i, row := range rows {
		for _, value := range row {
			out[i] = append(out[i], string(value))
		}
	}
	return out
}

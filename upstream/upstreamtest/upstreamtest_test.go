package upstreamtest_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pgproxy/upstream/upstreamtest"
)

func TestMain(m *testing.M) {
	if os.Getenv("PGPROXY_TEST_CHILD") != "" {
		runAndWait()
		return
	}
	upstreamtest.Main(m)
}

// runAndWait starts a server, says where, and waits to be killed.
func runAndWait() {
	s, err := upstreamtest.Run(context.Background())
	if err != nil {
		panic(err)
	}
	os.Stdout.WriteString(s.DSN("app", "app") + "\n")
	io.Copy(io.Discard, os.Stdin)
}

func TestVersions(t *testing.T) {
	upstreamtest.Versions(t, func(t *testing.T, s *upstreamtest.Server) {
		rows := s.Exec(t, "SELECT 1; SELECT current_database(), NULL, current_setting('server_version_num')::int / 10000 = "+s.Version[:2])
		if want := [][]string{{"app", "", "t"}}; !reflect.DeepEqual(rows, want) {
			t.Errorf("got %v, want %v", rows, want)
		}
		if rows := s.ExecAs(t, "app", "app", "CREATE TABLE t (i int); INSERT INTO t VALUES (7) RETURNING i"); rows[0][0] != "7" {
			t.Errorf("got %v", rows)
		}
	})
}

func TestPsqls(t *testing.T) {
	s := upstreamtest.Shared(t)
	upstreamtest.Psqls(t, func(t *testing.T, psql string) {
		cmd := exec.Command(psql, "-X", "-At", s.DSN("app", "app"), "-c", "SELECT current_user")
		cmd.Env = s.Env()
		if out, err := cmd.CombinedOutput(); err != nil || string(out) != "app\n" {
			t.Errorf("%v: %s", err, out)
		}
	})
}

// The server goes with the process that started it, even when that is killed.
func TestServerDiesWithItsProcess(t *testing.T) {
	dir, err := os.MkdirTemp("", "pgproxy-child-") // what the child cannot remove
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "PGPROXY_TEST_CHILD=1", "TMPDIR="+dir)
	stdin, err := cmd.StdinPipe() // kept open: the child waits
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	dsn, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	// Logged in, since a server that shuts down waits for those who are not.
	conn, err := pgconn.Connect(ctx, strings.TrimSpace(dsn))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	if conn.WaitForNotification(ctx); ctx.Err() != nil {
		t.Error("the server lives on")
	}
}

func TestStopRemovesEverything(t *testing.T) {
	s, err := upstreamtest.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.AwaitLog(t.Context(), "ready to accept connections"); err != nil {
		t.Error(err)
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(s.SocketDir); !os.IsNotExist(err) {
		t.Errorf("its directory is still there: %v", err)
	}
	if _, err := net.Dial("tcp", s.Addr()); err == nil {
		t.Error("it still listens")
	}
}

package upstreamtest

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

// AllowReplication lets a standby of the server connect: see StartStandby.
func AllowReplication() Option { return HBA("local replication postgres trust") }

// StartStandby runs a hot standby of a server for one test. It streams through a
// slot named "standby". The test is skipped where the server's version has no
// pg_basebackup.
func StartStandby(tb testing.TB, primary *Server) *Server {
	tb.Helper()
	if _, err := os.Stat(filepath.Join(primary.Bin, "pg_basebackup")); err != nil {
		tb.Skip("no pg_basebackup")
	}
	dir, err := os.MkdirTemp("", "pgproxy-standby-")
	if err != nil {
		tb.Fatal(err)
	}
	s := &Server{Install: primary.Install, Host: "127.0.0.1", SocketDir: dir, dir: dir}
	if err := s.follow(tb, primary); err != nil {
		os.RemoveAll(dir)
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Stop(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

// follow copies the primary, and starts the copy as its standby.
func (s *Server) follow(tb testing.TB, primary *Server) error {
	if err := chown(s.dir); err != nil {
		return err
	}
	cred, err := serverUser()
	if err != nil {
		return err
	}
	data := filepath.Join(s.dir, "data")
	if err := s.as(cred, "", "pg_basebackup", "-h", primary.SocketDir, "-p", strconv.Itoa(primary.Port), "-U", "postgres",
		"-D", data, "-R", "-C", "-S", "standby", "-X", "stream", "--checkpoint=fast", "--no-sync"); err != nil {
		return err
	}
	conf := confLines(map[string]string{"unix_socket_directories": s.dir})
	if err := appendFile(filepath.Join(data, "postgresql.conf"), conf); err != nil {
		return err
	}
	return s.launch(tb.Context())
}

package upstreamtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Server is a running PostgreSQL with two roles, the superuser "postgres" and
// "app", which owns the database "app". Both have [Password]; over the Unix
// socket no password is asked. All its methods are safe for concurrent use.
type Server struct {
	Install
	// Host and Port are where it listens, Host being 127.0.0.1.
	Host string
	Port int
	// SocketDir is the directory of its Unix socket.
	SocketDir string
	// CAFile is the authority of its certificate for "localhost" and
	// 127.0.0.1; empty without [TLS].
	CAFile string

	dir     string
	log     logBuffer
	process *os.Process
	exited  chan struct{} // closed when the process has ended
	exit    error         // how; valid after exited
	stop    sync.Once
}

// Option changes how a server is started.
type Option func(*options)

type options struct {
	major    int
	tls      bool
	settings map[string]string
	hba      []string
}

// Major asks for a major version. Without it, the first of [Installs] runs.
func Major(v int) Option { return func(o *options) { o.major = v } }

// TLS gives the server a certificate of an authority made for it.
func TLS() Option { return func(o *options) { o.tls = true } }

// Set sets a parameter of postgresql.conf.
func Set(name, value string) Option { return func(o *options) { o.settings[name] = value } }

// HBA puts lines before those of pg_hba.conf.
func HBA(lines ...string) Option { return func(o *options) { o.hba = append(o.hba, lines...) } }

// Run starts a server and returns when it accepts connections, or when ctx ends.
// Call Stop to end it; a process that dies takes it along.
func Run(ctx context.Context, opts ...Option) (*Server, error) {
	o := options{settings: map[string]string{
		// Also how long a stopping server waits for a peer that has just
		// connected and says nothing.
		"authentication_timeout":     "15s",
		"fsync":                      "off",
		"listen_addresses":           "127.0.0.1",
		"max_connections":            "300",
		"log_connections":            "on",
		"log_line_prefix":            "%m [%p] user=%u db=%d app=%a ",
		"shared_buffers":             "64MB",
		"dynamic_shared_memory_type": "mmap",
	}}
	for _, opt := range opts {
		opt(&o)
	}
	in, err := pick(o.major)
	if err != nil {
		return nil, err
	}
	s := &Server{Install: in, Host: "127.0.0.1"}
	if err := s.prepare(&o); err != nil {
		os.RemoveAll(s.dir)
		return nil, err
	}
	if err := s.launch(ctx); err != nil {
		os.RemoveAll(s.dir)
		return nil, err
	}
	return s, nil
}

// prepare lays out the server's directory.
func (s *Server) prepare(o *options) error {
	var err error
	if s.dir, err = os.MkdirTemp("", "pgproxy-pg-"); err != nil {
		return err
	}
	s.SocketDir = s.dir
	if err := chown(s.dir); err != nil {
		return err
	}
	data, err := s.newCluster(s.dir)
	if err != nil {
		return err
	}
	if o.tls {
		if err := s.makeCertificates(); err != nil {
			return err
		}
		o.settings["ssl"] = "on"
		o.settings["ssl_cert_file"] = filepath.Join(s.dir, "server.crt")
		o.settings["ssl_key_file"] = filepath.Join(s.dir, "server.key")
	}
	o.settings["unix_socket_directories"] = s.dir
	return errors.Join(
		appendFile(filepath.Join(data, "postgresql.conf"), confLines(o.settings)),
		os.WriteFile(filepath.Join(data, "pg_hba.conf"), hbaLines(o.hba), 0o600),
	)
}

func confLines(settings map[string]string) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(&b, "%s = '%s'\n", name, strings.ReplaceAll(settings[name], "'", "''"))
	}
	return b.String()
}

func hbaLines(first []string) []byte {
	lines := append(slices.Clone(first),
		"local all all trust",
		"host all all 127.0.0.1/32 scram-sha-256",
		"")
	return []byte(strings.Join(lines, "\n"))
}

func appendFile(path, text string) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// launch starts the server on a free port. Between finding a port free and
// listening on it another process may take it; then it tries the next.
func (s *Server) launch(ctx context.Context) error {
	for range 10 {
		port, err := freePort()
		if err != nil {
			return err
		}
		s.Port = port
		if err := s.start(); err != nil {
			return err
		}
		if err = s.awaitReady(ctx); err == nil {
			return nil
		}
		s.signal(syscall.SIGQUIT)
		<-s.exited
		if !strings.Contains(s.Log(), "could not bind") {
			return fmt.Errorf("%w; its log:\n%s", err, s.Log())
		}
		s.log.reset()
	}
	return errors.New("no free port for PostgreSQL")
}

// freePort finds a port below the range that outgoing connections take theirs
// from.
func freePort() (int, error) {
	for range 100 {
		port := 20000 + rand.IntN(12000)
		ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			return port, ln.Close()
		}
	}
	return 0, errors.New("no free port on 127.0.0.1")
}

// start runs the server process and a goroutine that waits for it.
func (s *Server) start() error {
	cred, err := serverUser()
	if err != nil {
		return err
	}
	cmd := s.command("postgres", "-D", filepath.Join(s.dir, "data"), "-p", strconv.Itoa(s.Port))
	cmd.Dir = s.dir
	cmd.Stderr = &s.log
	cmd.WaitDelay = 10 * time.Second // for backends that outlive the postmaster
	// Its own process group: a Ctrl-C in the terminal is for the demo, which
	// then stops the server in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred, Pdeathsig: syscall.SIGQUIT, Setpgid: true}
	s.exited = make(chan struct{})
	started := make(chan error)
	go s.wait(cmd, started)
	return <-started
}

// wait starts cmd, reports it, and waits for its end. Its thread lives as long
// as the server, since Pdeathsig tells of the thread that started the process.
func (s *Server) wait(cmd *exec.Cmd, started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := cmd.Start()
	if err == nil {
		s.process = cmd.Process
	}
	started <- err
	if err != nil {
		return
	}
	s.exit = cmd.Wait()
	close(s.exited)
}

// awaitReady waits for the server's own word.
func (s *Server) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	ready := make(chan error, 1)
	go func() { ready <- s.log.await(ctx, s.readyWords()) }()
	select {
	case err := <-ready:
		return err
	case <-s.exited:
		cancel()
		<-ready
		return fmt.Errorf("PostgreSQL ended: %w", s.exit)
	}
}

// readyWords are what the server logs when it lets clients in.
func (s *Server) readyWords() string {
	if _, err := os.Stat(filepath.Join(s.dir, "data", "standby.signal")); err == nil {
		return "database system is ready to accept read-only connections"
	}
	return "database system is ready to accept connections"
}

// Stop ends the server at once, as a crash of no consequence: its data is
// removed. Further calls do nothing.
func (s *Server) Stop() error {
	s.stop.Do(func() {
		s.signal(syscall.SIGQUIT)
		<-s.exited
	})
	return os.RemoveAll(s.dir)
}

// signal is for a process that may have ended.
func (s *Server) signal(sig os.Signal) {
	s.process.Signal(sig)
}

// Addr is "127.0.0.1:port".
func (s *Server) Addr() string { return net.JoinHostPort(s.Host, strconv.Itoa(s.Port)) }

// DSN is a connection URL for a role and database, over TCP and, with [TLS],
// sslmode=verify-full.
func (s *Server) DSN(role, database string) string {
	u := url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword(role, Password),
		Host:     s.Addr(),
		Path:     "/" + database,
		RawQuery: "sslmode=disable",
	}
	if s.CAFile != "" {
		u.RawQuery = "sslmode=verify-full&sslrootcert=" + url.QueryEscape(s.CAFile)
	}
	return u.String()
}

// SocketDSN is a connection string for a role and database over the Unix
// socket, where no password is asked.
func (s *Server) SocketDSN(role, database string) string {
	return fmt.Sprintf("host=%s port=%d user=%s dbname=%s", s.SocketDir, s.Port, role, database)
}

// Log returns what the server has logged so far.
func (s *Server) Log() string { return s.log.String() }

// AwaitLog waits until the server's log holds text.
func (s *Server) AwaitLog(ctx context.Context, text string) error { return s.log.await(ctx, text) }

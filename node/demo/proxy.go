package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// proxyName is pgproxy's name in the tailnet.
const proxyName = "pgproxy-prod"

// needCompiler reports a C compiler that is missing: pgproxy's SQL parser is in C.
func needCompiler(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, "go", "env", "CC").Output()
	if err != nil {
		return fmt.Errorf("go env CC: %w", err)
	}
	cc := "gcc"
	if words := strings.Fields(string(out)); len(words) > 0 {
		cc = words[0]
	}
	if _, err := exec.LookPath(cc); err != nil {
		return fmt.Errorf("there is no C compiler (%s), which pgproxy's SQL parser is built with; on Debian: apt-get install gcc libc6-dev", cc)
	}
	return nil
}

// compile builds the pgproxy binary.
func compile(ctx context.Context, binary string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-o", binary, "pgproxy")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("building pgproxy: %w", err)
	}
	return nil
}

// proxy is the running pgproxy process.
type proxy struct {
	binary  string
	records string // the audit log's path
	log     string // the path of what it says

	process *os.Process
	exited  chan struct{} // closed when the process has ended
	exit    string        // how; valid after exited
}

// startProxy starts pgproxy and returns when the first person can reach it.
func startProxy(ctx context.Context, binary string, s *stage) (*proxy, error) {
	p := &proxy{
		binary:  binary,
		records: filepath.Join(s.dir, "audit.jsonl"),
		log:     filepath.Join(s.dir, "pgproxy.log"),
		exited:  make(chan struct{}),
	}
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command(binary,
		"-hostname", proxyName,
		"-advertise-tags", "tag:pgproxy",
		"-state-dir", filepath.Join(s.dir, "tailscale"),
		"-control-url", s.tailnet.ControlURL(),
		"-capability", capability,
		"-audit-log", p.records,
		"-drain-timeout", "1s",
	)
	cmd.Env = append(cleanEnv(),
		"TS_AUTHKEY="+s.tailnet.AuthKey(),
		"TS_NO_LOGS_NO_SUPPORT=true",
		"TS_DISABLE_PORTMAPPER=true",
		"UPSTREAM_DSN="+s.postgres.DSN("app", database),
	)
	cmd.Stdout, cmd.Stderr = out, out
	// Its own process group: a Ctrl-C in the terminal is psql's or the
	// demo's. It goes down with a demo that is killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	started := make(chan error)
	go p.wait(cmd, started)
	if err := <-started; err != nil {
		return nil, err
	}
	if err := p.awaitReachable(ctx, s); err != nil {
		p.stop()
		return nil, err
	}
	return p, nil
}

// wait starts cmd, reports it, and waits for its end. Its thread lives as long
// as the process: Pdeathsig tells of the thread that started it.
func (p *proxy) wait(cmd *exec.Cmd, started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(p.exited)
	err := cmd.Start()
	if err == nil {
		p.process = cmd.Process
	}
	started <- err
	if err == nil {
		cmd.Wait() // the state has all that it could say
		p.exit = cmd.ProcessState.String()
	}
}

// awaitReachable returns when a connection through the tailnet is answered.
func (p *proxy) awaitReachable(ctx context.Context, s *stage) error {
	retry := time.NewTicker(100 * time.Millisecond)
	defer retry.Stop()
	for {
		try, cancel := context.WithTimeout(ctx, time.Second)
		c, err := s.doors[0].peer.Dial(try, proxyName+":5432")
		cancel()
		if err == nil {
			return c.Close()
		}
		select {
		case <-retry.C:
		case <-p.exited:
			return p.failure()
		case <-ctx.Done():
			return fmt.Errorf("waiting for pgproxy: %w", ctx.Err())
		}
	}
}

// failure says why the proxy ended, if it did by itself.
func (p *proxy) failure() error {
	select {
	case <-p.exited:
	default:
		return nil
	}
	text, _ := os.ReadFile(p.log) // to say more than how
	return fmt.Errorf("pgproxy ended: %s\n%s", p.exit, text)
}

// stop ends the proxy in order, and otherwise by force.
func (p *proxy) stop() {
	p.process.Signal(syscall.SIGTERM)
	select {
	case <-p.exited:
	case <-time.After(15 * time.Second):
		p.process.Kill()
		<-p.exited
	}
}

// cleanEnv is the environment without what would configure pgproxy, tsnet or
// libpq in another way than the demo does.
func cleanEnv() []string {
	return slices.DeleteFunc(os.Environ(), func(entry string) bool {
		return strings.HasPrefix(entry, "PG") || strings.HasPrefix(entry, "TS_") || strings.HasPrefix(entry, "UPSTREAM_DSN=")
	})
}

package endtoend

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"pgproxy/node/nodetest"
	"pgproxy/upstream/upstreamtest"
	"pgproxy/wire/audit"
)

// proxy is a running pgproxy process.
type proxy struct {
	name  string // in the tailnet; empty with -dev-listen
	addr  string // IP address and port for clients
	audit string // the audit log's path
	log   proxyLog

	cmd    *exec.Cmd
	exited chan struct{} // closed when the process has ended
}

// started counts the proxies, for their names.
var started atomic.Int64

// start starts a proxy that joins the tailnet, and returns when it serves.
func start(t *testing.T, args ...string) *proxy {
	t.Helper()
	return startIn(t, tailnet, args...)
}

// startIn is start in another tailnet.
func startIn(t *testing.T, tn *nodetest.Tailnet, args ...string) *proxy {
	t.Helper()
	return startAs(t, tn, fmt.Sprintf("pgproxy-%d", started.Add(1)), nil, args...)
}

// startAs is startIn under a name, with more in its environment.
func startAs(t *testing.T, tn *nodetest.Tailnet, name string, env []string, args ...string) *proxy {
	t.Helper()
	p := &proxy{name: name}
	p.launch(t, postgres, env, append([]string{
		"-hostname", p.name, "-advertise-tags", "tag:pgproxy", "-control-url", tn.ControlURL(), "-state-dir", t.TempDir(),
	}, args...))
	t.Cleanup(func() { tn.Remove(p.name) })
	// By its address, since names are not for the devices of other tailnets.
	addrs := p.log.await(t, "joined the tailnet")["addresses"].([]any)
	p.addr = addrs[0].(string) + ":5432"
	p.log.await(t, "serving")
	return p
}

// startDev starts a proxy on loopback, whose callers are all dev@localhost on
// the device "here".
func startDev(t *testing.T, server *upstreamtest.Server, args ...string) *proxy {
	t.Helper()
	p := &proxy{}
	p.launch(t, server, nil, append([]string{"-dev-listen", "127.0.0.1:0", "-debug-port", "0", "-dev-node", "here"}, args...))
	p.addr = p.log.await(t, "serving")["address"].(string)
	return p
}

// launch runs the process till the test's end, and then looks at what it has
// left.
func (p *proxy) launch(t *testing.T, server *upstreamtest.Server, env, args []string) {
	t.Helper()
	p.run(t, server, env, args)
	t.Cleanup(func() { p.end(t) })
}

// run starts the process, with env added to its environment. Args may name another audit log than the one in a
// directory of the test's.
func (p *proxy) run(t *testing.T, server *upstreamtest.Server, env, args []string) {
	t.Helper()
	if p.audit = following(args, "-audit-log"); p.audit == "" {
		p.audit = filepath.Join(t.TempDir(), "audit.jsonl")
		args = append(args, "-audit-log", p.audit)
	}
	p.cmd = exec.Command(binary, args...)
	p.cmd.Env = append(cleanEnv(),
		"TS_AUTHKEY="+tailnet.AuthKey(),
		"TS_NO_LOGS_NO_SUPPORT=true",
		"TS_DISABLE_PORTMAPPER=true",
		"UPSTREAM_DSN="+server.DSN("app", "app"),
	)
	p.cmd.Env = append(p.cmd.Env, env...)
	p.cmd.Stdout, p.cmd.Stderr = &p.log, &p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // to see whether it leaves children
	p.cmd.WaitDelay = patience
	p.log.grown = make(chan struct{})
	p.exited = make(chan struct{})
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.cmd.Wait() // the state has all that it could say
		p.log.close()
		close(p.exited)
	}()
}

// following is the argument after a flag.
func following(args []string, flag string) string {
	for i, arg := range args {
		if arg == flag {
			return args[i+1]
		}
	}
	return ""
}

// end kills the process, and looks at what every proxy leaves: a sound audit
// log, and no secret anywhere.
func (p *proxy) end(t *testing.T) {
	p.kill()
	eventually(t, patience, "pgproxy's children have ended", func() bool {
		return errors.Is(syscall.Kill(-p.cmd.Process.Pid, 0), syscall.ESRCH)
	})
	said := p.log.String()
	records, err := os.ReadFile(p.audit)
	if err != nil {
		t.Error(err)
	}
	for _, secret := range []string{upstreamtest.Password, "correct%20horse", tailnet.AuthKey()} {
		if strings.Contains(said, secret) || bytes.Contains(records, []byte(secret)) {
			t.Errorf("%q is in the log or the records", secret)
		}
	}
	if strings.Contains(said, "panic") || strings.Contains(said, "internal error") {
		t.Error("the proxy has panicked")
	}
	if report, err := audit.Verify(p.audit); err != nil || report.Break != nil {
		t.Errorf("the audit log is not sound: %v, %v", report.Break, err)
	}
	if t.Failed() {
		t.Logf("pgproxy's log:\n%s", said)
	}
}

// kill is kill -9. It returns when the process is gone.
func (p *proxy) kill() {
	p.cmd.Process.Kill() // an error means that it has ended
	<-p.exited
}

func (p *proxy) signal(t *testing.T, sig os.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// awaitExit returns how the process has ended.
func (p *proxy) awaitExit(t *testing.T) *os.ProcessState {
	t.Helper()
	select {
	case <-p.exited:
	case <-time.After(patience):
		t.Fatalf("pgproxy has not ended within %v", patience)
	}
	return p.cmd.ProcessState
}

// hangUp is SIGHUP, and waits for the answer.
func (p *proxy) hangUp(t *testing.T, answer string) {
	t.Helper()
	p.signal(t, syscall.SIGHUP)
	p.log.await(t, answer)
}

// records are the audit records that are whole by now.
func (p *proxy) records(t *testing.T) []audit.Record {
	t.Helper()
	return readRecords(t, p.audit)
}

// readRecords reads a log. A line that a kill has torn stays in it, and the
// record behind it tells of its length.
func readRecords(t *testing.T, path string) []audit.Record {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var all []audit.Record
	torn := 0
	for line := range bytes.Lines(data) {
		if !bytes.HasSuffix(line, []byte("\n")) {
			break
		}
		var r audit.Record
		var told struct{ Torn int }
		if json.Unmarshal(line, &r) != nil || json.Unmarshal(line, &told) != nil {
			torn += len(line)
			continue
		}
		if told.Torn != torn && torn > 0 {
			t.Fatalf("%d bytes are no record, and the one behind them tells of %d", torn, told.Torn)
		}
		torn = 0
		all = append(all, r)
	}
	return all
}

// record waits for the first audit record that match accepts.
func (p *proxy) record(t *testing.T, what string, match func(audit.Record) bool) audit.Record {
	t.Helper()
	var found audit.Record
	eventually(t, patience, "audit record of "+what, func() bool {
		for _, r := range p.records(t) {
			if match(r) {
				found = r
				return true
			}
		}
		return false
	})
	return found
}

// proxyLog is what a proxy says, a JSON object on each line.
type proxyLog struct {
	mu    sync.Mutex
	text  bytes.Buffer
	seen  int           // where await goes on
	grown chan struct{} // closed at the next Write
	ended bool
}

func (l *proxyLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Write(b)
	close(l.grown)
	l.grown = make(chan struct{})
	return len(b), nil
}

func (l *proxyLog) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	close(l.grown)
	l.grown = make(chan struct{})
}

func (l *proxyLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// await returns the next line that has this in its message, waiting for it.
// Lines before it are passed over for good.
func (l *proxyLog) await(t *testing.T, msg string) map[string]any {
	t.Helper()
	late := time.After(patience)
	for {
		line, grown := l.next(msg)
		if line != nil {
			return line
		}
		if grown == nil {
			t.Fatalf("pgproxy has ended and never said %q:\n%s", msg, l)
		}
		select {
		case <-grown:
		case <-late:
			t.Fatalf("pgproxy has not said %q within %v", msg, patience)
		}
	}
}

// next looks for the line; without one, grown tells when to look again, and is
// nil where there is nothing to wait for.
func (l *proxyLog) next(msg string) (line map[string]any, grown <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := l.seen
	for text := range bytes.Lines(l.text.Bytes()[l.seen:]) {
		at += len(text)
		if !bytes.HasSuffix(text, []byte("\n")) || !bytes.Contains(text, []byte(msg)) {
			continue
		}
		if json.Unmarshal(text, &line) == nil && strings.Contains(fmt.Sprint(line["msg"]), msg) {
			l.seen = at
			return line, nil
		}
	}
	if l.ended {
		return nil, nil
	}
	return nil, l.grown
}

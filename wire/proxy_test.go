package wire

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgproxy/policy"
	"pgproxy/upstream"
	"pgproxy/upstream/upstreamtest"
	"pgproxy/wire/audit"
	"pgproxy/wire/frame"

	"tailscale.com/tstest"
)

func TestMain(m *testing.M) { upstreamtest.Main(m) }

// The people of the tests, told apart by the loopback address they come from.
var (
	alice = policy.Caller{Login: "alice@example.com", Node: "alice-laptop", NodeID: "n1"}
	bob   = policy.Caller{Login: "bob@example.com", Node: "bob-phone", NodeID: "n2"}
)

// proxy is a Server between a real PostgreSQL and whoever connects to addr.
type proxy struct {
	*Server
	addr    string
	records *records
	log     *logLines
	served  chan error
}

// records keeps audit records, and fails on demand.
type records struct {
	mu    sync.Mutex
	list  []audit.Record
	fail  error
	grown chan struct{}
}

func (r *records) Write(rec *audit.Record) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail != nil {
		return r.fail
	}
	r.list = append(r.list, *rec)
	close(r.grown)
	r.grown = make(chan struct{})
	return nil
}

func (r *records) failWith(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fail = err
}

func (r *records) all() []audit.Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.list)
}

// await returns the first record that match accepts, waiting for it.
func (r *records) await(t *testing.T, what string, match func(audit.Record) bool) audit.Record {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		r.mu.Lock()
		list, grown := slices.Clone(r.list), r.grown
		r.mu.Unlock()
		if i := slices.IndexFunc(list, match); i >= 0 {
			return list[i]
		}
		select {
		case <-grown:
		case <-timeout:
			t.Fatalf("no audit record: %s", what)
		}
	}
}

func (r *records) event(t *testing.T, e audit.Event) audit.Record {
	t.Helper()
	return r.await(t, string(e), func(rec audit.Record) bool { return rec.Event == e })
}

// logLines is the log, for tests that look at it and for those that fail.
type logLines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logLines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// startProxy serves the package's PostgreSQL to alice (127.0.0.1) and bob
// (127.0.0.2), under the default rule. Options change the Server before it
// serves. When the test ends nothing of it may be left running.
func startProxy(t testing.TB, options ...func(*Server)) *proxy {
	t.Helper()
	pg := upstreamtest.Shared(t)
	return startProxyTo(t, pg.DSN("app", "app"), options...)
}

func startProxyTo(t testing.TB, dsn string, options ...func(*Server)) *proxy {
	t.Helper()
	tstest.ResourceCheck(t)
	config, err := upstream.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	judge, err := policy.NewJudge()
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{records: &records{grown: make(chan struct{})}, log: &logLines{}, served: make(chan error, 1)}
	p.Server = &Server{
		WhoIs: func(_ context.Context, remote net.Addr) (policy.Caller, error) {
			host, _, _ := net.SplitHostPort(remote.String())
			switch host {
			case "127.0.0.1":
				c := alice
				c.Addr = remote.String()
				return c, nil
			case "127.0.0.2":
				c := bob
				c.Addr = remote.String()
				return c, nil
			}
			return policy.Caller{}, errors.New("peer not found")
		},
		Rules:    func(c policy.Caller) (policy.Rule, error) { return policy.DefaultRule(), nil },
		Dial:     config.Dial,
		Judge:    judge,
		Audit:    p.records,
		Database: config.Database(), Databases: []string{"app", "postgres"},
		LoginTimeout: 10 * time.Second, ConnectTimeout: 10 * time.Second,
		QuietLogin: true,
		Logger:     slog.New(slog.NewTextHandler(p.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, o := range options {
		o(p.Server)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.addr = ln.Addr().String()
	accepting := &firstAccept{Listener: ln, begun: make(chan struct{})}
	go func() { p.served <- p.Serve(accepting) }()
	<-accepting.begun // or the next proxy's leak check counts this one half begun
	t.Cleanup(func() {
		p.Close()
		if err := <-p.served; err != ErrServerClosed {
			t.Errorf("Serve: %v", err)
		}
		judge.Close()
		if t.Failed() {
			t.Log(p.log.String())
		}
	})
	return p
}

// firstAccept tells when Accept is first called.
type firstAccept struct {
	net.Listener
	once  sync.Once
	begun chan struct{}
}

func (l *firstAccept) Accept() (net.Conn, error) {
	l.once.Do(func() { close(l.begun) })
	return l.Listener.Accept()
}

// withRule serves everybody under one rule.
func withRule(change func(*policy.Rule)) func(*Server) {
	return func(srv *Server) {
		rule := policy.DefaultRule()
		change(&rule)
		srv.Rules = func(policy.Caller) (policy.Rule, error) { return rule, nil }
	}
}

// client speaks raw protocol.
type client struct {
	t    testing.TB
	conn net.Conn
	pid  uint32
	key  []byte
}

// reply is one message from the server.
type reply struct {
	typ  byte
	body []byte
}

func (f reply) String() string {
	switch f.typ {
	case 'E', 'N':
		e := frame.ParseErrorFields(f.body)
		return fmt.Sprintf("%c(%s %s)", f.typ, e.Code, e.Message)
	case 'C':
		return fmt.Sprintf("C(%s)", strings.TrimRight(string(f.body), "\x00"))
	case 'Z':
		return fmt.Sprintf("Z(%s)", f.body)
	case 'S':
		return fmt.Sprintf("S(%s)", strings.ReplaceAll(strings.TrimRight(string(f.body), "\x00"), "\x00", "="))
	case 'A':
		return fmt.Sprintf("A(%s)", strings.ReplaceAll(strings.Trim(string(f.body[4:]), "\x00"), "\x00", ","))
	case 'D':
		return fmt.Sprintf("D(%s)", strings.Join(frame.Columns(f.body), ","))
	}
	return string(f.typ)
}

// dial connects from a loopback address and says nothing yet.
func (p *proxy) dial(t testing.TB, from string) *client {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	conn, err := d.Dial("tcp", p.addr)
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(60 * time.Second))
	t.Cleanup(func() { conn.Close() })
	return &client{t: t, conn: conn}
}

// login connects as alice and comes to the first ReadyForQuery.
func (p *proxy) login(t testing.TB, params ...string) *client {
	t.Helper()
	return p.loginFrom(t, "127.0.0.1", params...)
}

func (p *proxy) loginFrom(t testing.TB, from string, params ...string) *client {
	t.Helper()
	c := p.dial(t, from)
	c.send(startupPacket(protocol3, append([]string{"user", "x"}, params...)...))
	for {
		f := c.next()
		switch f.typ {
		case 'K':
			c.pid, c.key = binary.BigEndian.Uint32(f.body), f.body[4:]
		case 'E':
			t.Fatalf("login: %v", f)
		case 'Z':
			return c
		}
	}
}

func startupPacket(version uint32, params ...string) []byte {
	b := binary.BigEndian.AppendUint32(make([]byte, 4), version)
	for _, p := range params {
		b = append(append(b, p...), 0)
	}
	b = append(b, 0)
	binary.BigEndian.PutUint32(b, uint32(len(b)))
	return b
}

func (c *client) send(b []byte) {
	c.t.Helper()
	if _, err := c.conn.Write(b); err != nil {
		c.t.Fatal(err)
	}
}

// next reads one message.
func (c *client) next() reply {
	c.t.Helper()
	f, err := c.tryNext()
	if err != nil {
		c.t.Fatalf("reading from the proxy: %v", err)
	}
	return f
}

func (c *client) tryNext() (reply, error) {
	var head [5]byte
	if _, err := io.ReadFull(c.conn, head[:]); err != nil {
		return reply{}, err
	}
	body := make([]byte, binary.BigEndian.Uint32(head[1:])-4)
	_, err := io.ReadFull(c.conn, body)
	return reply{head[0], body}, err
}

// answer reads up to ReadyForQuery and returns the messages in short form,
// without RowDescription.
func (c *client) answer() string {
	c.t.Helper()
	var list []string
	for {
		f := c.next()
		if f.typ != 'T' {
			list = append(list, f.String())
		}
		if f.typ == 'Z' {
			return strings.Join(list, " ")
		}
	}
}

// query sends a Query and reads its answer.
func (c *client) query(sql string) string {
	c.t.Helper()
	c.send(frame.AppendQuery(nil, sql))
	return c.answer()
}

// want runs a query and compares its whole answer.
func (c *client) want(sql, answer string) {
	c.t.Helper()
	if got := c.query(sql); got != answer {
		c.t.Errorf("%s\n got %s\nwant %s", sql, got, answer)
	}
}

// wantPart runs a query and looks for parts of its answer.
func (c *client) wantPart(sql string, parts ...string) {
	c.t.Helper()
	got := c.query(sql)
	for _, part := range parts {
		if !strings.Contains(got, part) {
			c.t.Errorf("%s\n got %s\nwant %s in it", sql, got, part)
		}
	}
}

// ended requires that the proxy closes, and returns what it said before.
func (c *client) ended() string {
	c.t.Helper()
	var list []string
	for {
		f, err := c.tryNext()
		if err != nil {
			if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
				c.t.Fatalf("the connection was not closed; it said %v", list)
			}
			c.conn.Close() // the proxy waits a second for that
			return strings.Join(list, " ")
		}
		list = append(list, f.String())
	}
}

// cancel sends the session's CancelRequest from an address, and waits for the
// end of its connection.
func (p *proxy) cancel(t testing.TB, from string, c *client) {
	t.Helper()
	k := p.dial(t, from)
	b := binary.BigEndian.AppendUint32(nil, uint32(12+len(c.key)))
	b = binary.BigEndian.AppendUint32(b, codeCancelRequest)
	b = binary.BigEndian.AppendUint32(b, c.pid)
	k.send(append(b, c.key...))
	if got, _ := io.ReadAll(k.conn); len(got) > 0 {
		t.Errorf("a cancel request was answered: %q", got)
	}
}

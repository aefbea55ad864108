package wire

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pgproxy/policy"
	"pgproxy/upstream"
	"pgproxy/upstream/upstreamtest"
	"pgproxy/wire/audit"
	"pgproxy/wire/frame"
)

// tap is a server connection that is looked at. What is to happen behind the
// first completion with a tag is done by the session's goroutine, when it was
// read and before the session sees it.
type tap struct {
	net.Conn
	written atomic.Int64
	tag     string
	happens func()
}

func (c *tap) Write(b []byte) (int, error) {
	c.written.Add(int64(len(b)))
	return c.Conn.Write(b)
}

func (c *tap) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if happens := c.happens; happens != nil && bytes.Contains(b[:n], []byte(c.tag+"\x00")) {
		c.happens = nil
		happens()
	}
	return n, err
}

// tapped lets the test look at the next server connection.
func tapped(c *tap) func(*Server) {
	return func(srv *Server) {
		dial := srv.Dial
		srv.Dial = func(ctx context.Context, req upstream.Request) (*upstream.Conn, error) {
			up, err := dial(ctx, req)
			if err == nil && c.Conn == nil {
				c.Conn, up.Net = up.Net, c
			}
			return up, err
		}
	}
}

// position is where the error of an answer points to.
func (c *client) position(sql string) string {
	c.t.Helper()
	c.send(frame.AppendQuery(nil, sql))
	where := "no error"
	for {
		switch f := c.next(); f.typ {
		case 'E':
			e := frame.ParseErrorFields(f.body)
			where = e.Code + " at " + e.Position
		case 'Z':
			return where
		}
	}
}

// A message that is sent in parts has its errors where they are in the message.
func TestPositionsOfParts(t *testing.T) {
	freshCaps(t)
	p := startProxy(t)
	here, there := directly(t, upstreamtest.Shared(t)), p.login(t)
	for _, sql := range []string{
		"BEGIN; SELECT nothing FROM caps.t",
		"BEGIN;\n  UPDATE caps.t SET n = 1 WHERE id = 1;\n\tSELECT 'äöü', nothing FROM caps.t; COMMIT",
		"UPDATE caps.t SET n = 1 WHERE id = 1; UPDATE caps.t SET n = nothing WHERE id = 2",
		"SELECT 'ü'; COMMIT; SELECT 1 + nothing",
	} {
		if want, got := here.position(sql), there.position(sql); got != want || !strings.HasPrefix(want, "42703 at ") {
			t.Errorf("%s\n got %s\nwant %s", sql, got, want)
		}
		here.query("ROLLBACK")
		there.query("ROLLBACK")
	}
	if got := there.position("SHOW pgproxy.access; SELECT nothing FROM caps.t"); got != "42703 at 29" {
		t.Errorf("behind a statement of pgproxy's own: %s", got)
	}
}

// A message of many parts costs the proxy, and the network, in proportion to
// its length.
func TestManyParts(t *testing.T) {
	freshCaps(t)
	var c tap
	p := startProxy(t, tapped(&c))
	s := p.login(t)
	cost := func(n int) (sent, allocated int64) {
		sql := "BEGIN; " + strings.Repeat("UPDATE caps.t SET n = n + 1 WHERE id = 1 AND doc IS NULL; ", n) + "ROLLBACK"
		var before, after runtime.MemStats
		sent = c.written.Load()
		runtime.ReadMemStats(&before)
		got := s.query(sql)
		runtime.ReadMemStats(&after)
		if !strings.HasPrefix(got, "C(BEGIN) C(UPDATE 1)") || !strings.HasSuffix(got, "C(ROLLBACK) Z(I)") {
			t.Fatalf("got %.300s", got)
		}
		return c.written.Load() - sent, int64(after.TotalAlloc - before.TotalAlloc)
	}
	cost(100)
	sent1, allocated1 := cost(100)
	sent4, allocated4 := cost(400)
	if sent4 > 5*sent1 {
		t.Errorf("100 parts sent %d bytes, 400 sent %d", sent1, sent4)
	}
	if allocated4 > 8*allocated1 { // 16 times, if each part cost what those before it do
		t.Errorf("100 parts allocated %d bytes, 400 allocated %d", allocated1, allocated4)
	}
}

// The client gets the answer to a part as soon as there is one, and a client
// that does not read holds the parts up, instead of filling the memory.
func TestAnswersOfParts(t *testing.T) {
	freshCaps(t)
	p := startProxy(t, withRule(func(r *policy.Rule) { r.MaxBytes, r.MaxRows = 0, 0 }))
	t.Run("at once", func(t *testing.T) {
		c, blocker := p.login(t), p.loginFrom(t, "127.0.0.2")
		blocker.want("BEGIN", "C(BEGIN) Z(T)")
		blocker.want("UPDATE caps.t SET n = 1 WHERE id = 2", "C(UPDATE 1) Z(T)")
		c.send(frame.AppendQuery(nil, "UPDATE caps.t SET n = 1 WHERE id = 1; COMMIT; UPDATE caps.t SET n = 1 WHERE id = 2"))
		for _, want := range []string{"C(UPDATE 1)", "N(25P01 there is no transaction in progress)", "C(COMMIT)"} {
			if got := c.next().String(); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		}
		blocker.want("ROLLBACK", "C(ROLLBACK) Z(I)")
		if got := c.answer(); got != "C(UPDATE 1) Z(I)" {
			t.Errorf("got %s", got)
		}
	})
	t.Run("with back-pressure", func(t *testing.T) {
		c := p.login(t)
		s := p.sessionOf(t, c)
		var before, during runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		part := "UPDATE caps.t SET n = 1 WHERE id = 1; SELECT repeat('x', 1000) FROM generate_series(1, 5000); "
		c.send(frame.AppendQuery(nil, "BEGIN; "+strings.Repeat(part, 10)+"COMMIT"))
		for s.writing.Load() == 0 { // it waits for the client to read
			time.Sleep(time.Millisecond)
		}
		waiting := s.writing.Load()
		for time.Since(time.Unix(0, waiting)) < 200*time.Millisecond || s.writing.Load() != waiting {
			waiting = s.writing.Load()
			time.Sleep(10 * time.Millisecond)
		}
		runtime.GC()
		runtime.ReadMemStats(&during)
		if grown := int64(during.HeapAlloc) - int64(before.HeapAlloc); grown > 4<<20 {
			t.Errorf("%d bytes are held for a client that does not read", grown)
		}
		if got := c.pass(); got.rows != 50_000 {
			t.Errorf("%d rows, then %s", got.rows, got.rest)
		}
	})
}

// Between two parts of a message nothing runs on the server. What comes then
// stops the message all the same: nothing more is sent, and what is open is
// rolled back.
func TestStopBetweenParts(t *testing.T) {
	cancelled := "E(57014 canceling statement due to user request) "
	for _, tt := range []struct {
		name, before, sql string
		tag               string // of the completion behind which it happens
		answer, holds     string
	}{
		{"before COMMIT", "", "UPDATE caps.t SET n = 7 WHERE id = 1", "UPDATE 1", cancelled + "Z(I)", ""},
		{"before the statement", "", "UPDATE caps.t SET n = 7 WHERE id = 1", "BEGIN", cancelled + "Z(I)", ""},
		{"in a transaction", "BEGIN; UPDATE caps.t SET n = 1 WHERE id = 3", "UPDATE caps.t SET n = 7 WHERE id = 1; UPDATE caps.t SET n = 8 WHERE id = 2", "UPDATE 1",
			"C(UPDATE 1) " + cancelled + "Z(E)", ""},
		{"behind a COMMIT", "", "BEGIN; UPDATE caps.t SET n = 7 WHERE id = 1; COMMIT; UPDATE caps.t SET n = 8 WHERE id = 2", "COMMIT",
			"C(BEGIN) C(UPDATE 1) C(COMMIT) " + cancelled + "Z(I)", "1,7"},
	} {
		t.Run("cancel "+tt.name, func(t *testing.T) {
			freshCaps(t)
			var conn tap
			p := startProxy(t, tapped(&conn))
			c := p.login(t)
			if tt.before != "" {
				c.query(tt.before)
			}
			conn.tag, conn.happens = tt.tag, func() { p.cancel(t, "127.0.0.1", c) }
			c.want(tt.sql, tt.answer)
			c.query("ROLLBACK")
			holds(t, "SELECT id, n FROM caps.t WHERE n <> 0", tt.holds)
			p.records.await(t, "the result", func(rec audit.Record) bool {
				return rec.Event == audit.Result && rec.SQLState == "57014" && rec.Cancelled
			})
		})
		t.Run("end "+tt.name, func(t *testing.T) {
			freshCaps(t)
			var conn tap
			p := startProxy(t, tapped(&conn))
			c := p.login(t)
			if tt.before != "" {
				c.query(tt.before)
			}
			id := p.sessionOf(t, c).id
			conn.tag, conn.happens = tt.tag, func() {
				if err := p.Kill(reaper(), id); err != nil {
					t.Error(err)
				}
			}
			c.send(frame.AppendQuery(nil, tt.sql))
			if got := c.ended(); !strings.HasSuffix(got, "E(57P01 pgproxy: terminating connection due to administrator command)") {
				t.Errorf("got %s", got)
			}
			p.disconnected(t, reasonKilled)
			holds(t, "SELECT id, n FROM caps.t WHERE n <> 0", tt.holds)
		})
	}
}

// A message that begins with statements of pgproxy's own is one statement: one
// verdict, one record before it and one after it.
func TestOwnStatementsAreRecordedOnce(t *testing.T) {
	freshCaps(t)
	p := startProxy(t, withRule(func(r *policy.Rule) { r.RequireReason, r.MayLift = true, true }))
	c := p.login(t)
	c.wantPart("SHOW pgproxy.session; DELETE FROM caps.t", "E(42501 pgproxy: DELETE without a WHERE clause is refused)", "Z(I)")
	c.wantPart("SET pgproxy.max_rows = 20000; UPDATE caps.t SET n = 1 WHERE id = 1", "E(42501", "Z(I)") // no reason
	c.want("SHOW pgproxy.max_rows", "D(10000) C(SHOW) Z(I)")                                            // and so nothing of it
	c.want("SET pgproxy.reason = 'INC-1'; UPDATE caps.t SET n = 1 WHERE id = 1", "C(SET) C(UPDATE 1) Z(I)")
	var got []string
	for _, rec := range p.records.all() {
		switch rec.Event {
		case audit.Query:
			got = append(got, fmt.Sprintf("%d %s %v %s", rec.Seq, rec.Verdict, rec.Kinds, rec.Rule))
		case audit.Result:
			got = append(got, fmt.Sprintf("%d %s", rec.Seq, rec.Tag))
		}
	}
	want := []string{"1 deny [SHOW DELETE] require_where", "2 deny [SET UPDATE] require_reason",
		"3 allow [SHOW] own", "3 SHOW", "4 allow [SET UPDATE] write", "4 UPDATE 1"}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("recorded\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// What policy lets be shown has an answer here, and nothing else has.
func TestEveryShowHasItsAnswer(t *testing.T) {
	if got, want := slices.Sorted(maps.Keys(shows)), slices.Sorted(slices.Values(policy.Shows)); !slices.Equal(got, want) {
		t.Errorf("answers for %v, policy has %v", got, want)
	}
	p := startProxy(t)
	c := p.login(t)
	for _, name := range append(slices.Clone(policy.Shows), "reason", "max_rows") {
		c.wantPart("SHOW pgproxy."+name, "C(SHOW)", "Z(I)")
	}
	c.wantPart("SHOW pgproxy.nosuch", `E(42704 unrecognized configuration parameter "pgproxy.nosuch"`, "Z(I)")
	for _, rec := range p.records.all() {
		if rec.Event == audit.Lift {
			t.Errorf("a SHOW was recorded as a change: %+v", rec)
		}
	}
}

// A setting given at connect needs the reason that the same SET needs, wherever
// in the options the reason stands.
func TestReasonForSettingsAtConnect(t *testing.T) {
	p := startProxy(t, withRule(func(r *policy.Rule) { r.RequireReason, r.Access = true, policy.Admin }))
	const setting = "-c client_connection_check_interval=5000"
	c := p.dial(t, "127.0.0.1")
	c.send(startupPacket(protocol3, "user", "u", "options", setting))
	if got := c.ended(); !strings.Contains(got, "E(42501") {
		t.Errorf("without a reason: %s", got)
	}
	c = p.login(t, "user", "u", "options", setting+" -c pgproxy.reason=INC-1")
	c.want("SHOW pgproxy.reason", "D(INC-1) C(SHOW) Z(I)")
}

// Notifications count towards the byte cap like all that comes back.
func TestNotificationsAreMetered(t *testing.T) {
	const limit = 50_000
	p := startProxy(t, withRule(func(r *policy.Rule) { r.MaxBytes = limit }))
	c := p.login(t)
	c.want("LISTEN metered", "C(LISTEN) Z(I)")
	c.send(frame.AppendQuery(nil, "SELECT count(pg_notify('metered', i || repeat('x', 1000))) FROM generate_series(1, 200) i"))
	size, told, many := 0, false, 0
	for ready := false; !ready; {
		f := c.next()
		size += len(f.body) + frame.HeaderLen
		switch f.typ {
		case 'A':
			many++
		case 'N':
			told = told || strings.Contains(f.String(), "notifications were left out: max_bytes is 50000")
		case 'Z':
			ready = true
		}
	}
	if size > limit+1000 || many == 0 || !told {
		t.Errorf("%d bytes, %d notifications, told: %v", size, many, told)
	}
	c.want("SELECT 'alive'", "D(alive) C(SELECT 1) Z(I)")
}

// Whatever has become of the server's own clock, pgproxy has one, too.
func TestIdleInTransactionClock(t *testing.T) {
	pg := upstreamtest.Shared(t)
	t.Cleanup(func() { pg.Exec(t, "DROP VIEW no_clock") })
	pg.Exec(t, "CREATE OR REPLACE VIEW no_clock AS SELECT set_config('idle_in_transaction_session_timeout', '0', false); GRANT SELECT ON no_clock TO public")
	p := startProxy(t, withRule(func(r *policy.Rule) { r.IdleInTransactionTimeout = 500 * time.Millisecond }))
	c := p.login(t)
	c.query("BEGIN")
	c.query("SELECT * FROM no_clock")
	if got := c.ended(); got != "E(25P03 pgproxy: terminating connection after 500ms idle in a transaction; the transaction was rolled back)" {
		t.Errorf("got %s", got)
	}
	p.disconnected(t, reasonIdleTransaction)
}

// narrow lets the rule of everybody be narrowed to read.
type narrow struct {
	read atomic.Bool
}

func (n *narrow) serve(srv *Server) {
	srv.Rules = func(policy.Caller) (policy.Rule, error) {
		rule := policy.DefaultRule()
		if n.read.Load() {
			rule.Access = policy.Read
		}
		return rule, nil
	}
}

// A transaction that was open when its caller was narrowed to read stays
// read-only, whatever it rolls back to.
func TestNarrowedTransaction(t *testing.T) {
	for _, message := range []string{"one by one", "in one message"} {
		t.Run(message, func(t *testing.T) {
			freshCaps(t)
			var rules narrow
			p := startProxy(t, rules.serve)
			c := p.login(t)
			c.query("BEGIN; SAVEPOINT a; SELECT caps.put(1)")
			rules.read.Store(true)
			p.Recheck(t.Context())
			c.wantPart("SELECT 1", "D(1) C(SELECT 1) Z(T)")
			if message == "one by one" {
				c.wantPart("ROLLBACK TO a", "C(ROLLBACK)", "Z(T)")
				c.wantPart("SELECT caps.put(2)", "E(25006", "Z(E)")
			} else {
				c.wantPart("ROLLBACK TO a; SELECT caps.put(2)", "C(ROLLBACK)", "E(25006", "Z(E)")
			}
			c.wantPart("COMMIT", "C(ROLLBACK)", "Z(I)")
			holds(t, "SELECT * FROM caps.done", "")
			c.wantPart("SELECT caps.put(3)", "E(25006", "Z(I)")
			for _, rec := range p.records.all() {
				if rec.Event == audit.Tamper {
					t.Errorf("recorded as tampering: %s", rec.Tampered)
				}
			}
		})
	}
}

package wire

import (
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"pgproxy/policy"
	"pgproxy/upstream/upstreamtest"
	"pgproxy/wire/audit"
	"pgproxy/wire/frame"
)

// Two logins that are alike for longer than a stamp have stamps of their own.
func TestStampIsUnique(t *testing.T) {
	long := strings.Repeat("very-long-", 6)
	for _, tt := range []struct {
		caller policy.Caller
		want   string
	}{
		{alice, "go-proxy tsnode=alice-laptop|user=alice@example.com"},
		{policy.Caller{Login: "alice@example.com", Node: long}, "go-proxy tsnode=very-long-very-long-very|user=alice@example.com"},
		{policy.Caller{Login: long + "@example.com", Node: "laptop"}, "go-proxy tsnode=|user=very-long-very-long-very-lon~abcdefghijkl"},
	} {
		got := Stamp(tt.caller, "abcdefghijkl")
		if got != tt.want || len(got) > maxName {
			t.Errorf("%s: %q (%d bytes), want %q", tt.caller.Login, got, len(got), tt.want)
		}
	}
}

// The login NOTICE is one line of 100 columns, whoever logs in.
func TestLoginNotice(t *testing.T) {
	for _, who := range []string{"a@b.c", alice.Login, strings.Repeat("jörg.", 30) + "@example.com"} {
		s := &session{srv: &Server{IdleTimeout: 30 * time.Minute}, database: strings.Repeat("d", 63)}
		s.caller.Login = who
		s.ruling.start(policy.Rule{Access: policy.Write})
		n := s.notice()
		if line := "NOTICE:  " + n.message; utf8.RuneCountInString(line) > 100 || n.detail+n.hint != "" || strings.Contains(line, "\n") {
			t.Errorf("%q has %d columns", line, utf8.RuneCountInString(line))
		}
		if !strings.Contains(n.message, "write access") {
			t.Errorf("%q does not tell the access", n.message)
		}
		s.ruling.start(policy.Rule{Access: policy.Read, Elevate: policy.Elevate{Access: policy.Write, For: time.Hour}})
		n = s.notice()
		if line := "NOTICE:  " + n.message; utf8.RuneCountInString(line) > 100 || len(who) < 50 && !strings.HasSuffix(line, " for write") {
			t.Errorf("%q has %d columns, or does not tell what may be asked for", line, utf8.RuneCountInString(line))
		}
	}
	s := &session{srv: &Server{Transcripts: "http://pgproxy-prod.tail1234.ts.net/sessions/"}, id: "clwvhvym7xiy"}
	s.ruling.start(policy.Rule{Access: policy.Write})
	if line := "DETAIL:  " + s.notice().detail; len(line) > 100 || !strings.HasSuffix(line, " http://pgproxy-prod.tail1234.ts.net/sessions/"+s.id) {
		t.Errorf("%q has %d columns", line, len(line))
	}
	p := startProxy(t, func(srv *Server) { srv.QuietLogin = false })
	c := p.dial(t, "127.0.0.1")
	c.send(startupPacket(protocol3, "user", "x", "options", "-c pgproxy.quiet=on"))
	for f := c.next(); f.typ != 'Z'; f = c.next() {
		if f.typ == 'N' || f.typ == 'E' {
			t.Errorf("in quiet: %v", f)
		}
	}
	c.want("BEGIN", "C(BEGIN) Z(T)")
}

// The first statement that leaves a transaction open says how long it may wait.
func TestOpenTransactionWarning(t *testing.T) {
	p := startProxy(t, func(srv *Server) { srv.QuietLogin = false })
	c := p.login(t)
	const warned = "N(01000 pgproxy: an open transaction is rolled back, and the session ends, after 30s without a statement) "
	c.want("BEGIN; COMMIT", "C(BEGIN) C(COMMIT) Z(I)")
	c.want("BEGIN", "C(BEGIN) "+warned+"Z(T)")
	c.want("SELECT 1", "D(1) C(SELECT 1) Z(T)")
	c.want("COMMIT", "C(COMMIT) Z(I)")
	c.want("BEGIN", "C(BEGIN) Z(T)")
}

// errorOf is the whole error of an answer.
func (c *client) errorOf(sql string) (fields map[byte]string, status string) {
	c.t.Helper()
	c.send(frame.AppendQuery(nil, sql))
	for {
		switch f := c.next(); f.typ {
		case 'E':
			fields = map[byte]string{}
			for rest := f.body; len(rest) > 1; {
				value, after, _ := frame.CString(rest[1:])
				fields[rest[0]] = value
				rest = after
			}
		case 'Z':
			return fields, string(f.body)
		}
	}
}

// What neither pgproxy nor the server can read has the server's own error, with
// all of its fields; and nothing of it runs.
func TestSyntaxErrors(t *testing.T) {
	freshCaps(t)
	pg := upstreamtest.Shared(t)
	p := startProxy(t)
	here, there := directly(t, pg), p.login(t)
	for _, before := range []string{"", "BEGIN", "BEGIN; SELECT 1/0"} {
		for _, sql := range []string{
			"SELEC 1", "SELECT (", "SELECT 'open", "SELECT 1; SELEKT 2", "SELECT caps.put(1); SELECT )",
			"CREATE TABLE x (a int) WITH OIDS NULLS", "SELECT 1 LIMIT 1, 2", "/* open", "SELECT U&'\\00zz'",
			"COPY caps.t FROM STDIN WITH (", "SELECT 'ü', ,",
		} {
			if before != "" {
				here.query(before)
				there.query(before)
			}
			want, status := here.errorOf(sql)
			got, gotStatus := there.errorOf(sql)
			if fmt.Sprint(got) != fmt.Sprint(want) || gotStatus != status {
				t.Errorf("%s, behind %q\n got %v %s\nwant %v %s", sql, before, got, gotStatus, want, status)
			}
			here.query("ROLLBACK")
			there.query("ROLLBACK")
		}
	}
	holds(t, "SELECT * FROM caps.done", "")
	there.want("SELECT 'alive'", "D(alive) C(SELECT 1) Z(I)")
	rec := p.records.await(t, "the refusal", func(rec audit.Record) bool { return rec.Rule == "syntax" })
	if rec.Verdict != "deny" || rec.SQLState != "42601" {
		t.Errorf("recorded %+v", rec)
	}
}

// What the server can read and pgproxy cannot is refused, says why, and does not
// run.
func TestNewerSyntax(t *testing.T) {
	pg := startMajor(t, 18)
	pg.ExecAs(t, "app", "app", "CREATE TABLE fresh (id int)")
	p := startProxyTo(t, pg.DSN("app", "app"))
	c := p.login(t)
	for _, sql := range []string{
		"INSERT INTO fresh VALUES (1) RETURNING WITH (OLD AS o) o.id",
		"SELECT 1; INSERT INTO fresh VALUES (1) RETURNING WITH (OLD AS o) o.id",
	} {
		got, status := c.errorOf(sql)
		if got['C'] != "42601" || !strings.Contains(got['D'], "pgproxy's grammar is older") || status != "I" {
			t.Errorf("%s\n got %v %s", sql, got, status)
		}
	}
	c.want("BEGIN", "C(BEGIN) Z(T)")
	if got, status := c.errorOf("INSERT INTO fresh VALUES (1) RETURNING WITH (OLD AS o) o.id"); status != "E" {
		t.Errorf("in a transaction: %v %s", got, status)
	}
	c.want("ROLLBACK", "C(ROLLBACK) Z(I)")
	if rows := pg.ExecAs(t, "app", "app", "SELECT count(*) FROM fresh"); rows[0][0] != "0" {
		t.Errorf("%s rows were inserted", rows[0][0])
	}
}

// A session that has LISTENed has its server watched as soon as it rests, and
// not from the next tick on.
func TestListenerIsWatchedAtOnce(t *testing.T) {
	p := startProxy(t)
	c := p.login(t)
	s := p.sessionOf(t, c)
	c.want("LISTEN news", "C(LISTEN) Z(I)")
	p.await(t, "the watch", func() bool {
		s.life.mu.Lock()
		defer s.life.mu.Unlock()
		return s.life.watch != nil && time.Since(s.life.since) < watchAfter
	})
	p.loginFrom(t, "127.0.0.2").want("NOTIFY news, 'now'", "C(NOTIFY) Z(I)")
	if got := c.next().String(); !strings.HasSuffix(got, "news,now)") {
		t.Errorf("got %s", got)
	}
}

// Cancel requests that reach nobody are recorded one by one only at first.
func TestDroppedCancelsAreSummedUp(t *testing.T) {
	p := startProxy(t)
	for range 20 {
		p.cancel(t, "127.0.0.1", &client{t: t, pid: 4711, key: []byte("none")})
	}
	p.await(t, "the requests", func() bool {
		p.dropped.mu.Lock()
		defer p.dropped.mu.Unlock()
		for _, c := range p.dropped.callers {
			return c.count == 20
		}
		return false
	})
	p.cancelsDropped(time.Now().Add(droppedPeriod))
	recs := p.cancelRecords()
	if n := len(recs); n != droppedAlone+1 || recs[n-1].Error != "15 more cancel requests reached nobody within 1m0s" || recs[n-1].User != alice.Login {
		t.Errorf("%d records: %+v", n, recs)
	}
}

// Close, which a second signal calls, ends all at once; and still says so to
// the client, cancels on the server, and records.
func TestCloseHasALastWord(t *testing.T) {
	p := startProxy(t)
	idle, busy := p.login(t), p.login(t)
	const sql = "SELECT pg_sleep(600)"
	busy.send(frame.AppendQuery(nil, sql))
	p.awaitActive(t, sql)
	go p.Close()
	for _, c := range []*client{idle, busy} {
		if got := c.ended(); !strings.HasSuffix(got, "E(57P01 pgproxy: terminating connection because pgproxy is shutting down)") {
			t.Errorf("got %s", got)
		}
	}
	p.awaitGone(t, busy)
	p.records.await(t, "the result", func(rec audit.Record) bool { return rec.Event == audit.Result && rec.SQLState != "" })
	ends := 0
	p.records.await(t, "both ends", func(rec audit.Record) bool {
		if rec.Event == audit.Disconnect {
			ends++
		}
		return ends == 2
	})
}

// A timeout that the client may raise, and raises by its plain name, is raised
// for pgproxy's own clock, too.
func TestPlainTimeoutIsFollowed(t *testing.T) {
	p := startProxy(t, withRule(func(r *policy.Rule) { r.MayLift, r.StatementTimeout = true, time.Second }))
	c := p.login(t)
	c.want("SET statement_timeout = '1h'", "C(SET) Z(I)")
	c.want("SHOW pgproxy.statement_timeout", "D(1h) C(SHOW) Z(I)")
	c.want("SELECT pg_sleep(3.5)", "D() C(SELECT 1) Z(I)") // a second, and pgproxy's grace, is less
	p.records.event(t, audit.Lift)
	c.want("RESET pgproxy.statement_timeout", "C(RESET) Z(I)")
	c.want("SHOW statement_timeout", "D(1s) C(SHOW) Z(I)")
}

// Hints name the size that is needed, or whom to ask.
func TestCapHints(t *testing.T) {
	freshCaps(t)
	for _, tt := range []struct {
		name    string
		change  func(*policy.Rule)
		sql     string
		contain string
	}{
		{"lift the affected rows", func(r *policy.Rule) { r.MaxAffectedRows, r.MayLift = 5, true }, "UPDATE caps.t SET n = 1 WHERE id <= 17", "SET pgproxy.max_affected_rows = 17"},
		{"ask", func(r *policy.Rule) { r.MaxAffectedRows, r.Contact = 5, "#dba" }, "UPDATE caps.t SET n = 1 WHERE id <= 17", "Ask #dba."},
		{"lift the rows", func(r *policy.Rule) { r.MaxRows, r.MayLift = 5, true }, "SELECT * FROM caps.t", "SET pgproxy.max_rows = 50"},
		{"ask for rows", func(r *policy.Rule) { r.MaxRows = 5 }, "SELECT * FROM caps.t", "Ask whoever runs pgproxy."},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := startProxy(t, withRule(tt.change))
			got, _ := p.login(t).errorOf(tt.sql)
			if !strings.Contains(got['H'], tt.contain) || strings.Contains(got['H'], "= 0") {
				t.Errorf("HINT %q", got['H'])
			}
		})
	}
}

// A person at rest is told at once that their access has changed.
func TestRuleChangeIsToldAtOnce(t *testing.T) {
	var rules narrow
	p := startProxy(t, rules.serve)
	c := p.login(t)
	c.want("SELECT 1", "D(1) C(SELECT 1) Z(I)")
	for _, read := range []bool{true, false} {
		rules.read.Store(read)
		p.Recheck(t.Context())
		if got := c.next().String(); !strings.Contains(got, "N(00000 pgproxy: you have ") {
			t.Errorf("told %s", got)
		}
		p.Recheck(t.Context())
		if got := c.query("SELECT 1"); strings.Contains(got, "N(") || !strings.HasSuffix(got, "D(1) C(SELECT 1) Z(I)") {
			t.Errorf("told twice: %s", got)
		}
	}
	// Half of a message is at hand.
	half := frame.AppendQuery(nil, "SELECT 2")
	c.send(half[:7])
	rules.read.Store(true)
	p.Recheck(t.Context())
	c.send(half[7:])
	if got := c.answer(); !strings.Contains(got, "D(2) C(SELECT 1)") || !strings.Contains(got, "you have read access") {
		t.Errorf("got %s", got)
	}
}

package wire

import (
	"errors"
	"regexp"
	"strings"
	"testing"
	"time"

	"pgproxy/policy"
	"pgproxy/wire/audit"

	"pgproxy/wire/frame"
)

// The viewers of the tests, besides alice and bob, who have no sessions.
func viewer(login string, change func(*policy.Rule)) Viewer {
	rule := policy.DefaultRule()
	change(&rule)
	return Viewer{Caller: policy.Caller{Login: login, Node: "console"}, Rule: rule}
}

func observer() Viewer {
	return viewer("observer@example.com", func(r *policy.Rule) { r.MayObserve = true })
}
func reaper() Viewer { return viewer("reaper@example.com", func(r *policy.Rule) { r.MayKill = true }) }

func TestViewer(t *testing.T) {
	both := viewer("alice@example.com", func(r *policy.Rule) { r.MayObserve, r.MayKill = true, true })
	plain := viewer("alice@example.com", func(*policy.Rule) {})
	cases := []struct {
		viewer     Viewer
		user       string
		sees, ends bool
	}{
		{plain, "alice@example.com", true, true},
		{plain, "bob@example.com", false, false},
		{plain, "", false, false},
		{Viewer{}, "", false, false},
		{observer(), "bob@example.com", true, false},
		{reaper(), "bob@example.com", false, true},
		{both, "bob@example.com", true, true},
	}
	for _, tt := range cases {
		if sees, ends := tt.viewer.Sees(tt.user), tt.viewer.Ends(tt.user); sees != tt.sees || ends != tt.ends {
			t.Errorf("%s and %q: sees %v, ends %v, want %v, %v", tt.viewer.Who(), tt.user, sees, ends, tt.sees, tt.ends)
		}
	}
}

// infoOf is what others see of the client's session.
func (p *proxy) infoOf(t testing.TB, c *client) Info {
	t.Helper()
	s := p.sessionOf(t, c)
	var info Info
	p.await(t, "the session to be listed", func() (ok bool) {
		info, ok = s.info()
		return ok
	})
	return info
}

// A session's state and ages as it goes through a transaction.
func TestSessions(t *testing.T) {
	p := startProxy(t)
	c := p.login(t, "application_name", "mine")
	check := func(state string, tx bool, sql string, statements int64) Info {
		t.Helper()
		// The answer comes a moment before the session rests.
		p.await(t, state, func() bool { i := p.infoOf(t, c); return i.State == state && i.TxSince.IsZero() != tx })
		i := p.infoOf(t, c)
		if i.SQL != sql || i.Statements != statements || i.Seq != statements {
			t.Errorf("got %q, statement %d of %d; want %q, %d", i.SQL, i.Seq, i.Statements, sql, statements)
		}
		return i
	}
	i := check("idle", false, "", 0)
	if i.User != "alice@example.com" || i.Node != "alice-laptop" || i.Database != "app" || i.Client != "mine" || i.Access != "write" || i.UpstreamPID != c.pid {
		t.Errorf("got %+v", i)
	}
	before := time.Now()
	c.query("BEGIN")
	began := check("idle in transaction", true, "BEGIN", 1).TxSince
	if began.Before(before) || began.After(time.Now()) {
		t.Errorf("the transaction began at %v, after %v", began, before)
	}
	c.query("SELECT generate_series(1, 5)")
	if i := check("idle in transaction", true, "SELECT generate_series(1, 5)", 2); !i.TxSince.Equal(began) || i.Rows != 5 || i.Bytes == 0 {
		t.Errorf("got %+v, in the transaction of %v", i, began)
	}
	c.query("SELECT 1/0")
	if i := check("idle in transaction (aborted)", true, "SELECT 1/0", 3); !i.TxSince.Equal(began) {
		t.Errorf("the transaction began anew at %v", i.TxSince)
	}
	c.query("ROLLBACK")
	check("idle", false, "ROLLBACK", 4)
	long := "SELECT '" + strings.Repeat("x", 10_000) + "'"
	c.query(long)
	p.await(t, "five statements", func() bool { return p.infoOf(t, c).Statements == 5 })
	if got := p.infoOf(t, c).SQL; len(got) > shownSQL+10 {
		t.Errorf("%d bytes of a statement are shown", len(got))
	}
	if got := p.History()[0].SQL; len(got) > shownSQL+10 {
		t.Errorf("%d bytes of a past statement are shown", len(got))
	}
}

// What a running statement has sent shows before it ends.
func TestRowsOfTheRunningStatement(t *testing.T) {
	p := startProxy(t)
	c := p.login(t)
	c.send(frame.AppendQuery(nil, "SELECT repeat('x', 10000) FROM generate_series(1, 3); SELECT pg_sleep(65)"))
	p.await(t, "three rows", func() bool { return p.infoOf(t, c).Rows == 3 })
	if i := p.infoOf(t, c); i.State != "active" || i.Bytes < 30_000 {
		t.Errorf("got %+v", i)
	}
	p.cancel(t, "127.0.0.1", c)
	c.answer()
	p.await(t, "the end", func() bool { return p.infoOf(t, c).State == "idle" })
	if i := p.infoOf(t, c); i.Rows != 3 {
		t.Errorf("%d rows, counted twice?", i.Rows)
	}
}

// From psql everybody sees their own sessions, and all with may_observe.
func TestShowSessions(t *testing.T) {
	observes := func(srv *Server) {
		srv.Rules = func(c policy.Caller) (policy.Rule, error) {
			rule := policy.DefaultRule()
			rule.MayObserve = c.Login == bob.Login
			return rule, nil
		}
	}
	p := startProxy(t, observes)
	alices, bobs := p.login(t), p.loginFrom(t, "127.0.0.2")
	alices.query("SELECT 'of alice'")
	bobs.query("SELECT 'of bob'")
	own := alices.query("SHOW pgproxy.sessions")
	if !regexp.MustCompile(`^D\(\w+,alice@example.com,alice-laptop,app,idle,.*\) C\(SHOW\) Z\(I\)$`).MatchString(own) || strings.Contains(own, "bob") {
		t.Errorf("alice sees %s", own)
	}
	all := bobs.query("SHOW pgproxy.sessions")
	if !strings.Contains(all, "alice@example.com,alice-laptop") || !strings.Contains(all, "bob@example.com,bob-phone") || strings.Count(all, "D(") != 2 {
		t.Errorf("bob sees %s", all)
	}
}

// Cancelling hits the statement that was looked at, or nothing.
func TestCancelByAPerson(t *testing.T) {
	p := startProxy(t)
	c := p.login(t)
	id := p.infoOf(t, c).ID
	if err := p.Cancel(t.Context(), reaper(), id, 0); !errors.Is(err, ErrNotRunning) {
		t.Errorf("with nothing running: %v", err)
	}
	c.query("SELECT 1")
	c.send(frame.AppendQuery(nil, "SELECT pg_sleep(66)"))
	p.awaitActive(t, "SELECT pg_sleep(66)")
	if err := p.Cancel(t.Context(), reaper(), id, 1); !errors.Is(err, ErrNotRunning) {
		t.Errorf("a statement that has ended: %v", err)
	}
	if err := p.Cancel(t.Context(), observer(), id, 2); !errors.Is(err, ErrNotAllowed) {
		t.Errorf("without may_kill: %v", err)
	}
	if err := p.Cancel(t.Context(), reaper(), "nosuchsession", 0); !errors.Is(err, ErrNoSession) {
		t.Errorf("no such session: %v", err)
	}
	if state := p.infoOf(t, c).State; state != "active" {
		t.Fatalf("the statement was hit: %s", state)
	}
	if err := p.Cancel(t.Context(), reaper(), id, 2); err != nil {
		t.Errorf("cancelling: %v", err)
	}
	if got := c.answer(); got != "E(57014 pgproxy: canceling statement: reaper@example.com on console has cancelled it) Z(I)" {
		t.Errorf("got %s", got)
	}
	c.want("SELECT 1", "D(1) C(SELECT 1) Z(I)")

	want := []struct {
		seq       int64
		verdict   string
		cancelled bool
		reason    string
	}{
		{0, "allow", false, "statement cancelled by reaper@example.com on console"},
		{1, "allow", false, "statement cancelled by reaper@example.com on console"},
		{0, "deny", false, "observer@example.com on console wanted to act on this session"},
		{2, "allow", true, "statement cancelled by reaper@example.com on console"},
	}
	got := p.cancelRecords()
	if len(got) != len(want) {
		t.Fatalf("%d cancel records, want %d", len(got), len(want))
	}
	for i, rec := range got {
		w := want[i]
		if rec.Seq != w.seq || rec.Verdict != w.verdict || rec.Cancelled != w.cancelled || rec.EndReason != w.reason || rec.Session != id || rec.User != "alice@example.com" {
			t.Errorf("record %d: %+v, want %+v", i, rec, w)
		}
	}
}

// Ending a session is recorded before it happens, and told to its user.
func TestKill(t *testing.T) {
	for _, tt := range []struct{ name, before, running string }{
		{"idle", "", ""},
		{"in a transaction", "BEGIN; SELECT 1", ""},
		{"running", "", "SELECT pg_sleep(67)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := startProxy(t)
			c := p.login(t)
			if tt.before != "" {
				c.query(tt.before)
			}
			if tt.running != "" {
				c.send(frame.AppendQuery(nil, tt.running))
				p.awaitActive(t, tt.running)
			}
			id := p.infoOf(t, c).ID
			if err := p.Kill(observer(), id); !errors.Is(err, ErrNotAllowed) {
				t.Errorf("without may_kill: %v", err)
			}
			p.records.failWith(errors.New("disk full"))
			if err := p.Kill(reaper(), id); !errors.Is(err, ErrUnrecorded) {
				t.Errorf("without a record: %v", err)
			}
			p.records.failWith(nil)
			if p.sessionOf(t, c).life.settled() != nil {
				t.Error("an act that could not be recorded has happened")
			}
			if err := p.Kill(reaper(), id); err != nil {
				t.Error(err)
			}
			var e frame.ErrorFields
			for e.Severity != "FATAL" { // the statement's own end comes first
				e = frame.ParseErrorFields(c.next().body)
			}
			if e.Code != codeAdminShutdown || e.Detail != "Ended by reaper@example.com on console." {
				t.Errorf("the user is told %+v", e)
			}
			p.disconnected(t, reasonKilled)
			var order []audit.Event
			for _, rec := range p.cancelRecords() {
				order = append(order, audit.Event(rec.Verdict+": "+rec.EndReason))
			}
			if len(order) != 2 || order[0] != "deny: observer@example.com on console wanted to act on this session" ||
				order[1] != "allow: session ended by reaper@example.com on console" {
				t.Errorf("recorded %q", order)
			}
			if err := p.Kill(reaper(), id); !errors.Is(err, ErrNoSession) {
				t.Errorf("a second time: %v", err)
			}
		})
	}
}

// TestReasonStays requires that the user's reason is in every record of a
// session, whoever cancels its statements or ends it: why that was so stands
// beside it.
func TestReasonStays(t *testing.T) {
	p := startProxy(t)
	c := p.login(t, "options", "-c pgproxy.reason=INC-123")
	id := p.infoOf(t, c).ID
	c.query("SELECT 1")
	c.send(frame.AppendQuery(nil, "SELECT pg_sleep(61)"))
	p.awaitActive(t, "SELECT pg_sleep(61)")
	p.cancel(t, "127.0.0.1", c)
	if got := c.answer(); got != userCancel {
		t.Errorf("got %s", got)
	}
	p.Cancel(t.Context(), reaper(), id, 0)
	p.Cancel(t.Context(), observer(), id, 0)
	c.query("DROP TABLE t")
	if err := p.Kill(reaper(), id); err != nil {
		t.Fatal(err)
	}
	c.ended()
	if rec := p.disconnected(t, reasonKilled); rec.Reason != "INC-123" {
		t.Errorf("the disconnect record has the reason %q", rec.Reason)
	}
	ends := map[string]int{}
	for _, rec := range p.records.all() {
		if rec.Event != audit.Lift && rec.Reason != "INC-123" {
			t.Errorf("the %s record has the reason %q", rec.Event, rec.Reason)
		}
		if rec.EndReason != "" {
			ends[string(rec.Event)+": "+rec.EndReason]++
		}
	}
	for _, want := range []string{
		"cancel: user request",
		"cancel: statement cancelled by reaper@example.com on console",
		"cancel: observer@example.com on console wanted to act on this session",
		"cancel: session ended by reaper@example.com on console",
		"disconnect: " + string(reasonKilled),
	} {
		if ends[want] != 1 {
			t.Errorf("%d records say %q: %v", ends[want], want, ends)
		}
	}
	if len(ends) != 5 {
		t.Errorf("records of an end: %v", ends)
	}
}

// The last statements, the newest first, with what came of them.
func TestHistory(t *testing.T) {
	p := startProxy(t, withRule(func(r *policy.Rule) { r.MaxRows = 3 }))
	c := p.login(t)
	c.query("SELECT generate_series(1, 2)")
	c.query("SELECT generate_series(1, 9)")
	c.query("SELECT 1/0")
	c.query("DROP TABLE t")
	list := p.History()
	if len(list) != 4 {
		t.Fatalf("%d statements, want 4", len(list))
	}
	for i, want := range []Past{
		{SQL: "DROP TABLE t", SQLState: "42501", Denied: true},
		{SQL: "SELECT 1/0", SQLState: "22012"},
		{SQL: "SELECT generate_series(1, 9)", SQLState: "54000", Truncated: true, Rows: 3},
		{SQL: "SELECT generate_series(1, 2)", Rows: 2},
	} {
		got := list[i]
		if got.SQL != want.SQL || got.SQLState != want.SQLState || got.Denied != want.Denied || got.Truncated != want.Truncated || got.Rows != want.Rows {
			t.Errorf("statement %d: %+v, want %+v", i, got, want)
		}
		if got.User != "alice@example.com" || got.Time.IsZero() || got.Seq != int64(4-i) {
			t.Errorf("statement %d: %+v", i, got)
		}
	}
	for n := range historySize + 5 {
		p.history.add(Past{Seq: int64(n)})
	}
	if list := p.History(); len(list) != historySize || list[0].Seq != historySize+4 || list[historySize-1].Seq != 5 {
		t.Errorf("%d statements from %d to %d", len(list), list[0].Seq, list[len(list)-1].Seq)
	}
}

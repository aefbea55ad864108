package wire

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgproxy/policy"
	"pgproxy/upstream"
	"pgproxy/upstream/upstreamtest"
	"pgproxy/wire/audit"
	"pgproxy/wire/frame"
)

// peopleRules are those of alice and bob, which a test may change.
type peopleRules struct {
	mu    sync.Mutex
	alice policy.Rule
	bob   policy.Rule
}

func (r *peopleRules) of(c policy.Caller) (policy.Rule, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c.Login == bob.Login {
		return r.bob, nil
	}
	return r.alice, nil
}

func (r *peopleRules) change(f func(*peopleRules)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(r)
}

// startElevate serves alice, who may read and ask for e, and bob, who may approve.
func startElevate(t *testing.T, e policy.Elevate, options ...func(*Server)) (*proxy, *peopleRules) {
	t.Helper()
	r := &peopleRules{alice: policy.DefaultRule(), bob: policy.DefaultRule()}
	r.alice.Access, r.alice.Elevate, r.bob.MayApprove = policy.Read, e, true
	return startProxy(t, append([]func(*Server){func(srv *Server) { srv.Rules = r.of }}, options...)...), r
}

// step waits for a record of a step of raising an access.
func (p *proxy) step(t *testing.T, step string) audit.Record {
	t.Helper()
	return p.records.await(t, "elevate, "+step, func(r audit.Record) bool { return r.Event == audit.Elevate && r.Step == step })
}

// untilNotice reads up to a NOTICE that says so.
func (c *client) untilNotice(part string) string {
	c.t.Helper()
	for {
		f := c.next()
		if f.typ == 'N' && strings.Contains(f.String(), part) {
			return f.String()
		}
		if f.typ == 'E' || f.typ == 'Z' {
			c.t.Fatalf("got %v, want a NOTICE with %q", f, part)
		}
	}
}

// ask sends SET pgproxy.access and returns the id of the request that it waits for.
func (p *proxy) ask(t *testing.T, c *client) string {
	t.Helper()
	c.send(frame.AppendQuery(nil, "SET pgproxy.access = 'write'"))
	notice := c.untilNotice("waiting for another person")
	_, id, _ := strings.Cut(notice, "approve request ")
	return id[:6]
}

const (
	noWrites = "E(42501 pgproxy: UPDATE is refused)"
	change   = "UPDATE elevated SET n = n + 1 WHERE id = 1"
)

func TestElevateByAsking(t *testing.T) {
	makeTable(t, "elevated")
	p, _ := startElevate(t, policy.Elevate{Access: policy.Write, For: time.Hour})
	c := p.login(t)
	c.wantPart(change, noWrites, "Z(I)")
	c.wantPart("SHOW pgproxy.access", "D(SET pgproxy.access gives write access for 1h)")
	c.wantPart("SET pgproxy.access = 'admin'", "E(42501 pgproxy: admin access may not be asked for)")
	if r := p.step(t, stepRefused); r.Access != "admin" || r.Verdict != "deny" || r.SQLState != "42501" {
		t.Errorf("recorded %+v", r)
	}
	c.want("SET pgproxy.access = 'read'", "C(SET) Z(I)")
	c.wantPart("SET pgproxy.access = 'write'", "N(00000 pgproxy: you have write access until ", "C(SET) Z(I)")
	given := p.step(t, stepGiven)
	if given.Access != "write" || given.Verdict != "allow" || given.Until == nil || time.Until(*given.Until) < 59*time.Minute {
		t.Errorf("recorded %+v", given)
	}
	c.wantPart(change, "C(UPDATE 1) Z(I)")
	c.want("SET pgproxy.access = 'write'", "C(SET) Z(I)") // it is there
	c.wantPart("SHOW pgproxy.access", "D(write access)", "then read access again)")
	c.want("BEGIN", "C(BEGIN) Z(T)")
	c.want(change, "C(UPDATE 1) Z(T)")
	c.want("COMMIT", "C(COMMIT) Z(I)")
	rec := p.records.await(t, "the change", func(r audit.Record) bool {
		return r.Event == audit.Query && r.Verdict == "allow" && strings.HasPrefix(r.SQL, "UPDATE")
	})
	if rec.Access != "write" || rec.Until == nil || rec.Rule != "write" {
		t.Errorf("recorded %+v", rec)
	}
	if got := p.Sessions()[0].Access; got != "write" {
		t.Errorf("others see access %q", got)
	}

	c.wantPart("RESET pgproxy.access", "N(00000 pgproxy: write access has ended, it was given back; you have read access)", "C(RESET) Z(I)")
	c.wantPart(change, noWrites, "Z(I)")
	if r := p.step(t, stepEnded); r.EndReason != "it was given back" {
		t.Errorf("recorded %+v", r)
	}

	// The message is judged as it will be, and before its transaction.
	c.wantPart("SET pgproxy.access = 'write'; BEGIN; "+change+"; COMMIT", "C(SET) ", "C(UPDATE 1) C(COMMIT) Z(I)")
	c.wantPart("SET pgproxy.access = 'read'; "+change, noWrites)
	c.wantPart("RESET pgproxy.\"all\"", "N(00000 pgproxy: write access has ended")
	c.wantPart("BEGIN", "C(BEGIN) Z(T)")
	c.wantPart("SET pgproxy.access = 'write'", "E(25001 ", "Z(E)")
	c.want("ROLLBACK", "C(ROLLBACK) Z(I)")
	if got := value(t, "elevated"); got != "3" {
		t.Errorf("%s changes have come through, want 3", got)
	}

	// What cannot be recorded is not given.
	p.records.failWith(errors.New("disk full"))
	c.wantPart("SET pgproxy.access = 'write'", "E(58030 ")
	p.records.failWith(nil)
	c.wantPart(change, noWrites)

	// At connect nobody types.
	d := p.dial(t, "127.0.0.1")
	d.send(startupPacket(protocol3, "user", "x", "options", "-c pgproxy.access=write"))
	if got := d.ended(); !strings.Contains(got, "E(42501 ") {
		t.Errorf("at connect: %s", got)
	}
}

func TestElevateByReason(t *testing.T) {
	makeTable(t, "elevated")
	p, _ := startElevate(t, policy.Elevate{Access: policy.Write, By: policy.WithReason, For: time.Hour})
	c := p.login(t)
	c.wantPart("SET pgproxy.access = 'write'", "E(42501 pgproxy: SET pgproxy.reason = 'INC-123' first")
	c.wantPart("SET pgproxy.reason = 'INC-7'; SET pgproxy.access = 'write'; "+change, "C(SET) N(00000 pgproxy: you have write access until ", "C(UPDATE 1) Z(I)")
	if r := p.step(t, stepGiven); r.Reason != "INC-7" {
		t.Errorf("recorded %+v", r)
	}
}

// A raised access ends by itself: a session at rest is told at once, and a
// transaction that is open then goes on with the lower one.
func TestElevateEnds(t *testing.T) {
	makeTable(t, "elevated")
	p, r := startElevate(t, policy.Elevate{Access: policy.Write, For: 400 * time.Millisecond})
	c := p.login(t)
	c.wantPart("SET pgproxy.access = 'write'; BEGIN; "+change, "C(UPDATE 1) Z(T)")
	c.untilNotice("write access has ended, its time is over; you have read access")
	if rec := p.step(t, stepEnded); rec.Access != "write" || rec.EndReason != "its time is over" {
		t.Errorf("recorded %+v", rec)
	}
	c.wantPart(change, noWrites, "Z(E)")
	c.want("ROLLBACK", "C(ROLLBACK) Z(I)")
	c.wantPart("SHOW default_transaction_read_only", "D(on) C(SHOW) Z(I)")

	// A narrower rule takes it away.
	r.change(func(r *peopleRules) { r.alice.Elevate.For = time.Hour })
	p.Recheck(t.Context())
	c.untilNotice("what you may do has changed")
	c.wantPart("SET pgproxy.access = 'write'", "C(SET) Z(I)")
	r.change(func(r *peopleRules) { r.alice.Elevate.By = policy.Approval })
	p.Recheck(t.Context())
	c.untilNotice("write access has ended, your rule does not give it any more")
	c.wantPart(change, noWrites)
}

func TestElevateByApproval(t *testing.T) {
	makeTable(t, "elevated")
	var told []string
	p, r := startElevate(t, policy.Elevate{Access: policy.Write, By: policy.Approval, For: time.Hour},
		func(srv *Server) { srv.Notify = func(text string) { told = append(told, text) } })
	c, b := p.login(t), p.loginFrom(t, "127.0.0.2")
	c.want("SET pgproxy.reason = 'INC-7'", "C(SET) Z(I)")
	c.wantPart("SET pgproxy.access = 'write'; "+change, "E(0A000 ", "Z(I)")
	c.wantPart("SELECT 'before'", "D(before)")

	id := p.ask(t, c)
	if got := b.query("SHOW pgproxy.requests"); !strings.Contains(got, "D("+id+",alice@example.com,alice-laptop,app,write,1h,INC-7,SELECT 'before',") {
		t.Errorf("bob sees %s", got)
	}
	if state := p.Sessions()[0].State; state != "waiting for approval" {
		t.Errorf("alice's session is %q", state)
	}
	mine := p.login(t)
	mine.wantPart("SHOW pgproxy.requests", "D("+id) // one's own
	mine.wantPart("SET pgproxy.approve = '"+id+"'", "E(42501 ")
	b.wantPart("SET pgproxy.approve = 'nosuch'", "E(42704 ")
	if got := b.query("SET pgproxy.approve = '" + strings.ToUpper(id) + "'"); got != "C(SET) Z(I)" {
		t.Fatalf("bob approves: %s", got)
	}
	if got := c.answer(); !strings.Contains(got, "approved by bob@example.com") || !strings.HasSuffix(got, "C(SET) Z(I)") {
		t.Errorf("alice is told %s", got)
	}
	c.wantPart(change, "C(UPDATE 1) Z(I)")
	given := p.step(t, stepGiven)
	if given.Approver != "bob@example.com on bob-phone" || given.Request != id || given.User != "alice@example.com" || given.Until == nil {
		t.Errorf("recorded %+v", given)
	}
	b.wantPart("SET pgproxy.approve = '"+id+"'", "E(42704 ") // once
	if len(told) != 1 || !strings.Contains(told[0], "alice@example.com on alice-laptop asks for write access to app for 1h (request "+id+"). Reason: INC-7.") {
		t.Errorf("people outside are told %q", told)
	}

	// Who has approved it may do so no longer.
	r.change(func(r *peopleRules) { r.bob.MayApprove = false })
	p.Recheck(t.Context())
	c.untilNotice("write access has ended, who has approved it may do so no longer")
	c.wantPart(change, noWrites)
	b.wantPart("SET pgproxy.approve = '"+id+"'", "E(42501 ")
	id = p.ask(t, c)
	if err := p.Approve(t.Context(), Viewer{Caller: bob, Rule: policy.DefaultRule()}, id); !errors.Is(err, ErrMayNotApprove) {
		t.Errorf("without may_approve: %v", err)
	}
	if rec := p.step(t, stepDenied); rec.Approver != "bob@example.com on bob-phone" || rec.Verdict != "deny" || rec.Request != id {
		t.Errorf("recorded %+v", rec)
	}

	// Refused.
	r.change(func(r *peopleRules) { r.bob.MayApprove = true })
	p.Recheck(t.Context())
	b.wantPart("SET pgproxy.refuse = '"+id+"'", "C(SET) Z(I)")
	if got := c.answer(); got != "E(42501 pgproxy: the access was refused by bob@example.com) Z(I)" {
		t.Errorf("alice is told %s", got)
	}
	c.wantPart(change, noWrites)
}

// What ends the waiting of a request leaves the session as it was, and the
// request answered by nobody.
func TestRequestEnds(t *testing.T) {
	approver := policy.DefaultRule()
	approver.MayApprove = true
	for name, tt := range map[string]struct {
		end    func(t *testing.T, p *proxy, r *peopleRules, c *client, id string)
		answer string // "" = the session ends
		why    string
	}{
		"Ctrl-C": {func(t *testing.T, p *proxy, r *peopleRules, c *client, id string) { p.cancel(t, "127.0.0.1", c) },
			"E(57014 canceling statement due to user request) Z(I)", "given up by alice@example.com"},
		"nobody answers": {func(*testing.T, *proxy, *peopleRules, *client, string) {},
			"E(57014 pgproxy: the access was not given: nobody has answered within 2s) Z(I)", "nobody has answered within 2s"},
		"the rule changes": {func(t *testing.T, p *proxy, r *peopleRules, c *client, id string) {
			r.change(func(r *peopleRules) { r.alice.Elevate = policy.Elevate{} })
			p.Recheck(t.Context())
		}, "E(42501 pgproxy: the access was not given: your rule has changed) Z(I)", ruleChanged},
		"the client vanishes": {func(t *testing.T, p *proxy, r *peopleRules, c *client, id string) { c.conn.Close() }, "", "the session has ended"},
		"killed": {func(t *testing.T, p *proxy, r *peopleRules, c *client, id string) {
			if err := p.Kill(reaper(), p.Sessions()[0].ID); err != nil {
				t.Error(err)
			}
		}, "", "the session has ended"},
		"drained": {func(t *testing.T, p *proxy, r *peopleRules, c *client, id string) { p.Shutdown(t.Context()) }, "", "the session has ended"},
	} {
		t.Run(name, func(t *testing.T) {
			p, r := startElevate(t, policy.Elevate{Access: policy.Write, By: policy.Approval, For: time.Hour}, func(srv *Server) {
				srv.requestLife, srv.IdleTimeout = time.Hour, 50*time.Millisecond
				if name == "nobody answers" {
					srv.requestLife = 2 * time.Second
				}
			})
			c := p.login(t)
			id := p.ask(t, c)
			tt.end(t, p, r, c, id)
			if tt.answer != "" {
				if got := c.answer(); !strings.HasSuffix(got, tt.answer) {
					t.Errorf("got %s, want %s", got, tt.answer)
				}
			}
			if rec := p.step(t, stepEnded); rec.EndReason != tt.why || rec.Request != id {
				t.Errorf("recorded %+v", rec)
			}
			if err := p.Approve(t.Context(), Viewer{Caller: bob, Rule: approver}, id); !errors.Is(err, ErrNoRequest) {
				t.Errorf("approved afterwards: %v", err)
			}
			if tt.answer == "" {
				p.records.event(t, audit.Disconnect)
			}
		})
	}
}

// However an approval, a refusal and a Ctrl-C meet, the record says what holds.
func TestRequestRaces(t *testing.T) {
	makeTable(t, "elevated")
	p, _ := startElevate(t, policy.Elevate{Access: policy.Write, By: policy.Approval, For: time.Hour})
	approver := policy.DefaultRule()
	approver.MayApprove = true
	by := Viewer{Caller: bob, Rule: approver}
	for i := range 30 {
		c := p.login(t)
		id := p.ask(t, c)
		errs := make([]error, 3)
		var wg sync.WaitGroup
		for k, act := range []func() error{
			func() error { return p.Approve(context.Background(), by, id) },
			func() error { return p.Approve(context.Background(), by, id) },
			func() error { return p.Refuse(context.Background(), by, id) },
		} {
			if k == 2 && i%3 != 0 {
				continue
			}
			wg.Go(func() { errs[k] = act() })
		}
		if i%2 == 0 {
			wg.Go(func() { p.cancel(t, "127.0.0.1", c) })
		}
		answer := c.answer()
		wg.Wait()
		var steps []string
		for _, r := range p.records.all() {
			if r.Request == id && r.Step != stepAsked {
				steps = append(steps, r.Step)
			}
		}
		given := strings.Contains(answer, "C(SET)")
		if len(steps) != 1 || given != (steps[0] == stepGiven) {
			t.Errorf("records %v, and the client got %s (%v)", steps, answer, errs)
		}
		if got := c.query(change); given != strings.Contains(got, "C(UPDATE 1)") {
			t.Errorf("given %v, and then %s", given, got)
		}
		if errs[0] == nil && errs[1] == nil {
			t.Error("approved twice")
		}
		c.conn.Close()
	}
	// What cannot be recorded is not given, and may be tried again.
	c := p.login(t)
	id := p.ask(t, c)
	p.records.failWith(errors.New("disk full"))
	if err := p.Approve(t.Context(), by, id); !errors.Is(err, ErrUnrecorded) {
		t.Errorf("approved without a record: %v", err)
	}
	p.records.failWith(nil)
	if err := p.Approve(t.Context(), Viewer{Caller: policy.Caller{Login: "carol@example.com", NodeID: alice.NodeID}, Rule: approver}, id); !errors.Is(err, ErrOwnRequest) {
		t.Errorf("approved from the device that has asked: %v", err)
	}
	if err := p.Approve(t.Context(), by, id); err != nil {
		t.Error(err)
	}
	if got := c.answer(); !strings.HasSuffix(got, "C(SET) Z(I)") {
		t.Errorf("got %s", got)
	}
}

// An access that calls for another login gets another connection to the server:
// Ctrl-C goes on to work, what is lost is told, and on the way back likewise.
func TestElevateToAnotherLogin(t *testing.T) {
	makeTable(t, "elevated")
	pg := upstreamtest.Shared(t)
	pg.Exec(t, "CREATE ROLE elevated_reader LOGIN PASSWORD '"+upstreamtest.Password+"'; GRANT pg_read_all_data TO elevated_reader")
	t.Cleanup(func() { pg.Exec(t, "DROP ROLE elevated_reader") })
	reader, err := upstream.ParseConfig(pg.DSN("elevated_reader", "app"))
	if err != nil {
		t.Fatal(err)
	}
	var writer func(context.Context, upstream.Request) (*upstream.Conn, error)
	var down atomic.Bool
	gone := errors.New("gone")
	p, r := startElevate(t, policy.Elevate{Access: policy.Write, For: time.Hour}, func(srv *Server) {
		writer = srv.Dial
		srv.Dial = func(ctx context.Context, req upstream.Request) (*upstream.Conn, error) {
			switch {
			case down.Load():
				return nil, gone
			case req.Params["default_transaction_read_only"] == "on":
				return reader.Dial(ctx, req)
			}
			return writer(ctx, req)
		}
		srv.Login = func(a policy.Access) string {
			if a == policy.Read {
				return reader.Describe()
			}
			config, _ := upstream.ParseConfig(pg.DSN("app", "app"))
			return config.Describe()
		}
	})
	c := p.login(t)
	const user, lost = "SELECT current_user", "N(00000 pgproxy: a new connection to the server, with the login for "
	c.wantPart(user, "D(elevated_reader)")
	c.wantPart("PREPARE p AS SELECT 1; SET search_path = pg_catalog", "C(SET) Z(I)")
	c.wantPart("SET pgproxy.access = 'write'; "+change, "E(0A000 ")

	down.Store(true) // the session goes on as it was
	c.wantPart("SET pgproxy.access = 'write'", "E(08001 ", "write access has ended, no connection was to be had for it")
	c.wantPart("SHOW search_path", "D(pg_catalog)")
	down.Store(false)

	c.wantPart("SET pgproxy.access = 'write'", lost+"write access)", "S(session_authorization=app)", "C(SET) Z(I)")
	c.wantPart(user, "D(app)")
	c.wantPart("SHOW search_path", `D("$user", public)`)
	c.wantPart("EXECUTE p", "E(42501 ")
	c.want(change, "C(UPDATE 1) Z(I)")
	if got := p.Sessions()[0].UpstreamPID; got == c.pid {
		t.Error("the session has the process that it had")
	}
	rec := p.records.await(t, "the change", func(r audit.Record) bool { return strings.HasPrefix(r.SQL, "UPDATE") && r.Verdict == "allow" })
	if rec.UpstreamPID == c.pid {
		t.Error("the record names the process that the session had")
	}
	c.send(frame.AppendQuery(nil, "SELECT pg_sleep(77)"))
	p.awaitActive(t, "SELECT pg_sleep(77)")
	p.cancel(t, "127.0.0.1", c)
	if got := c.answer(); !strings.HasPrefix(got, "E(57014 ") {
		t.Errorf("Ctrl-C: %s", got)
	}

	// A transaction that is open keeps its connection, and nothing more is
	// written on it.
	c.want("BEGIN", "C(BEGIN) Z(T)")
	r.change(func(r *peopleRules) { r.alice.Elevate = policy.Elevate{} })
	p.Recheck(t.Context())
	c.untilNotice("write access has ended")
	c.wantPart(user, "D(app)", "Z(T)")
	c.want("COMMIT", "C(COMMIT) Z(I)")
	c.wantPart(user, lost+"read access)", "D(elevated_reader)")
	c.wantPart(change, noWrites)

	// Without a connection for the lower access the session ends.
	r.change(func(r *peopleRules) { r.alice.Elevate = policy.Elevate{Access: policy.Write, For: time.Hour} })
	p.Recheck(t.Context())
	c.wantPart("SET pgproxy.access = 'write'", "C(SET) Z(I)")
	down.Store(true)
	r.change(func(r *peopleRules) { r.alice.Elevate = policy.Elevate{} })
	p.Recheck(t.Context())
	if got := c.ended(); !strings.HasSuffix(got, "E(08001 pgproxy: the upstream is out of reach)") {
		t.Errorf("the session ends with %s", got)
	}
}

// A message that raises the access and ends it again has raised it.
func TestElevateAndResetInOneMessage(t *testing.T) {
	p, _ := startElevate(t, policy.Elevate{Access: policy.Write, By: policy.Approval, For: time.Hour})
	c := p.login(t)
	const both = "SET pgproxy.access = 'write'; RESET pgproxy.access"
	c.wantPart(both+"; SELECT 1", "E(0A000 ", "Z(I)")
	c.want("BEGIN", "C(BEGIN) Z(T)")
	c.want(both, "E(25001 pgproxy: SET pgproxy.access cannot run inside a transaction) Z(E)")
}

// A transaction that has changed rows writes nothing more once the raised access
// has ended, whatever becomes of its savepoints.
func TestElevationEndsInTransaction(t *testing.T) {
	makeTable(t, "elevated")
	upstreamtest.Shared(t).ExecAs(t, "postgres", "app", `CREATE OR REPLACE FUNCTION elevated_writes() RETURNS int LANGUAGE sql AS '`+change+` RETURNING n'`)
	p, _ := startElevate(t, policy.Elevate{Access: policy.Write, For: time.Hour})
	c := p.login(t)
	const refused = "E(25006 cannot execute UPDATE in a read-only transaction)"
	for name, steps := range map[string][]string{
		"behind a change":                     {change},
		"behind a savepoint that is released": {change, "SAVEPOINT s", change, "", "SELECT 1", "RELEASE s"},
		"released in the same message":        {"SAVEPOINT s", change, "", "SELECT 1", "RELEASE s; SELECT 1"},
		"rolled back to":                      {"SAVEPOINT s", change, "", "SELECT 1", "ROLLBACK TO s"},
		"two savepoints":                      {"SAVEPOINT s", "SAVEPOINT t", change, "", "SELECT 1", "RELEASE t", "SELECT 1", "RELEASE s"},
		"a savepoint of later":                {change, "", "SAVEPOINT s", "SELECT 1", "RELEASE s"},
	} {
		t.Run(name, func(t *testing.T) {
			c.t = t
			for _, last := range []string{"SELECT elevated_writes()", "SELECT 1; SELECT elevated_writes()", "RELEASE u; SELECT elevated_writes()"} {
				c.wantPart("SET pgproxy.access = 'write'", "C(SET) Z(I)")
				c.wantPart("BEGIN", "C(BEGIN) Z(T)")
				if strings.HasPrefix(last, "RELEASE u") {
					c.wantPart("SAVEPOINT u", "Z(T)")
				}
				given := true
				for _, sql := range steps {
					if sql == "" {
						sql, given = "RESET pgproxy.access", false
					}
					c.wantPart(sql, "Z(T)")
				}
				if given {
					c.wantPart("RESET pgproxy.access", "Z(T)")
				}
				c.wantPart(last, refused, "Z(E)")
				c.wantPart("ROLLBACK", "C(ROLLBACK)", "Z(I)")
			}
		})
	}
	c.t = t
	for _, r := range p.records.all() {
		if r.Event == audit.Tamper {
			t.Errorf("recorded %+v", r)
		}
	}
}

// What an admin has made of the session in a transaction that failed then is put
// back once the transaction works again.
func TestAdminEndsInFailedTransaction(t *testing.T) {
	pg := upstreamtest.Shared(t)
	p, _ := startElevate(t, policy.Elevate{Access: policy.Admin, For: time.Hour}, func(srv *Server) {
		config, err := upstream.ParseConfig(pg.DSN("postgres", "app"))
		if err != nil {
			t.Fatal(err)
		}
		srv.Dial = config.Dial
	})
	c := p.login(t)
	c.wantPart("SET pgproxy.access = 'admin'", "C(SET) Z(I)")
	for _, sql := range []string{"BEGIN", "SET SESSION AUTHORIZATION app; SET ROLE app", "SAVEPOINT s"} {
		c.wantPart(sql, "Z(T)")
	}
	c.wantPart("SELECT 1/0", "E(22012 ", "Z(E)")
	c.wantPart("RESET pgproxy.access", "Z(E)")
	c.wantPart("ROLLBACK TO s; SELECT current_user, session_user", "C(ROLLBACK)", "D(postgres,postgres)", "Z(T)")
	c.wantPart("COMMIT; SELECT current_user, session_user", "C(COMMIT)", "D(postgres,postgres)", "Z(I)")
}

// Whoever approves while the approver's rule or the asker's is taken away: no
// raised access is left in the end, and one that was given is on record as ended.
func TestApproveWhileRevoked(t *testing.T) {
	makeTable(t, "elevated")
	elevate := policy.Elevate{Access: policy.Write, By: policy.Approval, For: time.Hour}
	p, r := startElevate(t, elevate)
	by := Viewer{Caller: bob, Again: func(context.Context) (policy.Caller, policy.Rule, error) {
		rule, err := r.of(bob)
		return bob, rule, err
	}}
	given := 0
	for i := range 40 {
		r.change(func(r *peopleRules) { r.alice.Elevate, r.bob.MayApprove = elevate, true })
		c := p.login(t)
		id := p.ask(t, c)
		var wg sync.WaitGroup
		wg.Go(func() { p.Approve(context.Background(), by, id) })
		wg.Go(func() {
			r.change(func(r *peopleRules) {
				if i%2 == 0 {
					r.bob.MayApprove = false
				} else {
					r.alice.Elevate = policy.Elevate{}
				}
			})
			p.Recheck(context.Background())
		})
		wg.Wait()
		if i%2 == 0 {
			p.Refuse(context.Background(), Viewer{Caller: bob, Rule: policy.Rule{MayApprove: true}}, id) // or it would wait on
		}
		c.answer()
		if got := c.query(change); !strings.Contains(got, noWrites) {
			t.Errorf("round %d: a change after both: %s", i, got)
		}
		var steps []string
		for _, rec := range p.records.all() {
			if rec.Request == id && rec.Step != stepAsked && rec.Step != stepDenied {
				steps = append(steps, rec.Step)
			}
		}
		switch strings.Join(steps, " ") {
		case "given ended":
			given++
		case "ended", "refused":
		default:
			t.Errorf("round %d: recorded %v", i, steps)
		}
		c.conn.Close()
	}
	t.Logf("given and ended in %d rounds", given)
}

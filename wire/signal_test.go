package wire

import (
	"context"
	"errors"
	"fmt"
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
)

// signals lets bob signal, and nobody else.
func signals(srv *Server) {
	srv.Rules = func(c policy.Caller) (policy.Rule, error) {
		rule := policy.DefaultRule()
		rule.Access = policy.Read
		rule.MaySignal = c.Login == bob.Login
		return rule, nil
	}
}

// alive reports whether the server has a backend.
func alive(t *testing.T, pg *upstreamtest.Server, pid uint32) bool {
	t.Helper()
	return len(pg.Exec(t, fmt.Sprintf("SELECT 1 FROM pg_stat_activity WHERE pid = %d", pid))) > 0
}

func awaitGone(t *testing.T, pg *upstreamtest.Server, pid uint32) {
	t.Helper()
	for late := time.Now().Add(20 * time.Second); alive(t, pg, pid); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(late) {
			t.Fatalf("backend %d is still there", pid)
		}
	}
}

// signalRecords are the records of signals.
func (p *proxy) signalRecords() []audit.Record {
	return slices.DeleteFunc(p.records.all(), func(r audit.Record) bool { return r.Event != audit.Signal })
}

// From psql, another program's backend is ended by those who may, on record with
// whose it was; and by nobody else.
func TestSignalFromASession(t *testing.T) {
	p := startProxy(t, signals)
	pg := upstreamtest.Shared(t)
	alices, bobs := p.login(t), p.loginFrom(t, "127.0.0.2")
	victim := pg.Program(t, "app", "nightly-import")
	end := fmt.Sprintf("SELECT pg_terminate_backend(%d)", victim.PID())

	alices.wantPart(end, "E(42501 pgproxy: function pg_terminate_backend is refused)")
	if !alive(t, pg, victim.PID()) || len(p.signalRecords()) > 0 {
		t.Fatal("alice has signalled")
	}
	bobs.want(end, "D(t) C(SELECT 1) Z(I)")
	awaitGone(t, pg, victim.PID())
	rec := p.records.event(t, audit.Signal)
	if rec.User != bob.Login || rec.Session == "" || rec.PID != int64(victim.PID()) || rec.Function != "pg_terminate_backend" || rec.Verdict != "allow" ||
		rec.VictimRole != "app" || rec.VictimApplicationName != "nightly-import" || rec.VictimAddr != "local" || rec.BackendStart == "" {
		t.Errorf("on record is %+v", rec)
	}
	bobs.want(end, fmt.Sprintf("N(01000 PID %d is not a PostgreSQL backend process) D(f) C(SELECT 1) Z(I)", victim.PID()))
	bobs.wantPart("SELECT pg_cancel_backend(0)", "PID 0 is not", "D(f)")
	if n := len(p.signalRecords()); n != 1 {
		t.Errorf("%d signals are on record", n)
	}
}

// What a cancel reaches, its answer's shape, and where it stands in a
// transaction.
func TestCancelFromASession(t *testing.T) {
	p := startProxy(t, signals)
	pg := upstreamtest.Shared(t)
	bobs := p.loginFrom(t, "127.0.0.2")
	victim := pg.Program(t, "app", "report")
	ended := make(chan error)
	go func() { ended <- victim.Exec(context.Background(), "SELECT pg_sleep(60)").Close() }()
	for len(pg.Exec(t, fmt.Sprintf("SELECT 1 FROM pg_stat_activity WHERE pid = %d AND wait_event = 'PgSleep'", victim.PID()))) == 0 {
		time.Sleep(5 * time.Millisecond)
	}
	cancel := fmt.Sprintf("SELECT pg_catalog.pg_cancel_backend(%d) AS done", victim.PID())
	bobs.want("BEGIN", "C(BEGIN) Z(T)")
	bobs.send(frame.AppendQuery(nil, cancel))
	if f := bobs.next(); f.typ != 'T' || !strings.HasPrefix(string(f.body[2:]), "done\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x10\x00\x01") {
		t.Errorf("the columns are %q", f.body)
	}
	if got := bobs.answer(); got != "D(t) C(SELECT 1) Z(T)" {
		t.Error(got)
	}
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "57014") {
		t.Errorf("the report ended with %v", err)
	}
	bobs.wantPart("SELECT 1/0", "22012", "Z(E)")
	bobs.want(cancel, "E(25P02 current transaction is aborted, commands ignored until end of transaction block) Z(E)")
	bobs.want("ROLLBACK", "C(ROLLBACK) Z(I)")
}

// A function of somebody's own that has the name, earlier in search_path, is not
// called.
func TestSignalIsPostgreSQLs(t *testing.T) {
	p := startProxy(t, signals)
	pg := upstreamtest.Shared(t)
	pg.ExecAs(t, "app", "app", `CREATE SCHEMA mine; CREATE FUNCTION mine.pg_terminate_backend(integer) RETURNS boolean LANGUAGE sql AS 'SELECT 1/0 = 1'`)
	defer pg.ExecAs(t, "app", "app", "DROP SCHEMA mine CASCADE")
	bobs := p.loginFrom(t, "127.0.0.2")
	bobs.want("SET search_path = mine, pg_catalog", "C(SET) Z(I)")
	victim := pg.Program(t, "app", "shadowed")
	bobs.want(fmt.Sprintf("SELECT pg_terminate_backend(%d)", victim.PID()), "D(t) C(SELECT 1) Z(I)")
	awaitGone(t, pg, victim.PID())
}

// Everybody ends and cancels their own, whatever their rule; the session is told
// by whom. Other people's need may_signal.
func TestSignalOwnSession(t *testing.T) {
	p := startProxy(t, signals)
	one, other, bobs := p.login(t), p.login(t), p.loginFrom(t, "127.0.0.2")
	other.send(frame.AppendQuery(nil, "SELECT pg_sleep(60)"))
	p.awaitActive(t, "SELECT pg_sleep(60)")
	one.want(fmt.Sprintf("SELECT pg_cancel_backend(%d)", other.pid), "D(t) C(SELECT 1) Z(I)")
	if got := other.answer(); !strings.Contains(got, "E(57014 ") {
		t.Error(got)
	}
	one.wantPart(fmt.Sprintf("SELECT pg_cancel_backend(%d)", bobs.pid), "E(42501 ")
	one.want(fmt.Sprintf("SELECT pg_terminate_backend(%d, 5000)", other.pid), "D(t) C(SELECT 1) Z(I)")
	if got := other.ended(); got != "E(57P01 pgproxy: terminating connection due to administrator command)" {
		t.Error(got)
	}
	records := p.signalRecords()
	if len(records) != 2 || records[0].VictimUser != alice.Login || records[0].VictimSession == records[0].Session || records[1].Function != policy.TerminateBackend {
		t.Errorf("on record are %+v", records)
	}
	bobs.want(fmt.Sprintf("SELECT pg_terminate_backend(%d)", one.pid), "D(t) C(SELECT 1) Z(I)")
	one.ended()
	bobs.want(fmt.Sprintf("SELECT pg_terminate_backend(%d)", bobs.pid), "D(t) C(SELECT 1) Z(I)")
	bobs.ended()
}

// By the page, a signal is for one backend: with another start, or for another
// session, it hits nothing.
func TestSignalHitsNoSuccessor(t *testing.T) {
	p := startProxy(t)
	pg := upstreamtest.Shared(t)
	victim := pg.Program(t, "app", "successor")
	c := p.login(t)
	by := viewer("oncall@example.com", func(r *policy.Rule) { r.MaySignal = true })
	sig := Signal{Function: policy.TerminateBackend, Database: "app", Upstream: pg.Addr(), PID: int(victim.PID())}

	before := sig
	before.Start = time.Now().Add(-time.Hour)
	session := sig
	session.Session = "ended"
	mine := sig
	mine.PID, mine.Start = int(c.pid), time.Now()
	theirs := mine
	theirs.Start, theirs.Session = time.Time{}, "ended"
	for _, sig := range []Signal{before, session, mine, theirs} {
		if sent, err := p.Signal(t.Context(), by, sig); sent || !errors.Is(err, ErrNoBackend) {
			t.Errorf("%+v: %v, %v", sig, sent, err)
		}
	}
	if records := p.signalRecords(); len(records) > 0 || !alive(t, pg, victim.PID()) {
		t.Fatalf("signalled, on record is %+v", records)
	}
	view, err := p.LookAt(t.Context(), by, "")
	if err != nil {
		t.Fatal(err)
	}
	if len(view.Waiting) > 0 {
		t.Errorf("somebody waits: %+v", view.Waiting)
	}
	start := pg.Exec(t, fmt.Sprintf("SELECT to_char(backend_start AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') FROM pg_stat_activity WHERE pid = %d", victim.PID()))[0][0]
	if sig.Start, err = time.Parse(time.RFC3339Nano, start); err != nil {
		t.Fatal(err)
	}
	if sent, err := p.Signal(t.Context(), by, sig); !sent || err != nil {
		t.Errorf("the backend itself: %v, %v", sent, err)
	}
	awaitGone(t, pg, victim.PID())
}

// Without may_signal, without a record, and against pgproxy's own connections
// nothing is done.
func TestSignalRefused(t *testing.T) {
	p := startProxy(t, signals)
	pg := upstreamtest.Shared(t)
	victim := pg.Program(t, "app", "stays")
	helper := pg.Program(t, "app", upstream.HelperName("monitor"))
	elsewhere := pg.Exec(t, "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'")
	bobs := p.loginFrom(t, "127.0.0.2")
	sig := Signal{Function: policy.CancelBackend, Database: "app", Upstream: pg.Addr(), PID: int(victim.PID())}
	if _, err := p.Signal(t.Context(), observer(), sig); !errors.Is(err, ErrMaySignal) {
		t.Errorf("without may_signal: %v", err)
	}
	if rec := p.records.event(t, audit.Signal); rec.Verdict != "deny" || rec.User != "observer@example.com" || rec.PID != int64(sig.PID) {
		t.Errorf("on record is %+v", rec)
	}
	reasoned := viewer("oncall@example.com", func(r *policy.Rule) { r.MaySignal, r.RequireReason = true, true })
	if _, err := p.Signal(t.Context(), reasoned, sig); !errors.Is(err, ErrWantsReason) {
		t.Errorf("without a reason: %v", err)
	}
	bobs.wantPart(fmt.Sprintf("SELECT pg_terminate_backend(%d)", helper.PID()), "E(42501 pgproxy: the backend was not signalled)", "Z(I)")
	// Whether a process of the server's own may be signalled, and seen, is the
	// server's to say.
	bobs.wantPart(fmt.Sprintf("SELECT pg_terminate_backend(%s)", elsewhere[0][0]), "E(42501 ", "Z(I)")

	p.records.failWith(errors.New("disk full"))
	bobs.wantPart(fmt.Sprintf("SELECT pg_terminate_backend(%d)", victim.PID()), "E(58030 ", "Z(I)")
	by := viewer("oncall@example.com", func(r *policy.Rule) { r.MaySignal = true })
	if sent, err := p.Signal(t.Context(), by, sig); sent || !errors.Is(err, ErrUnrecorded) {
		t.Errorf("without a record: %v, %v", sent, err)
	}
	p.records.failWith(nil)
	if !alive(t, pg, victim.PID()) || !alive(t, pg, helper.PID()) {
		t.Error("signalled all the same")
	}
}

// The record of the signal itself is what fails: that of its statement was
// written.
func TestSignalRecordFails(t *testing.T) {
	full := &fullFor{event: audit.Signal}
	p := startProxy(t, signals, func(srv *Server) { full.Recorder, srv.Audit = srv.Audit, full })
	pg := upstreamtest.Shared(t)
	victim := pg.Program(t, "app", "stays")
	bobs := p.loginFrom(t, "127.0.0.2")
	own := p.loginFrom(t, "127.0.0.2")
	bobs.wantPart(fmt.Sprintf("SELECT pg_terminate_backend(%d)", victim.PID()), "E(58030 ", "Z(I)")
	bobs.wantPart(fmt.Sprintf("SELECT pg_terminate_backend(%d)", own.pid), "E(58030 ", "Z(I)")
	if !alive(t, pg, victim.PID()) {
		t.Error("ended without a record")
	}
	own.want("SELECT 1", "D(1) C(SELECT 1) Z(I)")
}

// fullFor takes all records but those of one event.
type fullFor struct {
	Recorder
	event audit.Event
}

func (f *fullFor) Write(rec *audit.Record) error {
	if rec.Event == f.event {
		return errors.New("disk full")
	}
	return f.Recorder.Write(rec)
}

// Several end the same backend at once, while its owner leaves.
func TestSignalRaces(t *testing.T) {
	p := startProxy(t, signals)
	for range 5 {
		victim := p.login(t)
		var wg sync.WaitGroup
		for range 3 {
			c := p.loginFrom(t, "127.0.0.2")
			wg.Go(func() {
				got := c.query(fmt.Sprintf("SELECT pg_terminate_backend(%d)", victim.pid))
				if !strings.HasSuffix(got, "C(SELECT 1) Z(I)") {
					t.Error(got)
				}
			})
		}
		victim.conn.Close()
		wg.Wait()
	}
}

// What is of no database, like a process of the server's own or a replica's
// receiver of the log, is not signalled.
func TestSignalOfNoDatabase(t *testing.T) {
	pg := upstreamtest.Shared(t)
	p := startProxyTo(t, pg.DSN("postgres", "app"), signals)
	const launcher = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'logical replication launcher'"
	rows := pg.Exec(t, launcher)
	if len(rows) != 1 {
		t.Fatalf("the launchers are %v", rows)
	}
	c := p.loginFrom(t, "127.0.0.2")
	c.want("SELECT pg_terminate_backend("+rows[0][0]+")", "E(42501 pgproxy: the backend was not signalled) Z(I)")
	if list := p.signalRecords(); len(list) > 0 {
		t.Errorf("recorded %+v", list)
	}
}

// A signal behind an access that another person has to approve is judged anew
// when that is given.
func TestSignalBehindApproval(t *testing.T) {
	pg := upstreamtest.Shared(t)
	p, r := startElevate(t, policy.Elevate{Access: policy.Write, By: policy.Approval, For: time.Hour})
	r.change(func(r *peopleRules) { r.alice.MaySignal = true })
	victim := pg.Program(t, "app", "nightly-import")
	c, bobs := p.login(t), p.loginFrom(t, "127.0.0.2")
	c.send(frame.AppendQuery(nil, fmt.Sprintf("SET pgproxy.access = 'write'; SELECT pg_terminate_backend(%d)", victim.PID())))
	_, id, _ := strings.Cut(c.untilNotice("waiting for another person"), "approve request ")
	r.change(func(r *peopleRules) { r.alice.MaySignal = false })
	p.Recheck(t.Context())
	bobs.want("SET pgproxy.approve = '"+id[:6]+"'", "C(SET) Z(I)")
	if got := c.answer(); !strings.HasSuffix(got, "E(42501 pgproxy: the backend was not signalled) Z(I)") {
		t.Errorf("got %s", got)
	}
	if !alive(t, pg, victim.PID()) {
		t.Error("it was ended")
	}
}

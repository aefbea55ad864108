package wire

import (
	"slices"
	"sync"
	"testing"

	"pgproxy/policy"
	"pgproxy/upstream/upstreamtest"
	"pgproxy/wire/audit"

	"pgproxy/wire/frame"
)

// What happens in a session is recorded in its order, with its fields.
func TestAuditOrder(t *testing.T) {
	makeTable(t, "ordered")
	p := startProxy(t)
	c := p.login(t, "application_name", "test")
	c.want("SELECT generate_series(1, 3)", "D(1) D(2) D(3) C(SELECT 3) Z(I)")
	c.want("UPDATE ordered SET n = 1 WHERE id = 1", "C(UPDATE 1) Z(I)")
	c.wantPart("DROP TABLE ordered", "E(42501", "Z(I)")
	c.want("BEGIN", "C(BEGIN) Z(T)")
	c.wantPart("SELECT 1/0", "E(22012", "Z(E)")
	c.send(frame.Append(nil, 'X'))
	p.records.event(t, audit.Disconnect)

	type short struct {
		event         audit.Event
		seq           int64
		verdict, tag  string
		sqlstate, tx  string
		rows, changed int64 // -1 = not said
	}
	number := func(n *int64) int64 {
		if n == nil {
			return -1
		}
		return *n
	}
	var got []short
	list := p.records.all()
	for _, rec := range list {
		got = append(got, short{rec.Event, rec.Seq, rec.Verdict, rec.Tag, rec.SQLState, rec.TX, number(rec.Rows), number(rec.Affected)})
	}
	want := []short{
		{audit.Connect, 0, "", "", "", "", -1, -1},
		{audit.Query, 1, "allow", "", "", "I", -1, -1},
		{audit.Result, 1, "", "SELECT 3", "", "I", 3, -1},
		{audit.Query, 2, "allow", "", "", "I", -1, -1},
		{audit.Result, 2, "", "UPDATE 1", "", "I", 0, 1},
		{audit.Query, 3, "deny", "", "42501", "I", -1, -1},
		{audit.Query, 4, "allow", "", "", "I", -1, -1},
		{audit.Result, 4, "", "BEGIN", "", "T", 0, -1},
		{audit.Query, 5, "allow", "", "", "T", -1, -1},
		{audit.Result, 5, "", "", "22012", "E", 0, -1},
		{audit.Disconnect, 0, "", "", "", "", 3, -1},
	}
	if !slices.Equal(got, want) {
		t.Errorf("\n got %+v\nwant %+v", got, want)
	}
	for _, rec := range list {
		if rec.Session != list[0].Session || rec.User != "alice@example.com" || rec.Node != "alice-laptop" || rec.NodeID != "n1" || rec.Addr == "" ||
			rec.Database != "app" || rec.Upstream == "" || rec.UpstreamPID != c.pid || rec.Client != "test" || rec.RequestedUser != "x" ||
			rec.ApplicationName != Stamp(alice, "") {
			t.Errorf("fields are missing: %+v", rec)
		}
		switch rec.Event {
		case audit.Query:
			if rec.SQL == "" || len(rec.Kinds) != 1 || rec.Rule == "" {
				t.Errorf("fields are missing: %+v", rec)
			}
		case audit.Result:
			if rec.DurationMS == nil || rec.Bytes == nil || rec.SQL != "" {
				t.Errorf("fields of a result: %+v", rec)
			}
		case audit.Disconnect:
			if rec.EndReason != "client closed" || rec.DurationMS == nil || *rec.Statements != 5 {
				t.Errorf("fields of the end: %+v", rec)
			}
		}
	}
}

// watchedRecorder calls back before each record.
type watchedRecorder struct {
	Recorder
	before func(*audit.Record)
}

func (w *watchedRecorder) Write(rec *audit.Record) error {
	w.before(rec)
	return w.Recorder.Write(rec)
}

// The record is there before the statement is: while a query's record is being
// written the server has nothing of it.
func TestRecordComesBeforeTheStatement(t *testing.T) {
	makeTable(t, "recorded_first")
	pg := upstreamtest.Shared(t)
	const sql = "UPDATE recorded_first SET n = 1 WHERE id = 1"
	var once sync.Once
	p := startProxy(t, func(srv *Server) {
		srv.Audit = &watchedRecorder{srv.Audit, func(rec *audit.Record) {
			if rec.Event != audit.Query {
				return
			}
			once.Do(func() {
				if rows := pg.Exec(t, "SELECT 1 FROM pg_stat_activity WHERE query = "+policy.QuoteLiteral(sql)); len(rows) > 0 {
					t.Error("the server has the statement before it is recorded")
				}
				if got := value(t, "recorded_first"); got != "0" {
					t.Errorf("the row holds %s before it is recorded", got)
				}
			})
		}}
	})
	c := p.login(t)
	c.want(sql, "C(UPDATE 1) Z(I)")
	if got := value(t, "recorded_first"); got != "1" {
		t.Errorf("the row holds %s", got)
	}
}

// A connection that becomes no session leaves one record, of who asked for what.
func TestRefusalIsRecorded(t *testing.T) {
	p := startProxy(t, withRule(func(r *policy.Rule) { r.Databases = []string{} }))
	c := p.dial(t, "127.0.0.2")
	c.send(startupPacket(protocol3, "user", "somebody", "application_name", "tool"))
	c.ended()
	rec := p.records.event(t, audit.Refuse)
	if rec.SQLState != "3D000" || rec.Error == "" || rec.User != "bob@example.com" || rec.Node != "bob-phone" || rec.RequestedUser != "somebody" ||
		rec.Client != "tool" || rec.UpstreamPID != 0 {
		t.Errorf("recorded %+v", rec)
	}
	p.Close()
	if n := len(p.records.all()); n != 1 {
		t.Errorf("%d records", n)
	}
}

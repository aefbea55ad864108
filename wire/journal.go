package wire

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"pgproxy/policy"
	"pgproxy/upstream"
	"pgproxy/upstream/activity"
	"pgproxy/wire/audit"
	"pgproxy/wire/exchange"
)

// journal tells what happens to a session. It has one method for each event,
// which writes the record, counts, logs, and keeps what people may look at
// later. Nothing else makes audit records.
//
// Methods that return an error tell of something that is not to be done unless
// it is recorded: if they fail, the caller must not do it.
type journal struct {
	srv *Server
	log *slog.Logger
	// about is what every record of the session says. The session's goroutine
	// fills it in before the session is ready. From there on aboutMu guards what of
	// it may change, its upstream.
	about   audit.Record
	aboutMu sync.Mutex
	terms   *ruling // the session's
	totals  totals

	redactor policy.Redactor // the session goroutine's own
}

// totals are what a session has had so far. The session's goroutine writes
// them, and anyone may read.
type totals struct {
	statements, rows, bytes atomic.Int64
	// What the running statement has sent, which is not in rows and bytes yet.
	sentRows, sentBytes atomic.Int64
}

// identified takes who is calling.
func (j *journal) identified(c policy.Caller) {
	j.about.User, j.about.Node, j.about.NodeID, j.about.Tags, j.about.Addr = c.Who(), c.Node, c.NodeID, c.Tags, c.Addr
}

// record makes a record of the session.
func (j *journal) record(event audit.Event) *audit.Record {
	j.aboutMu.Lock()
	rec := j.about
	j.aboutMu.Unlock()
	rec.Time, rec.Event, rec.Reason = time.Now(), event, j.terms.reason()
	if e, ok := j.terms.elevation(); ok {
		e.describe(&rec)
	}
	return &rec
}

// moved takes the server that the session has from now on.
func (j *journal) moved(up *upstream.Conn) {
	j.aboutMu.Lock()
	defer j.aboutMu.Unlock()
	j.about.Upstream, j.about.UpstreamPID = up.Addr, up.PID
}

// connected tells that the session is ready.
func (j *journal) connected(client string, access policy.Access) error {
	if err := j.srv.write(j.record(audit.Connect)); err != nil {
		return err
	}
	j.log.Info("session started", "client", client, "access", access.String(), "upstream_pid", j.about.UpstreamPID)
	return nil
}

// refused tells of a connection that has not become a session.
func (j *journal) refused(e *sessionError) {
	j.srv.metrics.refused(e.code)
	rec := j.record(audit.Refuse)
	rec.SQLState, rec.Error = e.code, policy.RedactError(policy.Redacted, e.code, e.message, "", "")
	j.srv.record(rec)
	j.srv.notify(fmt.Sprintf("refused a connection of %s on %s: %s %s", cmp.Or(rec.User, "somebody"), cmp.Or(rec.Node, "an unknown device"), rec.SQLState, rec.Error))
	j.log.Info("connection refused", "sqlstate", e.code, "error", rec.Error, errAttr(e.cause))
}

// queryRecord is the record of a statement before its verdict.
func (j *journal) queryRecord(st *statement) *audit.Record {
	rec := j.record(audit.Query)
	rec.Seq, rec.TX, rec.DryRun = st.seq, string(st.txStatus), st.dry()
	rec.SQL, rec.SQLRedacted = st.shown, st.masked
	rec.Fingerprint = policy.Fingerprint(st.sql, st.msg)
	return rec
}

// dry reports whether the statement is a dry run, which pgproxy's own are not.
func (st *statement) dry() bool {
	return st.rule.DryRun && (st.msg == nil || st.own < len(st.msg.Statements))
}

// asked tells that a statement is about to be served.
func (j *journal) asked(st *statement, d policy.Decision) error {
	rec := j.queryRecord(st)
	rec.Verdict, rec.Rule, rec.Kinds = "allow", d.Rule, d.Kinds
	if err := j.srv.write(rec); err != nil {
		return err
	}
	j.srv.metrics.statement(d.Kinds)
	return nil
}

// denied tells that a statement was refused. Nothing of it was sent.
func (j *journal) denied(st *statement, d policy.Decision) {
	rec := j.queryRecord(st)
	rec.Verdict, rec.Rule, rec.Kinds = "deny", d.Refusal.Rule, d.Kinds
	rec.SQLState = d.Refusal.Code
	rec.Error = j.redactError(st, d.Refusal.Code, d.Refusal.Message)
	st.keepHead(rec)
	j.srv.record(rec)
	j.srv.metrics.refusal(d.Refusal.Rule)
	j.srv.metrics.denied(d.Kinds)
	j.srv.hour.refused(rec.Time)
	j.log.Info("statement refused", "seq", st.seq, "rule", d.Refusal.Rule, "sqlstate", d.Refusal.Code)
	j.remember(st, exchange.Outcome{SQLState: d.Refusal.Code, Failure: rec.Error}, true)
}

// answered tells what came of a statement.
func (j *journal) answered(st *statement, o exchange.Outcome, txStatus byte) {
	took := time.Since(st.began)
	if o.Failure != "" {
		o.Failure = j.redactError(st, o.SQLState, o.Failure)
	}
	rec := j.record(audit.Result)
	rec.Seq, rec.DryRun, rec.Tag, rec.SQLState, rec.Error = st.seq, st.dry(), o.Tag, o.SQLState, o.Failure
	rec.Rows, rec.Bytes, rec.Truncated, rec.Cancelled = &o.Rows, &o.Bytes, o.Truncated, o.Cancelled
	if o.Changed {
		rec.Affected = &o.Affected
	}
	rec.DurationMS, rec.TX = milliseconds(took), string(txStatus)
	j.srv.record(rec)
	j.totals.sentRows.Store(0)
	j.totals.sentBytes.Store(0)
	j.totals.rows.Add(o.Rows)
	j.totals.bytes.Add(o.Bytes)
	j.srv.metrics.result(took, o)
	j.srv.hour.answered(rec.Time, took, o.SQLState != "")
	j.remember(st, o, false)
	if j.log.Enabled(context.Background(), slog.LevelDebug) {
		j.log.Debug("statement", "seq", st.seq, "tag", o.Tag, "rows", o.Rows, "bytes", o.Bytes,
			"sqlstate", o.SQLState, "took", took, "truncated", o.Truncated)
	}
}

// remember keeps a statement that has ended for looking at.
func (j *journal) remember(st *statement, o exchange.Outcome, denied bool) {
	j.srv.history.add(Past{
		Time: st.began, Session: j.about.Session, User: j.about.User, Node: j.about.Node, Database: j.about.Database, Seq: st.seq,
		SQL: policy.Cut(st.shown, shownSQL), Tag: o.Tag, SQLState: o.SQLState, Error: o.Failure, Denied: denied, Truncated: o.Truncated,
		Rows: o.Rows, Bytes: o.Bytes, Took: time.Since(st.began),
		own: st.own > 0 && st.own == len(st.msg.Statements),
	})
}

// lifted tells that the user has changed a setting of their own, or was refused.
func (j *journal) lifted(seq int64, verb, name, value string, r *policy.Refusal) {
	rec := j.record(audit.Lift)
	rec.Seq, rec.Verdict = seq, "allow"
	if r != nil {
		rec.Verdict = "deny"
	}
	j.redactLift(rec, verb, name, value, r)
	j.srv.record(rec)
}

// The steps of raising a session's access, as records have them.
const (
	stepAsked   = "asked"
	stepGiven   = "given"
	stepRefused = "refused"
	stepDenied  = "denied" // somebody wanted to answer a request who may not
	stepEnded   = "ended"  // what was given, or a request that nobody has answered
)

// elevated tells of a step of raising the session's access. r is why it was
// refused, nil where it was not.
func (j *journal) elevated(step string, e elevation, r *policy.Refusal) error {
	rec := j.record(audit.Elevate)
	e.describe(rec)
	rec.Step, rec.Request, rec.EndReason = step, e.request, e.why
	if e.approver != nil {
		rec.Approver = e.approver.name()
	}
	switch {
	case r != nil:
		rec.Verdict, rec.SQLState, rec.Error, rec.Rule = "deny", r.Code, r.Message, r.Rule
		j.srv.metrics.refusal(r.Rule)
	case step == stepGiven:
		rec.Verdict = "allow"
	}
	if err := j.srv.write(rec); err != nil {
		return err
	}
	j.log.Info("access "+step, "access", rec.Access, "request", rec.Request, "approver", rec.Approver, "why", rec.EndReason+rec.Error)
	return nil
}

// noteElevated is elevated for what has happened, whatever becomes of its record.
func (j *journal) noteElevated(step string, e elevation, r *policy.Refusal) {
	if err := j.elevated(step, e, r); err != nil {
		j.log.Error("audit record not written", "err", err)
	}
}

// describe puts an elevation into a record.
func (e elevation) describe(rec *audit.Record) {
	rec.Access, rec.Until = e.Access.String(), nil
	if !e.until.IsZero() {
		until := e.until.UTC()
		rec.Until = &until
	}
}

// tampered tells that a protected setting was found changed.
func (j *journal) tampered(seq int64, setting string) {
	rec := j.record(audit.Tamper)
	rec.Seq, rec.Tampered = seq, setting
	j.srv.record(rec)
	j.srv.metrics.refusal("tamper")
	j.srv.notify(fmt.Sprintf("a protected setting was changed: %s, by %s on %s (session %s)", setting, rec.User, rec.Node, rec.Session))
	j.log.Warn("a protected setting was changed", "seq", seq, "setting", setting)
}

// cancelled tells what came of a request to cancel a statement, and who has
// made it where it was not the session's own client. seq is 0 where nothing was
// running; sent says that the statement was told, or is not sent.
func (j *journal) cancelled(by string, seq int64, outcome string, sent bool, err error) {
	rec := j.record(audit.Cancel)
	rec.EndReason, rec.Verdict, rec.Seq = "user request", "allow", seq
	if by != "" {
		rec.EndReason = "statement cancelled by " + by
	}
	rec.Cancelled = sent
	if err != nil {
		rec.Error = ErrUndelivered.Error()
		j.log.Warn("cancel request", "err", err)
	}
	j.srv.record(rec)
	j.srv.metrics.cancel(outcome)
}

// killed tells that somebody ends the session.
func (j *journal) killed(by string) error {
	rec := j.record(audit.Cancel)
	rec.EndReason, rec.Verdict = "session ended by "+by, "allow"
	return j.srv.write(rec)
}

// signalRecord is the record of a signal.
func (j *journal) signalRecord(sig *Signal) *audit.Record {
	rec := j.record(audit.Signal)
	rec.PID, rec.Function = int64(sig.PID), sig.Function
	return rec
}

// signalled tells that a backend is about to be signalled. s is the session of
// pgproxy's that it serves, nil for none.
func (j *journal) signalled(sig *Signal, b *activity.Backend, s *session) error {
	rec := j.signalRecord(sig)
	rec.Verdict, rec.VictimRole, rec.VictimApplicationName, rec.VictimAddr = "allow", b.Role, b.Application, b.Addr
	if !b.Start.IsZero() {
		rec.BackendStart = b.Start.UTC().Format(time.RFC3339Nano)
	}
	if s != nil {
		rec.VictimUser, rec.VictimSession, rec.VictimAddr = s.caller.Who(), s.id, s.caller.Addr
	}
	if err := j.srv.write(rec); err != nil {
		return err
	}
	j.srv.metrics.signal(sig.Function)
	j.log.Info("a backend is signalled", "function", sig.Function, "pid", sig.PID, "by", j.about.User, "victim", rec.VictimUser,
		"victim_role", b.Role, "victim_session", rec.VictimSession)
	return nil
}

// signalRefused tells that somebody wanted to signal what they may not.
func (j *journal) signalRefused(sig *Signal, why error) {
	rec := j.signalRecord(sig)
	rec.Verdict, rec.Rule, rec.SQLState, rec.Error = "deny", "may_signal", codeInsufficientPriv, why.Error()
	j.srv.record(rec)
	j.srv.metrics.refusal("may_signal")
}

// meddled tells that somebody wanted to cancel or end what they may not.
func (j *journal) meddled(by string) {
	rec := j.record(audit.Cancel)
	rec.EndReason, rec.Verdict, rec.Rule = by+" wanted to act on this session", "deny", "may_kill"
	rec.SQLState, rec.Error = codeInsufficientPriv, ErrNotAllowed.Error()
	j.srv.record(rec)
	j.srv.metrics.cancel(cancelRefused)
}

// observed tells that somebody has looked at another person's session, which may
// be over.
func (srv *Server) observed(by Viewer, id, user string) error {
	rec := &audit.Record{Time: time.Now(), Event: audit.Observe, Session: id, User: user, Observer: by.name()}
	if err := srv.write(rec); err != nil {
		return err
	}
	srv.Logger.Info("session observed", "session", id, "user", user, "by", by.Who(), "node", by.Node)
	return nil
}

// ended tells that the session has ended.
func (j *journal) ended(e *sessionError, lasted time.Duration) {
	rec := j.record(audit.Disconnect)
	rec.EndReason, rec.SQLState, rec.DurationMS = string(e.reason), e.code, milliseconds(lasted)
	statements, rows, bytes := j.totals.statements.Load(), j.totals.rows.Load(), j.totals.bytes.Load()
	rec.Statements, rec.Rows, rec.Bytes = &statements, &rows, &bytes
	j.srv.record(rec)
	j.srv.metrics.ended(e.reason)
	level := slog.LevelInfo
	if e.reason == reasonInternal {
		level = slog.LevelError
	}
	j.log.Log(context.Background(), level, "session ended", "reason", string(e.reason), "lasted", lasted.Round(time.Millisecond),
		"statements", statements, "rows", rows, "bytes", bytes, errAttr(e.cause))
}

// cancelDropped tells of a cancel request that reached nobody. err is why its
// sender is not known, if that is why.
func (srv *Server) cancelDropped(caller policy.Caller, err error) {
	srv.metrics.cancel(cancelDropped)
	if !srv.dropped.add(caller) {
		return
	}
	srv.record(droppedRecord(caller))
	srv.Logger.Info("cancel request dropped", "user", caller.Who(), "node", caller.Node, "addr", caller.Addr, errAttr(err))
}

// cancelsDropped tells of the cancel requests of a period that were not told of
// by themselves.
func (srv *Server) cancelsDropped(now time.Time) {
	for _, c := range srv.dropped.take(now) {
		if more := c.count - droppedAlone; more > 0 {
			rec := droppedRecord(c.Caller)
			rec.Error = fmt.Sprintf("%d more cancel requests reached nobody within %v", more, droppedPeriod)
			srv.record(rec)
			srv.Logger.Info("cancel requests dropped", "more", more, "user", c.Who(), "node", c.Node)
		}
	}
}

func droppedRecord(caller policy.Caller) *audit.Record {
	var j journal
	j.identified(caller)
	rec := j.about
	rec.Time, rec.Event, rec.Verdict = time.Now(), audit.Cancel, "deny"
	return &rec
}

// record writes an audit record that nothing depends on: what it tells of has
// happened. A failure is logged.
func (srv *Server) record(rec *audit.Record) {
	if err := srv.write(rec); err != nil {
		srv.Logger.Error("audit record not written", "event", string(rec.Event), "session", rec.Session, "err", err)
	}
}

// write writes an audit record. All of them pass here, to be masked and timed.
func (srv *Server) write(rec *audit.Record) error {
	redact(rec)
	began := time.Now()
	err := srv.Audit.Write(rec)
	srv.metrics.recorded(time.Since(began), err)
	return err
}

func errAttr(err error) slog.Attr {
	if err == nil {
		return slog.Attr{}
	}
	return slog.String("err", policy.RedactText(err.Error())) // it may quote what a client chose
}

func milliseconds(d time.Duration) *float64 {
	ms := float64(d.Microseconds()) / 1000
	return &ms
}

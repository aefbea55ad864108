package wire

import (
	"errors"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pgproxy/policy"
	"pgproxy/upstream"
	"pgproxy/wire/exchange"
)

// metrics are the server's numbers. No label holds anything that a client
// chose: not SQL, not names.
type metrics struct {
	once sync.Once

	sessionsEnded  *prometheus.CounterVec
	connsRefused   *prometheus.CounterVec
	statements     *prometheus.CounterVec
	allowed        tally // statements, by kind
	refusals       *prometheus.CounterVec
	errorsByClass  *prometheus.CounterVec
	duration       prometheus.Histogram
	rows, bytes    prometheus.Counter
	caps           *prometheus.CounterVec
	cancels        *prometheus.CounterVec
	signals        *prometheus.CounterVec
	auditTime      prometheus.Histogram
	auditFailed    prometheus.Counter
	connectTime    prometheus.Histogram
	connectFailure *prometheus.CounterVec
}

func (m *metrics) init() {
	m.once.Do(func() {
		counter := func(name, help string, labels ...string) *prometheus.CounterVec {
			return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "pgproxy", Name: name, Help: help}, labels)
		}
		single := func(name, help string) prometheus.Counter {
			return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "pgproxy", Name: name, Help: help})
		}
		// Ten buckets, each four times the one before: from 0.5 ms to 2 min,
		// or from 10 µs to 2.6 s.
		histogram := func(name, help string, from float64) prometheus.Histogram {
			return prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "pgproxy", Name: name, Help: help,
				Buckets: prometheus.ExponentialBuckets(from, 4, 10)})
		}
		m.sessionsEnded = counter("sessions_ended_total", "Sessions that ended, by reason.", "reason")
		m.connsRefused = counter("connections_refused_total", "Connections refused, by SQLSTATE.", "sqlstate")
		m.statements = counter("statements_total", "Statements judged, by kind (PostgreSQL's command tag) and verdict.", "kind", "verdict")
		m.allowed.counter = func(kind string) prometheus.Counter { return m.statements.WithLabelValues(kind, "allow") }
		m.refusals = counter("refusals_total", "Statements and messages refused, by rule.", "rule")
		m.errorsByClass = counter("statement_errors_total", "Statements that ended in an error, by class of SQLSTATE.", "class")
		m.duration = histogram("statement_duration_seconds", "From a statement's arrival to the end of its answer.", 0.0005)
		m.rows = single("rows_total", "Rows sent to clients.")
		m.bytes = single("bytes_total", "Bytes of answers sent to clients.")
		m.caps = counter("caps_total", "Statements cut short by a cap.", "cap")
		m.cancels = counter("cancels_total", "Cancel requests, by outcome.", "outcome")
		m.signals = counter("signals_total", "Backends cancelled and ended on a person's behalf, by PostgreSQL's function.", "function")
		m.auditTime = histogram("audit_write_seconds", "Time to write an audit record.", 0.00001)
		m.auditFailed = single("audit_failures_total", "Audit records that could not be written.")
		m.connectTime = histogram("upstream_connect_seconds", "Time to open an upstream connection.", 0.0005)
		m.connectFailure = counter("upstream_connect_failures_total", "Upstream connections that failed, by SQLSTATE.", "sqlstate")
		m.beginAtZero()
	})
}

// beginAtZero makes the counters of all labels that can be known beforehand: the
// rate of one that appears with its first event misses that event.
func (m *metrics) beginAtZero() {
	for vec, values := range map[*prometheus.CounterVec][]string{
		m.sessionsEnded:  endReasons,
		m.connsRefused:   {codeCannotConnect, codeProtocolViolation, codeFeatureNotSupported, codeBadEncoding, codeInvalidAuthorization, codeInvalidCatalogName, codeInsufficientPriv, codeUndefinedObject, codeTooManyConnections, codeCannotConnectNow, codeIOError},
		m.refusals:       refusalRules,
		m.errorsByClass:  append(strings.Fields(errorClasses), "other"),
		m.caps:           {"max_rows", "max_bytes", "max_affected_rows", "statement_timeout"},
		m.cancels:        {cancelSent, cancelCoalesced, cancelIdle, cancelTooLate, cancelUnsent, cancelFailed, cancelDropped, cancelRefused},
		m.signals:        {policy.CancelBackend, policy.TerminateBackend},
		m.connectFailure: {codeCannotConnect, codeInvalidAuthorization, "28P01", codeInvalidCatalogName, codeTooManyConnections, codeCannotConnectNow},
	} {
		for _, value := range values {
			vec.WithLabelValues(value)
		}
	}
	for _, kind := range usualKinds {
		m.statements.WithLabelValues(kind, "allow")
		m.statements.WithLabelValues(kind, "deny")
	}
	m.statements.WithLabelValues(unread, "deny")
}

// endReasons are all reasons for the end of a session.
var endReasons = []string{
	string(reasonClient), string(reasonClientLost), string(reasonSlow), string(reasonIdle), string(reasonIdleTransaction), string(reasonUpstream), string(reasonShutdown), string(reasonRevoked),
	string(reasonKilled), string(reasonProtocol), string(reasonStuck), string(reasonTampered), string(reasonCancelLost), string(reasonInternal),
}

// refusalRules are all rules that refuse a statement or a message, the policy's
// and the session's.
var refusalRules = []string{
	"access", "canceled", "catalog", "copy", "deny", "dry_run", "elevate", "encoding", "extended", "function", "function call", "length", "lift", "may_approve", "may_lift", "may_signal", "memory", "message", "only", "own_settings",
	"parse", "pinned_setting", "prepared", "protected_setting", "read_only", "reason", "require_reason", "require_where", "syntax", "tamper", "too_complex", "too_large",
	"unknown", "unknown_setting",
}

// usualKinds are the kinds of statements that every day has. Of the others there
// are too many.
var usualKinds = []string{"SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "BEGIN", "COMMIT", "ROLLBACK", "SET", "SHOW", "EXPLAIN"}

// unread is the kind of a statement that could not be read.
const unread = "unread"

// Collectors are the server's metrics, for the registry of who serves them.
func (srv *Server) Collectors() []prometheus.Collector {
	m := &srv.metrics
	m.init()
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "pgproxy", Name: name, Help: help}, value)
	}
	return []prometheus.Collector{
		gauge("sessions", "Live sessions.", func() float64 { return float64(len(srv.live())) }),
		gauge("sessions_limit", "Sessions that there may be; 0 = no limit.", func() float64 { return float64(srv.MaxSessions) }),
		m.sessionsEnded, m.connsRefused, m.statements, m.refusals, m.errorsByClass, m.duration, m.rows, m.bytes,
		m.caps, m.cancels, m.signals, m.auditTime, m.auditFailed, m.connectTime, m.connectFailure,
	}
}

func (m *metrics) ended(r reason)          { m.sessionsEnded.WithLabelValues(string(r)).Inc() }
func (m *metrics) refused(sqlstate string) { m.connsRefused.WithLabelValues(sqlstate).Inc() }
func (m *metrics) refusal(rule string)     { m.refusals.WithLabelValues(rule).Inc() }
func (m *metrics) capped(which string)     { m.caps.WithLabelValues(which).Inc() }
func (m *metrics) cancel(outcome string)   { m.cancels.WithLabelValues(outcome).Inc() }
func (m *metrics) signal(function string)  { m.signals.WithLabelValues(function).Inc() }

// statement counts the statements of a message that is about to be sent.
func (m *metrics) statement(kinds []string) {
	for _, kind := range kinds {
		m.allowed.inc(kind)
	}
}

// denied counts the statements of a message that is not sent; of one that
// could not be read, nobody knows the kinds.
func (m *metrics) denied(kinds []string) {
	if len(kinds) == 0 {
		kinds = []string{unread}
	}
	for _, kind := range kinds {
		m.statements.WithLabelValues(kind, "deny").Inc()
	}
}

func (m *metrics) result(took time.Duration, o exchange.Outcome) {
	m.duration.Observe(took.Seconds())
	m.rows.Add(float64(o.Rows))
	m.bytes.Add(float64(o.Bytes))
	if o.SQLState != "" {
		m.errorsByClass.WithLabelValues(errorClass(o.SQLState)).Inc()
	}
}

func (m *metrics) recorded(took time.Duration, err error) {
	m.auditTime.Observe(took.Seconds())
	if err != nil {
		m.auditFailed.Inc()
	}
}

func (m *metrics) connected(took time.Duration, err error) {
	if err == nil {
		m.connectTime.Observe(took.Seconds())
		return
	}
	code := codeCannotConnect
	if d, ok := errors.AsType[*upstream.DialError](err); ok {
		code = d.Code
	}
	m.connectFailure.WithLabelValues(code).Inc()
}

// errorClasses are PostgreSQL's own classes of SQLSTATE (errcodes.txt).
const errorClasses = " 03 08 09 0A 0B 0F 0L 0P 0Z 10 20 21 22 23 24 25 26 27 28 2B 2D 2F 34 38 39 3B 3D 3F 40 42 44 53 54 55 57 58 72 F0 HV P0 XX "

// errorClass is the class of an SQLSTATE. RAISE … USING ERRCODE takes any five
// characters, so that those of no class of PostgreSQL's count as one.
func errorClass(sqlstate string) string {
	if class := sqlstate[:min(2, len(sqlstate))]; strings.Contains(errorClasses, " "+class+" ") {
		return class
	}
	return "other"
}

// tally counts by a label's value, without the cost of looking the value up in
// its vector each time. Safe for concurrent use.
type tally struct {
	counter func(value string) prometheus.Counter
	known   atomic.Pointer[map[string]prometheus.Counter] // never changed, only replaced
}

func (t *tally) inc(value string) {
	known := t.known.Load()
	if known != nil {
		if c := (*known)[value]; c != nil {
			c.Inc()
			return
		}
	}
	c := t.counter(value)
	c.Inc()
	more := map[string]prometheus.Counter{value: c}
	if known != nil {
		maps.Copy(more, *known)
	}
	t.known.CompareAndSwap(known, &more) // whoever lost looks it up once more
}

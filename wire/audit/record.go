package audit

import "time"

// Event names what a record tells of.
type Event string

// The events, in the order a session meets them.
const (
	Connect    Event = "connect"    // session admitted, upstream ready
	Refuse     Event = "refuse"     // connection refused
	Query      Event = "query"      // before the statement is sent, or when it is denied
	Result     Event = "result"     // the same session and seq, afterwards
	Cancel     Event = "cancel"     // a cancel request, forwarded or dropped
	Lift       Event = "lift"       // a cap or timeout changed, or a reason given
	Elevate    Event = "elevate"    // another access asked for, given, refused, ended
	Tamper     Event = "tamper"     // a protected setting was seen changed
	Observe    Event = "observe"    // somebody looked at another person's session
	Signal     Event = "signal"     // another backend is about to be cancelled or ended
	Disconnect Event = "disconnect" // why, how long, how much
)

// Record is one audit event: one JSON object on one line. Field names are
// stable; fields may be added. Empty fields are left out, apart from those
// that say something by being zero (pointers below).
//
// The Writer adds fields of its own. "torn" counts bytes before the record that
// are no record, left by a crash. "chain", "prev" and "hash" are the chain: see
// the package comment.
type Record struct {
	Time    time.Time `json:"time"`
	Event   Event     `json:"event"`
	Session string    `json:"session,omitempty"`
	// Seq numbers the statements of a session from 1; a result bears its
	// query's number.
	Seq int64 `json:"seq,omitempty"`

	// Who, from where.
	User   string   `json:"user,omitempty"`
	Node   string   `json:"node,omitempty"`
	NodeID string   `json:"node_id,omitempty"`
	Tags   []string `json:"tags,omitempty"`
	Addr   string   `json:"addr,omitempty"`

	// To what.
	Database        string `json:"database,omitempty"`
	Upstream        string `json:"upstream,omitempty"` // host:port, never credentials
	UpstreamPID     uint32 `json:"upstream_pid,omitempty"`
	ApplicationName string `json:"application_name,omitempty"` // the stamp
	Client          string `json:"client,omitempty"`           // the client's own application_name
	RequestedUser   string `json:"requested_user,omitempty"`
	Reason          string `json:"reason,omitempty"`     // pgproxy.reason: the user's own
	EndReason       string `json:"end_reason,omitempty"` // why a session or statement was ended, or who wanted it

	// What was asked, and the verdict on it.
	DryRun      bool   `json:"dry_run,omitempty"` // what it changes is taken back
	SQL         string `json:"sql,omitempty"`
	SQLRedacted bool   `json:"sql_redacted,omitempty"` // literals in sql were masked
	// SQLCut says that sql is only the beginning of the statement, of which
	// SQLLength is the length in bytes, and SQLSHA256 the hash. The hash is of
	// the text after masking, so that it tells nothing of a secret; it is left
	// out where only the beginning was masked. Length and hash are also there
	// for a text that is not UTF-8, which JSON cannot hold as it is.
	SQLLength   int64    `json:"sql_length,omitempty"`
	SQLSHA256   string   `json:"sql_sha256,omitempty"`
	SQLCut      bool     `json:"sql_cut,omitempty"`
	Fingerprint string   `json:"fingerprint,omitempty"` // the same for texts that differ in literals only
	Kinds       []string `json:"kinds,omitempty"`
	Verdict     string   `json:"verdict,omitempty"` // "allow" or "deny"
	Rule        string   `json:"rule,omitempty"`

	// Whom a signal is for: the server process, whose it is, and, where it is a
	// session of pgproxy's, the person's.
	PID                   int64  `json:"pid,omitempty"`
	Function              string `json:"function,omitempty"` // pg_cancel_backend or pg_terminate_backend
	BackendStart          string `json:"backend_start,omitempty"`
	VictimRole            string `json:"victim_role,omitempty"`
	VictimApplicationName string `json:"victim_application_name,omitempty"`
	VictimAddr            string `json:"victim_addr,omitempty"`
	VictimUser            string `json:"victim_user,omitempty"`
	VictimSession         string `json:"victim_session,omitempty"`
	// Another access for now: in an elevate record, and in all that it covers.
	Step     string     `json:"step,omitempty"` // of an elevate: asked, given, refused or ended
	Access   string     `json:"access,omitempty"`
	Until    *time.Time `json:"until,omitempty"`
	Approver string     `json:"approver,omitempty"` // who has answered
	Request  string     `json:"request,omitempty"`  // the request's id

	// What came of it.
	Tag        string   `json:"tag,omitempty"` // the last CommandComplete
	Rows       *int64   `json:"rows,omitempty"`
	Bytes      *int64   `json:"bytes,omitempty"`
	Affected   *int64   `json:"affected,omitempty"`
	Truncated  bool     `json:"truncated,omitempty"`
	DurationMS *float64 `json:"duration_ms,omitempty"`
	SQLState   string   `json:"sqlstate,omitempty"`
	Error      string   `json:"error,omitempty"`
	TX         string   `json:"tx,omitempty"` // transaction status: I, T or E
	Cancelled  bool     `json:"cancelled,omitempty"`
	Tampered   string   `json:"tampered,omitempty"` // the setting that was seen changed
	Statements *int64   `json:"statements,omitempty"`
	Observer   string   `json:"observer,omitempty"` // who looked at the session
}

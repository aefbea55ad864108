package policy

import (
	"strings"
	"time"
)

// Access is how much a rule lets a caller change.
type Access int

const (
	// NoAccess refuses the connection.
	NoAccess Access = iota
	// Read changes nothing.
	Read
	// Write is Read, and changes rows: INSERT, UPDATE, DELETE, MERGE, row
	// locks, sequences; and temporary tables.
	Write
	// Admin is all that PostgreSQL allows, apart from what the proxy does not
	// support.
	Admin
)

// String returns the access as the policy file spells it.
func (a Access) String() string {
	switch a {
	case Read:
		return "read"
	case Write:
		return "write"
	case Admin:
		return "admin"
	}
	return "none"
}

// WhereCheck is what UPDATE, DELETE and MERGE must say in their WHERE clause.
type WhereCheck int

const (
	// WhereRequired wants a WHERE clause; WHERE true says it on purpose.
	WhereRequired WhereCheck = iota
	// WhereKey wants the whole primary key, or another unique key, pinned to
	// constants.
	WhereKey
	// WhereFree checks nothing.
	WhereFree
)

// Rule is what one caller may do, and how much of it. It is a value: a
// session holds a copy, and changes to the policy make new ones.
type Rule struct {
	// Source says where the rule comes from, for people: "default", "grant",
	// `callers "alice@example.com"`.
	Source string
	Access Access
	// Allow lists statement kinds above Access that are allowed all the
	// same; Deny lists kinds refused all the same, and wins. Kinds are
	// command tags in capitals ("ALTER TABLE") or their first word. Names of
	// functions with an effect, in lower case, stand in the same lists.
	Allow, Deny []string
	// Only, when not empty, refuses every kind, and every function with an
	// effect, that is not in it.
	Only []string
	// Where is the check on UPDATE and DELETE.
	Where WhereCheck
	// Databases are the names this caller may ask for; nil means all served.
	Databases []string
	// MaxRows and MaxBytes cap what one statement may send to the client;
	// 0 means no cap.
	MaxRows, MaxBytes int64
	// MaxAffectedRows caps the rows one statement may change; 0 means no cap.
	MaxAffectedRows int64
	// StatementTimeout and IdleInTransactionTimeout are set on the server,
	// the first on the proxy too, a little later; 0 means none.
	StatementTimeout, IdleInTransactionTimeout time.Duration
	// MayLift lets the caller raise the caps and timeouts for a session.
	MayLift bool
	// MayObserve and MayKill show and end other people's sessions.
	MayObserve, MayKill bool
	// DryRun takes back what is changed. No policy gives it: a session sets it
	// for itself.
	DryRun bool
	// MaySignal cancels and ends other backends of the database.
	MaySignal bool
	// Elevate is the access that the caller may raise a session to; the zero
	// value is none.
	Elevate Elevate
	// MayApprove lets the caller answer other people's access requests.
	MayApprove bool
	// RequireReason wants pgproxy.reason set before a statement that writes.
	RequireReason bool
	// Contact is whom to ask for what this rule does not give: "#dba", a URL;
	// empty for whoever runs pgproxy. It is Policy.Contact.
	Contact string

	// given is what the policy gives, where a session has changed its limits;
	// nil where it has not.
	given *Rule
}

// Ask is the sentence of a refusal that says whom to ask.
func (r Rule) Ask() string { return ask(r.Contact) }

func ask(contact string) string {
	switch {
	case contact == "":
		return "Ask whoever runs pgproxy."
	case strings.Contains(contact, "://"):
		return "Ask: " + contact // a full stop would become part of the link
	}
	return "Ask " + contact + "."
}

// DefaultRule is the built-in rule for people whom no policy names.
func DefaultRule() Rule {
	return Rule{
		Access:                   Write,
		Where:                    WhereRequired,
		MaxRows:                  10_000,
		MaxBytes:                 16 << 20,
		MaxAffectedRows:          1_000,
		StatementTimeout:         30 * time.Second,
		IdleInTransactionTimeout: 30 * time.Second,
	}
}

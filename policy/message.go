package policy

import (
	"context"
	"errors"
	"math"
	"slices"
)

// Message is the text of one simple Query message, read with PostgreSQL's own
// grammar: its statements in order. It is immutable and may be shared by
// sessions; the parser's types stay inside this package.
type Message struct {
	// Statements are in the order of the text. An empty message (white
	// space, comments, semicolons) has none.
	Statements []Statement
	// Fingerprint is the same for texts that differ in literals, spacing,
	// case and comments only.
	Fingerprint string

	kinds    []string             // of Statements, for Decision.Kinds
	prepares map[string]preparing // of Statements, by name
}

// Kinds are the statements' kinds, in order. The slice is shared and must not be
// changed.
func (m *Message) Kinds() []string { return m.kinds }

// Own is how many of the statements, from the first, are the proxy's own.
func (m *Message) Own() int {
	n := slices.IndexFunc(m.Statements, func(st Statement) bool { return st.Proxy == nil })
	if n < 0 {
		return len(m.Statements)
	}
	return n
}

// Statement is one statement of a Message: what it is and what it does.
type Statement struct {
	// Kind is the command tag's kind, in capitals: "SELECT", "ALTER TABLE".
	// An EXPLAIN is "EXPLAIN", whatever it explains; SELECT INTO and CREATE
	// TABLE AS are "CREATE TABLE AS".
	Kind string
	// Start and End delimit the statement's text in the message, in bytes,
	// without the white space and comments around it.
	Start, End int
	// Tags are the command tags, without row counts, of which the server's
	// CommandComplete for this statement must show one; nil = it depends
	// (EXECUTE).
	Tags []string
	// Reads says that the statement does nothing but return rows while it
	// runs, so that cancelling it when enough rows were seen loses nothing:
	// SELECT, VALUES, TABLE without row locks, writing CTEs or functions known
	// to have an effect. Everything else must be drained, not cancelled.
	Reads bool
	// Changes is the class of data change, for the affected-rows cap: true for
	// INSERT, UPDATE, DELETE, MERGE at any depth (CTEs, EXPLAIN ANALYZE). For
	// EXECUTE ask Memory.Changes.
	Changes bool
	// Hidden says that the command tag's count leaves out rows this statement
	// changes: a writing CTE, EXPLAIN ANALYZE. For EXECUTE ask Memory.Hidden.
	Hidden bool
	// Cursor is what DECLARE, FETCH, MOVE and CLOSE do; its Verb is NoCursor for
	// all others.
	Cursor CursorUse
	// Settings are the server's settings that the statement changes, in lower
	// case: by SET, RESET, DISCARD ALL, the modes of a transaction, or by
	// set_config at any depth. AnySetting stands for those that the text does
	// not name. What it only prepares, declares or defines is not among them;
	// running that is opaque.
	Settings []string
	// Opaque says that the statement runs code that the verdict has not seen:
	// a function, operator or type that is not known to be PostgreSQL's own, DO,
	// CALL, EXECUTE, a trigger's, the query of a cursor. Such code may change
	// settings. So may the functions with effects, set_config among them, which
	// count here too. What COMMIT runs (deferred triggers) counts where the rows
	// were changed.
	Opaque bool
	// Looks says that the statement reads a table or a view, and so may run
	// what a view's definition calls.
	Looks bool
	// Tx is what the statement does to the transaction block. Chains says of
	// a COMMIT or ROLLBACK that it begins the next one, too.
	Tx     TxAction
	Chains bool
	// Proxy is set for the statements that the proxy serves itself: SHOW
	// pgproxy.x, SET pgproxy.x = …, RESET pgproxy.x, which never reach the server,
	// and a plain pg_cancel_backend(42). They are served at the beginning of a
	// message only: see Message.Own. Behind other statements, a signal is a
	// function call like any other, and the rest is refused.
	Proxy *ProxyCommand

	facts facts
}

// MayChange reports whether something may be changed by running the statement,
// as far as the text tells: by what it does, or by code that the verdict has not
// seen.
func (st *Statement) MayChange() bool {
	return st.Kind != "PREPARE" && (st.Changes || st.Opaque || st.facts.beyondRead())
}

// AnySetting stands for settings that a text changes without naming them.
const AnySetting = "*"

// CursorUse is what a statement does with a cursor.
type CursorUse struct {
	Verb CursorVerb
	Name string // as the server has it; empty for CLOSE ALL
	Hold bool   // DECLARE … WITH HOLD
	// NoScroll says of a DECLARE that the cursor cannot go back.
	NoScroll bool
	// Of FETCH and MOVE: whether it goes towards the end, and how many rows it
	// asks for; AllRows = all. It is 1 for those that name a single row (FIRST,
	// ABSOLUTE n, RELATIVE n), which cannot be limited further (Single).
	Forward bool
	Count   int64
	Single  bool
}

// AllRows is the count of FETCH ALL.
const AllRows = math.MaxInt64

// CursorVerb is the kind of a CursorUse.
type CursorVerb int

const (
	NoCursor CursorVerb = iota
	CursorDeclare
	CursorFetch
	CursorMove
	CursorClose
)

// TxAction is what a statement does to the transaction block.
type TxAction int

const (
	TxNone       TxAction = iota
	TxBegin               // BEGIN, START TRANSACTION
	TxCommit              // COMMIT, END
	TxRollback            // ROLLBACK, ABORT
	TxSavepoint           // SAVEPOINT, RELEASE
	TxRollbackTo          // ROLLBACK TO SAVEPOINT
	TxPrepare             // PREPARE TRANSACTION, COMMIT PREPARED, ROLLBACK PREPARED
)

// ProxyCommand is a statement that the proxy serves itself: a SHOW, SET or RESET
// of one of its own settings, or a signal to another backend.
type ProxyCommand struct {
	Verb  string // "SHOW", "SET", "RESET", or "SELECT" for a signal
	Name  string // without the prefix, in lower case: "max_rows", "session"
	Value string // for SET; the literal's text
	Local bool   // SET LOCAL

	Signal *Signal // nil for settings
}

// Refusal is a verdict of no, in the words for the client. It is also how a
// text that cannot be read is refused.
type Refusal struct {
	Code     string // SQLSTATE
	Message  string
	Detail   string // the rule that refused
	Hint     string // what would be allowed
	Position int    // in characters from 1, 0 = none
	Rule     string // short stable name for record and metric: "access", "require_where"
}

// Error returns the message, so that a Refusal can travel as an error.
func (r *Refusal) Error() string { return r.Message }

// Decision is the verdict on one Message.
type Decision struct {
	// Refusal is nil when the message may be sent.
	Refusal *Refusal
	// Kinds are Message.Kinds, for the record.
	Kinds []string
	// Rule names what allowed or refused it, for the record.
	Rule string
	// Writes says that some statement does what read access does not allow.
	Writes bool
}

// Catalog looks a relation up in the session's own database. The session
// implements it on its own upstream connection, out of the user's sight.
type Catalog interface {
	// Query runs one SELECT on the session's upstream connection and returns
	// its rows as text ("" for NULL). It fails when the connection cannot run
	// it now; the verdict is then no. In a failed transaction its error is
	// ErrFailedTransaction.
	Query(ctx context.Context, sql string) ([][]string, error)
}

// ErrFailedTransaction says that the session's transaction has failed, so that
// the server refuses every statement up to its end.
var ErrFailedTransaction = errors.New("the transaction has failed")

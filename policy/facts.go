package policy

import "slices"

// facts are what a verdict about a statement needs to know of it. They depend
// on the text alone, so that they can be kept with it and used for every
// caller. Their fields are exported for the parser process to send them.
type facts struct {
	// Acts are what the statement does, its own kind first. A statement may
	// run when every act may.
	Acts []act
	// Executes are the prepared statements it runs; Prepares is the name of the
	// one it makes, Forgets of the one it drops; ForgetsAll says that it drops
	// all.
	Executes          []execution
	Prepares, Forgets string
	ForgetsAll        bool
	// Hides says of a PREPARE what Statement.Hidden says of a statement.
	Hides bool
	// Configures says that it changes a setting by set_config.
	Configures bool
	// Foreign says that it names a function, operator or type that is not known
	// to be PostgreSQL's own.
	Foreign bool
}

// beyondRead reports whether the statement does something known to have an
// effect.
func (f *facts) beyondRead() bool {
	return f.Configures || slices.ContainsFunc(f.Acts, func(a act) bool { return a.Needs > Read })
}

// act is one thing that a statement does.
type act struct {
	Class actClass
	// Kind is the word that allow, deny and only speak of: a command tag, or
	// the name of a function; empty for an act that the access alone decides.
	Kind string
	// Needs is the least access that permits the act. nobody is beyond Admin.
	Needs Access
	// Name is the function, setting, table or node in question.
	Name string
	// Pos is where the offending word stands: first in bytes from 0, -1 for
	// unknown; once the statement is classified, in characters from 1.
	Pos int
	// Change is set for UPDATE, DELETE, MERGE and ON CONFLICT DO UPDATE that
	// would run.
	Change *change
	// Millis is the value of a timeout that is set; see timeoutMillis.
	Millis int64
	// Target is the table or view whose rows the act changes, or opens to
	// changes by way of a view.
	Target *relation
}

// size is about how much memory the act takes, in bytes.
func (a *act) size() int {
	n := 144
	if a.Target != nil {
		n += 64
	}
	if a.Change != nil {
		n += 80
		for _, way := range a.Change.Pins {
			n += 32 + 24*len(way)
		}
	}
	return n
}

// actClass is the reason why an act is judged, and so the words for refusing
// it.
type actClass int

const (
	actStatement actClass = iota // a kind of statement
	actCopyStdio                 // COPY through the client connection
	actUnknown                   // a node this version does not know
	actSequence                  // a function that changes rows, locks, sequences
	actServer                    // a function that acts on the server or other sessions
	actFiles                     // a function that reads the server's files
	actSQL                       // a function that runs SQL given as text
	actConfig                    // set_config of a setting that cannot be read in the text
	actProtected                 // a setting that belongs to the proxy
	actSuperuser                 // a setting for superusers or the server's configuration
	actNoSetting                 // a setting this version does not know
	actTimeout                   // a timeout of the server's, to some value
	actPinned                    // a setting that decides how text is read
	actReadWrite                 // a transaction made writable
	actResetAll                  // all settings reset at once
)

// nobody is an access above all others: what the proxy does not speak.
const nobody = Admin + 1

// execution is the use of a prepared statement.
type execution struct {
	Name    string
	Pos     int
	Planned bool // only planned, by EXPLAIN
	Nested  bool // in a statement with a command tag of its own
}

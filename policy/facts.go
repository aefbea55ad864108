package policy

import "slices"

// facts are what a verdict about a statement needs to know of it. They depend
// on the text alone, so that they can be kept with it and used for every
// caller. Their fields are exported for the parser process to send them.
type facts struct {
	// Effects are what the statement does, its own kind first. A statement may
	// run when each of them is permitted.
	Effects []effect
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
	return f.Configures || slices.ContainsFunc(f.Effects, func(a effect) bool { return a.Needs > Read })
}

// effect is one thing that a statement does.
type effect struct {
	Class effectClass
	// Kind is the word that allow, deny and only speak of: a command tag, or
	// the name of a function; empty for an effect that the access alone decides.
	Kind string
	// Needs is the least access that permits the effect. neverAllowed is beyond Admin.
	Needs Access
	// Lasts says that a rollback does not undo it.
	Lasts bool
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
	// Target is the table or view whose rows the effect changes, or opens to
	// changes by way of a view.
	Target *relation
}

// size is about how much memory the effect takes, in bytes.
func (a *effect) size() int {
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

// effectClass is the reason why an effect is judged, and so the words for refusing
// it.
type effectClass int

const (
	effectStatement effectClass = iota // a kind of statement
	effectCopyStdio                    // COPY through the client connection
	effectUnknown                      // a node this version does not know
	effectSequence                     // a function that changes rows, locks, sequences
	effectServer                       // a function that acts on the server or other sessions
	effectFiles                        // a function that reads the server's files
	effectSQL                          // a function that runs SQL given as text
	effectConfig                       // set_config of a setting that cannot be read in the text
	effectProtected                    // a setting that belongs to the proxy
	effectSuperuser                    // a setting for superusers or the server's configuration
	effectNoSetting                    // a setting this version does not know
	effectTimeout                      // a timeout of the server's, to some value
	effectPinned                       // a setting that decides how text is read
	effectReadWrite                    // a transaction made writable
	effectResetAll                     // all settings reset at once
)

// neverAllowed is an access above all others. No rule permits what needs it.
const neverAllowed = Admin + 1

// execution is the use of a prepared statement.
type execution struct {
	Name    string
	Pos     int
	Planned bool // only planned, by EXPLAIN
	Nested  bool // in a statement with a command tag of its own
}

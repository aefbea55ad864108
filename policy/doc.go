// Package policy decides what a caller may do on a database, before it is
// done. It is a leaf: no network, no clock, no logging.
//
// # Words
//
// A [Caller] is who asks. A [Rule] is what they may do; it comes from the
// tailnet's grants or the policy file. A [Judge] reads the text of a simple
// Query message into a [Message] of statements with PostgreSQL's own grammar,
// and [Decide] gives the [Decision] of a rule on it. A [Refusal] is a decision
// of no, in the words for the client. A [Memory] is what one session prepared
// before. A [Catalog] looks into its database.
//
// # How a statement is judged
//
// A statement is judged by what it does. Its first word is not enough: a SELECT
// can delete rows. The whole parse tree is walked; which fields of a node hold
// other nodes is read off the Go types, so that none is forgotten. The result is
// a list of effects: the statement's own kind, the writes in its CTEs, row locks,
// the settings it changes, the functions it calls. Each effect needs some access
// (read, write or admin), or a kind that the rule allows. A statement is refused
// when one of its effects is, and a message when one of its statements is.
//
// kinds.tsv says of each node of the parser which command tag it has and which
// access it needs. A node or a type of object that it does not have needs admin
// access. To add a kind of statement, add a line there.
//
// An effect that lasts is one that a rollback does not undo; a dry run refuses
// it. Both tables, kinds.tsv and functions.tsv, say which do. A plain SELECT of
// pg_cancel_backend or pg_terminate_backend of a constant is not an effect but a
// command of pgproxy's own (Signal), for whoever owns the backend or may signal.
//
// What cannot be decided is refused. An EXPLAIN with any ANALYZE that is not
// plainly off is taken to run what it explains. A READ WRITE among the modes of a
// transaction is taken to make it writable, whatever modes follow. A set_config
// with a name or a value that is not a constant is taken to change a protected
// setting.
//
// An EXPLAIN without ANALYZE runs no statement and no volatile function, but
// for the arguments of an EXECUTE, which are evaluated at once. Planning does
// run stable and immutable functions: to fold constants, to estimate how many
// rows there are, and to leave out partitions. The input function of a type is
// run when a literal is read, by PREPARE and CREATE VIEW too. TestPlanned holds
// this against real servers.
//
// An EXECUTE is judged by everything that was prepared under the name before it,
// as far as the server has not said that the name was dropped. Memory looks names
// up in one place, for the verdict and for the caps. A name is unknown when there
// are too many names, when too much was prepared under it, and when it is not
// ASCII: the server folds and cuts such names in the encoding of its database.
//
// # What the database is asked
//
// A change of rows is judged by the table or view that the session's own
// database has under the name. It is refused below admin access when that is
// one of PostgreSQL's own relations, or a view that leads to one: changing
// pg_class has the effect of DDL, and an UPDATE of pg_settings that of a SET. What
// a table's rules and a view's INSTEAD OF triggers do is not judged.
// A table that was found harmless is not asked about again until the session
// may have changed what its name means. Without a database a name without a
// schema is refused when some search_path makes it the catalogue's.
//
// With require_where "key", UPDATE, DELETE and MERGE compare all columns of a
// unique key with constants; the key is not deferrable, since such a key holds
// at the end of a transaction only. An INSERT … ON CONFLICT DO UPDATE changes one
// row for each row inserted, which has the same values in the columns of the
// conflict target: these must be named, and constants in each row of VALUES.
// BEFORE triggers may change them.
//
// Where an earlier statement of the same message may change what names mean,
// by search_path or a temporary table, what depends on them is refused.
//
// RESET ALL and DISCARD ALL need admin: settings of the startup packet survive
// them, but those which the proxy made later, when a limit was lifted or an
// access narrowed, do not.
//
// settings.tsv says of each setting of PostgreSQL 14 to 18 and of contrib whose it is:
// the session's, the proxy's, or that of superusers and the server's
// configuration. A setting it does not have needs admin access; a custom one,
// with a dot in its name, does not, unless it is an extension's whose settings
// are for superusers. The two timeouts may be set to what the rule allows, so
// their values are read, and one that is not understood is refused.
//
// # What it cannot see
//
// Functions, triggers, rules, views, operators and casts of the database, and
// foreign tables, do what they do with the rights of the login. functions.tsv
// has PostgreSQL's own functions and those of common extensions; any other is
// taken to be the database's own and may be called by everybody. An extension
// that is not in settings.tsv may have settings for superusers; where the login
// is one, pgproxy takes them for custom settings. At read access
// the server's read-only transactions stop what such a function writes. A login
// without the rights to write protects better.
//
// # The parser
//
// The parser is PostgreSQL's, in C, by pg_query_go, and recursive: a text like
// 1+1+1… overflows its stack, which no recover catches. Therefore
//
//   - a text is first scanned here, in one linear pass, by the lexer that the
//     masking uses too. Nested comments and
//     long runs of operator characters, which cost quadratic time in every
//     PostgreSQL lexer, the server's too, are refused, and so is a text of too
//     many tokens or statements. One long literal is one token.
//   - a text of up to 2 KiB is parsed in this process. Stack was measured at up
//     to 350 bytes for one byte of text; 1024 are reckoned with, so that 2 KiB
//     fit into the smallest stack that a thread is given.
//   - a longer text is parsed and classified in a child process of this same
//     program (package worker), with bounded memory and time, and without the
//     environment. When it dies, that text is refused, and the next one gets a
//     new process. It costs some 100 µs beside a parse of at least that.
//
// WebAssembly would need no second process, but parses several times slower,
// and every statement would pay for it; a bound on the text alone would refuse
// a document of 1 MiB.
//
// What was read is kept, by text and by template (the text without the value
// of its numbers), so that a repeated statement costs well under 1 µs.
//
// The library's grammar is PostgreSQL 17's. Newer syntax is refused as a syntax
// error. Where the library is known to read a text unlike the server, in a
// string constant that goes on behind a comment, the text is refused. The
// library's lexer takes strings as standard_conforming_strings = on does, so
// that setting and client_encoding are pinned at every access.
package policy

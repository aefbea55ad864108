// Package exchange runs one message of the client's on the session's server
// connection and relays the answer. It is the part of a session that speaks
// with the server; package wire is the part that speaks with the client.
//
// # Words
//
// A [Backend] is the server's end of a session: the connection, its
// transaction status, and what is known of its settings. [Backend.Run] takes a
// [Request], which is one Query message that was judged and recorded, through
// an exchange. The [Answer] reads what comes back, message by message: it
// counts, keeps the caps, and says what passes to the client. It does no I/O.
// [Backend.Execute] runs an internal query, which the client never sees.
//
// # An exchange
//
//	gate      no cancel for an earlier statement is under way any more
//	segments  the message is sent whole, or in parts where a check belongs
//	          between them: around BEGIN, COMMIT, ROLLBACK and ROLLBACK TO
//	proceed   before each part, and before a COMMIT of pgproxy's own: was the
//	          message cancelled, has its time run out, is the session to end?
//	guard     what changes rows runs inside of a transaction or a savepoint of
//	          pgproxy's, and the rows are counted before it is kept. What opens
//	          it goes out ahead of the part, in one write with it
//	dry run   the same transaction is taken back instead (dryrun.go)
//	check     the server is asked for the settings that belong to pgproxy
//	conclude  after an error of pgproxy's own an open transaction is failed
//
// The caller then records the outcome and sends ReadyForQuery.
//
// # What holds
//
// The client gets whole messages in the server's order, with pgproxy's own
// between them, or half of one and the end of the connection. Nothing is held
// back but the CommandComplete of a change whose COMMIT is not certain yet.
// Nothing is sent once the session's end is settled. A cancel never reaches a
// message after the one it was meant for: see gate.
package exchange

// Package frame reads and writes PostgreSQL protocol messages as bytes: the
// header that every message has (a type byte and a length word), and the body
// behind it, which most of a session passes on unread. It imports nothing of
// this module.
//
// A [Reader] splits one side's byte stream into messages without allocating
// for each of them. The functions that append build the few messages that
// pgproxy says by itself; errors and notices are built by pgproto3.
package frame

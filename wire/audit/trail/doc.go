// Package trail reads an audit log for people who look back: the last
// statements that match, and the story of a session.
//
// A [Log] is the file that a [audit.Writer] appends to and those put aside
// beside it, ordered by their first records. It is read from any [Position] in
// either direction, a block at a time, while records are written and files are
// rotated. A time is found by binary search, as records are in the order of
// their times, but for those written at the same moment (disorder).
//
// What is read is not trusted. The texts in it are what clients chose; lines may
// be torn, or be no records. Those are passed over. A text of more than maxText
// bytes is clipped while it is read, so that a request holds no more in memory
// than a few blocks and what it returns, however long a line is.
//
// A request has a time limit (Log.Budget). One that reaches it returns what it
// has found and the position from which to go on.
package trail

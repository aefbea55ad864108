// Package audit writes, checks and shows the record of who ran what: JSON
// lines, one [Record] each, in the order in which they happened.
//
// # What is promised
//
// When [Writer.Write] returns nil the whole line has been taken by the kernel
// in one write: a crash of the process no longer loses it. With [SyncAlways]
// it is on the disk as well, and a power cut does not lose it either; only a
// [Result] follows within a second, as what it tells of has happened already.
// Anything else is an error, and the caller must then not do what it wanted to
// record. The Writer mends itself: each Write after a failure opens the log
// again, so that sessions work as soon as the disk does.
//
// On standard output, or any pipe, the kernel's promise ends where the reader
// begins: a line taken by the pipe is lost if nobody reads it, and there
// is nothing to fsync.
//
// # The chain
//
// Each line ends in "prev", the hash of the line before it, and its own "hash".
// That is made in two steps, so that writers wait for each other only while
// some hundred bytes are hashed, however long a record is:
//
//	body = SHA-256 of the line up to and including "chain":2
//	hash = SHA-256 of the 32 bytes of body, and the rest up to the comma before "hash"
//
// Lines without "chain" were written by older versions: there the hash is the
// SHA-256 of the line up to the comma before "hash". A log may begin with those
// and go on with the others. A line that was altered, removed or moved breaks
// the chain, and [Verify] finds the place. The chain goes on across rotations
// and restarts; a prev of zeros starts one.
//
// The hash has no key. The chain shows damage, accidents and careless edits;
// it does not stop somebody who can write the file from computing all later
// hashes again, or from cutting off the end. Against that, keep the hash that
// verify prints somewhere else, and ask for it the next time (-seen).
package audit

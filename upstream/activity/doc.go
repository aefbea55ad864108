// Package activity looks at what a database is doing, for people on call: who
// waits for a lock and for whom, which transactions and statements are old, how
// far replicas are behind, how many connections there are.
//
// A [Monitor] reads it over a connection of its own. It costs the server
// nothing while nobody looks, and one reading a second however many do. It
// takes no lock that anybody would wait for, gives up after two seconds, and
// holds no snapshot between two readings.
//
// A login without pg_monitor sees less. The [Snapshot] says what it could not
// see: who waits for whom is always there.
package activity

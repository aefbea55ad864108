// Package endtoend has no code of its own. Its tests run the pgproxy binary as
// people meet it: as a node of a tailnet, in front of a real PostgreSQL, with
// clients that dial from devices of their own. There is one file of tests for
// each thing that is promised.
//
// All tests share one tailnet and one PostgreSQL; each starts a proxy, and
// whatever it changes in the tailnet are devices and logins that no other test
// has. Changes that all would feel are made in a tailnet of the test's own.
package endtoend

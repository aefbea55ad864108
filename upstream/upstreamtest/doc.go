// Package upstreamtest runs PostgreSQL for tests, demos and benchmarks: real
// servers ([Run], [Start]), and a scripted one for what a real one cannot be
// made to do ([Fake]).
//
// A real server comes from the system, or from the cache that the scripts under
// .ci fill. It listens on loopback and on a Unix socket, keeps its data in a
// temporary directory, and ends with the process that started it.
package upstreamtest

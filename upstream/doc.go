// Package upstream is the database side of the proxy: it reads the connection
// string, opens one PostgreSQL connection for each session, hands it over as a
// bare connection, and delivers cancel requests.
//
// pgconn does what a driver must: hosts, TLS, authentication. From the first
// ReadyForQuery on, the connection belongs to the session and no bytes pass
// through pgconn any more.
package upstream

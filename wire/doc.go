/*
Package wire is the session between one client and one upstream PostgreSQL:
what is said, by whom, when. A [Server] takes connections from any
net.Listener, asks who is there (WhoIs), what they may do (Rules), opens one
upstream connection for each session (Dial), and relays the simple query
protocol on raw frames. It knows nothing of the tailnet.

# Where to read

A session is put together from parts, each in the file of its name:

	session      run: the whole story of a connection, from accept to the last record
	clientConn   the client's connection: what was read ahead, what is queued (client.go)
	lifecycle    phase, clocks, the running statement, why the session is to end;
	             all of it under one mutex, and without I/O
	ruling       the rule in force: policy's, with what the user has changed of it,
	             and an access that is raised for now
	journal      a method for each event: record, counter, history and log line
	Backend      the server's end: package exchange

One Query message can be followed by reading down: converse.go takes it from the
client, query.go reads it, has it judged and recorded, and serves it; package
exchange runs it on the server. command.go is SHOW and SET pgproxy.*, callbacks.go
what an exchange asks of its session, errors.go where every error gets its code,
its words and its reason.

What people on call have beside their statements: elevate.go and request.go are
access for now and what others say to it, database.go who waits for whom, signal.go
ending a backend of somebody else's, admin.go one of pgproxy's own sessions.

# A session

Read session.run, which has these steps in this order.

	client                      session                         upstream
	  |                            |                                |
	  |--- (accepted) ------------>| WhoIs(address)                 |
	  |--- SSLRequest ------------>|                                |
	  |<-- S or N -----------------|                                |
	  |=== TLS handshake =========>|                                |
	  |--- StartupMessage -------->| Rules, database, limits        |
	  |                            |--- Dial, stamped ------------->|
	  |                            |<-- R … S S S K Z --------------|
	  |                            | audit: connect                 |
	  |<-- [v] R [N] S… K Z -------|                                |
	  |                            |                                |
	  |--- Query ----------------->| Judge.Parse, policy.Decide     |
	  |                            | audit: query                   |
	  |                            | exchange: gate.enter           |
	  |                            |--- the same bytes ------------>|
	  |<-- T D D D … --------------| rows counted, caps kept        |
	  |                            |<-- C Z ------------------------|
	  |                            | exchange: gate.leave           |
	  |                            | audit: result                  |
	  |<-- C Z --------------------|                                |
	  |                            |                                |
	  |--- Parse, Bind, … Sync --->|                                |
	  |<-- E(0A000) Z -------------|                                |
	  |                            |<-- A, N, S (by themselves) ----|
	  |<-- A, N, S ----------------|                                |
	  |--- Terminate ------------->|--- Terminate ----------------->|
	  |                            | audit: disconnect              |

A CancelRequest is a connection of its own: it finds the session by its key,
and goes through the session's gate to the upstream, on a connection of its own
again. It gets no answer but its end.

# Phases

What a session's goroutine is doing (lifecycle.phase), for those who look at it
from other goroutines:

	phase       waits for       leads to                      ended by
	starting    the upstream    processing                    ConnectTimeout
	idle        the client      processing, ended             IdleTimeout, idle_in_transaction_session_timeout
	processing  nobody for long internal, running, idle       -
	internal    the upstream    processing                    internalTimeout
	running     the upstream    processing                    statement_timeout, and a little
	asking      another person  processing                    requestLife
	ended       the client      -                             a second

A statement of more than 64 KiB waits for its share of memory, and a text of
more than 2 KiB for a parser, while processing; both have a time limit, and a
cancel or the session's end ends the wait (lifecycle.interruptBy).

Before it is a session a connection has LoginTimeout, from accept to startup
message, and a TLS handshake handshakeTimeout of it; there are no more than
maxPending of those, and maxPendingHost from one address. A write to the client
that makes no progress has writeProgress, a cancel request cancelTimeout, an end
endGrace. No statement sets a timer: Server.keep looks at all sessions every
tickInterval.

An access that was raised may call for another login. Then the session gets
another upstream connection, at rest and outside of a transaction (reconnect.go):
the Backend stays, and with it the gate, and the client keeps its cancel key.

# Messages

What is made of a client's messages is a table (automaton.go) with two states:

	message        reading               skipping to Sync
	Q              run it                drop
	P B D E C      E(0A000); skipping    drop
	F              E(0A000) Z            drop
	S              Z                     fail the transaction; Z; reading
	S with body    E(08P01) Z            E(08P01) Z; reading
	H d c f        drop                  drop
	X              the end               the end
	any other      FATAL 08P01           FATAL 08P01
	too long       the end               the end

An error of the proxy's own inside of a transaction fails it on the server too
(exchange.Backend.FailTx), so that ReadyForQuery says what is true there.

# Goroutines

	goroutine         started by    ended by                      waited for by
	accept loop       main          Shutdown, Close               main
	Server.keep       Serve         Serve returning               Serve
	session           Serve         session.run returning         Close
	watch             Server.keep   lifecycle.enter, by a deadline lifecycle.enter
	cancel, terminate anyone        their own deadlines           session.finish

The session's goroutine reads the side that it waits for. When that lasts longer
than watchAfter a watch reads the other one: the upstream while the session is
idle, for what it says by itself; the client while a statement runs, for its
end. A session that LISTENs has the upstream watched at once. lifecycle.enter
takes that side back before the phase changes.

Who writes to the client is one goroutine at a time: the watch of the upstream
while the session is idle, and the session's own at any other time. To the
upstream only the session's own ever writes. A frame goes to the client whole,
or the connection ends in the middle of it and nothing more is said.

A session closes its two connections itself, in session.finish, whoever wants
its end: lifecycle.settle keeps the reason and wakes the goroutine. Only Close
closes the client's from outside.

# What holds always

A statement is sent after its record was written, and not without. The bytes
that were judged are the bytes that are sent. A cancel never reaches a statement
after the one it was meant for: see package exchange. A client that vanished
leaves nothing running. What cannot be read, judged or recorded is refused. Nothing is sent for
a session whose end is settled. A panic ends the session that meets it, and no
other.
*/
package wire

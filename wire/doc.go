/*
Package wire is the session between one client and one upstream PostgreSQL:
what is said, by whom, when. A [Server] takes connections from any
net.Listener, asks who is there (WhoIs), what they may do (Rules), opens one
upstream connection for each session (Dial), and relays the simple query
protocol on raw frames. It knows nothing of the tailnet.

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
	  |                            | gate.enter                     |
	  |                            |--- the same bytes ------------>|
	  |<-- T D D D … --------------| rows counted, caps kept        |
	  |                            |<-- C Z ------------------------|
	  |                            | gate.leave                     |
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

What a session's goroutine is doing (session.phase), for those who look at it
from other goroutines:

	phase      waits for       leads to                       ended by
	starting   the upstream    deciding                       ConnectTimeout
	resting    the client      deciding, ending               IdleTimeout
	deciding   nobody for long assisting, running, resting    -
	assisting  the upstream    deciding                       internalTimeout
	running    the upstream    deciding                       statement_timeout, and a little
	ending     the client      -                              a second

Before it is a session a connection has LoginTimeout, from accept to startup
message, and a TLS handshake handshakeTimeout of it; there are no more than
maxPending of those, and maxPendingHost from one address. A write to the client
that makes no progress has writeProgress, a cancel request cancelTimeout, an end
endGrace. No statement sets a timer: Server.keep looks at all sessions every
tickInterval.

# Messages

What is made of a client's messages is a table (state.go) with two states:

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
	watch             Server.keep   session.enter, by a deadline  session.enter
	cancel, terminate anyone        their own deadlines           session.finish

The session's goroutine reads the side that it waits for. When that lasts longer
than watchAfter a watch reads the other one: the upstream while the session
rests, for what it says by itself; the client while a statement runs, for its
end. session.enter takes that side back before the phase changes.

Who writes to the client is one goroutine at a time: the watch of the upstream
while the session rests, and the session's own at any other time. To the
upstream only the session's own ever writes. A frame goes to the client whole,
or the connection ends in the middle of it and nothing more is said.

A session closes its two connections itself, in session.finish, whoever wants
its end: session.end settles the reason and wakes the goroutine. Only Close
closes the client's from outside.

# What holds always

A statement is sent after its record was written, and not without. The bytes
that were judged are the bytes that are sent. A cancel never reaches a statement
after the one it was meant for: see package exchange. A client that vanished leaves nothing
running. What cannot be read, judged or recorded is refused. Nothing is sent for
a session whose end is settled. A panic ends the session that meets it, and no
other.
*/
package wire

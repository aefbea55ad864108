package wire

import (
	"fmt"

	"pgproxy/policy"
	"pgproxy/wire/frame"
)

// maxStatement is the longest Query message taken, in bytes. It bounds what a
// session can make the proxy hold; a message is held whole to be judged.
const maxStatement = 16 << 20

// extendedHint tells how to make a client speak the simple protocol.
func extendedHint(client string) string {
	if client == "psql" {
		return `In psql, \gdesc, \bind, \parse and pipelines need the extended protocol. Run the query by itself: \g shows its columns, and LIMIT 0 no rows.`
	}
	return "Make the driver use the simple protocol. pgx: QueryExecModeSimpleProtocol; psycopg 3: ClientCursor; JDBC, DataGrip, DBeaver: preferQueryMode=simple; lib/pq and node-postgres: a query without parameters."
}

// converse serves the client's messages, one after the other, until the
// session ends. It returns why.
func (s *session) converse() (e *sessionError) {
	defer func() {
		if defect := s.recovered(recover()); defect != nil {
			e = s.abandon(defect)
		}
	}()
	for {
		typ, n, e := s.nextMessage()
		if e != nil {
			return s.last(e)
		}
		e = s.serve(typ, n)
		s.life.answered()
		s.Flush()
		if e != nil {
			return s.last(e)
		}
	}
}

// last does what is left to be done on a connection to the server that is well,
// before the session ends.
func (s *session) last(e *sessionError) *sessionError {
	if e.reason == reasonClient {
		s.checkOpen()
	}
	return e
}

// abandon stops what a session has upstream that cannot go on. A client that may
// have half of an answer is told no more.
func (s *session) abandon(e *sessionError) *sessionError {
	number := s.backend.Running()
	if number == 0 {
		return e
	}
	s.fireCancel(number)
	return e.withoutMessage()
}

// nextMessage waits for the header of the client's next message.
func (s *session) nextMessage() (typ byte, n int, e *sessionError) {
	for {
		typ, n, ok, err := s.clientConn.Header()
		if err != nil {
			return 0, 0, silent(reasonProtocol, err)
		}
		if ok {
			// Messages sent ahead do not pass through rest.
			return typ, n, s.endNow()
		}
		if e := s.rest(); e != nil {
			return 0, 0, e
		}
	}
}

// rest waits until the client has sent something, or there is news for it, which
// it is told. It returns why the session ends, if it does.
func (s *session) rest() *sessionError {
	s.clientConn.Rest()
	s.backend.Rest()
	if e := s.endNow(); e != nil {
		return e
	}
	s.enter(idle)
	// An end that was settled between the two lines above has seen another
	// phase and woken nobody.
	if e := s.endNow(); e != nil {
		s.enter(ended)
		return e
	}
	if s.ruling.hasNews() {
		s.life.nudge()
	}
	if s.talk.listening {
		s.life.watchServer() // a notification is not to wait for the next tick
	}
	err := s.clientConn.Fill(frame.MinBuffer)
	s.enter(processing)
	if e := s.life.settled(); e != nil {
		return e
	}
	if frame.IsDeadline(err) {
		return s.tellNews()
	}
	if err != nil {
		return clientEnded(err)
	}
	return nil
}

// tellNews tells the client, between two messages of its, that it may do
// something else now.
func (s *session) tellNews() *sessionError {
	s.tellOver()
	if _, _, news := s.ruling.begin(); news != nil {
		s.Send(news.append(nil))
	}
	e := s.settleLogin()
	s.Flush()
	return e
}

// endNow is why a session at rest is to end now, if it is. While the server
// drains, that is so outside of a transaction.
func (s *session) endNow() *sessionError {
	if e := s.life.settled(); e != nil {
		return e
	}
	if s.backend.Status() == 'I' && s.srv.Draining() {
		return shutdownError()
	}
	return nil
}

// serve acts on one message.
func (s *session) serve(typ byte, n int) *sessionError {
	act := s.talk.automaton.next(typ, n)
	if act == query && n <= maxStatement {
		return s.takeQuery(n)
	}
	switch act {
	case terminate:
		return silent(reasonClient, nil)
	case tooLong:
		return silent(reasonProtocol, fmt.Errorf("message %q of %d bytes", typ, n))
	case unknownType:
		return fatal(codeProtocolViolation, fmt.Sprintf("invalid frontend message type %d", typ), reasonProtocol)
	}
	if e := s.discardClient(frame.HeaderLen + n); e != nil {
		return e
	}
	switch act {
	case query:
		return s.deny(s.begin(), policy.Decision{Refusal: &policy.Refusal{Code: codeTooComplex, Rule: "length",
			Message: fmt.Sprintf("pgproxy: a statement of %d bytes is too long", n),
			Hint:    fmt.Sprintf("The limit is %d bytes.", maxStatement)}})
	case refuseExtended:
		s.count("extended")
		s.Send(statementError(codeFeatureNotSupported, "pgproxy: unsupported message (use simple protocol)").withHint(extendedHint(s.startup.client)).append(nil))
	case refuseCall:
		s.count("function call")
		return s.answer(statementError(codeFeatureNotSupported, "pgproxy: unsupported message (use simple protocol): function call").
			withHint("Call the function by SELECT."))
	case syncBody:
		return s.answer(statementError(codeProtocolViolation, "invalid message format"))
	case syncRefused:
		if e := s.failTx(); e != nil {
			return e
		}
		fallthrough
	case answerSync:
		s.ready()
	}
	return nil
}

// clientBody takes a message's body from the client, however long it takes to
// come. Meanwhile the session rests, as far as its clocks are concerned.
func (s *session) clientBody(n int) ([]byte, *sessionError) {
	for s.clientConn.Buffered() < frame.HeaderLen+n {
		if e := s.restMore(frame.HeaderLen + n); e != nil {
			return nil, e
		}
	}
	body, err := s.clientConn.Body(n)
	if err != nil {
		return nil, clientEnded(err)
	}
	return body, nil
}

func (s *session) discardClient(n int) *sessionError {
	for n > 0 {
		have := min(n, s.clientConn.Buffered())
		s.clientConn.Discard(have)
		if n -= have; n > 0 && have == 0 {
			if e := s.restMore(frame.MinBuffer); e != nil {
				return e
			}
		}
	}
	return nil
}

// restMore reads more of a message that has begun.
func (s *session) restMore(want int) *sessionError {
	s.Flush()
	s.enter(idle)
	if e := s.life.settled(); e != nil {
		s.enter(ended)
		return e
	}
	err := s.clientConn.Fill(want)
	s.enter(processing)
	if e := s.life.settled(); e != nil {
		return e
	}
	if err != nil && !frame.IsDeadline(err) { // woken for news, which waits for the message's end
		return clientEnded(frame.InBody(err))
	}
	return nil
}

// answer sends an error of ours and ReadyForQuery, having failed an open
// transaction as any error would.
func (s *session) answer(e *sessionError) *sessionError {
	if end := s.failTx(); end != nil {
		return end
	}
	s.Send(e.append(nil))
	s.ready()
	return nil
}

func (s *session) count(refusal string) { s.srv.metrics.refusal(refusal) }

// ready queues ReadyForQuery.
func (s *session) ready() { s.Send(frame.AppendReady(nil, s.backend.Status())) }

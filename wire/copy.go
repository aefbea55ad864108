package wire

import "fmt"

// copyError is the answer to COPY in every form that needs the client.
func copyError() *sessionError {
	return statementError(codeFeatureNotSupported, "pgproxy: COPY FROM STDIN and COPY TO STDOUT are not supported").
		withHint("To read, use SELECT (psql: \\g FILE, \\pset format csv). To write a few rows, use INSERT.")
}

// refuseCopy ends a COPY that the server began although no statement read as
// one: proxy and server do not read the same. A COPY FROM STDIN is told to
// fail, which is the only thing that reaches a server waiting for data; a COPY
// TO STDOUT is cancelled and thrown away. The session does not outlive it.
func (s *session) refuseCopy(st *statement, typ byte) *sessionError {
	c := &st.cycle
	c.mismatch = "COPY"
	switch typ {
	case 'G', 'W':
		if _, err := s.up.Net.Write(appendFrame(nil, 'f', []byte("COPY is not supported by pgproxy\x00")...)); err != nil {
			return s.upstreamEnded(err)
		}
	case 'H':
		s.fireCancel(c.number)
	}
	c.copying = true
	return nil
}

// mismatched ends a session whose server did something else than what was
// read: one of the two has been deceived.
func (s *session) mismatched(st *statement) *sessionError {
	e := fatal(codeConnectionFailure, "pgproxy: session closed: the server read the statement differently from pgproxy", reasonTampered)
	e.cause = fmt.Errorf("statement %d: unexpected %s", st.seq, st.cycle.mismatch)
	return e
}

package wire

import (
	"context"
	"encoding/binary"
	"fmt"
	"strings"
	"time"

	"pgproxy/upstream"
)

// ownTimeout bounds a statement of the proxy's own.
const ownTimeout = 10 * time.Second

// maxReply bounds what a statement of the proxy's own may bring back, in bytes.
const maxReply = 4 << 20

// reply is the answer to a statement of the proxy's own.
type reply struct {
	rows    [][]string // "" for NULL
	tag     string
	failure *errorFields // nil = it went well
	frame   []byte       // the ErrorResponse as it came
	async   []byte       // notifications and parameters for the client
	notices []byte       // those that the statement has raised
}

// own runs a statement of the proxy's own on the session's upstream
// connection, out of the client's sight. Its error ends the session; what the
// server says against the statement is in the reply.
func (s *session) own(sql string) (*reply, *sessionError) {
	if _, err := s.gate.enter(); err != nil {
		return nil, s.gateClosed(err)
	}
	s.setClock(ownTimeout)
	s.enter(assisting)
	r, e := s.roundTrip(sql)
	if e == nil {
		s.gate.leave()
	}
	s.enter(deciding)
	return r, e
}

// roundTrip sends a statement of the proxy's own and takes its answer in. The
// session is running, and in its gate.
func (s *session) roundTrip(sql string) (*reply, *sessionError) {
	if _, err := s.up.Net.Write(appendQuery(nil, sql)); err != nil {
		return nil, s.upstreamEnded(err)
	}
	r := &reply{}
	for size := 0; size < maxReply; {
		typ, n, ok, err := s.upstream.header()
		if err != nil || n > maxReply {
			return nil, garbled(typ)
		}
		if !ok {
			if err := s.upstream.fill(minBuffer); err != nil {
				return nil, s.upstreamEnded(err)
			}
			continue
		}
		size += n
		body, err := s.upstream.body(n)
		if err != nil {
			return nil, s.upstreamEnded(err)
		}
		if done, e := s.take(r, typ, body); done || e != nil {
			return r, e
		}
	}
	return nil, fatal(codeConnectionFailure, "pgproxy: an answer of the upstream server is too long", reasonUpstream)
}

func (s *session) take(r *reply, typ byte, body []byte) (done bool, e *sessionError) {
	switch typ {
	case 'D':
		r.rows = append(r.rows, columns(body))
	case 'C':
		r.tag, _, _ = cstring(body)
	case 'E':
		f := parseErrorFields(body)
		if f.severity == "FATAL" || f.severity == "PANIC" {
			s.emit(appendFrame(nil, typ, body...))
			e := silent(reasonUpstream, fmt.Errorf("%s %s: %s", f.severity, f.code, f.message))
			e.code = f.code
			return false, e
		}
		r.failure, r.frame = &f, appendFrame(nil, typ, body...)
	case 'N':
		r.notices = appendFrame(r.notices, typ, body...)
	case 'A':
		r.async = appendFrame(r.async, typ, body...)
	case 'S':
		s.settings.note(body)
		r.async = appendFrame(r.async, typ, body...)
	case 'Z':
		if len(body) == 1 {
			s.status = body[0]
		}
		return true, nil
	}
	return false, nil
}

// columns reads a DataRow of text values.
func columns(body []byte) []string {
	if len(body) < 2 {
		return nil
	}
	n := int(binary.BigEndian.Uint16(body))
	row := make([]string, 0, n)
	for body = body[2:]; len(body) >= 4 && len(row) < n; {
		size := int(int32(binary.BigEndian.Uint32(body)))
		body = body[4:]
		if size < 0 {
			row = append(row, "")
			continue
		}
		size = min(size, len(body))
		row = append(row, string(body[:size]))
		body = body[size:]
	}
	return row
}

// poison fails an open transaction on the server, as an error of the server's
// own would have: a script that goes on to COMMIT must not commit half of what
// it meant. The word in the statement explains itself in the server's log.
func (s *session) poison() *sessionError {
	if s.status != 'T' {
		return nil
	}
	r, e := s.own("denied_by_pgproxy")
	if e != nil {
		return e
	}
	s.emit(r.async)
	if s.status != 'E' {
		return fatal(codeConnectionFailure, "pgproxy: the transaction could not be failed", reasonUpstream)
	}
	return nil
}

// catalog lets the verdict look into the session's database.
type catalog struct{ s *session }

// Query implements policy.Catalog.
func (c catalog) Query(_ context.Context, sql string) ([][]string, error) {
	if c.s.status == 'E' {
		return nil, fmt.Errorf("the transaction has failed")
	}
	r, e := c.s.own(sql)
	if e != nil {
		c.s.end(e)
		return nil, e
	}
	c.s.emit(r.async)
	if r.failure != nil {
		return nil, fmt.Errorf("catalogue query: %s", r.failure.message)
	}
	return r.rows, nil
}

// terminateBackend ends the session's backend from another connection of the
// same role.
func (s *session) terminateBackend(ctx context.Context) error {
	params := map[string]string{"application_name": "pgproxy ending a stuck statement"}
	if s.readLogin {
		params["default_transaction_read_only"] = "on"
	}
	up, err := s.srv.Dial(ctx, upstream.Request{Database: s.database, Params: params})
	if err != nil {
		return err
	}
	defer up.Close()
	if up.Addr != s.up.Addr { // of several hosts; there the number may be anybody's
		return fmt.Errorf("a new connection reaches another server, %s", up.Addr)
	}
	_, err = up.Query(ctx, fmt.Sprintf("SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity WHERE pid = %d AND usename = current_user", s.up.PID))
	return err
}

// quoteIdent and quoteLiteral quote for standard_conforming_strings = on.
func quoteIdent(s string) string   { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }
func quoteLiteral(s string) string { return `'` + strings.ReplaceAll(s, `'`, `''`) + `'` }

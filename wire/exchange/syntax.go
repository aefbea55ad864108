package exchange

import "pgproxy/wire/frame"

// before a text in a Parse message makes it at least two statements. PostgreSQL
// reads the whole text first, and then refuses more than one statement, before
// it analyses any (exec_parse_message in postgres.c). So it says what is wrong
// with the text, and nothing of the text can ever run.
const before = "SELECT;"

// Syntax has the server read a text that pgproxy's parser cannot read. It
// returns the server's own ErrorResponse, nil when the server can read the text.
// As after any error an open transaction has failed. The error ends the session.
func (b *Backend) Syntax(sql string) ([]byte, error) {
	if _, err := b.gate.enter(); err != nil {
		return nil, err
	}
	b.session.Begin(true)
	defer b.session.End()
	body := make([]byte, 0, len(before)+len(sql)+4)
	body = append(body, 0) // the unnamed statement
	body = append(append(body, before...), sql...)
	body = append(body, 0, 0, 0) // no parameter types
	b.query = frame.Append(frame.Append(b.query[:0], 'P', body...), 'S')
	if _, err := b.Up.Net.Write(b.query); err != nil {
		return nil, &LostError{Cause: err}
	}
	r, err := b.reply()
	if err != nil {
		return nil, err
	}
	b.gate.leave()
	b.session.Send(r.async)
	switch {
	case r.failure == nil:
		return nil, ErrMismatch // it has prepared two statements as one
	case r.failure.Code == codeSyntaxError && r.failure.Position == "":
		return nil, nil // that there are two statements
	}
	moved, ok := shiftPosition(r.frame[frame.HeaderLen:], -len(before))
	if !ok {
		return r.frame, nil
	}
	return frame.Append(nil, 'E', moved...), nil
}

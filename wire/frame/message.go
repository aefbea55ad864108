package frame

import (
	"bytes"
	"encoding/binary"

	"github.com/jackc/pgx/v5/pgproto3"
)

// Header returns the type of the message that b begins with, and the length of
// its body. ok is false when b has fewer than HeaderLen bytes. A length word
// below four is ErrFraming.
func Header(b []byte) (typ byte, body int, ok bool, err error) {
	if len(b) < HeaderLen {
		return 0, 0, false, nil
	}
	n := binary.BigEndian.Uint32(b[1:])
	if n < 4 || n > 1<<31-1 {
		return 0, 0, false, ErrFraming
	}
	return b[0], int(n) - 4, true, nil
}

// Append appends a message of the given type and body.
func Append(dst []byte, typ byte, body ...byte) []byte {
	dst = append(dst, typ)
	dst = binary.BigEndian.AppendUint32(dst, uint32(4+len(body)))
	return append(dst, body...)
}

// AppendReady appends ReadyForQuery with a transaction status: I, T or E.
func AppendReady(dst []byte, status byte) []byte { return Append(dst, 'Z', status) }

// AppendComplete appends CommandComplete.
func AppendComplete(dst []byte, tag string) []byte {
	return Append(dst, 'C', append([]byte(tag), 0)...)
}

// AppendParameter appends ParameterStatus.
func AppendParameter(dst []byte, name, value string) []byte {
	body := make([]byte, 0, len(name)+len(value)+2)
	body = append(append(body, name...), 0)
	body = append(append(body, value...), 0)
	return Append(dst, 'S', body...)
}

// AppendQuery appends a Query message of the simple protocol.
func AppendQuery(dst []byte, sql string) []byte {
	dst = append(dst, 'Q')
	dst = binary.BigEndian.AppendUint32(dst, uint32(4+len(sql)+1))
	dst = append(dst, sql...)
	return append(dst, 0)
}

// AppendExecution appends what runs a statement without parameters by the
// extended protocol: Parse, Bind and Execute, and no Sync.
func AppendExecution(dst []byte, sql string) []byte {
	for _, message := range []pgproto3.FrontendMessage{&pgproto3.Parse{Query: sql}, &pgproto3.Bind{}, &pgproto3.Execute{}} {
		dst = mustEncode(message.Encode(dst))
	}
	return dst
}

// mustEncode is for messages that pgproxy makes itself. They are shorter than
// 1 GiB, which is all that can be wrong with one.
func mustEncode(b []byte, err error) []byte {
	if err != nil {
		panic("frame: " + err.Error())
	}
	return b
}

// CString splits a zero-terminated string off b. ok is false without a zero;
// rest is then b.
func CString(b []byte) (s string, rest []byte, ok bool) {
	i := bytes.IndexByte(b, 0)
	if i < 0 {
		return "", b, false
	}
	return string(b[:i]), b[i+1:], true
}

// Columns reads a DataRow of text values; "" stands for NULL, too.
func Columns(body []byte) []string {
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

// ErrorFields is what is read of an ErrorResponse's or NoticeResponse's body.
// Of a body that is cut short the last field is cut short, too; a server may
// leave out any of them.
type ErrorFields struct {
	Severity, Code, Message, Detail, Hint string
	Position                              string
}

// ParseErrorFields reads the body of an ErrorResponse or NoticeResponse. The
// severity is the untranslated one where the server sends it.
func ParseErrorFields(body []byte) ErrorFields {
	var f ErrorFields
	for len(body) > 1 && body[0] != 0 {
		name := body[0]
		value, rest, ok := CString(body[1:])
		if !ok {
			value, rest = string(rest), nil
		}
		switch name {
		case 'S':
			if f.Severity == "" {
				f.Severity = value
			}
		case 'V':
			f.Severity = value
		case 'C':
			f.Code = value
		case 'M':
			f.Message = value
		case 'D':
			f.Detail = value
		case 'H':
			f.Hint = value
		case 'P':
			f.Position = value
		}
		body = rest
	}
	return f
}

// Notice is an error, a warning or a notice of pgproxy's own.
type Notice struct {
	Severity string // "FATAL", "ERROR", "WARNING" or "NOTICE"
	Code     string // SQLSTATE
	Message  string
	Detail   string
	Hint     string
	Position int // in characters from 1; 0 = none
}

// Append appends the notice as ErrorResponse, or as NoticeResponse for a
// WARNING or NOTICE.
func (n *Notice) Append(dst []byte) []byte {
	fields := pgproto3.ErrorResponse{
		Severity: n.Severity, SeverityUnlocalized: n.Severity, Code: n.Code,
		Message: n.Message, Detail: n.Detail, Hint: n.Hint, Position: int32(n.Position),
	}
	if n.Severity == "WARNING" || n.Severity == "NOTICE" {
		notice := pgproto3.NoticeResponse(fields)
		return mustEncode(notice.Encode(dst))
	}
	return mustEncode(fields.Encode(dst))
}

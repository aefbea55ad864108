package wire

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
)

// Sizes of the buffers, in bytes. They begin with restBuffer, and grow while
// reads fill them; a session at rest holds no more than minBuffer for each
// side.
const (
	headerLen  = 5 // type byte and length word
	restBuffer = 2 << 10
	minBuffer  = 8 << 10  // PostgreSQL sends in pieces of 8 KiB (PqSendBuffer)
	maxBuffer  = 64 << 10 // one read of a fast result
)

var (
	// errFraming is a length word that cannot be: PostgreSQL closes the
	// connection without a word, and so do we.
	errFraming = errors.New("impossible message length")
	// errMidMessage is the end of a connection within a message.
	errMidMessage = errors.New("connection ended inside a message")
)

// frames reads one side's byte stream as protocol messages. The unread bytes
// are buf[r:w]; a message's header is looked at in place, its body is taken,
// passed on or thrown away by the caller. One goroutine at a time.
type frames struct {
	conn  net.Conn
	eager *eager // nil = reads are waited for by the scheduler alone
	buf   []byte
	r, w  int
}

// header returns the next message's type and the length of its body. ok is
// false when fewer than five bytes are at hand. A length word below four is
// errFraming.
func (f *frames) header() (typ byte, body int, ok bool, err error) {
	if f.w-f.r < headerLen {
		return 0, 0, false, nil
	}
	n := binary.BigEndian.Uint32(f.buf[f.r+1:])
	if n < 4 || n > 1<<31-1 {
		return 0, 0, false, errFraming
	}
	return f.buf[f.r], int(n) - 4, true, nil
}

// fill reads once from the connection, having made room for at least one byte.
// The buffer grows towards want bytes, but only when the last read has filled
// it: a header that promises 1 GiB costs its sender 1 GiB.
func (f *frames) fill(want int) error {
	full := f.w == len(f.buf)
	switch {
	case f.r == f.w:
		f.r, f.w = 0, 0
	case f.r > 0 && len(f.buf)-f.w < len(f.buf)/2:
		f.w = copy(f.buf, f.buf[f.r:f.w])
		f.r = 0
	}
	if full && len(f.buf) < want || f.w == len(f.buf) {
		f.grow(want)
	}
	f.eager.wait()
	n, err := f.conn.Read(f.buf[f.w:])
	f.w += n
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	if err == io.EOF && f.r < f.w {
		err = errMidMessage
	}
	return err
}

// grow makes the buffer four times as large, towards want and no further.
func (f *frames) grow(want int) {
	size := min(max(4*len(f.buf), restBuffer), max(want, minBuffer))
	size = max(size, f.w-f.r+restBuffer)
	buf := make([]byte, size)
	f.w = copy(buf, f.buf[f.r:f.w])
	f.r = 0
	f.buf = buf
}

// rest lets go of a large buffer when nothing is in it.
func (f *frames) rest() {
	if f.r == f.w && len(f.buf) > minBuffer {
		f.buf, f.r, f.w = nil, 0, 0
	}
}

// body returns the next message's body whole, header consumed. It is valid
// until the next fill. The caller has bounded n.
func (f *frames) body(n int) ([]byte, error) {
	for f.w-f.r < headerLen+n {
		if err := f.fill(headerLen + n); err != nil {
			return nil, bodyError(err)
		}
	}
	b := f.buf[f.r+headerLen : f.r+headerLen+n]
	f.r += headerLen + n
	return b, nil
}

// bodyError turns the end of a connection into the end inside a message.
func bodyError(err error) error {
	if err == io.EOF {
		return errMidMessage
	}
	return err
}

// appendFrame appends a message of the given type and body.
func appendFrame(dst []byte, typ byte, body ...byte) []byte {
	dst = append(dst, typ)
	dst = binary.BigEndian.AppendUint32(dst, uint32(4+len(body)))
	return append(dst, body...)
}

// appendReady appends ReadyForQuery with a transaction status: I, T or E.
func appendReady(dst []byte, status byte) []byte { return appendFrame(dst, 'Z', status) }

// appendComplete appends CommandComplete.
func appendComplete(dst []byte, tag string) []byte {
	return appendFrame(dst, 'C', append([]byte(tag), 0)...)
}

// appendParameter appends ParameterStatus.
func appendParameter(dst []byte, name, value string) []byte {
	body := make([]byte, 0, len(name)+len(value)+2)
	body = append(append(body, name...), 0)
	body = append(append(body, value...), 0)
	return appendFrame(dst, 'S', body...)
}

// appendQuery appends a simple Query message.
func appendQuery(dst []byte, sql string) []byte {
	dst = append(dst, 'Q')
	dst = binary.BigEndian.AppendUint32(dst, uint32(4+len(sql)+1))
	dst = append(dst, sql...)
	return append(dst, 0)
}

// cstring splits a zero-terminated string off b. ok is false without a zero.
func cstring(b []byte) (s string, rest []byte, ok bool) {
	for i, c := range b {
		if c == 0 {
			return string(b[:i]), b[i+1:], true
		}
	}
	return "", b, false
}

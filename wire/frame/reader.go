package frame

import (
	"errors"
	"io"
	"net"
)

// Sizes in bytes. A buffer begins with firstBuffer, and grows while reads fill
// it; a side at rest holds no more than MinBuffer.
const (
	HeaderLen   = 5 // type byte and length word
	firstBuffer = 2 << 10
	MinBuffer   = 8 << 10  // PostgreSQL sends in pieces of 8 KiB (PqSendBuffer)
	MaxBuffer   = 64 << 10 // one read of a fast result
)

var (
	// ErrFraming is a length word that cannot be: PostgreSQL closes the
	// connection without a word, and so does pgproxy.
	ErrFraming = errors.New("impossible message length")
	// ErrMidMessage is the end of a connection within a message.
	ErrMidMessage = errors.New("connection ended inside a message")
)

// Reader reads one side's byte stream as messages. Conn must be set. It is for
// one goroutine at a time.
//
// A message's header is looked at in place. Its body is then taken (Body), or
// passed on or thrown away by the caller, who looks at Unread and calls
// Discard. What these return is valid until the next Fill.
type Reader struct {
	Conn net.Conn
	Wait *Waiter // nil = reads are waited for by the Go scheduler alone

	buf  []byte
	r, w int // buf[r:w] is unread
}

// Unread is what has been read from the connection and not been consumed.
func (f *Reader) Unread() []byte { return f.buf[f.r:f.w] }

// Buffered is the length of Unread.
func (f *Reader) Buffered() int { return f.w - f.r }

// Discard consumes n bytes, at most Buffered.
func (f *Reader) Discard(n int) { f.r += n }

// Header returns the next message's type and the length of its body. ok is
// false when fewer than HeaderLen bytes are at hand. A length word below four
// is ErrFraming.
func (f *Reader) Header() (typ byte, body int, ok bool, err error) {
	return Header(f.buf[f.r:f.w])
}

// Fill reads once from the connection, having made room for at least one byte.
// The buffer grows towards want bytes, but only when the last read has filled
// it: a header that promises 1 GiB costs its sender 1 GiB.
func (f *Reader) Fill(want int) error {
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
	f.Wait.wait()
	n, err := f.Conn.Read(f.buf[f.w:])
	f.w += n
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	if err == io.EOF && f.r < f.w {
		err = ErrMidMessage
	}
	return err
}

// grow makes the buffer four times as large, towards want and no further.
func (f *Reader) grow(want int) {
	size := min(max(4*len(f.buf), firstBuffer), max(want, MinBuffer))
	size = max(size, f.w-f.r+firstBuffer)
	buf := make([]byte, size)
	f.w = copy(buf, f.buf[f.r:f.w])
	f.r = 0
	f.buf = buf
}

// Rest lets go of a large buffer when nothing is in it.
func (f *Reader) Rest() {
	if f.r == f.w && len(f.buf) > MinBuffer {
		f.buf, f.r, f.w = nil, 0, 0
	}
}

// Body returns the next message's body whole, header consumed. It is valid
// until the next Fill. The caller has bounded n.
func (f *Reader) Body(n int) ([]byte, error) {
	for f.w-f.r < HeaderLen+n {
		if err := f.Fill(HeaderLen + n); err != nil {
			return nil, InBody(err)
		}
	}
	b := f.buf[f.r+HeaderLen : f.r+HeaderLen+n]
	f.r += HeaderLen + n
	return b, nil
}

// InBody turns the end of a connection into the end inside a message.
func InBody(err error) error {
	if err == io.EOF {
		return ErrMidMessage
	}
	return err
}

// IsDeadline reports whether a read has failed since its deadline has passed.
// Nothing of the stream is lost by it.
func IsDeadline(err error) bool {
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout()
}

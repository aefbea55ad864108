package frame

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"

	"pgproxy/wire/frame/frametest"
)

// message is one message of a stream.
type message struct {
	typ  byte
	body []byte
}

// readAll takes a stream's messages in, and how it ended.
func readAll(f *Reader) (list []message, err error) {
	for {
		typ, n, ok, err := f.Header()
		if err == nil && !ok {
			err = f.Fill(MinBuffer)
			if err == nil {
				continue
			}
		}
		if err != nil {
			return list, err
		}
		body, err := f.Body(n)
		if err != nil {
			return list, err
		}
		list = append(list, message{typ, bytes.Clone(body)})
	}
}

func TestReader(t *testing.T) {
	var stream []byte
	var want []message
	for i, size := range []int{0, 1, 4, firstBuffer - HeaderLen, firstBuffer, MinBuffer - 1, MinBuffer, 3, 300_000, 0} {
		body := bytes.Repeat([]byte{byte('a' + i)}, size)
		stream = Append(stream, 'D', body...)
		want = append(want, message{'D', body})
	}
	for _, chunk := range []int{0, 1, 2, 4, 5, 6, 7, 511, 8191, 8193} {
		f := &Reader{Conn: &frametest.Conn{In: stream, Chunk: chunk}}
		got, err := readAll(f)
		if err != io.EOF {
			t.Errorf("pieces of %d bytes: %v", chunk, err)
		}
		if !slices.EqualFunc(got, want, func(a, b message) bool { return a.typ == b.typ && bytes.Equal(a.body, b.body) }) {
			t.Errorf("pieces of %d bytes: got %d messages, want %d", chunk, len(got), len(want))
		}
	}
}

func TestReaderEnd(t *testing.T) {
	for _, tt := range []struct {
		name string
		in   string
		want error
	}{
		{"nothing", "", io.EOF},
		{"whole", "S\x00\x00\x00\x04", io.EOF},
		{"type alone", "S", ErrMidMessage},
		{"half a length", "S\x00\x00", ErrMidMessage},
		{"half a body", "Q\x00\x00\x00\x08abc", ErrMidMessage},
		{"length three", "S\x00\x00\x00\x03", ErrFraming},
		{"negative length", "S\x80\x00\x00\x00", ErrFraming},
	} {
		if _, err := readAll(&Reader{Conn: &frametest.Conn{In: []byte(tt.in)}}); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
}

// A length that is only promised costs nothing.
func TestPromisedLength(t *testing.T) {
	in := append([]byte{'Q', 0x7f, 0xff, 0xff, 0xff}, make([]byte, 20_000)...)
	f := &Reader{Conn: &frametest.Conn{In: in, Chunk: 1000}}
	if _, err := readAll(f); err != ErrMidMessage {
		t.Error(err)
	}
	if len(f.buf) > 4*len(in) {
		t.Errorf("%d bytes held a buffer of %d", len(in), len(f.buf))
	}
}

func FuzzReader(f *testing.F) {
	f.Add([]byte("Q\x00\x00\x00\x0dSELECT 1\x00S\x00\x00\x00\x04"), byte(1))
	f.Add([]byte("Q\x7f\xff\xff\xffSELECT"), byte(3))
	f.Add([]byte("X\x00\x00\x00\x03"), byte(0))
	f.Fuzz(func(t *testing.T, in []byte, chunk byte) {
		f := &Reader{Conn: &frametest.Conn{In: slices.Clone(in), Chunk: int(chunk)}}
		list, err := readAll(f)
		if err == nil {
			t.Fatal("a stream without end")
		}
		var again []byte
		for _, m := range list {
			again = Append(again, m.typ, m.body...)
		}
		if !bytes.HasPrefix(in, again) {
			t.Fatalf("%q was read as %q", in, again)
		}
		if err == io.EOF && len(again) != len(in) {
			t.Fatalf("%d bytes were lost in silence", len(in)-len(again))
		}
		if len(f.buf) > 4*len(in)+2*MinBuffer {
			t.Fatalf("%d bytes held a buffer of %d", len(in), len(f.buf))
		}
	})
}

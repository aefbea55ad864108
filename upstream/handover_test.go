package upstream

import (
	"bytes"
	"encoding/binary"
	"io"
	"testing"
	"testing/iotest"
)

// However the bytes come and however much is asked for, a Read stays within
// one frame, and nothing is lost.
func FuzzFrameReader(f *testing.F) {
	f.Add([]byte("R\x00\x00\x00\x08\x00\x00\x00\x00Z\x00\x00\x00\x05Irest"), uint8(3))
	f.Add([]byte("Z\x00\x00\x00\x04Z\x00\x00\x00\x00Z\xff\xff\xff\xffx"), uint8(0))
	f.Fuzz(func(t *testing.T, stream []byte, size uint8) {
		r := &frameReader{r: iotest.HalfReader(bytes.NewReader(stream))}
		ends := frameEnds(stream)
		buf := make([]byte, int(size)+1)
		at := 0
		for {
			n, err := r.Read(buf)
			if !bytes.Equal(buf[:n], stream[at:at+n]) {
				t.Fatalf("at %d: got %q, want %q", at, buf[:n], stream[at:at+n])
			}
			for end := range ends {
				if at < end && end < at+n {
					t.Fatalf("a Read from %d to %d goes over the end of a frame at %d", at, at+n, end)
				}
			}
			at += n
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if at != len(stream) {
			t.Errorf("%d bytes of %d", at, len(stream))
		}
	})
}

// frameEnds returns the offsets where the stream's frames end.
func frameEnds(stream []byte) map[int]bool {
	ends := make(map[int]bool)
	for at := 0; at+5 <= len(stream); {
		length := max(binary.BigEndian.Uint32(stream[at+1:]), 4)
		at += 1 + int(length)
		ends[at] = true
	}
	return ends
}

package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"strconv"
)

// link is a place in the chain: the hash of a record, in hexadecimal.
type link [2 * sha256.Size]byte

// origin is the link before the first record of a chain.
var origin = link(bytes.Repeat([]byte("0"), 2*sha256.Size))

const (
	prevField = `,"prev":"`
	hashField = `,"hash":"`
	lineEnd   = `"}`

	// chainSize is what the chain adds to a record, with the newline.
	chainSize = len(prevField+`"`+hashField+lineEnd+"\n") + 2*len(link{})
)

// closeRecord ends the JSON object that starts at b[start] with the chain's
// fields and a newline. Torn is how many bytes before it are no record.
func closeRecord(b []byte, start int, prev link, torn int64) ([]byte, link) {
	if torn > 0 {
		b = append(b, `,"torn":`...)
		b = strconv.AppendInt(b, torn, 10)
	}
	b = append(b, prevField...)
	b = append(b, prev[:]...)
	b = append(b, '"')
	hash := hashOf(b[start:])
	b = append(b, hashField...)
	b = append(b, hash[:]...)
	return append(b, lineEnd+"\n"...), hash
}

func hashOf(b []byte) (hash link) {
	sum := sha256.Sum256(b)
	hex.Encode(hash[:], sum[:])
	return hash
}

// links reads the chain's fields off the end of a line, given without its
// newline. It is false for a line that no Writer made, or that was altered.
func links(line []byte) (prev, hash link, ok bool) {
	prev, hash, body := claims(line)
	return prev, hash, body != nil && hash == hashOf(body)
}

// claims reads the fields as they are written. The body is what the hash is
// of; it is nil if the line does not end as a record does.
func claims(line []byte) (prev, hash link, body []byte) {
	tail := len(line) - len(hashField) - len(hash) - len(lineEnd) // where hashField begins
	head := tail - len(prevField) - len(prev) - 1                 // where prevField begins
	if head < 0 ||
		string(line[head:head+len(prevField)]) != prevField ||
		string(line[tail-1:tail+len(hashField)]) != `"`+hashField ||
		string(line[len(line)-len(lineEnd):]) != lineEnd {
		return prev, hash, nil
	}
	copy(prev[:], line[head+len(prevField):])
	copy(hash[:], line[tail+len(hashField):])
	return prev, hash, line[:tail]
}

// tail is what the end of a log says to whoever continues it.
type tail struct {
	last link // of the last record; origin if there is none
	// dirty counts the bytes after the last record; open says that a newline
	// must be written before the next.
	dirty int64
	open  bool
}

// tailWindow is how much of a log's end is read at first: a few records.
const tailWindow = 64 << 10

// readTail finds the last record in a log of the given size.
func readTail(r io.ReaderAt, size int64) (tail, error) {
	for window := int64(tailWindow); ; window *= 4 {
		from := max(0, size-window)
		buf := make([]byte, size-from)
		if _, err := r.ReadAt(buf, from); err != nil && err != io.EOF {
			return tail{}, fmt.Errorf("reading the last record: %w", err)
		}
		if t, ok := findTail(buf, from == 0); ok || from == 0 {
			return t, nil
		}
	}
}

// findTail looks for the last record in buf, which ends a log. Whole says
// that buf is all of it; otherwise its first line may lack its beginning.
func findTail(buf []byte, whole bool) (tail, bool) {
	t := tail{last: origin, dirty: int64(len(buf)), open: len(buf) > 0 && buf[len(buf)-1] != '\n'}
	for end := len(buf); end > 0; {
		stop := end
		if buf[stop-1] == '\n' {
			stop--
		}
		begin := bytes.LastIndexByte(buf[:stop], '\n') + 1
		if begin == 0 && !whole {
			return t, false
		}
		if _, hash, ok := links(buf[begin:stop]); ok {
			t.last, t.dirty = hash, int64(len(buf)-end)
			return t, true
		}
		end = begin
	}
	return t, whole
}

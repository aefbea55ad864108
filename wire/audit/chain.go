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
	// chainMark ends the body of a record and says how its hash is made. A
	// record without it is from an older version: see sumOf.
	chainMark = `,"chain":2`
	tornField = `,"torn":`
	prevField = `,"prev":"`
	hashField = `,"hash":"`
	lineEnd   = `"}`

	// maxTorn is the longest that the torn field can be.
	maxTorn = len(tornField) + len("9223372036854775807")
	// chainSize is what the chain adds to a record, with the newline.
	chainSize = len(prevField+`"`+hashField+lineEnd+"\n") + 2*len(link{}) + maxTorn
)

// closeRecord ends the JSON object at the end of b with the chain's fields and
// a newline. Body is the hash of the object so far, chainMark included; torn is
// how many bytes before the object are no record.
func closeRecord(b []byte, body [sha256.Size]byte, prev link, torn int64) ([]byte, link) {
	from := len(b)
	if torn > 0 {
		b = append(b, tornField...)
		b = strconv.AppendInt(b, torn, 10)
	}
	b = append(b, prevField...)
	b = append(b, prev[:]...)
	b = append(b, '"')
	hash := linkOf(body, b[from:])
	b = append(b, hashField...)
	b = append(b, hash[:]...)
	return append(b, lineEnd+"\n"...), hash
}

// linkOf is the hash of a record: SHA-256 over the SHA-256 of its body and the
// chain's fields before "hash". The body may be long, and its hash needs
// nothing of the records before it; only the rest is hashed in their order.
func linkOf(body [sha256.Size]byte, chain []byte) link {
	var b [sha256.Size + chainSize]byte
	return hashOf(append(append(b[:0], body[:]...), chain...))
}

func hashOf(b []byte) (hash link) {
	sum := sha256.Sum256(b)
	hex.Encode(hash[:], sum[:])
	return hash
}

// links reads the chain's fields off the end of a line, given without its
// newline. It is false for a line that no Writer made, or that was altered.
func links(line []byte) (prev, hash link, ok bool) {
	prev, hash, head, ok := claims(line)
	return prev, hash, ok && hash == sumOf(line, head)
}

// claims reads the fields as they are written. Head is where they begin, apart
// from torn; ok is false if the line does not end as a record does.
func claims(line []byte) (prev, hash link, head int, ok bool) {
	tail := len(line) - len(hashField) - len(hash) - len(lineEnd) // where hashField begins
	head = tail - len(prevField) - len(prev) - 1                  // where prevField begins
	if head < 0 ||
		string(line[head:head+len(prevField)]) != prevField ||
		string(line[tail-1:tail+len(hashField)]) != `"`+hashField ||
		string(line[len(line)-len(lineEnd):]) != lineEnd {
		return prev, hash, 0, false
	}
	copy(prev[:], line[head+len(prevField):])
	copy(hash[:], line[tail+len(hashField):])
	return prev, hash, head, true
}

// sumOf is the hash that a line should have, whose prevField begins at head.
// Records of older versions, which have no chainMark, were hashed in one piece.
func sumOf(line []byte, head int) link {
	tail := head + len(prevField) + len(link{}) + 1
	body := head
	near := max(0, head-maxTorn)
	if i := bytes.LastIndex(line[near:head], []byte(tornField)); i >= 0 {
		body = near + i
	}
	if !bytes.HasSuffix(line[:body], []byte(chainMark)) {
		return hashOf(line[:tail])
	}
	return linkOf(sha256.Sum256(line[:body]), line[body:tail])
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

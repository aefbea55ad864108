package trail

import (
	"errors"
	"io"
)

const (
	// maxText is how much is kept of each text in a line that does not fit in a
	// block, in bytes of JSON.
	maxText = 64 << 10
	// maxClipped is the longest that a line can be with its texts clipped.
	maxClipped = 1 << 20
)

// errEndless: a line is too long even so. It is no record.
var errEndless = errors.New("more than a record has")

// clip appends a line of JSON to dst with each string cut after maxText bytes,
// at the end of a character. It reports whether any was cut.
func clip(dst []byte, src io.Reader) (_ []byte, clipped bool, err error) {
	var (
		inString, escape, skip bool
		n, hex                 int // bytes of the string so far; digits of \u to come
		chunk                  = make([]byte, 4<<10)
	)
	for {
		size, err := src.Read(chunk)
		for _, c := range chunk[:size] {
			switch {
			case !inString:
				inString, n, skip = c == '"', 0, false
			case escape:
				escape = false
				if c == 'u' {
					hex = 4
				}
			case hex > 0:
				hex--
			case c == '"':
				inString, skip = false, false
			default:
				escape = c == '\\'
				if n >= maxText && c&0xc0 != 0x80 { // not in the middle of a character
					skip, clipped = true, true
				}
			}
			n++
			if !skip {
				dst = append(dst, c)
			}
		}
		switch {
		case len(dst) > maxClipped:
			return dst, clipped, errEndless
		case err == io.EOF:
			return dst, clipped, nil
		case err != nil:
			return dst, clipped, err
		}
	}
}

package trail

import (
	"bytes"
	"errors"
	"io"
)

const (
	// blockSize is how much is read at a time.
	blockSize = 256 << 10
	// maxLine is more than any record takes. A longer line is passed over in
	// pieces of about this size.
	maxLine = 64 << 20
)

// errShrunk: the file has become shorter than it was when it was opened. The
// Writer takes back a record that did not fit on the disk.
var errShrunk = errors.New("the audit log has changed while it was read")

// lines reads the lines of a file, in either direction. Texts are good until
// the next call.
type lines struct {
	f    io.ReaderAt
	size int64
	// block is blockSize, and longest is maxLine, other than in tests.
	block, longest int64

	buf   []byte // the block, which begins at base
	base  int64
	store []byte // what buf is a part of
	copy  []byte // of a line that does not fit in a block, with its texts clipped
}

// line is a line of a file.
type line struct {
	from, to int64  // to is behind its newline
	text     []byte // without the newline; nil if it cannot be a record
	clipped  bool   // texts in it are not whole
}

// load makes the block begin at from.
func (r *lines) load(from int64) error {
	if r.store == nil {
		r.store = make([]byte, r.block)
	}
	r.base, r.buf = from, nil
	b := r.store[:min(r.block, r.size-from)]
	n, err := r.f.ReadAt(b, from)
	switch {
	case n == len(b):
		r.buf = b
		return nil
	case err == io.EOF:
		return errShrunk
	}
	return err
}

// has reports whether the byte at a place is in the block.
func (r *lines) has(at int64) bool { return r.base <= at && at < r.base+int64(len(r.buf)) }

// byteAt returns one byte. A block that has to be loaded for it ends behind it.
func (r *lines) byteAt(at int64) (byte, error) {
	if !r.has(at) {
		if err := r.load(max(0, at+1-r.block)); err != nil {
			return 0, err
		}
	}
	return r.buf[at-r.base], nil
}

// before returns the line that ends at to, which is above 0. If to is inside of
// a line, that line ends there.
func (r *lines) before(to int64) (line, error) {
	last, err := r.byteAt(to - 1)
	if err != nil {
		return line{}, err
	}
	stop := to
	if last == '\n' {
		stop--
	}
	from := stop
	for at := stop; ; at = r.base {
		if at == 0 {
			from = 0
			break
		}
		if !r.has(at - 1) {
			// The block that ends with the line will hold all of it, most likely.
			from := max(0, at-r.block)
			if at > stop-r.block {
				from = max(0, stop-r.block)
			}
			if err := r.load(from); err != nil {
				return line{}, err
			}
		}
		if i := bytes.LastIndexByte(r.buf[:at-r.base], '\n'); i >= 0 {
			from = r.base + int64(i) + 1
			break
		}
		if from = r.base; stop-from > r.longest {
			break
		}
	}
	return r.line(from, stop, to)
}

// after returns the line that begins at from, which is below the size. The last
// line may lack its newline.
func (r *lines) after(from int64) (line, error) {
	for at := from; ; at = r.base + int64(len(r.buf)) {
		if at >= r.size {
			return r.line(from, r.size, r.size)
		}
		if !r.has(at) {
			begin := at
			if at < from+r.block {
				begin = from
			}
			if err := r.load(begin); err != nil {
				return line{}, err
			}
		}
		if i := bytes.IndexByte(r.buf[at-r.base:], '\n'); i >= 0 {
			stop := at + int64(i)
			return r.line(from, stop, stop+1)
		}
		if end := r.base + int64(len(r.buf)); end-from > r.longest {
			return r.line(from, end, end)
		}
	}
}

// start returns where the first line begins at or behind a place; the size if
// none does.
func (r *lines) start(at int64) (int64, error) {
	if at <= 0 {
		return 0, nil
	}
	if at >= r.size {
		return r.size, nil
	}
	l, err := r.after(at - 1)
	if err != nil {
		return 0, err
	}
	return l.to, nil
}

// line fetches a line whose newline is at stop.
func (r *lines) line(from, stop, to int64) (line, error) {
	l := line{from: from, to: to}
	switch size := stop - from; {
	case size > r.longest:
		return l, nil
	case size > r.block:
		var err error
		r.copy, l.clipped, err = clip(r.copy[:0], io.NewSectionReader(r.f, from, size))
		if l.text = r.copy; errors.Is(err, errEndless) {
			return line{from: from, to: to}, nil
		}
		return l, err
	case size == 0:
		return l, nil
	}
	if !r.has(from) || !r.has(stop-1) {
		if err := r.load(max(0, stop-r.block)); err != nil {
			return l, err
		}
	}
	l.text = r.buf[from-r.base : stop-r.base]
	return l, nil
}

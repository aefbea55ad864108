package trail

import (
	"context"
	"errors"
	"io"
	"os"
	"sort"
	"time"
)

// disorder is how far records may stand from the order of their times: a record
// bears the time before it waits for its turn to be written.
const disorder = time.Minute

// errBudget: the time for a request is up.
var errBudget = errors.New("out of time")

// walker goes over the records of a log in either direction. What is no record
// is passed over. The log is what it was when the walk began.
type walker struct {
	ctx      context.Context
	log      *Log
	deadline time.Time

	files []*file
	i     int   // the file it is in
	at    int64 // and where in it

	f     *os.File // files[open], if open is not -1
	open  int
	lines lines

	moved  int64  // bytes gone over
	looked int64  // moved, when the time was looked at last
	last   []byte // the time of the last record
}

// record is a record of which the beginning has been read.
type record struct {
	head
	line
}

// walk begins at the end of the log. The caller closes the walker.
func (l *Log) walk(ctx context.Context) (*walker, error) {
	files, err := l.list()
	if err != nil {
		return nil, err
	}
	w := &walker{ctx: ctx, log: l, deadline: time.Now().Add(l.Budget), files: files, open: -1}
	w.toEnd()
	return w, nil
}

func (w *walker) Close() {
	if w.f != nil {
		w.f.Close()
	}
	w.f, w.open = nil, -1
}

func (w *walker) toEnd() {
	w.i, w.at = 0, 0
	if n := len(w.files); n > 0 {
		w.i, w.at = n-1, w.files[n-1].size()
	}
}

// to goes to a position. Where its file is gone, that is the end of the one
// before it.
func (w *walker) to(p Position) {
	if w.toEnd(); p.IsZero() {
		return
	}
	n := sort.Search(len(w.files), func(i int) bool { return w.files[i].begun.UnixNano() > p.file })
	switch {
	case n == 0:
		w.i, w.at = 0, 0
	case w.files[n-1].begun.UnixNano() == p.file:
		w.i, w.at = n-1, min(p.offset, w.files[n-1].size())
	default:
		w.i, w.at = n-1, w.files[n-1].size()
	}
}

// position is where the walker is.
func (w *walker) position() Position {
	if len(w.files) == 0 {
		return Position{}
	}
	return Position{w.files[w.i].begun.UnixNano(), w.at}
}

// left is how much of the log is before the walker, in bytes.
func (w *walker) left() int64 {
	n := w.at
	for i := range min(w.i, len(w.files)) {
		n += w.files[i].size()
	}
	return n
}

// prev goes to the beginning of the record before, which it returns. io.EOF says
// that there is none, errBudget that the time is up.
func (w *walker) prev() (record, error) {
	for len(w.files) > 0 {
		if w.at == 0 {
			if w.i == 0 {
				break
			}
			w.i--
			w.at = w.files[w.i].size()
			continue
		}
		l, r, err := w.read((*lines).before)
		if err != nil {
			return r, err
		}
		w.at = l.from
		if r.time != nil {
			return r, nil
		}
	}
	return record{}, io.EOF
}

// next goes behind the next record, which it returns.
func (w *walker) next() (record, error) {
	for len(w.files) > 0 {
		if w.at >= w.files[w.i].size() {
			if w.i == len(w.files)-1 {
				break
			}
			w.i, w.at = w.i+1, 0
			continue
		}
		l, r, err := w.read((*lines).after)
		if err != nil {
			return r, err
		}
		w.at = l.to
		if r.time != nil {
			return r, nil
		}
	}
	return record{}, io.EOF
}

// read reads a line, and its beginning if it is a record: time is nil if not.
func (w *walker) read(step func(*lines, int64) (line, error)) (line, record, error) {
	if w.moved-w.looked > blockSize { // so that each request comes a block further
		if err := w.ctx.Err(); err != nil {
			return line{}, record{}, err
		}
		if time.Now().After(w.deadline) {
			return line{}, record{}, errBudget
		}
		w.looked = w.moved
	}
	ok, err := w.useFile()
	if err != nil {
		return line{}, record{}, err
	}
	if !ok { // the file is gone: all of it is passed over
		return line{from: 0, to: w.files[w.i].size()}, record{}, nil
	}
	l, err := step(&w.lines, w.at)
	if err != nil {
		return l, record{}, err
	}
	w.moved += l.to - l.from
	h, ok := headOf(l.text)
	if !ok {
		return l, record{}, nil
	}
	w.last = append(w.last[:0], h.time...)
	return l, record{h, l}, nil
}

// reached is the time of the last record that was read; zero if there was none.
func (w *walker) reached() time.Time { return head{time: w.last}.when() }

// useFile opens the file that the walker is in; false if it is gone.
func (w *walker) useFile() (bool, error) {
	if w.open == w.i {
		return w.f != nil, nil
	}
	w.Close()
	f, err := w.log.open(w.files[w.i])
	if err != nil {
		return false, err
	}
	w.f, w.open = f, w.i
	w.lines = lines{f: f, size: w.files[w.i].size(), block: blockSize, longest: maxLine, store: w.lines.store, copy: w.lines.copy}
	return f != nil, nil
}

// seek goes to the first record that is younger than t, by binary search.
func (w *walker) seek(t time.Time) error {
	n := sort.Search(len(w.files), func(i int) bool { return w.files[i].begun.After(t) })
	if n == 0 {
		w.i, w.at = 0, 0
		return nil
	}
	w.i, w.at = n-1, 0
	ok, err := w.useFile()
	if err != nil || !ok {
		return err
	}
	low, high := int64(0), w.files[w.i].size()
	for low < high {
		middle := low + (high-low)/2
		from, err := w.lines.start(middle)
		if err != nil {
			return err
		}
		r, to, err := w.recordWithin(from, high)
		switch {
		case err != nil:
			return err
		case r.time == nil || r.when().After(t):
			high = middle
		default:
			low = to
		}
	}
	w.at = low
	return nil
}

// recordWithin is the first record that begins at or behind from and before
// high, and where it ends; one without a time if there is none.
func (w *walker) recordWithin(from, high int64) (record, int64, error) {
	for from < high {
		l, err := w.lines.after(from)
		if err != nil {
			return record{}, 0, err
		}
		if h, ok := headOf(l.text); ok {
			return record{h, l}, l.to, nil
		}
		from = l.to
	}
	return record{}, high, nil
}

package trail

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Log is an audit log: a file and what was put aside of it. Safe for concurrent
// use.
type Log struct {
	path string
	// Budget is how long a request may read. It is set before the Log is used.
	Budget time.Duration

	slots chan struct{} // held while a request reads
}

const (
	defaultBudget = 700 * time.Millisecond
	// readers is how many requests read at the same time.
	readers = 2
	// slotWait is how long a request waits for others.
	slotWait = 5 * time.Second
)

var (
	// ErrNoFile says that records go where they cannot be read back.
	ErrNoFile = errors.New("the audit log is no file")
	// ErrBusy says that others are reading.
	ErrBusy = errors.New("others are searching the audit log: try again")
)

// New returns the log at a path; ErrNoFile if that is standard output, a pipe or a
// device.
func New(path string) (*Log, error) {
	if path == "-" {
		return nil, ErrNoFile
	}
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return nil, ErrNoFile
	}
	return &Log{path: path, Budget: defaultBudget, slots: make(chan struct{}, readers)}, nil
}

// Position is a place between two records of the log. It stays good when files
// are put aside under other names. The zero value is the end of the log.
type Position struct {
	file   int64 // its first record's time, in nanoseconds
	offset int64
}

// IsZero reports whether this is the end of the log.
func (p Position) IsZero() bool { return p == Position{} }

func (p Position) String() string {
	if p.IsZero() {
		return ""
	}
	return strconv.FormatInt(p.file, 36) + "." + strconv.FormatInt(p.offset, 36)
}

// ParsePosition reads what String returned.
func ParsePosition(s string) (Position, error) {
	if s == "" {
		return Position{}, nil
	}
	file, offset, _ := strings.Cut(s, ".")
	f, errFile := strconv.ParseInt(file, 36, 64)
	o, errOffset := strconv.ParseInt(offset, 36, 64)
	if errFile != nil || errOffset != nil || o < 0 {
		return Position{}, fmt.Errorf("%q is no position in the audit log", s)
	}
	return Position{f, o}, nil
}

// file is one file of the log.
type file struct {
	name  string
	info  fs.FileInfo // at the time when it was listed
	begun time.Time   // its first record's time
}

func (f *file) size() int64 { return f.info.Size() }

// list returns the files that have records, the oldest first.
func (l *Log) list() ([]*file, error) {
	// The file in use comes first: if it is put aside now, it is met again under
	// another name, as long as it has become, and nothing is missed.
	var files []*file
	add := func(name string) error {
		f, err := look(name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if f == nil {
			return nil
		}
		i := slices.IndexFunc(files, f.sameAs)
		switch {
		case i < 0:
			files = append(files, f)
		case os.SameFile(f.info, files[i].info):
			files[i] = f
		}
		return nil
	}
	if err := add(l.path); err != nil {
		return nil, err
	}
	names, err := l.aside()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if err := add(name); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(files, func(a, b *file) int {
		return cmp.Or(a.begun.Compare(b.begun), cmp.Compare(b.name, a.name))
	})
	return files, nil
}

// sameAs takes a copy of a file for the file, too.
func (f *file) sameAs(g *file) bool { return os.SameFile(f.info, g.info) || f.begun.Equal(g.begun) }

// aside are the names of files that may have been put aside: the log's name and
// more behind a dot or a dash. Compressed ones cannot be read from the end.
func (l *Log) aside() ([]string, error) {
	dir, base := filepath.Split(l.path)
	entries, err := os.ReadDir(filepath.Clean(dir))
	var names []string
	for _, e := range entries {
		rest, ok := strings.CutPrefix(e.Name(), base)
		if ok && (strings.HasPrefix(rest, ".") || strings.HasPrefix(rest, "-")) && !strings.HasSuffix(rest, ".gz") {
			names = append(names, filepath.Join(dir, e.Name()))
		}
	}
	return names, err
}

// look opens a file for a moment; nil if there is no record in its beginning.
func look(name string) (*file, error) {
	if info, err := os.Stat(name); err != nil || !info.Mode().IsRegular() {
		return nil, err // opening a FIFO would wait
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	for _, size := range []int{4 << 10, 1 << 20} {
		b := make([]byte, size)
		n, _ := f.ReadAt(b, 0) // what cannot be read has no records
		for text := range bytes.Lines(b[:n]) {
			if h, ok := writersHead(text); ok && !h.when().IsZero() {
				return &file{name: name, info: info, begun: h.when()}, nil
			}
		}
	}
	return nil, nil
}

// open opens a file that was listed, under the name that it has by now; nil if
// it is gone.
func (l *Log) open(f *file) (*os.File, error) {
	names, err := l.aside()
	if err != nil {
		return nil, err
	}
	for _, name := range append([]string{f.name}, names...) {
		if info, err := os.Stat(name); err != nil || !os.SameFile(info, f.info) {
			continue // opening another one might wait, if it is a FIFO
		}
		got, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		if info, err := got.Stat(); err == nil && os.SameFile(info, f.info) {
			return got, nil
		}
		got.Close()
	}
	return nil, nil
}

// acquire takes a slot for reading. The caller calls release when it is done.
func (l *Log) acquire(ctx context.Context) (release func(), err error) {
	late := time.NewTimer(slotWait)
	defer late.Stop()
	select {
	case l.slots <- struct{}{}:
		return func() { <-l.slots }, nil
	case <-late.C:
		return nil, ErrBusy
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

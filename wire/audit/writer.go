package audit

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Sync says when a record is on the disk.
type Sync int

const (
	// SyncInterval brings records to the disk once a second.
	SyncInterval Sync = iota
	// SyncAlways brings a record to the disk before Write returns. Writes
	// at the same time share the wait. A Result is not waited for, as what
	// it tells of has happened: the next record, or the next second, takes
	// it along.
	SyncAlways
	// SyncNever leaves it to the kernel.
	SyncNever
)

// ParseSync reads the name of a Sync: always, interval or never.
func ParseSync(name string) (Sync, error) {
	switch name {
	case "interval":
		return SyncInterval, nil
	case "always":
		return SyncAlways, nil
	case "never":
		return SyncNever, nil
	}
	return 0, errors.New("not always, interval or never")
}

var syncNames = [...]string{SyncInterval: "interval", SyncAlways: "always", SyncNever: "never"}

func (s Sync) String() string { return syncNames[s] }

// MarshalText returns the name.
func (s Sync) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads the name, as ParseSync does.
func (s *Sync) UnmarshalText(text []byte) (err error) {
	*s, err = ParseSync(string(text))
	return err
}

// Options are the choices for a Writer. The zero value is ready to use.
type Options struct {
	Sync Sync
	// MaxSize is the size, in bytes, past which a file is put aside under a
	// name that bears the time, and a new one begun; 0 means never. A record
	// is never split.
	MaxSize int64
	// MaxSQL is how much of a statement is kept, in bytes, and half of how much
	// it may take as JSON; 0 means DefaultMaxSQL. A record tells what was cut.
	MaxSQL int
	// Logger hears of failures that no caller of Write is there for; nil
	// means slog.Default.
	Logger *slog.Logger
}

// DefaultMaxSQL is no less than any statement that a session accepts. Only one
// that is full of control characters, each of which takes six bytes in JSON, is
// cut all the same.
const DefaultMaxSQL = 16 << 20

const (
	// syncInterval is the longest that a record is left to the kernel, other
	// than with SyncNever.
	syncInterval = time.Second
	// defaultPipeTimeout is how long a pipe may take no byte before the write is
	// given up.
	defaultPipeTimeout = 10 * time.Second
	// defaultLookInterval spares most records an fstat.
	defaultLookInterval = 100 * time.Millisecond
	// keptBuffer is the largest buffer that is kept for the next record.
	keptBuffer = 1 << 20
)

// Writer appends records to a log. It is safe for concurrent use.
type Writer struct {
	path        string // "-" for standard output
	opts        Options
	pipeTimeout time.Duration

	mu       sync.Mutex // held while a record is written; guards what follows
	f        *os.File   // nil after a failure, until the log is opened again
	named    bool       // f is a file opened by name: no pipe, no device, not standard output
	syncable bool       // f is a file, and fsync means something
	end      tail       // of what was written
	rotateAt int64      // the size past which f is put aside; 0 means never
	looked   time.Time  // when f was last seen to be there
	// lookInterval is how long a file that somebody removed may go unnoticed.
	lookInterval time.Duration
	written      uint64 // records the kernel has taken
	failure      error  // of the last write, nil if it was well
	closed       bool

	synced syncState

	stop    chan struct{} // closed by Close
	flusher sync.WaitGroup
}

// Open opens a log for appending and makes it if need be, mode 0600; "-" is
// standard output. A line torn by a crash is closed, and the chain goes on
// after the last whole record. Only one process at a time can have a file
// open.
func Open(path string, o Options) (*Writer, error) {
	if o.MaxSQL == 0 {
		o.MaxSQL = DefaultMaxSQL
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	w := &Writer{path: path, opts: o, pipeTimeout: defaultPipeTimeout, lookInterval: defaultLookInterval, end: tail{last: origin}, stop: make(chan struct{})}
	w.synced.cond.L = &w.synced.mu
	if err := w.openLocked(); err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	if o.Sync != SyncNever {
		w.flusher.Go(w.flush)
	}
	return w, nil
}

// line is a record on its way into the log. What takes time in proportion to
// the record is done without the Writer's lock.
type line struct {
	b    []byte            // a newline, and then the record
	body [sha256.Size]byte // the hash of the record
}

// lines holds buffers for records that are being encoded.
var lines = sync.Pool{New: func() any { return &line{b: []byte("\n")} }}

func (l *line) encode(r *Record, maxSQL int) {
	l.b = append(appendRecord(l.b[:1], r, maxSQL), chainMark...)
	l.b = slices.Grow(l.b, chainSize)
	l.body = sha256.Sum256(l.b[1:])
}

// Write appends a record. When it returns nil, the kernel has the whole line,
// and with SyncAlways the disk has it, other than a Result. After an error the caller must take it that
// the record does not exist, though it may.
func (w *Writer) Write(r *Record) error {
	l := lines.Get().(*line)
	l.encode(r, w.opts.MaxSQL)
	w.mu.Lock()
	seq, durable, err := w.appendLocked(l)
	w.mu.Unlock()
	if cap(l.b) <= keptBuffer {
		lines.Put(l)
	}
	if err == nil && durable && r.Event != Result {
		err = w.waitSynced(seq)
	}
	if err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	return nil
}

// appendLocked writes one line and returns its number, and whether it has to
// be waited for.
func (w *Writer) appendLocked(l *line) (seq uint64, durable bool, err error) {
	if err := w.readyLocked(len(l.b) + chainSize); err != nil {
		w.failure = err
		return 0, false, err
	}
	torn, first := w.end.dirty, 1
	if w.end.open {
		first = 0 // the newline closes the torn line, and counts as a part of it
		if torn > 0 {
			torn++
		}
	}
	b, hash := closeRecord(l.b, l.body, w.end.last, torn)
	l.b = b
	n, err := w.f.Write(b[first:])
	if err != nil {
		w.failLocked(n, err)
		return 0, false, err
	}
	w.end = tail{last: hash}
	w.written++
	w.failure = nil
	return w.written, w.opts.Sync == SyncAlways && w.syncable, nil
}

// readyLocked sees to it that there is a file for n more bytes: opened again
// after a failure or when somebody removed it, rotated when it is full.
func (w *Writer) readyLocked(n int) error {
	if w.closed {
		return os.ErrClosed
	}
	if now := time.Now(); w.f != nil && w.named && (w.failure != nil || w.rotateAt > 0 || now.Sub(w.looked) > w.lookInterval) {
		w.looked = now
		var st unix.Stat_t
		if err := unix.Fstat(int(w.f.Fd()), &st); err != nil {
			w.closeLocked()
			return err
		}
		switch {
		case st.Nlink == 0:
			// What is written to a removed file is gone with the process.
			w.closeLocked()
		case w.rotateAt > 0 && st.Size > 0 && st.Size+int64(n) > w.rotateAt:
			w.rotateLocked(st.Size)
		}
	}
	if w.f == nil {
		return w.openLocked()
	}
	if !w.named {
		// Not every pipe or device has deadlines.
		_ = w.f.SetWriteDeadline(time.Now().Add(w.pipeTimeout))
	}
	return nil
}

// failLocked deals with a write of which only n bytes were taken. In a file
// they are taken back, so that no torn line stays; elsewhere they cannot be,
// and the next record says how many there are. Opening the log again shows
// what is in it.
func (w *Writer) failLocked(n int, err error) {
	w.failure = err
	switch {
	case n == 0:
	case w.named:
		w.takeBackLocked(int64(n))
	default:
		w.end.dirty += int64(n)
		w.end.open = true
	}
	w.closeLocked()
}

func (w *Writer) takeBackLocked(n int64) {
	info, err := w.f.Stat()
	if err == nil {
		err = w.f.Truncate(info.Size() - n)
	}
	if err != nil {
		w.opts.Logger.Error("audit log: a torn record stays in the file", "err", err)
	}
}

// openLocked opens the log and finds the end of its chain.
func (w *Writer) openLocked() error {
	f, err := openLog(w.path)
	if err != nil {
		return err
	}
	if err := w.useLocked(f); err != nil {
		f.Close()
		return err
	}
	return nil
}

// openLog opens a file for appending, or a pipe or device for writing.
func openLog(path string) (*os.File, error) {
	if path == "-" {
		// A pipe is opened anew, so that a write to one which nobody reads
		// ends some time, and whoever else holds it is not disturbed.
		var st unix.Stat_t
		if unix.Fstat(1, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFIFO {
			if f, err := os.OpenFile("/proc/self/fd/1", os.O_WRONLY|unix.O_NONBLOCK, 0); err == nil {
				return f, nil
			}
		}
		// A descriptor of our own: on the first three, the Go runtime
		// takes a closed pipe for the end of the program.
		fd, err := unix.FcntlInt(1, unix.F_DUPFD_CLOEXEC, 3)
		return os.NewFile(uintptr(fd), "standard output"), err
	}
	info, err := os.Stat(path)
	if err == nil && !info.Mode().IsRegular() {
		return openSpecial(path, info.Mode())
	}
	return os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
}

// useLocked makes f the log. It keeps the end of the chain in memory where f
// is empty or cannot be read.
func (w *Writer) useLocked(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	regular := info.Mode().IsRegular()
	if !regular || w.path == "-" {
		w.f, w.named, w.syncable = f, false, regular
		return nil
	}
	if err := lock(f); err != nil {
		return err
	}
	end := tail{last: w.end.last}
	switch {
	case info.Size() > 0:
		end, err = readTail(f, info.Size())
	case w.end.last == origin:
		end.last = lastOfRotated(w.path)
	}
	if err == nil && info.Size() == 0 && w.opts.Sync != SyncNever {
		err = syncDir(filepath.Dir(w.path))
	}
	if err != nil {
		return err
	}
	w.f, w.named, w.syncable = f, true, true
	w.end, w.rotateAt = end, w.opts.MaxSize
	return nil
}

// lock takes the file for this process. It is let go with the file.
func lock(f *os.File) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("%s is in use by another process", f.Name())
	}
	return err
}

// syncDir brings a file's name to the disk.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// lastOfRotated is where the chain goes on in an empty log: at the end of the
// newest file that was rotated away from this path, or at the origin.
func lastOfRotated(path string) link {
	dir, base := filepath.Split(path)
	entries, _ := os.ReadDir(filepath.Clean(dir)) // what can't be read isn't continued
	last, newest := origin, time.Time{}
	for _, e := range entries {
		rest, ok := strings.CutPrefix(e.Name(), base)
		if !ok || !strings.HasPrefix(rest, ".") && !strings.HasPrefix(rest, "-") {
			continue
		}
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() || !info.ModTime().After(newest) {
			continue
		}
		if hash, err := lastOf(filepath.Join(dir, e.Name())); err == nil && hash != origin {
			last, newest = hash, info.ModTime()
		}
	}
	return last
}

func lastOf(name string) (link, error) {
	f, err := os.Open(name)
	if err != nil {
		return origin, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return origin, err
	}
	t, err := readTail(f, size)
	return t.last, err
}

// Reopen opens the log by its name again, after it was moved away. Records
// before are in the old file, those after in the new one. Standard output stays as it is.
func (w *Writer) Reopen() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return fmt.Errorf("audit log: %w", os.ErrClosed)
	}
	if w.path == "-" {
		return nil
	}
	w.closeLocked()
	if err := w.openLocked(); err != nil {
		w.failure = err
		return fmt.Errorf("audit log: %w", err)
	}
	return nil
}

// rotateLocked puts the file aside, and closes it for the caller to open a
// new one. Where that can't be done, the file grows on to twice its size
// before it is tried again: a record that can be written is written.
func (w *Writer) rotateLocked(size int64) {
	stamp := time.Now().UTC().Format("20060102T150405.000000000Z")
	err := os.Rename(w.path, w.path+"."+stamp)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		w.opts.Logger.Error("audit log: not rotated", "err", err)
		w.rotateAt = size + w.opts.MaxSize
		return
	}
	w.closeLocked()
}

// Healthy is nil if the next record can be expected to be written: the last
// one was, or else the log can be opened and its disk has room.
func (w *Writer) Healthy() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failure == nil {
		return nil
	}
	if err := w.readyLocked(0); err != nil {
		return err
	}
	var fs unix.Statfs_t
	if w.syncable && unix.Fstatfs(int(w.f.Fd()), &fs) == nil && fs.Bavail == 0 {
		return w.failure
	}
	return nil
}

// Close brings the last records to the disk and closes the log. Writes fail
// from then on.
func (w *Writer) Close() error {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return os.ErrClosed
	}
	w.closed = true
	err := w.closeLocked()
	w.mu.Unlock()
	close(w.stop)
	w.flusher.Wait()
	return err
}

package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Check reports why Open would fail for a path. It leaves no record and no
// file, and changes none.
func Check(path string) error {
	if err := check(path); err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	return nil
}

func check(path string) error {
	if path != "-" {
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return canCreate(path)
		}
	}
	f, err := openLog(path)
	if err != nil {
		return err
	}
	defer f.Close() // the lock goes with it
	w := Writer{path: path, opts: Options{Sync: SyncNever}, end: tail{last: origin}}
	return w.useLocked(f)
}

// canCreate makes a file without a name in the directory of path. Where the
// file system has no such files, it asks for the rights alone.
func canCreate(path string) error {
	dir := filepath.Dir(path)
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	switch {
	case err == nil:
		return unix.Close(fd)
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EISDIR):
		err = unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK|unix.X_OK, unix.AT_EACCESS)
	}
	if err != nil {
		return &fs.PathError{Op: "create", Path: path, Err: err}
	}
	return nil
}

// openSpecial opens what is no file: a FIFO, a device. It does not wait for
// somebody to read a FIFO: that is an error.
func openSpecial(path string, mode fs.FileMode) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0)
	if !errors.Is(err, unix.ENXIO) {
		return f, err
	}
	if mode&fs.ModeNamedPipe != 0 {
		return nil, fmt.Errorf("%s is a FIFO that nobody reads: start what reads it first", path)
	}
	return nil, fmt.Errorf("%s is not a file, a FIFO or a device that can be written to: %w", path, unix.ENXIO)
}

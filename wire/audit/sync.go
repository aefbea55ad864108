package audit

import (
	"errors"
	"os"
	"sync"
	"time"
)

// syncState is what is known of the disk. Records are numbered as the kernel
// took them.
type syncState struct {
	mu     sync.Mutex
	cond   sync.Cond // on mu: done or failed has grown, or busy ended
	busy   bool      // somebody is in fsync
	done   uint64    // records up to here are on the disk
	failed uint64    // an fsync failed for records up to here
	err    error     // of that fsync
}

// note tells the outcome of an fsync for all records up to seq.
func (s *syncState) note(seq uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.failed, s.err = max(s.failed, seq), err
	} else {
		s.done = max(s.done, seq)
	}
	s.cond.Broadcast()
}

// waitSynced returns when the record is on the disk. Whoever comes while no
// fsync is under way does one, for all records that were written until then;
// the others wait for it.
func (w *Writer) waitSynced(seq uint64) error {
	s := &w.synced
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		// Failures first: after one, a later fsync that succeeds proves
		// nothing for the pages that the kernel gave up on.
		switch {
		case s.failed >= seq:
			return s.err
		case s.done >= seq:
			return nil
		case s.busy:
			s.cond.Wait()
			continue
		}
		s.busy = true
		s.mu.Unlock()
		w.fsync() // the loop reads the outcome
		s.mu.Lock()
		s.busy = false
		s.cond.Broadcast()
	}
}

// fsync brings all that was written to the disk, without holding up writers.
// A file whose fsync failed is opened again, to see what is left of it. The
// outcome is noted for those who wait for it.
func (w *Writer) fsync() error {
	w.mu.Lock()
	f, seq := w.f, w.written
	w.mu.Unlock()
	if f == nil {
		return nil // closeLocked has noted the outcome
	}
	err := f.Sync()
	if errors.Is(err, os.ErrClosed) {
		return nil // likewise
	}
	w.synced.note(seq, err)
	if err == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failure = err
	if w.f == f {
		w.closeLocked()
	}
	return err
}

// closeLocked lets go of the file, if there is one, and brings what is in it
// to the disk first unless that is left to the kernel.
func (w *Writer) closeLocked() error {
	if w.f == nil {
		return nil
	}
	var err error
	if w.syncable && w.opts.Sync != SyncNever {
		err = w.f.Sync()
		w.synced.note(w.written, err)
	}
	err = errors.Join(err, w.f.Close())
	w.f = nil
	return err
}

// flush is the goroutine that brings to the disk what nobody waits for, from
// Open to Close.
func (w *Writer) flush() {
	tick := time.NewTicker(syncInterval)
	defer tick.Stop()
	for {
		select {
		case <-w.stop:
			return
		case <-tick.C:
		}
		if !w.dirty() {
			continue
		}
		if err := w.fsync(); err != nil {
			w.opts.Logger.Error("audit log: records may not have reached the disk", "err", err)
		}
	}
}

// dirty reports whether there are records of which no fsync has told yet.
func (w *Writer) dirty() bool {
	w.mu.Lock()
	written, syncable := w.written, w.syncable
	w.mu.Unlock()
	w.synced.mu.Lock()
	defer w.synced.mu.Unlock()
	return syncable && written > max(w.synced.done, w.synced.failed)
}

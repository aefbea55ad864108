package wire

import (
	"fmt"
	"sync"
	"time"
)

const (
	// lookPeriod is how long one record stands for all looks of a person at a
	// session.
	lookPeriod = time.Hour
	// maxLooks is how many of them are remembered. Past it there are more records
	// than need be, and none too few.
	maxLooks = 4096
)

// looks are the looks at sessions that are on record. Safe for concurrent use.
type looks struct {
	mu   sync.Mutex
	last map[look]time.Time
}

type look struct{ by, session string }

// Observed records that a viewer looks at a session of a user, live or past,
// once in an hour: a page that is loaded again and again makes one record. Nobody
// is recorded for what is their own. After an error the viewer must not be shown
// the session.
func (srv *Server) Observed(by Viewer, id, user string) error {
	if by.owns(user) {
		return nil
	}
	now, this := time.Now(), look{by.name(), id}
	l := &srv.looks
	l.mu.Lock()
	defer l.mu.Unlock()
	if last, ok := l.last[this]; ok && now.Sub(last) < lookPeriod {
		return nil
	}
	if err := srv.observed(by, id, user); err != nil {
		return fmt.Errorf("%w: %w", ErrUnrecorded, err)
	}
	if l.last == nil || len(l.last) >= maxLooks {
		l.last = make(map[look]time.Time)
	}
	l.last[this] = now
	return nil
}

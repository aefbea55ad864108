package trail

import (
	"context"
	"errors"
	"io"
	"time"

	"pgproxy/wire/audit"
)

// Session says which session is wanted, and by whom.
type Session struct {
	ID string
	// Sees says whose sessions may be seen. Records of others are passed over,
	// as if there were none.
	Sees func(user string) bool
}

// has reports whether a record is of the session. Records of pgproxy's older
// versions name nobody; they are for those who see everybody.
func (s Session) has(r record) bool {
	return len(r.session) > 0 && string(r.session) == s.ID && s.Sees(string(r.user))
}

// Start is where a session's story begins, as far as it is known.
type Start struct {
	// Position is that of the oldest record that was found of the session; Found
	// says that there is one, Whole that it is the session's first.
	Position
	Found, Whole bool
	Progress
}

// Find looks for the beginning of a session, backwards from a position. A time
// that is not zero says when the session was there: Find begins at it.
func (l *Log) Find(ctx context.Context, s Session, from Position, at time.Time) (Start, error) {
	var start Start
	err := l.read(ctx, &start.Progress, func(w *walker) error {
		w.to(from)
		if !at.IsZero() {
			if err := w.seek(at.Add(disorder)); err != nil {
				return err
			}
		}
		for {
			r, err := w.prev()
			if err != nil {
				return err
			}
			if !at.IsZero() && !start.Found && r.when().Before(at.Add(-2*disorder)) {
				return io.EOF // it was not there
			}
			if !s.has(r) {
				continue
			}
			start.Position, start.Found = w.position(), true
			if event := audit.Event(r.event); event == audit.Connect || event == audit.Refuse {
				start.Whole = true
				return io.EOF
			}
		}
	})
	return start, err
}

// Since is the position of what was recorded since a time.
func (l *Log) Since(ctx context.Context, t time.Time) (p Position, err error) {
	err = l.read(ctx, new(Progress), func(w *walker) error {
		err := w.seek(t.Add(-disorder))
		p = w.position()
		return err
	})
	return p, err
}

// Story is a part of what happened in a session, in order.
type Story struct {
	Steps []*audit.Step
	// About is the first record, which says who and where; nil if there are none.
	About *audit.Record
	// Ended says that the session's last record was met.
	Ended bool
	Progress
}

const (
	// storySteps and storyText are how much of a session is told at a time: so
	// many steps, and so many bytes of statements.
	storySteps = 500
	storyText  = 1 << 20
)

// Story tells a session forwards from a position. It goes on to the session's
// end, or until there is enough to be told at a time.
func (l *Log) Story(ctx context.Context, s Session, from Position) (Story, error) {
	var story Story
	var timeline audit.Timeline
	err := l.read(ctx, &story.Progress, func(w *walker) error {
		w.to(from)
		for text := 0; !story.Ended; {
			if full := len(timeline.Steps) >= storySteps || text >= storyText; full && !timeline.Waiting() {
				return nil
			}
			r, err := w.next()
			if err != nil {
				return err
			}
			if !s.has(r) {
				continue
			}
			rec, ok := decode(r.line)
			if !ok {
				continue
			}
			timeline.Add(rec)
			shorten(rec)
			if text += len(rec.SQL); story.About == nil {
				story.About = rec
			}
			story.Ended = rec.Event == audit.Disconnect || rec.Event == audit.Refuse
		}
		return io.EOF
	})
	if !story.Next.IsZero() {
		timeline.StillUnread()
	}
	story.Steps = timeline.Steps
	return story, err
}

// read has do read the log with a walker, and tells how far it has come. Do
// returns io.EOF when there is nothing more, and nil when there is.
func (l *Log) read(ctx context.Context, p *Progress, do func(*walker) error) error {
	release, err := l.acquire(ctx)
	if err != nil {
		return err
	}
	defer release()
	w, err := l.walk(ctx)
	if err != nil {
		return err
	}
	defer w.Close()
	err = do(w)
	p.Read, p.Left, p.Late, p.Reached = w.moved, w.left(), errors.Is(err, errBudget), w.reached()
	switch {
	case errors.Is(err, io.EOF):
		return nil
	case err == nil, p.Late:
		p.Next = w.position()
		return nil
	}
	return err
}

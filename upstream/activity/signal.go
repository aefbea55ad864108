package activity

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"pgproxy/upstream"
)

// Signaller is a connection over which one backend is looked at and signalled.
// It must be closed.
type Signaller struct {
	*upstream.Conn
	timeout time.Duration
}

// NewSignaller connects to a database. timeout is how long the signal may wait
// for the backend's end; 0 = not at all.
func NewSignaller(ctx context.Context, dial func(context.Context, upstream.Request) (*upstream.Conn, error), database string, timeout time.Duration) (*Signaller, error) {
	params := parameters("signal")
	params["statement_timeout"] = fmt.Sprint((timeout + 5*time.Second).Milliseconds())
	conn, err := dial(ctx, upstream.Request{Database: database, Params: params})
	if err != nil {
		return nil, err
	}
	return &Signaller{conn, timeout}, nil
}

// Find returns the backend that has a process ID now, nil if there is none.
func (s *Signaller) Find(ctx context.Context, pid int) (*Backend, error) {
	rows, err := s.Query(ctx, fmt.Sprintf("SELECT row_to_json(b) FROM (SELECT %s FROM pg_stat_activity a WHERE a.pid = %d) b", backendColumns, pid))
	if err != nil || len(rows) == 0 {
		return nil, err
	}
	b := new(Backend)
	if err := json.Unmarshal([]byte(rows[0][0]), b); err != nil {
		return nil, fmt.Errorf("activity: %w", err)
	}
	return b, nil
}

// Signal calls pg_cancel_backend or pg_terminate_backend on a backend, and
// returns what it returns. It checks the backend's start in the same statement,
// so that a successor with the same process ID is not hit; where there is none
// any more, sent is false.
func (s *Signaller) Signal(ctx context.Context, function string, b *Backend) (sent bool, err error) {
	arguments := "pid"
	if s.timeout > 0 {
		arguments = fmt.Sprintf("pid, %d", s.timeout.Milliseconds())
	}
	rows, err := s.Query(ctx, fmt.Sprintf("SELECT pg_catalog.%s(%s) FROM pg_catalog.pg_stat_activity WHERE pid = %d AND backend_start = '%s'",
		function, arguments, b.PID, b.Start.UTC().Format("2006-01-02 15:04:05.999999+00")))
	return err == nil && len(rows) == 1 && rows[0][0] == "t", err
}

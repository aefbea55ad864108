package wire

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"pgproxy/policy"
	"pgproxy/upstream"
	"pgproxy/upstream/activity"

	"github.com/jackc/pgx/v5/pgconn"
)

// DatabaseView is what somebody sees of a database: activity's snapshot, with
// pgproxy's sessions by person.
type DatabaseView struct {
	activity.Snapshot // without its list of backends
	// Waiting are the backends that wait and those that they wait for, as
	// activity.Tree orders them. Transactions and Statements are those that are
	// old, the oldest first; a backend may be in several lists.
	Waiting      []Backend `json:"waiting"`
	Transactions []Backend `json:"transactions"`
	Statements   []Backend `json:"statements"`
}

// Backend is a server process as a viewer sees it.
type Backend struct {
	activity.Backend
	// User, Node and Session are those of pgproxy's session that it serves, if
	// it does.
	User    string `json:"user"`
	Node    string `json:"node"`
	Session string `json:"session"`
	Depth   int    `json:"depth"` // this and what follows: see activity.Node
	Others  int    `json:"waits_too"`
	Cycle   bool   `json:"deadlock"`
	// MayCancel and MayEnd say that the viewer may signal it.
	MayCancel bool `json:"may_cancel"`
	MayEnd    bool `json:"may_end"`
}

// Who names the backend to people: the person, or else the program and where it
// is.
func (b Backend) Who() string {
	switch {
	case b.User != "" && b.Node != "":
		return b.User + " on " + b.Node
	case b.User != "":
		return b.User
	case b.PID == 0:
		return "a prepared transaction"
	}
	name := b.Application
	for _, other := range []string{b.Type, b.Role, "unknown"} {
		if name == "" || name == b.Type && b.Type == "client backend" {
			name = other
		}
	}
	if b.Addr != "" {
		name += " at " + b.Addr
	}
	return name
}

// maxMonitors is how many are kept before those without a connection go. Where
// any database may be asked for, there is one for every name that somebody has
// thought of.
const maxMonitors = 100

// monitors are the activity monitors of a Server, by database. Safe for
// concurrent use.
type monitors struct {
	mu     sync.Mutex
	list   map[string]*activity.Monitor
	closed bool
}

func (m *monitors) get(dial func(context.Context, upstream.Request) (*upstream.Conn, error), database string) (*activity.Monitor, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, ErrServerClosed
	}
	if m.list[database] == nil {
		if m.list == nil {
			m.list = make(map[string]*activity.Monitor)
		}
		if len(m.list) >= maxMonitors {
			maps.DeleteFunc(m.list, func(_ string, unused *activity.Monitor) bool { return unused.CloseUnused() })
		}
		m.list[database] = activity.NewMonitor(dial, database)
	}
	return m.list[database], nil
}

func (m *monitors) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	for _, monitor := range m.list {
		monitor.Close()
	}
}

// lookTimeout bounds a look at a database.
const lookTimeout = 5 * time.Second

// LookAt returns what a viewer sees of a database, as of a second ago at most. An
// empty name is the default database. The error is a *policy.Refusal where they
// may not ask for that database.
//
// Everybody is told who waits for whom, with the names of persons: that is what
// the view is for. The statements of other people's sessions need may_observe.
func (srv *Server) LookAt(ctx context.Context, v Viewer, database string) (*DatabaseView, error) {
	served := policy.Served{Default: srv.Database, Names: srv.Databases}
	database, refusal := served.Choose(&v.Rule, database)
	if refusal != nil {
		return nil, refusal
	}
	return srv.lookAt(ctx, v, database)
}

func (srv *Server) lookAt(ctx context.Context, v Viewer, database string) (*DatabaseView, error) {
	monitor, err := srv.monitors.get(srv.Dial, database)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	snapshot, err := monitor.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	return srv.view(v, snapshot), nil
}

// view makes of a snapshot what a viewer may see.
func (srv *Server) view(v Viewer, snapshot *activity.Snapshot) *DatabaseView {
	sessions := make(map[int]Info)
	for _, i := range srv.Sessions() {
		if i.Upstream == snapshot.Upstream {
			sessions[int(i.UpstreamPID)] = i
		}
	}
	see := func(b *activity.Backend) Backend { return srv.backend(v, snapshot, b, sessions[b.PID]) }
	view := &DatabaseView{Snapshot: *snapshot}
	view.Backends = nil // they are not masked
	for _, n := range activity.Tree(snapshot.Backends) {
		b := Backend{Backend: activity.Backend{PID: n.PID}}
		if n.Backend != nil {
			b = see(n.Backend)
		}
		b.Depth, b.Others, b.Cycle = n.Depth, n.Others, n.Cycle
		view.Waiting = append(view.Waiting, b)
	}
	old := func(since time.Time) bool { return !since.IsZero() && snapshot.At.Sub(since) > activity.LongAfter }
	for i := range snapshot.Backends {
		b := &snapshot.Backends[i]
		if b.Database == snapshot.Database && old(b.TxSince) {
			view.Transactions = append(view.Transactions, see(b))
		}
		if b.Database == snapshot.Database && b.State == "active" && old(b.QuerySince) {
			view.Statements = append(view.Statements, see(b))
		}
	}
	byAge(view.Transactions, func(b *Backend) time.Time { return b.TxSince })
	byAge(view.Statements, func(b *Backend) time.Time { return b.QuerySince })
	return view
}

// backend is what a viewer sees of a backend; session is the one that it serves,
// or zero.
func (srv *Server) backend(v Viewer, snapshot *activity.Snapshot, of *activity.Backend, session Info) Backend {
	b := Backend{Backend: *of, User: session.User, Node: session.Node, Session: session.ID}
	switch {
	case session.ID == "" && upstream.IsSession(of.Application) && !v.Rule.MayObserve:
		b.Query = "" // of another pgproxy's session, of one that has just ended, or of a parallel worker
	case session.ID == "":
		b.Query = srv.maskOther(b.Query)
	case v.Sees(session.User):
		b.Query = session.SQL // as records have it
	default:
		b.Query = ""
	}
	known := !b.Start.IsZero() || session.ID != ""
	if known && b.Database == snapshot.Database && !upstream.IsHelper(b.Application) {
		own := session.ID != "" && v.owns(session.User)
		b.MayCancel = own || v.Rule.Signals(policy.CancelBackend)
		b.MayEnd = own || v.Rule.Signals(policy.TerminateBackend)
	}
	return b
}

// maskOther masks a statement that was sent without pgproxy, which may be cut.
func (srv *Server) maskOther(sql string) string {
	how := srv.Redaction
	if how == policy.Full {
		how = policy.Redacted
	}
	head, _ := policy.RedactHead(how, sql, shownSQL)
	return head
}

var blockerColumns = []string{"pid", "who", "state", "for", "waits for", "statement"}

func byAge(list []Backend, since func(*Backend) time.Time) {
	slices.SortStableFunc(list, func(a, b Backend) int { return since(&a).Compare(since(&b)) })
}

// showBlockers answers SHOW pgproxy.blockers. It needs nothing of the session's
// own connection, which may be in a failed transaction.
func (s *session) showBlockers() *sessionError {
	var view *DatabaseView
	err := s.interruptible(func(ctx context.Context) (err error) {
		view, err = s.srv.lookAt(ctx, s.viewer(), s.database)
		return err
	})
	if err != nil {
		return s.helperError(err)
	}
	notes := view.Unseen
	if len(view.Waiting) == 0 {
		notes = append([]string{"Nobody waits for a lock in database " + s.database + "."}, notes...)
	}
	if addr := s.up.Load().Addr; view.Upstream != addr {
		notes = append(notes, fmt.Sprintf("This is the server %s; your session is on %s.", view.Upstream, addr))
	}
	for _, note := range notes {
		s.Send(notice("pgproxy: " + note).append(nil))
	}
	s.table(blockerColumns, blockerRows(view))
	return nil
}

// The widths of the table in characters: all of it, as psql draws it, and of the
// columns that may be long.
const (
	tableWidth   = 100
	whoWidth     = 24
	waitsWidth   = 20
	leastWidth   = 16 // of the statement
	columnBorder = 3
)

// blockerRows are the rows of the table. The statement gets the room that the
// other columns leave.
func blockerRows(view *DatabaseView) [][]string {
	var rows [][]string
	room := tableWidth
	widths := make([]int, len(blockerColumns))
	for i, name := range blockerColumns {
		widths[i] = len(name)
	}
	for i := range view.Waiting {
		b := &view.Waiting[i]
		rows = append(rows, []string{
			strings.Repeat("  ", min(b.Depth, 4)) + itoa(int64(b.PID)), shorten(cmp.Or(b.User, b.Who()), whoWidth), shortState(b), b.since(view.At),
			shorten(b.waits(), waitsWidth), "",
		})
		for k, cell := range rows[i] {
			widths[k] = max(widths[k], utf8.RuneCountInString(cell))
		}
	}
	for _, w := range widths[:len(widths)-1] {
		room -= w + columnBorder
	}
	for i := range rows {
		sql := strings.Join(strings.Fields(view.Waiting[i].Query), " ")
		if r := []rune(sql); len(r) > max(room-2, leastWidth) {
			sql = string(r[:max(room-2, leastWidth)-1]) + "…"
		}
		rows[i][len(rows[i])-1] = sql
	}
	return rows
}

// shortState is the backend's state in a word or two.
func shortState(b *Backend) string {
	switch {
	case b.Cycle:
		return "deadlock"
	case b.Waits():
		return "waits"
	case b.State == "idle in transaction", b.State == "idle in transaction (aborted)":
		return "idle in tx"
	case b.State == "" && b.PID != 0:
		return "not seen"
	}
	return b.State
}

// since is for how long the backend has waited, or has been in its state.
func (b *Backend) since(now time.Time) string {
	from := b.StateSince
	if b.Waits() && !b.WaitSince.IsZero() {
		from = b.WaitSince
	}
	if from.IsZero() {
		return ""
	}
	return max(now.Sub(from), 0).Truncate(time.Second).String()
}

// waits is what the backend waits for, and how many others beside the one it
// stands under.
func (b *Backend) waits() string {
	if b.Others == 0 {
		return b.WaitsFor
	}
	return fmt.Sprintf("%s, +%d", b.WaitsFor, b.Others)
}

// helperError is what the client is told when a connection of pgproxy's own could
// not do its work. The session goes on.
func (s *session) helperError(err error) *sessionError {
	s.log.Debug("a connection of pgproxy's own", "err", err)
	if refused, ok := errors.AsType[*pgconn.PgError](err); ok {
		e := statementError(refused.Code, refused.Message)
		e.detail, e.hint = refused.Detail, refused.Hint
		return e
	}
	switch {
	case errors.Is(err, context.Canceled):
		return cancelledError("")
	case errors.Is(err, context.DeadlineExceeded):
		return statementError(codeQueryCanceled, "pgproxy: the server did not answer pgproxy's own connection in time")
	}
	return noConnection(err)
}

package wire

import (
	"slices"
	"strings"
	"sync"
	"time"
)

// Info is one live session, as others may see it.
type Info struct {
	ID, User, Node, NodeID, Addr string
	Database, Upstream           string
	Client                       string // its own application_name
	UpstreamPID                  uint32
	Since                        time.Time
	State                        string // "idle", "running", "idle in transaction", …
	StateSince                   time.Time
	TxSince                      time.Time // when the open transaction began; zero outside of one
	SQL                          string    // the running statement, or the last one; redacted, cut
	Seq                          int64     // its number
	Statements, Rows, Bytes      int64
	Reason                       string
	Access                       string
	AccessUntil                  time.Time // when a raised access ends; zero when it is the rule's own
}

// Sessions returns the live sessions, the oldest first.
func (srv *Server) Sessions() []Info { return infos(srv.live()) }

// infos describes the sessions that are ready, the oldest first.
func infos(sessions []*session) []Info {
	var list []Info
	for _, s := range sessions {
		if info, ok := s.info(); ok {
			list = append(list, info)
		}
	}
	slices.SortFunc(list, func(a, b Info) int {
		if c := a.Since.Compare(b.Since); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return list
}

// info describes the session; ok is false before it is ready and after its end.
func (s *session) info() (i Info, ok bool) {
	v, ok := s.life.view()
	if !ok {
		return i, false
	}
	rule, reason := s.ruling.both()
	raised, _ := s.ruling.elevation()
	return Info{
		ID: s.id, User: s.caller.Who(), Node: s.caller.Node, NodeID: s.caller.NodeID, Addr: s.caller.Addr,
		Database: s.database, Upstream: s.up.Load().Addr, UpstreamPID: s.up.Load().PID, Client: s.startup.client,
		Since: s.began, State: v.state, StateSince: v.since, TxSince: v.txSince, SQL: v.sql, Seq: v.seq,
		Statements: s.totals.statements.Load(), Rows: s.totals.rows.Load() + s.totals.sentRows.Load(),
		Bytes: s.totals.bytes.Load() + s.totals.sentBytes.Load(), Reason: reason, Access: rule.Access.String(), AccessUntil: raised.until,
	}, true
}

var sessionColumns = []string{"session", "user", "node", "database", "state", "since", "state_age", "tx_age", "statements", "rows", "bytes", "statement"}

// sessionRows are the live sessions that this one may see: its caller's own,
// or all of them.
func (s *session) sessionRows() [][]string {
	viewer := s.viewer()
	var rows [][]string
	for _, i := range s.srv.Sessions() {
		if !viewer.Sees(i.User) {
			continue
		}
		txAge := ""
		if !i.TxSince.IsZero() {
			txAge = time.Since(i.TxSince).Round(time.Second).String()
		}
		rows = append(rows, []string{i.ID, i.User, i.Node, i.Database, i.State, i.Since.UTC().Format(time.RFC3339),
			time.Since(i.StateSince).Round(time.Second).String(), txAge, itoa(i.Statements), itoa(i.Rows), itoa(i.Bytes), i.SQL})
	}
	return rows
}

// historySize is how many of the last statements are kept for looking at.
const historySize = 500

// Past is one statement that has ended, as others may see it.
type Past struct {
	Time                 time.Time
	Session, User, Node  string
	Database             string
	Seq                  int64
	SQL                  string // redacted, cut
	Tag, SQLState, Error string
	Denied, Truncated    bool
	Rows, Bytes          int64
	Took                 time.Duration

	own bool // it was pgproxy's own alone, and no statement of the server's
}

// history holds the last statements. Safe for concurrent use.
type history struct {
	mu   sync.Mutex
	ring []Past
	next int
}

func (h *history) add(p Past) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.ring) < historySize {
		h.ring = append(h.ring, p)
		return
	}
	h.ring[h.next] = p
	h.next = (h.next + 1) % historySize
}

// last is the last statement of a session that has ended, and was not pgproxy's
// own; "" for none.
func (h *history) last(session string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range h.ring {
		if p := &h.ring[(h.next+len(h.ring)-1-i)%len(h.ring)]; p.Session == session && !p.own {
			return p.SQL
		}
	}
	return ""
}

// History returns the last statements, the newest first.
func (srv *Server) History() []Past {
	h := &srv.history
	h.mu.Lock()
	defer h.mu.Unlock()
	list := append(slices.Clone(h.ring[h.next:]), h.ring[:h.next]...)
	slices.Reverse(list)
	return list
}

// shownSQL is how much of a statement is kept for looking at, in bytes.
const shownSQL = 2 << 10

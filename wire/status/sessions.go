package status

import (
	"context"
	"net/http"
	"slices"
	"time"

	"pgproxy/policy"
	"pgproxy/upstream/activity"
	"pgproxy/wire"
)

// view is the first page: what one person sees at one moment.
type view struct {
	frame
	// Trouble is what somebody should look at, whatever the filter says.
	Trouble []trouble
	// Refusals are the last statements that were refused; RefusedMore is how many
	// there are besides.
	Refusals      []pastStatement
	RefusedMore   int64
	Running, Idle []session
	// Counts are of all sessions that the viewer may see; those who wait are of
	// all backends.
	Counts      counts
	Used, Limit int // sessions of everybody, and how many there may be; 0 = no limit
	Chart       chart
	Filter      filter
	Statements  []pastStatement
	More        int64 // statements that match and are not listed
	Limits      []policy.Setting
	Access      []string
}

// counts are numbers of sessions.
type counts struct{ All, Running, Waiting, Open, Idle int }

// session is a live session as a viewer sees it.
type session struct {
	wire.Info
	Own, Ends bool
	Recorded  bool // there is a transcript
	Now       time.Time
	lock      *lock
}

// lock is a session's part in a tree of those that wait for locks.
type lock struct {
	wire.Backend
	holder string    // whom it waits for; empty = it waits for nobody
	Blocks int       // how many wait for it directly
	now    time.Time // by the server's clock
}

// trouble is a row of the list of what somebody should look at: a session, or a
// backend that is not pgproxy's or not the viewer's to see.
type trouble struct {
	Session *session
	Backend *backendRow
	Depth   int // in the tree of who waits for whom
}

// Indent is the class of a depth.
func (t trouble) Indent() int { return min(t.Depth, maxIndent) }

// Active reports whether there is a statement to cancel.
func (s session) Active() bool { return s.State == "active" }

// Waits reports whether the session waits for a lock.
func (s session) Waits() bool { return s.lock != nil && s.lock.holder != "" }

// Blocks is how many wait for the session.
func (s session) Blocks() int {
	if s.lock == nil {
		return 0
	}
	return s.lock.Blocks
}

// Label is the state in the words of the page, which are short.
func (s session) Label() string {
	if s.Waits() {
		return "waits for lock"
	}
	return label(s.State)
}

func label(state string) string {
	switch state {
	case "active":
		return "running"
	case "idle in transaction":
		return "open transaction"
	case "idle in transaction (aborted)":
		return "failed transaction"
	case "waiting for approval":
		return "waits for approval"
	case "":
		return "state not seen"
	}
	return state
}

// Tone is how the state is coloured.
func (s session) Tone() string {
	switch {
	case s.Waits(), s.Blocks() > 0:
		return "bad"
	case s.State == "idle":
		return "quiet"
	case s.State == "active" && s.Age() < activity.LongAfter:
		return "good"
	}
	return "warn"
}

// Why tells in words what the session waits for, and how many wait for it.
func (s session) Why() string {
	if s.lock == nil {
		return ""
	}
	return lockWords(s.lock.WaitsFor, s.lock.holder, s.lock.Blocks)
}

// AgeSince is when what the row tells of has begun: the transaction, where one
// is open and nothing runs.
func (s session) AgeSince() time.Time {
	switch {
	case s.Waits() && !s.lock.WaitSince.IsZero():
		return s.Now.Add(s.lock.WaitSince.Sub(s.lock.now)) // by our clock
	case !s.Active() && !s.TxSince.IsZero():
		return s.TxSince
	}
	return s.StateSince
}

// Age is how long the row's state has lasted.
func (s session) Age() time.Duration { return max(s.Now.Sub(s.AgeSince()), 0) }

// TxAge is how old the open transaction is, 0 for none.
func (s session) TxAge() time.Duration {
	if s.TxSince.IsZero() {
		return 0
	}
	return s.Now.Sub(s.TxSince)
}

// troubled reports whether somebody should look at the session.
func (s session) troubled() bool {
	return s.lock != nil || s.State == "idle in transaction (aborted)" || s.TxAge() > activity.LongAfter
}

func (p *Page) showPage(w http.ResponseWriter, r *http.Request, v wire.Viewer) {
	f := filterOf(r.URL.Query())
	vw := view{frame: p.frame(v, "Sessions"), Filter: f, Limits: v.Rule.Limits(), Access: v.Rule.Describe(), Chart: chartOf(p.Server.Hour())}
	vw.Said, vw.Refreshes = outcomes[r.URL.Query().Get("done")], true
	vw.Used, vw.Limit = p.Server.Places()
	sessions := p.sessions(v, vw.Now)
	vw.sort(sessions, p.looks(r.Context(), v, sessions))
	vw.Statements = p.statements(v, f, vw.Now)
	vw.refusals(p.statements(v, filter{Outcome: "denied"}, vw.Now))
	if n := len(vw.Statements); n > shownStatements {
		vw.Statements, vw.More = vw.Statements[:shownStatements], int64(n-shownStatements)
	}
	p.render(w, r, http.StatusOK, "page", vw)
}

// sessions are the live sessions that the viewer may see, the oldest first.
func (p *Page) sessions(v wire.Viewer, now time.Time) []session {
	list := []session{}
	for _, i := range p.Server.Sessions() {
		if v.Sees(i.User) {
			list = append(list, session{Info: i, Own: i.User == v.Who(), Ends: v.Ends(i.User), Recorded: p.Log != nil, Now: now})
		}
	}
	return list
}

const (
	// lookTimeout is how long the page waits to know who waits for whom.
	lookTimeout = 500 * time.Millisecond
	// maxLooks is how many databases are looked at for one page.
	maxLooks = 4
)

// looks are views of the databases in which one of the sessions does something. A
// database that cannot be looked at is left out: the page then tells what it knows.
func (p *Page) looks(ctx context.Context, v wire.Viewer, sessions []session) []*wire.DatabaseView {
	if last := p.Reach(); last.Err != nil {
		return nil
	}
	var names []string
	for _, s := range sessions {
		if s.State != "idle" && !slices.Contains(names, s.Database) && len(names) < maxLooks {
			names = append(names, s.Database)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	var list []*wire.DatabaseView
	for _, name := range names {
		look, err := p.Server.LookAt(ctx, v, name)
		if err != nil {
			p.Logger.Debug("status page: who waits for whom is not known", "database", name, "err", err)
			continue
		}
		list = append(list, look)
	}
	return list
}

// sort puts each session into its list: those who wait and those they wait for
// as a tree, then old transactions, what runs, and the idle.
func (vw *view) sort(sessions []session, looks []*wire.DatabaseView) {
	byID := make(map[string]*session, len(sessions))
	for i := range sessions {
		byID[sessions[i].ID] = &sessions[i]
	}
	told := make(map[string]bool)
	for _, look := range looks {
		for _, l := range locks(look) {
			if l.holder != "" {
				vw.Counts.Waiting++
			}
			s := byID[l.Session]
			switch {
			case s == nil:
				row := databaseView{View: look}.Row("trouble", l.Backend)
				row.Holder, row.Blocks = l.holder, l.Blocks
				vw.Trouble = append(vw.Trouble, trouble{Backend: &row, Depth: l.Depth})
			case !told[s.ID]:
				told[s.ID] = true
				s.lock = &l
				vw.Trouble = append(vw.Trouble, trouble{Session: s, Depth: l.Depth})
			}
		}
	}
	var old []*session
	for i := range sessions {
		s := &sessions[i]
		vw.Counts.add(s)
		switch shown := vw.Filter.shows(s); {
		case told[s.ID]:
		case s.troubled():
			old = append(old, s)
		case !shown:
		case s.State == "idle":
			vw.Idle = append(vw.Idle, *s)
		default:
			vw.Running = append(vw.Running, *s)
		}
	}
	slices.SortStableFunc(old, func(a, b *session) int { return a.TxSince.Compare(b.TxSince) })
	for _, s := range old {
		vw.Trouble = append(vw.Trouble, trouble{Session: s})
	}
	slices.SortStableFunc(vw.Running, func(a, b session) int { return a.AgeSince().Compare(b.AgeSince()) })
	// The last ones to have done something are the likeliest to be looked for.
	slices.SortStableFunc(vw.Idle, func(a, b session) int { return b.StateSince.Compare(a.StateSince) })
}

func (c *counts) add(s *session) {
	c.All++
	switch {
	case s.Waits(): // counted already
	case s.State == "active":
		c.Running++
	case s.State == "idle":
		c.Idle++
	default:
		c.Open++
	}
}

// locks are a view's backends that wait, or that others wait for, with whom they
// wait for.
func locks(look *wire.DatabaseView) []lock {
	list := make([]lock, len(look.Waiting))
	var path []int // the place of the last row at each depth
	for i, b := range look.Waiting {
		list[i] = lock{Backend: b, now: look.At}
		path = append(path[:min(b.Depth, len(path))], i)
		if n := len(path); n > 1 {
			holder := &list[path[n-2]]
			list[i].holder = holder.Who()
			holder.Blocks++
		}
	}
	return list
}

const (
	// refusedLately is how long a refusal is told among the trouble.
	refusedLately = 10 * time.Minute
	shownRefusals = 5
)

// refusals takes the last refusals of all that the viewer may see.
func (vw *view) refusals(denied []pastStatement) {
	for _, s := range denied {
		switch {
		case vw.Now.Sub(s.Time) > refusedLately:
		case len(vw.Refusals) == shownRefusals:
			vw.RefusedMore++
		default:
			vw.Refusals = append(vw.Refusals, s)
		}
	}
}

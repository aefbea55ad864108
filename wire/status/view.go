package status

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"pgproxy/policy"
	"pgproxy/wire"
)

//go:embed page.html
var source string

var pages = template.Must(template.New("").Funcs(template.FuncMap{
	"age": age, "took": took, "size": size, "plural": policy.Count, "utc": utc, "clock": clock, "preview": preview,
	"count": func(list []pastStatement) int64 { return int64(len(list)) },
}).Parse(source))

// shownStatements is how many statements the page lists; the JSON has all.
const shownStatements = 100

// view is what the page shows to one person at one moment.
type view struct {
	Page       *Page
	Viewer     wire.Viewer
	Now        time.Time
	Said       string // what came of an act
	Sessions   []session
	Summary    string
	Filter     filter
	Statements []statement
	More       int64 // statements that match and are not listed
	Limits     []policy.Setting
	Access     []string
	Upstream   reach
	Notes      []string
}

// session is a live session as a viewer sees it.
type session struct {
	wire.Info
	Own, Ends bool
	Tone      string // how the state is coloured
	Whole     bool   // the statement is not folded
	Now       time.Time
}

func (s session) Folded() bool { return !s.Whole && long(s.SQL) }

// Active reports whether there is a statement to cancel.
func (s session) Active() bool { return s.State == "active" }

func (s session) StateAge() time.Duration { return s.Now.Sub(s.StateSince) }

// TxAge is how old the open transaction is, 0 for none.
func (s session) TxAge() time.Duration {
	if s.TxSince.IsZero() {
		return 0
	}
	return s.Now.Sub(s.TxSince)
}

// statement is a statement of the past as a viewer sees it.
type statement struct {
	wire.Past
	Own     bool
	Outcome string
	Now     time.Time
}

// ID tells the statement from all others on the page.
func (s statement) ID() string { return s.Session + "-" + strconv.FormatInt(s.Seq, 10) }

func (s statement) Folded() bool { return long(s.SQL) }

func (s statement) Age() time.Duration { return s.Now.Sub(s.Time) }

// reach is the upstream's health in words.
type reach struct {
	Tone, Words string
	At          time.Time
}

func (p *Page) showPage(w http.ResponseWriter, r *http.Request, v wire.Viewer) {
	f := filterOf(r.URL.Query())
	vw := view{
		Page: p, Viewer: v, Now: time.Now(), Said: outcomes[r.URL.Query().Get("done")],
		Filter: f, Limits: v.Rule.Limits(), Access: v.Rule.Describe(), Upstream: p.reach(),
	}
	if p.Notes != nil {
		vw.Notes = p.Notes()
	}
	vw.Sessions = p.sessions(v, vw.Now)
	vw.Summary = summary(vw.Sessions)
	vw.Statements = p.statements(v, f, vw.Now)
	if n := len(vw.Statements); n > shownStatements {
		vw.Statements, vw.More = vw.Statements[:shownStatements], int64(n-shownStatements)
	}
	p.render(w, http.StatusOK, "page", vw)
}

func (p *Page) render(w http.ResponseWriter, status int, name string, data any) {
	var b bytes.Buffer
	if err := pages.ExecuteTemplate(&b, name, data); err != nil {
		p.Logger.Error("status page", "template", name, "err", err)
		http.Error(w, "pgproxy: the page cannot be made", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	w.Write(b.Bytes())
}

func (p *Page) reach() reach {
	switch last := p.Reach(); {
	case last.At.IsZero():
		return reach{Tone: "quiet", Words: "not checked yet"}
	case last.Err != nil:
		return reach{Tone: "bad", Words: "out of reach", At: last.At}
	default:
		return reach{Tone: "good", Words: "reachable", At: last.At}
	}
}

// sessions are the live sessions that the viewer may see, the oldest first, so
// that they keep their places.
func (p *Page) sessions(v wire.Viewer, now time.Time) []session {
	list := []session{}
	for _, i := range p.Server.Sessions() {
		if v.Sees(i.User) {
			list = append(list, session{Info: i, Own: i.User == v.Who(), Ends: v.Ends(i.User), Tone: tone(i.State), Now: now})
		}
	}
	return list
}

func tone(state string) string {
	switch state {
	case "active":
		return "good"
	case "idle":
		return "quiet"
	case "idle in transaction", "waiting for approval":
		return "warn"
	}
	return "bad"
}

// summary counts the sessions by state: "5 sessions: 2 active, 3 idle".
func summary(list []session) string {
	if len(list) == 0 {
		return "none"
	}
	var states []string
	counts := make(map[string]int)
	for _, s := range list {
		if counts[s.State]++; counts[s.State] == 1 {
			states = append(states, s.State)
		}
	}
	for i, state := range states {
		states[i] = fmt.Sprintf("%d %s", counts[state], state)
	}
	return strings.Join(states, ", ")
}

// filter chooses among the statements. An empty field chooses all.
type filter struct {
	Person  string // part of the user's name
	Text    string // part of the statement, or of its error
	Outcome string
}

// Outcomes are those that can be chosen.
func (filter) Outcomes() []string { return []string{"ok", "error", "denied", "truncated"} }

func filterOf(q url.Values) filter {
	return filter{Person: q.Get("person"), Text: q.Get("text"), Outcome: q.Get("outcome")}
}

// Any reports whether the filter leaves anything out.
func (f filter) Any() bool { return f != filter{} }

func (f filter) matches(s statement) bool {
	return contains(s.User, f.Person) &&
		(contains(s.SQL, f.Text) || contains(s.Error, f.Text)) &&
		(f.Outcome == "" || f.Outcome == s.Outcome)
}

func contains(text, part string) bool {
	return part == "" || strings.Contains(strings.ToLower(text), strings.ToLower(part))
}

// statements are the last statements that the viewer may see and the filter
// lets through, the newest first.
func (p *Page) statements(v wire.Viewer, f filter, now time.Time) []statement {
	list := []statement{}
	for _, past := range p.Server.History() {
		s := statement{Past: past, Own: past.User == v.Who(), Outcome: outcome(past), Now: now}
		if v.Sees(past.User) && f.matches(s) {
			list = append(list, s)
		}
	}
	return list
}

func outcome(p wire.Past) string {
	switch {
	case p.Denied:
		return "denied"
	case p.Truncated:
		return "truncated"
	case p.SQLState != "":
		return "error"
	}
	return "ok"
}

// Names in JSON are those of the audit records, where there is the same thing.

type sessionJSON struct {
	Session     string     `json:"session"`
	User        string     `json:"user"`
	Node        string     `json:"node"`
	NodeID      string     `json:"node_id"`
	Addr        string     `json:"addr"`
	Database    string     `json:"database"`
	Upstream    string     `json:"upstream"`
	UpstreamPID uint32     `json:"upstream_pid"`
	Client      string     `json:"client"`
	Access      string     `json:"access"`
	AccessUntil *time.Time `json:"access_until"`
	Reason      string     `json:"reason"`
	Since       time.Time  `json:"since"`
	State       string     `json:"state"`
	StateSince  time.Time  `json:"state_since"`
	TxSince     *time.Time `json:"tx_since"`
	Seq         int64      `json:"seq"`
	SQL         string     `json:"sql"`
	Statements  int64      `json:"statements"`
	Rows        int64      `json:"rows"`
	Bytes       int64      `json:"bytes"`
	Own         bool       `json:"own"`
}

func (p *Page) sessionsJSON(w http.ResponseWriter, _ *http.Request, v wire.Viewer) {
	list := []sessionJSON{}
	for _, s := range p.sessions(v, time.Now()) {
		j := sessionJSON{
			Session: s.ID, User: s.User, Node: s.Node, NodeID: s.NodeID, Addr: s.Addr,
			Database: s.Database, Upstream: s.Upstream, UpstreamPID: s.UpstreamPID, Client: s.Client,
			Access: s.Access, Reason: s.Reason, Since: s.Since.UTC(), State: s.State, StateSince: s.StateSince.UTC(),
			Seq: s.Seq, SQL: s.SQL, Statements: s.Statements, Rows: s.Rows, Bytes: s.Bytes, Own: s.Own,
		}
		if !s.TxSince.IsZero() {
			since := s.TxSince.UTC()
			j.TxSince = &since
		}
		if !s.AccessUntil.IsZero() {
			until := s.AccessUntil.UTC()
			j.AccessUntil = &until
		}
		list = append(list, j)
	}
	writeJSON(w, list)
}

type statementJSON struct {
	Time       time.Time `json:"time"`
	Session    string    `json:"session"`
	Seq        int64     `json:"seq"`
	User       string    `json:"user"`
	Node       string    `json:"node"`
	Database   string    `json:"database"`
	SQL        string    `json:"sql"`
	Outcome    string    `json:"outcome"`
	Tag        string    `json:"tag"`
	Rows       int64     `json:"rows"`
	Bytes      int64     `json:"bytes"`
	Truncated  bool      `json:"truncated"`
	DurationMS float64   `json:"duration_ms"`
	SQLState   string    `json:"sqlstate"`
	Error      string    `json:"error"`
	Own        bool      `json:"own"`
}

func (p *Page) statementsJSON(w http.ResponseWriter, r *http.Request, v wire.Viewer) {
	list := []statementJSON{}
	for _, s := range p.statements(v, filterOf(r.URL.Query()), time.Now()) {
		list = append(list, statementJSON{
			Time: s.Time.UTC(), Session: s.Session, Seq: s.Seq, User: s.User, Node: s.Node, Database: s.Database,
			SQL: s.SQL, Outcome: s.Outcome, Tag: s.Tag, Rows: s.Rows, Bytes: s.Bytes, Truncated: s.Truncated,
			DurationMS: float64(s.Took.Microseconds()) / 1000, SQLState: s.SQLState, Error: s.Error, Own: s.Own,
		})
	}
	writeJSON(w, list)
}

func writeJSON(w http.ResponseWriter, list any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(list) // who reads has gone, if it fails
}

// age says how long something has been so, in its two largest units.
func age(d time.Duration) string {
	const day = 24 * time.Hour
	two := func(big, small time.Duration, bigName, smallName string) string {
		words := fmt.Sprintf("%d %s", d/big, bigName)
		if rest := d % big / small; rest > 0 {
			words += fmt.Sprintf(" %d %s", rest, smallName)
		}
		return words
	}
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", max(d, 0)/time.Second)
	case d < time.Hour:
		return two(time.Minute, time.Second, "min", "s")
	case d < day:
		return two(time.Hour, time.Minute, "h", "min")
	}
	return two(day, time.Hour, "d", "h")
}

// took says how long something took, to two digits at least.
func took(d time.Duration) string {
	switch {
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < 10*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return age(d)
}

// size says a number of bytes in the largest unit that fits.
func size(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/1024, 0
	for v >= 1024 && i < len(units)-1 {
		v, i = v/1024, i+1
	}
	return fmt.Sprintf("%.1f %ciB", v, units[i])
}

// utc is the absolute form of a time.
func utc(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// A statement longer than this, in bytes or lines, is shown folded.
const (
	previewBytes = 240
	previewLines = 4
)

func long(sql string) bool {
	return len(sql) > previewBytes || strings.Count(sql, "\n") >= previewLines
}

// preview is the beginning of a statement on one line.
func preview(sql string) string {
	sql = strings.Join(strings.Fields(sql[:min(len(sql), 2*previewBytes)]), " ")
	if len(sql) > previewBytes {
		sql = sql[:previewBytes]
	}
	return strings.ToValidUTF8(sql, "") + " …"
}

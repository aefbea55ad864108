package status

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"

	"pgproxy/wire"
	"pgproxy/wire/audit"
	"pgproxy/wire/audit/trail"
)

const (
	// historyRows is how many statements a page has.
	historyRows = 50
	// trailLength is how many newer pages the address remembers.
	trailLength = 16
)

// historyView is a page of statements of the past.
type historyView struct {
	frame
	Filter historyFilter
	Rows   []pastStatement
	// Note says why there is less than people expect; Wrong what they have
	// mistyped.
	Note, Wrong string
	// Progress tells how far a search has come that has not ended.
	Progress string
	// Addresses of other pages; empty = there are none.
	Newest, Newer, Older, SearchOn string
}

// historyFilter is a filter with times, as they were typed.
type historyFilter struct {
	filter
	Since, Until string
}

// Outcomes are those that can be chosen.
func (historyFilter) Outcomes() []string {
	return []string{audit.OutcomeOK, audit.OutcomeError, audit.OutcomeDenied, audit.OutcomeTruncated, audit.OutcomeUnknown}
}

// values is the filter as it stands in an address.
func (f historyFilter) values() url.Values {
	q := url.Values{}
	for name, value := range map[string]string{"person": f.Person, "text": f.Text, "outcome": f.Outcome, "since": f.Since, "until": f.Until} {
		if value != "" {
			q.Set(name, value)
		}
	}
	return q
}

func transcriptURL(session string, at time.Time) string {
	return "/sessions/" + url.PathEscape(session) + "?" + url.Values{"at": {at.UTC().Format(time.RFC3339)}}.Encode()
}

// showHistory serves /history.
func (p *Page) showHistory(w http.ResponseWriter, r *http.Request, v wire.Viewer) {
	q := r.URL.Query()
	vw := historyView{frame: p.frame(v, "History"), Filter: historyFilter{filterOf(q), q.Get("since"), q.Get("until")}}
	search := trail.Search{Sees: v.Sees, Person: vw.Filter.Person, Text: vw.Filter.Text, Outcome: vw.Filter.Outcome, Max: historyRows}
	now := time.Now()
	for _, limit := range []struct {
		typed string
		into  *time.Time
	}{{vw.Filter.Since, &search.Since}, {vw.Filter.Until, &search.Until}} {
		if limit.typed == "" {
			continue
		}
		var err error
		if *limit.into, err = audit.ParseTime(limit.typed, now); err != nil {
			vw.Wrong = fmt.Sprintf("%q is %v.", limit.typed, err)
		}
	}
	var err error
	if search.From, err = trail.ParsePosition(q.Get("at")); err != nil {
		vw.Wrong = "This address is not complete."
	}
	if vw.Wrong != "" {
		p.render(w, r, http.StatusBadRequest, "history", vw)
		return
	}
	if p.Log == nil {
		p.fillRemembered(&vw, search, now)
		p.render(w, r, http.StatusOK, "history", vw)
		return
	}
	page, err := p.Log.History(r.Context(), search)
	if err != nil {
		p.failReading(w, r, err)
		return
	}
	running := p.running()
	for _, st := range page.Steps {
		vw.Rows = append(vw.Rows, rowOf(&st, v, running))
	}
	vw.link(page.Progress, q)
	p.render(w, r, http.StatusOK, "history", vw)
}

// fillRemembered shows what the proxy has in memory, where records cannot be
// read.
func (p *Page) fillRemembered(vw *historyView, q trail.Search, now time.Time) {
	vw.Note = "The audit log is no file that pgproxy could read (-audit-log), so this is what it has in memory: the last statements since it was started."
	for _, s := range p.statements(vw.Viewer, vw.Filter.filter, now) {
		if s.Time.Before(q.Since) || !q.Until.IsZero() && s.Time.After(q.Until) {
			continue
		}
		s.Now = time.Time{}
		vw.Rows = append(vw.Rows, s)
	}
}

// link makes the addresses of the pages around this one.
func (vw *historyView) link(p trail.Progress, q url.Values) {
	address := func(at string, newer []string) string {
		to := vw.Filter.values()
		if at != "" {
			to.Set("at", at)
		}
		to["up"] = newer
		if len(to) == 1 && len(newer) == 0 {
			return "/history"
		}
		return "/history?" + to.Encode()
	}
	newer := q["up"]
	if q.Get("at") != "" {
		vw.Newest = address("", nil)
	}
	if n := len(newer); n > 0 {
		vw.Newer = address(newer[n-1], newer[:n-1])
	}
	if p.Next.IsZero() {
		return
	}
	further := append(slices.Clone(newer), q.Get("at"))
	next := address(p.Next.String(), further[max(0, len(further)-trailLength):])
	if !p.Late {
		vw.Older = next
		return
	}
	vw.SearchOn, vw.Progress = next, progress(p)
}

// progress tells how far a request has come that ran out of time.
func progress(p trail.Progress) string {
	if p.Reached.IsZero() {
		return fmt.Sprintf("Searched %s; %s to go.", size(p.Read), size(p.Left))
	}
	return fmt.Sprintf("Searched %s, back to %s; %s to go.", size(p.Read), clock(p.Reached), size(p.Left))
}

// running are the statements that run now, as session-seq.
func (p *Page) running() map[string]bool {
	list := make(map[string]bool)
	for _, i := range p.Server.Sessions() {
		if i.State == "active" {
			list[statementID(i.ID, i.Seq)] = true
		}
	}
	return list
}

func statementID(session string, seq int64) string { return fmt.Sprintf("%s-%d", session, seq) }

// rowOf is a statement of the log as a viewer sees it.
func rowOf(st *audit.Step, v wire.Viewer, running map[string]bool) pastStatement {
	row := pastStatement{
		Time: st.Time, Session: st.Session, User: st.User, Node: st.Node, Database: st.Database, SQL: st.Statement(),
		Outcome: st.Outcome(), Words: st.OutcomeWords(), Own: st.User == v.Who(), ID: statementID(st.Session, st.Seq), Transcript: transcriptURL(st.Session, st.Time),
	}
	switch {
	case row.Outcome != audit.OutcomeUnknown:
	case running[row.ID]:
		row.Outcome, row.Words = "running", ""
	case st.Unread:
		row.Words = "its outcome stands further on in the records: see the session"
	default:
		row.Words = "its outcome is not on record: pgproxy ended first, or the record could not be written"
	}
	if row.Outcome != audit.OutcomeOK && row.Outcome != "running" {
		row.Failure, row.Words = row.Words, ""
	}
	return row
}

// failReading tells that the log could not be read. The error may name files of
// this machine.
func (p *Page) failReading(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, trail.ErrBusy) {
		p.fail(w, r, http.StatusServiceUnavailable, trail.ErrBusy)
		return
	}
	p.Logger.Error("status page: the audit log cannot be read", "err", err)
	p.fail(w, r, http.StatusInternalServerError, errors.New("the audit log cannot be read at the moment"))
}

package status

import (
	"errors"
	"net/http"
	"net/url"
	"slices"
	"time"

	"pgproxy/wire"
	"pgproxy/wire/audit"
	"pgproxy/wire/audit/trail"
)

// transcriptView is what happened in a session.
type transcriptView struct {
	frame
	ID    string
	About *audit.Record // nil while its beginning is searched for
	Live  bool
	Ended bool
	Items []transcriptItem
	// Progress tells how far a search has come that has not ended.
	Progress string
	// Addresses of what is told elsewhere; empty = nothing is.
	SearchOn, Earlier, Further string
}

// transcriptItem is a step of a session, or what psql asked by itself between two
// of them.
type transcriptItem struct {
	Time      time.Time
	Statement *pastStatement // nil = Words tell an event
	Words     string
	Own       []pastStatement
}

var errNotOnRecord = errors.New("there is no such session on record, or it is not yours to see")

// showTranscript serves /sessions/{id}. A session that is not on record and one
// that the viewer may not see get the same answer.
//
// The address may have "at", a time at which the session was there; "before", a
// position from which its beginning is searched for; and "from", the position of
// what is told.
func (p *Page) showTranscript(w http.ResponseWriter, r *http.Request, v wire.Viewer) {
	if p.Log == nil {
		p.fail(w, r, http.StatusNotFound, errors.New("there are no transcripts: the audit log is no file that pgproxy could read (-audit-log)"))
		return
	}
	vw := transcriptView{frame: p.frame(v, "History"), ID: r.PathValue("id")}
	start, err := p.findStart(r, &vw)
	if errors.Is(err, errAddress) {
		p.fail(w, r, http.StatusBadRequest, err)
		return
	}
	if err != nil {
		p.failReading(w, r, err)
		return
	}
	if !start.Found {
		if start.Next.IsZero() {
			p.fail(w, r, http.StatusNotFound, errNotOnRecord)
			return
		}
		vw.SearchOn, vw.Progress = vw.address(url.Values{"before": {start.Next.String()}}), progress(start.Progress)
		p.render(w, r, http.StatusOK, "transcript", vw)
		return
	}
	story, err := p.Log.Story(r.Context(), trail.Session{ID: vw.ID, Sees: v.Sees}, start.Position)
	switch {
	case err != nil:
		p.failReading(w, r, err)
		return
	case story.About == nil && story.Next.IsZero():
		p.fail(w, r, http.StatusNotFound, errNotOnRecord)
		return
	case story.About != nil:
		if err := p.Server.Observed(v, vw.ID, story.About.User); err != nil {
			p.failUnrecorded(w, r, err, "act", "look", "session", vw.ID, "user", v.Who())
			return
		}
	}
	vw.About, vw.Ended = story.About, story.Ended
	vw.Items = items(story.Steps, v, p.running())
	if !start.Whole && !start.Next.IsZero() {
		vw.Earlier = vw.address(url.Values{"before": {start.Next.String()}, "from": {start.Position.String()}})
	}
	if !story.Next.IsZero() {
		vw.Further = vw.address(url.Values{"from": {story.Next.String()}})
	}
	p.render(w, r, http.StatusOK, "transcript", vw)
}

func (vw *transcriptView) address(q url.Values) string {
	return "/sessions/" + url.PathEscape(vw.ID) + "?" + q.Encode()
}

var errAddress = errors.New("this address is not complete")

// findStart finds where to begin to read.
func (p *Page) findStart(r *http.Request, vw *transcriptView) (trail.Start, error) {
	q := r.URL.Query()
	from, errFrom := trail.ParsePosition(q.Get("from"))
	before, errBefore := trail.ParsePosition(q.Get("before"))
	var at time.Time
	var errAt error
	if q.Get("at") != "" {
		at, errAt = time.Parse(time.RFC3339, q.Get("at"))
	}
	if errors.Join(errFrom, errBefore, errAt) != nil {
		return trail.Start{}, errAddress
	}
	list := p.Server.Sessions()
	live := slices.IndexFunc(list, func(i wire.Info) bool { return i.ID == vw.ID && vw.Viewer.Sees(i.User) })
	vw.Live = live >= 0
	switch {
	case !from.IsZero() && before.IsZero():
		return trail.Start{Position: from, Found: true, Whole: true}, nil
	case vw.Live && before.IsZero():
		since, err := p.Log.Since(r.Context(), list[live].Since)
		return trail.Start{Position: since, Found: true, Whole: true}, err
	}
	start, err := p.Log.Find(r.Context(), trail.Session{ID: vw.ID, Sees: vw.Viewer.Sees}, before, at)
	if !start.Found && !from.IsZero() {
		start.Position, start.Found = from, true
	}
	return start, err
}

// items puts together what psql asked by itself. What was refused stands alone.
func items(steps []*audit.Step, v wire.Viewer, running map[string]bool) []transcriptItem {
	var list []transcriptItem
	folding := false
	for _, st := range steps {
		it := transcriptItem{Time: st.Time}
		switch {
		case st.Own && folding:
			last := &list[len(list)-1]
			last.Own = append(last.Own, rowOf(st, v, running))
			continue
		case st.Own:
			it.Own = []pastStatement{rowOf(st, v, running)}
		case st.Event == audit.Query:
			row := rowOf(st, v, running)
			it.Statement = &row
		default:
			it.Words = st.Words()
		}
		folding = st.Own
		list = append(list, it)
	}
	return list
}

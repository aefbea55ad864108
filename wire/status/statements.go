package status

import (
	"net/url"
	"strings"
	"time"

	"pgproxy/policy"
	"pgproxy/wire"
)

// shownStatements is how many statements the page lists; the JSON has all.
const shownStatements = 100

// filter chooses among the sessions and the statements. An empty field chooses
// all.
type filter struct {
	Person  string // part of the user's name
	Text    string // part of the statement, or of its error
	Outcome string // of statements alone
}

// Outcomes are those that can be chosen.
func (filter) Outcomes() []string { return []string{"ok", "error", "denied", "truncated"} }

func filterOf(q url.Values) filter {
	return filter{Person: q.Get("person"), Text: q.Get("text"), Outcome: q.Get("outcome")}
}

// Any reports whether the filter leaves anything out.
func (f filter) Any() bool { return f != filter{} }

func (f filter) matches(p wire.Past) bool {
	return contains(p.User, f.Person) &&
		(contains(p.SQL, f.Text) || contains(p.Error, f.Text)) &&
		(f.Outcome == "" || f.Outcome == outcome(p))
}

// shows reports whether a session is listed.
func (f filter) shows(s *session) bool { return contains(s.User, f.Person) && contains(s.SQL, f.Text) }

func contains(text, part string) bool {
	return part == "" || strings.Contains(strings.ToLower(text), strings.ToLower(part))
}

// pastStatement is a statement of the past on a page.
type pastStatement struct {
	Time                          time.Time
	Session, User, Node, Database string
	SQL, Outcome, Words           string
	Failure                       string // why not, where the outcome is not ok
	Own                           bool
	ID                            string
	// Transcript is the address of the session's transcript; empty = there is none.
	Transcript string
	Now        time.Time // zero = the time is shown, and not the age
}

// Age is how long ago it was.
func (s pastStatement) Age() time.Duration { return max(s.Now.Sub(s.Time), 0) }

// past are the last statements that the viewer may see and the filter lets
// through, the newest first.
func (p *Page) past(v wire.Viewer, f filter) []wire.Past {
	list := []wire.Past{}
	for _, past := range p.Server.History() {
		if v.Sees(past.User) && f.matches(past) {
			list = append(list, past)
		}
	}
	return list
}

// statements are those of past for the page.
func (p *Page) statements(v wire.Viewer, f filter, now time.Time) []pastStatement {
	var list []pastStatement
	for _, past := range p.past(v, f) {
		s := pastStatement{
			Time: past.Time, Session: past.Session, User: past.User, Node: past.Node, Database: past.Database,
			SQL: past.SQL, Outcome: outcome(past), Words: pastWords(past), Own: past.User == v.Who(),
			ID: statementID(past.Session, past.Seq), Now: now,
		}
		if past.SQLState != "" {
			s.Failure = past.SQLState + " " + past.Error
		}
		if p.Log != nil {
			s.Transcript = transcriptURL(past.Session, past.Time)
		}
		list = append(list, s)
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

// pastWords are what came of a statement, but for its error.
func pastWords(p wire.Past) string {
	if p.Denied {
		return "not sent"
	}
	words := policy.Count(p.Rows, "row") + ", " + size(p.Bytes) + ", " + took(p.Took)
	if p.Tag != "" {
		words = p.Tag + " · " + words
	}
	return words
}

package audit

import (
	"fmt"
	"strings"
)

// Step is one thing that happened in a session: a statement with what came of
// it, or any other event.
type Step struct {
	*Record         // the query, or the event
	Result  *Record // what came of a statement; nil = none on record
	// Unread says that the result may be on record, further on than was read.
	Unread bool
	// Own says that psql has asked it by itself, for \d or completion.
	Own bool
}

// Outcomes of a statement.
const (
	OutcomeOK        = "ok"
	OutcomeError     = "error"
	OutcomeDenied    = "denied"
	OutcomeTruncated = "truncated"
	// OutcomeUnknown is of a statement that has no result on record: it runs, or
	// pgproxy was killed while it ran.
	OutcomeUnknown = "unknown"
)

// Outcome is one of the outcomes; empty for what is no statement.
func (s Step) Outcome() string {
	switch r := s.Result; {
	case s.Event != Query:
		return ""
	case s.Verdict == "deny":
		return OutcomeDenied
	case r == nil:
		return OutcomeUnknown
	case r.Truncated:
		return OutcomeTruncated
	case r.SQLState != "" || r.Error != "":
		return OutcomeError
	}
	return OutcomeOK
}

// OutcomeWords tells what came of a statement.
func (s Step) OutcomeWords() string {
	var b strings.Builder
	switch s.Outcome() {
	case OutcomeDenied:
		b.WriteString("REFUSED")
		tellIf(&b, " by rule %s", s.Rule)
		tellError(&b, s.Record)
	case OutcomeUnknown:
		b.WriteString("not on record")
	default:
		tellOutcome(&b, s.Result)
	}
	return strings.TrimPrefix(safe(b.String()), "→ ")
}

// Words tells an event that is no statement.
func (s Step) Words() string { return tell(s.Record) }

// Statement is the text of a statement, and how much of it is missing.
func (r *Record) Statement() string {
	switch {
	case !r.SQLCut:
		return r.SQL
	case r.SQLLength == 0:
		return r.SQL + "… (cut)"
	}
	return r.SQL + fmt.Sprintf("… (cut: %d bytes in all)", r.SQLLength)
}

// Timeline puts the records of sessions together as steps, in their order. The
// zero value is ready to use.
type Timeline struct {
	Steps []*Step

	waiting map[string]*Step  // by session: the statement without a result yet
	client  map[string]string // by session
}

// Add takes the next record. The record of a result goes to its statement; one
// whose statement is not in the timeline is left out.
func (t *Timeline) Add(r *Record) {
	if t.waiting == nil {
		t.waiting, t.client = map[string]*Step{}, map[string]string{}
	}
	if r.Client != "" {
		t.client[r.Session] = r.Client
	}
	st := &Step{Record: r}
	switch r.Event {
	case Result:
		if st := t.waiting[r.Session]; st != nil && st.Seq == r.Seq {
			st.Result = r
			delete(t.waiting, r.Session)
		}
		return
	case Query:
		delete(t.waiting, r.Session)
		if r.Verdict != "deny" {
			st.Own = t.client[r.Session] == "psql" && psqlsOwn(r.SQL)
			t.waiting[r.Session] = st
		}
	case Disconnect:
		delete(t.waiting, r.Session)
		delete(t.client, r.Session)
	}
	t.Steps = append(t.Steps, st)
}

// Waiting reports whether a statement has no result yet, and nothing says that
// it will have none.
func (t *Timeline) Waiting() bool { return len(t.waiting) > 0 }

// StillUnread marks the statements without a result as those whose result may
// stand further on.
func (t *Timeline) StillUnread() {
	for _, st := range t.waiting {
		st.Unread = true
	}
}

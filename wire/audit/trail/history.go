package trail

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"pgproxy/wire/audit"
)

// Search says which statements are wanted. Empty fields want all.
type Search struct {
	Sees    func(user string) bool // whose statements may be seen; nil = nobody's
	Person  string                 // part of the user's name
	Text    string                 // part of the statement, or of its error
	Outcome string                 // as audit.Step.Outcome
	// Since and Until limit the time, both inclusive; zero = no limit.
	Since, Until time.Time
	// From is where an earlier page ended; zero = the newest.
	From Position
	// Max is how many statements are returned at most.
	Max int
}

// Page is a part of what was searched for.
type Page struct {
	Steps []audit.Step // statements, the newest first
	Progress
}

// Progress tells how far a request has come.
type Progress struct {
	// Next is where to go on; zero = there is nothing more.
	Next Position
	// Reached is the time of the last record that was looked at; zero = none was.
	Reached time.Time
	// Read is how much this request has gone over, Left how much of the log is
	// still older, in bytes.
	Read, Left int64
	// Late says that the time was up before the request was done.
	Late bool
}

// ahead is how far behind a page's beginning the results of its statements are
// looked for, in bytes.
const ahead = 8 << 20

// History returns the statements that are wanted, as far as time allows.
func (l *Log) History(ctx context.Context, q Search) (Page, error) {
	release, err := l.acquire(ctx)
	if err != nil {
		return Page{}, err
	}
	defer release()
	w, err := l.walk(ctx)
	if err != nil {
		return Page{}, err
	}
	defer w.Close()
	h := search{Search: q, walker: w, results: map[string]result{}, seen: map[string]bool{}, text: needle(q.Text)}
	var page Page
	err = h.run(&page)
	page.Late, page.Reached = errors.Is(err, errBudget), h.reached()
	if page.Read, page.Left = w.moved, w.left(); page.Left > 0 && !errors.Is(err, io.EOF) {
		page.Next = w.position()
	}
	if page.Late || errors.Is(err, io.EOF) {
		err = nil
	}
	return page, err
}

// search is a search that goes on.
type search struct {
	Search
	*walker
	// results are those whose statement has not been met yet, by session.
	results map[string]result
	// seen are the sessions of which a later record was met; cut says that more of
	// them may stand further on than was looked.
	seen map[string]bool
	cut  bool
	text []byte // in lower case, for lines; nil = lines do not tell

	lower []byte // a line in lower case
}

// result is where a result stands.
type result struct {
	seq  int64
	file int
	line // without its text
	may  bool
}

// run fills the page. io.EOF says that there is nothing more.
func (h *search) run(page *Page) error {
	if err := h.begin(); err != nil {
		return err
	}
	for len(page.Steps) < h.Max {
		r, err := h.prev()
		if err != nil {
			return err
		}
		if !h.Since.IsZero() && r.when().Before(h.Since.Add(-disorder)) {
			return io.EOF
		}
		st, err := h.take(r)
		if err != nil {
			return err
		}
		if st != nil {
			page.Steps = append(page.Steps, *st)
		}
	}
	return nil
}

// begin goes to where the page begins, having looked a bit further on for the
// results of its statements.
func (h *search) begin() error {
	h.to(h.From)
	if !h.Until.IsZero() && h.From.IsZero() {
		if err := h.seek(h.Until.Add(disorder)); err != nil {
			return err
		}
	}
	start, deadline := h.position(), h.deadline
	h.deadline = deadline.Add(-h.log.Budget / 2) // the other half is for the page
	defer func() {
		h.to(start)
		h.deadline, h.moved, h.looked = deadline, 0, 0
	}()
	for h.moved < ahead {
		r, err := h.next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, errBudget):
			h.cut = true
			return nil
		case err != nil:
			return err
		}
		if !h.seen[string(r.session)] {
			h.keep(r)
		}
	}
	h.cut = true
	return nil
}

// keep notes a record that stands behind the statements to come: it may be the
// result of one.
func (h *search) keep(r record) {
	if len(r.session) == 0 || !h.Sees(string(r.user)) && len(r.user) > 0 {
		return
	}
	h.seen[string(r.session)] = true
	if string(r.event) != string(audit.Result) {
		return
	}
	h.results[string(r.session)] = result{r.seq, h.i, line{from: r.from, to: r.to}, h.mayHold(r)}
}

// take looks at a record. It returns a statement if it is one that is wanted.
func (h *search) take(r record) (*audit.Step, error) {
	if string(r.event) != string(audit.Query) {
		h.keep(r)
		return nil, nil
	}
	user := string(r.user)
	if !h.Sees(user) {
		return nil, nil
	}
	res, answered := h.results[string(r.session)]
	answered = answered && res.seq == r.seq
	later := h.seen[string(r.session)]
	h.keep(r)
	delete(h.results, string(r.session))
	if !contains(user, h.Person) || !h.mayHold(r) && !(answered && res.may) || !h.within(r) {
		return nil, nil
	}
	query, ok := decode(r.line)
	if !ok {
		return nil, nil
	}
	st := &audit.Step{Record: query, Unread: h.cut && !later}
	if answered {
		var err error
		if st.Result, err = h.fetch(res); err != nil {
			return nil, err
		}
	}
	if !h.wants(st) {
		return nil, nil
	}
	shorten(query)
	return st, nil
}

// within reports whether a record is of the time that is wanted.
func (h *search) within(r record) bool {
	when := r.when()
	return !when.Before(h.Since) && (h.Until.IsZero() || !when.After(h.Until))
}

// wants looks at what only a whole record tells.
func (h *search) wants(st *audit.Step) bool {
	failure := st.Error
	if st.Result != nil {
		failure = st.Result.Error
	}
	return (contains(st.SQL, h.Text) || contains(failure, h.Text)) && (h.Outcome == "" || h.Outcome == st.Outcome())
}

// fetch reads a result that was passed.
func (h *search) fetch(res result) (*audit.Record, error) {
	i, at := h.i, h.at
	defer func() { h.i, h.at = i, at }()
	h.i = res.file
	ok, err := h.useFile()
	if err != nil || !ok {
		return nil, err
	}
	l, err := h.lines.after(res.from)
	if err != nil {
		return nil, err
	}
	r, _ := decode(l)
	return r, nil
}

// mayHold reports whether the text that is wanted can be in a line. It is never
// wrong when it says no.
func (h *search) mayHold(r record) bool {
	if h.Text == "" || h.text == nil || r.clipped {
		return true
	}
	h.lower = append(h.lower[:0], r.line.text...)
	for i, c := range h.lower {
		switch {
		case c >= utf8.RuneSelf:
			return true // some letters beyond ASCII have one of it in lower case
		case c >= 'A' && c <= 'Z':
			h.lower[i] = c + 'a' - 'A'
		}
	}
	return bytes.Contains(h.lower, h.text)
}

// needle is a text as it stands in a line of JSON, in lower case; nil where that
// may differ from the text.
func needle(text string) []byte {
	for _, c := range text {
		if c < ' ' || c > '~' || c == '"' || c == '\\' {
			return nil
		}
	}
	return []byte(strings.ToLower(text))
}

func contains(text, part string) bool {
	return part == "" || strings.Contains(strings.ToLower(text), strings.ToLower(part))
}

// shorten cuts a statement to what is shown of it.
func shorten(r *audit.Record) {
	if len(r.SQL) > shownText {
		if r.SQLLength == 0 && !r.SQLCut {
			r.SQLLength = int64(len(r.SQL))
		}
		r.SQL, r.SQLCut = strings.Clone(strings.ToValidUTF8(r.SQL[:shownText], "")), true
	}
}

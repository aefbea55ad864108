package audit

import (
	"fmt"
	"io"
	"pgproxy/policy"
	"slices"
	"strings"
	"time"
)

// report is a table of statements in Markdown. It is kept in memory, since a
// statement's outcome is a later record than its text.
type report struct {
	rows    []*row
	waiting map[string]*row // by session: the statement without an outcome yet
	others  map[Event]int   // records of other events
	reasons []string        // that were given
	persons []string
}

// row is one statement.
type row struct {
	query  *Record
	result *Record // nil = none on record
}

func (p *report) add(r *Record) {
	if p.others == nil {
		p.others, p.waiting = map[Event]int{}, map[string]*row{}
	}
	switch r.Event {
	case Query:
		st := &row{query: r}
		p.rows = append(p.rows, st)
		p.waiting[r.Session] = st
		p.persons = addOnce(p.persons, r.User)
		p.reasons = addOnce(p.reasons, r.Reason)
	case Result:
		if st := p.waiting[r.Session]; st != nil && st.query.Seq == r.Seq {
			st.result = r
			delete(p.waiting, r.Session)
		}
	default:
		p.others[r.Event]++
	}
}

func addOnce(list []string, s string) []string {
	if s == "" || slices.Contains(list, s) {
		return list
	}
	return append(list, s)
}

// write prints a heading and the table.
func (p *report) write(w io.Writer) {
	if len(p.rows) == 0 {
		fmt.Fprint(w, "# Statements\n\nNone on record.\n")
		return
	}
	first, last := p.rows[0].query.Time.UTC(), p.rows[len(p.rows)-1].query.Time.UTC()
	clock := "15:04:05"
	until := last.Format("15:04 UTC")
	if first.Format(time.DateOnly) != last.Format(time.DateOnly) {
		clock = time.DateTime
		until = last.Format("2006-01-02 15:04 UTC")
	}
	fmt.Fprintf(w, "# Statements, %s to %s\n\n", first.Format("2006-01-02 15:04"), until)
	fmt.Fprintf(w, "%s by %s.", policy.Count(int64(len(p.rows)), "statement"), cell(strings.Join(p.persons, ", ")))
	if len(p.reasons) > 0 {
		fmt.Fprintf(w, " Reasons given: %s.", cell(strings.Join(p.reasons, ", ")))
	}
	fmt.Fprint(w, "\n\n| time (UTC) | person | statement | outcome |\n|---|---|---|---|\n")
	for _, st := range p.rows {
		q := st.query
		fmt.Fprintf(w, "| %s | %s | %s | %s |\n", q.Time.UTC().Format(clock), cell(who(q)), code(q.SQL), cell(st.outcome()))
	}
	if len(p.others) > 0 {
		var also []string
		for event, n := range p.others {
			also = append(also, fmt.Sprintf("%d %s", n, event))
		}
		slices.Sort(also)
		fmt.Fprintf(w, "\nAlso on record: %s.\n", strings.Join(also, ", "))
	}
}

func (st *row) outcome() string {
	var b strings.Builder
	switch {
	case st.query.Verdict == "deny":
		b.WriteString("REFUSED")
		tellIf(&b, " by rule %s", st.query.Rule)
		tellError(&b, st.query)
	case st.result == nil:
		return "not on record"
	default:
		tellOutcome(&b, st.result)
	}
	return strings.TrimPrefix(b.String(), "→ ")
}

// cell is text in a cell of a table: one line, and nothing that Markdown or
// HTML would read.
func cell(s string) string {
	var b strings.Builder
	for _, c := range safe(strings.Join(strings.Fields(s), " ")) {
		if strings.ContainsRune("\\`*_[]<>|~&", c) {
			b.WriteByte('\\')
		}
		b.WriteRune(c)
	}
	return b.String()
}

// code is a statement in a cell of a table, on one line, in backquotes of which
// it has fewer in a row.
func code(sql string) string {
	text := strings.ReplaceAll(safe(strings.Join(strings.Fields(sql), " ")), "|", `\|`)
	fence := "`"
	for strings.Contains(text, fence) {
		fence += "`"
	}
	if len(fence) > 1 {
		text = " " + text + " "
	}
	return fence + text + fence
}

package audit

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"pgproxy/policy"
)

// report is a timeline in Markdown, for the story of an incident. It is kept in
// memory, since a statement's outcome is a later record than its text.
type report struct {
	Timeline
	all bool // also what psql asks by itself
}

// maxSessions is how many sessions a report introduces.
const maxSessions = 20

// write prints a heading, who was there, and the table.
func (p *report) write(w io.Writer) {
	if len(p.Steps) == 0 {
		fmt.Fprint(w, "# Timeline\n\nNothing on record.\n")
		return
	}
	subject := "Timeline"
	sessions := p.sessions()
	if len(sessions) == 1 {
		subject = "Session " + cell(sessions[0][0].Session)
	}
	first, last := p.Steps[0].Time.UTC(), p.Steps[len(p.Steps)-1].Time.UTC()
	clock, until := "15:04:05", last.Format("15:04 UTC")
	if first.Format(time.DateOnly) != last.Format(time.DateOnly) {
		clock, until = time.DateTime, last.Format("2006-01-02 15:04 UTC")
	}
	fmt.Fprintf(w, "# %s, %s to %s\n\n", subject, first.Format("2006-01-02 15:04"), until)
	for i, steps := range sessions {
		if i == maxSessions {
			fmt.Fprintf(w, "- and %s more\n", policy.Count(int64(len(sessions)-i), "session"))
			break
		}
		fmt.Fprintln(w, "- "+introduce(steps))
	}
	fmt.Fprintf(w, "\n%s\n\n| time (UTC) | person | what | outcome |\n|---|---|---|---|\n", p.summary())
	for i := 0; i < len(p.Steps); i++ {
		st := p.Steps[i]
		when, person := st.Time.UTC().Format(clock), cell(who(st.Record))
		switch n := p.ownFrom(i); {
		case n > 0:
			fmt.Fprintf(w, "| %s | %s | *psql asked the catalogue by itself: %s* | |\n", when, person, policy.Count(int64(n), "statement"))
			i += n - 1
		case st.Event == Query:
			fmt.Fprintf(w, "| %s | %s | %s | %s |\n", when, person, code(st.Statement()), cell(st.OutcomeWords()))
		default:
			fmt.Fprintf(w, "| %s | %s | %s | |\n", when, person, cell(st.Words()))
		}
	}
}

// sessions are the steps of each session, in the order of their beginnings.
// What belongs to none is left out.
func (p *report) sessions() [][]*Step {
	var list [][]*Step
	place := make(map[string]int)
	for _, st := range p.Steps {
		if st.Session == "" {
			continue
		}
		i, ok := place[st.Session]
		if !ok {
			i = len(list)
			place[st.Session] = i
			list = append(list, nil)
		}
		list[i] = append(list[i], st)
	}
	return list
}

// introduce says in a line whose session it is, where it leads, and when it was.
func introduce(steps []*Step) string {
	var device, database, upstream, client string
	for _, st := range steps {
		device, database = cmp.Or(device, who(st.Record)), cmp.Or(database, st.Database)
		upstream, client = cmp.Or(upstream, st.Upstream), cmp.Or(client, st.Client)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s", cell(steps[0].Session), cell(device))
	tellIf(&b, ", database %s", cell(database))
	tellIf(&b, " on %s", cell(upstream))
	tellIf(&b, ", with %s", cell(client))
	first, last := steps[0], steps[len(steps)-1]
	verb := map[bool]string{true: "connected", false: "on record from"}[first.Event == Connect]
	fmt.Fprintf(&b, "; %s %s", verb, first.Time.UTC().Format(time.DateTime))
	if last.Event == Disconnect {
		fmt.Fprintf(&b, ", ended %s", last.Time.UTC().Format(time.DateTime))
		tellIf(&b, " (%s)", cell(last.EndReason))
	}
	return b.String() + "."
}

// summary counts the statements and names the reasons that were given.
func (p *report) summary() string {
	statements, refused, unknown, own := int64(0), 0, 0, 0
	var reasons []string
	for _, st := range p.Steps {
		if st.Reason != "" && !slices.Contains(reasons, st.Reason) {
			reasons = append(reasons, st.Reason)
		}
		if st.Event != Query {
			continue
		}
		statements++
		switch st.Outcome() {
		case OutcomeDenied:
			refused++
		case OutcomeUnknown:
			unknown++
		}
		if st.Own {
			own++
		}
	}
	var parts []string
	for _, part := range []struct {
		n    int
		what string
	}{{refused, "refused"}, {unknown, "without an outcome on record"}, {own, "psql's own"}} {
		if part.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", part.n, part.what))
		}
	}
	text := policy.Count(statements, "statement")
	if len(parts) > 0 {
		text += ": " + strings.Join(parts, ", ")
	}
	text += "."
	if len(reasons) > 0 {
		text += " Reasons given: " + cell(strings.Join(reasons, ", ")) + "."
	}
	return text
}

// ownFrom is how many steps from i on are one session's psql's own, and to be
// told in one line.
func (p *report) ownFrom(i int) int {
	n := 0
	for !p.all && i+n < len(p.Steps) && p.Steps[i+n].Own && p.Steps[i+n].Session == p.Steps[i].Session {
		n++
	}
	return n
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

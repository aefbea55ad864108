package audit

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"pgproxy/policy"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Command is `pgproxy audit`: show and verify, by the first of args. It
// returns when it is done, or, following a file, when ctx ends.
func Command(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	name := ""
	if len(args) > 0 {
		name, args = args[0], args[1:]
	}
	var err error
	switch name {
	case "show":
		err = showCommand(ctx, args, stdout, stderr)
	case "verify":
		err = verifyCommand(args, stdout)
	default:
		return errors.New("usage: pgproxy audit show|verify [flags] FILE…")
	}
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	return err
}

// newFlags returns flags of which -h lists all. What is wrong with the others is
// an error of one line.
func newFlags(name string) *flag.FlagSet {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	return flags
}

// parseFlags parses the arguments behind the command's name.
func parseFlags(flags *flag.FlagSet, args []string, stdout io.Writer) error {
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprintf(stdout, "usage: pgproxy audit %s [flags] FILE…\n", flags.Name())
		flags.SetOutput(stdout)
		flags.PrintDefaults()
		return err
	case err != nil:
		return fmt.Errorf("audit %s: %w", flags.Name(), err)
	case flags.NArg() == 0:
		return fmt.Errorf("audit %s: no file named", flags.Name())
	}
	return nil
}

// showCommand is `pgproxy audit show`.
func showCommand(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := newFlags("show")
	v := viewer{who: map[string]string{}, client: map[string]string{}, hiding: map[string]int64{}}
	flags.StringVar(&v.session, "session", "", "only this session; the beginning of its `ID` will do")
	flags.StringVar(&v.user, "user", "", "only this person's records, by `LOGIN` or tag")
	flags.Func("since", "only records since then: `TIME` ago, such as 90m, 2h, 1d or 2w, or a time in UTC, such as 2026-11-22 or \"2026-11-22 10:41\"", func(s string) (err error) {
		v.since, err = ParseTime(s, time.Now())
		return err
	})
	flags.BoolVar(&v.all, "all", false, "also what psql asks the catalogue by itself, for \\d and completion")
	flags.BoolVar(&v.asJSON, "json", false, "print the records as they are")
	markdown := flags.Bool("markdown", false, "print what happened as a table for an incident report; with -session, that of one session")
	follow := flags.Bool("f", false, "go on with the newest file as it grows")
	if err := parseFlags(flags, args, stdout); err != nil {
		return err
	}
	if *markdown && (*follow || v.asJSON) {
		return errors.New("audit show: -markdown is neither for -f nor for -json")
	}
	if *markdown {
		v.report = &report{all: v.all}
	}
	out := bufio.NewWriter(stdout)
	v.out = out
	files, err := inOrder(flags.Args())
	if err != nil {
		return err
	}
	show := func(_ Place, line []byte) error { return v.show(line) }
	for i, name := range files {
		if *follow && i == len(files)-1 {
			return followFile(ctx, name, v.show, out.Flush)
		}
		if err := linesOf(name, show); err != nil {
			return err
		}
	}
	if v.report != nil {
		v.report.write(out)
	}
	if err := out.Flush(); err != nil {
		return err
	}
	if v.hidden > 0 {
		fmt.Fprintf(stderr, "(%s of psql's own, for \\d or completion, not shown: -all shows them)\n", policy.Count(int64(v.hidden), "statement"))
	}
	return nil
}

// followInterval is how often a followed file is looked at.
const followInterval = 200 * time.Millisecond

// followFile calls show for each whole line of a file, and goes on as the file grows,
// until ctx ends. Idle is called when all there is was shown. A file that
// took the name in the meantime, or begins anew, is read from its start.
func followFile(ctx context.Context, name string, show func([]byte) error, idle func() error) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer func() { f.Close() }()
	tick := time.NewTicker(followInterval)
	defer tick.Stop()
	lines, rest := bufio.NewReader(f), []byte(nil)
	for {
		line, err := lines.ReadBytes('\n')
		rest = append(rest, line...)
		switch {
		case err == nil:
			if err := show(rest); err != nil {
				return err
			}
			rest = rest[:0]
			continue
		case err != io.EOF:
			return err
		}
		if err := idle(); err != nil {
			return err
		}
		next, err := replaced(f, name)
		switch {
		case err != nil:
			return err
		case next != nil:
			f.Close()
			f, rest = next, nil
			lines.Reset(f)
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// replaced opens the file under the name of f if it is another one by now, or
// f was cut down to less than what was read of it. Nil means neither.
func replaced(f *os.File, name string) (*os.File, error) {
	read, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return nil, err
	}
	old, err := f.Stat()
	if err != nil {
		return nil, err
	}
	now, err := os.Stat(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // between the two steps of a rotation
	}
	if err != nil {
		return nil, err
	}
	if os.SameFile(old, now) && now.Size() >= read {
		return nil, nil
	}
	return os.Open(name)
}

// viewer prints the records that its user asked for.
type viewer struct {
	out           io.Writer
	session, user string
	since         time.Time
	all, asJSON   bool
	report        *report // nil = a line a record

	who    map[string]string // session to its user
	client map[string]string // session to its client
	hiding map[string]int64  // session to the statement that is not shown
	hidden int               // statements that were not shown
	day    string            // the date printed last
}

// show prints one line of the log, if it is asked for.
func (v *viewer) show(line []byte) error {
	r := &Record{}
	if err := json.Unmarshal(line, r); err != nil {
		if !v.asJSON && v.session == "" && v.user == "" {
			_, err := fmt.Fprintf(v.out, "(%d bytes that are no record)\n", len(line))
			return err
		}
		return nil
	}
	if r.User != "" && r.Session != "" {
		v.who[r.Session] = r.User
	} else if r.User == "" {
		r.User = v.who[r.Session]
	}
	if r.Client != "" {
		v.client[r.Session] = r.Client
	}
	own := v.clientsOwn(r)
	if r.Event == Disconnect {
		delete(v.who, r.Session)
		delete(v.client, r.Session)
		delete(v.hiding, r.Session)
	}
	if !v.wants(r) {
		return nil
	}
	if v.report != nil {
		v.report.Add(r)
		return nil
	}
	if own && !v.all {
		if r.Event == Query {
			v.hidden++
		}
		return nil
	}
	if v.asJSON {
		_, err := fmt.Fprintf(v.out, "%s\n", bytes.TrimSuffix(line, []byte("\n")))
		return err
	}
	if day := r.Time.Format(time.DateOnly); day != v.day {
		v.day = day
		fmt.Fprintf(v.out, "── %s UTC ──\n", day)
	}
	head := r.Time.Format("15:04:05.000") + "  " + safe(r.Session) + "  " + safe(who(r)) + "  "
	_, err := fmt.Fprintln(v.out, head+strings.ReplaceAll(tell(r), "\n", "\n        "))
	return err
}

// clientsOwn reports whether a record is of a statement that psql has made by
// itself. One that was refused is a person's to know.
func (v *viewer) clientsOwn(r *Record) bool {
	switch r.Event {
	case Query:
		delete(v.hiding, r.Session)
		if r.Verdict == "allow" && v.client[r.Session] == "psql" && psqlsOwn(r.SQL) {
			v.hiding[r.Session] = r.Seq
			return true
		}
	case Result:
		seq, hiding := v.hiding[r.Session]
		return hiding && seq == r.Seq
	}
	return false
}

func (v *viewer) wants(r *Record) bool {
	return strings.HasPrefix(r.Session, v.session) &&
		(v.user == "" || strings.EqualFold(r.User, v.user)) &&
		!r.Time.Before(v.since)
}

func who(r *Record) string {
	switch {
	case r.User == "":
		return "-"
	case r.Node == "":
		return r.User
	}
	return r.User + " (" + r.Node + ")"
}

// tell is the record in words.
func tell(r *Record) string {
	var b strings.Builder
	switch r.Event {
	case Connect:
		fmt.Fprintf(&b, "connected to %s", r.Database)
		tellIf(&b, " on %s", r.Upstream)
		tellIf(&b, ", asked for user %s", r.RequestedUser)
		tellIf(&b, ", with %s", r.Client)
	case Query:
		b.WriteString(r.Statement())
		if r.Verdict == "deny" {
			b.WriteString("\nREFUSED")
			tellIf(&b, " by rule %s", r.Rule)
		}
	case Result:
		tellOutcome(&b, r)
	case Observe:
		fmt.Fprintf(&b, "session seen by %s", r.Observer)
	case Signal:
		fmt.Fprintf(&b, "signal: %s(%d)", r.Function, r.PID)
		tellIf(&b, ", %s", r.VictimUser)
		tellIf(&b, ", session %s", r.VictimSession)
		tellIf(&b, ", role %s", r.VictimRole)
		tellIf(&b, ", %s", r.VictimApplicationName)
		tellIf(&b, ", from %s", r.VictimAddr)
		tellIf(&b, " REFUSED by rule %s", r.Rule)
	case Elevate:
		fmt.Fprintf(&b, "%s access %s", r.Access, r.Step)
		tellIf(&b, " by %s", r.Approver)
		tellIf(&b, " (request %s)", r.Request)
		tellIf(&b, ": %s", r.EndReason)
		if r.Step == "given" && r.Until != nil {
			fmt.Fprintf(&b, " until %s", r.Until.UTC().Format("15:04:05"))
		}
	default:
		b.WriteString(string(r.Event))
		tellIf(&b, ": %s", r.EndReason)
		tellIf(&b, " %s", r.SQL)
		tellIf(&b, " %s", r.Tampered)
		tellIf(&b, " by rule %s", r.Rule)
	}
	if r.Event != Result {
		tellError(&b, r)
		tellDuration(&b, r)
	}
	if r.Event != Connect {
		tellIf(&b, " [%s]", r.Reason)
	}
	return safe(b.String())
}

// tellOutcome is what came of a statement.
func tellOutcome(b *strings.Builder, r *Record) {
	b.WriteString("→ ")
	b.WriteString(r.Tag)
	if r.Rows != nil && *r.Rows > 0 {
		fmt.Fprintf(b, ", %s sent", policy.Count(*r.Rows, "row"))
	}
	if r.Affected != nil {
		fmt.Fprintf(b, ", %s changed", policy.Count(*r.Affected, "row"))
	}
	if r.DryRun {
		b.WriteString(", dry run")
	}
	if r.Truncated {
		b.WriteString(", cut off by a cap")
	}
	if r.Cancelled {
		b.WriteString(", cancelled")
	}
	tellError(b, r)
	tellDuration(b, r)
}

func tellError(b *strings.Builder, r *Record) {
	if r.SQLState == "" && r.Error == "" {
		return
	}
	b.WriteString(" ERROR")
	tellIf(b, " %s:", r.SQLState)
	tellIf(b, " %s", r.Error)
}

func tellDuration(b *strings.Builder, r *Record) {
	if r.DurationMS != nil {
		fmt.Fprintf(b, " (%s)", duration(*r.DurationMS))
	}
}

// duration is a time in milliseconds as people say it: 0.3 ms, 350 ms, 1.2 s,
// 2 min 5 s.
func duration(ms float64) string {
	switch seconds := ms / 1000; {
	case ms < 9.95:
		return fmt.Sprintf("%.1f ms", ms)
	case ms < 999.5:
		return fmt.Sprintf("%.0f ms", ms)
	case seconds < 9.95:
		return fmt.Sprintf("%.1f s", seconds)
	case seconds < 59.5:
		return fmt.Sprintf("%.0f s", seconds)
	}
	// The two largest units of four.
	d := time.Duration(ms * float64(time.Millisecond)).Round(time.Second)
	if d >= time.Hour {
		d = d.Round(time.Minute)
	}
	units := []struct {
		size time.Duration
		name string
	}{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "min"}, {time.Second, "s"}}
	for i, u := range units {
		if d < u.size {
			continue
		}
		text := fmt.Sprintf("%d %s", d/u.size, u.name)
		if i+1 < len(units) && d%u.size >= units[i+1].size {
			text += fmt.Sprintf(" %d %s", d%u.size/units[i+1].size, units[i+1].name)
		}
		return text
	}
	return "0 s"
}

// sinceUnits are the units of a time ago.
var sinceUnits = map[string]time.Duration{
	"s": time.Second, "m": time.Minute, "min": time.Minute, "h": time.Hour, "d": 24 * time.Hour, "w": 7 * 24 * time.Hour,
}

// sinceLayouts are the forms of a time, in UTC where it names no zone.
var sinceLayouts = []string{time.RFC3339, time.DateOnly, "2006-01-02 15:04", time.DateTime, "2006-01-02T15:04", "2006-01-02T15:04:05"}

var sincePart = regexp.MustCompile(`^(\d{1,9})(s|min|m|h|d|w)`)

// ParseTime reads a time ago, such as 90m or 1d12h, or a time, in UTC where it
// names no zone. The error says what is right, and follows the value.
func ParseTime(s string, now time.Time) (time.Time, error) {
	for _, layout := range sinceLayouts {
		if t, err := time.Parse(layout, s); err == nil {
			return t, nil
		}
	}
	ago, rest := time.Duration(0), s
	for rest != "" {
		m := sincePart.FindStringSubmatch(rest)
		if m == nil {
			return time.Time{}, errors.New("neither a time ago, such as 90m, 2h, 1d or 2w, nor a time, such as 2026-11-22 or 2026-11-22T10:41")
		}
		n, _ := strconv.ParseInt(m[1], 10, 64) // nine digits
		if n > int64(maxAgo/sinceUnits[m[2]]) {
			return time.Time{}, errors.New("too long ago")
		}
		ago += time.Duration(n) * sinceUnits[m[2]]
		rest = rest[len(m[0]):]
	}
	if s == "" || ago > maxAgo {
		return time.Time{}, errors.New("too long ago")
	}
	return now.Add(-ago), nil
}

// maxAgo keeps a time ago within what a Duration holds.
const maxAgo = 100 * 365 * 24 * time.Hour

func tellIf(b *strings.Builder, format, s string) {
	if s != "" {
		fmt.Fprintf(b, format, s)
	}
}

// safe spells out what could command a terminal or turn the reading order:
// the text came from whoever is on record.
func safe(s string) string {
	if strings.IndexFunc(s, unsafeRune) < 0 {
		return s
	}
	var b strings.Builder
	for _, c := range s {
		if unsafeRune(c) {
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(c), "'"))
		} else {
			b.WriteRune(c)
		}
	}
	return b.String()
}

func unsafeRune(c rune) bool { return c != '\n' && c != '\t' && !unicode.IsPrint(c) }

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
		err = verifyCommand(args, stdout, stderr)
	default:
		return errors.New("usage: pgproxy audit show|verify [flags] FILE…")
	}
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	return err
}

func newFlags(name string, stderr io.Writer) *flag.FlagSet {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprintf(stderr, "usage: pgproxy audit %s [flags] FILE…\n", name)
		flags.PrintDefaults()
	}
	return flags
}

// showCommand is `pgproxy audit show`.
func showCommand(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := newFlags("show", stderr)
	v := viewer{who: map[string]string{}}
	flags.StringVar(&v.session, "session", "", "only this session; the beginning of its `ID` will do")
	flags.StringVar(&v.user, "user", "", "only this person's records, by `LOGIN` or tag")
	since := flags.Duration("since", 0, "only records of the last `DURATION`, such as 2h")
	flags.BoolVar(&v.asJSON, "json", false, "print the records as they are")
	follow := flags.Bool("f", false, "go on with the newest file as it grows")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() == 0 {
		return errors.New("audit show: no file named")
	}
	if *since > 0 {
		v.since = time.Now().Add(-*since)
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
	return out.Flush()
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
	asJSON        bool

	who map[string]string // session to its user
	day string            // the date printed last
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
	if r.SQLCut {
		r.SQL += fmt.Sprintf("… (cut: %d bytes in all)", r.SQLLength)
	}
	if r.User != "" && r.Session != "" {
		v.who[r.Session] = r.User
	} else if r.User == "" {
		r.User = v.who[r.Session]
	}
	if r.Event == Disconnect {
		delete(v.who, r.Session)
	}
	if !v.wants(r) {
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
		b.WriteString(r.SQL)
		if r.Verdict == "deny" {
			b.WriteString("\nREFUSED")
			tellIf(&b, " by rule %s", r.Rule)
		}
	case Result:
		tellOutcome(&b, r)
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
		fmt.Fprintf(b, ", %d rows sent", *r.Rows)
	}
	if r.Affected != nil {
		fmt.Fprintf(b, ", %d rows changed", *r.Affected)
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
		fmt.Fprintf(b, " (%s ms)", strconv.FormatFloat(*r.DurationMS, 'f', 1, 64))
	}
}

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

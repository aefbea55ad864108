package audit

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
)

// Place is a line of a log.
type Place struct {
	File string
	Line int // from 1
}

func (p Place) String() string { return fmt.Sprintf("%s:%d", p.File, p.Line) }

// Finding is something that Verify saw, and where.
type Finding struct {
	Place
	What string
}

func (f Finding) String() string { return f.Place.String() + ": " + f.What }

// Report is what Verify found.
type Report struct {
	Records     int64
	First, Last time.Time
	// Hash is that of the last record: whoever keeps it elsewhere can tell
	// later that nothing up to here was changed or cut off.
	Hash string
	// Break is the first place where the chain is broken, nil if nowhere.
	// Nothing behind it was looked at.
	Break *Finding
	// Notes are places that are no break and yet of interest: where a chain
	// begins, lines torn by a crash.
	Notes []Finding
}

// Verify checks the chain through one or more files of a log, rotated ones
// too, in any order; names in .gz are read through gzip. The error is for files that can't
// be read: a broken chain is in the Report.
func Verify(files ...string) (Report, error) {
	var v verifier
	err := eachLine(files, v.line)
	if err == nil {
		err = v.finish()
	}
	if errors.Is(err, errBroken) {
		err = nil
	}
	return v.report, err
}

// errBroken ends the reading at the first break.
var errBroken = errors.New("chain broken")

// verifier walks along a chain.
type verifier struct {
	report Report
	prev   link
	stray  int64 // bytes since the last record that are no record
	where  Place // of the first of them
	what   string
}

// seal is what the verifier reads in a record.
type seal struct {
	Time time.Time `json:"time"`
	Torn int64     `json:"torn"`
}

// line takes the next line, with its newline if it has one.
func (v *verifier) line(at Place, line []byte) error {
	text := bytes.TrimSuffix(line, []byte("\n"))
	prev, hash, ok := links(text)
	if !ok {
		return v.noRecord(at, line)
	}
	var s seal
	if err := json.Unmarshal(text, &s); err != nil {
		return v.broken(at, "the line is not JSON")
	}
	if err := v.strays(at, s); err != nil {
		return err
	}
	switch {
	case prev == origin:
		v.note(at, "a chain begins")
	case v.report.Records == 0:
		v.note(at, "the chain goes on from a record that is not in these files")
	case prev != v.prev:
		return v.broken(at, "the record before this one is missing or altered")
	}
	v.prev = hash
	v.report.Hash = string(hash[:])
	if v.report.Records == 0 {
		v.report.First = s.Time
	}
	v.report.Last = s.Time
	v.report.Records++
	return nil
}

// noRecord takes a line that carries no good hash. It is torn if the next
// record says so, and altered if not.
func (v *verifier) noRecord(at Place, line []byte) error {
	if v.stray == 0 {
		v.where, v.what = at, "the record was altered"
		if !bytes.Contains(line, []byte(hashField)) {
			v.what = "the line is no record"
		}
	}
	v.stray += int64(len(line))
	return nil
}

// strays settles the lines that are no record, at the next that is one.
func (v *verifier) strays(at Place, s seal) error {
	switch {
	case v.stray != s.Torn && v.stray > 0:
		return v.broken(v.where, v.what)
	case v.stray != s.Torn && v.report.Records > 0:
		return v.broken(at, "the torn bytes that this record speaks of are gone")
	case v.stray > 0:
		v.note(v.where, fmt.Sprintf("%d bytes torn by a crash or a full disk", v.stray))
	}
	v.stray = 0
	return nil
}

// finish settles what stands after the last record.
func (v *verifier) finish() error {
	if v.stray == 0 {
		return nil
	}
	if v.what == "the line is no record" {
		v.note(v.where, fmt.Sprintf("%d bytes at the end are no record: torn, or being written", v.stray))
		return nil
	}
	return v.broken(v.where, v.what)
}

func (v *verifier) note(at Place, what string) {
	v.report.Notes = append(v.report.Notes, Finding{at, what})
}

func (v *verifier) broken(at Place, what string) error {
	v.report.Break = &Finding{at, what}
	return errBroken
}

// eachLine calls fn for each line of the files, in the chain's order. The
// line is fn's until it returns.
func eachLine(files []string, fn func(Place, []byte) error) error {
	ordered, err := inOrder(files)
	if err != nil {
		return err
	}
	for _, name := range ordered {
		if err := linesOf(name, fn); err != nil {
			return err
		}
	}
	return nil
}

// span is a file's part of the chain.
type span struct {
	name  string
	begun time.Time // of its first record
	prev  link      // of its first record
	last  link
}

// inOrder sorts files as the chain runs through them. Times decide which
// piece comes first where it does not; a file without records comes last.
func inOrder(files []string) ([]string, error) {
	spans := make([]span, len(files))
	for i, name := range files {
		var err error
		if spans[i], err = spanOf(name); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(spans, func(a, b span) int { return a.begun.Compare(b.begun) })
	var names []string
	for len(spans) > 0 {
		i := max(0, slices.IndexFunc(spans, func(s span) bool { return !follows(s, spans) }))
		for i >= 0 {
			last := spans[i].last
			names = append(names, spans[i].name)
			spans = slices.Delete(spans, i, i+1)
			i = slices.IndexFunc(spans, func(s span) bool { return s.prev == last })
		}
	}
	return names, nil
}

// follows reports whether s goes on from another of the spans.
func follows(s span, spans []span) bool {
	return slices.ContainsFunc(spans, func(t span) bool { return t.last == s.prev && t.name != s.name })
}

func spanOf(name string) (span, error) {
	s := span{name: name, begun: time.Unix(1<<40, 0)}
	err := linesOf(name, func(_ Place, line []byte) error {
		prev, hash, _, ok := claims(bytes.TrimSuffix(line, []byte("\n")))
		if !ok {
			return nil
		}
		if s.last == (link{}) {
			var first seal
			if json.Unmarshal(line, &first) == nil {
				s.begun = first.Time
			}
			s.prev = prev
		}
		s.last = hash
		return nil
	})
	return s, err
}

// linesOf calls fn for each line of a file, the last one too if it lacks its
// newline.
func linesOf(name string, fn func(Place, []byte) error) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	var r io.Reader = f
	if strings.HasSuffix(name, ".gz") {
		if r, err = gzip.NewReader(f); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	lines := bufio.NewReaderSize(r, 1<<16)
	for at := (Place{name, 1}); ; at.Line++ {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			if err := fn(at, line); err != nil {
				return err
			}
		}
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return fmt.Errorf("%s: %w", name, err)
		}
	}
}

// verifyCommand is `pgproxy audit verify`.
func verifyCommand(args []string, stdout io.Writer) error {
	flags := newFlags("verify")
	seen := flags.String("seen", "", "a `hash` that an earlier verify printed: it must be in the chain")
	if err := parseFlags(flags, args, stdout); err != nil {
		return err
	}
	report, err := Verify(flags.Args()...)
	if err != nil {
		return err
	}
	for _, note := range report.Notes {
		fmt.Fprintln(stdout, note)
	}
	if report.Break != nil {
		return fmt.Errorf("%v (%d records before it are sound)", report.Break, report.Records)
	}
	if *seen != "" {
		if err := requireHash(*seen, flags.Args()); err != nil {
			return err
		}
	}
	fmt.Fprintf(stdout, "sound: %d records", report.Records)
	if report.Records > 0 {
		fmt.Fprintf(stdout, " from %s to %s\nlast hash: %s",
			report.First.Format(time.RFC3339), report.Last.Format(time.RFC3339), report.Hash)
	}
	fmt.Fprintln(stdout)
	return nil
}

// requireHash looks for a record with the hash.
func requireHash(seen string, files []string) error {
	err := eachLine(files, func(_ Place, line []byte) error {
		_, hash, ok := links(bytes.TrimSuffix(line, []byte("\n")))
		if ok && string(hash[:]) == seen {
			return errFound
		}
		return nil
	})
	switch err {
	case errFound:
		return nil
	case nil:
		return fmt.Errorf("no record has the hash %s: the log was cut off or rewritten", seen)
	}
	return err
}

// errFound ends a search.
var errFound = errors.New("found")

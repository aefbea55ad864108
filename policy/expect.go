package policy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
)

// Expectation is one line of a policy's own test: what should come of a
// statement for a caller.
type Expectation struct {
	Line   int    // in the file, from 1
	Caller string // a login, or tags
	Want   string // "allow", or "deny" and the rule
	SQL    string
}

// The line before a statement, and what looks like one.
var (
	expectation = regexp.MustCompile(`^--\s*expect:\s*(\S+)\s+(?:(allow)|(deny)\s+(\S+))\s*$`)
	expectLike  = regexp.MustCompile(`(?i)^\s*--\s*expect\b`)
)

// ParseExpectations reads the text of a policy's own test: statements, each
// under a line "-- expect: LOGIN allow" or "-- expect: LOGIN deny RULE". Several
// such lines in a row are about the same statement. The error joins everything
// that is wrong; name is the file's, for it.
func ParseExpectations(name, text string) ([]Expectation, error) {
	var list []Expectation
	var errs []error
	fail := func(line int, what string) {
		errs = append(errs, fmt.Errorf("%s:%d: %s", name, line, what))
	}
	var sql strings.Builder
	first, begun := 0, false // of the expectations without a statement yet; a statement stands in sql
	finish := func() {
		for i := first; i < len(list); i++ {
			list[i].SQL = sql.String()
		}
		sql.Reset()
		first, begun = len(list), false
	}
	for i, line := range strings.Split(text, "\n") {
		trimmed := strings.TrimSpace(line)
		switch m := expectation.FindStringSubmatch(trimmed); {
		case m != nil:
			if begun {
				finish()
			}
			list = append(list, Expectation{Line: i + 1, Caller: m[1], Want: strings.TrimSpace(m[2] + m[3] + " " + m[4])})
		case expectLike.MatchString(line):
			fail(i+1, `not "-- expect: LOGIN allow" or "-- expect: LOGIN deny RULE"`)
		case trimmed == "" || strings.HasPrefix(trimmed, "--"):
			sql.WriteString(line + "\n")
		case len(list) == 0 && len(errs) == 0:
			return nil, fmt.Errorf("%s:%d: a statement without a line \"-- expect: …\" before it", name, i+1)
		default:
			sql.WriteString(line + "\n")
			begun = true
		}
	}
	switch {
	case begun:
		finish()
	case first < len(list):
		fail(list[first].Line, "an expectation without a statement behind it")
	case len(list) == 0 && len(errs) == 0:
		errs = append(errs, fmt.Errorf("%s: no line \"-- expect: LOGIN allow\" or \"-- expect: LOGIN deny RULE\"", name))
	}
	return list, errors.Join(errs...)
}

// TestFile is Test for a file, with the number of expectations that hold, or do
// not, as the last line. It reports whether all hold.
func (x *Explainer) TestFile(ctx context.Context, w io.Writer, file string) (hold bool, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return false, fmt.Errorf("-f: %w", err)
	}
	list, err := ParseExpectations(file, string(text))
	if err != nil {
		return false, err
	}
	different, err := x.Test(ctx, w, file, list)
	if err != nil {
		return false, err
	}
	if different > 0 {
		_, err = fmt.Fprintf(w, "%d of %d expectations do not hold\n", different, len(list))
		return false, err
	}
	_, err = fmt.Fprintf(w, "%d expectations hold\n", len(list))
	return true, err
}

// Test compares what would come of statements with what is expected, and writes
// each that differs as a line. It returns how many do. The error says which
// could not be judged, and why; name is the file's, for both.
func (x *Explainer) Test(ctx context.Context, w io.Writer, name string, list []Expectation) (different int, err error) {
	var errs []error
	for _, want := range list {
		got, err := x.Explain(ctx, CallerNamed(want.Caller, ""), want.SQL)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("%s:%d: not judged: %w", name, want.Line, err))
		case got.verdict() != want.Want:
			different++
			fmt.Fprintf(w, "%s:%d: %s: want %s, got %s\n", name, want.Line, want.Caller, want.Want, got.describeVerdict())
		}
	}
	return different, errors.Join(errs...)
}

// describeVerdict is the verdict, and for a refusal what the client sees.
func (e *Explanation) describeVerdict() string {
	if e.Allowed() {
		return e.verdict()
	}
	return fmt.Sprintf("%s (%s)", e.verdict(), e.Decision.Refusal.Message)
}

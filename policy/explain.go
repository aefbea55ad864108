package policy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// Explainer says what would come of a statement, without running it. It
// follows the steps of a session: the caller's rule, the database, pgproxy's
// own settings, the verdict, the reason.
type Explainer struct {
	// Rules gives the rule for a caller, or a *Refusal.
	Rules func(Caller) (Rule, error)
	Judge *Judge
	// Served are the databases that there are. Where Served.Default is empty,
	// it is not known, and no database is judged.
	Served Served
	// Database is what the client asks for; empty = none by name.
	Database string
	// Reason is the session's pgproxy.reason; empty = none.
	Reason string
	// Capability is the app capability that grants are read by; empty = none.
	// What the tailnet grants to whom is not known here.
	Capability string
	// Open opens a catalogue of a database, for a statement about which the
	// database must be asked; nil = there is none. Then names are taken as they
	// stand, and what depends on a table's keys is not judged.
	Open func(ctx context.Context, rule Rule, database string) (OpenCatalog, error)
}

// OpenCatalog is a Catalog that must be closed.
type OpenCatalog interface {
	Catalog
	io.Closer
}

// Explanation is what would come of one statement.
type Explanation struct {
	Caller   Caller
	Database string // empty where it is not known
	// Served are the databases that the caller may ask for by name.
	Served []string
	// Rule is the rule that judged, with what the statement itself sets before
	// it; nil when there is none for the caller.
	Rule     *Rule
	Decision Decision

	capability string
}

// Explain judges a statement. The error says why it could not be judged.
func (x *Explainer) Explain(ctx context.Context, caller Caller, sql string) (*Explanation, error) {
	e := &Explanation{Caller: caller, capability: x.Capability}
	rule, err := x.Rules(caller)
	if r, ok := errors.AsType[*Refusal](err); ok {
		return e.refuse(r), nil
	}
	if err != nil {
		return nil, err
	}
	e.Rule = &rule
	if x.Served.Default != "" {
		e.Served = x.Served.For(&rule)
		var r *Refusal
		if e.Database, r = x.Served.Choose(&rule, x.Database); r != nil {
			return e.refuse(r), nil
		}
	}
	return e, x.judge(ctx, e, sql)
}

// judge takes the statement through the steps that a session takes it through.
func (x *Explainer) judge(ctx context.Context, e *Explanation, sql string) error {
	var overrides Overrides
	if x.Reason != "" {
		if r := overrides.Set(*e.Rule, "reason", x.Reason); r != nil {
			return fmt.Errorf("%w. %s", r, r.Hint)
		}
	}
	msg, err := x.Judge.Parse(ctx, sql)
	if r, ok := errors.AsType[*Refusal](err); ok {
		e.refuse(r)
		return nil
	}
	if err != nil {
		return err
	}
	if len(msg.Statements) == 0 {
		return errors.New("there is no statement to judge")
	}
	base := *e.Rule
	own := msg.Own()
	for _, st := range msg.Statements[:own] {
		if r := overrides.Apply(base, st.Proxy); r != nil {
			e.refuse(r)
			return nil
		}
	}
	if own < len(msg.Statements) && overrides.elevated.By == Approval {
		e.refuse(RefuseAlone(NeedsPerson))
		return nil
	}
	*e.Rule = overrides.Effective(base)
	var cat Catalog
	lazy := &lazyCatalog{open: func() (OpenCatalog, error) { return x.open(ctx, e) }}
	defer lazy.close()
	if x.Open != nil || e.Rule.Where == WhereKey {
		cat = lazy
	}
	e.Decision = Decide(ctx, e.Rule, msg, Session{Reason: overrides.Reason(), Catalog: cat})
	return lazy.err
}

// Print writes what would come of a statement. It reports whether it would be
// sent; the error says why it could not be judged.
func (x *Explainer) Print(ctx context.Context, w io.Writer, caller Caller, sql string) (allowed bool, err error) {
	e, err := x.Explain(ctx, caller, sql)
	if err != nil {
		return false, fmt.Errorf("not judged: %w", err)
	}
	_, err = e.WriteTo(w)
	return e.Allowed(), err
}

func (x *Explainer) open(ctx context.Context, e *Explanation) (OpenCatalog, error) {
	if x.Open == nil {
		return nil, errors.New("the rule wants to know a table's keys, and there is no database to ask")
	}
	return x.Open(ctx, *e.Rule, e.Database)
}

func (e *Explanation) refuse(r *Refusal) *Explanation {
	e.Decision.Refusal, e.Decision.Rule = r, r.Rule
	return e
}

// Allowed reports whether the statement would be sent.
func (e *Explanation) Allowed() bool { return e.Decision.Refusal == nil }

// verdict is the verdict in the words of an expectation: "deny access".
func (e *Explanation) verdict() string {
	if e.Allowed() {
		return "allow"
	}
	return "deny " + e.Decision.Rule
}

// WriteTo writes the explanation for people: a name and a value a line.
func (e *Explanation) WriteTo(out io.Writer) (int64, error) {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		if value := fmt.Sprintf(format, args...); value != "" {
			fmt.Fprintf(w, "%s\t%s\n", name, strings.ReplaceAll(value, "\n", " "))
		}
	}
	line("caller", "%s", e.Caller.Who())
	line("database", "%s", e.Database)
	if r := e.Decision.Refusal; r == nil {
		line("verdict", "allow")
		line("rule", "%s", e.Decision.Rule)
	} else {
		line("verdict", "deny")
		line("rule", "%s", r.Rule)
		line("error", "%s %s", r.Code, r.Message)
		line("detail", "%s", r.Detail)
		line("hint", "%s", r.Hint)
		if r.Position != 0 {
			line("position", "%d", r.Position)
		}
	}
	line("kinds", "%s", strings.Join(e.Decision.Kinds, ", "))
	if e.Rule != nil {
		line("by", "%s: %s", e.Rule.Source, strings.Join(e.Rule.Describe(), ", "))
		line("databases", "%s", strings.Join(e.Served, ", "))
		for _, limit := range e.Rule.Limits() {
			line(limit.Name, "%s", limit.Value)
		}
	}
	if e.capability != "" {
		line("grants", "not known here: a caller to whom the tailnet grants %s is judged by that grant instead", e.capability)
	}
	w.Flush() // a strings.Builder takes everything
	n, err := io.WriteString(out, b.String())
	return int64(n), err
}

// lazyCatalog opens a catalogue when it is first asked.
type lazyCatalog struct {
	open func() (OpenCatalog, error)
	cat  OpenCatalog
	err  error // why there was no answer: then there is no verdict either
}

// Query implements Catalog.
func (c *lazyCatalog) Query(ctx context.Context, sql string) ([][]string, error) {
	if c.cat == nil && c.err == nil {
		c.cat, c.err = c.open()
	}
	if c.err != nil {
		return nil, c.err
	}
	rows, err := c.cat.Query(ctx, sql)
	c.err = err
	return rows, err
}

func (c *lazyCatalog) close() {
	if c.cat != nil {
		c.cat.Close()
	}
}

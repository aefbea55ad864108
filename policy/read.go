package policy

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tailscale/hujson"
)

// SyntaxError is one thing wrong with a policy file or a grant, and where.
type SyntaxError struct {
	Name         string // the file's name, or the grant's number
	Line, Column int    // from 1; columns count bytes
	Problem      string
}

func (e *SyntaxError) Error() string {
	return fmt.Sprintf("%s:%d:%d: %s", e.Name, e.Line, e.Column, e.Problem)
}

// reader reads rules and goes on after an error, to tell all of them at once.
// What it returns counts only if it collected no error.
type reader struct {
	name  string
	data  []byte
	grant bool // in a grant, the fields for the file alone are refused
	errs  []error
}

func newReader(name string, data []byte) *reader {
	return &reader{name: name, data: data}
}

// parse reads the text; it is false when it is not HuJSON.
func (r *reader) parse() (hujson.Value, bool) {
	v, err := hujson.Parse(r.data)
	if err == nil {
		return v, true
	}
	e := &SyntaxError{Name: r.name, Line: 1, Column: 1}
	// The position is in hujson's text and nowhere else.
	text := strings.TrimPrefix(err.Error(), "hujson: ")
	if n, _ := fmt.Sscanf(text, "line %d, column %d:", &e.Line, &e.Column); n == 2 {
		_, text, _ = strings.Cut(text, ": ")
	}
	if strings.HasPrefix(text, `invalid literal: "`) {
		text = "invalid string" // it may be one with a password
	}
	e.Problem = text
	r.errs = append(r.errs, e)
	return hujson.Value{}, false
}

func (r *reader) fail(at hujson.Value, format string, args ...any) {
	before := r.data[:at.StartOffset]
	r.errs = append(r.errs, &SyntaxError{
		Name:    r.name,
		Line:    1 + bytes.Count(before, []byte("\n")),
		Column:  at.StartOffset - bytes.LastIndexByte(before, '\n'),
		Problem: fmt.Sprintf(format, args...),
	})
}

// object hands each member of v to the function of its name.
func (r *reader) object(v hujson.Value, what string, fields map[string]func(hujson.Value)) {
	obj, ok := v.Value.(*hujson.Object)
	if !ok {
		r.fail(v, "%s must be an object", what)
		return
	}
	seen := map[string]bool{}
	for _, m := range obj.Members {
		name := memberName(m)
		read, known := fields[name]
		switch {
		case seen[name]:
			r.fail(m.Name, "field %q is given twice", name)
		case known:
			read(m.Value)
		case fileOnly[name]:
			r.fail(m.Name, "field %q is for the policy file: grants add up, and cannot take away", name)
		default:
			r.fail(m.Name, "unknown field %q", name)
		}
		seen[name] = true
	}
}

func memberName(m hujson.ObjectMember) string {
	return m.Name.Value.(hujson.Literal).String()
}

// fileOnly are the fields that narrow, and mean nothing in a grant.
var fileOnly = map[string]bool{"deny": true, "only": true}

// rule reads a rule object over the defaults.
func (r *reader) rule(v hujson.Value) Rule {
	rule := DefaultRule()
	var elevateAt hujson.Value
	fields := map[string]func(hujson.Value){
		"access":                              func(v hujson.Value) { rule.Access = r.access(v) },
		"allow":                               func(v hujson.Value) { rule.Allow = r.words(v) },
		"require_where":                       func(v hujson.Value) { rule.Where = r.whereCheck(v) },
		"databases":                           func(v hujson.Value) { rule.Databases = r.databases(v) },
		"max_rows":                            func(v hujson.Value) { rule.MaxRows = r.limit(v) },
		"max_bytes":                           func(v hujson.Value) { rule.MaxBytes = r.limit(v) },
		"max_affected_rows":                   func(v hujson.Value) { rule.MaxAffectedRows = r.limit(v) },
		"statement_timeout":                   func(v hujson.Value) { rule.StatementTimeout = r.timeout(v) },
		"idle_in_transaction_session_timeout": func(v hujson.Value) { rule.IdleInTransactionTimeout = r.timeout(v) },
		"may_lift":                            func(v hujson.Value) { rule.MayLift = r.boolean(v) },
		"may_observe":                         func(v hujson.Value) { rule.MayObserve = r.boolean(v) },
		"may_kill":                            func(v hujson.Value) { rule.MayKill = r.boolean(v) },
		"may_signal":                          func(v hujson.Value) { rule.MaySignal = r.boolean(v) },
		"elevate":                             func(v hujson.Value) { rule.Elevate, elevateAt = r.elevate(v), v },
		"may_approve":                         func(v hujson.Value) { rule.MayApprove = r.boolean(v) },
		"require_reason":                      func(v hujson.Value) { rule.RequireReason = r.boolean(v) },
	}
	if !r.grant {
		fields["deny"] = func(v hujson.Value) { rule.Deny = r.words(v) }
		fields["only"] = func(v hujson.Value) { rule.Only = r.only(v) }
	}
	r.object(v, "a rule", fields)
	if to := rule.Elevate.Access; to != NoAccess && to <= rule.Access {
		r.fail(elevateAt, "elevate to %q raises nothing: the rule's access is %q", to, rule.Access)
	}
	return rule
}

func (r *reader) access(v hujson.Value) Access {
	name := r.text(v)
	for _, a := range []Access{Read, Write, Admin} {
		if name == a.String() {
			return a
		}
	}
	if v.Value.Kind() == '"' {
		r.fail(v, `access %q is unknown: "read", "write" or "admin"`, name)
	}
	return NoAccess
}

func (r *reader) whereCheck(v hujson.Value) WhereCheck {
	lit, _ := v.Value.(hujson.Literal)
	switch {
	case string(lit) == "true":
		return WhereRequired
	case string(lit) == "false":
		return WhereFree
	case len(lit) == 0 || lit.Kind() != '"' || lit.String() != "key":
		r.fail(v, `require_where must be true, false or "key"`)
	}
	return WhereKey
}

func (r *reader) boolean(v hujson.Value) bool {
	lit, _ := v.Value.(hujson.Literal)
	if string(lit) != "true" && string(lit) != "false" {
		r.fail(v, "must be true or false")
	}
	return string(lit) == "true"
}

func (r *reader) text(v hujson.Value) string {
	lit, ok := v.Value.(hujson.Literal)
	if !ok || lit.Kind() != '"' {
		r.fail(v, "must be a string")
		return ""
	}
	return lit.String()
}

// limit reads a cap: a whole number, 0 for none.
func (r *reader) limit(v hujson.Value) int64 {
	lit, ok := v.Value.(hujson.Literal)
	if !ok || lit.Kind() != '0' {
		r.fail(v, "must be a whole number; 0 means no cap")
		return 0
	}
	n, err := strconv.ParseInt(string(lit), 10, 64)
	switch {
	case errors.Is(err, strconv.ErrRange):
		r.fail(v, "%s is too large", lit)
	case err != nil:
		r.fail(v, "%s is not a whole number", lit)
	case n < 0:
		r.fail(v, "%d is negative; 0 means no cap", n)
	}
	return n
}

// timeout reads a duration with its unit; a plain 0 needs none.
func (r *reader) timeout(v hujson.Value) time.Duration {
	lit, ok := v.Value.(hujson.Literal)
	if ok && string(lit) == "0" {
		return 0
	}
	if !ok || lit.Kind() != '"' {
		r.fail(v, `must be a duration with its unit, like "30s"; 0 means no limit`)
		return 0
	}
	d, err := parseDuration(lit.String(), 0)
	if err != nil {
		r.fail(v, "%v", err)
	}
	return d
}

func (r *reader) strings(v hujson.Value) []string {
	arr, ok := v.Value.(*hujson.Array)
	if !ok {
		r.fail(v, "must be a list of strings")
		return nil
	}
	list := []string{}
	for _, e := range arr.Elements {
		s := r.text(e)
		if e.Value.Kind() == '"' && strings.TrimSpace(s) == "" {
			r.fail(e, "must not be empty")
		}
		list = append(list, s)
	}
	return list
}

// databases reads a list of names; "*" among them means all that are served.
func (r *reader) databases(v hujson.Value) []string {
	list := r.strings(v)
	if list != nil && len(list) == 0 {
		r.fail(v, "databases must name one at least; leave it out for all that are served")
	}
	if slices.Contains(list, "*") {
		return nil
	}
	return list
}

// words reads a list of statement kinds and of functions with an effect.
func (r *reader) words(v hujson.Value) []string {
	list := r.strings(v)
	for i, name := range list {
		kind := normalKind(name)
		switch {
		case knownKind(kind):
			list[i] = kind
		case kind != "" && !effectFunction(name):
			r.fail(v.Value.(*hujson.Array).Elements[i], "%q %s", name, unknownWord(name))
		}
	}
	return list
}

// unknownWord says why a name is neither a kind nor a function that a rule may
// name.
func unknownWord(name string) string {
	view := effectViews[name]
	switch {
	case name == "set_config":
		return "is judged by the setting that it changes, and is not for a rule to name"
	case view != "":
		return fmt.Sprintf("is a view of PostgreSQL's own; name the function that it calls, %q", view)
	case reviewedFunction(name):
		return "is a function without an effect that a rule could speak of"
	}
	problem := "is no statement kind (a command tag of PostgreSQL, or its first word) and no function with an effect"
	if near := nearWords(name); len(near) > 0 {
		problem += "; is it " + strings.Join(near, " or ") + "?"
	}
	return problem
}

// only reads the list of all that is permitted.
func (r *reader) only(v hujson.Value) []string {
	list := r.words(v)
	switch {
	case list == nil:
	case len(list) == 0:
		r.fail(v, "only must name one kind at least; leave it out for no such limit")
	case !slices.ContainsFunc(list, func(word string) bool { return !effectFunction(word) }):
		r.fail(v, "only names functions and no statement kind that could call them, like \"SELECT\"")
	}
	return list
}

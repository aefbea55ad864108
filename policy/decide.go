package policy

import (
	"context"
	"fmt"
)

// Session is what a verdict depends on beside the rule and the text. The zero
// value is a session without a past, a reason or a database.
type Session struct {
	// Memory is what it has prepared before; nil = nothing.
	Memory *Memory
	// Reason is its pgproxy.reason; empty = none.
	Reason string
	// Catalog looks into its database. nil refuses what require_where "key"
	// would have to look up, and changes of tables whose bare name may be the
	// catalogue's.
	Catalog Catalog
	// Owns reports whether the backend of a process ID is one of the caller's
	// own sessions'; nil = none is.
	Owns func(pid int) bool
}

// Decide judges a message by a rule, for a session. The rule and the reason are
// those that the message's own settings lead to: see Overrides.Apply.
func Decide(ctx context.Context, rule *Rule, msg *Message, session Session) Decision {
	d := Decision{Kinds: msg.kinds, Rule: rule.Access.String()}
	ev := evaluation{ctx: ctx, rule: rule, msg: msg, session: session}
	if r := ev.message(); r != nil {
		d.Refusal, d.Rule = r, r.Rule
		return d
	}
	d.Writes = ev.writes
	if ev.allowed != "" {
		d.Rule = "allow " + ev.allowed
	}
	return d
}

// evaluation is the judging of one message by one rule.
type evaluation struct {
	ctx     context.Context
	rule    *Rule
	msg     *Message
	session Session

	signals bool   // a Signal is judged, which the proxy serves
	writes  bool   // some effect needs more than read access
	allowed string // the kind that only the allow list permitted, if any

	// unsettled says that a statement before the one being judged may change
	// what names mean, so that the database cannot be asked yet.
	unsettled bool
	lookups   []lookup              // what the database is to be asked
	answers   map[string][][]string // of the database, by query
}

// message judges by the text first. The database is asked only about a message
// that nothing else refuses.
func (ev *evaluation) message() *Refusal {
	for i := range ev.msg.Statements {
		if r := ev.statement(i); r != nil {
			return r
		}
		ev.unsettled = ev.unsettled || unsettles(&ev.msg.Statements[i])
	}
	if ev.writes && ev.rule.RequireReason && ev.session.Reason == "" {
		return refuseWithoutReason()
	}
	for _, l := range ev.lookups {
		if r := ev.lookUp(l); r != nil {
			return r
		}
	}
	return nil
}

// statement judges the statement at an index.
func (ev *evaluation) statement(i int) *Refusal {
	st := &ev.msg.Statements[i]
	switch {
	case st.Proxy == nil:
	case i < ev.msg.Own():
		if st.Proxy.Signal != nil {
			return ev.signal(i)
		}
		return st.Proxy.unknownShow() // no list of kinds speaks of the proxy's own
	case st.Proxy.Signal == nil:
		return refuseMixed(st)
	}
	for k := range st.facts.Effects {
		if r := ev.effect(i, &st.facts.Effects[k], 0); r != nil {
			return r
		}
	}
	for _, e := range st.facts.Executes {
		if r := ev.execution(i, e); r != nil {
			return r
		}
	}
	return nil
}

// execution judges the running of a prepared statement, by everything that its
// name may stand for.
func (ev *evaluation) execution(i int, e execution) *Refusal {
	p, known := ev.session.Memory.under(ev.msg, i, e.Name)
	if !known && ev.rule.Access < Admin {
		return &Refusal{
			Code: "42501", Rule: "prepared", Position: e.Pos,
			Message: fmt.Sprintf("pgproxy: EXECUTE of prepared statement %q is refused", e.Name),
			Detail:  "pgproxy did not see it being prepared in this session, or cannot remember all of it, and so does not know what it does.",
			Hint:    "PREPARE it in this session first, under an ASCII name of its own.",
		}
	}
	for v := range p.all() {
		for k := range v.effects {
			if r := ev.executed(i, e, &v.effects[k]); r != nil {
				return r
			}
		}
	}
	return nil
}

// executed judges an effect of a prepared statement. One that is only planned does
// nothing, but the plan is kept, and with it what its names mean now: an EXECUTE
// to come runs that plan, whatever they mean by then.
func (ev *evaluation) executed(i int, e execution, a *effect) *Refusal {
	switch {
	case !e.Planned || a.Class != effectStatement:
		return ev.effect(i, a, e.Pos)
	case a.Target != nil && a.Needs <= ev.rule.Access:
		return ev.change(lookup{effect: a, pos: e.Pos, prepared: true, first: i == 0, unsettled: ev.unsettled})
	}
	return nil
}

// effect judges one effect of the statement at an index. pos, if not 0, is where
// the statement speaks of it.
func (ev *evaluation) effect(i int, a *effect, pos int) *Refusal {
	if a.Needs > Read {
		ev.writes = true
	}
	prepared := pos != 0
	if !prepared {
		pos = a.Pos
	}
	switch {
	case a.Needs == neverAllowed:
		return refuseForAll(a, pos)
	case a.Class == effectTimeout && !ev.rule.timeoutWithin(a.Name, a.Millis):
		return refuseTimeout(ev.rule, a, pos)
	case a.Kind != "" && matchesAny(ev.rule.Deny, a.Kind):
		return refuseDenied(ev.rule, a, pos)
	case a.Kind != "" && len(ev.rule.Only) > 0 && !matchesAny(ev.rule.Only, a.Kind):
		return refuseOnly(ev.rule, a, pos)
	case a.Needs > ev.rule.Access:
		switch {
		case a.Kind != "" && matchesAny(ev.rule.Allow, a.Kind):
			ev.allowed = a.Kind
		case !ev.signals || !ev.rule.MaySignal:
			return refuseAccess(ev.rule, a, pos)
		}
	}
	if a.Lasts && ev.rule.DryRun {
		return refuseDryRun(a, pos)
	}
	if a.Change != nil && a.Change.Bare && ev.rule.Where != WhereFree {
		return refuseBare(a, pos)
	}
	if a.Target != nil {
		return ev.change(lookup{effect: a, pos: pos, prepared: prepared, first: i == 0, unsettled: ev.unsettled})
	}
	return nil
}

// matchesAny reports whether a list of the policy names a kind, or its family.
func matchesAny(kinds []string, kind string) bool {
	for _, name := range kinds {
		if coversKind(name, kind) {
			return true
		}
	}
	return false
}

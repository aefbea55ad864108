package policy

import (
	"context"
	"fmt"
)

// Decide judges a message by a rule. mem is what the session has prepared
// before; cat looks into its database, and may be nil, which refuses what
// require_where "key" would have to look up, and changes of tables whose bare
// name may be the catalogue's.
func Decide(ctx context.Context, rule *Rule, msg *Message, mem *Memory, cat Catalog) Decision {
	d := Decision{Kinds: msg.kinds, Rule: rule.Access.String()}
	j := judgement{ctx: ctx, rule: rule, msg: msg, mem: mem, cat: cat}
	if r := j.message(); r != nil {
		d.Refusal, d.Rule = r, r.Rule
		return d
	}
	d.Writes = j.writes
	if j.allowed != "" {
		d.Rule = "allow " + j.allowed
	}
	return d
}

// judgement is the judging of one message.
type judgement struct {
	ctx  context.Context
	rule *Rule
	msg  *Message
	mem  *Memory
	cat  Catalog

	writes  bool   // some act needs more than read access
	allowed string // the kind that only the allow list permitted, if any

	// unsettled says that a statement before the one being judged may change
	// what names mean, so that the database cannot be asked yet.
	unsettled bool
	lookups   []lookup              // what the database is to be asked
	answers   map[string][][]string // of the database, by query
}

// message judges by the text first. The database is asked only about a message
// that nothing else refuses.
func (j *judgement) message() *Refusal {
	for i := range j.msg.Statements {
		if r := j.statement(i); r != nil {
			return r
		}
		j.unsettled = j.unsettled || unsettles(&j.msg.Statements[i])
	}
	for _, l := range j.lookups {
		if r := j.lookUp(l); r != nil {
			return r
		}
	}
	return nil
}

// statement judges the statement at an index.
func (j *judgement) statement(i int) *Refusal {
	st := &j.msg.Statements[i]
	if st.Proxy != nil {
		if i > 0 && j.msg.Statements[i-1].Proxy == nil {
			return refuseMixed(st)
		}
		return nil // the proxy's own, which no list of kinds speaks of
	}
	for k := range st.facts.Acts {
		if r := j.act(i, &st.facts.Acts[k], 0); r != nil {
			return r
		}
	}
	for _, e := range st.facts.Executes {
		if r := j.execution(i, e); r != nil {
			return r
		}
	}
	return nil
}

// execution judges the running of a prepared statement: by all that may hide
// under its name.
func (j *judgement) execution(i int, e execution) *Refusal {
	p, known := j.mem.under(j.msg, i, e.Name)
	if !known && j.rule.Access < Admin {
		return &Refusal{
			Code: "42501", Rule: "prepared", Position: e.Pos,
			Message: fmt.Sprintf("pgproxy: EXECUTE of prepared statement %q is refused", e.Name),
			Detail:  "pgproxy did not see it being prepared in this session, or cannot remember all of it, and so does not know what it does.",
			Hint:    "PREPARE it in this session first, under an ASCII name of its own.",
		}
	}
	for v := range p.all() {
		for k := range v.acts {
			if r := j.executed(i, e, &v.acts[k]); r != nil {
				return r
			}
		}
	}
	return nil
}

// executed judges an act of a prepared statement. One that is only planned does
// nothing, but the plan is kept, and with it what its names mean now: an EXECUTE
// to come runs that plan, whatever they mean by then.
func (j *judgement) executed(i int, e execution, a *act) *Refusal {
	switch {
	case !e.Planned || a.Class != actStatement:
		return j.act(i, a, e.Pos)
	case a.Target != nil && a.Needs <= j.rule.Access:
		return j.change(lookup{act: a, pos: e.Pos, prepared: true, first: i == 0, unsettled: j.unsettled})
	}
	return nil
}

// act judges one act of the statement at an index. pos, if not 0, is where
// the statement speaks of it.
func (j *judgement) act(i int, a *act, pos int) *Refusal {
	if a.Needs > Read {
		j.writes = true
	}
	prepared := pos != 0
	if !prepared {
		pos = a.Pos
	}
	switch {
	case a.Needs == nobody:
		return refuseForAll(a, pos)
	case a.Class == actTimeout && !j.rule.timeoutWithin(a.Name, a.Millis):
		return refuseTimeout(j.rule, a, pos)
	case a.Kind != "" && listed(j.rule.Deny, a.Kind):
		return refuseDenied(j.rule, a, pos)
	case a.Kind != "" && len(j.rule.Only) > 0 && !listed(j.rule.Only, a.Kind):
		return refuseOnly(j.rule, a, pos)
	case a.Needs > j.rule.Access:
		if a.Kind == "" || !listed(j.rule.Allow, a.Kind) {
			return refuseAccess(j.rule, a, pos)
		}
		j.allowed = a.Kind
	}
	if a.Change != nil && a.Change.Bare && j.rule.Where != WhereFree {
		return refuseBare(a, pos)
	}
	if a.Target != nil {
		return j.change(lookup{act: a, pos: pos, prepared: prepared, first: i == 0, unsettled: j.unsettled})
	}
	return nil
}

// listed reports whether a list of the policy speaks of a kind.
func listed(kinds []string, kind string) bool {
	for _, name := range kinds {
		if coversKind(name, kind) {
			return true
		}
	}
	return false
}

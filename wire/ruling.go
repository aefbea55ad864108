package wire

import (
	"fmt"
	"reflect"
	"strings"
	"sync"
	"time"

	"pgproxy/policy"
)

// ruling is what the session's caller may do: the rule that policy gives, with
// what the user has changed of it for this session. Safe for concurrent use.
type ruling struct {
	mu        sync.Mutex
	given     policy.Rule // by policy
	told      policy.Rule // the given one that the client knows
	untold    bool        // it is another now
	overrides policy.Overrides
	current   policy.Rule // given, with the overrides
	raised    *elevation  // the access that is raised; nil = none is
	over      *elevation  // one that has ended, and of which nobody was told yet
}

// elevation is access that a session has beyond its rule's, for a time.
type elevation struct {
	policy.Elevate           // what was given, of the rule's
	until          time.Time // when it ends by itself
	request        string    // the request's id; "" = nobody else was asked
	approver       *Viewer   // who has given it; nil = nobody else was asked
	why            string    // why it has ended; "" while it holds
}

// start sets the rule that the session begins with, which the login NOTICE
// tells.
func (r *ruling) start(rule policy.Rule) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.given, r.told, r.current = rule, rule, rule
}

// rule is the rule as of now. Another may come at any time: see Server.Recheck.
func (r *ruling) rule() policy.Rule {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.current
}

// reason is the user's reason, "" for none.
func (r *ruling) reason() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.overrides.Reason()
}

// policy is the rule as policy gives it.
func (r *ruling) policy() policy.Rule {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.given
}

// both returns rule and reason of one moment.
func (r *ruling) both() (policy.Rule, string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.current, r.overrides.Reason()
}

// change takes another rule from policy. It holds from the next statement on.
// news says that the client knows another one.
func (r *ruling) change(rule policy.Rule) (news bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.given = rule
	r.applyLocked("your rule does not give it any more")
	r.untold = !sameEffect(rule, r.told)
	return r.untold
}

// set runs a SET or RESET of one of the user's own settings.
func (r *ruling) set(verb, name, value string) *policy.Refusal {
	r.mu.Lock()
	defer r.mu.Unlock()
	var refusal *policy.Refusal
	if verb == "SET" {
		refusal = r.overrides.Set(r.given, name, value)
	} else {
		refusal = r.overrides.Reset(name)
	}
	if refusal == nil {
		r.applyLocked("it was given back")
	}
	return refusal
}

// applyLocked makes the current rule of the given one. An access that it does not
// raise any more has ended; why says so to people.
func (r *ruling) applyLocked(why string) {
	r.current = r.overrides.Effective(r.given)
	if r.raised != nil && r.current.Access <= r.given.Access {
		r.overrides.Elevate(policy.Elevate{})
		r.raised.why = why
		r.over, r.raised = r.raised, nil
	}
}

// raise gives the session the access, unless its rule does not say so any more.
func (r *ruling) raise(e elevation) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.given.Elevate.Covers(e.Elevate) || r.given.Access >= e.Access {
		return false
	}
	r.overrides.Elevate(e.Elevate)
	r.raised, r.over = &e, nil
	r.current = r.overrides.Effective(r.given)
	return true
}

// covers reports whether the rule still says what a raised access was asked for by.
func (r *ruling) covers(e policy.Elevate) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.given.Elevate.Covers(e) && r.given.Access < e.Access
}

// lower ends the raised access, if there is one.
func (r *ruling) lower(why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lowerLocked(why)
}

func (r *ruling) lowerLocked(why string) {
	r.overrides.Elevate(policy.Elevate{})
	r.applyLocked(why)
}

// elevation is the access that is raised now, false where none is.
func (r *ruling) elevation() (elevation, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.raised == nil {
		return elevation{}, false
	}
	return *r.raised, true
}

// expire ends a raised access whose time is over, and reports whether it has.
func (r *ruling) expire(now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.raised == nil || now.Before(r.raised.until) {
		return false
	}
	r.lowerLocked("its time is over")
	return true
}

// ended returns a raised access that has ended, once; nil for none.
func (r *ruling) ended(now time.Time) *elevation {
	r.expire(now)
	r.mu.Lock()
	defer r.mu.Unlock()
	over := r.over
	r.over = nil
	return over
}

// try applies statements that are the proxy's own, in their order, and takes none of
// them. It returns the rule and the reason there would be, or which one is
// refused.
func (r *ruling) try(own []policy.Statement) (rule policy.Rule, reason string, refused int, refusal *policy.Refusal) {
	r.mu.Lock()
	given, overrides := r.given, r.overrides.Clone()
	r.mu.Unlock()
	for i, st := range own {
		if refusal := overrides.Apply(given, st.Proxy); refusal != nil {
			return policy.Rule{}, "", i, refusal
		}
	}
	return overrides.Effective(given), overrides.Reason(), 0, nil
}

// begin is what a statement is judged by, with what the client is to be told
// before: that policy gives it another rule than the one it knows, nil when it
// does not.
func (r *ruling) begin() (rule policy.Rule, reason string, news *sessionError) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.untold {
		news = r.newsLocked()
	}
	return r.current, r.overrides.Reason(), news
}

// hasNews reports whether the client knows another rule than policy gives it, or
// a raised access that has ended.
func (r *ruling) hasNews() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.untold || r.over != nil
}

func (r *ruling) newsLocked() *sessionError {
	was := r.told
	r.told, r.untold = r.given, false
	e := notice("pgproxy: what you may do has changed").withHint("SHOW pgproxy.limits tells the rest.")
	e.detail = strings.Join(r.told.Describe(), "; ") + "."
	if was.Access != r.told.Access {
		e.message = fmt.Sprintf("pgproxy: you have %s access now, no longer %s", r.told.Access, was.Access)
	}
	return e
}

// sameEffect reports whether two rules say the same, wherever they come from.
func sameEffect(a, b policy.Rule) bool {
	a.Source, b.Source = "", ""
	return reflect.DeepEqual(a, b)
}

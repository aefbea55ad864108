package wire

import (
	"fmt"
	"reflect"
	"strings"
	"sync"

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
	r.current = r.overrides.Effective(rule)
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
		r.current = r.overrides.Effective(r.given)
	}
	return refusal
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

// hasNews reports whether the client knows another rule than policy gives it.
func (r *ruling) hasNews() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.untold
}

func (r *ruling) newsLocked() *sessionError {
	was := r.told
	r.told, r.untold = r.given, false
	e := &sessionError{severity: "NOTICE", code: "00000", message: "pgproxy: what you may do has changed",
		detail: strings.Join(r.told.Describe(), "; ") + ".", hint: "SHOW pgproxy.limits tells the rest."}
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

package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tailscale/hujson"
)

// Consent is what it takes to raise a session's access.
type Consent int

const (
	// Asking takes the SET and nothing more.
	Asking Consent = iota
	// WithReason takes a session with a pgproxy.reason.
	WithReason
	// Approval takes another person with MayApprove.
	Approval
)

var consents = []string{Asking: "asking", WithReason: "reason", Approval: "approval"}

// String returns the consent as the policy file spells it.
func (c Consent) String() string { return consents[c] }

// Elevate is the access that a caller may raise a session to, what that takes,
// and for how long. The zero value is none.
type Elevate struct {
	Access Access
	By     Consent
	For    time.Duration
}

// String tells it in words: "write access for 15m, with a reason".
func (e Elevate) String() string {
	words := fmt.Sprintf("%s access for %s", e.Access, formatDuration(e.For))
	switch e.By {
	case WithReason:
		return words + ", with a reason"
	case Approval:
		return words + ", with another person's approval"
	}
	return words
}

// Covers reports whether e gives all that other gives, as easily and for as
// long.
func (e Elevate) Covers(other Elevate) bool {
	return e.Access >= other.Access && e.By <= other.By && e.For >= other.For
}

// wider is the one of two that counts where rules add up: the highest access,
// then the easiest consent, then the longest time.
func wider(a, b Elevate) Elevate {
	if cmp.Or(cmp.Compare(a.Access, b.Access), cmp.Compare(b.By, a.By), cmp.Compare(a.For, b.For)) < 0 {
		return b
	}
	return a
}

// elevate reads what a rule says of raising the access. All three fields must
// be there.
func (r *reader) elevate(v hujson.Value) Elevate {
	var e Elevate
	seen := map[string]bool{}
	r.object(v, "elevate", map[string]func(hujson.Value){
		"access": func(v hujson.Value) {
			seen["access"] = true
			if e.Access = r.access(v); e.Access == Read {
				r.fail(v, `elevate raises the access: "write" or "admin"`)
			}
		},
		"by": func(v hujson.Value) {
			seen["by"] = true
			i := slices.Index(consents, r.text(v))
			if i < 0 {
				r.fail(v, `by must be "asking", "reason" or "approval"`)
				return
			}
			e.By = Consent(i)
		},
		"for": func(v hujson.Value) {
			seen["for"] = true
			if e.For = r.timeout(v); e.For == 0 {
				r.fail(v, `an elevation must end: for must be a duration like "15m"`)
			}
		},
	})
	if _, ok := v.Value.(*hujson.Object); ok {
		for _, name := range []string{"access", "by", "for"} {
			if !seen[name] {
				r.fail(v, "elevate must have %q", name)
			}
		}
	}
	return e
}

// Elevation is what raising the access of a session under this rule to that
// access takes, or why it may not be raised so far.
func (r *Rule) Elevation(to Access) (Elevate, *Refusal) {
	e := r.Elevate
	if to <= r.Access {
		return Elevate{Access: to}, nil // it is there already
	}
	if to > e.Access {
		refusal := &Refusal{
			Code: "42501", Rule: "elevate",
			Message: fmt.Sprintf("pgproxy: %s access may not be asked for", to),
			Detail:  fmt.Sprintf("Your rule%s has no \"elevate\" for it.", r.source()),
			Hint:    r.Ask(),
		}
		if e.Access > r.Access {
			refusal.Hint = fmt.Sprintf("You may ask for %s. %s", e, r.Ask())
		}
		return Elevate{}, refusal
	}
	e.Access = to
	return e, nil
}

// ReadAccess reads the value of SET pgproxy.access.
func ReadAccess(value string) (Access, *Refusal) {
	for _, a := range []Access{Read, Write, Admin} {
		if strings.EqualFold(strings.TrimSpace(value), a.String()) {
			return a, nil
		}
	}
	return NoAccess, &Refusal{
		Code: "22023", Rule: "elevate",
		Message: `invalid value for parameter "pgproxy.access"`,
		Hint:    "It is 'read', 'write' or 'admin'.",
	}
}

// setAccess does SET pgproxy.access, as if all that it takes were given, but
// for the reason.
func (o *Overrides) setAccess(base Rule, value string) *Refusal {
	to, refusal := ReadAccess(value)
	if refusal != nil {
		return refusal
	}
	switch now := o.Effective(base).Access; {
	case to == now:
		return nil
	case to == base.Access:
		o.elevated = Elevate{}
		return nil
	case to < now:
		return &Refusal{
			Code: "22023", Rule: "elevate",
			Message: fmt.Sprintf("pgproxy: the session has %s access, and SET pgproxy.access only raises it", now),
			Hint:    "RESET pgproxy.access ends what was raised. BEGIN READ ONLY keeps a transaction from changing anything.",
		}
	}
	e, refusal := base.Elevation(to)
	if refusal != nil {
		return refusal
	}
	if e.By == WithReason && o.reason == "" {
		return &Refusal{
			Code: "42501", Rule: "elevate",
			Message: fmt.Sprintf("pgproxy: SET pgproxy.reason = 'INC-123' first: %s access needs a reason", to),
			Detail:  fmt.Sprintf("Your rule%s says \"elevate\" by reason.", base.source()),
			Hint:    fmt.Sprintf("Then SET pgproxy.access = '%s' again. The reason is kept in every record.", to),
		}
	}
	o.elevated = e
	return nil
}

// RefuseAlone refuses a message that raises the access, by something that must
// be over before what stands behind it can be judged, and goes on with other
// statements. why says what that is.
func RefuseAlone(why string) *Refusal {
	return &Refusal{
		Code: "0A000", Rule: "elevate",
		Message: "pgproxy: SET pgproxy.access cannot stand before other statements here",
		Detail:  why,
		Hint:    "Send it by itself, and the other statements when it is done.",
	}
}

// NeedsPerson is why an access that another person must approve is asked for alone.
const NeedsPerson = "Another person must approve the access first."

// Elevate raises the session's access.
func (o *Overrides) Elevate(e Elevate) { o.elevated = e }

// Elevated is what the session's access was raised to; the zero value is none.
func (o *Overrides) Elevated() Elevate { return o.elevated }

// setAnswer does SET pgproxy.approve and pgproxy.refuse, as far as the rule goes.
func setAnswer(base Rule, name string) *Refusal {
	if base.MayApprove {
		return nil
	}
	return &Refusal{
		Code: "42501", Rule: "may_approve",
		Message: fmt.Sprintf("pgproxy: SET pgproxy.%s is refused", name),
		Detail:  fmt.Sprintf("may_approve is false in your rule%s.", base.source()),
		Hint:    base.Ask(),
	}
}

// raise says how the session itself comes to the access, "" where it may not.
func (r *Rule) raise(needs Access) string {
	if needs <= r.Access || needs > r.Elevate.Access {
		return ""
	}
	e := r.Elevate
	e.Access = needs
	return fmt.Sprintf("SET pgproxy.access = '%s' gives %s.", needs, e)
}

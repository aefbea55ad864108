package policy

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Overrides are what a session changed of its limits, by SET pgproxy.max_rows = …
// and the like, and the reason it gave. The zero value changes nothing. It
// belongs to one session and is not safe for concurrent use.
//
// A limit may always be made stricter. Making it looser needs a rule with
// MayLift, asked for at the time of the SET and again whenever the rule
// changes: see Effective.
type Overrides struct {
	limits   map[string]int64 // by name; in the unit of the limit, 0 for none
	reason   string
	elevated Elevate // what the access was raised to
}

// limit is one of the limits a session may change. Its value is an int64, in
// rows, bytes or milliseconds, 0 for none.
type limit struct {
	name   string
	get    func(*Rule) int64
	set    func(*Rule, int64)
	parse  func(string) (int64, bool)
	format func(int64) string
	hint   string // what a value looks like
}

// limits are those a session may change, in the order they are shown.
var limits = []limit{
	{
		name:   "max_rows",
		get:    func(r *Rule) int64 { return r.MaxRows },
		set:    func(r *Rule, v int64) { r.MaxRows = v },
		parse:  parseRows,
		format: formatRows,
		hint:   "A number of rows; 0 means no cap.",
	},
	{
		name:   "max_bytes",
		get:    func(r *Rule) int64 { return r.MaxBytes },
		set:    func(r *Rule, v int64) { r.MaxBytes = v },
		parse:  parseBytes,
		format: formatBytes,
		hint:   "A number of bytes, or with a unit: B, kB, MB, GB; 0 means no cap.",
	},
	{
		name:   "max_affected_rows",
		get:    func(r *Rule) int64 { return r.MaxAffectedRows },
		set:    func(r *Rule, v int64) { r.MaxAffectedRows = v },
		parse:  parseRows,
		format: formatRows,
		hint:   "A number of rows; 0 means no cap.",
	},
	timeoutLimit("statement_timeout", func(r *Rule) *time.Duration { return &r.StatementTimeout }),
	timeoutLimit("idle_in_transaction_session_timeout", func(r *Rule) *time.Duration { return &r.IdleInTransactionTimeout }),
	{ // off is 0 and on is 1, so that everybody may set both
		name:   "dry_run",
		get:    func(r *Rule) int64 { return switchValues[r.DryRun] },
		set:    func(r *Rule, v int64) { r.DryRun = v != 0 },
		parse:  parseSwitch,
		format: func(v int64) string { return [...]string{"off", "on"}[v] },
		hint:   "on or off.",
	},
}

var switchValues = map[bool]int64{true: 1}

// parseSwitch reads a boolean in the words of PostgreSQL's manual.
func parseSwitch(s string) (int64, bool) {
	switch strings.ToLower(s) {
	case "on", "true", "yes", "1":
		return 1, true
	case "off", "false", "no", "0":
		return 0, true
	}
	return 0, false
}

func timeoutLimit(name string, field func(*Rule) *time.Duration) limit {
	return limit{
		name:   name,
		get:    func(r *Rule) int64 { return int64((*field(r) + time.Millisecond - 1) / time.Millisecond) }, // more than none is one at least
		set:    func(r *Rule, v int64) { *field(r) = time.Duration(v) * time.Millisecond },
		parse:  parseTimeout,
		format: formatTimeout,
		hint:   "Milliseconds, or with a unit: ms, s, min, h, d; 0 means no limit.",
	}
}

// Shows are the names of SHOW pgproxy.… beside those of the settings that a
// session may change.
var Shows = []string{"session", "limits", "access", "requests", "sessions", "blockers"}

// unknownShow refuses a SHOW of what there is not; nil for all other commands.
func (cmd *ProxyCommand) unknownShow() *Refusal {
	_, isLimit := limitNamed(cmd.Name)
	if cmd.Verb != "SHOW" || isLimit || cmd.Name == "reason" || slices.Contains(Shows, cmd.Name) {
		return nil
	}
	return &Refusal{
		Code:    "42704",
		Message: fmt.Sprintf("unrecognized configuration parameter %q", "pgproxy."+cmd.Name),
		Hint:    fmt.Sprintf("There are %s, reason, and each limit by its name.", strings.Join(Shows, ", ")),
		Rule:    "unknown_setting",
	}
}

func limitNamed(name string) (limit, bool) {
	i := slices.IndexFunc(limits, func(l limit) bool { return l.name == name })
	if i < 0 {
		return limit{}, false
	}
	return limits[i], true
}

// Set does SET pgproxy.name = value. The base is the session's rule without
// overrides. A nil result means that it is done.
func (o *Overrides) Set(base Rule, name, value string) *Refusal {
	name = strings.ToLower(name)
	switch name {
	case "reason":
		return o.setReason(value)
	case "access":
		return o.setAccess(base, value)
	case "approve", "refuse":
		return setAnswer(base, name)
	}
	lim, ok := limitNamed(name)
	if !ok {
		return refuseSetting(name)
	}
	v, ok := lim.parse(strings.TrimSpace(value))
	if !ok {
		return &Refusal{
			Code:    "22023",
			Message: fmt.Sprintf("invalid value for parameter %q: %q", "pgproxy."+name, value),
			Hint:    lim.hint,
			Rule:    "lift",
		}
	}
	if looserLimit(v, lim.get(&base)) && !base.MayLift {
		return refuseLift(&base, lim)
	}
	if o.limits == nil {
		o.limits = map[string]int64{}
	}
	o.limits[name] = v
	return nil
}

// The lengths of a reason, in characters: short enough for every record to
// bear it, long enough for a ticket's number.
const (
	minReason = 3
	maxReason = 200
)

func (o *Overrides) setReason(value string) *Refusal {
	reason := strings.TrimSpace(value)
	n := utf8.RuneCountInString(reason)
	if !utf8.ValidString(reason) || strings.ContainsFunc(reason, unicode.IsControl) || n < minReason || n > maxReason {
		return &Refusal{
			Code:    "22023",
			Message: `invalid value for parameter "pgproxy.reason"`,
			Hint:    fmt.Sprintf("A reason is one line of %d to %d characters, like 'INC-123'.", minReason, maxReason),
			Rule:    "reason",
		}
	}
	o.reason = reason
	return nil
}

// Reset does RESET pgproxy.name; the name "all" resets every one.
func (o *Overrides) Reset(name string) *Refusal {
	name = strings.ToLower(name)
	switch _, ok := limitNamed(name); {
	case name == "all":
		*o = Overrides{}
	case name == "reason":
		o.reason = ""
	case name == "access":
		o.elevated = Elevate{}
	case ok:
		delete(o.limits, name)
	default:
		return refuseSetting(name)
	}
	return nil
}

// refuseSetting refuses the change of a setting that is not the session's to
// change.
func refuseSetting(name string) *Refusal {
	if identitySettings[name] || slices.Contains(Shows, name) {
		return &Refusal{
			Code:    "42501",
			Message: fmt.Sprintf("pgproxy: pgproxy.%s cannot be changed", name),
			Detail:  "It belongs to the proxy.",
			Rule:    "protected_setting",
		}
	}
	names := make([]string, len(limits))
	for i, lim := range limits {
		names[i] = "pgproxy." + lim.name
	}
	return &Refusal{
		Code:    "42704",
		Message: fmt.Sprintf("unrecognized configuration parameter %q", "pgproxy."+name),
		Hint:    fmt.Sprintf("A session may set %s, pgproxy.access and pgproxy.reason.", strings.Join(names, ", ")),
		Rule:    "unknown_setting",
	}
}

// Apply does a SET or RESET of one of the proxy's own settings; a SHOW changes
// nothing. The arguments and the result are as Set's.
func (o *Overrides) Apply(base Rule, cmd *ProxyCommand) *Refusal {
	switch {
	case cmd.Local:
		return &Refusal{
			Code: "0A000", Rule: "own_settings",
			Message: "pgproxy: pgproxy's settings hold for the session, SET LOCAL is not supported",
		}
	case cmd.Verb == "SET":
		return o.Set(base, cmd.Name, cmd.Value)
	case cmd.Verb == "RESET":
		return o.Reset(cmd.Name)
	}
	return nil
}

// Effective is base as this session changed it. A limit that is looser than
// base's holds only while base has MayLift, and a raised access only while base
// would give it as easily: when a rule is narrowed, what it gave goes with it.
func (o *Overrides) Effective(base Rule) Rule {
	if len(o.limits) == 0 && o.elevated == (Elevate{}) {
		return base
	}
	rule, given := base, base
	rule.given = &given
	if o.elevated.Access > base.Access && base.Elevate.Covers(o.elevated) {
		rule.Access = o.elevated.Access
	}
	for _, lim := range limits {
		v, ok := o.limits[lim.name]
		if ok && (base.MayLift || !looserLimit(v, lim.get(&base))) {
			lim.set(&rule, v)
		}
	}
	return rule
}

// Reason is pgproxy.reason, empty if none was given.
func (o *Overrides) Reason() string { return o.reason }

// Setting is a name and a value, for SHOW.
type Setting struct{ Name, Value string }

// Limits are the limits a session may change, as the rule has them, in words:
// "10000", "16 MiB", "30s", "none".
func (r Rule) Limits() []Setting {
	settings := make([]Setting, len(limits))
	for i, lim := range limits {
		settings[i] = Setting{lim.name, lim.format(lim.get(&r))}
	}
	return settings
}

// looserLimit reports whether v allows more than old; 0 is no limit at all.
func looserLimit(v, old int64) bool {
	return old != 0 && (v == 0 || v > old)
}

func parseRows(s string) (int64, bool) {
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil && n >= 0
}

func formatRows(n int64) string {
	if n == 0 {
		return "none"
	}
	return strconv.FormatInt(n, 10)
}

// byteUnits are PostgreSQL's, each a power of 1024, and their long names.
var byteUnits = map[string]int64{
	"": 1, "B": 1,
	"kB": 1 << 10, "KiB": 1 << 10,
	"MB": 1 << 20, "MiB": 1 << 20,
	"GB": 1 << 30, "GiB": 1 << 30,
}

func parseBytes(s string) (int64, bool) {
	digits := strings.TrimRightFunc(s, func(c rune) bool { return c < '0' || c > '9' })
	factor, known := byteUnits[strings.TrimSpace(s[len(digits):])]
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 || !known || n > math.MaxInt64/factor {
		return 0, false
	}
	return n * factor, true
}

func parseTimeout(s string) (int64, bool) {
	d, err := parseDuration(s, time.Millisecond)
	return d.Milliseconds(), err == nil
}

// Clone returns a copy that can be changed by itself.
func (o *Overrides) Clone() Overrides {
	c := *o
	c.limits = maps.Clone(o.limits)
	return c
}

func formatTimeout(millis int64) string {
	return formatDuration(time.Duration(millis) * time.Millisecond)
}

// LiftHint says how a session comes to a limit of need, in rows, bytes or
// milliseconds: by a SET of exactly that size for those who may, and for all
// others whom to ask.
func (r Rule) LiftHint(name string, need int64) string {
	lim, ok := limitNamed(name)
	switch {
	case !ok:
		return r.Ask()
	case r.MayLift:
		return fmt.Sprintf("SET pgproxy.%s = %s raises it for this session.", name, settingLiteral(lim.format(need)))
	}
	return fmt.Sprintf("%s over %s needs may_lift in your rule. %s", name, lim.format(lim.get(&r)), r.Ask())
}

// settingLiteral is a value as SET takes it.
func settingLiteral(value string) string {
	if _, err := strconv.ParseInt(value, 10, 64); err == nil {
		return value
	}
	return QuoteLiteral(value)
}

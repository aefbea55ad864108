package wire

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"pgproxy/policy"
)

// admitSettings judges settings given at connect as the SET of the same name
// and value. Those of the proxy's own take effect here, and first: the others may
// need the reason.
func (s *session) admitSettings(asked []setting) (map[string]string, *sessionError) {
	slices.SortStableFunc(asked, func(a, b setting) int { return cmp.Compare(a.place(), b.place()) })
	admitted := make(map[string]string, len(asked))
	for _, a := range asked {
		name := strings.ToLower(a.name)
		if !utf8.ValidString(a.name) || !utf8.ValidString(a.value) {
			return nil, fatal(codeBadEncoding, "pgproxy: a startup parameter is not valid UTF-8", reasonRefused)
		}
		if isStartupWord(name) {
			return nil, fatal(codeUndefinedObject, fmt.Sprintf("unrecognized configuration parameter %q", a.name), reasonRefused)
		}
		if name == quietSetting {
			s.talk.quiet = s.talk.quiet || isOn(a.value)
			continue
		}
		if own, ok := strings.CutPrefix(name, "pgproxy."); ok {
			if actsByTyping[own] {
				return nil, fatal(codeInsufficientPriv, fmt.Sprintf("pgproxy: %s cannot be given at connect", name), reasonRefused).
					withHint("SET it in the session: it is meant to be typed.")
			}
			if r := s.lift("SET", own, a.value); r != nil {
				return nil, s.refusal(r)
			}
			continue
		}
		if name == "client_encoding" && isUTF8(a.value) {
			continue // pinned upstream
		}
		if r := s.judgeSetting(a); r != nil {
			e := s.refusal(r)
			e.position = 0
			return nil, e
		}
		admitted[name] = a.value
	}
	return admitted, nil
}

// place is 0 for one of the proxy's own settings, and 1 for any other.
func (a setting) place() int {
	if strings.HasPrefix(strings.ToLower(a.name), "pgproxy.") {
		return 0
	}
	return 1
}

// actsByTyping are the settings of the proxy's own whose SET is an act of a person.
var actsByTyping = map[string]bool{"access": true, "approve": true, "refuse": true}

// quietSetting turns the login NOTICE off, for people's own scripts:
// PGOPTIONS='-c pgproxy.quiet=on'.
const quietSetting = "pgproxy.quiet"

// isOn knows PostgreSQL's words for true.
func isOn(value string) bool {
	switch strings.ToLower(value) {
	case "on", "true", "yes", "1", "t", "y":
		return true
	}
	return false
}

// isStartupWord reports whether a name, in lower case, means something of its
// own in a startup message, whose parameters are settings otherwise. Passed on
// as a setting, "options" would be read by the server as switches that nobody
// has judged.
func isStartupWord(name string) bool {
	switch name {
	case "user", "database", "options", "replication":
		return true
	}
	return strings.HasPrefix(name, "_pq_.")
}

// isUTF8 reports whether a client_encoding can be had. SQL_ASCII is what a
// client in the C locale asks for: it takes the bytes as they come, and they
// come in UTF-8.
func isUTF8(encoding string) bool {
	var name strings.Builder
	for _, r := range strings.ToLower(encoding) {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			name.WriteRune(r)
		}
	}
	switch name.String() {
	case "utf8", "unicode", "sqlascii":
		return true
	}
	return false
}

func (s *session) judgeSetting(a setting) *policy.Refusal {
	parts := strings.Split(a.name, ".")
	for i, part := range parts {
		parts[i] = policy.QuoteIdentifier(part)
	}
	msg, err := s.srv.Judge.Parse(s.ctx, "SET "+strings.Join(parts, ".")+" TO "+policy.QuoteLiteral(a.value))
	if err != nil {
		return &policy.Refusal{Code: codeUndefinedObject, Message: fmt.Sprintf("unrecognized configuration parameter %q", a.name), Rule: "parse"}
	}
	rule, reason := s.ruling.both()
	d := policy.Decide(s.ctx, &rule, msg, policy.Session{Reason: reason})
	if d.Refusal != nil {
		r := *d.Refusal
		if !strings.Contains(r.Message, a.name) {
			r.Message += fmt.Sprintf(" (%s, given at connect)", a.name)
		}
		return &r
	}
	return nil
}

// splitOptions splits the startup message's options as pg_split_opts does
// (postinit.c): white space separates, a backslash takes the next character
// as it is.
func splitOptions(s string) []string {
	var args []string
	var arg strings.Builder
	inside := false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\' && i+1 < len(s):
			i++
			arg.WriteByte(s[i])
			inside = true
		case strings.IndexByte(" \t\n\v\f\r", c) >= 0:
			if inside {
				args = append(args, arg.String())
				arg.Reset()
				inside = false
			}
		default:
			arg.WriteByte(c)
			inside = true
		}
	}
	if inside {
		args = append(args, arg.String())
	}
	return args
}

// parseOptions reads the settings out of the startup message's options: -c
// name=value, -cname=value and --name=value. Any other switch is refused by
// its name.
func parseOptions(options string) ([]setting, *sessionError) {
	var settings []setting
	args := splitOptions(options)
	for i := 0; i < len(args); i++ {
		arg := args[i]
		var pair string
		switch {
		case arg == "-c" && i+1 < len(args):
			i++
			pair = args[i]
		case strings.HasPrefix(arg, "-c") && len(arg) > 2:
			pair = arg[2:]
		case strings.HasPrefix(arg, "--") && len(arg) > 2:
			pair = arg[2:]
		default:
			return nil, optionError(arg)
		}
		name, value, ok := strings.Cut(pair, "=")
		if !ok || name == "" {
			return nil, optionError(arg)
		}
		name = strings.ReplaceAll(name, "-", "_") // ParseLongOption, guc.c
		settings = append(settings, setting{name, value})
	}
	return settings, nil
}

func optionError(arg string) *sessionError {
	return fatal(codeInsufficientPriv, fmt.Sprintf("pgproxy: option %q is not accepted", arg), reasonProtocol).
		withHint("In PGOPTIONS, pgproxy accepts -c name=value, for settings that the same SET would be allowed to change.")
}

package exchange

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"pgproxy/policy"
	"pgproxy/wire/frame"
)

// parserSettings are watched for everybody: with another value of these the
// server reads a statement's text differently from pgproxy.
var parserSettings = []string{"client_encoding", "standard_conforming_strings"}

// protectedSettings belong to pgproxy at every access but admin, and the server
// tells their values when it is asked.
var protectedSettings = []string{
	"application_name", "pgproxy.user", "pgproxy.node", "pgproxy.session",
	"session_authorization", "role", "session_replication_role",
	"default_transaction_read_only", "transaction_read_only",
	"statement_timeout", "idle_in_transaction_session_timeout",
	"track_counts", "track_activities", "client_connection_check_interval",
	"log_statement", "log_duration", "log_min_messages", "log_min_error_statement", "log_min_duration_statement",
	"zero_damaged_pages", "ignore_checksum_failure", "allow_system_table_mods",
}

// reportedSettings are those that the server reports by itself, at the end of a
// message that has changed one (ParameterStatus).
var reportedSettings = []string{"application_name", "default_transaction_read_only", "session_authorization", "is_superuser"}

// settingsQuestion asks for protectedSettings and parserSettings.
var settingsQuestion = func() string {
	var columns []string
	for _, name := range asked() {
		columns = append(columns, "pg_catalog.current_setting("+policy.QuoteLiteral(name)+", true)")
	}
	return "SELECT " + strings.Join(columns, ", ")
}()

// settingsShown asks for the same by SHOW, which takes no snapshot: inside of a
// transaction of the client's, SET TRANSACTION ISOLATION LEVEL must still be
// possible, and a snapshot not be older than its first query.
var settingsShown = func() string {
	var texts []string
	for _, name := range asked() {
		class, own, dotted := strings.Cut(name, ".")
		if name = policy.QuoteIdentifier(class); dotted {
			name += "." + policy.QuoteIdentifier(own)
		}
		texts = append(texts, "SHOW "+name)
	}
	return strings.Join(texts, ";")
}()

func asked() []string { return slices.Concat(protectedSettings, parserSettings) }

// settings is what is known of the server's settings that belong to pgproxy,
// against what they should be.
type settings struct {
	want    map[string]string // by name
	differs map[string]string // those that differ, as last told
	// known says that want has the values of those that the server does not
	// report, from before anything could change them.
	known bool
	// before are the values that pgproxy's own SET inside of the open
	// transaction has replaced. A rollback brings them back; the RELEASE of a
	// savepoint brings transaction_read_only back, too.
	before map[string]string

	// What the server was last told to keep.
	readOnly bool
	// writable says that at read access transactions may write: see OpenWrites.
	writable        bool
	admin           bool // an admin may have changed what nobody else may
	timeout, idleTx time.Duration

	// open says that a message was not checked; see run.wantsCheck.
	open bool
	// atCommit says that the open transaction has run what may act once more at
	// its COMMIT: deferred triggers, and cursors WITH HOLD.
	atCommit  bool
	checkedAt time.Time
	recent    [8]*policy.Message // the last ones that were checked
	next      int
}

// begin takes the values that the session starts with: the startup message's,
// and what the server has reported.
func (s *settings) begin(rule policy.Rule, startup, reported map[string]string) {
	s.want = make(map[string]string)
	for _, name := range []string{"pgproxy.user", "pgproxy.node", "pgproxy.session"} {
		if v, ok := startup[name]; ok {
			s.want[name] = v
		}
	}
	for _, name := range slices.Concat(parserSettings, reportedSettings) {
		if v, ok := reported[name]; ok {
			s.want[name] = v
		}
	}
	s.readOnly, s.admin = rule.Access == policy.Read, rule.Access == policy.Admin
	s.timeout, s.idleTx = rule.StatementTimeout, rule.IdleInTransactionTimeout
}

// question asks for the settings. inTx says that it may run inside of a
// transaction of the client's.
func (s *settings) question(inTx bool) string {
	if inTx {
		return settingsShown
	}
	return settingsQuestion
}

// narrowed reports whether the open transaction was made read-only while it was
// open.
func (s *settings) narrowed() bool { return s.before["transaction_read_only"] != "" }

// note takes the body of a ParameterStatus.
func (s *settings) note(body []byte) {
	name, rest, ok := frame.CString(body)
	if !ok || !slices.Contains(reportedSettings, name) && !slices.Contains(parserSettings, name) {
		return
	}
	value, _, _ := frame.CString(rest)
	s.see(name, value)
}

// see takes the value of a setting.
func (s *settings) see(name, value string) {
	want, watched := s.want[name]
	if !watched {
		return
	}
	if before, ours := s.before[name]; ours && value == before && value != want {
		// A rollback has undone pgproxy's own SET, which follow repeats.
		delete(s.before, name)
		s.want[name], want = before, before
		s.readOnly = before == "on"
	}
	if value == want {
		delete(s.differs, name)
		return
	}
	s.differ(name, value)
}

func (s *settings) differ(name, value string) {
	if s.differs == nil {
		s.differs = make(map[string]string)
	}
	s.differs[name] = value
}

// take takes the answer to the question, asked behind a message (nil for none).
func (s *settings) take(rows [][]string, msg *policy.Message) {
	names := asked()
	values := slices.Concat(rows...) // one row, or one for each SHOW
	if len(values) != len(names) {
		return
	}
	for i, name := range names {
		value := values[i]
		switch {
		case name == "transaction_read_only":
			s.seeReadOnly(value)
		case timeoutSetting(name): // whether it may be so depends on the rule
			s.differ(name, value)
		default:
			if _, wanted := s.want[name]; !wanted && !s.known {
				s.want[name] = value
			}
			s.see(name, value)
		}
	}
	s.known, s.open = true, false
	if msg != nil {
		s.checkedAt = time.Now()
		s.recent[s.next] = msg
		s.next = (s.next + 1) % len(s.recent)
	}
}

// seeReadOnly takes the open transaction's mode. Where transactions are
// read-only, the one that is open is.
func (s *settings) seeReadOnly(value string) {
	delete(s.want, "transaction_read_only")
	delete(s.differs, "transaction_read_only")
	if s.readOnly {
		s.want["transaction_read_only"] = "on"
		s.see("transaction_read_only", value)
	}
}

// tampered are the settings that differ and that nobody under rule may change.
// A timeout may be made stricter.
func (s *settings) tampered(rule *policy.Rule) []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(s.differs)) {
		if rule.Access == policy.Admin && !slices.Contains(parserSettings, name) {
			continue
		}
		if timeoutSetting(name) && rule.TimeoutWithin(name, s.differs[name]) {
			continue
		}
		names = append(names, name)
	}
	return names
}

func timeoutSetting(name string) bool {
	return name == "statement_timeout" || name == "idle_in_transaction_session_timeout"
}

// Timeout is the value of one of the two timeouts that belong to pgproxy, as
// the server has told it last; "" for another setting, and where it has not.
func (b *Backend) Timeout(name string) string {
	if !timeoutSetting(name) {
		return ""
	}
	return b.settings.differs[name]
}

// putBack is the statement that gives a setting its value back.
func (s *settings) putBack(name string, rule *policy.Rule) string {
	switch name {
	case "session_authorization":
		return "RESET SESSION AUTHORIZATION"
	case "is_superuser": // by either of the two
		return "RESET SESSION AUTHORIZATION; RESET ROLE"
	case "transaction_read_only":
		return "SET TRANSACTION READ ONLY"
	case "statement_timeout":
		return "SET statement_timeout TO " + Millis(rule.StatementTimeout)
	case "idle_in_transaction_session_timeout":
		return "SET idle_in_transaction_session_timeout TO " + Millis(rule.IdleInTransactionTimeout)
	}
	if class, own, ok := strings.Cut(name, "."); ok {
		return "SET " + class + "." + policy.QuoteIdentifier(own) + " TO " + policy.QuoteLiteral(s.want[name])
	}
	return "SET " + name + " TO " + policy.QuoteLiteral(s.want[name])
}

// Millis is a timeout as the server takes it: whole milliseconds, at least one,
// since 0 means none there.
func Millis(d time.Duration) string {
	ms := d.Milliseconds()
	if d > 0 {
		ms = max(ms, 1)
	}
	return strconv.FormatInt(ms, 10)
}

// Restore makes the server's settings what they should be before a message is
// sent: those that were changed behind pgproxy's back are put back, and those
// that follow from the rule follow it when it has changed. Inside of a failed
// transaction nothing can be set, and nothing can be done either.
func (b *Backend) Restore(rule *policy.Rule, ownTimeout *bool) error {
	if b.status == 'E' {
		return nil
	}
	s := &b.settings
	if s.admin && rule.Access != policy.Admin {
		if err := b.endAdmin(ownTimeout); err != nil {
			return err
		}
	}
	if names := s.tampered(rule); len(names) > 0 {
		if err := b.putBack(names, rule, b.set); err != nil {
			return err
		}
	}
	return b.follow(rule, *ownTimeout, b.set)
}

// endAdmin looks for what an admin has made of the session: it does not outlive
// being one. What is found is put back like any other change.
func (b *Backend) endAdmin(ownTimeout *bool) error {
	for _, sql := range []string{"RESET SESSION AUTHORIZATION", "RESET ROLE"} {
		if err := b.set(sql); err != nil {
			return err
		}
	}
	r, err := b.execute(b.settings.question(b.status == 'T'))
	if err != nil {
		return err
	}
	if r.failure != nil {
		return fmt.Errorf("%w: %s", ErrNotRestored, r.failure.Message)
	}
	b.settings.take(r.rows, nil)
	if b.status == 'I' { // what is set inside of a transaction may be rolled back with it
		*ownTimeout = false
		b.settings.admin = false
	}
	return nil
}

// putBack puts settings back, by running each statement with set.
func (b *Backend) putBack(names []string, rule *policy.Rule, set func(string) error) error {
	s := &b.settings
	for _, name := range names {
		if err := set(s.putBack(name, rule)); err != nil {
			return err
		}
		if !slices.Contains(reportedSettings, name) && !slices.Contains(parserSettings, name) {
			delete(s.differs, name) // the server would have refused it
		}
		if _, still := s.differs[name]; still {
			return fmt.Errorf("%w: %s", ErrNotRestored, name)
		}
	}
	return nil
}

// follow tells the server what follows from the rule.
func (b *Backend) follow(rule *policy.Rule, ownTimeout bool, set func(string) error) error {
	s := &b.settings
	if b.status == 'I' {
		s.before = nil
	}
	if readOnly := rule.Access == policy.Read && !(s.writable && rule.Allow != nil); readOnly != s.readOnly {
		if err := b.setReadOnly(readOnly, set); err != nil {
			return err
		}
	}
	s.admin = s.admin || rule.Access == policy.Admin
	if b.status != 'I' {
		return nil // what is set inside of a transaction may be rolled back with it
	}
	if rule.StatementTimeout != s.timeout && !ownTimeout {
		if err := set("SET statement_timeout TO " + Millis(rule.StatementTimeout)); err != nil {
			return err
		}
		s.timeout = rule.StatementTimeout
		delete(s.differs, "statement_timeout")
	}
	if rule.IdleInTransactionTimeout != s.idleTx {
		if err := set("SET idle_in_transaction_session_timeout TO " + Millis(rule.IdleInTransactionTimeout)); err != nil {
			return err
		}
		s.idleTx = rule.IdleInTransactionTimeout
		delete(s.differs, "idle_in_transaction_session_timeout")
	}
	return nil
}

// setReadOnly makes transactions read-only, or lets them write. The one that is
// open is made read-only, too.
func (b *Backend) setReadOnly(readOnly bool, set func(string) error) error {
	s := &b.settings
	value := "off"
	if readOnly {
		value = "on"
	}
	const name = "default_transaction_read_only"
	if b.status == 'T' {
		if s.before == nil {
			s.before = make(map[string]string)
		}
		if _, known := s.before[name]; !known {
			s.before[name] = s.want[name]
		}
		if readOnly {
			s.before["transaction_read_only"] = "off"
		}
	}
	if _, watched := s.want[name]; watched {
		s.want[name] = value
	}
	sql := "SET default_transaction_read_only TO " + value
	if readOnly && b.status == 'T' {
		sql += "; SET TRANSACTION READ ONLY"
	}
	if err := set(sql); err != nil {
		return err
	}
	s.readOnly = readOnly
	return nil
}

// OpenWrites lets the server take writes at read access, where the rule allows
// some, from statements that it allows, and in transactions that the client
// begins, which may come to those.
func (b *Backend) OpenWrites(rule *policy.Rule, open bool) error {
	s := &b.settings
	open = open && rule.Access == policy.Read && rule.Allow != nil
	if open == s.writable || b.status != 'I' {
		return nil
	}
	s.writable = open
	return b.follow(rule, true, b.set)
}

// set runs a SET of pgproxy's own, as an internal query.
func (b *Backend) set(sql string) error {
	r, err := b.execute(b.outside(sql))
	if err != nil {
		return err
	}
	return b.wasSet(sql, r)
}

// outside is a SET behind the guard's savepoint, which is released: at the end
// of a subtransaction the server takes back whether it was read-only.
func (b *Backend) outside(sql string) string {
	if b.saved && b.status == 'T' {
		return "RELEASE SAVEPOINT " + b.savepoint + "; " + sql
	}
	return sql
}

func (b *Backend) wasSet(sql string, r *reply) error {
	if r.failure == nil {
		b.saved = false
		return nil
	}
	if err := b.session.Ended(); err != nil {
		return err // and what has failed was cancelled for it
	}
	return fmt.Errorf("%w: %s: %s", ErrNotRestored, sql, r.failure.Message)
}

// setNow is set in the middle of a message: the session is in the gate.
func (b *Backend) setNow(sql string) error {
	r, err := b.roundTrip(b.outside(sql))
	if err != nil {
		return err
	}
	b.session.Send(r.async)
	return b.wasSet(sql, r)
}

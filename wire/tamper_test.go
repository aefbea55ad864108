package wire

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgproxy/policy"
	"pgproxy/upstream/upstreamtest"
	"pgproxy/wire/audit"
)

// tampered are the settings that were recorded as changed.
func (r *records) tampered() []string {
	var names []string
	for _, rec := range r.all() {
		if rec.Event == audit.Tamper {
			names = append(names, rec.Tampered)
		}
	}
	return names
}

// sneaky makes a function and a view that change settings out of the verdict's
// sight: nothing in the text of a statement that uses them tells of it.
func sneaky(t *testing.T, pg *upstreamtest.Server) {
	t.Helper()
	pg.Exec(t, `DROP SCHEMA IF EXISTS sneaky CASCADE; CREATE SCHEMA sneaky; GRANT USAGE ON SCHEMA sneaky TO PUBLIC;
		CREATE FUNCTION sneaky.put(name text, value text, local bool DEFAULT false) RETURNS text LANGUAGE sql SECURITY DEFINER
			AS $$ SELECT pg_catalog.set_config(name, value, local) $$;
		CREATE FUNCTION sneaky.raw(name text, value text) RETURNS text LANGUAGE plpgsql
			AS $$ BEGIN EXECUTE format('SET %s TO %L', name, value); RETURN value; END $$;
		CREATE TABLE sneaky.done (id int); GRANT ALL ON sneaky.done TO PUBLIC;
		CREATE FUNCTION sneaky.wipe() RETURNS int LANGUAGE sql AS $$ INSERT INTO sneaky.done VALUES (1) RETURNING id $$;
		CREATE VIEW sneaky.v AS SELECT sneaky.put('statement_timeout', '0') AS v; GRANT SELECT ON sneaky.v TO PUBLIC;
		CREATE TABLE sneaky.plain AS SELECT 1 AS id; GRANT SELECT ON sneaky.plain TO PUBLIC`)
}

// Settings that the server does not report are asked for behind a message that
// may have changed one. A change is recorded, and put back before the next
// message.
func TestUnreportedSettings(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	for _, major := range []int{15, 18} {
		t.Run(fmt.Sprintf("PostgreSQL %d", major), func(t *testing.T) {
			pg := startMajor(t, major)
			sneaky(t, pg)
			for _, tt := range []struct{ name, sql, show, want string }{
				{"statement_timeout", "SELECT sneaky.raw('statement_timeout', '0')", "SHOW statement_timeout", "30s"},
				{"statement_timeout", "SELECT * FROM sneaky.v", "SHOW statement_timeout", "30s"},
				{"statement_timeout", "PREPARE p AS SELECT * FROM sneaky.v; EXECUTE p", "SHOW statement_timeout", "30s"},
				{"statement_timeout", "BEGIN; DECLARE c CURSOR FOR SELECT * FROM sneaky.v; FETCH c; COMMIT", "SHOW statement_timeout", "30s"},
				{"idle_in_transaction_session_timeout", "SELECT sneaky.raw('idle_in_transaction_session_timeout', '1h')", "SHOW idle_in_transaction_session_timeout", "30s"},
				{"pgproxy.user", "SELECT sneaky.raw('pgproxy.\"user\"', 'mallory@example.com')", "SELECT current_setting('pgproxy.user')", "alice@example.com"},
				{"pgproxy.session", "SELECT sneaky.raw('pgproxy.session', 'x')", "SELECT length(current_setting('pgproxy.session'))", "12"},
				{"role", "SELECT sneaky.raw('role', 'pg_monitor')", "SHOW role", "none"},
				{"track_activities", "SELECT sneaky.put('track_activities', 'off')", "SHOW track_activities", "on"},
				{"track_counts", "SELECT sneaky.put('track_counts', 'off')", "SHOW track_counts", "on"},
				{"session_replication_role", "SELECT sneaky.put('session_replication_role', 'replica')", "SHOW session_replication_role", "origin"},
				{"log_statement", "SELECT sneaky.put('log_statement', 'none')", "SHOW log_statement", "none"},
				{"client_connection_check_interval", "SELECT sneaky.put('client_connection_check_interval', '0')", "SHOW client_connection_check_interval", "10s"},
			} {
				if tt.name == "log_statement" {
					continue // it is none already
				}
				t.Run(tt.name+" "+tt.sql[:min(len(tt.sql), 20)], func(t *testing.T) {
					p := startProxyTo(t, pg.SocketDSN("postgres", "app"))
					c := p.login(t)
					c.query(tt.sql)
					if got := p.records.tampered(); !slices.Contains(got, tt.name) {
						t.Errorf("recorded %q", got)
					}
					c.wantPart(tt.show, "D("+tt.want+")")
					c.want("SELECT 1", "D(1) C(SELECT 1) Z(I)")
					// Another role is another is_superuser, too.
					if got := p.records.tampered(); len(got) != 1 && tt.name != "role" {
						t.Errorf("put back, and recorded %q", got)
					}
				})
			}
		})
	}
}

// What a message changes and puts back by itself is seen where it matters: at
// the end of a transaction in its middle, before its next part.
func TestSettingsBetweenParts(t *testing.T) {
	pg := upstreamtest.Shared(t)
	sneaky(t, pg)
	p := startProxyTo(t, pg.SocketDSN("postgres", "app"), withRule(func(r *policy.Rule) { r.Access = policy.Read }))
	for _, sql := range []string{
		"SELECT sneaky.put('default_transaction_read_only', 'off'); COMMIT; SELECT sneaky.wipe(); SELECT sneaky.put('default_transaction_read_only', 'on')",
		"BEGIN; SELECT sneaky.put('default_transaction_read_only', 'off'); COMMIT; SELECT sneaky.wipe(); SELECT sneaky.put('default_transaction_read_only', 'on')",
		"SELECT sneaky.put('default_transaction_read_only', 'off'); COMMIT; BEGIN; SELECT sneaky.wipe(); COMMIT; SELECT sneaky.put('default_transaction_read_only', 'on')",
	} {
		c := p.login(t)
		c.wantPart(sql, "E(25006 ")
		c.query("ROLLBACK")
		c.wantPart("SHOW default_transaction_read_only", "D(on)")
	}
	holds(t, "SELECT count(*) FROM sneaky.done", "0")
	if got := p.records.tampered(); !slices.Contains(got, "default_transaction_read_only") {
		t.Errorf("recorded %q", got)
	}
}

// A cursor WITH HOLD and a deferred trigger run what they hold at COMMIT, which
// may come by itself.
func TestSettingsAtCommit(t *testing.T) {
	pg := upstreamtest.Shared(t)
	sneaky(t, pg)
	pg.Exec(t, `CREATE FUNCTION sneaky.trigger() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM sneaky.put('track_counts', 'off'); RETURN NEW; END $$;
		CREATE CONSTRAINT TRIGGER late AFTER INSERT ON sneaky.done DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION sneaky.trigger()`)
	for _, sql := range []string{
		"DECLARE c CURSOR WITH HOLD FOR SELECT sneaky.put('track_counts', 'off')",
		"INSERT INTO sneaky.done VALUES (2)",
	} {
		p := startProxyTo(t, pg.SocketDSN("postgres", "app"))
		c := p.login(t)
		c.query("BEGIN")
		c.wantPart(sql, "Z(T)")
		c.wantPart("SELECT 1", "Z(T)")
		if got := p.records.tampered(); got != nil {
			t.Errorf("%s: recorded %q before COMMIT", sql, got)
		}
		c.wantPart("COMMIT", "C(COMMIT) Z(I)")
		if got := p.records.tampered(); !slices.Equal(got, []string{"track_counts"}) {
			t.Errorf("%s: recorded %q", sql, got)
		}
		c.wantPart("SHOW track_counts", "D(on)")
	}
}

// The stamp and the user's name, forged and put back by one message.
func TestStampBetweenParts(t *testing.T) {
	pg := upstreamtest.Shared(t)
	sneaky(t, pg)
	p := startProxyTo(t, pg.SocketDSN("postgres", "app"))
	c := p.login(t)
	got := c.query("SELECT sneaky.raw('application_name', 'psql'); COMMIT; SELECT current_setting('application_name'); SELECT sneaky.raw('application_name', 'x'); COMMIT; SELECT 1")
	if !strings.Contains(got, "D(go-proxy tsnode=alice-laptop|user=alice@example.com)") {
		t.Errorf("got %s", got)
	}
	if n := len(p.records.tampered()); n != 2 {
		t.Errorf("recorded %d times", n)
	}
}

// A text that reads what may be a view is not checked again at once when it
// comes again; what it did is recorded by the end of the session.
func TestRepeatedReads(t *testing.T) {
	pg := upstreamtest.Shared(t)
	sneaky(t, pg)
	p := startProxyTo(t, pg.SocketDSN("postgres", "app"))
	c := p.login(t)
	for range 20 {
		c.want("SELECT id FROM sneaky.plain", "D(1) C(SELECT 1) Z(I)")
	}
	pg.Exec(t, "DROP TABLE sneaky.plain; CREATE VIEW sneaky.plain AS SELECT CASE sneaky.put('statement_timeout', '0') WHEN '0' THEN 1 END AS id; GRANT SELECT ON sneaky.plain TO PUBLIC")
	c.want("SELECT id FROM sneaky.plain", "D(1) C(SELECT 1) Z(I)")
	c.leave()
	p.records.event(t, audit.Disconnect)
	if got := p.records.tampered(); !slices.Equal(got, []string{"statement_timeout"}) {
		t.Errorf("recorded %q", got)
	}
}

// Nothing is asked for what can change nothing, and one query is enough for what
// might.
func TestChecksAreFew(t *testing.T) {
	pg := upstreamtest.Shared(t)
	sneaky(t, pg)
	var conn tap
	p := startProxyTo(t, pg.SocketDSN("postgres", "app"), tapped(&conn))
	c := p.login(t)
	for _, sql := range []string{"SELECT 1", "SHOW work_mem", "BEGIN", "SELECT now(), length('x')", "ROLLBACK"} {
		before := conn.written.Load()
		c.query(sql)
		if n := conn.written.Load() - before; n > int64(len(sql))+6 && sql != "ROLLBACK" {
			t.Errorf("%s: %d bytes were sent", sql, n)
		}
	}
}

// Rules that change while a transaction is open, and a rollback that undoes what
// pgproxy has set in it, are no tampering.
func TestRuleChangeIsNoTampering(t *testing.T) {
	freshCaps(t)
	for _, end := range []string{"ROLLBACK", "COMMIT", "ROLLBACK AND CHAIN"} {
		t.Run(end, func(t *testing.T) {
			var rules narrow
			p := startProxy(t, rules.serve)
			c := p.login(t)
			c.query("SELECT caps.put(1)")
			c.query("BEGIN; SELECT * FROM caps.t")
			rules.read.Store(true)
			p.Recheck(t.Context())
			c.wantPart("SELECT 1", "D(1)", "Z(T)")
			c.query(end)
			c.query("ROLLBACK")
			c.wantPart("SELECT caps.put(2)", "E(25006")
			c.query("ROLLBACK")
			rules.read.Store(false)
			p.Recheck(t.Context())
			c.wantPart("SELECT caps.put(3)", "D(3)", "Z(I)")
			if got := p.records.tampered(); got != nil {
				t.Errorf("recorded %q", got)
			}
		})
	}
}

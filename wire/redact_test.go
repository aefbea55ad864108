package wire

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"pgproxy/policy"
	"pgproxy/wire/audit"
)

// spill connects in all the ways in which a secret can come along, and says it
// in all kinds of statements: "hunter" is a part of each.
func spill(t *testing.T, p *proxy) {
	for _, params := range [][]string{
		{"database", "x?password=hunter2"},
		{"database", "postgres://u:hun/hunter2@h/db"},
		{"options", "-c pgproxy.max_rows=hunter2"},
		{"options", "-c pgproxy.max_rows=password=hunter2"},
		{"options", "-c pgproxy.pasword=hunter2"},
		{"options", "--password=hunter2"},
		{"options", "-Wpassword=hunter2"},
		{"options", "-c my.password=hunter2 -c pgproxy.reason=x"},
		{"DateStyle", "password=hunter2"},
	} {
		c := p.dial(t, "127.0.0.1")
		c.send(startupPacket(protocol3, append([]string{"user", "token=hunter2", "application_name", "api_key=hunter2"}, params...)...))
		c.ended()
	}
	c := p.login(t, "user", "postgres://u:hun/hunter2@h", "database", "app", "application_name", "psql password=hunter2",
		"options", "-c pgproxy.reason=INC-123:\\ password=hunter2")
	for _, sql := range []string{
		"SET pgproxy.reason = 'INC-124 postgres://u:hun/hunter2@h/db'",
		"SET pgproxy.reason = 'the password is hunter2'",
		"SET pgproxy.password = 'hunter2'",
		"SET pgproxy.max_rows = 'token=hunter2'",
		"SET pgproxy.statement_timeout = 'postgres://u:hun/hunter2@h/db'",
		"RESET pgproxy.\"password=hunter2\"",
		"SHOW pgproxy.\"password=hunter2\"",
		"PREPARE up(text) AS UPDATE pg_temp.users SET password = $1",
		"EXECUTE up('hunter2')",
		"CREATE TEMP TABLE users (name text, password text)",
		"PREPARE up(text) AS UPDATE pg_temp.users SET password = $1",
		"EXECUTE up('hunter2')",
		"EXPLAIN ANALYZE EXECUTE up('hunter2')",
		"EXECUTE upp('hunter2')",
		"SELECT 'postgres://u:hun/hunter2@h/db'",
		"SELECT 'postgres://u:hun/hunter2@h/db'::int",
		"SELECT (E'{\"password\": \"hunter2\"').x FROM nowhere",
		"ALTER ROLE bob PASSWORD 'hunter2'",
		"ALTER ROLE bob PASSWORD hunter2",
		"DO $$ BEGIN RAISE EXCEPTION 'no luck with password=%', 'hun' || 'ter2'; END $$",
		"CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no luck with %', 'postgres://u:hun/hun' || 'ter2@h/db'; END $$",
		"SELECT pg_temp.f()",
		"SELECT 'hunter2', '" + strings.Repeat("x", 2*deniedSQL) + "' AS password FROM",
	} {
		c.query(sql)
	}
	p.Kill(reaper(), p.infoOf(t, c).ID)
	c.ended()
	p.disconnected(t, reasonKilled)
}

// TestNoSecretIsRecorded requires that records, the log, and what is kept for
// those who look on show no secret, whatever the client does with it. With
// -audit-sql full statements are as they came, and nothing else.
func TestNoSecretIsRecorded(t *testing.T) {
	for name, how := range map[string]policy.Redaction{"redacted": policy.Redacted, "normalized": policy.Normalized, "full": policy.Full} {
		t.Run(name, func(t *testing.T) {
			p := startProxy(t, withRule(func(r *policy.Rule) { r.Access = policy.Admin }), func(srv *Server) { srv.Redaction = how })
			spill(t, p)
			lifts := 0
			for _, rec := range p.records.all() {
				switch {
				case rec.Event == audit.Lift:
					lifts++
				case rec.Event != audit.Refuse && !strings.HasPrefix(rec.Reason, "INC-12") && !strings.HasPrefix(rec.Reason, "the password is"):
					t.Errorf("the %s record has the reason %q", rec.Event, rec.Reason)
				}
				if how == policy.Full && rec.SQL != "" {
					rec.SQL, rec.Error = "", policy.RedactError(policy.Redacted, rec.SQLState, rec.Error, "", "")
				}
				wantNoSecret(t, "a record", rec)
			}
			if lifts < 8 {
				t.Errorf("%d lift records", lifts)
			}
			for _, past := range p.History() {
				if how == policy.Full {
					past.SQL, past.Error = "", policy.RedactError(policy.Redacted, past.SQLState, past.Error, "", "")
				}
				wantNoSecret(t, "the history", past)
			}
			wantNoSecret(t, "the log", p.log.String())
		})
	}
}

func wantNoSecret(t *testing.T, where string, what any) {
	t.Helper()
	b, err := json.Marshal(what)
	if err != nil {
		t.Fatal(err)
	}
	if text := string(b); strings.Contains(text, "hunter") {
		i := strings.Index(text, "hunter")
		t.Errorf("%s has a secret: %s", where, text[max(0, i-400):min(len(text), i+100)])
	}
}

// TestDeniedHead requires that of a long statement that is refused no more than
// its head is kept, with the length and the hash of all of it.
func TestDeniedHead(t *testing.T) {
	p := startProxy(t)
	c := p.login(t)
	pad := strings.Repeat("é", 100_000)
	for i, tt := range []struct {
		name, sql string
		head      string
		hashed    bool
	}{
		{"refused", "DROP TABLE t; SELECT '" + pad + "'", "DROP TABLE t; SELECT '" + pad, true},
		{"refused, with a secret", "ALTER ROLE bob PASSWORD 'hunter2'; SELECT '" + pad + "'", "ALTER ROLE bob PASSWORD '[masked]'; SELECT '" + pad, true},
		{"unreadable", "DROPP TABLE " + pad, "DROPP TABLE " + pad, true},
		{"unreadable, with literals", "SELEC 'x', " + pad, "SELEC '[masked]', " + pad, false},
		{"unreadable, with a secret", "SELEC 'hunter2', " + pad + ", password", "[masked: ", false},
	} {
		c.wantPart(tt.sql, "E(42", "Z(I)")
		rec := p.records.await(t, tt.name, func(r audit.Record) bool { return r.Event == audit.Query && r.Seq == int64(i+1) })
		if !strings.HasPrefix(tt.head, rec.SQL) && !strings.HasPrefix(rec.SQL, tt.head) || len(rec.SQL) > deniedSQL+20 || rec.Verdict != "deny" {
			t.Errorf("%s: %s record of %d bytes, %.60q", tt.name, rec.Verdict, len(rec.SQL), rec.SQL)
		}
		if !rec.SQLCut || rec.SQLLength < int64(len(pad)) {
			t.Errorf("%s: cut %v, length %d", tt.name, rec.SQLCut, rec.SQLLength)
		}
		sum := sha256.Sum256([]byte(tt.head + "'"))
		if tt.name == "unreadable" {
			sum = sha256.Sum256([]byte(tt.sql))
		}
		want := ""
		if tt.hashed {
			want = hex.EncodeToString(sum[:])
		}
		if rec.SQLSHA256 != want {
			t.Errorf("%s: hash %q, want %q", tt.name, rec.SQLSHA256, want)
		}
	}
	c.wantPart(fmt.Sprintf("SELECT length('%s')", pad), "D(100000)")
	rec := p.records.await(t, "the last", func(r audit.Record) bool { return r.Event == audit.Query && r.Seq == 6 })
	if rec.SQLCut || len(rec.SQL) < len(pad) {
		t.Errorf("of an allowed statement %d bytes are kept", len(rec.SQL))
	}
}

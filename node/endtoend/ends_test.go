package endtoend

import (
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pgproxy/node/nodetest"
)

// live is one person's sessions in the states that an end may find them in.
type live struct {
	idle, running, inTransaction *session
	statement                    *statement // the one that runs
	table                        string     // whose one row inTransaction has changed from 1 to 2
}

// open opens the sessions, and a table that only this test knows.
func open(t *testing.T, p *proxy, from *nodetest.Peer) *live {
	t.Helper()
	l := &live{table: strings.ReplaceAll("live_"+from.Name, "-", "_")}
	table(t, l.table, "id int PRIMARY KEY, n int", "VALUES (1, 1)")
	l.idle, l.running, l.inTransaction = p.connect(t, from), p.connect(t, from), p.connect(t, from)
	l.inTransaction.query(t, "BEGIN; UPDATE "+l.table+" SET n = 2 WHERE id = 1")
	l.statement = l.running.begin(t, "SELECT pg_sleep(60)")
	return l
}

// endsNow requires that all three have ended soon after they lost their
// access at a moment, and that nothing is left of them. Someone who can still
// be told must have been.
func (l *live) endsNow(t *testing.T, p *proxy, lost time.Time, told bool) {
	t.Helper()
	for _, s := range []*session{l.idle, l.running, l.inTransaction} {
		s.gone(t, time.Until(lost.Add(soon)))
		if r := p.disconnect(t, s); r.SQLState != "57P01" || r.EndReason != "access revoked" {
			t.Errorf("%s ended with %s, %q", s.id, r.SQLState, r.EndReason)
		}
	}
	if n := postgres.Exec(t, "SELECT n FROM "+l.table)[0][0]; n != "1" {
		t.Errorf("the row is %s: the transaction was committed", n)
	}
	if !told {
		return
	}
	wantCode(t, "the running statement", l.statement.wait(t, soon), "57014")
	for name, s := range map[string]*session{"idle": l.idle, "running": l.running, "in a transaction": l.inTransaction} {
		if e := s.ended(t, soon); e.Code != "57P01" || e.Severity != "FATAL" || !strings.Contains(e.Message, "your access has ended") || e.Detail == "" {
			t.Errorf("the %s session was told %+v, want 57P01 and the reason", name, e)
		}
	}
}

// Access that is taken away ends at once, whatever the sessions are doing. There
// is no policy file: nobody falls back to anything.
func TestAccessEndsNow(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		lose func(peer *nodetest.Peer, login string) error
		told bool // what has left the tailnet cannot be told
	}{
		{"revoked", func(_ *nodetest.Peer, login string) error { tailnet.Revoke(login, capability); return nil }, true},
		{"unreadable", func(_ *nodetest.Peer, login string) error {
			tailnet.Grant(login, capability, `{"access": 1}`)
			return nil
		}, true},
		{"database-ungranted", func(_ *nodetest.Peer, login string) error {
			tailnet.Grant(login, capability, `{"databases": ["other"]}`)
			return nil
		}, true},
		{"cut-off", func(_ *nodetest.Peer, login string) error { tailnet.Restrict(login, 80); return nil }, true},
		{"retagged", func(peer *nodetest.Peer, _ string) error { return tailnet.Retag(peer.Name, "tag:ci") }, true},
		{"removed", func(peer *nodetest.Peer, _ string) error { return tailnet.Remove(peer.Name) }, false},
		{"expired", func(peer *nodetest.Peer, _ string) error { return tailnet.Expire(peer.Name) }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			login := tt.name + "@example.com"
			peer := join(t, nodetest.Device{Name: "ends-" + tt.name, Login: login})
			tailnet.Grant(login, capability, `{"access": "write"}`)
			p := start(t, "-capability", capability)
			l := open(t, p, peer)
			lost := time.Now()
			if err := tt.lose(peer, login); err != nil {
				t.Fatal(err)
			}
			l.endsNow(t, p, lost, tt.told)
		})
	}
}

// narrowed requires that what runs goes on, and that from the next statement on
// nothing may be changed.
func (l *live) narrowed(t *testing.T) {
	t.Helper()
	write := "UPDATE " + l.table + " SET n = 3 WHERE id = 1"
	eventually(t, soon, "the idle session is narrowed", func() bool {
		_, err := l.idle.try(t.Context(), "BEGIN; SELECT FROM "+l.table+" FOR UPDATE SKIP LOCKED; ROLLBACK")
		return err != nil
	})
	l.idle.refused(t, write, "42501")
	l.inTransaction.refused(t, write, "42501")
	l.inTransaction.query(t, "ROLLBACK")
	if got := l.running.backend(t); got != "PgSleep" {
		t.Errorf("the running statement waits for %q, want it to sleep on", got)
	}
	for _, s := range []*session{l.idle, l.inTransaction} {
		s.query(t, "SELECT 1")
	}
}

// A narrower access holds from the next statement on, and drops nobody.
func TestAccessIsNarrowed(t *testing.T) {
	t.Parallel()
	t.Run("by a grant", func(t *testing.T) {
		t.Parallel()
		peer := join(t, deviceOf("narrowed"))
		tailnet.Grant("narrowed@example.com", capability, `{"access": "write"}`)
		p := start(t, "-capability", capability)
		l := open(t, p, peer)
		tailnet.Grant("narrowed@example.com", capability, `{"access": "read"}`)
		l.narrowed(t)
		tailnet.Grant("narrowed@example.com", capability, `{"access": "write"}`)
		eventually(t, soon, "the access is back", func() bool {
			_, err := l.idle.try(t.Context(), "UPDATE "+l.table+" SET n = 3 WHERE id = 1")
			return err == nil
		})
	})
	t.Run("by the policy file", func(t *testing.T) {
		t.Parallel()
		peer := join(t, nodetest.Device{Name: "narrowed-by-file", Login: "filed@example.com"})
		file := policyFile(t, `{"callers": {"filed@example.com": {"access": "write"}}}`)
		p := start(t, "-policy", file)
		l := open(t, p, peer)

		// A file that cannot be read changes nothing.
		write(t, file, `{"callers": {"filed@example.com": {"access": "read", "acess": 1}}, "defualt": null}`)
		p.hangUp(t, "policy not read again")
		l.idle.query(t, "UPDATE "+l.table+" SET n = n WHERE id = 2")

		write(t, file, `{"callers": {"filed@example.com": {"access": "read"}}}`)
		p.hangUp(t, "policy read again")
		l.narrowed(t)

		write(t, file, `{"callers": {"filed@example.com": null}}`)
		p.hangUp(t, "policy read again")
		if e := l.idle.ended(t, soon); e.Code != "57P01" {
			t.Errorf("told %v", e)
		}
		wantCode(t, "the running statement", l.statement.wait(t, soon), "57014")
	})
}

// Without the coordination server everything goes on with what was last known.
func TestControlAway(t *testing.T) {
	t.Parallel()
	tn := nodetest.New(t)
	tn.Grant("alice@example.com", capability, `{"access": "write"}`)
	peer := tn.Person("alice@example.com", "alice-laptop")
	p := startIn(t, tn.Tailnet, "-capability", capability, "-policy", policyFile(t, `{"default": null}`))
	s := p.connect(t, peer)
	s.query(t, "BEGIN")

	tn.CutControl()
	p.log.await(t, "coordination server is out of reach")
	s.query(t, "SELECT 1")
	p.connect(t, peer).query(t, "SELECT 1")

	// What happens meanwhile shows when it is back.
	tn.Revoke("alice@example.com", capability)
	s.query(t, "COMMIT")
	tn.RestoreControl()
	p.log.await(t, "coordination server is back")
	if e := s.ended(t, soon); e.Code != "57P01" {
		t.Errorf("told %v", e)
	}
	if _, err := p.tryConnect(t, peer, func(c *pgconn.Config) { c.ConnectTimeout = soon }); err == nil {
		t.Error("a session without access")
	}
}

// Where the tailnet's network rules are all there is, taking those away ends
// the session, and says so. The live connection would go on: a packet filter
// stops new ones alone.
func TestNetworkAccessEnds(t *testing.T) {
	t.Parallel()
	p := start(t)
	peer := join(t, deviceOf("acl"))
	s := p.connect(t, peer)
	tailnet.Restrict("acl@example.com", 80)
	defer tailnet.Unrestrict("acl@example.com")
	e := s.ended(t, soon)
	if e.Code != "57P01" || !strings.Contains(e.Detail, "does not let acl reach port 5432") || !strings.Contains(e.Hint, "access rules") {
		t.Errorf("told %v, detail %q, hint %q", e, e.Detail, e.Hint)
	}
	s.gone(t, soon)
	// The other port is another matter.
	if code, body := p.browse(t, peer, "GET", "/"); code != 200 {
		t.Errorf("the status page: %d %s", code, body)
	}
	tailnet.Unrestrict("acl@example.com")
	eventually(t, soon, "access again", func() bool {
		_, err := p.tryConnect(t, peer, func(c *pgconn.Config) { c.ConnectTimeout = soon })
		return err == nil
	})
}

// A grant that is taken away leaves its caller with the policy file's default,
// which may be more. That is the operator's choice, and they are warned of it.
func TestFallbackIsWarnedOf(t *testing.T) {
	t.Parallel()
	peer := join(t, deviceOf("fallback"))
	tailnet.Grant("fallback@example.com", capability, `{"access": "read"}`)
	p := start(t, "-capability", capability, "-policy", policyFile(t, `{"default": {"access": "write"}}`))
	if said := p.log.String(); !strings.Contains(said, "whoever has no grant, or loses one, has the policy file's default: write access") {
		t.Errorf("no warning in\n%s", said)
	}
	s := p.connect(t, peer)
	s.refused(t, "CREATE TEMPORARY TABLE fallback ()", "42501")
	tailnet.Revoke("fallback@example.com", capability)
	eventually(t, soon, "the default is in force", func() bool { return s.query(t, "SHOW pgproxy.access")[0][0] == "write access" })
}

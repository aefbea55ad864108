package endtoend

import (
	"context"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"pgproxy/node/nodetest"
	"pgproxy/wire/audit"
)

func uitoa(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

// Two people on two nodes: each one's name is wherever somebody may look for
// it, and nowhere the other's.
func TestEverybodyUnderTheirOwnName(t *testing.T) {
	t.Parallel()
	p := start(t)
	for _, who := range []struct {
		peer        *nodetest.Peer
		login, node string
	}{{alice, "alice@example.com", "alice-laptop"}, {bob, "bob@example.com", "bob-phone"}} {
		t.Run(who.node, func(t *testing.T) {
			s := p.connect(t, who.peer)
			stamp := "go-proxy tsnode=" + who.node + "|user=" + who.login
			pid := uitoa(s.PID())

			seen := postgres.Exec(t, "SELECT application_name, usename FROM pg_stat_activity WHERE pid = "+pid)
			if want := [][]string{{stamp, "app"}}; !reflect.DeepEqual(seen, want) {
				t.Errorf("pg_stat_activity has %v, want %v", seen, want)
			}
			got := s.query(t, "SELECT current_setting('application_name'), current_setting('pgproxy.user'), current_setting('pgproxy.node'), current_setting('pgproxy.session')")
			if want := [][]string{{stamp, who.login, who.node, s.id}}; !reflect.DeepEqual(got, want) {
				t.Errorf("the session has %v, want %v", got, want)
			}

			// The line that authorizes is written before a statement could set
			// the name.
			authorized := "connection authorized: user=app database=app application_name=" + stamp
			if log := serverLog(t, "["+pid+"]", authorized); strings.Count(log, "app="+stamp+" LOG:") == 0 {
				t.Errorf("the server's log has statements without the stamp:\n%s", log)
			}

			if len(s.notices) != 1 {
				t.Fatalf("%d notices at login, want one", len(s.notices))
			}
			n := s.notices[0]
			for _, want := range []string{who.login, "database app", "write access", "recorded"} {
				if !strings.Contains(n.Message, want) {
					t.Errorf("%q is not in the notice %q", want, n.Message)
				}
			}
			if line, detail := "NOTICE:  "+n.Message, "DETAIL:  "+n.Detail; len(line) > 100 || len(detail) > 100 || !strings.HasSuffix(detail, "/sessions/"+s.id) || n.Hint != "" {
				t.Errorf("the notice does not fit two lines of 100 columns: %q, %q, hint %q", line, detail, n.Hint)
			}
			told := fmt.Sprint(s.query(t, "SHOW pgproxy.session"))
			for _, want := range []string{s.id, who.login, who.node, postgres.Addr(), "app"} {
				if !strings.Contains(told, want) {
					t.Errorf("SHOW pgproxy.session does not name %q: %s", want, told)
				}
			}

			var first []audit.Event
			for _, r := range p.records(t) {
				if r.Session != s.id {
					continue
				}
				first = append(first, r.Event)
				if r.User != who.login || r.Node != who.node || r.NodeID == "" || !strings.HasPrefix(r.Addr, who.peer.Addr().String()+":") {
					t.Errorf("%s record has user %q, node %q, node_id %q, addr %q", r.Event, r.User, r.Node, r.NodeID, r.Addr)
				}
				if r.ApplicationName != stamp || r.Database != "app" || r.UpstreamPID != s.PID() || r.Upstream != postgres.Addr() || r.Client != "e2e" || r.RequestedUser != "whoever" {
					t.Errorf("%s record has application_name %q, database %q, upstream_pid %d, upstream %q, client %q, requested_user %q",
						r.Event, r.ApplicationName, r.Database, r.UpstreamPID, r.Upstream, r.Client, r.RequestedUser)
				}
			}
			if want := []audit.Event{audit.Connect, audit.Query, audit.Result}; len(first) < 3 || !reflect.DeepEqual(first[:3], want) {
				t.Errorf("records %v, want them to begin with %v", first, want)
			}
		})
	}
}

// serverLog is what the server's log says of a process, once it has said text.
func serverLog(t *testing.T, process, text string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := postgres.AwaitLog(ctx, text); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	for line := range strings.Lines(postgres.Log()) {
		if strings.Contains(line, process) {
			said.WriteString(line)
		}
	}
	return said.String()
}

// psql and pgx as people use them.
func TestOrdinaryClients(t *testing.T) {
	t.Parallel()
	p := start(t)
	out, err := psql(t, p, alice, "-c", "SELECT current_setting('pgproxy.user')").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "\nalice@example.com\n") || !strings.Contains(string(out), "NOTICE:  pgproxy: you are alice@example.com, database app, ") {
		t.Errorf("psql: %v\n%s", err, out)
	}

	config, err := pgx.ParseConfig("host=" + p.name + " user=whoever dbname=app sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	config.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	config.LookupFunc = asWritten
	config.DialFunc = network(bob)
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var who string
	var sum int
	if err := conn.QueryRow(t.Context(), "SELECT current_setting('pgproxy.user'), $1::int + 1", 41).Scan(&who, &sum); err != nil || who != "bob@example.com" || sum != 42 {
		t.Errorf("pgx: %q, %d, %v", who, sum, err)
	}
}

// The default is for people of this tailnet. Others are let in by name.
func TestOthersMustBeNamed(t *testing.T) {
	t.Parallel()
	ci := join(t, nodetest.Device{Name: "ci-runner", Tags: []string{"tag:ci"}})
	cron := join(t, nodetest.Device{Name: "cron", Tags: []string{"tag:cron"}})
	friend := join(t, nodetest.Device{Name: "friends-laptop", Login: "friend@elsewhere.example", Shared: true})
	tailnet.Grant("tag:cron", capability, `{"access": "read"}`)
	tailnet.Grant("friend@elsewhere.example", capability, `{"access": "read"}`)

	t.Run("by nobody", func(t *testing.T) {
		p := start(t)
		for peer, hint := range map[*nodetest.Peer]string{ci: "Tagged nodes must be named", guest: "shared in from another tailnet must be named"} {
			_, err := p.tryConnect(t, peer)
			e := wantCode(t, peer.Name, err, "28000")
			if e.Severity != "FATAL" || !strings.Contains(e.Hint, hint) {
				t.Errorf("%s: %s with hint %q, want %q in it", peer.Name, e.Severity, e.Hint, hint)
			}
			r := p.record(t, "the refusal of "+peer.Name, func(r audit.Record) bool { return r.Event == audit.Refuse && r.Node == peer.Name })
			if r.SQLState != "28000" || r.Error != e.Message || r.NodeID == "" || r.UpstreamPID != 0 {
				t.Errorf("%s: recorded as %+v", peer.Name, r)
			}
		}
	})
	t.Run("by the policy file", func(t *testing.T) {
		p := start(t, "-policy", policyFile(t, `{"callers": {"tag:ci": {}, "guest@elsewhere.example": {"access": "read"}}}`))
		for peer, who := range map[*nodetest.Peer]string{ci: "tag:ci", guest: "guest@elsewhere.example"} {
			want := "go-proxy tsnode=" + peer.Name + "|user=" + who
			if got := p.connect(t, peer).value(t, "SHOW application_name"); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		}
		r := p.record(t, "tag:ci", func(r audit.Record) bool { return r.User == "tag:ci" })
		if !reflect.DeepEqual(r.Tags, []string{"tag:ci"}) || strings.Contains(fmt.Sprint(r), "tagged-devices") {
			t.Errorf("recorded as %+v", r)
		}
		_, err := p.tryConnect(t, cron)
		wantCode(t, "another tag", err, "28000")
	})
	t.Run("by a grant", func(t *testing.T) {
		p := start(t, "-capability", capability)
		for peer, who := range map[*nodetest.Peer]string{cron: "tag:cron", friend: "friend@elsewhere.example"} {
			if got := p.connect(t, peer).value(t, "SELECT current_setting('pgproxy.user')"); got != who {
				t.Errorf("got %q, want %q", got, who)
			}
		}
		_, err := p.tryConnect(t, ci)
		wantCode(t, "a tag without a grant", err, "28000")
	})
}

// A device that was removed gets no session: it is nobody, if its packets still
// come at all.
func TestRemovedDeviceIsRefused(t *testing.T) {
	t.Parallel()
	removed := join(t, deviceOf("removed"))
	p := start(t)
	s := p.connect(t, removed)
	if err := tailnet.Remove(removed.Name); err != nil {
		t.Fatal(err)
	}
	s.gone(t, soon)
	if _, err := p.tryConnect(t, removed, func(c *pgconn.Config) { c.ConnectTimeout = time.Second }); err == nil {
		t.Error("a removed device got a session")
	}
}

// 63 bytes hold no long names: the device gives way first, and the settings
// have all of it.
func TestLongNames(t *testing.T) {
	t.Parallel()
	const login = "maximiliane@example.com"
	const device = "maximilianes-very-old-workstation-on-the-third-floor"
	p := start(t)
	s := p.connect(t, join(t, nodetest.Device{Name: device, Login: login}))
	got := s.query(t, "SELECT current_setting('application_name'), current_setting('pgproxy.user'), current_setting('pgproxy.node')")
	if want := [][]string{{"go-proxy tsnode=maximilianes-very-|user=maximiliane@example.com", login, device}}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

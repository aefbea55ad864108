package activity

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgproxy/upstream"
	"pgproxy/upstream/upstreamtest"

	"github.com/jackc/pgx/v5/pgconn"
	"tailscale.com/tstest"
)

func TestMain(m *testing.M) { upstreamtest.Main(m) }

func monitor(t *testing.T, s *upstreamtest.Server, role string) *Monitor {
	t.Helper()
	tstest.ResourceCheck(t)
	config, err := upstream.ParseConfig(s.DSN(role, "app"))
	if err != nil {
		t.Fatal(err)
	}
	m := NewMonitor(config.Dial, "app")
	t.Cleanup(m.Close)
	return m
}

func run(t *testing.T, conn *pgconn.PgConn, sql string) {
	t.Helper()
	if err := conn.Exec(t.Context(), sql).Close(); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// stage has a session hold a row's lock, another wait for the row, and a third
// for its table.
func stage(t *testing.T, s *upstreamtest.Server) (holder, row, table *pgconn.PgConn) {
	t.Helper()
	s.ExecAs(t, "app", "app", "CREATE TABLE IF NOT EXISTS held (id integer PRIMARY KEY); TRUNCATE held; INSERT INTO held VALUES (1)")
	holder = s.Program(t, "app", "holder")
	run(t, holder, "BEGIN; UPDATE held SET id = 1")
	wait := func(name, sql string) *pgconn.PgConn {
		conn := s.Program(t, "app", name)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			conn.Exec(context.Background(), sql).Close() // the test's end cuts it off
		}()
		t.Cleanup(func() {
			s.Exec(t, fmt.Sprintf("SELECT pg_terminate_backend(%d)", conn.PID()))
			<-ended
		})
		awaitRow(t, s, fmt.Sprintf("SELECT 1 FROM pg_locks WHERE pid = %d AND NOT granted", conn.PID()))
		return conn
	}
	row = wait("row", "UPDATE held SET id = 1")
	table = wait("table", "BEGIN; LOCK TABLE held")
	return holder, row, table
}

// awaitRow waits until a query has a row.
func awaitRow(t *testing.T, s *upstreamtest.Server, sql string) {
	t.Helper()
	for late := time.Now().Add(20 * time.Second); len(s.Exec(t, sql)) == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(late) {
			t.Fatalf("no row: %s", sql)
		}
	}
}

// What a snapshot says of a lock is the same on every server, for those who may
// see everything.
func TestSnapshot(t *testing.T) {
	if testing.Short() {
		t.Skip("starts servers")
	}
	upstreamtest.AllVersions(t, func(t *testing.T, s *upstreamtest.Server) {
		m := monitor(t, s, "app")
		s.Exec(t, "GRANT pg_monitor TO app")
		s.Exec(t, "SELECT pg_create_physical_replication_slot('kept', true)")
		holder, row, table := stage(t, s)
		snapshot, err := m.Snapshot(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		nodes := Tree(snapshot.Backends)
		if len(nodes) != 3 || nodes[0].PID != int(holder.PID()) || nodes[1].PID != int(row.PID()) || nodes[2].PID != int(table.PID()) {
			t.Fatalf("got %+v", nodes)
		}
		if b := nodes[0].Backend; b.Application != "holder" || b.State != "idle in transaction" || b.Role != "app" || b.Addr != "local" || b.Database != "app" ||
			b.Query != "BEGIN; UPDATE held SET id = 1" || b.TxSince.IsZero() || b.Start.IsZero() || b.Type != "client backend" {
			t.Errorf("the holder is %+v", b)
		}
		if b := nodes[1].Backend; b.WaitsFor != "row of public.held" || b.Mode != "ShareLock" || b.WaitSince.IsZero() || b.State != "active" {
			t.Errorf("who waits for the row is %+v", b)
		}
		if b := nodes[2].Backend; b.WaitsFor != "public.held" || b.Mode != "AccessExclusiveLock" {
			t.Errorf("who waits for the table is %+v", b)
		}
		if snapshot.Used < 4 || snapshot.Most < snapshot.Used || snapshot.Reserved == 0 || snapshot.Standby || len(snapshot.Unseen) > 0 {
			t.Errorf("got %+v", snapshot)
		}
		if len(snapshot.Slots) != 1 || snapshot.Slots[0].Name != "kept" || snapshot.Slots[0].RetainedBytes == nil {
			t.Errorf("the slots are %+v", snapshot.Slots)
		}
	})
}

// A login without pg_monitor is told who waits for whom, and what it cannot
// see.
func TestWithoutMonitorRole(t *testing.T) {
	s := upstreamtest.Shared(t)
	s.Exec(t, "DROP ROLE IF EXISTS plain; CREATE ROLE plain LOGIN PASSWORD '"+upstreamtest.Password+"'")
	m := monitor(t, s, "plain")
	holder, row, _ := stage(t, s)
	snapshot, err := m.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	nodes := Tree(snapshot.Backends)
	if len(nodes) != 3 || nodes[0].PID != int(holder.PID()) || nodes[1].PID != int(row.PID()) || nodes[0].Backend.Application != "holder" {
		t.Fatalf("got %+v", nodes)
	}
	if b := nodes[0].Backend; !b.Hidden || b.Query != "" || !b.Start.IsZero() {
		t.Errorf("the holder is %+v", b)
	}
	if len(snapshot.Unseen) != 1 || !strings.Contains(snapshot.Unseen[0], `"plain" is not a member of pg_monitor`) {
		t.Errorf("got %q", snapshot.Unseen)
	}
}

// However many look, it is read once a second, over one connection, which is
// closed when nobody looks any more, and opened again when it was lost.
func TestMonitorIsShared(t *testing.T) {
	s := upstreamtest.Shared(t)
	m := monitor(t, s, "postgres")
	m.linger = 300 * time.Millisecond
	ours := "SELECT pid FROM pg_stat_activity WHERE application_name = '" + upstream.HelperName("monitor") + "'"
	if rows := s.Exec(t, ours); len(rows) > 0 {
		t.Errorf("before anybody looks there are %v", rows)
	}
	first, err := m.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	snapshots := make(chan *Snapshot)
	for range 20 {
		go func() {
			snapshot, _ := m.Snapshot(t.Context())
			snapshots <- snapshot
		}()
	}
	for range 20 {
		if got := <-snapshots; got != first {
			t.Errorf("read again within a second: %v, %v", got, first)
		}
	}
	if rows := s.Exec(t, ours); len(rows) != 1 {
		t.Errorf("there are connections %v", rows)
	}
	awaitRow(t, s, "SELECT 1 WHERE NOT EXISTS ("+ours+")")
	m.linger = linger
	m.read = time.Time{}
	if _, err := m.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.Exec(t, "SELECT pg_terminate_backend(pid, 5000) FROM ("+ours+") x")
	m.read = time.Time{}
	if next, err := m.Snapshot(t.Context()); err != nil || next == first {
		t.Errorf("after its connection was lost: %v, %v", next, err)
	}
}

// A catalogue that somebody has locked does not hold it up, and it holds up
// nobody who waits.
func TestMonitorGivesUp(t *testing.T) {
	s := upstreamtest.Shared(t)
	m := monitor(t, s, "postgres")
	vacuum := s.Program(t, "postgres", "vacuum")
	if _, err := m.Snapshot(t.Context()); err != nil { // nobody can log in while that lock is held
		t.Fatal(err)
	}
	m.read = time.Time{}
	run(t, vacuum, "SET allow_system_table_mods = on; BEGIN; LOCK TABLE pg_catalog.pg_authid IN ACCESS EXCLUSIVE MODE")
	if _, err := m.Snapshot(t.Context()); err == nil || !strings.Contains(err.Error(), "lock timeout") {
		t.Errorf("got %v", err)
	}
	run(t, vacuum, "ROLLBACK")
	m.read = time.Time{}
	if _, err := m.Snapshot(t.Context()); err != nil {
		t.Error(err)
	}
}

// Who gives up looking leaves the others theirs.
func TestLookGivenUp(t *testing.T) {
	m := monitor(t, upstreamtest.Shared(t), "postgres")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.Snapshot(ctx); err == nil {
		t.Error("a look that was given up has an answer")
	}
	if _, err := m.Snapshot(t.Context()); err != nil {
		t.Error(err)
	}
}

// A primary tells of its standby and how far that is behind, and a standby that it
// is one.
func TestReplicas(t *testing.T) {
	if testing.Short() {
		t.Skip("starts servers")
	}
	primary := upstreamtest.Start(t, upstreamtest.AllowReplication())
	primary.Exec(t, "GRANT pg_monitor TO app")
	standby := upstreamtest.StartStandby(t, primary)
	primary.Exec(t, "CREATE TABLE replayed ()") // a commit to be replayed
	deadline := time.Now().Add(30 * time.Second)
	for _, tt := range []struct {
		server *upstreamtest.Server
		holds  func(*Snapshot) bool
	}{
		{primary, func(s *Snapshot) bool {
			return !s.Standby && s.Replayed == nil && len(s.Replicas) == 1 && s.Replicas[0].State == "streaming" && s.Replicas[0].LagBytes != nil &&
				len(s.Slots) == 1 && s.Slots[0].Name == "standby" && s.Slots[0].Active && s.Slots[0].RetainedBytes != nil
		}},
		{standby, func(s *Snapshot) bool {
			return s.Standby && s.Replayed != nil && len(s.Replicas) == 0 && len(s.Slots) == 0
		}},
	} {
		m := monitor(t, tt.server, "app")
		for {
			snapshot, err := m.Snapshot(t.Context())
			if err == nil && tt.holds(snapshot) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%v: %+v", err, snapshot)
			}
			time.Sleep(100 * time.Millisecond) // the server's senders and receivers report by themselves
		}
	}
}

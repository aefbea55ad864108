package activity

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// Snapshot is what a database was doing at one moment. It is shared by all who
// look, and must not be changed. Times are by the server's clock.
type Snapshot struct {
	At       time.Time `json:"at"`
	Database string    `json:"database"`
	Login    string    `json:"login"`    // that looked
	Upstream string    `json:"upstream"` // the server's address

	// Backends are those of the database that wait, that others wait for
	// (these may be another database's), or that have been busy for longer than
	// LongAfter; no more than maxBackends, the waiting ones first, in the order
	// in which they began to wait.
	Backends []Backend `json:"backends,omitempty"`

	Standby  bool       `json:"standby"`  // the server replays another's log
	Replayed *time.Time `json:"replayed"` // on a standby: the last transaction replayed
	Replicas []Replica  `json:"replicas"`
	Slots    []Slot     `json:"slots"`

	Used     int `json:"connections"`          // client connections of the whole server
	Most     int `json:"max_connections"`      // as many as there may be
	Reserved int `json:"reserved_connections"` // of them for superusers and the like

	// Unseen says in sentences what the login could not see.
	Unseen []string `json:"unseen"`
}

// LongAfter is the age from which a transaction or a statement is listed.
const LongAfter = 10 * time.Second

// Backend is a process of the server, in the words of pg_stat_activity. What
// the login may not see is empty.
type Backend struct {
	PID         int       `json:"pid"`
	Start       time.Time `json:"backend_start,omitzero"`
	Type        string    `json:"backend_type"`
	Database    string    `json:"database"`
	Role        string    `json:"role"`
	Application string    `json:"application_name"`
	Addr        string    `json:"addr"` // "local" for a Unix socket
	State       string    `json:"state"`
	StateSince  time.Time `json:"state_since,omitzero"`
	TxSince     time.Time `json:"tx_since,omitzero"` // zero outside of a transaction
	QuerySince  time.Time `json:"query_since,omitzero"`
	Event       string    `json:"wait_event"` // "Lock: tuple", "IO: DataFileRead"
	Query       string    `json:"sql"`        // runs, or ran last; cut
	Hidden      bool      `json:"hidden"`     // the login may see neither state nor statement

	// Of one that waits for a lock. A process ID of 0 among those it waits for
	// is a prepared transaction.
	BlockedBy []int     `json:"blocked_by"`
	WaitsFor  string    `json:"waits_for"` // "row of public.orders", "public.orders"
	Mode      string    `json:"lock_mode"` // "ShareLock"
	WaitSince time.Time `json:"wait_since,omitzero"`
}

// Waits reports whether the backend waits for another one.
func (b *Backend) Waits() bool { return len(b.blockers()) > 0 }

// Replica is a standby, or another receiver of the server's log.
type Replica struct {
	Application string   `json:"application_name"`
	Addr        string   `json:"addr"`
	State       string   `json:"state"`
	Sync        string   `json:"sync_state"`
	LagBytes    *int64   `json:"lag_bytes"`   // not replayed yet
	LagSeconds  *float64 `json:"lag_seconds"` // of the last commit replayed; nil where there was none lately
}

// Lag is LagSeconds as a duration, 0 where there is none.
func (r Replica) Lag() time.Duration {
	if r.LagSeconds == nil {
		return 0
	}
	return time.Duration(*r.LagSeconds * float64(time.Second))
}

// Slot is a replication slot.
type Slot struct {
	Name          string `json:"slot"`
	Type          string `json:"slot_type"`
	Active        bool   `json:"active"`
	Status        string `json:"wal_status"`
	RetainedBytes *int64 `json:"retained_bytes"` // of the log, for its sake
}

// maxBackends bounds a snapshot; maxQuery is how much of a statement it has, in
// characters.
const (
	maxBackends = 500
	maxQuery    = 2048
)

// backendColumns are a Backend's but for its locks, from pg_stat_activity a.
var backendColumns = fmt.Sprintf(`a.pid, a.backend_start, a.backend_type, a.datname AS database, a.usename AS role, a.application_name,
		CASE WHEN a.client_addr IS NOT NULL THEN host(a.client_addr) WHEN a.client_port = -1 THEN 'local' END AS addr,
		a.state, a.state_change AS state_since, a.xact_start AS tx_since, a.query_start AS query_since,
		a.wait_event_type || ': ' || a.wait_event AS wait_event,
		a.query = '<insufficient privilege>' AS hidden,
		CASE WHEN a.query <> '<insufficient privilege>' THEN left(a.query, %d) END AS sql`, maxQuery)

// backendsQuery asks who waits and who is busy. Who waits is read from
// pg_locks, which everybody sees whole. pg_blocking_pids holds up the lock
// manager for a moment, and so is called for those alone.
//
// A wait for a row is a wait for the transaction that has changed it. Its table
// is known from the lock on the row's place, which the first in the queue holds.
var backendsQuery = fmt.Sprintf(`WITH locks AS MATERIALIZED (
	SELECT pid, locktype, database, relation, mode, granted, waitstart FROM pg_locks WHERE pid <> pg_backend_pid()
), waits AS MATERIALIZED (
	SELECT DISTINCT ON (w.pid) w.pid, w.locktype, w.mode, w.waitstart, pg_blocking_pids(w.pid) AS blockers,
		coalesce(w.relation, CASE w.locktype WHEN 'transactionid' THEN
			(SELECT h.relation FROM locks h WHERE h.pid = w.pid AND h.locktype = 'tuple' AND h.granted LIMIT 1) END) AS relation
	FROM locks w JOIN pg_stat_activity a ON a.pid = w.pid
	WHERE NOT w.granted AND a.datname = current_database()
), backends AS (
	SELECT %[1]s, w.blockers AS blocked_by, w.mode AS lock_mode, w.waitstart AS wait_since,
		CASE WHEN w.locktype IN ('transactionid', 'tuple') THEN 'row' || coalesce(' of ' || w.relation::regclass, '')
			WHEN w.locktype = 'relation' THEN w.relation::regclass::text
			ELSE w.locktype || coalesce(' of ' || w.relation::regclass, '') END AS waits_for
	FROM pg_stat_activity a LEFT JOIN waits w ON w.pid = a.pid
	WHERE a.pid <> pg_backend_pid() AND (w.pid IS NOT NULL OR a.pid IN (SELECT unnest(blockers) FROM waits)
		OR a.datname = current_database() AND least(a.xact_start, CASE a.state WHEN 'active' THEN a.query_start END)
			< clock_timestamp() - interval '%[2]d s')
	ORDER BY w.waitstart, w.pid, a.xact_start LIMIT %[3]d
)
SELECT json_build_object('at', clock_timestamp(), 'database', current_database(), 'login', current_user,
	'sees_all', pg_has_role(current_user, 'pg_read_all_stats', 'USAGE'),
	'backends', (SELECT json_agg(b) FROM backends b))`, backendColumns, int(LongAfter.Seconds()), maxBackends)

// serverQuery asks about the server as a whole.
const serverQuery = `WITH log AS MATERIALIZED (
	SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_lsn() END AS at
), replicas AS (
	SELECT application_name, host(client_addr) AS addr, state, sync_state, pg_wal_lsn_diff(log.at, replay_lsn)::bigint AS lag_bytes,
		extract(epoch FROM replay_lag) AS lag_seconds
	FROM pg_stat_replication, log ORDER BY application_name, pid
), slots AS (
	SELECT slot_name AS slot, slot_type, active, wal_status, pg_wal_lsn_diff(log.at, restart_lsn)::bigint AS retained_bytes
	FROM pg_replication_slots, log ORDER BY slot_name
)
SELECT json_build_object('standby', pg_is_in_recovery(),
	'replayed', CASE WHEN pg_is_in_recovery() THEN pg_last_xact_replay_timestamp() END,
	'connections', (SELECT count(*) FROM pg_stat_activity
		WHERE backend_type = 'client backend' OR backend_type IS NULL AND datid IS NOT NULL),
	'max_connections', current_setting('max_connections')::integer,
	'reserved_connections', current_setting('superuser_reserved_connections')::integer
		+ coalesce(current_setting('reserved_connections', true), '0')::integer,
	'replicas', (SELECT json_agg(r) FROM replicas r), 'slots', (SELECT json_agg(s) FROM slots s))`

// read takes the answer to one of the queries.
func (s *Snapshot) read(rows [][]string) error {
	if len(rows) != 1 || len(rows[0]) != 1 {
		return fmt.Errorf("activity: %d rows where there is one", len(rows))
	}
	said := struct {
		*Snapshot
		SeesAll *bool `json:"sees_all"`
	}{Snapshot: s}
	if err := json.Unmarshal([]byte(rows[0][0]), &said); err != nil {
		return fmt.Errorf("activity: %w", err)
	}
	if said.SeesAll != nil && !*said.SeesAll {
		s.Unseen = append(s.Unseen, fmt.Sprintf("The login %q is not a member of pg_monitor: statements, states and times of other logins are not seen, "+
			"nor old transactions of theirs, nor how far replicas are behind.", strings.ToValidUTF8(s.Login, "?")))
	}
	return nil
}

package status

import (
	"encoding/json"
	"net/http"
	"time"

	"pgproxy/wire"
)

// Names in JSON are those of the audit records, where there is the same thing.

type sessionJSON struct {
	Session     string     `json:"session"`
	User        string     `json:"user"`
	Node        string     `json:"node"`
	NodeID      string     `json:"node_id"`
	Addr        string     `json:"addr"`
	Database    string     `json:"database"`
	Upstream    string     `json:"upstream"`
	UpstreamPID uint32     `json:"upstream_pid"`
	Client      string     `json:"client"`
	Access      string     `json:"access"`
	AccessUntil *time.Time `json:"access_until"`
	Reason      string     `json:"reason"`
	Since       time.Time  `json:"since"`
	State       string     `json:"state"`
	StateSince  time.Time  `json:"state_since"`
	TxSince     *time.Time `json:"tx_since"`
	Seq         int64      `json:"seq"`
	SQL         string     `json:"sql"`
	Statements  int64      `json:"statements"`
	Rows        int64      `json:"rows"`
	Bytes       int64      `json:"bytes"`
	Own         bool       `json:"own"`
}

func (p *Page) sessionsJSON(w http.ResponseWriter, _ *http.Request, v wire.Viewer) {
	list := []sessionJSON{}
	for _, s := range p.sessions(v, time.Now()) {
		j := sessionJSON{
			Session: s.ID, User: s.User, Node: s.Node, NodeID: s.NodeID, Addr: s.Addr,
			Database: s.Database, Upstream: s.Upstream, UpstreamPID: s.UpstreamPID, Client: s.Client,
			Access: s.Access, Reason: s.Reason, Since: s.Since.UTC(), State: s.State, StateSince: s.StateSince.UTC(),
			Seq: s.Seq, SQL: s.SQL, Statements: s.Statements, Rows: s.Rows, Bytes: s.Bytes, Own: s.Own,
		}
		if !s.TxSince.IsZero() {
			since := s.TxSince.UTC()
			j.TxSince = &since
		}
		if !s.AccessUntil.IsZero() {
			until := s.AccessUntil.UTC()
			j.AccessUntil = &until
		}
		list = append(list, j)
	}
	writeJSON(w, list)
}

type statementJSON struct {
	Time       time.Time `json:"time"`
	Session    string    `json:"session"`
	Seq        int64     `json:"seq"`
	User       string    `json:"user"`
	Node       string    `json:"node"`
	Database   string    `json:"database"`
	SQL        string    `json:"sql"`
	Outcome    string    `json:"outcome"`
	Tag        string    `json:"tag"`
	Rows       int64     `json:"rows"`
	Bytes      int64     `json:"bytes"`
	Truncated  bool      `json:"truncated"`
	DurationMS float64   `json:"duration_ms"`
	SQLState   string    `json:"sqlstate"`
	Error      string    `json:"error"`
	Own        bool      `json:"own"`
}

func (p *Page) statementsJSON(w http.ResponseWriter, r *http.Request, v wire.Viewer) {
	list := []statementJSON{}
	for _, s := range p.past(v, filterOf(r.URL.Query())) {
		list = append(list, statementJSON{
			Time: s.Time.UTC(), Session: s.Session, Seq: s.Seq, User: s.User, Node: s.Node, Database: s.Database,
			SQL: s.SQL, Outcome: outcome(s), Tag: s.Tag, Rows: s.Rows, Bytes: s.Bytes, Truncated: s.Truncated,
			DurationMS: float64(s.Took.Microseconds()) / 1000, SQLState: s.SQLState, Error: s.Error, Own: s.User == v.Who(),
		})
	}
	writeJSON(w, list)
}

func writeJSON(w http.ResponseWriter, list any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(list) // who reads has gone, if it fails
}

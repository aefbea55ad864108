package wire

import (
	"fmt"
	"net"
	"pgproxy/policy"
	"strings"
	"time"
)

// Bounds on the connections that are no sessions: not yet, or because they
// bring a cancel request, or are being refused. Each may take its time and its
// memory, and one device alone must not use up what there is for all.
const (
	maxPending     = 1024
	maxPendingHost = 256
)

// slot is what a connection takes up of the server's limits. Server.mu guards it.
type slot struct {
	host     string // its client's, without the port
	pending  bool   // counted among the connections that are no sessions
	admitted string // the user it counts for among the sessions
}

// waitsLocked counts a connection that is no session, or says that there are
// too many. It is then closed without a word, as by a server that has no room
// to read what it asks for.
func (srv *Server) waitsLocked(s *session) bool {
	if remote := s.Conn.RemoteAddr(); remote != nil {
		s.slot.host, _, _ = net.SplitHostPort(remote.String()) // "" where it is no such address
	}
	if srv.waiting >= maxPending || srv.pending[s.slot.host] >= maxPendingHost {
		srv.metrics.refused(codeTooManyConnections)
		srv.Logger.Debug("too many connections that are no sessions", "host", s.slot.host)
		return false
	}
	srv.waiting++
	srv.pending[s.slot.host]++
	s.slot.pending = true
	return true
}

// waitedLocked counts it out, once.
func (srv *Server) waitedLocked(s *session) {
	if !s.slot.pending {
		return
	}
	s.slot.pending = false
	srv.waiting--
	if srv.pending[s.slot.host]--; srv.pending[s.slot.host] == 0 {
		delete(srv.pending, s.slot.host)
	}
}

// admit counts a session in, or says which limit it would break.
func (srv *Server) admit(s *session) *sessionError {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	who := s.caller.Who()
	switch {
	case srv.draining:
		return fatal(codeCannotConnectNow, "pgproxy: shutting down, no new sessions", reasonShutdown)
	case srv.MaxSessions > 0 && len(srv.sessions) >= srv.MaxSessions:
		e := fatal(codeTooManyConnections, "pgproxy: too many sessions", reasonLimit).
			withHint("The limit is " + policy.Count(int64(srv.MaxSessions), "session") + " in all. Try again when somebody has left.")
		e.detail = srv.sessionsOfLocked(who)
		return e
	case srv.MaxSessionsPerUser > 0 && srv.perUser[who] >= srv.MaxSessionsPerUser:
		e := fatal(codeTooManyConnections, "pgproxy: too many sessions for "+who, reasonLimit).
			withHint("The limit is " + policy.Count(int64(srv.MaxSessionsPerUser), "session") + " a user. " + srv.howToEnd())
		e.detail = srv.sessionsOfLocked(who)
		return e
	}
	srv.waitedLocked(s)
	srv.sessions[s] = struct{}{}
	srv.perUser[who]++
	s.slot.admitted = who
	return nil
}

// howToEnd is how people end a session of their own.
func (srv *Server) howToEnd() string {
	if srv.StatusPage == "" {
		return "Close one first."
	}
	return "Close one, or end one at " + srv.StatusPage
}

// dismiss counts a session out.
func (srv *Server) dismiss(s *session) {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	delete(srv.sessions, s)
	if srv.perUser[s.slot.admitted]--; srv.perUser[s.slot.admitted] == 0 {
		delete(srv.perUser, s.slot.admitted)
	}
}

// Full reports whether no further session would be admitted.
func (srv *Server) Full() bool {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	return srv.MaxSessions > 0 && len(srv.sessions) >= srv.MaxSessions
}

// listed is how many sessions one message lists.
const listed = 20

// sessionsOfLocked tells somebody at the limit which sessions they have; empty
// if none is ready. Server.mu is held.
func (srv *Server) sessionsOfLocked(who string) string {
	var theirs []*session
	for s := range srv.sessions {
		if s.slot.admitted == who {
			theirs = append(theirs, s)
		}
	}
	list := infos(theirs)
	if len(list) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("Your sessions:")
	for _, i := range list[:min(len(list), listed)] {
		fmt.Fprintf(&b, "\n%s on %s since %s, %s for %s", i.ID, i.Node, i.Since.UTC().Format("2006-01-02 15:04 UTC"),
			i.State, time.Since(i.StateSince).Round(time.Second))
	}
	if more := len(list) - listed; more > 0 {
		fmt.Fprintf(&b, "\nand %d more", more)
	}
	return b.String()
}

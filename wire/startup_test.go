package wire

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgproxy/policy"
	"pgproxy/upstream/upstreamtest"
	"pgproxy/wire/audit"

	"pgproxy/wire/frame"
)

// The first packets as they go over the wire.
var (
	sslRequest    = []byte("\x00\x00\x00\x08\x04\xd2\x16\x2f")
	gssRequest    = []byte("\x00\x00\x00\x08\x04\xd2\x16\x30")
	cancelRequest = []byte("\x00\x00\x00\x10\x04\xd2\x16\x2e\x00\x00\x00\x2a\x01\x02\x03\x04")

	authOK = "R\x00\x00\x00\x08\x00\x00\x00\x00"
)

// errorFrame is an ErrorResponse, built without the package's own encoder.
func errorFrame(fields ...string) string {
	body := strings.Join(fields, "\x00") + "\x00\x00"
	return "E" + string(binary.BigEndian.AppendUint32(nil, uint32(len(body)+4))) + body
}

// fatalFrame is a FATAL without detail and hint.
func fatalFrame(code, message string) string {
	return errorFrame("SFATAL", "VFATAL", "C"+code, "M"+message)
}

func join(parts ...any) []byte {
	var b []byte
	for _, p := range parts {
		switch p := p.(type) {
		case string:
			b = append(b, p...)
		case []byte:
			b = append(b, p...)
		}
	}
	return b
}

// converseRaw sends bytes, ends the sending side when asked to, and returns
// everything that comes back until the proxy closes.
func (p *proxy) converseRaw(t *testing.T, send []byte, halfClose bool) string {
	t.Helper()
	c := p.dial(t, "127.0.0.1")
	c.send(send)
	if halfClose {
		c.conn.(*net.TCPConn).CloseWrite()
	}
	return c.rest()
}

// rest returns everything that comes until the proxy closes. A reset is an end
// as well: the proxy closes without reading what it did not ask for.
func (c *client) rest() string {
	c.t.Helper()
	b, err := io.ReadAll(c.conn)
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		c.t.Fatalf("the connection was not closed; it said %q", b)
	}
	c.conn.Close()
	return string(b)
}

// What comes before a session is answered as PostgreSQL answers it, with its
// bytes; and where PostgreSQL is silent nothing is said, recorded or logged.
func TestStartupPackets(t *testing.T) {
	const layout = "invalid startup packet layout: expected terminator as last byte"
	const v3 = protocol3
	version := func(v uint32) []byte { return binary.BigEndian.AppendUint32([]byte{0, 0, 0, 9}, v) }
	body := func(text string) []byte {
		b := binary.BigEndian.AppendUint32(nil, uint32(8+len(text)))
		return append(binary.BigEndian.AppendUint32(b, v3), text...)
	}
	for _, tt := range []struct {
		name string
		send []byte
		eof  bool // the client ends its side; otherwise the proxy must by itself
		want string
	}{
		{"nothing", nil, true, ""},
		{"half a length", []byte{0, 0}, true, ""},
		{"part of a packet", startupPacket(v3, "user", "x")[:12], true, ""},
		{"HTTP", []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), false, ""},
		{"length zero", []byte{0, 0, 0, 0, 0, 3, 0, 0}, false, ""},
		{"length of a length", []byte{0, 0, 0, 4, 0, 3, 0, 0}, false, ""},
		{"length without a code", []byte{0, 0, 0, 7, 0, 3, 0}, false, ""},
		{"length just too long", append(binary.BigEndian.AppendUint32(nil, 10005), 0, 3, 0, 0), false, ""},
		{"length 2 GiB", []byte{0x7f, 0xff, 0xff, 0xff, 0, 3, 0, 0}, false, ""},
		{"negative length", []byte{0xff, 0xff, 0xff, 0xff, 0, 3, 0, 0}, false, ""},
		{"TLS where there is none", []byte{0x16, 3, 1, 0, 5, 1, 0, 0, 1, 0}, false, ""},

		{"SSL and then nothing", sslRequest, true, "N"},
		{"GSS and then nothing", gssRequest, true, "N"},
		{"SSL, GSS, nothing", join(sslRequest, gssRequest), true, "NN"},
		{"GSS, SSL, nothing", join(gssRequest, sslRequest), true, "NN"},
		{"SSL twice", join(sslRequest, sslRequest), false,
			"N" + fatalFrame("0A000", "unsupported frontend protocol 1234.5679: server supports 3.0 to 3.0")},
		{"GSS twice", join(gssRequest, gssRequest), false,
			"N" + fatalFrame("0A000", "unsupported frontend protocol 1234.5680: server supports 3.0 to 3.0")},
		{"SSL, GSS, SSL", join(sslRequest, gssRequest, sslRequest), false,
			"NN" + fatalFrame("0A000", "unsupported frontend protocol 1234.5679: server supports 3.0 to 3.0")},

		{"protocol 2.0", version(2 << 16), true, ""}, // one byte short
		{"protocol 2.0, whole", append(version(2<<16), 0), false,
			"EFATAL:  unsupported frontend protocol 2.0: server supports 3.0 to 3.0\n\x00"},
		{"protocol 4.0", append(version(4<<16), 0), false,
			fatalFrame("0A000", "unsupported frontend protocol 4.0: server supports 3.0 to 3.0")},
		{"protocol 0.0", append(version(0), 0), false,
			fatalFrame("0A000", "unsupported frontend protocol 0.0: server supports 3.0 to 3.0")},

		{"no body", body(""), false, fatalFrame("08P01", layout)},
		{"no terminator", body("user\x00x\x00"), false, fatalFrame("08P01", layout)},
		{"odd strings", body("user\x00\x00"), false, fatalFrame("08P01", layout)},
		{"name without its end", body("user"), false, fatalFrame("08P01", layout)},
		{"bytes after the terminator", body("user\x00x\x00\x00y"), false, fatalFrame("08P01", layout)},
		{"no user", body("\x00"), false, fatalFrame("28000", "no PostgreSQL user name specified in startup packet")},
		{"empty user", body("user\x00\x00\x00"), false, fatalFrame("28000", "no PostgreSQL user name specified in startup packet")},
		{"no user, newer minor", join([]byte{0, 0, 0, 9, 0, 3, 0, 2, 0}), false,
			"v\x00\x00\x00\x0c\x00\x03\x00\x00\x00\x00\x00\x00" + fatalFrame("28000", "no PostgreSQL user name specified in startup packet")},

		{"cancel of nobody", cancelRequest, false, ""},
		{"cancel after SSL", join(sslRequest, cancelRequest), false, "N"},
		{"cancel after GSS", join(gssRequest, cancelRequest), false, "N"},
		{"cancel without a key", []byte("\x00\x00\x00\x0c\x04\xd2\x16\x2e\x00\x00\x00\x2a"), false, ""},
		{"cancel with a key too long", join([]byte("\x00\x00\x01\x0d\x04\xd2\x16\x2e\x00\x00\x00\x2a"), bytes.Repeat([]byte{1}, 257)), false, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := startProxyTo(t, closedPort(t))
			if got := p.converseRaw(t, tt.send, tt.eof); got != tt.want {
				t.Errorf("\n got %q\nwant %q", got, tt.want)
			}
			p.Close()
			var events []audit.Event
			for _, rec := range p.records.all() {
				events = append(events, rec.Event)
			}
			silence := !strings.Contains(tt.want, "FATAL")
			if silence && !strings.HasPrefix(tt.name, "cancel of") && !strings.HasPrefix(tt.name, "cancel after") {
				if len(events) > 0 || strings.Contains(p.log.String(), "level=INFO") {
					t.Errorf("recorded %v, logged %s", events, p.log)
				}
			}
		})
	}
}

// closedPort is the DSN of a server that nobody runs.
func closedPort(t testing.TB) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return "postgres://app:secret@" + ln.Addr().String() + "/app?sslmode=disable"
}

// Denials come after AuthenticationOk: before it libpq takes them for a reason
// to try again without TLS.
func TestStartupDenials(t *testing.T) {
	withRules := func(f func(policy.Caller) (policy.Rule, error)) func(*Server) {
		return func(srv *Server) { srv.Rules = f }
	}
	for _, tt := range []struct {
		name   string
		option func(*Server)
		from   string
		params []string
		want   string
	}{
		{"nobody", nil, "127.0.0.3", nil, fatalFrame("28000", "pgproxy: the tailnet does not know who you are")},
		{"no access", withRules(func(policy.Caller) (policy.Rule, error) {
			return policy.Rule{}, &policy.Refusal{Code: "28000", Message: "no", Detail: "because", Hint: "ask"}
		}), "", nil, errorFrame("SFATAL", "VFATAL", "C28000", "Mno", "Dbecause", "Hask")},
		{"rules that fail", withRules(func(policy.Caller) (policy.Rule, error) { return policy.Rule{}, errors.New("disk") }), "", nil,
			fatalFrame("28000", "pgproxy: no access")},
		{"TLS required", func(srv *Server) { srv.RequireTLS = true }, "", nil,
			errorFrame("SFATAL", "VFATAL", "C28000", "Mpgproxy: TLS is required", "HUse sslmode=require or stricter.")},
		{"replication", nil, "", []string{"replication", "database"}, replicationFrame},
		{"replication true", nil, "", []string{"replication", "true"}, replicationFrame},
		{"replication in an odd spelling", nil, "", []string{"replication", "tr"}, replicationFrame},
		{"database not served", nil, "", []string{"database", "nosuch"},
			errorFrame("SFATAL", "VFATAL", "C3D000", `Mpgproxy: database "nosuch" is not served`, "HServed to you: app, postgres.")},
		{"database not granted", withRule(func(r *policy.Rule) { r.Databases = []string{"postgres"} }), "", nil,
			errorFrame("SFATAL", "VFATAL", "C3D000", `Mpgproxy: database "app" is not served`, "HServed to you: postgres.")},
		{"no database granted", withRule(func(r *policy.Rule) { r.Databases = []string{} }), "", nil,
			errorFrame("SFATAL", "VFATAL", "C3D000", `Mpgproxy: database "app" is not served`, "HNo database is served to you.")},
		{"upstream out of reach", nil, "", nil, fatalFrame("08001", "the upstream server is out of reach: connection refused")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var options []func(*Server)
			if tt.option != nil {
				options = append(options, tt.option)
			}
			p := startProxyTo(t, closedPort(t), options...)
			from := tt.from
			if from == "" {
				from = "127.0.0.1"
			}
			c := p.dial(t, from)
			c.send(startupPacket(protocol3, append([]string{"user", "x"}, tt.params...)...))
			if got, want := c.rest(), authOK+tt.want; got != want {
				t.Errorf("\n got %q\nwant %q", got, want)
			}
			rec := p.records.event(t, audit.Refuse)
			if !strings.Contains(tt.want, "C"+rec.SQLState) || !strings.Contains(tt.want, "M"+rec.Error) {
				t.Errorf("recorded %s %q", rec.SQLState, rec.Error)
			}
			if rec.RequestedUser != "x" || rec.Addr == "" {
				t.Errorf("recorded user %q from %q", rec.RequestedUser, rec.Addr)
			}
		})
	}
}

var replicationFrame = errorFrame("SFATAL", "VFATAL", "C0A000", "Mpgproxy: replication connections are not supported", "HReplicate from the server itself.")

// The upstream's own refusals are passed on with their codes.
func TestUpstreamLoginErrors(t *testing.T) {
	pg := upstreamtest.Shared(t)
	t.Run("password", func(t *testing.T) {
		p := startProxyTo(t, strings.Replace(pg.DSN("app", "app"), "correct", "wrong", 1))
		c := p.dial(t, "127.0.0.1")
		c.send(startupPacket(protocol3, "user", "x"))
		if got, want := c.ended(), `R E(28P01 password authentication failed for user "app")`; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if strings.Contains(p.log.String(), "wrong") {
			t.Error("the log holds the password")
		}
	})
	t.Run("database", func(t *testing.T) {
		p := startProxy(t, func(srv *Server) { srv.Databases = []string{"*"} })
		c := p.dial(t, "127.0.0.1")
		c.send(startupPacket(protocol3, "user", "x", "database", "nosuch"))
		if got, want := c.ended(), `R E(3D000 database "nosuch" does not exist)`; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
	t.Run("value of a setting", func(t *testing.T) {
		p := startProxy(t)
		c := p.dial(t, "127.0.0.1")
		c.send(startupPacket(protocol3, "user", "x", "DateStyle", "nonsense"))
		if got, want := c.ended(), `R E(22023 invalid value for parameter "DateStyle": "nonsense")`; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}

// A session begins with [v] R N… S… K Z.
func TestWelcome(t *testing.T) {
	const helloVersion = "v\x00\x00\x00\x0c\x00\x03\x00\x00\x00\x00\x00\x00"
	options := "v\x00\x00\x00\x32\x00\x03\x00\x00\x00\x00\x00\x02_pq_.test_protocol_negotiation\x00_pq_.b\x00"
	for _, tt := range []struct {
		name    string
		version uint32
		params  []string
		before  string // before AuthenticationOk
	}{
		{"3.0", protocol3, nil, ""},
		{"3.1", protocol3 + 1, nil, helloVersion},
		{"3.2", protocol3 + 2, nil, helloVersion},
		{"3.9999", protocol3 + 9999, []string{"_pq_.test_protocol_negotiation", "", "_pq_.b", "1"}, options},
		{"3.0 with options", protocol3, []string{"_pq_.test_protocol_negotiation", "", "_pq_.b", "1"}, options},
	} {
		for _, quiet := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s quiet %v", tt.name, quiet), func(t *testing.T) {
				p := startProxy(t, func(srv *Server) { srv.QuietLogin = quiet })
				c := p.dial(t, "127.0.0.1")
				c.send(startupPacket(tt.version, append([]string{"user", "x"}, tt.params...)...))
				start := make([]byte, len(tt.before)+len(authOK))
				if _, err := io.ReadFull(c.conn, start); err != nil {
					t.Fatal(err)
				}
				if got, want := string(start), tt.before+authOK; got != want {
					t.Fatalf("\n got %q\nwant %q", got, want)
				}
				var types []byte
				for len(types) == 0 || types[len(types)-1] != 'Z' {
					f := c.next()
					if n := len(types); n == 0 || types[n-1] != f.typ {
						types = append(types, f.typ)
					}
					switch {
					case f.typ == 'K' && len(f.body) != 8:
						t.Errorf("a cancel key of %d bytes", len(f.body)-4)
					case f.typ == 'Z' && string(f.body) != "I":
						t.Errorf("ReadyForQuery %q", f.body)
					case f.typ == 'N' && !bytes.Contains(f.body, []byte("Mpgproxy: you are alice@example.com, database app, write access, ")):
						t.Errorf("notice %q", f.body)
					}
				}
				want := "NSKZ"
				if quiet {
					want = "SKZ"
				}
				if string(types) != want {
					t.Errorf("got %s, want %s", types, want)
				}
				c.want("SELECT 1", "D(1) C(SELECT 1) Z(I)")
			})
		}
	}
}

// The cancel key that the client gets is the backend's own.
func TestBackendKey(t *testing.T) {
	p := startProxy(t)
	c := p.login(t)
	c.want("SELECT pg_backend_pid()", fmt.Sprintf("D(%d) C(SELECT 1) Z(I)", c.pid))
}

// A setting given at connect is judged as the SET of the same name and value.
func TestStartupSettings(t *testing.T) {
	for _, tt := range []struct {
		name   string
		params []string
		show   string // a setting, and its value where the session begins
		want   string
	}{
		{"known", []string{"DateStyle", "German"}, "DateStyle", "German, DMY"},
		{"any case", []string{"datestyle", "SQL, DMY"}, "DateStyle", "SQL, DMY"},
		{"last of two", []string{"TimeZone", "UTC", "timezone", "Asia/Tokyo"}, "TimeZone", "Asia/Tokyo"},
		{"UTF8", []string{"client_encoding", "utf-8"}, "client_encoding", "UTF8"},
		{"SQL_ASCII as in the C locale", []string{"client_encoding", "SQL_ASCII"}, "client_encoding", "UTF8"},
		{"the client's name is not the stamp", []string{"application_name", "psql"}, "application_name", "go-proxy tsnode=alice-laptop|user=alice@example.com"},
		{"option", []string{"options", "-c work_mem=123kB"}, "work_mem", "123kB"},
		{"option in one word", []string{"options", "-cwork_mem=123kB"}, "work_mem", "123kB"},
		{"long option", []string{"options", "--work-mem=123kB"}, "work_mem", "123kB"},
		{"options with spaces", []string{"options", `  -c  search_path=a,\ b	-c work_mem=1MB `}, "search_path", "a, b"},
		{"no options", []string{"options", "  "}, "server_encoding", "UTF8"},
		{"replication off", []string{"replication", "false"}, "server_encoding", "UTF8"},
		{"database of the user's name", []string{"database", "x"}, "server_encoding", "UTF8"},
		{"own database by name", []string{"database", "postgres"}, "server_encoding", "UTF8"},
		{"stricter timeout", []string{"statement_timeout", "400ms"}, "statement_timeout", "400ms"},
		{"stricter timeout as option", []string{"options", "-c idle_in_transaction_session_timeout=9000"}, "idle_in_transaction_session_timeout", "9s"},
		{"custom setting", []string{"options", "-c app.tenant=42"}, "app.tenant", "42"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := startProxy(t)
			c := p.login(t, tt.params...)
			c.want("SHOW "+tt.show, "D("+tt.want+") C(SHOW) Z(I)")
		})
	}
	for _, tt := range []struct {
		name   string
		params []string
		code   string
		part   string
	}{
		{"encoding", []string{"client_encoding", "LATIN1"}, "42501", "client_encoding"},
		{"encoding of two bytes", []string{"client_encoding", "SJIS"}, "42501", "client_encoding"},
		{"strings", []string{"standard_conforming_strings", "off"}, "42501", "standard_conforming_strings"},
		{"role", []string{"role", "postgres"}, "42501", "role"},
		{"Role", []string{"Role", "postgres"}, "42501", "role"},
		{"session_authorization", []string{"session_authorization", "postgres"}, "42501", "session_authorization"},
		{"read only off", []string{"default_transaction_read_only", "off"}, "42501", "default_transaction_read_only"},
		{"timeout", []string{"statement_timeout", "0"}, "42501", "statement_timeout"},
		{"identity", []string{"pgproxy.user", "root"}, "42501", "pgproxy.user"},
		{"library", []string{"options", "-c session_preload_libraries=auto_explain"}, "42501", "session_preload_libraries"},
		{"library for everybody", []string{"local_preload_libraries", "auto_explain"}, "42501", "local_preload_libraries"},
		{"logging", []string{"options", "--log-statement=none"}, "42501", "log_statement"},
		{"counting", []string{"options", "-c track_counts=off"}, "42501", "track_counts"},
		{"an extension's", []string{"options", "-c auto_explain.log_min_duration=0"}, "42501", "auto_explain.log_min_duration"},
		{"other timeout", []string{"options", "-c idle_in_transaction_session_timeout=31s"}, "42501", "idle_in_transaction_session_timeout"},
		{"unknown", []string{"nosuch_setting", "1"}, "42704", "nosuch_setting"},
		{"not a name", []string{"a b\"; DROP TABLE x", "1"}, "42704", "a b"},
		{"empty name in options", []string{"options", "-c =1"}, "42501", "-c"},
		{"option timeout", []string{"options", "-c statement_timeout=0"}, "42501", "statement_timeout"},
		{"option role", []string{"options", "-crole=postgres"}, "42501", "role"},
		{"long option", []string{"options", "--session-authorization=postgres"}, "42501", "session_authorization"},
		{"option stamp", []string{"options", "-c application_name=evil"}, "42501", "application_name"},
		{"option unknown", []string{"options", "-c nosuch_setting=1"}, "42704", "nosuch_setting"},
		{"another switch", []string{"options", "-E"}, "42501", "-E"},
		{"switch without a value", []string{"options", "-c"}, "42501", "-c"},
		{"option without a value", []string{"options", "-c work_mem"}, "42501", "-c"},
		{"not UTF-8", []string{"search_path", "\xff"}, "22021", "UTF-8"},
	} {
		t.Run("refused "+tt.name, func(t *testing.T) {
			p := startProxy(t)
			c := p.dial(t, "127.0.0.1")
			c.send(startupPacket(protocol3, append([]string{"user", "x"}, tt.params...)...))
			got := c.ended()
			if !strings.HasPrefix(got, "R E("+tt.code) || !strings.Contains(got, tt.part) {
				t.Errorf("got %s, want R E(%s …%s…", got, tt.code, tt.part)
			}
			if rec := p.records.event(t, audit.Refuse); rec.Database != "app" || rec.User != "alice@example.com" {
				t.Errorf("recorded %+v", rec)
			}
		})
	}
}

func TestTooManySessions(t *testing.T) {
	const hint = "The limit is 1 session"
	refusedWith := func(c *client, want string) {
		t.Helper()
		c.send(startupPacket(protocol3, "user", "x"))
		if got := c.rest(); got != authOK+want {
			t.Errorf("\n got %q\nwant %q", got, authOK+want)
		}
	}
	t.Run("in all", func(t *testing.T) {
		p := startProxy(t, func(srv *Server) { srv.MaxSessions = 1 })
		first := p.login(t)
		if !p.Full() {
			t.Error("not full")
		}
		refusedWith(p.dial(t, "127.0.0.2"), errorFrame("SFATAL", "VFATAL", "C53300", "Mpgproxy: too many sessions", "H"+hint+" in all. Try again when somebody has left."))
		first.send(frame.Append(nil, 'X'))
		p.records.event(t, audit.Disconnect)
		p.awaitSessions(t, 0)
		p.loginFrom(t, "127.0.0.2")
	})
	// Whoever is at their own limit is told by which sessions.
	for page, end := range map[string]string{"": "Close one first.", "http://pgproxy/": "Close one, or end one at http://pgproxy/"} {
		t.Run("of one user, page "+page, func(t *testing.T) {
			p := startProxy(t, func(srv *Server) { srv.MaxSessionsPerUser, srv.StatusPage = 1, page })
			p.login(t)
			p.await(t, "the session is idle", func() bool { return len(p.Sessions()) == 1 && p.Sessions()[0].State == "idle" })
			first := p.Sessions()[0]
			detail := "\x00DYour sessions:\n" + first.ID + " on " + first.Node + " since " + first.Since.UTC().Format("2006-01-02 15:04 UTC") + ", idle for "
			c := p.dial(t, "127.0.0.1")
			c.send(startupPacket(protocol3, "user", "x"))
			got := c.rest()
			for _, want := range []string{"C53300\x00Mpgproxy: too many sessions for alice@example.com\x00", detail, "\x00H" + hint + " a user. " + end + "\x00"} {
				if !strings.Contains(got, want) {
					t.Errorf("%q is missing from %q", want, got)
				}
			}
			p.loginFrom(t, "127.0.0.2")
		})
	}
	// What one person has is no business of another's.
	t.Run("of somebody else", func(t *testing.T) {
		p := startProxy(t, func(srv *Server) { srv.MaxSessions = 1 })
		id := p.sessionOf(t, p.login(t)).id
		c := p.dial(t, "127.0.0.2")
		c.send(startupPacket(protocol3, "user", "x"))
		if got := c.rest(); strings.Contains(got, id) {
			t.Errorf("told of alice's session: %q", got)
		}
	})
}

// awaitSessions waits until the server counts n sessions.
func (p *proxy) awaitSessions(t *testing.T, n int) {
	t.Helper()
	p.await(t, fmt.Sprintf("%d sessions", n), func() bool { return len(p.live()) == n })
}

// await polls for what nothing tells of.
func (p *proxy) await(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for: %s", what)
		}
	}
}

// clientTLS trusts the authority of serverTLS's certificate.
func clientTLS(t testing.TB, caFile string) *tls.Config {
	t.Helper()
	pem, err := os.ReadFile(caFile)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	return &tls.Config{RootCAs: roots, ServerName: "127.0.0.1"}
}

// startTLS goes on inside TLS.
func (c *client) startTLS(config *tls.Config, alpn ...string) error {
	config = config.Clone()
	config.NextProtos = alpn
	conn := tls.Client(c.conn, config)
	c.conn = conn
	return conn.Handshake()
}

// askTLS sends SSLRequest, reads the answer and goes on inside TLS.
func (c *client) askTLS(config *tls.Config, alpn ...string) error {
	c.t.Helper()
	c.send(sslRequest)
	c.expect("S")
	return c.startTLS(config, alpn...)
}

// expect reads the very bytes.
func (c *client) expect(want string) {
	c.t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c.conn, got); err != nil || string(got) != want {
		c.t.Fatalf("got %q (%v), want %q", got[:n], err, want)
	}
}

func TestStartupTLS(t *testing.T) {
	server, caFile := serverTLS(t)
	config := clientTLS(t, caFile)
	start := func(t *testing.T) (*proxy, *client) {
		p := startProxy(t, func(srv *Server) { srv.TLS, srv.RequireTLS = server, true })
		return p, p.dial(t, "127.0.0.1")
	}
	ready := func(t *testing.T, c *client) {
		t.Helper()
		c.send(startupPacket(protocol3, "user", "x"))
		for c.next().typ != 'Z' {
		}
		c.want("SELECT 1", "D(1) C(SELECT 1) Z(I)")
	}
	for _, tt := range []struct {
		name   string
		before []byte // in plaintext, before SSLRequest
		answer string
		alpn   []string
	}{
		{"SSLRequest", nil, "", []string{"postgresql"}},
		{"SSLRequest without ALPN", nil, "", nil},
		{"SSLRequest with ALPN of several", nil, "", []string{"h2", "postgresql"}},
		{"SSLRequest after GSS", gssRequest, "N", []string{"postgresql"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, c := start(t)
			c.send(tt.before)
			c.expect(tt.answer)
			if err := c.askTLS(config, tt.alpn...); err != nil {
				t.Fatal(err)
			}
			ready(t, c)
		})
	}
	t.Run("SSLRequest with another ALPN", func(t *testing.T) {
		_, c := start(t)
		err := c.askTLS(config, "h2")
		if err == nil || !strings.Contains(err.Error(), "no application protocol") {
			t.Errorf("handshake: %v", err)
		}
	})
	t.Run("direct", func(t *testing.T) {
		_, c := start(t)
		if err := c.startTLS(config, "postgresql"); err != nil {
			t.Fatal(err)
		}
		ready(t, c)
	})
	t.Run("direct without ALPN", func(t *testing.T) {
		p, c := start(t)
		if err := c.startTLS(config); err != nil {
			t.Fatal(err)
		}
		c.conn.Write(startupPacket(protocol3, "user", "x")) // the proxy may have closed
		if got := c.rest(); got != "" {
			t.Errorf("got %q", got)
		}
		p.Close()
		if n := len(p.records.all()); n != 0 {
			t.Errorf("%d records", n)
		}
	})
	t.Run("direct with another ALPN", func(t *testing.T) {
		_, c := start(t)
		if err := c.startTLS(config, "h2"); err == nil {
			t.Error("the handshake succeeded")
		}
	})
	for name, request := range map[string][]byte{"5679": sslRequest, "5680": gssRequest} {
		t.Run("request inside TLS "+name, func(t *testing.T) {
			_, c := start(t)
			if err := c.askTLS(config); err != nil {
				t.Fatal(err)
			}
			c.send(request)
			want := fatalFrame("0A000", "unsupported frontend protocol 1234."+name+": server supports 3.0 to 3.0")
			if got := c.rest(); got != want {
				t.Errorf("\n got %q\nwant %q", got, want)
			}
		})
	}
	// CVE-2021-23214: what is sent in plaintext behind SSLRequest is never
	// taken for something that came through TLS.
	t.Run("stuffed plaintext", func(t *testing.T) {
		p, c := start(t)
		c.send(join(sslRequest, startupPacket(protocol3, "user", "x")))
		if got := c.rest(); !strings.HasPrefix(got, "S") || strings.Contains(got, authOK) || strings.Contains(got, "FATAL") {
			t.Errorf("got %q, want S and the end of the handshake", got)
		}
		p.Close()
		if n := len(p.records.all()); n != 0 {
			t.Errorf("%d records", n)
		}
	})
	t.Run("handshake that breaks off", func(t *testing.T) {
		_, c := start(t)
		c.send(sslRequest)
		c.expect("S")
		c.conn.(*net.TCPConn).CloseWrite()
		if got := c.rest(); got != "" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("plaintext session", func(t *testing.T) {
		_, c := start(t)
		c.send(startupPacket(protocol3, "user", "x"))
		want := authOK + errorFrame("SFATAL", "VFATAL", "C28000", "Mpgproxy: TLS is required", "HUse sslmode=require or stricter.")
		if got := c.rest(); got != want {
			t.Errorf("\n got %q\nwant %q", got, want)
		}
	})
}

// Without TLS, psql's usual sslmode=prefer goes on in plaintext.
func TestNoTLSOffered(t *testing.T) {
	p := startProxy(t)
	c := p.dial(t, "127.0.0.1")
	c.send(gssRequest)
	c.expect("N")
	c.send(sslRequest)
	c.expect("N")
	c.send(startupPacket(protocol3, "user", "x"))
	c.expect(authOK)
}

// A client that says nothing, or half of something, has the login timeout and
// no longer, and hears nothing.
func TestLoginTimeout(t *testing.T) {
	for _, tt := range []struct {
		name string
		send []byte
		want string
	}{
		{"nothing", nil, ""},
		{"half a packet", startupPacket(protocol3, "user", "x")[:9], ""},
		{"a request", sslRequest, "N"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := &Server{
					WhoIs:        func(context.Context, net.Addr) (policy.Caller, error) { return alice, nil },
					LoginTimeout: time.Minute,
					Logger:       slog.New(slog.DiscardHandler),
				}
				here, there := net.Pipe()
				began := time.Now()
				go newSession(srv, there).run()
				if _, err := here.Write(tt.send); err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(here)
				if string(got) != tt.want || err != nil {
					t.Errorf("got %q, %v", got, err)
				}
				if took := time.Since(began); took != time.Minute {
					t.Errorf("closed after %v", took)
				}
			})
		})
	}
}

// WhoIs that does not answer has the login timeout too.
func TestWhoIsTimeout(t *testing.T) {
	p := startProxy(t, func(srv *Server) {
		srv.LoginTimeout = 100 * time.Millisecond
		srv.WhoIs = func(ctx context.Context, _ net.Addr) (policy.Caller, error) {
			<-ctx.Done()
			return policy.Caller{}, ctx.Err()
		}
	})
	c := p.dial(t, "127.0.0.1")
	c.conn.Write(startupPacket(protocol3, "user", "x"))
	if got := c.rest(); strings.Contains(got, "Z\x00\x00\x00\x05") {
		t.Errorf("got %q", got)
	}
}

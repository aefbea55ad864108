package endtoend

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"pgproxy/upstream/upstreamtest"
	"pgproxy/wire/audit"
)

// Three people: one asks in psql, one approves, and a stranger may do neither. The
// access has a login of its own.
func TestElevate(t *testing.T) {
	t.Parallel()
	table(t, "raised", "id int PRIMARY KEY, n int", "VALUES (1, 0)")
	postgres.Exec(t, "CREATE ROLE raised_reader LOGIN PASSWORD '"+upstreamtest.Password+"'; GRANT pg_read_all_data TO raised_reader")
	t.Cleanup(func() { postgres.Exec(t, "DROP ROLE raised_reader") })
	told := make(chan string, 100)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var m struct{ Text string }
		json.NewDecoder(r.Body).Decode(&m)
		told <- m.Text
	}))
	t.Cleanup(receiver.Close)
	asker, approver, stranger := join(t, deviceOf("asker")), join(t, deviceOf("approver")), join(t, deviceOf("stranger"))
	tailnet.Grant("asker@example.com", capability, `{"access": "read", "elevate": {"access": "write", "by": "approval", "for": "15m"}}`)
	tailnet.Grant("approver@example.com", capability, `{"access": "read", "may_approve": true}`)
	tailnet.Grant("stranger@example.com", capability, `{"access": "read", "may_observe": true}`)
	p := start(t, "-capability", capability,
		"-policy", policyFile(t, `{"default": null, "upstream_read": `+strconv.Quote(postgres.DSN("raised_reader", "app"))+`}`),
		"-notify-url-file", write(t, filepath.Join(t.TempDir(), "url"), receiver.URL+"/hunter2\n"))

	cmd := psql(t, p, asker)
	cmd.Env = append(cmd.Env, "PGOPTIONS=-c pgproxy.quiet=on")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	both, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	out := bufio.NewScanner(both)
	say := func(sql string) {
		t.Helper()
		if _, err := io.WriteString(in, sql+"\n"); err != nil {
			t.Fatal(err)
		}
	}
	hear := func(part string) string {
		t.Helper()
		for out.Scan() {
			if strings.Contains(out.Text(), part) {
				return out.Text()
			}
		}
		t.Fatalf("psql has ended without %q", part)
		return ""
	}
	say("select current_user; update raised set n = 1 where id = 1;")
	hear("raised_reader")
	hear("ERROR:  pgproxy: UPDATE is refused")
	hear("SET pgproxy.access = 'write' gives write access for 15min, with another person's approval.")

	say("set pgproxy.reason = 'INC-42'; set pgproxy.access = 'write'; ")
	id := idOf(hear("waiting for another person to approve request "))
	if text := <-told; !strings.Contains(text, "asker@example.com on asker asks for write access to app for 15min (request "+id+"). Reason: INC-42.") || strings.Contains(text, "update") {
		t.Errorf("the webhook is told %q", text)
	}

	// On the page: the stranger sees nothing, and neither they nor who asks may answer.
	if code, body := p.browse(t, stranger, "GET", "/requests"); code != http.StatusOK || strings.Contains(body, id) {
		t.Errorf("a stranger sees %d %s", code, body)
	}
	for who, from := range map[string]func() (int, string){
		"a stranger": func() (int, string) { return p.browse(t, stranger, "POST", "/request/"+id+"/approve") },
		"who asks":   func() (int, string) { return p.browse(t, asker, "POST", "/request/"+id+"/approve") },
	} {
		if code, body := from(); code != http.StatusForbidden {
			t.Errorf("%s approves: %d %s", who, code, body)
		}
	}
	if code, body := p.browse(t, approver, "GET", "/requests"); code != http.StatusOK || !strings.Contains(body, id) || !strings.Contains(body, "INC-42") ||
		!strings.Contains(uncoloured(body), "update raised set n = 1") {
		t.Errorf("the approver sees %d %s", code, body)
	}
	if code, body := p.browse(t, approver, "POST", "/request/"+id+"/approve"); code != http.StatusSeeOther {
		t.Fatalf("the approver approves: %d %s", code, body)
	}
	hear("a new connection to the server, with the login for write access")
	hear("you have write access until ")
	say("select current_user; update raised set n = 1 where id = 1;")
	hear("app")
	hear("UPDATE 1")
	given := p.record(t, "the approval", func(r audit.Record) bool { return r.Event == audit.Elevate && r.Step == "given" })
	if given.Request != id || given.User != "asker@example.com" || !strings.HasPrefix(given.Approver, "approver@example.com on ") || given.Reason != "INC-42" {
		t.Errorf("recorded %+v", given)
	}

	// The approver's grant is taken away, and the access with it.
	tailnet.Grant("approver@example.com", capability, `{"access": "read"}`)
	p.record(t, "the end of the access", func(r audit.Record) bool { return r.Event == audit.Elevate && r.Step == "ended" })
	say("select current_user; update raised set n = 2 where id = 1;")
	hear("write access has ended, who has approved it may do so no longer")
	hear("raised_reader")
	hear("ERROR:  pgproxy: UPDATE is refused")

	// Refused, in psql.
	tailnet.Grant("approver@example.com", capability, `{"access": "read", "may_approve": true}`)
	s := p.connect(t, approver)
	say("set pgproxy.access = 'write';")
	id = idOf(hear("waiting for another person to approve request "))
	eventually(t, soon, "the approver may refuse", func() bool {
		_, err := s.try(t.Context(), "SET pgproxy.refuse = '"+id+"'")
		return err == nil
	})
	hear("ERROR:  pgproxy: the access was refused by approver@example.com")

	// Ctrl-C gives up, and ends a psql that reads a script.
	say("set pgproxy.access = 'write';")
	id = idOf(hear("waiting for another person to approve request "))
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	hear("ERROR:  canceling statement due to user request")
	s.refused(t, "SET pgproxy.approve = '"+id+"'", "42704")
	cmd.Wait() // its exit code tells of the Ctrl-C
	if strings.Contains(p.log.String(), "hunter2") {
		t.Error("the webhook's URL is in the log")
	}
}

// idOf is the request's id in the NOTICE of who waits.
func idOf(notice string) string {
	_, id, _ := strings.Cut(notice, "approve request ")
	id, _, _ = strings.Cut(id, ":")
	return id
}

// A kill -9 between an approval and what it is for: the record decides. What ran
// with a raised access has the record of its being given before it.
func TestKilledWhileApproving(t *testing.T) {
	t.Parallel()
	table(t, "killed", "id int PRIMARY KEY, n int", "VALUES (1, 0)")
	asker, approver := join(t, deviceOf("hasty")), join(t, deviceOf("calm"))
	tailnet.Grant("hasty@example.com", capability, `{"access": "read", "elevate": {"access": "write", "by": "approval", "for": "15m"}}`)
	tailnet.Grant("calm@example.com", capability, `{"access": "read", "may_approve": true}`)
	for range 3 {
		p := start(t, "-capability", capability)
		s := p.connect(t, asker)
		ctx, gone := context.WithCancel(t.Context()) // a killed node says no goodbye
		worked := make(chan struct{})
		go func() {
			defer close(worked)
			if _, err := s.try(ctx, "SET pgproxy.access = 'write'"); err == nil {
				s.try(ctx, "UPDATE killed SET n = n + 1 WHERE id = 1")
			}
		}()
		id := p.record(t, "the request", func(r audit.Record) bool { return r.Event == audit.Elevate && r.Step == "asked" }).Request
		approved := make(chan struct{})
		go func() {
			defer close(approved)
			if a, err := p.tryConnect(t, approver); err == nil {
				a.try(ctx, "SET pgproxy.approve = '"+id+"'")
			}
		}()
		p.record(t, "the approver's statement", func(r audit.Record) bool { return r.Event == audit.Query && strings.Contains(r.SQL, id) })
		p.kill()
		gone()
		<-worked
		<-approved
		given, recorded := false, 0
		for _, r := range p.records(t) {
			given = given || r.Event == audit.Elevate && r.Step == "given"
			if r.Event == audit.Query && r.Verdict == "allow" && strings.HasPrefix(r.SQL, "UPDATE killed") {
				recorded++
				if !given || r.Access != "write" {
					t.Errorf("recorded without an access that was given: %+v", r)
				}
			}
		}
		if n, err := strconv.Atoi(postgres.Exec(t, "SELECT n FROM killed")[0][0]); err != nil || n > recorded {
			t.Errorf("changed %d times, %d on record (%v)", n, recorded, err)
		}
		postgres.Exec(t, "UPDATE killed SET n = 0")
	}
}

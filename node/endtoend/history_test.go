package endtoend

import (
	"net"
	"net/http"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"pgproxy/wire/audit"
)

// A person uses psql, is watched, and has the session ended. The address in the
// NOTICE at login leads them to what happened; others learn nothing.
func TestTranscriptOfPsql(t *testing.T) {
	t.Parallel()
	p := start(t, "-policy", policyFile(t, `{"default": {}, "callers": {"watcher@example.com": {"may_observe": true, "may_kill": true}}}`))
	watcher := join(t, deviceOf("watcher"))
	cmd := psql(t, p, alice)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out := &proxyLog{grown: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write([]byte("SET pgproxy.reason = 'INC-123';\n\\d\nDELETE FROM pg_class;\nSELECT 'of ' || 'alice';\n")); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "psql has run it all", func() bool { return strings.Contains(out.String(), "of alice\n") })
	address := regexp.MustCompile(`DETAIL:  Transcript: http://[^/\s]+(/sessions/\S+)\n`).FindStringSubmatch(out.String())
	if address == nil {
		t.Fatalf("no address in\n%s", out.String())
	}
	path := address[1]
	session := strings.TrimPrefix(path, "/sessions/")

	unknown, nothing := p.browse(t, bob, "GET", "/sessions/nosuchsession")
	if code, body := p.browse(t, bob, "GET", path); code != http.StatusNotFound || code != unknown || body != nothing {
		t.Errorf("bob is told %d of alice's session, and %d of none:\n%s", code, unknown, body)
	}
	for range 3 {
		if code, body := p.browse(t, watcher, "GET", path); code != http.StatusOK || !strings.Contains(body, "live") {
			t.Errorf("watcher: %d %s", code, body)
		}
	}
	if code, body := p.browse(t, watcher, "POST", "/session/"+session+"/end"); code != http.StatusSeeOther {
		t.Errorf("ending the session: %d %s", code, body)
	}
	in.Close()
	cmd.Wait() // its last statement failed, or it did not notice
	p.record(t, "the end", func(r audit.Record) bool { return r.Event == audit.Disconnect && r.Session == session })

	_, body := p.browse(t, alice, "GET", path)
	body = uncoloured(body)
	at := 0
	for _, want := range []string{
		"connected to app", "pgproxy.reason", "psql asked the catalogue by itself", "REFUSED by rule", "DELETE FROM pg_class",
		"SELECT &#39;of &#39; || &#39;alice&#39;", "session seen by watcher@example.com on watcher", "session ended by watcher@example.com on watcher", "disconnect: ",
	} {
		i := strings.Index(body[at:], want)
		if i < 0 {
			t.Fatalf("%q is missing, or too early, in\n%s", want, body)
		}
		at += i
	}
	if n := strings.Count(body, "session seen by"); n != 1 {
		t.Errorf("watcher is named %d times", n)
	}
	if code, page := p.browse(t, alice, "GET", "/history?text=DELETE"); code != http.StatusOK || strings.Count(page, `id="statement-`) != 1 || !strings.Contains(page, "/sessions/"+session+"?at=") {
		t.Errorf("the history: %d %s", code, page)
	}
	if code, page := p.browse(t, bob, "GET", "/history"); code != http.StatusOK || strings.Contains(page, session) {
		t.Errorf("bob's history: %d %s", code, page)
	}
	report, err := exec.Command(binary, "audit", "show", "-session", session, "-markdown", p.audit).CombinedOutput()
	for _, want := range []string{"# Session " + session, "alice@example.com (alice-laptop), database app on ", "psql asked the catalogue by itself: ", "REFUSED by rule", "session seen by watcher", "Reasons given: INC-123"} {
		if err != nil || !strings.Contains(string(report), want) {
			t.Errorf("%q is missing from the report, %v:\n%s", want, err, report)
		}
	}
}

// A statement that ran when pgproxy was killed has no result. The transcript says
// that, in the next process, and in a file that was put aside.
func TestTranscriptAfterKill(t *testing.T) {
	t.Parallel()
	_, port, _ := net.SplitHostPort(freeAddr(t))
	first := startDev(t, postgres, "-debug-port", port)
	s := first.connect(t, nil)
	s.begin(t, "SELECT pg_sleep(60)")
	first.kill()

	second := startDev(t, postgres, "-debug-port", port, "-audit-log", first.audit)
	second.connect(t, nil)
	for _, target := range []string{"/sessions/" + s.id, "/sessions/" + s.id + "?at=" + time.Now().UTC().Format(time.RFC3339), "/history?text=sleep"} {
		code, body := second.browseAt(t, "127.0.0.1:"+port, nil, "GET", target)
		if code != http.StatusOK || !strings.Contains(uncoloured(body), "SELECT pg_sleep(60)") || !strings.Contains(body, "its outcome is not on record") {
			t.Errorf("%s: %d %s", target, code, body)
		}
	}
}

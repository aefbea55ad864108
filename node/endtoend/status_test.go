package endtoend

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	"pgproxy/node/nodetest"
	"pgproxy/wire/audit"
)

// browse asks the proxy's status page from a device. Answers that lead
// elsewhere are not followed.
func (p *proxy) browse(t *testing.T, from *nodetest.Peer, method, path string) (code int, body string) {
	t.Helper()
	host, _, err := net.SplitHostPort(p.addr)
	if err != nil {
		t.Fatal(err)
	}
	return p.browseAt(t, host, from, method, path)
}

// browseAt is browse for a page that is somewhere else.
func (p *proxy) browseAt(t *testing.T, host string, from *nodetest.Peer, method, path string) (code int, body string) {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true, DialContext: network(from)}
	client := http.Client{Transport: transport, Timeout: patience,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	req, err := http.NewRequestWithContext(t.Context(), method, (&url.URL{Scheme: "http", Host: host}).String()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

var spans = regexp.MustCompile(`</?span[^>]*>`)

// uncoloured is a page without the marks that colour its statements.
func uncoloured(page string) string { return spans.ReplaceAllString(page, "") }

// The status page knows people by the tailnet, as sessions do: each sees their
// own, and the one on call sees and ends what others do.
func TestStatusPage(t *testing.T) {
	t.Parallel()
	p := start(t, "-policy", policyFile(t, `{"default": {}, "callers": {"oncall@example.com": {"may_observe": true, "may_kill": true}}}`))
	oncall := join(t, deviceOf("oncall"))
	alices, bobs := p.connect(t, alice), p.connect(t, bob)
	alices.query(t, "SELECT 'of alice'")
	bobs.query(t, "SELECT 'of bob'")
	// Each of the two has asked for its session, too.

	listed := func(from *nodetest.Peer) []string {
		t.Helper()
		code, body := p.browse(t, from, "GET", "/sessions.json")
		var list []struct{ Session string }
		if err := json.Unmarshal([]byte(body), &list); code != http.StatusOK || err != nil {
			t.Fatalf("%d, %v: %s", code, err, body)
		}
		var ids []string
		for _, s := range list {
			ids = append(ids, s.Session)
		}
		return ids
	}
	for who, tt := range map[string]struct {
		from *nodetest.Peer
		want []string
	}{"alice": {alice, []string{alices.id}}, "bob": {bob, []string{bobs.id}}, "oncall": {oncall, []string{alices.id, bobs.id}}} {
		if got := listed(tt.from); !slices.Equal(got, tt.want) {
			t.Errorf("%s sees sessions %v, want %v", who, got, tt.want)
		}
		code, page := p.browse(t, tt.from, "GET", "/")
		if code != http.StatusOK || strings.Contains(page, "of bob") != (who != "alice") || !strings.Contains(page, who+"@example.com") ||
			!strings.Contains(page, `aria-label="4 statements in the last hour, 0 errors, 0 refused"`) || !strings.Contains(page, `good"><b>Control</b> ok`) {
			t.Errorf("%s sees %d: %s", who, code, page)
		}
	}
	if code, _ := p.browse(t, alice, "GET", "/debug/pprof/"); code != http.StatusForbidden {
		t.Errorf("pprof without may_observe: %d", code)
	}
	if code, body := p.browse(t, alice, "GET", "/metrics"); code != http.StatusOK || !strings.Contains(body, "pgproxy_sessions 2\n") {
		t.Errorf("/metrics: %d %s", code, body)
	}
	if code, body := p.browse(t, guest, "GET", "/"); code != http.StatusForbidden || !strings.Contains(body, "no access") {
		t.Errorf("a device of another tailnet: %d %s", code, body)
	}

	end := "/session/" + bobs.id + "/end"
	if code, _ := p.browse(t, alice, "POST", end); code != http.StatusForbidden {
		t.Errorf("alice ends bob's session: %d", code)
	}
	bobs.query(t, "SELECT 1")
	if code, body := p.browse(t, oncall, "POST", end); code != http.StatusSeeOther {
		t.Errorf("ending bob's session: %d %s", code, body)
	}
	if _, err := bobs.try(t.Context(), "SELECT 1"); err == nil {
		t.Error("bob's session goes on")
	}
	if last := bobs.last(); last.Code != "57P01" || !strings.Contains(last.Detail, "oncall@example.com") {
		t.Errorf("bob is told %v, %q", last, last.Detail)
	}
	alices.query(t, "SELECT 1")
	for verdict, reason := range map[string]string{"deny": "alice@example.com on ", "allow": "session ended by oncall@example.com on "} {
		p.record(t, verdict+" of an act", func(r audit.Record) bool {
			return r.Event == audit.Cancel && r.Session == bobs.id && r.Verdict == verdict && strings.HasPrefix(r.EndReason, reason)
		})
	}
}

// Without a tailnet the page is on the same loopback address.
func TestStatusPageOnLoopback(t *testing.T) {
	t.Parallel()
	_, port, _ := net.SplitHostPort(freeAddr(t))
	p := startDev(t, postgres, "-debug-port", port)
	s := p.connect(t, nil)
	if code, page := probe(t, "127.0.0.1:"+port, "/"); code != http.StatusOK || !strings.Contains(page, "dev@localhost") || !strings.Contains(page, s.id) {
		t.Errorf("%d: %s", code, page)
	}
}

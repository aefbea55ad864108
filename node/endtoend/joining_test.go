package endtoend

import (
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"

	"pgproxy/node/nodetest"
)

// launchWaiting starts a proxy in a tailnet whose nodes wait for a person, and
// returns when it waits, with the address of its probes.
func launchWaiting(t *testing.T, tn *nodetest.Tailnet) (p *proxy, probes, loginURL string) {
	t.Helper()
	p = &proxy{name: "pgproxy-waits"}
	p.launch(t, postgres, nil, []string{"-hostname", p.name, "-control-url", tn.ControlURL(), "-state-dir", t.TempDir(), "-health-listen", "127.0.0.1:0"})
	probes = p.log.await(t, "health")["address"].(string)
	return p, probes, p.log.await(t, "open the login URL")["url"].(string)
}

// probe asks a plain address.
func probe(t *testing.T, address, path string) (code int, body string) {
	t.Helper()
	resp, err := http.Get("http://" + address + path)
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

// A first login that waits for a person: the process is alive, is not ready,
// and says what for. The login URL is for the log alone.
func TestProbesBeforeJoining(t *testing.T) {
	t.Parallel()
	tn := nodetest.NewWith(t, nodetest.Options{NeedLogin: true})
	p, probes, url := launchWaiting(t, tn.Tailnet)
	if code, body := probe(t, probes, "/healthz"); code != 200 {
		t.Errorf("/healthz: %d %s", code, body)
	}
	code, body := probe(t, probes, "/readyz")
	if code != 503 || !strings.Contains(body, "not ready: tailnet: nobody has logged the node in") || strings.Contains(body, "/auth/") {
		t.Errorf("/readyz: %d %s", code, body)
	}
	if code, body := probe(t, probes, "/metrics"); code != 200 || !strings.Contains(body, "pgproxy_sessions 0") {
		t.Errorf("/metrics: %d %s", code, body)
	}
	if err := tn.OpenLogin(url); err != nil {
		t.Fatal(err)
	}
	p.log.await(t, "serving")
	if code, body := probe(t, probes, "/readyz"); code != 200 || body != "ready\n" {
		t.Errorf("/readyz: %d %s", code, body)
	}
}

// Whoever stops a proxy that waits need not wait.
func TestStoppedBeforeJoining(t *testing.T) {
	t.Parallel()
	tn := nodetest.NewWith(t, nodetest.Options{NeedLogin: true})
	p, _, _ := launchWaiting(t, tn.Tailnet)
	p.signal(t, syscall.SIGTERM)
	if state := p.awaitExit(t); state.ExitCode() != 0 {
		t.Errorf("pgproxy ended with %v", state)
	}
}

// A second node of the same name: everybody who asks for that name reaches the
// first. The second says so wherever somebody may look.
func TestNameTaken(t *testing.T) {
	t.Parallel()
	tn := nodetest.New(t)
	peer := tn.Person("alice@example.com", "alice-laptop")
	startAs(t, tn.Tailnet, "pgproxy-prod", nil)
	p := startAs(t, tn.Tailnet, "pgproxy-prod", nil)
	const note = "another node has the name pgproxy-prod, and this one is pgproxy-prod-1"
	if said := p.log.String(); !strings.Contains(said, `"level":"WARN","msg":"`+note) {
		t.Errorf("no warning in\n%s", said)
	}
	if code, body := p.browse(t, peer, "GET", "/readyz"); code != 200 || !strings.Contains(body, "ready\nnote: "+note) {
		t.Errorf("/readyz: %d %s", code, body)
	}
	if code, body := p.browse(t, peer, "GET", "/"); code != 200 || !strings.Contains(body, note) {
		t.Errorf("the status page: %d %s", code, body)
	}
}

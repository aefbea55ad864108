package endtoend

import (
	"strings"
	"testing"
)

// What watches the process from outside needs no access to the database, and
// learns nothing of what people do.
func TestProbes(t *testing.T) {
	t.Parallel()
	p := start(t, "-policy", policyFile(t, `{"default": null, "callers": {"alice@example.com": {}}}`))
	p.connect(t, alice).refused(t, "DROP TABLE everything", "42501")
	for path, want := range map[string]string{
		"/healthz": "ok",
		"/readyz":  "ready",
		"/metrics": "pgproxy_sessions 1",
	} {
		code, body := p.browse(t, bob, "GET", path)
		if code != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: %d, want %q in\n%s", path, code, want, body)
		}
		if strings.Contains(body, "everything") || strings.Contains(body, "alice") {
			t.Errorf("%s names people or statements:\n%s", path, body)
		}
	}
}

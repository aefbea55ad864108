package endtoend

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
)

// The tailnet's grants decide what a person may do.
func TestGrantsDecide(t *testing.T) {
	t.Parallel()
	reader, both, odd := join(t, deviceOf("reader")), join(t, deviceOf("both")), join(t, deviceOf("odd"))
	tailnet.Grant("reader@example.com", capability, `{"access": "read", "max_rows": 5}`)
	tailnet.Grant("both@example.com", capability, `{"access": "read", "max_rows": 200}`, `{"access": "write", "max_rows": 5}`)
	tailnet.Grant("odd@example.com", capability, `{"access": "reed"}`)
	p := start(t, "-capability", capability, "-policy", policyFile(t, `{"default": null, "callers": {"alice@example.com": {"access": "write", "max_rows": 7}}}`))
	table(t, "granted", "id int", "SELECT generate_series(1, 100)")
	const changes = "INSERT INTO granted VALUES (0)"
	const rows = "SELECT * FROM granted"

	t.Run("read", func(t *testing.T) {
		s := p.connect(t, reader)
		if e := s.refused(t, changes, "42501"); e.Detail == "" || e.Hint == "" {
			t.Errorf("detail %q, hint %q: want both", e.Detail, e.Hint)
		}
		// The server's own wall, behind the parser's.
		if got := s.value(t, "SHOW default_transaction_read_only"); got != "on" {
			t.Errorf("default_transaction_read_only is %s", got)
		}
		s.refused(t, "SET default_transaction_read_only = off", "42501")
		if e := s.refused(t, rows, "54000"); !strings.Contains(e.Message+e.Detail, "5 rows") {
			t.Errorf("the row cap says %v", e)
		}
	})
	t.Run("several add up", func(t *testing.T) {
		s := p.connect(t, both)
		s.query(t, "BEGIN; "+changes+"; ROLLBACK")
		if got := len(s.query(t, rows)); got != 100 {
			t.Errorf("%d rows, want all", got)
		}
	})
	t.Run("unreadable", func(t *testing.T) {
		_, err := p.tryConnect(t, odd)
		if e := wantCode(t, "with a grant that cannot be read", err, "28000"); !strings.Contains(e.Hint, "can be read") {
			t.Errorf("hint %q does not tell why", e.Hint)
		}
		line := p.log.await(t, "a grant cannot be read")
		if line["user"] != "odd@example.com" || line["capability"] != capability || !strings.Contains(fmt.Sprint(line["err"]), "reed") {
			t.Errorf("the log has %v", line)
		}
		tailnet.Grant("odd@example.com", capability, `{"acess": "admin"}`, `{"access": "read"}`)
		eventually(t, soon, "what can be read is granted", func() bool {
			s, err := p.tryConnect(t, odd)
			if err != nil {
				return false
			}
			s.refused(t, changes, "42501")
			return true
		})
	})
	t.Run("nothing granted", func(t *testing.T) {
		// Whoever has no grant is the policy file's.
		s := p.connect(t, alice)
		s.query(t, "BEGIN; "+changes+"; ROLLBACK")
		if got := s.query(t, "SHOW pgproxy.max_rows"); !reflect.DeepEqual(got, [][]string{{"7"}}) {
			t.Errorf("max_rows is %v, want the policy file's 7", got)
		}
		_, err := p.tryConnect(t, bob)
		wantCode(t, "somebody nobody names", err, "28000")
	})
}

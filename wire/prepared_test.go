package wire

import (
	"testing"

	"pgproxy/policy"
)

// TestAffectedCapOfPrepared drops and prepares names so that the proxy might
// take what changes rows for what does not.
func TestAffectedCapOfPrepared(t *testing.T) {
	const over = `E\(54000 pgproxy: the statement changed 6 rows, max_affected_rows is 5; it was rolled back\)`
	const update = "UPDATE caps.t SET n = 1 WHERE id <= 6"
	p := startProxy(t, withRule(func(r *policy.Rule) { r.MaxAffectedRows = 5 }))
	for _, tt := range []struct{ name, before, sql, answer string }{
		{"known as a read", "PREPARE p AS SELECT 1",
			"DEALLOCATE p; PREPARE p AS " + update + "; EXECUTE p", `C\(DEALLOCATE\) C\(PREPARE\) ` + over + ` Z\(I\)`},
		{"all names dropped", "PREPARE p AS SELECT 1",
			"DEALLOCATE ALL; PREPARE p AS " + update + "; EXECUTE p", `C\(DEALLOCATE ALL\) C\(PREPARE\) ` + over + ` Z\(I\)`},
		{"unknown", "",
			"PREPARE p AS " + update + "; EXECUTE p", `C\(PREPARE\) ` + over + ` Z\(I\)`},
		{"in a CTE", "PREPARE p AS SELECT 1",
			"DEALLOCATE p; PREPARE p AS WITH w AS (" + update + " RETURNING 1) SELECT 1; EXECUTE p", `C\(DEALLOCATE\) C\(PREPARE\) D\(1\) ` + over + ` Z\(I\)`},
		{"a statement named *", `PREPARE "*" AS SELECT 1; PREPARE p AS ` + update + `; DEALLOCATE "*"`,
			"EXECUTE p", over + ` Z\(I\)`},
		{"in a transaction", "PREPARE p AS SELECT 1",
			"BEGIN; DEALLOCATE p; PREPARE p AS " + update + "; EXECUTE p; COMMIT", `C\(BEGIN\) C\(DEALLOCATE\) C\(PREPARE\) ` + over + ` Z\([TEI]\)`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			freshCaps(t)
			c := p.login(t)
			c.t = t
			if tt.before != "" {
				c.query(tt.before)
			}
			c.wantLike(tt.sql, tt.answer)
			c.query("ROLLBACK")
			holds(t, "SELECT count(*) FROM caps.t WHERE n = 1", "0")
		})
	}
}

package wire

import (
	"fmt"
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

// A plan keeps what its names meant when it was made. A temporary table made
// since has the name, and the plan has the table behind it.
func TestPlansKeepTheirTables(t *testing.T) {
	for _, major := range []int{15, 18} {
		t.Run(fmt.Sprintf("PostgreSQL %d", major), func(t *testing.T) {
			pg := startMajor(t, major)
			pg.ExecAs(t, "postgres", "app", `CREATE TABLE public.orders (id int PRIMARY KEY, state text); INSERT INTO public.orders SELECT i, 'q' FROM generate_series(1, 50) i;
				CREATE FUNCTION public.victim() RETURNS int LANGUAGE sql AS 'SELECT 1'`)
			for _, tt := range []struct {
				name   string
				key    bool
				script []string // the last one must be refused
			}{
				{"the catalogue, planned by EXPLAIN", false, []string{
					"SET search_path = pg_temp, pg_catalog, public",
					"CREATE TEMP TABLE pg_proc (proname name, prosrc text)",
					"PREPARE q (name, text) AS UPDATE pg_proc SET prosrc = $2 WHERE proname = $1",
					"DROP TABLE pg_temp.pg_proc",
					"EXPLAIN EXECUTE q ('a', 'b')",
					"CREATE TEMP TABLE pg_proc (proname name, prosrc text)",
					"EXECUTE q ('victim', 'SELECT 2')",
				}},
				{"a setting, planned by EXPLAIN", false, []string{
					"SET search_path = pg_temp, pg_catalog, public",
					"CREATE TEMP TABLE pg_settings (name text, setting text)",
					"PREPARE s (text, text) AS UPDATE pg_settings SET setting = $2 WHERE name = $1",
					"DROP TABLE pg_temp.pg_settings",
					"EXPLAIN EXECUTE s ('a', 'b')",
					"CREATE TEMP TABLE pg_settings (name text, setting text)",
					"EXECUTE s ('track_counts', 'off')",
				}},
				{"a key, planned by EXPLAIN", true, []string{
					"CREATE TEMP TABLE orders (id int, state text UNIQUE)",
					"PREPARE p AS DELETE FROM orders WHERE state = 'q'",
					"DROP TABLE pg_temp.orders",
					"EXPLAIN EXECUTE p",
					"CREATE TEMP TABLE orders (id int, state text UNIQUE)",
					"EXECUTE p",
				}},
				{"a key, planned by PREPARE", true, []string{
					"PREPARE p AS DELETE FROM orders WHERE state = 'q'",
					"CREATE TEMP TABLE orders (id int, state text UNIQUE)",
					"EXECUTE p",
				}},
				{"a key, in a child of the catalogue", true, []string{
					"CREATE TEMP TABLE fake () INHERITS (pg_catalog.pg_index)",
					"DELETE FROM orders WHERE state = 'q'",
				}},
			} {
				t.Run(tt.name, func(t *testing.T) {
					p := startProxyTo(t, pg.SocketDSN("postgres", "app"), withRule(func(r *policy.Rule) {
						if tt.key {
							r.Where = policy.WhereKey
						}
					}))
					c := p.login(t)
					for _, sql := range tt.script[:len(tt.script)-1] {
						c.query(sql)
					}
					c.wantPart(tt.script[len(tt.script)-1], "E(42501 ")
					for sql, want := range map[string]string{
						"SELECT count(*) FROM public.orders":                 "50",
						"SELECT public.victim()":                             "1",
						"SELECT count(*) FROM pg_class WHERE relhassubclass": "0",
						"SELECT count(*) FROM pg_inherits":                   "0",
					} {
						if got := pg.ExecAs(t, "postgres", "app", sql)[0][0]; got != want {
							t.Errorf("%s is %s, want %s", sql, got, want)
						}
					}
					if got := p.records.tampered(); got != nil {
						t.Errorf("tampered: %q", got)
					}
				})
			}
		})
	}
}

// A temporary table of one's own stays usable by a prepared statement.
func TestPreparedOverTemporary(t *testing.T) {
	p := startProxy(t, withRule(func(r *policy.Rule) { r.Where = policy.WhereKey }))
	c := p.login(t)
	c.query("CREATE TEMP TABLE mine (id int PRIMARY KEY)")
	c.query("INSERT INTO mine VALUES (1), (2)")
	c.want("PREPARE p AS DELETE FROM mine WHERE id = 1", "C(PREPARE) Z(I)")
	c.want("EXECUTE p", "C(DELETE 1) Z(I)")
	c.wantPart("EXPLAIN (COSTS OFF) EXECUTE p", "D(Delete on mine)")
}

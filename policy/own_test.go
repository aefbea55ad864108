package policy_test

import (
	"slices"
	"testing"

	"pgproxy/policy"
	"pgproxy/upstream/upstreamtest"
)

// TestOwnNames asks real servers for all that is PostgreSQL's own, and holds
// the lists of this package against it.
func TestOwnNames(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	functions, types, operators := policy.OwnNames()
	upstreamtest.AllVersions(t, func(t *testing.T, s *upstreamtest.Server) {
		names := func(sql string) (list []string) {
			for _, row := range s.Exec(t, sql) {
				list = append(list, row[0])
			}
			return list
		}
		for _, kind := range []struct {
			list []string
			sql  string
		}{
			{functions, "SELECT DISTINCT proname FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace"},
			{types, "SELECT typname FROM pg_type WHERE typnamespace = 'pg_catalog'::regnamespace AND typrelid = 0 AND typname !~ '^_'"},
			{operators, "SELECT DISTINCT oprname FROM pg_operator WHERE oprnamespace = 'pg_catalog'::regnamespace"},
		} {
			for _, name := range names(kind.sql) {
				if !slices.Contains(kind.list, name) {
					t.Errorf("%s is not in own.txt", name)
				}
			}
		}
		for _, name := range names("SELECT DISTINCT proname FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace AND provolatile <> 'v'") {
			if !policy.RunsWhenPlanned(name) {
				t.Errorf("planning runs %s, which is not volatile", name)
			}
		}
		// Estimates and literals call the functions of operators and casts,
		// whatever they are marked as.
		for _, name := range names(`SELECT o.oid::regoperator::text FROM pg_operator o JOIN pg_proc p ON p.oid = o.oprcode WHERE o.oid < 16384 AND p.provolatile = 'v'
			UNION ALL SELECT c.castfunc::regproc::text FROM pg_cast c JOIN pg_proc p ON p.oid = c.castfunc WHERE c.oid < 16384 AND p.provolatile = 'v'`) {
			t.Errorf("%s of PostgreSQL's own has a volatile function", name)
		}
		const changeable = `SELECT relname FROM pg_class WHERE relnamespace IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
			AND relname !~ '^pg_' AND relkind NOT IN ('i', 't') AND pg_relation_is_updatable(oid, true) <> 0 ORDER BY 1`
		if got := names(changeable); !slices.Equal(got, policy.ChangeableViews) {
			t.Errorf("rows of these can be changed: %q, not %q", got, policy.ChangeableViews)
		}
	})
}

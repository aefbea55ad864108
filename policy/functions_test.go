package policy_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"pgproxy/policy"
	"pgproxy/upstream/upstreamtest"
)

// TestFunctionsOfServers asks real servers for their functions, and for those
// of every version of every extension that they can install. The table must
// have each volatile function that a statement can call, and everything that
// calls a function with an effect under another name.
func TestFunctionsOfServers(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	judge := newJudge(t)
	upstreamtest.AllVersions(t, func(t *testing.T, s *upstreamtest.Server) {
		r := functionReview{t: t, judge: judge, conn: connect(t, s, "functions"), codes: make(map[string][]namedFunction)}
		r.check("PostgreSQL itself", "oid < 16384") // FirstNormalObjectId
		installed := 0
		for _, row := range r.query("SELECT name, version FROM pg_available_extension_versions WHERE name <> 'plpgsql' ORDER BY 1, 2") {
			if err := r.install(row[0], row[1]); err != nil {
				t.Logf("%s %s is not reviewed: %v", row[0], row[1], err)
				continue
			}
			installed++
			r.check(row[0]+" "+row[1], "oid >= 16384")
		}
		if installed < 60 { // contrib alone has more
			t.Errorf("only %d versions of extensions were reviewed", installed)
		}
	})
}

// functionReview holds the table against one database.
type functionReview struct {
	t     *testing.T
	judge *policy.Judge
	conn  *pgconn.PgConn
	codes map[string][]namedFunction // by the code behind them
}

type namedFunction struct {
	name    string
	builtin bool
}

func (f namedFunction) reviewed() (reviewed, effect bool) {
	return policy.ReviewedFunction(f.name, f.builtin)
}

// install leaves one extension in the database. It fails for one that needs
// something the machine does not have.
func (r *functionReview) install(name, version string) error {
	for _, row := range r.query("SELECT extname FROM pg_extension WHERE extname <> 'plpgsql'") {
		r.query(fmt.Sprintf("DROP EXTENSION IF EXISTS %q CASCADE", row[0]))
	}
	_, err := r.conn.Exec(r.t.Context(), fmt.Sprintf("CREATE EXTENSION %q VERSION '%s' CASCADE", name, version)).ReadAll()
	return err
}

// check reviews the objects of a condition.
func (r *functionReview) check(what, objects string) {
	r.volatiles(what, objects)
	r.aliases(what, objects)
	r.callers(what, objects)
	r.definitions(what, objects)
}

// volatiles requires that every volatile function is classed. A statement can
// call neither a trigger's function nor one with an internal argument, and a
// procedure only by CALL, which needs admin access.
func (r *functionReview) volatiles(what, objects string) {
	for _, f := range r.functions(objects + ` AND provolatile = 'v' AND prokind <> 'p'
		AND prorettype NOT IN ('trigger'::regtype, 'event_trigger'::regtype) AND NOT 'internal'::regtype = ANY (proargtypes)`) {
		if reviewed, _ := f.reviewed(); !reviewed {
			r.t.Errorf("%s: function %s is not in functions.tsv", what, f.name)
		}
	}
}

// aliases requires that a function has an effect if another one by the same
// code has.
func (r *functionReview) aliases(what, objects string) {
	rows := r.query(`SELECT proname, pronamespace = 'pg_catalog'::regnamespace, concat_ws(' ', probin, prosrc) FROM pg_proc
		WHERE prolang IN (SELECT oid FROM pg_language WHERE lanname IN ('c', 'internal')) AND ` + objects)
	for _, row := range rows {
		r.codes[row[2]] = append(r.codes[row[2]], namedFunction{row[0], row[1] == "t"})
	}
	for _, row := range rows {
		code, with := row[2], 0
		functions := r.codes[code]
		for _, f := range functions {
			if _, effect := f.reviewed(); effect {
				with++
			}
		}
		if with > 0 && with < len(functions) {
			r.t.Errorf("%s: functions.tsv has an effect for some of %v only, which are all %s", what, functions, code)
		}
	}
}

// callers requires that nothing which is used without a function's name calls
// one with an effect.
func (r *functionReview) callers(what, objects string) {
	for _, f := range r.functions(`oid IN (
		SELECT oprcode FROM pg_operator WHERE ` + objects + `
		UNION SELECT castfunc FROM pg_cast WHERE ` + objects + `
		UNION SELECT conproc FROM pg_conversion WHERE ` + objects + `
		UNION SELECT unnest(ARRAY[aggtransfn, aggfinalfn, aggcombinefn, aggserialfn, aggdeserialfn, aggmtransfn, aggminvtransfn, aggmfinalfn])
			FROM pg_aggregate WHERE aggfnoid::` + objects + `
		UNION SELECT unnest(ARRAY[typinput, typoutput, typreceive, typsend, typmodin, typmodout, typanalyze, typsubscript])
			FROM pg_type WHERE ` + objects + `
		UNION SELECT amproc FROM pg_amproc WHERE ` + objects + `)`) {
		if _, effect := f.reviewed(); effect {
			r.t.Errorf("%s: an operator, a cast, an aggregate or the like calls %s", what, f.name)
		}
	}
}

// definitions requires that a view or an SQL function which read access could
// not run as a statement is in the table.
func (r *functionReview) definitions(what, objects string) {
	for _, row := range r.query("SELECT relname, pg_get_viewdef(oid) FROM pg_class WHERE relkind = 'v' AND " + objects) {
		if r.effect(row[1]) && !policy.ReviewedView(row[0]) {
			r.t.Errorf("%s: view %s is not in functions.tsv, and does %s", what, row[0], row[1])
		}
	}
	for _, row := range r.query(`SELECT proname, pronamespace = 'pg_catalog'::regnamespace, coalesce(pg_get_function_sqlbody(oid), prosrc) FROM pg_proc
		WHERE prolang IN (SELECT oid FROM pg_language WHERE lanname = 'sql') AND ` + objects) {
		body := row[2]
		if value, ok := strings.CutPrefix(body, "RETURN "); ok {
			body = "SELECT " + value
		} else if list, ok := strings.CutPrefix(body, "BEGIN ATOMIC"); ok {
			body = strings.TrimSuffix(list, "END")
		}
		if _, effect := policy.ReviewedFunction(row[0], row[1] == "t"); !effect && r.effect(body) {
			r.t.Errorf("%s: functions.tsv has no effect for %s, which does %s", what, row[0], body)
		}
	}
}

// effect reports whether read access does not include a text.
func (r *functionReview) effect(sql string) bool {
	msg, err := r.judge.Parse(r.t.Context(), sql)
	if err != nil {
		r.t.Fatalf("%v: %s", err, sql)
	}
	rule := policy.DefaultRule()
	rule.Access = policy.Read
	return policy.Decide(r.t.Context(), &rule, msg, policy.Session{}).Refusal != nil
}

// functions are the functions of a condition.
func (r *functionReview) functions(condition string) []namedFunction {
	var list []namedFunction
	for _, row := range r.query("SELECT DISTINCT proname, pronamespace = 'pg_catalog'::regnamespace FROM pg_proc WHERE " + condition + " ORDER BY 1") {
		list = append(list, namedFunction{row[0], row[1] == "t"})
	}
	return list
}

func (r *functionReview) query(sql string) [][]string { return query(r.t, r.conn, sql) }

// query runs SQL and returns the rows of its last result as text.
func query(t *testing.T, conn *pgconn.PgConn, sql string) [][]string {
	t.Helper()
	results := run(t, conn, sql)
	var rows [][]string
	for _, row := range results[len(results)-1].Rows {
		fields := make([]string, len(row))
		for i, value := range row {
			fields[i] = string(value)
		}
		rows = append(rows, fields)
	}
	return rows
}

// TestFunctionTable holds the table against itself: each function is there
// once, and a view calls one that is.
func TestFunctionTable(t *testing.T) {
	for _, problem := range policy.FunctionTableProblems() {
		t.Error(problem)
	}
}

package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	pg "github.com/pganalyze/pg_query_go/v6"
)

// relation is a table or view as a statement names it.
type relation struct {
	Schema, Name string
	Pos          int // as effect.Pos
}

func relationOf(rel *pg.RangeVar) *relation {
	return &relation{Schema: rel.GetSchemaname(), Name: rel.GetRelname(), Pos: int(rel.GetLocation())}
}

// quoted is the relation's name, as to_regclass takes it.
func (r *relation) quoted() string {
	if r.Schema == "" {
		return QuoteIdentifier(r.Name)
	}
	return QuoteIdentifier(r.Schema) + "." + QuoteIdentifier(r.Name)
}

// systemSchema reports whether a schema holds PostgreSQL's own relations.
func systemSchema(schema string) bool {
	return schema == "pg_catalog" || schema == "information_schema" || strings.HasPrefix(schema, "pg_toast")
}

// changeableViews are the relations of information_schema whose rows can be
// changed. Those of pg_catalog and pg_toast all begin with pg_.
var changeableViews = []string{"enabled_roles", "sql_features", "sql_implementation_info", "sql_parts", "sql_sizing"}

// bareCatalogName reports whether a name without a schema may, with some
// search_path, be one of PostgreSQL's own relations whose rows can be changed.
func (r *relation) bareCatalogName() bool {
	return r.Schema == "" && (strings.HasPrefix(r.Name, "pg_") || slices.Contains(changeableViews, r.Name))
}

// lookup is a change of rows that the database may have to be asked about.
type lookup struct {
	effect    *effect
	pos       int  // of the effect, or of the EXECUTE that runs it
	prepared  bool // it stands in a prepared statement
	first     bool // it is in the first statement of the message
	unsettled bool // an earlier statement may change what names mean
}

// bound reports whether the change stands in a prepared statement. Its plan may
// be an older one: a temporary table made since stands before the table that
// the plan has, and the plan stays as it is (PostgreSQL forgets it only when
// what it has changes). So both are looked at.
func (l *lookup) bound() bool { return l.prepared && l.effect.Target.Schema == "" }

// place is the position of the target's name, or of the EXECUTE in which it is
// not to be seen.
func (l *lookup) place() int {
	if l.prepared {
		return l.pos
	}
	return l.effect.Target.Pos
}

// wantsTarget and wantsKey say which questions the rule has for the change.
func (l *lookup) wantsTarget(r *Rule) bool { return r.Access < Admin }
func (l *lookup) wantsKey(r *Rule) bool    { return l.effect.Change != nil && r.Where == WhereKey }

// change judges a change of rows by its text, and notes what is to be looked up.
//
// A change of PostgreSQL's own relations, by their names or by way of a view,
// is DDL in disguise, and an UPDATE of pg_settings is a SET.
func (ev *evaluation) change(l lookup) *Refusal {
	t := l.effect.Target
	if l.wantsTarget(ev.rule) {
		switch {
		case systemSchema(t.Schema):
			return refuseCatalog(ev.rule, t.Schema+"."+t.Name, l.place())
		case t.bareCatalogName() && ev.session.Catalog == nil:
			return refuseCatalog(ev.rule, t.Name, l.place())
		case t.bareCatalogName() && l.unsettled:
			return refuseUnsettled(t, l.place())
		}
	}
	if l.wantsKey(ev.rule) {
		if why := l.keyless(ev.session.Catalog); why != "" {
			return refuseKey(l.effect, l.pos, why)
		}
	}
	if ev.session.Catalog != nil {
		ev.lookups = append(ev.lookups, l)
	}
	return nil
}

// lookUp judges a change of rows by the session's own database, with its
// search_path and temporary tables.
func (ev *evaluation) lookUp(l lookup) *Refusal {
	if l.wantsTarget(ev.rule) {
		if r := ev.target(l); r != nil {
			return r
		}
	}
	if l.wantsKey(ev.rule) {
		if why := ev.key(l); why != "" {
			return refuseKey(l.effect, l.pos, why)
		}
	}
	return nil
}

// target refuses a change of rows that reaches one of PostgreSQL's own
// relations.
func (ev *evaluation) target(l lookup) *Refusal {
	t := l.effect.Target
	if !l.unsettled && !l.bound() && ev.session.Memory.isPlain(t) {
		return nil
	}
	rows, err := ev.ask(t.query(l.unsettled, l.bound()))
	switch {
	case l.first && errors.Is(err, ErrFailedTransaction):
		return nil // the server refuses it
	case err != nil || len(rows) != 1:
		return refuseUnread(t, l.place(), err)
	case rows[0][1] != "":
		return refuseCatalog(ev.rule, rows[0][1], l.place())
	case rows[0][0] == "t" && !l.unsettled && !l.bound():
		ev.session.Memory.notePlain(t)
	}
	return nil
}

// maxLookups bounds the queries that judging one message may cost.
const maxLookups = 1000

var errLookups = errors.New("the message asks for too much of the catalogue")

// ask asks the session's database, once for each query.
func (ev *evaluation) ask(sql string) ([][]string, error) {
	if rows, ok := ev.answers[sql]; ok {
		return rows, nil
	}
	if len(ev.answers) >= maxLookups {
		return nil, errLookups
	}
	rows, err := ev.session.Catalog.Query(ev.ctx, sql)
	if err != nil {
		return nil, err
	}
	if ev.answers == nil {
		ev.answers = make(map[string][][]string)
	}
	ev.answers[sql] = rows
	return rows, nil
}

// query asks whether there is the relation, and for one of PostgreSQL's own
// that a change of its rows reaches, by way of views and their rules. It says
// nothing of a view with a trigger instead of a change, nor of a table's rules:
// these are code of the database's. It takes no lock that a table's could be in
// the way of.
//
// While names are not settled it asks about all relations of that name, and for
// a bound name about the one behind a temporary one, too.
func (r *relation) query(unsettled, bound bool) string {
	if unsettled && r.Schema == "" {
		return fmt.Sprintf(targetSQL, "c.relname OPERATOR(pg_catalog.=) "+QuoteLiteral(r.Name)+
			" AND NOT EXISTS (SELECT FROM system s WHERE s.oid OPERATOR(pg_catalog.=) c.relnamespace)")
	}
	seed := "c.oid OPERATOR(pg_catalog.=) pg_catalog.to_regclass(" + QuoteLiteral(r.quoted()) + ")"
	if bound {
		seed += " OR c.oid OPERATOR(pg_catalog.=) " + r.permanent()
	}
	return fmt.Sprintf(targetSQL, seed)
}

// permanent is the number of the relation that the name means without the
// session's temporary ones.
func (r *relation) permanent() string {
	return `(SELECT p.oid FROM ONLY pg_catalog.pg_class p JOIN ONLY pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) p.relnamespace
  WHERE p.relname OPERATOR(pg_catalog.=) ` + QuoteLiteral(r.Name) + ` AND n.oid OPERATOR(pg_catalog.<>) pg_catalog.pg_my_temp_schema()
  AND n.nspname OPERATOR(pg_catalog.=) ANY (pg_catalog.current_schemas(true))
  ORDER BY pg_catalog.array_position(pg_catalog.current_schemas(true), n.nspname) LIMIT 1)`
}

// The relations that a view speaks of stand in its parse tree:
// pg_depend leaves out the tables of pg_catalog, which cannot be dropped.
const targetSQL = `WITH RECURSIVE system (oid) AS (
  SELECT n.oid FROM ONLY pg_catalog.pg_namespace n
  WHERE n.nspname OPERATOR(pg_catalog.=) ANY (ARRAY['pg_catalog', 'information_schema']::pg_catalog.name[])
  OR pg_catalog.starts_with(n.nspname::pg_catalog.text, 'pg_toast')
), reached (oid, name, kind, system) AS (
  SELECT c.oid, c.relname, c.relkind, EXISTS (SELECT FROM system s WHERE s.oid OPERATOR(pg_catalog.=) c.relnamespace)
  FROM ONLY pg_catalog.pg_class c WHERE %s
  UNION
  SELECT c.oid, c.relname, c.relkind, EXISTS (SELECT FROM system s WHERE s.oid OPERATOR(pg_catalog.=) c.relnamespace)
  FROM reached v
  JOIN ONLY pg_catalog.pg_rewrite w ON w.ev_class OPERATOR(pg_catalog.=) v.oid AND v.kind OPERATOR(pg_catalog.=) 'v' AND NOT v.system
  CROSS JOIN LATERAL pg_catalog.regexp_matches(w.ev_action::pg_catalog.text, ':relid ([0-9]+)', 'g') m (id)
  JOIN ONLY pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) m.id[1]::pg_catalog.oid
  WHERE NOT EXISTS (SELECT FROM ONLY pg_catalog.pg_trigger t WHERE t.tgrelid OPERATOR(pg_catalog.=) v.oid
    AND (t.tgtype::pg_catalog.int4 OPERATOR(pg_catalog.&) 64) OPERATOR(pg_catalog.<>) 0)
)
SELECT pg_catalog.count(*) OPERATOR(pg_catalog.>) 0, pg_catalog.max(name::pg_catalog.text) FILTER (WHERE system) FROM reached`

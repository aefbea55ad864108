package policy

import (
	"fmt"
	"slices"
	"strings"
)

// keyless reports why a change cannot name its rows by a key, as far as its text
// shows; "" if it may.
func (l *lookup) keyless(cat Catalog) string {
	switch ch := l.effect.Change; {
	case ch.Upsert:
		return ch.Unnamed
	case ch.Pins == nil:
		return "the WHERE clause compares no column with a constant in every case"
	case cat == nil:
		return "there is no database to look the keys up in"
	case l.unsettled:
		return "an earlier statement of the same message may change which table is meant; send them one by one"
	}
	return ""
}

// key reports why a change does not name its rows by a key, "" if it does.
// The catalogue is asked for each message and no answer is kept: an ALTER TABLE, a
// search_path or a temporary table may have changed what a name means.
func (ev *evaluation) key(l lookup) string {
	ch, table := l.effect.Change, l.effect.Target
	if ch.Upsert {
		return "" // its text is enough
	}
	rows, err := ev.ask(keyQuery(table))
	switch {
	case err != nil:
		return "the catalogue cannot be read now"
	case len(rows) > 0 && rows[0][6] != "UTF8" && ch.uncertain(table):
		return "the encoding of the database leaves open which table or column is meant"
	}
	why := pinned(table.Name, ch, rows)
	if why != "" || !l.bound() {
		return why
	}
	switch rows, err := ev.ask(fmt.Sprintf(keySQL, table.permanent())); {
	case err != nil:
		return "the catalogue cannot be read now"
	case len(rows) > 0: // none: there is only the temporary one
		return pinned(table.Name, ch, rows)
	}
	return ""
}

// uncertain reports whether a name that the change relies on may be another one
// in a database that is not in UTF-8.
func (ch *change) uncertain(table *relation) bool {
	return uncertainName(table.Schema) || uncertainName(table.Name) ||
		slices.ContainsFunc(ch.Pins, func(way []string) bool { return slices.ContainsFunc(way, uncertainName) })
}

// unsettles reports whether a statement may change how names are resolved.
func unsettles(st *Statement) bool {
	switch st.Kind {
	case "BEGIN", "START TRANSACTION", "SAVEPOINT", "RELEASE", "SHOW":
		return false
	case "INSERT", "UPDATE", "DELETE", "MERGE", "SELECT", "SET", "RESET", "PREPARE", "DEALLOCATE", "DEALLOCATE ALL":
		return st.facts.Foreign || slices.ContainsFunc(st.Settings, func(name string) bool { return resolvingSettings[name] })
	}
	return true
}

// resolvingSettings are those by which names are resolved: search_path may name
// the schema of the current user.
var resolvingSettings = map[string]bool{"search_path": true, "role": true, "session_authorization": true, AnySetting: true}

// pinned reports why the rows of keyQuery show that ch may change rows of a
// table that it does not name by a key, "" if it names them all.
func pinned(table string, ch *change, rows [][]string) string {
	if len(rows) == 0 {
		return fmt.Sprintf("there is no table %q", table)
	}
	kind, rules, children := rows[0][0], rows[0][1], rows[0][2]
	switch {
	case kind != "r" && kind != "p":
		return fmt.Sprintf("%q is not a table", table)
	case rules == "t":
		return fmt.Sprintf("table %q has rules, which may change other rows", table)
	case children == "t" && !ch.Only:
		return fmt.Sprintf("other tables inherit from %q, and its keys do not hold for them; use ONLY", table)
	}
	keys := keysOf(rows)
	for _, way := range ch.Pins {
		if !slices.ContainsFunc(keys, func(key []string) bool { return covers(way, key) }) {
			return "the WHERE clause does not pin one; " + describeKeys(table, keys)
		}
	}
	return ""
}

// covers reports whether the columns hold a whole key.
func covers(columns, key []string) bool {
	for _, column := range key {
		if !slices.Contains(columns, column) {
			return false
		}
	}
	return true
}

// keysOf returns the columns of each usable key. A key with a column on which
// = may not mean what the index means is none.
func keysOf(rows [][]string) [][]string {
	var keys [][]string
	for len(rows) > 0 && rows[0][3] != "" {
		index := rows[0][3]
		var key []string
		usable := true
		for len(rows) > 0 && rows[0][3] == index {
			key = append(key, rows[0][4])
			usable = usable && rows[0][5] == "t"
			rows = rows[1:]
		}
		if usable {
			keys = append(keys, key)
		}
	}
	return keys
}

func describeKeys(table string, keys [][]string) string {
	if len(keys) == 0 {
		return fmt.Sprintf("table %q has none", table)
	}
	names := make([]string, len(keys))
	for i, key := range keys {
		names[i] = "(" + strings.Join(key, ", ") + ")"
	}
	return fmt.Sprintf("table %q has %s", table, strings.Join(names, ", "))
}

// keyQuery asks for the table as this session would resolve its name, and for
// one row for each column of each of its keys, index by index. All names in
// it are qualified, so that the session's search_path cannot change it.
//
// A key is a unique index, the primary key's or another, over whole columns and
// all rows, that is checked at once: a deferrable one may hold the same key
// several times until the transaction ends. Its column is usable when = on it is the equality
// that the index enforces: the default operator class, the column's own
// collation, and no other = operator, made by a user, that would be chosen
// for the column's type.
func keyQuery(table *relation) string {
	return fmt.Sprintf(keySQL, "pg_catalog.to_regclass("+QuoteLiteral(table.quoted())+")")
}

const keySQL = `SELECT c.relkind,
  EXISTS (SELECT FROM ONLY pg_catalog.pg_rewrite w WHERE w.ev_class OPERATOR(pg_catalog.=) c.oid),
  EXISTS (SELECT FROM ONLY pg_catalog.pg_inherits h WHERE h.inhparent OPERATOR(pg_catalog.=) c.oid AND c.relkind OPERATOR(pg_catalog.=) 'r'),
  k.indexrelid, k.attname, k.usable, pg_catalog.current_setting('server_encoding')
FROM ONLY pg_catalog.pg_class c LEFT JOIN LATERAL (
  SELECT i.indexrelid, n.n, a.attname,
    oc.opcdefault AND i.indcollation[n.n] OPERATOR(pg_catalog.=) a.attcollation AND NOT EXISTS (
      SELECT FROM ONLY pg_catalog.pg_operator o
      WHERE o.oprname OPERATOR(pg_catalog.=) '=' AND pg_catalog.pg_operator_is_visible(o.oid)
      AND o.oprnamespace OPERATOR(pg_catalog.<>) 'pg_catalog'::pg_catalog.regnamespace
      AND (o.oprleft OPERATOR(pg_catalog.=) a.atttypid OR o.oprright OPERATOR(pg_catalog.=) a.atttypid OR EXISTS (
        SELECT FROM ONLY pg_catalog.pg_cast x WHERE x.castsource OPERATOR(pg_catalog.=) a.atttypid
        AND x.castcontext OPERATOR(pg_catalog.=) 'i'
        AND (x.casttarget OPERATOR(pg_catalog.=) o.oprleft OR x.casttarget OPERATOR(pg_catalog.=) o.oprright)))
      AND NOT EXISTS (
        SELECT FROM ONLY pg_catalog.pg_amop m
        WHERE m.amopfamily OPERATOR(pg_catalog.=) oc.opcfamily AND m.amopopr OPERATOR(pg_catalog.=) o.oid
        AND m.amopstrategy OPERATOR(pg_catalog.=) 3)
    ) AND t.typtype OPERATOR(pg_catalog.<>) 'd' AS usable
  FROM ONLY pg_catalog.pg_index i
  CROSS JOIN LATERAL pg_catalog.generate_series(0, i.indnkeyatts::pg_catalog.int4 OPERATOR(pg_catalog.-) 1) n (n)
  JOIN ONLY pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) c.oid AND a.attnum OPERATOR(pg_catalog.=) i.indkey[n.n]
  JOIN ONLY pg_catalog.pg_type t ON t.oid OPERATOR(pg_catalog.=) a.atttypid
  JOIN ONLY pg_catalog.pg_opclass oc ON oc.oid OPERATOR(pg_catalog.=) i.indclass[n.n]
  WHERE i.indrelid OPERATOR(pg_catalog.=) c.oid AND i.indisunique AND i.indisvalid AND i.indislive
  AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL
) k ON true
WHERE c.oid OPERATOR(pg_catalog.=) %s
ORDER BY k.indexrelid, k.n`

// QuoteIdentifier quotes the name of a table, column, setting or the like.
func QuoteIdentifier(name string) string {
	return `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
}

// QuoteLiteral quotes a string for standard_conforming_strings, which is
// pinned on.
func QuoteLiteral(s string) string {
	return "'" + strings.ReplaceAll(s, "'", "''") + "'"
}

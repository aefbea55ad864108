package policy

import pg "github.com/pganalyze/pg_query_go/v6"

// call adds the effect of calling a function with a known effect.
func (c *classifier) call(n *pg.FuncCall, at nodeContext) {
	c.names(own().functions, n.Funcname...)
	name, builtin := functionName(n.Funcname)
	if name == "set_config" && builtin {
		c.configures(n, at)
		if at.stored { // it would run with some later statement, unseen
			c.add(effect{Class: effectConfig, Needs: Admin, Name: name, Pos: int(n.Location)})
			return
		}
		c.setConfig(n, at)
		return
	}
	if name == "ts_rewrite" && len(n.Args) > 2 {
		return // only the form with two arguments runs SQL
	}
	c.function(name, builtin, int(n.Location), at)
}

// attribute judges the names behind dots: PostgreSQL takes (x).f and x.f for
// the call f(x) when x has no column f.
func (c *classifier) attribute(names []*pg.Node, pos int, at nodeContext) {
	for _, name := range names {
		if s := name.GetString_(); s != nil {
			c.function(s.Sval, true, pos, at)
		}
	}
}

// function adds the effect of calling a function, if it is known to have one.
func (c *classifier) function(name string, builtin bool, pos int, at nodeContext) {
	f, ok := functions[name]
	if !ok || f.builtin && !builtin {
		return
	}
	if at.planned && f.needs <= Write && f.builtin && !stableChanges[name] {
		return // planning runs no volatile function
	}
	c.st.Opaque = c.st.Opaque || f.needs > Write
	c.add(effect{Class: f.class, Kind: name, Needs: f.needs, Name: name, Pos: pos, Lasts: f.lasts})
}

// stableChanges are the functions of PostgreSQL's own that are marked stable
// though they change something: planning may run them.
var stableChanges = map[string]bool{"txid_current": true, "pg_current_xact_id": true}

// functionName returns the last part of a function's name, and whether it can
// be a built-in one: without a schema, or in pg_catalog.
func functionName(parts []*pg.Node) (name string, builtin bool) {
	if len(parts) == 0 {
		return "", false
	}
	name = parts[len(parts)-1].GetString_().GetSval()
	if len(parts) == 1 {
		return name, true
	}
	return name, parts[len(parts)-2].GetString_().GetSval() == "pg_catalog"
}

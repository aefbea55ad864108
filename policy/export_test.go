package policy

// reviewedFunctions are the lines of the table that are about functions, by name.
var reviewedFunctions = func() map[string][]string {
	lines := make(map[string][]string)
	for fields := range tableLines(functionTable, 3) {
		if fields[1] != "view" {
			lines[fields[0]] = fields
		}
	}
	return lines
}()

// ReviewedFunction reports whether the table has a function, and whether it has
// an effect there. builtin says that the function is in pg_catalog.
func ReviewedFunction(name string, builtin bool) (reviewed, effect bool) {
	fields, ok := reviewedFunctions[name]
	reviewed = ok && (builtin || fields[1] == "any")
	return reviewed, reviewed && fields[2] != "no-effect"
}

// ReviewedView reports whether the table says that a view calls a function with
// an effect.
func ReviewedView(name string) bool { return effectViews[name] != "" }

// KnownKind reports whether a policy may name a kind.
var KnownKind = knownKind

// FunctionTableProblems says what is wrong with the table of functions.
func FunctionTableProblems() (problems []string) {
	seen := make(map[string]bool)
	for fields := range tableLines(functionTable, 3) {
		name, schema := fields[0], fields[1]
		_, effect := functions[fields[2]]
		switch {
		case schema == "view" && !effect:
			problems = append(problems, "view "+name+" calls no function with an effect")
		case schema != "view" && seen[name]:
			problems = append(problems, "function "+name+" is there twice")
		case schema != "view" && schema != "any" && schema != "pg_catalog":
			problems = append(problems, "function "+name+" has schema "+schema)
		}
		seen[name] = schema != "view"
	}
	return problems
}

// SettingLine returns what the table says of a setting: its contexts and its
// class, both empty for one that is not in it by its name.
func SettingLine(name string) (contexts, class string) {
	for fields := range tableLines(settingTable, 3) {
		if fields[0] == name {
			return fields[1], fields[2]
		}
	}
	return "", ""
}

// SettingNames are the settings of the table.
func SettingNames() (names []string) {
	for fields := range tableLines(settingTable, 3) {
		names = append(names, fields[0])
	}
	return names
}

// ChangeableViews are the names that a search_path may make the catalogue's.
var ChangeableViews = changeableViews

// RunsWhenPlanned reports whether a function with an effect is taken to be run
// by planning.
func RunsWhenPlanned(name string) bool {
	f, ok := functions[name]
	return !ok || f.needs > Write || !f.builtin || stableChanges[name]
}

// OwnNames are the functions, types and operators that are PostgreSQL's own.
func OwnNames() (functions, types, operators []string) {
	return own().functions, own().types, own().operators
}

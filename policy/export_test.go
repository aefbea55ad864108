package policy

import "strings"

// ReviewedFunction reports whether the table has a function.
func ReviewedFunction(name string) bool {
	return strings.Contains(functionTable, "\n"+name+"\tpg_catalog\t")
}

// KnownKind reports whether a policy may name a kind.
var KnownKind = knownKind

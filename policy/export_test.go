package policy

import "strings"

// ReviewedFunction reports whether the table has a function.
func ReviewedFunction(name string) bool {
	return strings.Contains(functionTable, "\n"+name+"\tpg_catalog\t")
}

package policy

import (
	"maps"
	"slices"
	"strconv"
	"strings"
)

// nearWords are the kinds and functions that a name may have been meant for,
// quoted.
func nearWords(name string) []string {
	return nearest(name, slices.Concat(kinds.tags, slices.Sorted(maps.Keys(functions))))
}

// nearest are those words, quoted, that a name becomes with the fewest changes:
// one in four characters at most.
func nearest(name string, words []string) []string {
	name = strings.ToLower(name)
	least := max(len(name)/4, 1)
	var near []string
	for _, word := range words {
		n := EditDistance(name, strings.ToLower(word), least)
		if n < least {
			near, least = nil, n
		}
		if n == least && len(near) < 3 {
			near = append(near, strconv.Quote(word))
		}
	}
	return near
}

// EditDistance is the number of characters to put in, leave out or replace that
// make one ASCII text of the other; any number over limit for more than that.
func EditDistance(a, b string, limit int) int {
	if len(a)-len(b) > limit || len(b)-len(a) > limit {
		return limit + 1
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replaced := diagonal
			if a[i] != b[j] {
				replaced++
			}
			diagonal = row[j+1]
			row[j+1] = min(replaced, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

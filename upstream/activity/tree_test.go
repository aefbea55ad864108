package activity

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// waiting makes backends of lines such as "2<1" (2 waits for 1) or "1" (1 does
// not wait).
func waiting(lines ...string) (list []Backend) {
	for _, line := range lines {
		waiter, blockers, _ := strings.Cut(line, "<")
		var b Backend
		fmt.Sscan(waiter, &b.PID)
		for _, pid := range strings.Fields(blockers) {
			var n int
			fmt.Sscan(pid, &n)
			b.BlockedBy = append(b.BlockedBy, n)
		}
		list = append(list, b)
	}
	return list
}

func TestTree(t *testing.T) {
	queue := []string{"1"} // twenty behind one row's lock
	for n := 2; n <= 20; n++ {
		line := fmt.Sprintf("%d<", n)
		for before := 1; before < n; before++ {
			line += fmt.Sprintf(" %d", before)
		}
		queue = append(queue, line)
	}
	queued := []string{"1"}
	for n := 2; n <= 20; n++ {
		queued = append(queued, strings.TrimSuffix(fmt.Sprintf("  %d+%d", n, n-2), "+0"))
	}
	for name, tt := range map[string]struct{ backends, want []string }{
		"nobody waits":               {[]string{"1", "2"}, nil},
		"one":                        {[]string{"2<1", "1"}, []string{"1", "  2"}},
		"a chain":                    {[]string{"2<1", "3<2", "1"}, []string{"1", "  2", "    3"}},
		"a queue":                    {queue, queued},
		"two blockers":               {[]string{"3<1 2", "1", "2"}, []string{"1", "  3+1", "2"}},
		"said twice":                 {[]string{"2<1 1 2"}, []string{"1?", "  2"}},
		"for itself":                 {[]string{"2<2"}, nil},
		"for what has ended":         {[]string{"2<1"}, []string{"1?", "  2"}},
		"for a prepared transaction": {[]string{"2<0"}, []string{"0?", "  2"}},
		"the worst first":            {[]string{"2<1", "4<3", "5<3", "1", "3"}, []string{"3", "  4", "  5", "1", "  2"}},
		"a circle":                   {[]string{"1<2", "2<1"}, []string{"1+1!", "  2"}},
		"behind a circle":            {[]string{"3<2", "1<2", "2<1"}, []string{"2+1!", "  3", "  1"}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, n := range Tree(waiting(tt.backends...)) {
				line := strings.Repeat("  ", n.Depth) + fmt.Sprint(n.PID)
				if n.Backend == nil {
					line += "?"
				}
				if n.Others > 0 {
					line += fmt.Sprintf("+%d", n.Others)
				}
				if n.Cycle {
					line += "!"
				}
				got = append(got, line)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

package policy

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// maxTimeout is the largest value PostgreSQL takes for a timeout: an int of
// milliseconds.
const maxTimeout = math.MaxInt32 * time.Millisecond

// parseDuration reads a duration as PostgreSQL writes it ("5min", "500 ms") or
// Go ("1h30m"). A number without a unit counts in unit; if unit is 0, only 0
// may stand without one.
func parseDuration(s string, unit time.Duration) (time.Duration, error) {
	d, ok := scanDuration(strings.TrimSpace(s), unit)
	switch {
	case !ok:
		return 0, fmt.Errorf(`%q is not a duration with its unit, like "30s" or "5min"`, s)
	case d < 0:
		return 0, fmt.Errorf("%q is negative; 0 means no limit", s)
	case d > maxTimeout:
		return 0, fmt.Errorf("%q is too long: %s at most", s, formatDuration(maxTimeout))
	case d%time.Millisecond != 0:
		return 0, fmt.Errorf("%q is not in whole milliseconds", s)
	}
	return d, nil
}

func scanDuration(s string, unit time.Duration) (time.Duration, bool) {
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		// Past any limit that is accepted; spares the multiplication.
		if n != 0 && unit == 0 || n > math.MaxInt32 || n < math.MinInt32 {
			return maxTimeout + 1, unit != 0
		}
		return time.Duration(n) * unit, true
	}
	if number, ok := strings.CutSuffix(s, "min"); ok {
		s = strings.TrimSpace(number) + "m"
	} else if number, ok := strings.CutSuffix(s, "d"); ok {
		days, err := strconv.ParseInt(strings.TrimSpace(number), 10, 16)
		return time.Duration(days) * 24 * time.Hour, err == nil
	}
	d, err := time.ParseDuration(strings.ReplaceAll(s, " ", ""))
	return d, err == nil
}

// formatDuration is the shortest spelling with one unit that PostgreSQL reads
// as well: "500ms", "30s", "5min".
func formatDuration(d time.Duration) string {
	switch {
	case d == 0:
		return "none"
	case d%time.Hour == 0:
		return fmt.Sprintf("%dh", d/time.Hour)
	case d%time.Minute == 0:
		return fmt.Sprintf("%dmin", d/time.Minute)
	case d%time.Second == 0:
		return fmt.Sprintf("%ds", d/time.Second)
	}
	return fmt.Sprintf("%dms", d.Milliseconds())
}

// formatBytes is a size in the largest unit that divides it.
func formatBytes(n int64) string {
	switch {
	case n == 0:
		return "none"
	case n%(1<<30) == 0:
		return fmt.Sprintf("%d GiB", n>>30)
	case n%(1<<20) == 0:
		return fmt.Sprintf("%d MiB", n>>20)
	case n%(1<<10) == 0:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d bytes", n)
}

// Count says a number of things in English: "1 row", "2 rows".
func Count(n int64, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return strconv.FormatInt(n, 10) + " " + thing + "s"
}

// Cut shortens a text to n bytes, without half of a character, and marks it as
// cut.
func Cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + " …"
}

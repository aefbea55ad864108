package status

import (
	"fmt"
	"time"
)

// age says how long something has been so, in its two largest units.
func age(d time.Duration) string {
	const day = 24 * time.Hour
	two := func(big, small time.Duration, bigName, smallName string) string {
		words := fmt.Sprintf("%d %s", d/big, bigName)
		if rest := d % big / small; rest > 0 {
			words += fmt.Sprintf(" %d %s", rest, smallName)
		}
		return words
	}
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", max(d, 0)/time.Second)
	case d < time.Hour:
		return two(time.Minute, time.Second, "min", "s")
	case d < day:
		return two(time.Hour, time.Minute, "h", "min")
	}
	return two(day, time.Hour, "d", "h")
}

// brief says how long something has been so, in its largest unit.
func brief(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < time.Minute:
		return age(d)
	case d < time.Hour:
		return age(d.Truncate(time.Minute))
	case d < day:
		return age(d.Truncate(time.Hour))
	}
	return age(d.Truncate(day))
}

// took says how long something took, to two digits at least.
func took(d time.Duration) string {
	switch {
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < 10*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return age(d)
}

// size says a number of bytes in the largest unit that fits.
func size(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/1024, 0
	for v >= 1024 && i < len(units)-1 {
		v, i = v/1024, i+1
	}
	return fmt.Sprintf("%.1f %ciB", v, units[i])
}

// utc is the absolute form of a time.
func utc(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// clock is a time as people read it.
func clock(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

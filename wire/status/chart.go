package status

import (
	"fmt"
	"strings"
	"time"

	"pgproxy/policy"
	"pgproxy/wire"
)

// The chart's own units; the browser scales it.
const (
	chartHeight = 60
	barStep     = 6
	barWidth    = 5
)

// chart is the last hour as a drawing: a bar for each minute, and a line for how
// long statements took.
type chart struct {
	Width, Height int
	Bars          []bar
	Lines         []string // points of polylines
	Statements    int64
	Errors        int64
	Refused       int64
	Peak          int64         // statements and refusals of the busiest minute
	Slowest       time.Duration // the highest point of the line
}

// bar is one minute with statements. Bad is the part of it that stands for
// errors and refusals.
type bar struct {
	X, Y, Width, Height int
	BadY, BadHeight     int
	Words               string
}

// most is the share of statements that the line is about.
const most = 0.95

// chartOf draws the minutes of an hour.
func chartOf(hour []wire.Minute) chart {
	c := chart{Width: len(hour) * barStep, Height: chartHeight}
	for i := range hour {
		m := &hour[i]
		c.Statements, c.Errors, c.Refused = c.Statements+m.Statements, c.Errors+m.Errors, c.Refused+m.Refused
		c.Peak, c.Slowest = max(c.Peak, m.Statements+m.Refused), max(c.Slowest, m.Latency(most))
	}
	var run []string
	end := func() {
		if len(run) == 1 { // a line of one point is not drawn
			run = append(run, run[0])
		}
		if len(run) > 0 {
			c.Lines, run = append(c.Lines, strings.Join(run, " ")), nil
		}
	}
	for i := range hour {
		m := &hour[i]
		if m.Statements > 0 {
			y := chartHeight - scaled(int64(m.Latency(most)), int64(c.Slowest))
			run = append(run, fmt.Sprintf("%d,%d", i*barStep+barWidth/2, y))
		} else {
			end()
		}
		if all := m.Statements + m.Refused; all > 0 {
			height, bad := scaled(all, c.Peak), 0
			if n := m.Errors + m.Refused; n > 0 {
				bad = scaled(n, c.Peak)
			}
			c.Bars = append(c.Bars, bar{X: i * barStep, Y: chartHeight - height, Width: barWidth, Height: height,
				BadY: chartHeight - bad, BadHeight: bad, Words: minuteWords(m)})
		}
	}
	end()
	return c
}

// scaled is a part of the chart's height, and never so little that it is not
// seen.
func scaled(n, peak int64) int {
	if peak == 0 {
		return 0
	}
	return max(int(n*chartHeight/peak), 2)
}

func minuteWords(m *wire.Minute) string {
	words := m.Start.UTC().Format("15:04 UTC") + ": " + policy.Count(m.Statements, "statement")
	if m.Errors > 0 {
		words += ", " + policy.Count(m.Errors, "error")
	}
	if m.Refused > 0 {
		words += fmt.Sprintf(", %d refused", m.Refused)
	}
	if m.Statements > 0 {
		words += ", 95 % within " + took(m.Latency(most))
	}
	return words
}

// Words are the chart for those who do not see it.
func (c chart) Words() string {
	return fmt.Sprintf("%s in the last hour, %s, %d refused", policy.Count(c.Statements, "statement"), policy.Count(c.Errors, "error"), c.Refused)
}

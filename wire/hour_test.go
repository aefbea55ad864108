package wire

import (
	"sync"
	"testing"
	"time"
)

func TestHour(t *testing.T) {
	var h hour
	start := time.Date(2026, 11, 24, 10, 0, 30, 0, time.UTC)
	for i := range 100 {
		took := time.Millisecond
		if i >= 90 {
			took = time.Second
		}
		h.answered(start, took, i < 3)
	}
	h.refused(start)
	h.answered(start.Add(time.Minute), -time.Second, false)
	h.answered(start.Add(time.Minute), 100*time.Hour, false)

	list := h.minutes(start.Add(2 * time.Minute))
	if len(list) != 60 || !list[59].Start.Equal(start.Truncate(time.Minute).Add(2*time.Minute)) || list[59].Statements != 0 {
		t.Fatalf("%d minutes, the last is %+v", len(list), list[59])
	}
	first := list[57]
	if first.Statements != 100 || first.Errors != 3 || first.Refused != 1 {
		t.Errorf("the first minute has %+v", first)
	}
	if half, most := first.Latency(0.5), first.Latency(0.95); half < time.Millisecond/2 || half > 2*time.Millisecond || most < time.Second/2 || most > 2*time.Second {
		t.Errorf("half took %v, most %v", half, most)
	}
	if m := list[58]; m.Statements != 2 || m.Latency(1) < 10*time.Minute {
		t.Errorf("the second minute has %+v", m)
	}
	if m := list[0]; m.Latency(0.95) != 0 {
		t.Errorf("a minute without statements has a latency of %v", m.Latency(0.95))
	}

	// An hour later the minute is another one, with or without a statement.
	if m := h.minutes(start.Add(time.Hour))[59]; m.Statements != 0 {
		t.Errorf("an hour later, the minute has %+v", m)
	}
	h.answered(start.Add(time.Hour), time.Millisecond, false)
	if m := h.minutes(start.Add(time.Hour))[59]; m.Statements != 1 || m.Errors != 0 {
		t.Errorf("an hour later, after a statement: %+v", m)
	}
}

func TestHourIsShared(t *testing.T) {
	var h hour
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				h.answered(time.Now(), time.Millisecond, true)
				h.minutes(time.Now())
			}
		})
	}
	wg.Wait()
	var n int64
	for _, m := range h.minutes(time.Now()) {
		n += m.Statements
	}
	if n != 8000 {
		t.Errorf("%d statements, want 8000", n)
	}
}

func TestHourAllocatesNothing(t *testing.T) {
	var h hour
	if n := testing.AllocsPerRun(100, func() { h.answered(time.Now(), time.Millisecond, false) }); n != 0 {
		t.Errorf("%v allocations a statement", n)
	}
}

func BenchmarkHour(b *testing.B) {
	var h hour
	b.ReportAllocs()
	for b.Loop() {
		h.answered(time.Now(), time.Millisecond, false)
	}
}

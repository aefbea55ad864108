package wire

import (
	"errors"
	"strconv"
	"testing"
	"time"

	"pgproxy/wire/audit"
)

// Looking at another person's session is on record once in an hour, and not
// possible without.
func TestObserved(t *testing.T) {
	p := startProxy(t)
	see := func(by Viewer, id string) {
		t.Helper()
		if err := p.Observed(by, id, "alice@example.com"); err != nil {
			t.Fatal(err)
		}
	}
	see(Viewer{Caller: alice}, "one") // her own
	p.records.failWith(errors.New("disk full"))
	if err := p.Observed(observer(), "one", "alice@example.com"); !errors.Is(err, ErrUnrecorded) {
		t.Errorf("without a record: %v", err)
	}
	p.records.failWith(nil)
	for range 3 {
		see(observer(), "one")
		see(observer(), "two")
		see(reaper(), "one")
	}
	p.looks.mu.Lock()
	for l, at := range p.looks.last {
		p.looks.last[l] = at.Add(-lookPeriod)
	}
	p.looks.mu.Unlock()
	see(observer(), "one")
	p.looks.mu.Lock()
	for i := range maxLooks {
		p.looks.last[look{session: strconv.Itoa(i)}] = time.Now()
	}
	p.looks.mu.Unlock()
	see(observer(), "three")
	if n := len(p.looks.last); n != 1 {
		t.Errorf("%d looks are remembered", n)
	}
	var got []string
	for _, r := range p.records.all() {
		if r.Event == audit.Observe && r.User == "alice@example.com" {
			got = append(got, r.Session+" "+r.Observer)
		}
	}
	const o = " observer@example.com on console"
	want := []string{"one" + o, "two" + o, "one reaper@example.com on console", "one" + o, "three" + o}
	if len(got) != len(want) {
		t.Fatalf("%q, want %q", got, want)
	}
	for i := range got {
		if got[i] != want[i] {
			t.Errorf("record %d is %q, want %q", i, got[i], want[i])
		}
	}
}

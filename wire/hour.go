package wire

import (
	"math/bits"
	"sync"
	"time"
)

// Minute is what the statements of one minute came to.
type Minute struct {
	Start      time.Time
	Statements int64 // answered
	Errors     int64 // of them, that ended in an error
	Refused    int64 // not sent; they are not among Statements

	// slower counts the answered statements by the number of bits of their
	// duration in microseconds: the i-th took less than 1<<i µs.
	slower [latencyBuckets]uint32
}

// Answered counts a statement that was sent and answered.
func (m *Minute) Answered(took time.Duration, failed bool) {
	m.Statements++
	if failed {
		m.Errors++
	}
	m.slower[min(bits.Len64(uint64(max(took.Microseconds(), 0))), latencyBuckets-1)]++
}

// latencyBuckets is enough for 35 minutes; what takes longer counts as that.
const latencyBuckets = 32

// Latency estimates the duration that a share (0 to 1) of the answered statements
// did not exceed: it is wrong by less than a factor of two. It is 0 where there
// were none.
func (m *Minute) Latency(share float64) time.Duration {
	wanted := share * float64(m.Statements)
	var seen float64
	for i, n := range m.slower {
		if n == 0 || seen+float64(n) < wanted {
			seen += float64(n)
			continue
		}
		lower := float64(uint64(1)<<i) / 2
		return time.Duration(lower*(1+(wanted-seen)/float64(n))) * time.Microsecond
	}
	return 0
}

// hour counts the statements of each of the last sixty minutes. Safe for
// concurrent use. Adding allocates nothing.
type hour struct {
	mu   sync.Mutex
	ring [60]Minute // by the minute of the hour
}

// at returns the counts of a minute. The caller holds mu.
func (h *hour) at(now time.Time) *Minute {
	// By Unix time, which has no zone: some zones are half an hour apart.
	minute := now.Unix() / 60
	m := &h.ring[minute%60]
	if m.Start.Unix() != minute*60 {
		*m = Minute{Start: time.Unix(minute*60, 0)}
	}
	return m
}

// answered counts a statement that was sent and answered.
func (h *hour) answered(now time.Time, took time.Duration, failed bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.at(now).Answered(took, failed)
}

// refused counts a statement that was not sent.
func (h *hour) refused(now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.at(now).Refused++
}

// minutes returns the last sixty minutes, the oldest first; the last is the one
// that has not ended.
func (h *hour) minutes(now time.Time) []Minute {
	h.mu.Lock()
	defer h.mu.Unlock()
	list := make([]Minute, 0, len(h.ring))
	for minute := now.Unix()/60 - 59; minute <= now.Unix()/60; minute++ {
		m := h.ring[minute%60]
		if m.Start.Unix() != minute*60 {
			m = Minute{Start: time.Unix(minute*60, 0)}
		}
		list = append(list, m)
	}
	return list
}

// Hour returns what the statements of the last sixty minutes came to, the
// oldest first, with a Minute for each.
func (srv *Server) Hour() []Minute { return srv.hour.minutes(time.Now()) }

// Places returns how many sessions there are, and how many there may be; 0 = no
// limit.
func (srv *Server) Places() (used, limit int) { return len(srv.live()), srv.MaxSessions }

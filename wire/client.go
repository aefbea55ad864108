package wire

import (
	"time"

	"pgproxy/wire/frame"
)

// smallWrite: writes of up to this many bytes are coalesced.
const smallWrite = 4 << 10

// Send queues bytes for the client. They may lie in the server's buffer, and
// so must be kept or flushed before it is filled again.
func (s *session) Send(b []byte) {
	if len(b) == 0 {
		return
	}
	if len(s.direct) > smallWrite {
		s.Flush()
	}
	if len(s.out) == 0 && s.direct == nil {
		s.direct = b
		return
	}
	s.out = append(append(s.out, s.direct...), b...)
	s.direct = nil
}

// Keep makes what was queued independent of the server's buffer.
func (s *session) Keep() {
	if len(s.direct) > smallWrite {
		s.Flush()
	}
	s.out = append(s.out, s.direct...)
	s.direct = nil
}

// Flush writes what was queued.
func (s *session) Flush() {
	b := s.direct
	if b == nil {
		b = s.out
	}
	s.direct = nil
	if len(b) > 0 {
		s.writeClient(b)
	}
	if s.out = s.out[:0]; cap(s.out) > frame.MinBuffer {
		s.out = nil
	}
}

// writeClient writes to the client, or notes that it cannot be written to any
// more: the session then runs on until the server has come to rest.
func (s *session) writeClient(b []byte) {
	if s.deadAs.Load() != nil {
		return
	}
	s.writing.Store(time.Now().UnixNano())
	_, err := s.conn.Write(b)
	s.writing.Store(0)
	if err != nil {
		s.markDead(reasonClientLost)
	}
}

// ready queues ReadyForQuery.
func (s *session) ready() { s.Send(frame.AppendReady(nil, s.backend.Status())) }

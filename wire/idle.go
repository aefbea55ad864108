package wire

import (
	"fmt"
)

// passIdle passes on the frames that the upstream sent by itself, as far as
// they have arrived whole. It is the client's writer while the session rests.
func (s *session) passIdle() *sessionError {
	f := &s.upstream
	for {
		typ, n, ok, err := f.header()
		switch {
		case err != nil || n > maxReply:
			return garbled(typ)
		case !ok:
			return nil
		}
		for f.w-f.r < headerLen+n {
			if err := f.fill(headerLen + n); err != nil {
				if isDeadline(err) {
					return nil // the rest is for the session's goroutine
				}
				return s.upstreamEnded(err)
			}
		}
		frame := f.buf[f.r : f.r+headerLen+n]
		f.r += len(frame)
		switch typ {
		case 'A', 'N':
			s.writeClient(frame)
		case 'S':
			s.settings.note(frame[headerLen:])
			s.writeClient(frame)
		case 'E':
			s.writeClient(frame)
			last := parseErrorFields(frame[headerLen:])
			e := silent(reasonUpstream, fmt.Errorf("%s %s: %s", last.severity, last.code, last.message))
			e.code = last.code
			return e
		default:
			return garbled(typ)
		}
	}
}

package wire

// automaton is what the session makes of a client's messages: pure, without
// I/O. It knows one thing, whether it is skipping to Sync.
type automaton struct {
	// skipping: an extended-protocol message was refused, and what follows is
	// dropped up to Sync (PostgreSQL's ignore_till_sync).
	skipping bool
}

// action is what to do with a client's message.
type action int

const (
	// drop the message, saying nothing.
	drop action = iota
	// query runs a simple query.
	query
	// refuseExtended answers an extended-protocol message with an error, and
	// skips to Sync.
	refuseExtended
	// refuseCall answers a function call with an error and ReadyForQuery.
	refuseCall
	// answerSync answers ReadyForQuery.
	answerSync
	// syncRefused is answerSync after a refused extended-protocol message, which
	// fails an open transaction.
	syncRefused
	// syncBody answers a Sync that has a body, which is an error.
	syncBody
	// terminate ends the session, as asked.
	terminate
	// unknownType ends the session with FATAL.
	unknownType
	// tooLong ends the session without a word, as PostgreSQL does.
	tooLong
)

// Longest bodies PostgreSQL takes (pqcomm.h, SocketBackend in postgres.c).
const (
	smallMessage = 10000 - 4      // PQ_SMALL_MESSAGE_LIMIT
	largeMessage = 0x3ffffffe - 4 // PQ_LARGE_MESSAGE_LIMIT
)

// next takes a message's type and the length of its body, and says what to
// do. Every action but query leaves the body to be thrown away.
func (a *automaton) next(typ byte, body int) action {
	limit := smallMessage
	switch typ {
	case 'Q', 'P', 'B', 'F', 'd':
		limit = largeMessage
	case 'C', 'D', 'E', 'H', 'S', 'X', 'c', 'f':
	default:
		return unknownType
	}
	if body > limit {
		return tooLong
	}
	switch typ {
	case 'X':
		return terminate
	case 'S':
		refused := a.skipping
		a.skipping = false
		switch {
		case body != 0:
			return syncBody
		case refused:
			return syncRefused
		}
		return answerSync
	}
	if a.skipping {
		return drop
	}
	switch typ {
	case 'Q':
		return query
	case 'F':
		return refuseCall
	case 'P', 'B', 'D', 'E', 'C':
		a.skipping = true
		return refuseExtended
	}
	return drop // H, and d, c, f outside of COPY
}

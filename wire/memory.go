package wire

import (
	"context"
	"errors"
	"fmt"
	"time"

	"pgproxy/policy"
	"pgproxy/policy/fair"
	"pgproxy/wire/exchange"
	"pgproxy/wire/frame"
)

// Bounds on the memory that large statements take, all sessions together.
const (
	// largeStatement is the length of a Query message, in bytes, beyond which
	// it waits for its share of the memory before it is read.
	largeStatement = 64 << 10
	// statementCost is how many bytes of memory a byte of a statement costs
	// while it passes: the buffer it is read into, its text, the masked text,
	// lists of its tokens, its record (twice the text, as JSON), the message for
	// the server, and what of all that has not been collected yet.
	statementCost = 8
	// statementMemory is what there is for all of them, in bytes. One caller
	// gets no more than half of it, which is enough for maxStatement.
	statementMemory = 256 << 20
	// memoryWait is how long a statement waits for its share.
	memoryWait = 10 * time.Second
)

func newStatementMemory() *fair.Semaphore { return fair.New(statementMemory, statementMemory/2) }

// takeQuery serves a Query message, of which the header has come and n bytes
// follow.
func (s *session) takeQuery(n int) *sessionError {
	if n <= largeStatement {
		body, e := s.clientBody(n)
		if e != nil {
			return e
		}
		return s.serveQuery(s.begin(), body)
	}
	st := s.begin()
	release, refusal := s.reserve(n)
	if refusal != nil {
		if e := s.life.settled(); e != nil {
			return e
		}
		if e := s.discardClient(frame.HeaderLen + n); e != nil {
			return e
		}
		return s.deny(st, policy.Decision{Refusal: refusal})
	}
	defer release()
	body, e := s.clientBody(n)
	if e != nil {
		return e
	}
	st.began = time.Now()
	return s.serveQuery(st, body)
}

// reserve waits until there is memory for a statement of n bytes. Callers share
// it fairly. A cancel request and the session's end end the waiting.
func (s *session) reserve(n int) (release func(), refusal *policy.Refusal) {
	err := s.interruptible(func(ctx context.Context) (err error) {
		ctx, cancel := context.WithTimeout(ctx, s.srv.memoryWait)
		defer cancel()
		release, err = s.srv.memory.Acquire(ctx, s.caller.Who(), statementCost*int64(n))
		return err
	})
	switch {
	case err == nil:
		return release, nil
	case errors.Is(err, context.DeadlineExceeded):
		return nil, &policy.Refusal{
			Code: codeOutOfMemory, Rule: "memory",
			Message: fmt.Sprintf("pgproxy: there was no memory for a statement of %d bytes within %v", n, s.srv.memoryWait),
			Detail:  fmt.Sprintf("Statements of more than %d bytes share %d MiB, all sessions together.", largeStatement, statementMemory>>20),
			Hint:    "Try again in a moment, or send the text in smaller statements.",
		}
	}
	return nil, &policy.Refusal{Code: codeQueryCanceled, Rule: "canceled", Message: exchange.CancelWords("")}
}

// interruptible runs wait, before a statement is sent, with a context that ends
// when the statement is cancelled or the session is to end.
func (s *session) interruptible(wait func(context.Context) error) error {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	s.life.interruptBy(cancel)
	defer s.life.interruptBy(nil)
	return wait(ctx)
}

package exchange

import (
	"errors"
	"fmt"

	"pgproxy/wire/frame"
)

// Errors that end the session. Each is also the cause that the log names;
// package wire makes the client's words of them.
var (
	// ErrCancelFate: the next statement could be hit by a cancel that was meant
	// for an earlier one.
	ErrCancelFate = errors.New("the fate of a cancel request cannot be known")
	// ErrGateSlow: cancel requests that were under way did not end in time.
	ErrGateSlow = errors.New("cancel requests did not end")
	// ErrNotRestored: a setting that belongs to pgproxy could not be put back.
	ErrNotRestored = errors.New("a protected setting could not be put back")
	// ErrNotTakenBack: a change over the cap could not be rolled back to its
	// savepoint, and is rolled back by the end of the session.
	ErrNotTakenBack = errors.New("a change over the cap could not be rolled back to its savepoint")
	// ErrMismatch: the server did something else than what was read.
	ErrMismatch = errors.New("the server read the statement differently")
	// ErrGarbled: the server sent something that cannot be an answer.
	ErrGarbled = errors.New("not an answer")
	// ErrNotFailed: an open transaction could not be failed.
	ErrNotFailed = errors.New("the transaction could not be failed")
)

// LostError is the end of the connection to the server.
type LostError struct {
	Cause error
	// Half says that the client has got half of a message: nothing more can be
	// said to it.
	Half bool
}

func (e *LostError) Error() string { return "the server's connection was lost: " + e.Cause.Error() }
func (e *LostError) Unwrap() error { return e.Cause }

// FatalError is the server's last word: a FATAL or PANIC, behind which nothing
// follows.
type FatalError struct {
	frame.ErrorFields
	// Told says that the client has got it.
	Told bool
}

func (e *FatalError) Error() string {
	return fmt.Sprintf("%s %s: %s", e.Severity, e.Code, e.Message)
}

func garbled(typ byte) error { return fmt.Errorf("%w: message %q", ErrGarbled, typ) }

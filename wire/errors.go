package wire

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"pgproxy/policy"
	"pgproxy/upstream"
	"pgproxy/wire/exchange"
	"pgproxy/wire/frame"
)

// SQLSTATEs that pgproxy itself gives, by PostgreSQL's names (errcodes.txt).
const (
	codeCannotConnect        = "08001"
	codeConnectionFailure    = "08006"
	codeProtocolViolation    = "08P01"
	codeFeatureNotSupported  = "0A000"
	codeBadEncoding          = "22021"
	codeFailedTransaction    = "25P02"
	codeActiveTransaction    = "25001"
	codeIdleInTransaction    = "25P03"
	codeInvalidAuthorization = "28000"
	codeInvalidCatalogName   = "3D000"
	codeInsufficientPriv     = "42501"
	codeUndefinedObject      = "42704"
	codeOutOfMemory          = "53200"
	codeTooManyConnections   = "53300"
	codeTooComplex           = "54001"
	codeQueryCanceled        = "57014"
	codeAdminShutdown        = "57P01"
	codeCannotConnectNow     = "57P03"
	codeIdleTimeout          = "57P05"
	codeIOError              = "58030"
	codeInternal             = "XX000"
)

// reason is why a session ended: one word for the log line, the metric and
// the disconnect record alike.
type reason string

const (
	reasonClient          reason = "client closed"       // Terminate, or the end of its stream
	reasonClientLost      reason = "client lost"         // reset, or gone in mid-statement
	reasonSlow            reason = "client too slow"     // no progress while being sent a result
	reasonIdle            reason = "idle timeout"        // no statement for too long
	reasonIdleTransaction reason = "idle in transaction" // a transaction left open for too long
	reasonUpstream        reason = "upstream lost"       // its connection ended or it said FATAL
	reasonShutdown        reason = "shutdown"            // pgproxy is stopping
	reasonRevoked         reason = "access revoked"      // policy, grants or the peer changed
	reasonKilled          reason = "ended by a person"   // from the status page
	reasonProtocol        reason = "protocol violation"  // not the protocol
	reasonStuck           reason = "statement stuck"     // it did not react to cancellation
	reasonTampered        reason = "tampering"           // a protected setting could not be put back
	reasonCancelLost      reason = "cancel lost"         // the fate of a cancel cannot be known
	reasonInternal        reason = "internal error"      // a defect of ours

	// What only a connection that has not become a session gives.
	reasonRefused reason = "refused"
	reasonLimit   reason = "session limit"
)

// sessionError is one error with its readers: the client gets an
// ErrorResponse, the log and the record get reason and cause.
type sessionError struct {
	severity     string // "ERROR", "FATAL", "WARNING" or "NOTICE"
	code         string
	message      string
	detail, hint string
	position     int // in characters from 1; 0 = none

	reason reason // why the session ends with this, if it does
	cause  error  // for the log; never sent
	quiet  bool   // the client gets no message, only the end
}

func (e *sessionError) Error() string {
	if e.cause != nil {
		return e.message + ": " + e.cause.Error()
	}
	return e.message
}

func (e *sessionError) Unwrap() error { return e.cause }

// statementError is an ERROR of ours, after which the session goes on.
func statementError(code, message string) *sessionError {
	return &sessionError{severity: "ERROR", code: code, message: message}
}

// notice is a NOTICE of ours.
func notice(message string) *sessionError {
	return &sessionError{severity: "NOTICE", code: "00000", message: message}
}

// warning is a WARNING of ours.
func warning(message string) *sessionError {
	return &sessionError{severity: "WARNING", code: "01000", message: message}
}

// cancelledError is the end of a statement that somebody has cancelled: by, where
// it was not its own client.
func cancelledError(by string) *sessionError {
	return statementError(codeQueryCanceled, exchange.CancelWords(by))
}

// fatal is a FATAL of ours, which ends the session.
func fatal(code, message string, why reason) *sessionError {
	return &sessionError{severity: "FATAL", code: code, message: message, reason: why}
}

// silent ends the session without a word to the client.
func silent(why reason, cause error) *sessionError {
	return &sessionError{severity: "FATAL", message: string(why), reason: why, cause: cause, quiet: true}
}

// withoutMessage is e for a client that has half of a frame, or is gone: only the
// end of the connection tells.
func (e *sessionError) withoutMessage() *sessionError {
	quiet := *e
	quiet.quiet = true
	return &quiet
}

// refused makes a policy's refusal into an error of the given severity.
func refused(severity string, r *policy.Refusal) *sessionError {
	return &sessionError{severity: severity, code: r.Code, message: r.Message, detail: r.Detail, hint: r.Hint, position: r.Position}
}

func (e *sessionError) withHint(hint string) *sessionError {
	e.hint = hint
	return e
}

// notice is the part of the error that the client sees.
func (e *sessionError) notice() *frame.Notice {
	return &frame.Notice{Severity: e.severity, Code: e.code, Message: e.message, Detail: e.detail, Hint: e.hint, Position: e.position}
}

// append appends the message as ErrorResponse, or NoticeResponse for a WARNING
// or NOTICE.
func (e *sessionError) append(dst []byte) []byte { return e.notice().Append(dst) }

// noConnection is dialError for a connection that the session can do without.
func noConnection(err error) *sessionError {
	e := dialError(err)
	e.severity, e.reason = "ERROR", ""
	return e
}

func dialError(err error) *sessionError {
	e := fatal(codeCannotConnect, "pgproxy: the upstream is out of reach", reasonUpstream)
	if d, ok := errors.AsType[*upstream.DialError](err); ok {
		e.code, e.message, e.detail, e.hint = d.Code, d.Message, d.Detail, d.Hint
	}
	e.cause = err
	return e
}

// unrecorded is the answer when an audit record cannot be written.
func (s *session) unrecorded(severity string, err error) *sessionError {
	s.log.Error("audit record not written", "err", err)
	return &sessionError{severity: severity, code: codeIOError, reason: reasonRefused,
		message: "pgproxy: the audit record cannot be written, so nothing was sent to the server",
		hint:    "Tell who runs pgproxy; try again when its audit log can be written."}
}

// exchangeErrors are the errors of an exchange that end the session, and what
// the client is told.
var exchangeErrors = []struct {
	err     error
	code    string
	message string
	reason  reason
}{
	{exchange.ErrCancelFate, codeConnectionFailure, "pgproxy: session closed to protect later statements: the fate of a cancel request is not known", reasonCancelLost},
	{exchange.ErrGateSlow, codeConnectionFailure, "pgproxy: session closed to protect later statements: the fate of a cancel request is not known", reasonCancelLost},
	{exchange.ErrMismatch, codeConnectionFailure, "pgproxy: session closed: the server read the statement differently from pgproxy", reasonTampered},
	{exchange.ErrNotRestored, codeAdminShutdown, "pgproxy: session closed: a setting that belongs to pgproxy could not be put back", reasonTampered},
	{exchange.ErrNotTakenBack, codeAdminShutdown, "pgproxy: session closed: a statement that changed too many rows could only be rolled back by ending it", reasonUpstream},
	{exchange.ErrNotFailed, codeConnectionFailure, "pgproxy: the transaction could not be failed", reasonUpstream},
	{exchange.ErrGarbled, codeConnectionFailure, "pgproxy: the upstream server sent something that is not an answer", reasonUpstream},
}

// exchangeError is the end of the session that an error of an exchange means.
func (s *session) exchangeError(err error) *sessionError {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*sessionError](err); ok {
		return e // what Ended has said
	}
	if lost, ok := errors.AsType[*exchange.LostError](err); ok {
		e := s.upstreamLost(lost.Cause)
		if lost.Half {
			return e.withoutMessage()
		}
		return e
	}
	if last, ok := errors.AsType[*exchange.FatalError](err); ok {
		return s.upstreamFatal(last)
	}
	for _, known := range exchangeErrors {
		if errors.Is(err, known.err) {
			e := fatal(known.code, known.message, known.reason)
			e.cause = err
			return e
		}
	}
	e := fatal(codeInternal, "pgproxy: internal error", reasonInternal)
	e.cause = err
	return e
}

// upstreamFatal is the end of the session that the server's last word means.
func (s *session) upstreamFatal(last *exchange.FatalError) *sessionError {
	_, stuck := s.life.endOf()
	var e *sessionError
	switch end := s.life.settled(); {
	case last.Told:
		e = silent(reasonUpstream, last)
		e.code = last.Code
		if last.Code == codeIdleInTransaction {
			e.reason = reasonIdleTransaction
		}
	case end != nil:
		e = end // it is our doing, and said in our words
	case stuck:
		e = stuckError()
	default:
		e = fatal(last.Code, last.Message, reasonUpstream)
	}
	return e
}

func stuckError() *sessionError {
	return fatal(codeQueryCanceled, "pgproxy: the statement did not react to cancellation; its session was ended", reasonStuck)
}

// upstreamLost is the end of the session that a failed read from the upstream
// means.
func (s *session) upstreamLost(err error) *sessionError {
	end, stuck := s.life.endOf()
	switch {
	case end != nil:
		return end
	case stuck:
		return stuckError()
	}
	e := fatal(codeConnectionFailure, "pgproxy: the connection to the upstream server was lost", reasonUpstream)
	e.cause = err
	return e
}

// sentence is an error as a sentence of its own, for a DETAIL.
func sentence(err error) string {
	text := err.Error()
	return strings.ToUpper(text[:1]) + text[1:] + "."
}

func idleTimeout(limit time.Duration) *sessionError {
	return fatal(codeIdleTimeout, fmt.Sprintf("pgproxy: terminating connection after %v without a statement", limit), reasonIdle).
		withHint("The limit is -idle-timeout.")
}

// accessEnded is the end of a session whose caller may be there no longer.
func accessEnded(why error) *sessionError {
	e := fatal(codeAdminShutdown, "pgproxy: your access has ended", reasonRevoked)
	e.detail = "The tailnet does not know this device any more, or its key has expired."
	if r, ok := errors.AsType[*policy.Refusal](why); ok {
		e.detail, e.hint = r.Message, r.Hint
	}
	e.cause = why
	return e
}

// idleInTransaction ends a session that has left a transaction open for too
// long, whoever kept the time.
func idleInTransaction(rule *policy.Rule) *sessionError {
	e := fatal(codeIdleInTransaction, fmt.Sprintf("pgproxy: terminating connection after %v idle in a transaction; the transaction was rolled back", rule.IdleInTransactionTimeout), reasonIdleTransaction)
	e.detail = fmt.Sprintf("The limit is pgproxy's: idle_in_transaction_session_timeout is %v.", rule.IdleInTransactionTimeout)
	e.hint = "Send BEGIN, the statements and COMMIT in one go. " + rule.LiftHint("idle_in_transaction_session_timeout", (10*rule.IdleInTransactionTimeout).Milliseconds())
	return e
}

func shutdownError() *sessionError {
	return fatal(codeAdminShutdown, "pgproxy: terminating connection because pgproxy is shutting down", reasonShutdown).
		withHint("Connect again in a moment.")
}

package wire

import (
	"pgproxy/policy"
	"pgproxy/wire/frame"
)

// SQLSTATEs that pgproxy itself gives, by PostgreSQL's names (errcodes.txt).
const (
	codeCannotConnect        = "08001"
	codeConnectionFailure    = "08006"
	codeProtocolViolation    = "08P01"
	codeFeatureNotSupported  = "0A000"
	codeBadEncoding          = "22021"
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

// fatal is a FATAL of ours, which ends the session.
func fatal(code, message string, why reason) *sessionError {
	return &sessionError{severity: "FATAL", code: code, message: message, reason: why}
}

// silent ends the session without a word to the client.
func silent(why reason, cause error) *sessionError {
	return &sessionError{severity: "FATAL", message: string(why), reason: why, cause: cause, quiet: true}
}

// unsaid is e for a client that has half of a frame: nothing can be said to it
// any more, only the end of the connection tells.
func (e *sessionError) unsaid() *sessionError {
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

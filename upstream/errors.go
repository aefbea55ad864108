package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"
)

// codeUnreachable is SQLSTATE sqlclient_unable_to_establish_sqlconnection.
const codeUnreachable = "08001"

// DialError says why there is no upstream connection. The four strings are for
// the client; Cause, which names hosts and users, is for the log. Neither
// holds a password.
type DialError struct {
	// Code is the server's own SQLSTATE when it answered with an error, 08001
	// when there was no answer to build a session on.
	Code    string
	Message string
	Detail  string
	Hint    string
	Cause   error
}

// Error is for the log.
func (e *DialError) Error() string { return "connecting upstream: " + e.Cause.Error() }

// Unwrap returns the cause.
func (e *DialError) Unwrap() error { return e.Cause }

// newDialError classifies what pgconn returned. With several hosts the first
// that answered speaks for all: its word says more than another's silence.
func newDialError(ctx context.Context, err error) *DialError {
	// Everything above the cause holds the config, and with it the password.
	if connectErr, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		err = connectErr.Unwrap()
	}
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return &DialError{Code: pgErr.Code, Message: pgErr.Message, Detail: pgErr.Detail, Hint: pgErr.Hint, Cause: err}
	}
	return &DialError{Code: codeUnreachable, Message: "the upstream server is out of reach: " + reason(ctx, err), Cause: err}
}

// wrongServer are target_session_attrs' answers.
var wrongServer = []error{
	pgconn.ErrReadOnlyConnection, pgconn.ErrReadWriteConnection, pgconn.ErrPrimaryConnection, pgconn.ErrStandbyConnection,
}

// reason tells a client why, in words without an address or a name.
func reason(ctx context.Context, err error) string {
	for _, e := range wrongServer {
		if errors.Is(err, e) {
			return "no host has the wanted target_session_attrs (" + e.Error() + ")"
		}
	}
	if why := tlsReason(err); why != "" {
		return why
	}
	var dnsErr *net.DNSError
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return "the attempt was given up"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case pgconn.Timeout(err), errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return "timed out"
	case errors.As(err, &dnsErr):
		return "its host name cannot be resolved"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "no route to host"
	case errors.Is(err, fs.ErrNotExist):
		return "no server at the Unix socket"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "it closed the connection"
	}
	return "it cannot be used (the proxy's log says why)"
}

func tlsReason(err error) string {
	var (
		authority x509.UnknownAuthorityError
		hostname  x509.HostnameError
		invalid   x509.CertificateInvalidError
		verify    *tls.CertificateVerificationError
		alert     tls.AlertError
		record    tls.RecordHeaderError
	)
	switch {
	case errors.As(err, &authority):
		return "its TLS certificate is signed by an unknown authority"
	case errors.As(err, &hostname):
		return "its TLS certificate is for another name"
	case errors.As(err, &invalid), errors.As(err, &verify):
		return "its TLS certificate is not valid"
	case errors.As(err, &alert), errors.As(err, &record):
		return "the TLS handshake failed"
	case strings.Contains(err.Error(), "server refused TLS connection"): // pgconn has no type for it
		return "it does not offer TLS"
	}
	return ""
}

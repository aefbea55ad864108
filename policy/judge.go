package policy

import (
	"bytes"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"pgproxy/policy/worker"
)

// Bounds of the parser processes.
const (
	parserProcesses = 2
	// parserTimeout bounds the waiting for a process and the reading of one
	// text together.
	parserTimeout = 10 * time.Second
	// parserMemory is what a process may take, in bytes: the largest texts were
	// measured at 150 MiB.
	parserMemory = 1 << 30
	// parserReuse is the largest text after which a process is used again.
	parserReuse = 1 << 20
)

// Judge reads texts and keeps what it has read. It is safe for concurrent use.
//
// A text so short that it cannot overflow the stack is parsed in this process.
// Any other is parsed in a child process, which may crash without harm. See the
// package comment.
type Judge struct {
	parsers *worker.Pool
	cache   cache
	inside  int // the largest text in bytes that is parsed in this process
}

// NewJudge returns a Judge. It must be closed.
func NewJudge() (*Judge, error) {
	inside, err := safeText()
	if err != nil {
		return nil, err
	}
	return &Judge{parsers: worker.New(parserProcesses, parserReuse), inside: inside}, nil
}

// Close ends the parser processes and waits for them. Parse must not be called
// any more.
func (j *Judge) Close() error {
	j.parsers.Close()
	return nil
}

// The parser needs at most stackPerByte bytes of stack for each byte of text:
// the worst text, a row of plus signs, was measured at 350, and no level of
// the grammar is entered by less than one byte. maxInside keeps what is parsed
// here short even where the stack would allow more: a text of that size takes
// at most some milliseconds, and its time grows with the square of the size.
const (
	stackPerByte = 1024
	maxInside    = 2 << 10
	// smallestStack is what glibc gives a thread where the limit is none.
	smallestStack = 2 << 20
)

// safeText returns the size of the largest text that no thread's stack is too
// small for.
func safeText() (int, error) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_STACK, &limit); err != nil {
		return 0, fmt.Errorf("reading the stack limit: %w", err)
	}
	stack := limit.Cur
	if stack > 1<<30 { // none
		stack = smallestStack
	}
	return int(min(stack/stackPerByte, maxInside)), nil
}

// Parse reads the text of a simple Query message. The error is always a
// *Refusal.
func (j *Judge) Parse(ctx context.Context, sql string) (*Message, error) {
	return j.ParseFor(ctx, "", sql)
}

// ParseFor is Parse for one of several callers, who share the parser processes
// fairly: one caller's texts leave a process to the others.
func (j *Judge) ParseFor(ctx context.Context, caller, sql string) (*Message, error) {
	if msg := j.cache.get(sql); msg != nil {
		return msg, nil
	}
	msg, refusal := j.parse(ctx, caller, sql)
	if refusal != nil {
		return nil, refusal
	}
	j.cache.put(sql, msg)
	return msg, nil
}

func (j *Judge) parse(ctx context.Context, caller, sql string) (*Message, *Refusal) {
	switch {
	case strings.IndexByte(sql, 0) >= 0, !utf8.ValidString(sql): // the parser stops at a zero byte, and reads invalid UTF-8 unlike the server
		return nil, &Refusal{Code: "22021", Message: "invalid byte sequence for encoding \"UTF8\"", Rule: "encoding"}
	case len(sql) <= j.inside:
		return parseInside(sql)
	case len(sql) > MaxText:
		return nil, tooLarge("it is longer than 16 MiB")
	}
	// No process is used for a text that the scan refuses. The process scans the
	// text again, which costs little beside the parser.
	if _, refusal := scan(sql); refusal != nil {
		return nil, refusal
	}
	return j.parseOutside(ctx, caller, sql)
}

// parseInside parses a text in this process. If classifying it panics, the text is
// refused, and the session goes on.
func parseInside(sql string) (msg *Message, refusal *Refusal) {
	defer func() {
		if recover() != nil {
			msg, refusal = nil, tooComplex(sql, 0, "pgproxy could not classify it")
		}
	}()
	return parse(sql)
}

// parseOutside has a child process parse a text.
func (j *Judge) parseOutside(ctx context.Context, caller, sql string) (*Message, *Refusal) {
	ctx, cancel := context.WithTimeout(ctx, parserTimeout)
	defer cancel()
	answer, err := j.parsers.Do(ctx, caller, sql)
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, worker.ErrClosed):
		return nil, &Refusal{Code: "57014", Message: "canceling statement due to user request", Rule: "canceled"}
	case errors.Is(err, context.DeadlineExceeded):
		return nil, tooComplex(sql, 0, "the parser did not read it in time")
	case err != nil:
		return nil, tooComplex(sql, 0, "the parser could not read it")
	}
	var r parsed
	if err := gob.NewDecoder(bytes.NewReader(answer)).Decode(&r); err != nil {
		return nil, tooComplex(sql, 0, "the parser could not read it")
	}
	return r.message(), r.Refusal
}

// parsed is what a parser process answers: a Message in a form that can be
// sent, or a Refusal.
type parsed struct {
	Statements  []Statement
	Facts       []facts // of Statements
	Fingerprint string
	Refusal     *Refusal
}

func (r *parsed) message() *Message {
	if r.Refusal != nil {
		return nil
	}
	msg := &Message{Statements: r.Statements, Fingerprint: r.Fingerprint}
	for i := range r.Statements {
		msg.Statements[i].facts = r.Facts[i]
	}
	msg.seal()
	return msg
}

// A program that imports this package is its own parser process. This is done in
// an init function, so that neither main nor a test binary has to call anything.
func init() {
	if !worker.Child() {
		return
	}
	if err := worker.Serve(parserMemory, answer); err != nil {
		fmt.Fprintln(os.Stderr, "parser process:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// answer is what a parser process makes of a text.
func answer(text []byte) []byte {
	var r parsed
	msg, refusal := parse(string(text))
	r.Refusal = refusal
	if msg != nil {
		r.Statements, r.Fingerprint = msg.Statements, msg.Fingerprint
		for i := range msg.Statements {
			r.Facts = append(r.Facts, msg.Statements[i].facts)
		}
	}
	var b bytes.Buffer
	if err := gob.NewEncoder(&b).Encode(&r); err != nil {
		panic("policy: answer cannot be encoded: " + err.Error())
	}
	return b.Bytes()
}

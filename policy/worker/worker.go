// Package worker runs a function in child processes of this same program, so
// that a crash there, or a call that never ends, costs one answer and not the
// process.
//
// The child is the program itself, started with Arg as its first argument;
// Child tells it so, and Serve is what it then does instead of its own work. A
// request is a byte string and so is its answer; each goes over a pipe behind
// its length in four bytes. What the child does with the bytes is not this
// package's business.
package worker

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"

	"pgproxy/policy/fair"
)

// Arg is the first argument of a child process.
const Arg = "pgproxy-parser"

// maxFrame bounds a request and an answer, in bytes.
const maxFrame = 1 << 30

// ErrClosed is returned by Do after Close.
var ErrClosed = errors.New("worker pool is closed")

// Pool is a fixed number of places for child processes. A process is started
// when it is first needed and lives until it fails, is retired, or the pool is
// closed. A Pool is safe for concurrent use.
//
// Callers share the places fairly, and one caller never has the last of them:
// however long its requests take, there is a place for the others.
type Pool struct {
	// MaxReuse is the largest request in bytes after which a process is kept:
	// one that has read a larger text is ended, and its memory with it.
	MaxReuse int

	turns *fair.Semaphore // of places
	ctx   context.Context // ends with Close
	close context.CancelFunc

	mu     sync.Mutex
	idle   []*process // those that nobody uses; the last one is used next
	busy   int        // calls of Do that have a place
	closed bool
	ended  sync.Cond // on mu: busy has fallen
}

// New returns a pool of n places. It must be closed.
func New(n, maxReuse int) *Pool {
	p := &Pool{MaxReuse: maxReuse, turns: fair.New(int64(n), int64(max(n-1, 1)))}
	p.ctx, p.close = context.WithCancel(context.Background())
	p.ended.L = &p.mu
	return p
}

// Do sends a caller's request to a child process and returns its answer. It
// waits for a free place; when ctx ends, so does the child, and Do returns. Any
// error but ErrClosed and ctx's means that the child died of the request.
func (p *Pool) Do(ctx context.Context, caller, request string) ([]byte, error) {
	done, err := p.turn(ctx, caller)
	if err != nil {
		return nil, err
	}
	defer done()
	child, err := p.take(len(request))
	if err != nil {
		return nil, err
	}
	used := child != nil
	child, answer, err := attempt(ctx, child, request)
	if err != nil && used && ctx.Err() == nil {
		// It may have died before, of something else.
		child, answer, err = attempt(ctx, nil, request)
	}
	p.put(child, len(request))
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	return answer, err
}

// turn waits for the caller's turn to take a place.
func (p *Pool) turn(ctx context.Context, caller string) (done func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(p.ctx, cancel)()
	done, err = p.turns.Acquire(ctx, caller, 1)
	if err != nil && p.ctx.Err() != nil {
		return nil, ErrClosed
	}
	return done, err
}

// take returns an idle process for a request of a size, nil where one is to be
// started. A request after which its process is ended gets a new one, so that
// small requests find one that runs; beside those at work there are thus at most
// as many idle ones.
func (p *Pool) take(size int) (*process, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, ErrClosed
	}
	p.busy++
	last := len(p.idle) - 1
	if last < 0 || size > p.MaxReuse {
		return nil, nil
	}
	child := p.idle[last]
	p.idle = p.idle[:last]
	return child, nil
}

// put ends what take began. A process that can be asked again becomes idle.
func (p *Pool) put(child *process, size int) {
	if child != nil && size > p.MaxReuse {
		child.end()
		child = nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if child != nil {
		p.idle = append(p.idle, child)
	}
	p.busy--
	p.ended.Broadcast()
}

// attempt asks a child, a new one where there is none. It returns the child if
// it can be asked again.
func attempt(ctx context.Context, child *process, request string) (*process, []byte, error) {
	if child == nil {
		var err error
		if child, err = start(); err != nil {
			return nil, nil, err
		}
	}
	answer, err := child.do(ctx, request)
	if err != nil {
		child.end()
		return nil, nil, err
	}
	return child, answer, nil
}

// Close waits for the requests under way, ends all processes and waits for
// them. It must be called once.
func (p *Pool) Close() {
	p.close()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for p.busy > 0 {
		p.ended.Wait()
	}
	for _, child := range p.idle {
		child.end()
	}
}

// process is one running child. It is used by one Do at a time.
type process struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out io.ReadCloser
}

// start starts a child. It gets no environment: no password and no key of
// this process can be found there.
func start() (*process, error) {
	cmd := exec.Command(executable(), Arg)
	cmd.Env = []string{}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("starting worker: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("starting worker: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting worker: %w", err)
	}
	return &process{cmd: cmd, in: in, out: out}, nil
}

// executable is this program, even where its file was replaced since.
func executable() string {
	const self = "/proc/self/exe"
	if _, err := os.Stat(self); err == nil {
		return self
	}
	path, err := os.Executable()
	if err != nil {
		return os.Args[0]
	}
	return path
}

// do sends one request and reads its answer. The end of ctx kills the child,
// which ends both.
func (c *process) do(ctx context.Context, request string) ([]byte, error) {
	stop := context.AfterFunc(ctx, func() { _ = c.cmd.Process.Kill() })
	defer stop()
	if err := writeFrame(c.in, request); err != nil {
		return nil, fmt.Errorf("asking worker: %w", err)
	}
	answer, err := readFrame(c.out)
	if err != nil {
		return nil, fmt.Errorf("reading worker's answer: %w", err)
	}
	if !stop() {
		return nil, ctx.Err()
	}
	return answer, nil
}

// end kills the child and waits for it.
func (c *process) end() {
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
}

// Child reports whether this process is a child: then it must call Serve and
// exit.
func Child() bool { return len(os.Args) > 1 && os.Args[1] == Arg }

// Serve answers requests until there are no more, which is when the parent
// closed its end or died. maxMemory is how much memory in bytes the process
// may take beyond what it has now; asking for more ends it.
//
// It ignores the signals that a terminal or a service manager sends to all
// processes of a service: the parent decides when the child ends.
func Serve(maxMemory uint64, handle func([]byte) []byte) error {
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM)
	if err := limit(maxMemory); err != nil {
		return err
	}
	for {
		request, err := readFrame(os.Stdin)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := writeFrame(os.Stdout, string(handle(request))); err != nil {
			return err
		}
	}
}

// copiedFrame is the largest body in bytes that is copied to be written together
// with its length. It is what a pipe holds.
const copiedFrame = 64 << 10

func writeFrame(w io.Writer, body string) error {
	if len(body) > maxFrame {
		return fmt.Errorf("frame of %d bytes", len(body))
	}
	frame := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
	if len(body) <= copiedFrame {
		_, err := w.Write(append(frame, body...))
		return err
	}
	if _, err := w.Write(frame); err != nil {
		return err
	}
	_, err := io.WriteString(w, body)
	return err
}

func readFrame(r io.Reader) ([]byte, error) {
	var header [4]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(header[:])
	if n > maxFrame {
		return nil, fmt.Errorf("frame of %d bytes", n)
	}
	body := make([]byte, n)
	_, err := io.ReadFull(r, body)
	return body, err
}

package upstreamtest

import (
	"bytes"
	"context"
	"fmt"
	"sync"
)

// logBuffer keeps a server's log and tells those who wait for a piece of it.
// The zero value is ready for use.
type logBuffer struct {
	mu    sync.Mutex
	text  bytes.Buffer
	grown chan struct{} // closed at the next Write; nil when nobody waits
}

// Write never fails: a server must not stumble over its log's reader.
func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.text.Write(p)
	if b.grown != nil {
		close(b.grown)
		b.grown = nil
	}
	return len(p), nil
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func (b *logBuffer) reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.text.Reset()
}

// await waits until the log holds text.
func (b *logBuffer) await(ctx context.Context, text string) error {
	for {
		found, grown := b.look(text)
		if found {
			return nil
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return fmt.Errorf("waiting for %q in the server's log: %w", text, ctx.Err())
		}
	}
}

func (b *logBuffer) look(text string) (found bool, grown <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if bytes.Contains(b.text.Bytes(), []byte(text)) {
		return true, nil
	}
	if b.grown == nil {
		b.grown = make(chan struct{})
	}
	return false, b.grown
}

package wire

import (
	"os/exec"
	"testing"
	"time"

	"pgproxy/upstream/upstreamtest"
)

const ctrlC = "\x03"

// terminal is a program in a terminal of its own, which is not slow.
type terminal struct{ *upstreamtest.Terminal }

// inTerminal runs a program in a terminal until the test ends.
func inTerminal(t testing.TB, cmd *exec.Cmd) *terminal {
	t.Helper()
	return &terminal{upstreamtest.StartTerminal(t, cmd)}
}

const notSlow = 20 * time.Second

func (m *terminal) expect(text string) { m.Expect(text, notSlow) }

func (m *terminal) expectEnd() { m.ExpectEnd(notSlow) }

// enter types a line, and waits for its echo.
func (m *terminal) enter(line string) {
	m.Press(line + "\n")
	m.expect(line)
}

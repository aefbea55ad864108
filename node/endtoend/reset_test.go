package endtoend

import (
	"context"
	"testing"
)

// A connection that is reset as soon as it stands has no address any more. It
// must harm nobody else.
func TestResetConnections(t *testing.T) {
	t.Parallel()
	p := start(t)
	s := p.connect(t, alice)
	rude := join(t, deviceOf("rude"))
	p.connect(t, rude)
	for range 50 {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		err := rude.DialReset(ctx, p.addr)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
	}
	s.query(t, "SELECT 1")
	p.connect(t, rude).query(t, "SELECT 1")
}

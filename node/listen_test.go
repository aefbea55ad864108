package node_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"pgproxy/node/nodetest"
)

// Connections that their peer resets at once once crashed whoever asked for
// their address: tsnet then has none.
func TestReset(t *testing.T) {
	const resets = 800
	tn := nodetest.New(t)
	n := start(t, config(tn, new(logged)))
	ln, err := n.Listen(5432)
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			served.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(patience))
				c.Read(make([]byte, 1)) // until it is reset
				if c.RemoteAddr().String() == "" || c.LocalAddr().String() == "" {
					t.Error("a connection without address")
				}
			})
		}
	})

	mallory := tn.Person("mallory@example.com", "mallory-laptop")
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	for range resets {
		if err := mallory.DialReset(ctx, "pgproxy-prod:5432"); err != nil {
			t.Fatal(err)
		}
	}
	// Still there, for others.
	c, err := mallory.Dial(ctx, "pgproxy-prod:5432")
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	ln.Close()
	served.Wait()
	if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept of a closed listener returns %v, want net.ErrClosed", err)
	}
}

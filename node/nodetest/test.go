package nodetest

import (
	"context"
	"testing"
	"time"
)

// joinTimeout is many times what joining takes, under -race on a busy machine.
const joinTimeout = 30 * time.Second

// Test is a Tailnet whose failures fail a test.
type Test struct {
	*Tailnet
	t testing.TB
}

// New starts a tailnet that ends with the test.
func New(t testing.TB) *Test { return NewWith(t, Options{}) }

// NewWith is New with options.
func NewWith(t testing.TB, opts Options) *Test {
	t.Helper()
	tn, err := Start(opts)
	if err != nil {
		t.Fatalf("starting a tailnet: %v", err)
	}
	t.Cleanup(func() {
		if err := tn.Close(); err != nil {
			t.Errorf("closing the tailnet: %v", err)
		}
	})
	return &Test{Tailnet: tn, t: t}
}

// Person joins a device of somebody's.
func (tt *Test) Person(login, device string) *Peer {
	tt.t.Helper()
	return tt.join(Device{Name: device, Login: login})
}

// Tagged joins a device that has a tag and no owner.
func (tt *Test) Tagged(tag, device string) *Peer {
	tt.t.Helper()
	return tt.join(Device{Name: device, Login: ServiceOwner, Tags: []string{tag}})
}

// SharedIn joins a device of somebody of another tailnet.
func (tt *Test) SharedIn(login, device string) *Peer {
	tt.t.Helper()
	return tt.join(Device{Name: device, Login: login, Shared: true})
}

func (tt *Test) join(d Device) *Peer {
	tt.t.Helper()
	ctx, cancel := context.WithTimeout(tt.t.Context(), joinTimeout)
	defer cancel()
	p, err := tt.Join(ctx, d)
	if err != nil {
		tt.t.Fatal(err)
	}
	return p
}

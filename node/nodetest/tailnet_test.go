package nodetest_test

import (
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"pgproxy/node/nodetest"
)

const patience = 30 * time.Second

// The names of devices are what all else goes by.
func TestNames(t *testing.T) {
	tn := nodetest.New(t)
	laptop := tn.Person("alice@example.com", "laptop")
	if _, err := tn.Join(t.Context(), nodetest.Device{Name: "laptop", Login: "bob@example.com"}); err == nil {
		t.Error("two devices are named laptop")
	}
	for name, change := range map[string]func(string) error{
		"Remove": tn.Remove,
		"Expire": tn.Expire,
		"Extend": tn.Extend,
		"Retag":  func(name string) error { return tn.Retag(name, "tag:x") },
	} {
		if err := change("nobodys"); err == nil || !strings.Contains(err.Error(), "nobodys") {
			t.Errorf("%s of an unknown device returns %v", name, err)
		}
	}
	if err := tn.Remove(laptop.Name); err != nil {
		t.Fatal(err)
	}
	if err := tn.Remove(laptop.Name); err == nil {
		t.Error("removed twice")
	}
	if again := tn.Person("bob@example.com", "laptop"); again.Addr() == laptop.Addr() {
		t.Errorf("the new laptop has the address %s of the old one", again.Addr())
	}
}

func TestDialCutControl(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	tn := nodetest.New(t)
	alice, bob := tn.Person("alice@example.com", "laptop"), tn.Person("bob@example.com", "phone")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	// Nobody listens there, which bob's device says at once. From then on
	// alice's knows it, control or not.
	if _, err := alice.Dial(ctx, bob.Addr().String()+":1"); err == nil || ctx.Err() != nil {
		t.Fatalf("Dial returns %v, want a refusal", err)
	}
	tn.CutControl()
	if _, err := tn.Join(shortly(t), nodetest.Device{Name: "late", Login: "carol@example.com"}); err == nil {
		t.Error("joined without control")
	}
	if _, err := alice.Dial(ctx, bob.Addr().String()+":1"); err == nil || ctx.Err() != nil {
		t.Errorf("Dial returns %v, want a refusal", err)
	}
	tn.RestoreControl()
	if err := alice.DialReset(ctx, bob.Addr().String()+":1"); err == nil || err == io.EOF {
		t.Errorf("DialReset returns %v, want a refusal", err)
	}
}

// shortly is a context that ends before long.
func shortly(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	t.Cleanup(cancel)
	return ctx
}

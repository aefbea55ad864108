package endtoend

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgproxy/node/nodetest"
	"pgproxy/upstream/upstreamtest"
)

const (
	// soon is how fast a change must show in live sessions.
	soon = 5 * time.Second
	// patience is for everything that has to happen, some time.
	patience = 30 * time.Second
	// lookAgain is for what nothing tells of: files, and the database.
	lookAgain = 20 * time.Millisecond

	// capability is what grants are given by.
	capability = "example.com/cap/pgproxy"
)

// What all tests share. TestMain sets it.
var (
	binary   string // the path of pgproxy
	tailnet  *nodetest.Tailnet
	postgres *upstreamtest.Server

	// Two people whom no test changes, and the device of a third, of another
	// tailnet.
	alice, bob, guest *nodetest.Peer
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	flag.Parse()
	if testing.Short() {
		fmt.Println("skipped: the program as a whole takes more than a minute")
		return 0
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute) // compiling takes the most
	defer cancel()
	dir, err := os.MkdirTemp("", "endtoend")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "pgproxy")

	var building, joining, starting error
	var wg sync.WaitGroup
	wg.Go(func() { building = build(ctx) })
	wg.Go(func() { joining = joinPeople(ctx) })
	wg.Go(func() {
		postgres, starting = upstreamtest.Run(ctx, upstreamtest.Set("log_statement", "all"))
	})
	wg.Wait()
	if tailnet != nil {
		defer tailnet.Close()
	}
	if postgres != nil {
		defer postgres.Stop()
	}
	if err := errors.Join(building, joining, starting); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

func build(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, "go", "build", "-o", binary, "pgproxy").CombinedOutput()
	if err != nil {
		return fmt.Errorf("building pgproxy: %w\n%s", err, out)
	}
	return nil
}

func joinPeople(ctx context.Context) (err error) {
	if tailnet, err = nodetest.Start(nodetest.Options{}); err != nil {
		return err
	}
	for peer, device := range map[**nodetest.Peer]nodetest.Device{
		&alice: {Name: "alice-laptop", Login: "alice@example.com"},
		&bob:   {Name: "bob-phone", Login: "bob@example.com"},
		&guest: {Name: "guest-laptop", Login: "guest@elsewhere.example", Shared: true},
	} {
		if *peer, err = tailnet.Join(ctx, device); err != nil {
			return err
		}
	}
	return nil
}

// join joins a device for one test.
func join(t *testing.T, d nodetest.Device) *nodetest.Peer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	p, err := tailnet.Join(ctx, d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Close()
		tailnet.Remove(p.Name) // which the test may have done
	})
	return p
}

// table makes a table for one test, the proxy's login being its owner.
func table(t *testing.T, name, columns, rows string) {
	t.Helper()
	postgres.ExecAs(t, "app", "app", "CREATE TABLE "+name+" ("+columns+"); INSERT INTO "+name+" "+rows)
	t.Cleanup(func() { postgres.Exec(t, "DROP TABLE "+name) })
}

// eventually waits until ok holds.
func eventually(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	late := time.After(limit)
	look := time.NewTicker(lookAgain)
	defer look.Stop()
	for !ok() {
		select {
		case <-look.C:
		case <-late:
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

// write writes a file for pgproxy to read.
func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// policyFile writes a policy file.
func policyFile(t *testing.T, text string) string {
	t.Helper()
	return write(t, filepath.Join(t.TempDir(), "policy.hujson"), text)
}

// cleanEnv is the environment without what would configure pgproxy, tsnet or
// libpq.
func cleanEnv() []string {
	return slices.DeleteFunc(os.Environ(), func(entry string) bool {
		return strings.HasPrefix(entry, "PG") || strings.HasPrefix(entry, "TS_") || strings.HasPrefix(entry, "UPSTREAM_DSN=")
	})
}

// deviceOf is a device, of a login that goes by the same name.
func deviceOf(name string) nodetest.Device {
	return nodetest.Device{Name: name, Login: name + "@example.com"}
}

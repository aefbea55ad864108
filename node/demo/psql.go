package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"pgproxy/upstream/upstreamtest"
	"pgproxy/wire/audit"
)

// openPsql runs psql as the first person, until its user leaves it. Ctrl-C is
// psql's: it cancels a statement.
func (s *stage) openPsql(ctx context.Context, psql string, interrupt <-chan os.Signal) error {
	left := make(chan struct{})
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		for {
			select {
			case <-interrupt:
			case <-left:
				return
			}
		}
	}()
	cmd := exec.CommandContext(ctx, psql, "-h", "127.0.0.1", "-p", strconv.Itoa(s.doors[0].port), "-d", database)
	cmd.Env = s.postgres.Env()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	fmt.Printf("You are %s now; \\q ends the demo.\n\n", people[0].login)
	err := cmd.Run()
	close(left)
	<-drained
	if ctx.Err() != nil {
		return nil
	}
	if _, exited := err.(*exec.ExitError); err != nil && !exited {
		return err
	}
	fmt.Println("\nWhat the audit log has of it:")
	return audit.Command(ctx, []string{"show", s.proxy.records}, os.Stdout, os.Stderr)
}

// pasteable is psql as a shell can start it: by its name where the machine has
// one, and otherwise the server's own, with its libraries.
func pasteable(pg *upstreamtest.Server) string {
	if _, err := exec.LookPath("psql"); err == nil {
		return "psql"
	}
	path, err := pg.Psql()
	if err != nil {
		return "psql"
	}
	const libs = "LD_LIBRARY_PATH="
	env := pg.Env()
	if last := env[len(env)-1]; strings.HasPrefix(last, libs) && last != libs+os.Getenv("LD_LIBRARY_PATH") {
		return last + " " + path
	}
	return path
}

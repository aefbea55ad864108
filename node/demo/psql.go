package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

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

// psqlCommand is psql as a person can type it: by its name where the machine has
// one, and otherwise a short script, which starts the server's own with its
// libraries.
func (s *stage) psqlCommand() string {
	const name = "psql"
	if _, err := exec.LookPath(name); err == nil {
		return name
	}
	path, err := s.postgres.Psql()
	if err != nil {
		return name
	}
	var set string
	for _, entry := range s.postgres.Env() {
		if libs, ok := strings.CutPrefix(entry, "LD_LIBRARY_PATH="); ok {
			set = "LD_LIBRARY_PATH=" + quote(libs) + " "
		}
	}
	script := filepath.Join(s.dir, name)
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"+set+"exec "+quote(path)+" \"$@\"\n"), 0o755); err != nil {
		return path
	}
	return script
}

// quote quotes for a shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

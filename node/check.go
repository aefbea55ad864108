package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"

	"golang.org/x/sys/unix"
	"tailscale.com/ipn"
	"tailscale.com/tailcfg"
	"tailscale.com/util/dnsname"
)

// CheckHostname reports what is wrong with a name for the tailnet. One that is
// no DNS label would be changed by the coordination server into another.
func CheckHostname(name string) error {
	return dnsname.ValidLabel(name)
}

// CheckControlURL reports what is wrong with a coordination server's URL.
func CheckControlURL(s string) error {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil {
		return errors.New("not a URL such as https://headscale.example.com")
	}
	return nil
}

// CheckTag reports what is wrong with a tag.
func CheckTag(tag string) error {
	if err := tailcfg.CheckTag(tag); err != nil {
		return fmt.Errorf("%q: %w", tag, err)
	}
	return nil
}

var capabilityName = regexp.MustCompile(`^(https://)?([A-Za-z0-9-]+\.)+[A-Za-z0-9-]+/[!-~]+$`)

// CheckCapability reports what is wrong with the name of an app capability.
func CheckCapability(name string) error {
	if !capabilityName.MatchString(name) {
		return fmt.Errorf("%q is not a domain and a path, such as corp.example/cap/pgproxy", name)
	}
	return nil
}

// KeyVariables are the environment variables in which tsnet looks for a key.
var KeyVariables = []string{"TS_AUTHKEY", "TS_AUTH_KEY", "TS_CLIENT_SECRET"}

// State is what there is of a node in its state directory.
type State struct {
	Dir string
	// Saved says that a node has joined with this state before, and needs no key.
	Saved bool
	// Open says that others can look into the directory. New closes it, if it
	// may.
	Open bool
}

// CheckState looks at a state directory, "" being tsnet's default, and makes or
// changes nothing. The error says why [New] could not use it.
func CheckState(dir string) (State, error) {
	dir, err := stateDirPath(dir)
	if err != nil {
		return State{}, err
	}
	s := State{Dir: dir}
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return s, canMake(dir)
	case err != nil:
		return s, err
	case !info.IsDir():
		return s, notDirectory(dir)
	}
	s.Open = info.Mode().Perm()&0o077 != 0
	if err := mayUse(dir, unix.R_OK|unix.W_OK|unix.X_OK); err != nil {
		return s, err
	}
	s.Saved, err = savedState(filepath.Join(dir, stateFile))
	return s, err
}

// canMake reports why a directory could not be made.
func canMake(dir string) error {
	for parent := filepath.Dir(dir); ; parent = filepath.Dir(parent) {
		info, err := os.Stat(parent)
		switch {
		case errors.Is(err, fs.ErrNotExist) && parent != filepath.Dir(parent):
			continue
		case err != nil:
			return err
		case !info.IsDir():
			return notDirectory(parent)
		}
		return mayUse(parent, unix.W_OK|unix.X_OK)
	}
}

// mayUse asks for the process's rights, whoever started it.
func mayUse(path string, mode uint32) error {
	if err := unix.Faccessat(unix.AT_FDCWD, path, mode, unix.AT_EACCESS); err != nil {
		return &fs.PathError{Op: "use", Path: path, Err: err}
	}
	return nil
}

// savedState reads what tsnet's file store has written. An empty file counts as
// none, as it does there.
func savedState(file string) (bool, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(text) == 0 {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var values map[ipn.StateKey][]byte
	if err := json.Unmarshal(text, &values); err != nil {
		return false, fmt.Errorf("%s: %w", file, err)
	}
	return len(values[ipn.CurrentProfileStateKey]) > 0, nil
}

package upstreamtest

import (
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// Password is the password of both roles.
const Password = "correct horse"

// bootstrap makes the role and the database that sessions use. Each line is one
// command to a single-user server.
const bootstrap = `CREATE ROLE app LOGIN PASSWORD '` + Password + `'
CREATE DATABASE app OWNER app
`

// serverUser is who runs the server: PostgreSQL refuses root.
var serverUser = sync.OnceValues(func() (*syscall.Credential, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		u, err = user.Lookup("nobody")
	}
	if err != nil {
		return nil, fmt.Errorf("a user other than root to run PostgreSQL: %w", err)
	}
	uid, _ := strconv.ParseUint(u.Uid, 10, 32) // numeric on every Unix
	gid, _ := strconv.ParseUint(u.Gid, 10, 32)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
})

// chown gives a path to the server's user.
func chown(path string) error {
	cred, err := serverUser()
	if err != nil || cred == nil {
		return err
	}
	return os.Chown(path, int(cred.Uid), int(cred.Gid))
}

// as runs a program as the server's user.
func (in Install) as(cred *syscall.Credential, stdin, name string, args ...string) error {
	cmd := in.command(name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, out)
	}
	return nil
}

// newCluster makes a data directory in dir. It copies a template, which the
// first call for a version leaves in the cache: initdb takes a second or two.
func (in Install) newCluster(dir string) (string, error) {
	data := filepath.Join(dir, "data")
	template := filepath.Join(CacheDir(), "clusters", in.Version+"-1")
	if err := os.MkdirAll(filepath.Dir(template), 0o755); err != nil {
		return "", err
	}
	unlock, err := lock(template + ".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(template); err == nil {
		return data, copyTree(template, data)
	}
	if err := in.initCluster(data); err != nil {
		return "", err
	}
	// Copied under another name first: an interrupted copy is no template.
	if err := copyTree(data, template+".new"); err != nil {
		return "", err
	}
	return data, os.Rename(template+".new", template)
}

// initCluster runs initdb and the bootstrap commands.
func (in Install) initCluster(data string) error {
	cred, err := serverUser()
	if err != nil {
		return err
	}
	pwfile := data + ".pw"
	if err := os.WriteFile(pwfile, []byte(Password+"\n"), 0o600); err != nil {
		return err
	}
	if err := chown(pwfile); err != nil {
		return err
	}
	err = in.as(cred, "", "initdb", "-D", data, "-U", "postgres", "-A", "scram-sha-256", "--pwfile", pwfile,
		"-E", "UTF8", "--locale=C", "--no-sync")
	if err != nil {
		return err
	}
	return in.as(cred, bootstrap, "postgres", "--single", "-D", data, "-F", "-c", "log_min_messages=fatal", "postgres")
}

// copyTree copies a directory with owners and modes. Leftovers of an
// interrupted copy are removed first.
func copyTree(from, to string) error {
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	if out, err := exec.Command("cp", "-a", "--reflink=auto", from, to).CombinedOutput(); err != nil {
		return fmt.Errorf("cp: %w\n%s", err, out)
	}
	return nil
}

// lock takes a file lock that other test processes respect.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

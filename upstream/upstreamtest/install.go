package upstreamtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Install is one installation of PostgreSQL's server programs.
type Install struct {
	// Bin is the directory of postgres and initdb.
	Bin string
	// Version is the full version, "18.4"; Major its first number.
	Version string
	Major   int

	libs string // where its libraries are, when not the system's own
}

// BinVariable names the directory of the server programs to prefer.
const BinVariable = "PGPROXY_TEST_PG_BIN"

// CacheDir is where the scripts under .ci put what they download. Root's is
// outside of its home, which the server's user could not enter.
func CacheDir() string {
	if os.Getuid() == 0 {
		return "/var/cache/pgproxy"
	}
	if dir, err := os.UserCacheDir(); err == nil {
		return filepath.Join(dir, "pgproxy")
	}
	return filepath.Join(os.TempDir(), "pgproxy-cache")
}

// Installs finds the installations on this machine, one of each major version.
// First comes the one that [BinVariable] names, then the system's, newest
// first, then the cache's.
var Installs = sync.OnceValue(func() []Install {
	cache := CacheDir()
	var dirs []string
	if bin := os.Getenv(BinVariable); bin != "" {
		dirs = append(dirs, bin)
	}
	for _, pattern := range []string{
		"/usr/lib/postgresql/*/bin",
		"/usr/pgsql-*/bin",
		"/usr/local/pgsql/bin",
		cache + "/debian/usr/lib/postgresql/*/bin",
		cache + "/versions/*/bin",
	} {
		found, _ := filepath.Glob(pattern) // the patterns are well-formed
		slices.Reverse(found)
		dirs = append(dirs, found...)
	}
	var installs []Install
	for _, dir := range dirs {
		in, err := inspect(dir)
		if err != nil || slices.ContainsFunc(installs, func(o Install) bool { return o.Major == in.Major }) {
			continue
		}
		installs = append(installs, in)
	}
	return installs
})

var versionText = regexp.MustCompile(`\(PostgreSQL\) (\d+)([^ \n]*)`)

// inspect asks the programs in bin for their version.
func inspect(bin string) (Install, error) {
	in := Install{Bin: bin, libs: libraryPath(bin)}
	out, err := in.command("postgres", "--version").Output()
	if err != nil {
		return in, err
	}
	m := versionText.FindSubmatch(out)
	if m == nil {
		return in, fmt.Errorf("%s/postgres says %q", bin, out)
	}
	in.Version = string(m[1]) + string(m[2])
	in.Major, err = strconv.Atoi(string(m[1]))
	return in, err
}

// libraryPath is where the programs of the cache find their libraries.
func libraryPath(bin string) string {
	root, ok := strings.CutPrefix(bin, CacheDir()+"/debian")
	if !ok {
		return "" // the system's own, or found relative to the program
	}
	prefix := strings.TrimSuffix(bin, root)
	var dirs []string
	for _, lib := range []string{"/usr/lib/*-linux-gnu", "/lib/*-linux-gnu"} {
		found, _ := filepath.Glob(prefix + lib) // well-formed
		dirs = append(dirs, found...)
	}
	return strings.Join(dirs, ":")
}

// command runs one of the installation's programs, with nothing of the
// environment that could point it elsewhere.
func (in Install) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(in.Bin, name), args...)
	cmd.Env = in.Env()
	return cmd
}

// Env is the environment for the installation's programs: the process's own
// without libpq's variables.
func (in Install) Env() []string {
	env := slices.DeleteFunc(os.Environ(), func(entry string) bool { return strings.HasPrefix(entry, "PG") })
	if in.libs != "" {
		env = append(env, "LD_LIBRARY_PATH="+in.libs)
	}
	return env
}

// errNoInstall tells how to get a server.
var errNoInstall = errors.New("no PostgreSQL server on this machine: run .ci/postgres, or set " + BinVariable)

// pick returns the installation of a major version, or for 0 the first.
func pick(major int) (Install, error) {
	for _, in := range Installs() {
		if major == 0 || in.Major == major {
			return in, nil
		}
	}
	if major != 0 {
		return Install{}, fmt.Errorf("no PostgreSQL %d on this machine: run .ci/versions", major)
	}
	return Install{}, errNoInstall
}

// Psql returns the path of a psql: the installation's own where it has one, the
// system's otherwise.
func (in Install) Psql() (string, error) { return in.client("psql") }

// Pgbench returns the path of a pgbench, as Psql does.
func (in Install) Pgbench() (string, error) { return in.client("pgbench") }

func (in Install) client(name string) (string, error) {
	for _, o := range append([]Install{in}, Installs()...) {
		if path := filepath.Join(o.Bin, name); isFile(path) {
			return path, nil
		}
	}
	return exec.LookPath(name)
}

// psqls finds the psql programs of this machine by major version.
var psqls = sync.OnceValue(func() map[int]string {
	found := make(map[int]string)
	for _, in := range Installs() {
		if path := filepath.Join(in.Bin, "psql"); isFile(path) {
			found[in.Major] = path
		}
	}
	paths, _ := filepath.Glob(CacheDir() + "/clients/*/bin/psql") // well-formed
	for _, path := range paths {
		major, err := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
		if _, have := found[major]; err == nil && !have {
			found[major] = path
		}
	}
	return found
})

func isFile(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular()
}

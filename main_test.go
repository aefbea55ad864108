package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/prometheus/client_golang/prometheus"

	"pgproxy/config"
	"pgproxy/node/nodetest"
	"pgproxy/policy"
	"pgproxy/upstream"
	"pgproxy/upstream/upstreamtest"
	"pgproxy/wire"
	"pgproxy/wire/audit"
	"pgproxy/wire/notify"
)

// beMain makes the test binary the program itself, for what needs a process.
const beMain = "PGPROXY_TEST_BE_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(beMain) != "" {
		for _, entry := range os.Environ() { // the tests' own variables are none of pgproxy's
			if name, _, _ := strings.Cut(entry, "="); strings.HasPrefix(name, "PGPROXY_TEST_") {
				os.Unsetenv(name)
			}
		}
		main()
		return
	}
	upstreamtest.Main(m)
}

// env is an environment for run.
func env(vars map[string]string) []string {
	var environ []string
	for name, value := range vars {
		environ = append(environ, name+"="+value)
	}
	return environ
}

func mustParse(t *testing.T, args []string, vars map[string]string) *config.Config {
	t.Helper()
	c, err := config.Parse("serve", args, env(vars))
	if err = errors.Join(c.Err(), err); err != nil {
		t.Fatal(err)
	}
	return c
}

// The contract's table: name, variable, default, another value.
var flags = []struct{ name, variable, def, other string }{
	{"hostname", "TS_HOSTNAME", "pgproxy", "db"},
	{"port", "PGPROXY_PORT", "5432", "5433"},
	{"debug-port", "PGPROXY_DEBUG_PORT", "80", "0"},
	{"health-listen", "PGPROXY_HEALTH_LISTEN", "", ":8081"},
	{"state-dir", "TS_STATE_DIR", "", "/state"},
	{"control-url", "TS_CONTROL_URL", "", "https://headscale.example.com"},
	{"authkey-file", "PGPROXY_AUTHKEY_FILE", "", "/key"},
	{"advertise-tags", "TS_ADVERTISE_TAGS", "", "tag:a,tag:b"},
	{"ephemeral", "PGPROXY_EPHEMERAL", "false", "true"},
	{"dev-listen", "PGPROXY_DEV_LISTEN", "", "127.0.0.1:5432"},
	{"dev-user", "PGPROXY_DEV_USER", "dev@localhost", "alice@example.com"},
	{"upstream", "UPSTREAM_DSN", "", "host=db"},
	{"databases", "PGPROXY_DATABASES", "", "shop,crm"},
	{"policy", "PGPROXY_POLICY", "", "/policy.hujson"},
	{"capability", "PGPROXY_CAPABILITY", "", "corp.example/cap/pgproxy"},
	{"audit-log", "PGPROXY_AUDIT_LOG", "-", "/audit"},
	{"audit-sync", "PGPROXY_AUDIT_SYNC", "interval", "always"},
	{"audit-max-size", "PGPROXY_AUDIT_MAX_SIZE", "0", "64"}, // not in the contract: rotation by size needs one
	{"audit-sql", "PGPROXY_AUDIT_SQL", "redacted", "normalized"},
	{"tls", "PGPROXY_TLS", "off", "c.pem:k.pem"},
	{"require-tls", "PGPROXY_REQUIRE_TLS", "false", "true"},
	{"max-sessions", "PGPROXY_MAX_SESSIONS", "100", "7"},
	{"max-sessions-per-user", "PGPROXY_MAX_SESSIONS_PER_USER", "10", "7"},
	{"connect-timeout", "PGPROXY_CONNECT_TIMEOUT", "10s", "7s"},
	{"login-timeout", "PGPROXY_LOGIN_TIMEOUT", "30s", "7s"},
	{"idle-timeout", "PGPROXY_IDLE_TIMEOUT", "30m0s", "7s"},
	{"drain-timeout", "PGPROXY_DRAIN_TIMEOUT", "30s", "7s"},
	{"contact", "PGPROXY_CONTACT", "", "#dba"},
	{"notify-url-file", "PGPROXY_NOTIFY_URL_FILE", "", "webhook"},
	{"quiet-login", "PGPROXY_QUIET_LOGIN", "false", "true"},
	{"log-format", "PGPROXY_LOG_FORMAT", "auto", "json"},
	{"log-level", "PGPROXY_LOG_LEVEL", "info", "debug"},
}

func TestFlagsAndEnvironment(t *testing.T) {
	base := map[string]string{"UPSTREAM_DSN": "host=localhost", "PGPROXY_TLS": "x:y"} // what other flags want
	value := func(c *config.Config, name string) string {
		list := c.Flags()
		return list[slices.IndexFunc(list, func(f config.Flag) bool { return f.Name == name })].Value
	}
	for _, f := range flags {
		t.Run(f.name, func(t *testing.T) {
			vars := map[string]string{"UPSTREAM_DSN": "host=localhost"}
			if f.name != "upstream" {
				if got := value(mustParse(t, nil, vars), f.name); got != f.def {
					t.Errorf("default %q, want %q", got, f.def)
				}
			}
			vars = map[string]string{}
			for k, v := range base {
				vars[k] = v
			}
			vars[f.variable] = f.other
			if got := value(mustParse(t, nil, vars), f.name); got != f.other {
				t.Errorf("%s=%s gives %q", f.variable, f.other, got)
			}
			vars[f.variable] = "not this one"
			if got := value(mustParse(t, []string{"-" + f.name + "=" + f.other}, vars), f.name); got != f.other {
				t.Errorf("the flag does not win over the environment: %q", got)
			}
		})
	}
	var help bytes.Buffer
	if err := run(t.Context(), []string{"-h"}, env(nil), &help, io.Discard); err != nil {
		t.Fatal(err)
	}
	for _, f := range flags {
		if !strings.Contains(help.String(), "-"+f.name) || !strings.Contains(help.String(), f.variable) {
			t.Errorf("the help does not tell of -%s and %s", f.name, f.variable)
		}
	}
}

func TestAllErrorsAtOnce(t *testing.T) {
	dir := t.TempDir()
	policyFile := filepath.Join(dir, "policy.hujson")
	if err := os.WriteFile(policyFile, []byte(`{"default": {"access": "everything"}, "bogus": 1}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"serve", "check"} {
		err := run(t.Context(), []string{command, "-port", "70000", "-max-sessions=many", "-dev-listen", ":5432", "-tls", "tailnet", "-require-tls",
			"-upstream", "postgres://app:hunter2@db1/shop", "-policy", policyFile, "-authkey-file", filepath.Join(dir, "none"), "-drain-timeout", "soon",
		}, env(map[string]string{"PGPROXY_AUDIT_SYNC": "sometimes", "TS_ADVERTISE_TAGS": "pgproxy"}), io.Discard, io.Discard)
		if err == nil {
			t.Fatal("no error")
		}
		for _, want := range []string{
			"-port: ", "-max-sessions: ", `-dev-listen: ":5432" is not a loopback address`, "-tls tailnet: ", "sslmode=verify-full", "access", "bogus",
			"-authkey-file: ", "-drain-timeout: ", "PGPROXY_AUDIT_SYNC: ", "tag:",
		} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %q is missing from:\n%v", command, want, err)
			}
		}
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the password is in:\n%v", command, err)
		}
	}
}

func TestRefusedCommandLines(t *testing.T) {
	dsn := upstreamtest.Shared(t).DSN("app", "app")
	for _, tt := range []struct{ args, want string }{
		{"", "-upstream is missing"},
		{"-bogus", "bogus"},
		{"bogus", "unknown command"},
		{"check extra -upstream " + dsn, "unexpected argument"},
		{"explain", "wants one argument"},
		{"explain -f x SELECT", "wants one argument"},
		{"explain -f x -as y", "-as"},
		{"-upstream " + dsn + " -require-tls", "-require-tls"},
		{"-upstream " + dsn + " -dev-listen 0.0.0.0:0", "loopback"},
		{"-upstream " + dsn + " -dev-listen 192.0.2.1:5432", "loopback"},
		{"-upstream " + dsn + " -dev-listen [::]:5432", "loopback"},
		{"-upstream " + dsn + " -dev-listen example.com:5432", "loopback"},
		{"-upstream " + dsn + " -dev-listen 5432", "-dev-listen"},
		{"-upstream " + dsn + " -dev-listen 127.0.0.1:0 -tls none", "-tls"},
		{"-upstream " + dsn + " -dev-listen 127.0.0.1:0 -tls /none:/none", "-tls"},
		{"-upstream " + dsn + " -connect-timeout 0s", "-connect-timeout"},
	} {
		err := run(t.Context(), strings.Fields(tt.args), env(nil), io.Discard, io.Discard)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.args, err, tt.want)
		}
	}
}

func TestCheck(t *testing.T) {
	s := upstreamtest.Shared(t)
	var out bytes.Buffer
	if err := run(t.Context(), []string{"check", "-databases", "*"}, env(map[string]string{"UPSTREAM_DSN": s.DSN("postgres", "app")}), &out, io.Discard); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"postgres@" + s.Addr() + "/app, no TLS", "PostgreSQL " + s.Version, "superuser", "write access", "port 5432", "interval"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing from:\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), upstreamtest.Password) {
		t.Errorf("the password is in:\n%s", out.String())
	}

	err := run(t.Context(), []string{"check", "-port", "x"}, env(map[string]string{"UPSTREAM_DSN": "postgres://app:hunter2@127.0.0.1:1/app"}), &out, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "-port") || !strings.Contains(err.Error(), "refused") || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("got %v", err)
	}
}

// Access by grants: check says what somebody without a grant has, and warns
// where that is more than nothing.
func TestCheckFallback(t *testing.T) {
	s := upstreamtest.Shared(t)
	for _, tt := range []struct{ name, policy, refused, warned string }{
		{"no file", "", "people it does not name: refused", ""},
		{"a default of null", `{"default": null}`, "people it does not name: refused", ""},
		{"another default", `{"default": {"access": "read"}}`, "", "WARNING: whoever has no grant, or loses one, has the policy file's default: read access"},
		{"no default", `{}`, "", "WARNING: whoever has no grant, or loses one, has the policy file's default: write access"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			args := []string{"check", "-capability", "example.com/cap/pgproxy", "-upstream", s.DSN("app", "app")}
			if tt.policy != "" {
				file := filepath.Join(t.TempDir(), "policy.hujson")
				if err := os.WriteFile(file, []byte(tt.policy), 0o600); err != nil {
					t.Fatal(err)
				}
				args = append(args, "-policy", file)
			}
			var out bytes.Buffer
			if err := run(t.Context(), args, env(nil), &out, io.Discard); err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(out.String(), tt.refused) || !strings.Contains(out.String(), tt.warned) {
				t.Errorf("want %q and %q in\n%s", tt.refused, tt.warned, out.String())
			}
			if tt.warned == "" && strings.Contains(out.String(), "WARNING") {
				t.Errorf("a warning of nothing in\n%s", out.String())
			}
		})
	}
}

// fault is one thing that is wrong with a configuration.
type fault struct {
	args string
	vars map[string]string
	want string
}

// What check passes, serving takes; and what serving refuses, check refuses in
// the same words.
func TestCheckAndServeAgree(t *testing.T) {
	dsn := upstreamtest.Shared(t).DSN("app", "app")
	dir := t.TempDir()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free.Close()
	file, fifo, used := filepath.Join(dir, "file"), filepath.Join(dir, "fifo"), filepath.Join(dir, "used")
	mustWrite(t, file, "")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	w, err := audit.Open(used, audit.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	const dev = "-dev-listen 127.0.0.1:0 -debug-port 0 "
	for _, tt := range []fault{
		{dev + "-audit-log " + dir + "/none/audit", nil, "audit log: "},
		{dev + "-audit-log " + dir, nil, "audit log: "},
		{dev + "-audit-log " + used, nil, "in use by another process"},
		{dev + "-audit-log " + fifo, nil, "is a FIFO that nobody reads"},
		{dev + "-health-listen " + taken.Addr().String(), nil, "-health-listen: "},
		{dev + "-health-listen 8081", nil, "-health-listen: "},
		{dev + "-health-listen :nosuchport", nil, "-health-listen: "},
		{"-dev-listen " + taken.Addr().String(), nil, "-dev-listen: "},
		{"-dev-listen " + free.Addr().String() + " -health-listen " + free.Addr().String(), nil, "-health-listen: "},
		{"-hostname pg_proxy", nil, "-hostname: "},
		{"-control-url headscale.example.com", nil, "-control-url: "},
		{"-capability pgproxy", nil, "-capability: "},
		{"-advertise-tags pgproxy", nil, "-advertise-tags: "},
		{"-port 80", nil, "-port and -debug-port are both 80"},
		{"-state-dir " + file, nil, "state directory: "},
		{"-state-dir " + file + "/state", nil, "state directory: "},
		{"-authkey-file " + dir + "/none -state-dir " + dir, nil, "-authkey-file: "},
		{"-authkey-file " + file + " -state-dir " + dir, nil, "is empty"},
		{dev + "-contact " + strings.Repeat("x", 201), nil, "-contact: "},
		{dev, map[string]string{"PGPROXY_POLCY": "/none"}, "PGPROXY_POLCY is no variable of pgproxy's; PGPROXY_POLICY is"},
		{dev, map[string]string{"PGPROXY_UPSTREAM": "x"}, "PGPROXY_UPSTREAM is no variable of pgproxy's; UPSTREAM_DSN is"},
		{dev, map[string]string{"PGPROXY_HOST_NAME": "x"}, "TS_HOSTNAME is"},
		{dev, map[string]string{"PGPROXY_SERVICE_HOST": "10.0.0.1"}, "enableServiceLinks: false"},
		{dev, map[string]string{"PGPROXY_PORT_5432_TCP": "tcp://10.0.0.1:5432"}, "enableServiceLinks: false"},
		{dev, map[string]string{"TS_HOSTNAME": "pg_proxy"}, "TS_HOSTNAME: "},
		{dev, map[string]string{"TS_CONTROL_URL": "example.com"}, "TS_CONTROL_URL: "},
	} {
		vars := map[string]string{"UPSTREAM_DSN": dsn}
		for name, value := range tt.vars {
			vars[name] = value
		}
		for _, command := range []string{"check", "serve"} {
			args := append([]string{command}, strings.Fields(tt.args)...)
			if !strings.Contains(tt.args, "-audit-log") {
				args = append(args, "-audit-log", filepath.Join(t.TempDir(), "audit"))
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			err := run(ctx, args, env(vars), io.Discard, io.Discard)
			cancel()
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s %v: got %v, want %q", args, tt.vars, err, tt.want)
			}
		}
	}
	// An empty variable is one that is not set.
	if err := run(t.Context(), []string{"check", "-audit-log", filepath.Join(dir, "new")}, env(map[string]string{"UPSTREAM_DSN": dsn, "PGPROXY_POLCY": ""}), io.Discard, io.Discard); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "new")); err == nil {
		t.Error("check has made the audit log")
	}
}

func TestCheckDatabases(t *testing.T) {
	s := upstreamtest.Shared(t)
	s.Exec(t, "DROP DATABASE IF EXISTS closed")
	s.Exec(t, "CREATE DATABASE closed")
	s.Exec(t, "REVOKE CONNECT ON DATABASE closed FROM public")
	policyFile := filepath.Join(t.TempDir(), "policy.hujson")
	mustWrite(t, policyFile, `{"upstream_read": "`+s.DSN("app", "elsewhere")+`"}`)
	check := func(args ...string) error {
		return run(t.Context(), append([]string{"check"}, args...), env(map[string]string{"UPSTREAM_DSN": s.DSN("postgres", "app")}), io.Discard, io.Discard)
	}
	if err := check("-databases", "postgres,*,closed"); err != nil {
		t.Error(err)
	}
	err := check("-databases", "nosuch,closed", "-policy", policyFile, "-audit-log", "/none/audit", "-health-listen", "x")
	for _, want := range []string{
		`-databases: nosuch: upstream: `, `database "nosuch" does not exist`,
		`-databases: closed: upstream for read access: `, `permission denied for database "closed"`,
		"audit log: ", "-health-listen: ",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing from\n%v", want, err)
		}
	}
	if strings.Contains(err.Error(), "closed: upstream: ") {
		t.Errorf("a superuser may connect:\n%v", err)
	}
}

// exitCode runs pgproxy as somebody in a shell would.
func exitCode(t *testing.T, vars []string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = append(vars, beMain+"=1")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func TestVersionAndHelp(t *testing.T) {
	for _, arg := range []string{"version", "-v", "-version", "--version"} {
		if out, errs, code := exitCode(t, nil, arg); code != 0 || !strings.HasPrefix(out, "pgproxy ") || errs != "" {
			t.Errorf("%s: exit %d\n%s%s", arg, code, out, errs)
		}
	}
	for _, args := range []string{"help", "-h", "-help", "--help", "check -h", "explain --help"} {
		if out, errs, code := exitCode(t, nil, strings.Fields(args)...); code != 0 || !strings.Contains(out, "UPSTREAM_DSN") || errs != "" {
			t.Errorf("%s: exit %d\n%s%s", args, code, out, errs)
		}
	}
	if _, errs, code := exitCode(t, nil, "burn"); code != 1 || !strings.Contains(errs, "unknown command") {
		t.Errorf("burn: exit %d\n%s", code, errs)
	}
}

// Scripts go by the exit code: 0 allowed, 2 refused, 1 not judged.
func TestExplain(t *testing.T) {
	s := upstreamtest.Shared(t)
	s.ExecAs(t, "app", "app", "CREATE TABLE IF NOT EXISTS keyed (id int PRIMARY KEY, name text)")
	dir := t.TempDir()
	policyFile := filepath.Join(dir, "policy.hujson")
	mustWrite(t, policyFile, `{"callers": {
		"alice@example.com": {"access": "admin", "require_reason": true},
		"tag:ci": {"access": "read"},
		"key@example.com": {"require_where": "key"},
		"crm@example.com": {"databases": ["crm"]},
		"out@example.com": null}}`)
	dsn := "UPSTREAM_DSN=" + s.DSN("app", "app")
	nowhere := "UPSTREAM_DSN=postgres://app:hunter2@127.0.0.1:1/app"
	for _, tt := range []struct {
		vars, args string
		sql        string
		code       int
		want       string
	}{
		{"", "", "SELECT 1", 0, "allow"},
		{"", "", "DROP TABLE t", 2, "42501"},
		{"", "-contact #dba", "DROP TABLE t", 2, "Ask #dba."},
		{"", "-contact #dba -as out@example.com", "SELECT 1", 2, "Ask #dba."},
		{"", "", "SELEC 1", 2, "42601"},
		{"", "-as alice@example.com", "DROP TABLE t", 2, "require_reason"},
		{"", "-as alice@example.com -reason INC-123", "DROP TABLE t", 0, "allow"},
		{"", "-as tag:ci", "SELECT 1", 0, "max_rows"},
		{"", "-as tag:ci", "UPDATE t SET a = 1 WHERE id = 1", 2, "deny"},
		{"", "-as tag:other", "SELECT 1", 2, "28000"},
		{"", "-as out@example.com", "SELECT 1", 2, "28000"},
		{"", "-capability example.com/cap/db", "SELECT 1", 0, "not known here"},
		{dsn, "-as key@example.com", "UPDATE keyed SET name = 'x' WHERE id = 1", 0, "allow"},
		{dsn, "-as key@example.com", "UPDATE keyed SET name = 'x' WHERE name = 'y'", 2, "require_where"},
		{dsn, "-as crm@example.com -databases crm", "SELECT 1", 2, "Served to you: crm."},
		{dsn, "-as crm@example.com -databases crm -d crm", "SELECT 1", 0, "database"},
		{dsn, "", "UPDATE keyed SET name = 'x' WHERE id = 1", 0, "allow"},
		{dsn, "", "UPDATE pg_class SET relname = 'x' WHERE oid = 1", 2, "catalog"},
		{"", "", "UPDATE keyed SET name = 'x' WHERE id = 1", 0, "allow"},
		{"", "-as key@example.com", "UPDATE keyed SET name = 'x' WHERE id = 1", 1, "no database to ask"},
		{nowhere, "", "UPDATE keyed SET name = 'x' WHERE id = 1", 1, "refused"},
		{nowhere, "", "SELECT 1", 0, "allow"},
		{nowhere, "-as key@example.com", "UPDATE keyed SET name = 'x' WHERE id = 1", 1, "refused"},
		{"", "-reason x", "SELECT 1", 1, "pgproxy.reason"},
		{"", "-policy " + dir, "SELECT 1", 1, "-policy"},
		{"", "-f x", "SELECT 1", 1, "wants one argument"},
	} {
		out, errs, code := exitCode(t, strings.Fields(tt.vars), slices.Concat([]string{"explain", "-policy", policyFile}, strings.Fields(tt.args), []string{tt.sql})...)
		if code != tt.code || !strings.Contains(out+errs, tt.want) || strings.Contains(out+errs, "hunter2") {
			t.Errorf("%s as %q: exit %d, want %d and %q in\n%s%s", tt.sql, tt.args, code, tt.code, tt.want, out, errs)
		}
		if code == 1 && out != "" {
			t.Errorf("%s as %q: not judged, and yet it says\n%s", tt.sql, tt.args, out)
		}
	}
}

// A policy file has a test of its own, for CI.
func TestExplainFile(t *testing.T) {
	dir := t.TempDir()
	policyFile, test := filepath.Join(dir, "policy.hujson"), filepath.Join(dir, "policy.sql")
	mustWrite(t, policyFile, `{"callers": {"tag:ci": {"access": "read"}}}`)
	for _, tt := range []struct {
		text string
		code int
		want string
	}{
		{"-- expect: tag:ci allow\nSELECT 1;\n-- expect: tag:ci deny access\nDELETE FROM t WHERE true;\n", 0, "2 expectations hold"},
		{"-- expect: tag:ci allow\nDELETE FROM t WHERE true;\n-- expect: tag:ci allow\nSELECT 1", 2, ":1: tag:ci: want allow, got deny access"},
		{"-- expect: tag:ci perhaps\nSELECT 1", 1, ":1: "},
	} {
		mustWrite(t, test, tt.text)
		out, errs, code := exitCode(t, nil, "explain", "-policy", policyFile, "-f", test)
		if code != tt.code || !strings.Contains(out+errs, tt.want) {
			t.Errorf("%s: exit %d, want %d and %q in\n%s%s", tt.text, code, tt.code, tt.want, out, errs)
		}
	}
	if _, errs, code := exitCode(t, nil, "explain", "-f", filepath.Join(dir, "none")); code != 1 || !strings.Contains(errs, "-f: ") {
		t.Errorf("a file that is not there: exit %d\n%s", code, errs)
	}
}

func mustWrite(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// process is pgproxy as a process of its own, serving loopback.
type process struct {
	*exec.Cmd
	addr, audit string
	log         *bufio.Scanner
	said        []string // the log so far
}

// startProcess starts pgproxy on loopback and returns when it serves.
func startProcess(t *testing.T, s *upstreamtest.Server, args ...string) *process {
	t.Helper()
	return launch(t, s, append([]string{"-dev-listen", "127.0.0.1:0", "-dev-user", "alice@example.com", "-dev-node", "laptop"}, args...)...)
}

// launch starts pgproxy, in an environment that must not matter, and returns
// when it serves. The log is JSON.
func launch(t *testing.T, s *upstreamtest.Server, args ...string) *process {
	t.Helper()
	p := &process{audit: filepath.Join(t.TempDir(), "audit.jsonl")}
	p.Cmd = exec.CommandContext(t.Context(), os.Args[0], append(args, "-audit-log", p.audit)...)
	p.Env = append(os.Environ(), beMain+"=1", "UPSTREAM_DSN="+s.DSN("app", "app"), "PGHOST=elsewhere", "PGOPTIONS=-c work_mem=77MB", "PGAPPNAME=leak")
	stderr, err := p.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.log = bufio.NewScanner(stderr)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Process.Kill()
		p.Wait()
	})
	p.addr = p.await(t, "serving")["address"].(string)
	return p
}

// await reads the log until a line with this message.
func (p *process) await(t *testing.T, msg string) map[string]any {
	t.Helper()
	for p.log.Scan() {
		p.said = append(p.said, p.log.Text())
		var line map[string]any
		if err := json.Unmarshal(p.log.Bytes(), &line); err != nil {
			t.Fatalf("%s: %v", p.log.Text(), err)
		}
		if m, _ := line["msg"].(string); strings.Contains(m, msg) {
			return line
		}
	}
	t.Fatalf("the log ended without %q:\n%s", msg, strings.Join(p.said, "\n"))
	return nil
}

// connect opens a session, without asking for TLS.
func (p *process) connect(t *testing.T) *upstream.Conn {
	t.Helper()
	host, port, err := net.SplitHostPort(p.addr)
	if err != nil {
		t.Fatal(err)
	}
	c, err := upstream.ParseConfig(fmt.Sprintf("host=%s port=%s user=whoever dbname=app sslmode=disable", host, port))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	conn, err := c.Dial(ctx, upstream.Request{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func query(t *testing.T, conn *upstream.Conn, sql string) [][]string {
	t.Helper()
	rows, err := conn.Query(t.Context(), sql)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return rows
}

func TestServe(t *testing.T) {
	s := upstreamtest.Shared(t)
	p := startProcess(t, s)
	conn := p.connect(t)
	rows := query(t, conn, "SELECT current_setting('application_name'), current_setting('work_mem'), current_setting('pgproxy.user')")
	want := [][]string{{"go-proxy tsnode=laptop|user=alice@example.com", "4MB", "alice@example.com"}}
	if !reflect.DeepEqual(rows, want) {
		t.Errorf("got %v, want %v", rows, want)
	}

	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.await(t, "stopped")
	if err := p.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v, want exit 0", err)
	}
	if _, err := conn.Query(t.Context(), "SELECT 1"); err == nil || !strings.Contains(err.Error(), "57P01") {
		t.Errorf("the session after SIGTERM: %v", err)
	}
	records, err := os.ReadFile(p.audit)
	if err != nil {
		t.Fatal(err)
	}
	for _, event := range []string{"connect", "query", "result", "disconnect"} {
		if !bytes.Contains(records, []byte(`"event":"`+event+`"`)) {
			t.Errorf("no %s record in:\n%s", event, records)
		}
	}
	for _, text := range append(p.said, string(records)) {
		if strings.Contains(text, upstreamtest.Password) || strings.Contains(text, "correct%20horse") {
			t.Errorf("the password is in %s", text)
		}
	}
}

// dialPeer opens a session from a device of the tailnet. failed is called with
// the SQLSTATE of each error.
func dialPeer(t *testing.T, peer *nodetest.Peer, failed func(sqlstate string)) *pgconn.PgConn {
	t.Helper()
	c, err := pgconn.ParseConfig("host=pgproxy-prod user=whoever dbname=app sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	c.LookupFunc = func(_ context.Context, host string) ([]string, error) { return []string{host}, nil }
	c.DialFunc = func(ctx context.Context, _, addr string) (net.Conn, error) { return peer.Dial(ctx, addr) }
	closeOnFatal := c.OnPgError
	c.OnPgError = func(conn *pgconn.PgConn, e *pgconn.PgError) bool {
		failed(e.Code)
		return closeOnFatal(conn, e)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	conn, err := pgconn.ConnectConfig(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// The whole program in a tailnet: each person has a name of their own, grants
// decide, and access that is taken away ends at once.
func TestTailnet(t *testing.T) {
	const capability = "example.com/cap/pgproxy"
	tn := nodetest.New(t)
	alice := tn.Person("alice@example.com", "alice-laptop")
	bob := tn.Person("bob@example.com", "bob-phone")
	tn.Grant("bob@example.com", capability, `{"access": "read"}`)
	keyFile := filepath.Join(t.TempDir(), "key")
	policyFile := filepath.Join(t.TempDir(), "policy.hujson")
	for file, text := range map[string]string{keyFile: tn.AuthKey() + "\n", policyFile: `{"default": null, "callers": {"alice@example.com": {}}}`} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := launch(t, upstreamtest.Shared(t), "-hostname", "pgproxy-prod", "-control-url", tn.ControlURL(), "-authkey-file", keyFile,
		"-state-dir", t.TempDir(), "-advertise-tags", "tag:pgproxy", "-capability", capability, "-policy", policyFile)

	for peer, want := range map[*nodetest.Peer][]string{
		alice: {"go-proxy tsnode=alice-laptop|user=alice@example.com", "off"},
		bob:   {"go-proxy tsnode=bob-phone|user=bob@example.com", "on"},
	} {
		r, err := dialPeer(t, peer, func(string) {}).Exec(t.Context(), "SELECT current_setting('application_name'), current_setting('default_transaction_read_only')").ReadAll()
		if err != nil {
			t.Fatal(err)
		}
		if row := r[0].Rows[0]; string(row[0]) != want[0] || string(row[1]) != want[1] {
			t.Errorf("got %q, want %q", row, want)
		}
	}

	var codes []string
	conn := dialPeer(t, bob, func(code string) { codes = append(codes, code) })
	results := conn.Exec(t.Context(), "SELECT repeat('x', 100000) FROM generate_series(1, 2) UNION ALL SELECT pg_sleep(60)::text")
	if !results.NextResult() || !results.ResultReader().NextRow() { // now it runs
		t.Fatal(results.Close())
	}
	began := time.Now()
	tn.Revoke("bob@example.com", capability)
	results.Close() // errors are in codes
	for err := error(nil); err == nil; {
		err = conn.WaitForNotification(t.Context()) // there is none: until the connection ends
	}
	if want := []string{"57014", "57P01"}; !slices.Equal(codes, want) {
		t.Errorf("got errors %v, want %v", codes, want)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}

	web := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
		return alice.Dial(ctx, addr)
	}}}
	resp, err := web.Get("http://pgproxy-prod/readyz")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Errorf("/readyz: %s", resp.Status)
	}

	p.Process.Signal(syscall.SIGTERM)
	p.await(t, "stopped")
	if err := p.Wait(); err != nil {
		t.Error(err)
	}
}

// The key admits a node once. From then on its file may be empty or gone, as an
// operator is told to leave no key lying about.
func TestKeyIsNeededOnce(t *testing.T) {
	tn := nodetest.New(t)
	keyFile, stateDir := filepath.Join(t.TempDir(), "key"), t.TempDir()
	mustWrite(t, keyFile, tn.AuthKey())
	start := func() {
		t.Helper()
		p := launch(t, upstreamtest.Shared(t), "-control-url", tn.ControlURL(), "-authkey-file", keyFile, "-state-dir", stateDir, "-advertise-tags", "tag:pgproxy")
		p.Process.Signal(syscall.SIGTERM)
		p.await(t, "stopped")
		if err := p.Wait(); err != nil {
			t.Error(err)
		}
	}
	check := func(stateDir string) string {
		t.Helper()
		var out bytes.Buffer
		err := run(t.Context(), []string{"check", "-authkey-file", keyFile, "-state-dir", stateDir},
			env(map[string]string{"UPSTREAM_DSN": upstreamtest.Shared(t).DSN("app", "app")}), &out, io.Discard)
		return fmt.Sprintln(out.String(), err)
	}
	if got := check(stateDir); !strings.Contains(got, "it joins with the key in "+keyFile) {
		t.Error(got)
	}
	start()
	mustWrite(t, keyFile, "\n")
	start()
	if err := os.Remove(keyFile); err != nil {
		t.Fatal(err)
	}
	start()
	if got := check(stateDir); !strings.Contains(got, "needs no key") {
		t.Error(got)
	}
	if got := check(t.TempDir()); !strings.Contains(got, "-authkey-file: open ") {
		t.Error(got)
	}
}

// The unit in the documentation is one that systemd takes, word for word.
func TestSystemdUnit(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip(err)
	}
	page, err := os.ReadFile(".github/docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, unit, _ := strings.Cut(string(page), "```ini\n")
	unit, _, ok := strings.Cut(unit, "```")
	if !ok || !strings.Contains(unit, "/usr/local/bin/pgproxy ") {
		t.Fatal("the page has no unit")
	}
	file := filepath.Join(t.TempDir(), "pgproxy.service")
	mustWrite(t, file, strings.Replace(unit, "/usr/local/bin/pgproxy ", os.Args[0]+" ", 1))
	if out, err := exec.CommandContext(t.Context(), analyze, "verify", "--man=no", file).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v\n%s", err, out)
	}
}

// The scripts that fetch what tests and demo need say what is missing, what
// comes of it and how to have it; before they do anything.
func TestScriptsSayWhatIsMissing(t *testing.T) {
	dir := t.TempDir() // where anybody may run a copy
	if out, err := exec.CommandContext(t.Context(), "cp", "-r", ".ci", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	bin, home := filepath.Join(dir, "bin"), filepath.Join(dir, "home")
	for _, d := range []string{bin, home} {
		if err := os.Mkdir(d, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{bin, home, dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	for _, tool := range []string{"bash", "id", "mkdir", "uname", "basename", "dirname", "cat", "sed", "grep", "head", "paste"} {
		path, err := exec.LookPath(tool)
		if err != nil {
			t.Skip(err)
		}
		if err := os.Symlink(path, filepath.Join(bin, tool)); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		script string
		code   int
		want   []string
	}{
		{"versions", 0, []string{"tests against PostgreSQL 14, 16, 17, 18 are skipped", "this machine has no npm", "apt-get install npm, then .ci/versions again"}},
		{"postgres", 1, []string{"lacks a C compiler (gcc, "}},
	} {
		cmd := exec.CommandContext(t.Context(), filepath.Join(dir, ".ci", tt.script))
		cmd.Dir = dir
		cmd.Env = []string{"PATH=" + bin, "HOME=" + home}
		if os.Getuid() == 0 { // root's cache has what earlier runs have fetched
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		}
		out, err := cmd.CombinedOutput()
		if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
			t.Fatal(err)
		}
		if code := cmd.ProcessState.ExitCode(); code != tt.code {
			t.Errorf("%s: exit %d, want %d\n%s", tt.script, code, tt.code, out)
		}
		for _, want := range tt.want {
			if !strings.Contains(string(out), want) {
				t.Errorf("%s: %q is missing from\n%s", tt.script, want, out)
			}
		}
	}
}

// A transaction that stays open holds the drain up; a second signal does not
// wait for it.
func TestSecondSignalEndsAtOnce(t *testing.T) {
	p := startProcess(t, upstreamtest.Shared(t), "-drain-timeout", "10m")
	conn := p.connect(t)
	query(t, conn, "BEGIN")
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.await(t, "draining")
	query(t, conn, "SELECT 1")
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err != nil {
		t.Errorf("the exit is no clean one: %v", err)
	}
}

// What psql asks by itself is not what a person has done: audit show leaves it
// out, however it is recorded, and what the same person types is there.
func TestAuditShowHidesWhatPsqlAsks(t *testing.T) {
	s := upstreamtest.Shared(t)
	p := startProcess(t, s)
	host, port, err := net.SplitHostPort(p.addr)
	if err != nil {
		t.Fatal(err)
	}
	upstreamtest.Psqls(t, func(t *testing.T, psql string) {
		cmd := exec.CommandContext(t.Context(), psql, "-X", "-h", host, "-p", port, "-d", "app", "-f", "-")
		cmd.Env = append(s.Env(), "PGSSLMODE=disable")
		cmd.Stdin = strings.NewReader("\\d\n\\d+ pg_class\n\\df now\n\\l\n\\du\nSELECT relname FROM pg_catalog.pg_class WHERE oid = 1259 -- typed\n;\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	})
	show := func(args ...string) (stdout, stderr string) {
		var out, errs strings.Builder
		if err := run(t.Context(), slices.Concat([]string{"audit", "show"}, args, []string{p.audit}), nil, &out, &errs); err != nil {
			t.Fatal(err)
		}
		return out.String(), errs.String()
	}
	out, remark := show()
	if strings.Count(out, "→") != strings.Count(out, "-- typed") || strings.Count(out, "-- typed") == 0 || !strings.Contains(remark, "-all shows them") {
		t.Errorf("not what was typed alone:\n%s%s", out, remark)
	}
	if all, _ := show("-all"); strings.Count(all, "→") < 10 {
		t.Errorf("-all shows not all:\n%s", all)
	}
}

func TestHangupReadsThePolicyAgain(t *testing.T) {
	policyFile := filepath.Join(t.TempDir(), "policy.hujson")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(policyFile, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`{"default": {"access": "read"}}`)
	p := startProcess(t, upstreamtest.Shared(t), "-policy", policyFile)
	conn := p.connect(t)
	const sql = "CREATE TEMP TABLE t (i int)"
	if _, err := conn.Query(t.Context(), sql); err == nil || !strings.Contains(err.Error(), "42501") {
		t.Fatalf("got %v, want a refusal", err)
	}

	write(`{"default": {"access": "everything"}}`)
	if err := os.Rename(p.audit, p.audit+".1"); err != nil {
		t.Fatal(err)
	}
	p.Process.Signal(syscall.SIGHUP)
	p.await(t, "policy not read again")
	if _, err := conn.Query(t.Context(), sql); err == nil {
		t.Error("a policy that cannot be read took effect")
	}
	if records, err := os.ReadFile(p.audit); err != nil || !bytes.Contains(records, []byte(`"verdict":"deny"`)) {
		t.Errorf("the audit log was not reopened: %v, %s", err, records)
	}

	write(`{"default": null}`)
	p.Process.Signal(syscall.SIGHUP)
	p.await(t, "policy read again")
	if _, err := conn.Query(t.Context(), "SELECT 1"); err == nil {
		t.Error("a session goes on without access")
	}
}

func TestHealth(t *testing.T) {
	s := upstreamtest.Start(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0") // for a free port
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close()
	startProcess(t, s, "-health-listen", addr)
	get := func(path string) (int, string) {
		t.Helper()
		resp, err := http.Get("http://" + addr + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	for path, want := range map[string]string{"/healthz": "ok", "/readyz": "ready", "/metrics": "pgproxy_sessions 0"} {
		if code, body := get(path); code != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
}

// A flag that is not in the contract's table would be missing from the tests
// above.
func TestNoOtherFlags(t *testing.T) {
	var help bytes.Buffer
	if err := run(t.Context(), []string{"-h"}, env(nil), &help, io.Discard); err != nil {
		t.Fatal(err)
	}
	got := regexp.MustCompile(`(?m)^  -([a-z-]+)`).FindAllStringSubmatch(help.String(), -1)
	if want := len(flags) + 1; len(got) != want { // -dev-node, too, whose default is the host's name
		t.Errorf("%d flags in the help, want %d", len(got), want)
	}
}

var update = flag.Bool("update", false, "write the generated tables of the documentation anew")

// table is a generated table of the documentation.
type table struct {
	page, name string
	header     []string
	rows       [][]string
	// prose is the header of a last column that people write. It is kept, row by
	// row, by the row's first cell.
	prose string
}

// The tables that come from the program are current. With -update they are
// written.
func TestDocsAreCurrent(t *testing.T) {
	for _, d := range []table{flagTable(t), fieldTable(t), errorTable(t), metricTable(t)} {
		t.Run(d.name, func(t *testing.T) {
			file := filepath.Join(".github/docs", d.page)
			page, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			begin, end := "<!-- generated: "+d.name+" -->\n", "<!-- end -->"
			before, rest, ok := strings.Cut(string(page), begin)
			old, after, closed := strings.Cut(rest, end)
			if !ok || !closed {
				t.Fatalf("%s has no block %q", file, begin)
			}
			want, missing := d.markdown(old)
			if *update {
				mustWrite(t, file, before+begin+want+end+after)
			} else if old != want {
				t.Errorf("%s is not current; go test . -run TestDocsAreCurrent -update writes it. It should have\n%s", file, want)
			}
			for _, row := range missing {
				t.Errorf("%s: write the last column of %s", file, row)
			}
		})
	}
}

// markdown is the table with what people wrote in the one that there is, and the
// rows of which they have written nothing yet.
func (d *table) markdown(old string) (text string, missing []string) {
	written := map[string]string{}
	for line := range strings.Lines(old) {
		if cells := strings.Split(strings.TrimSpace(line), " | "); d.prose != "" && len(cells) > len(d.header) {
			written[strings.TrimPrefix(cells[0], "| ")] = strings.TrimSuffix(strings.Join(cells[len(d.header):], " | "), " |")
		}
	}
	header := d.header
	if d.prose != "" {
		header = append(slices.Clone(header), d.prose)
	}
	var b strings.Builder
	line := func(cells []string) { fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | ")) }
	b.WriteString("\n")
	line(header)
	b.WriteString(strings.Repeat("|---", len(header)) + "|\n")
	for _, row := range d.rows {
		row = slices.Clone(row)
		for i, cell := range row {
			row[i] = strings.ReplaceAll(cell, "|", "\\|")
		}
		if d.prose != "" {
			if written[row[0]] == "" {
				missing = append(missing, row[0])
			}
			row = append(row, written[row[0]])
		}
		line(row)
	}
	b.WriteString("\n")
	return b.String(), missing
}

// code is a text as code, or nothing.
func code(s string) string {
	if s == "" {
		return ""
	}
	return "`" + s + "`"
}

func flagTable(t *testing.T) table {
	d := table{page: "flags.md", name: "flags", header: []string{"flag", "environment", "default", "meaning"}}
	for _, f := range mustParse(t, nil, map[string]string{"UPSTREAM_DSN": "host=localhost"}).Flags() {
		def := code(f.Default)
		if f.Name == "dev-node" {
			def = "the host's name"
		}
		d.rows = append(d.rows, []string{strings.TrimSpace("`-" + f.Name + "` " + f.Argument), code(f.Variable), def, f.Usage})
	}
	return d
}

// fieldTable has the fields that a rule takes: of all names in the package's
// source, those that its parser does not call unknown.
func fieldTable(t *testing.T) table {
	d := table{page: "policy.md", name: "policy fields", header: []string{"field", "default", "in"}, prose: "meaning"}
	defaults := ruleDefaults()
	for _, name := range slices.Sorted(maps.Keys(stringsIn(t, regexp.MustCompile(`^[a-z][a-z_]+$`), "policy"))) {
		field := fmt.Sprintf(`{%q: null}`, name)
		_, err := policy.Parse("file", []byte(`{"default": `+field+`}`))
		if err != nil && strings.Contains(err.Error(), "unknown field") {
			continue
		}
		in := "file, grants"
		if _, errs := (policy.Caller{Grants: []json.RawMessage{json.RawMessage(field)}}).ReadGrants(); strings.Contains(fmt.Sprint(errs), "is for the policy file") {
			in = "file"
		}
		d.rows = append(d.rows, []string{code(name), code(defaults[name]), in})
	}
	return d
}

// ruleDefaults are the defaults of a rule, by the names of its fields, as a
// policy file spells them.
func ruleDefaults() map[string]string {
	otherNames := map[string]string{"where": "require_where", "idle_in_transaction_timeout": "idle_in_transaction_session_timeout"}
	defaults := map[string]string{}
	rule := reflect.ValueOf(policy.DefaultRule())
	for i := range rule.NumField() {
		if !rule.Type().Field(i).IsExported() {
			continue
		}
		name := strings.ToLower(regexp.MustCompile(`([a-z])([A-Z])`).ReplaceAllString(rule.Type().Field(i).Name, "${1}_$2"))
		if other := otherNames[name]; other != "" {
			name = other
		}
		switch v := rule.Field(i).Interface().(type) {
		case policy.Access:
			defaults[name] = fmt.Sprintf("%q", v)
		case policy.WhereCheck:
			defaults[name] = fmt.Sprint(v == policy.WhereRequired)
		case time.Duration:
			defaults[name] = fmt.Sprintf("%q", v)
		case bool, int64:
			defaults[name] = fmt.Sprint(v)
		}
	}
	return defaults
}

// errorTable has the SQLSTATEs that stand in the source.
func errorTable(t *testing.T) table {
	d := table{page: "errors.md", name: "errors", header: []string{"SQLSTATE"}, prose: "what happened, what then"}
	found := stringsIn(t, regexp.MustCompile(`^([0-9][0-9A-Z]{4}|XX000)$`), "node", "policy", "upstream", "wire", "wire/exchange")
	for _, sqlstate := range slices.Sorted(maps.Keys(found)) {
		d.rows = append(d.rows, []string{code(sqlstate)})
	}
	return d
}

// metricTable has what a server gives a registry.
func metricTable(t *testing.T) table {
	d := table{page: "operations.md", name: "metrics", header: []string{"metric", "type", "labels", "meaning"}}
	registry := prometheus.NewRegistry()
	registry.MustRegister(append(new(wire.Server).Collectors(), notify.New("", "", slog.Default()).Collector())...)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, code(l.GetName()))
		}
		d.rows = append(d.rows, []string{code(f.GetName()), strings.ToLower(f.GetType().String()), strings.Join(labels, ", "), f.GetHelp()})
	}
	return d
}

// stringsIn finds the strings in the source of packages that match a pattern.
func stringsIn(t *testing.T, pattern *regexp.Regexp, dirs ...string) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	for _, dir := range dirs {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatal(dir, err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			tree, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(tree, func(n ast.Node) bool {
				if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
					if s, err := strconv.Unquote(lit.Value); err == nil && pattern.MatchString(s) {
						found[s] = true
					}
				}
				return true
			})
		}
	}
	return found
}

// Every link from one page of the documentation to another, or into it, leads
// somewhere; and the front page stays one that is read.
func TestDocLinks(t *testing.T) {
	pages, err := filepath.Glob(".github/*.md")
	if err != nil {
		t.Fatal(err)
	}
	more, err := filepath.Glob(".github/docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	pages = append(append(pages, more...), "README.md")
	link := regexp.MustCompile(`\]\(([^)\s#]*)(#[^)\s]*)?\)`)
	for _, page := range pages {
		text := readPage(t, page)
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			target := page
			if m[1] != "" {
				target = filepath.Join(filepath.Dir(page), m[1])
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: %v", page, err)
			} else if m[2] != "" && !slices.Contains(anchors(readPage(t, target)), m[2]) {
				t.Errorf("%s: %s has no %s", page, target, m[2])
			}
		}
	}
	if n := strings.Count(readPage(t, "README.md"), "\n"); n > 250 {
		t.Errorf("the README has %d lines, more than 250: move what is reference to .github/docs", n)
	}
}

func readPage(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// anchors are the anchors of a page's headings, as GitHub makes them.
func anchors(text string) (list []string) {
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(text, -1) {
		plain := regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(strings.ToLower(m[1]), "")
		list = append(list, "#"+strings.ReplaceAll(plain, " ", "-"))
	}
	return list
}

// Command bench measures what pgproxy costs, against the same PostgreSQL
// reached directly, through a bare TCP relay (two copying goroutines a
// connection, the floor), and through pgbouncer where it is installed. All of
// it happens in one run on one machine, and is told as a ratio: machines are
// noisy, and numbers of different runs cannot be compared.
//
//	go run ./wire/bench [-seconds 5] [-rounds 3] [-idle 1000]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"pgproxy/upstream/upstreamtest"
)

var (
	seconds = flag.Int("seconds", 5, "length of each pgbench run")
	rounds  = flag.Int("rounds", 3, "rounds; the median of each number is printed")
	idle    = flag.Int("idle", 1000, "idle sessions for the memory measurement")
	only    = flag.String("only", "", "comma-separated targets to measure (direct is always there)")
)

func main() {
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// target is one way to the database.
type target struct {
	name string
	addr string
	proc *os.Process // whose memory is looked at; nil = nobody's
}

func run(ctx context.Context, w io.Writer) error {
	dir, err := os.MkdirTemp("", "pgproxy-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	pg, err := upstreamtest.Run(ctx, upstreamtest.Set("max_connections", fmt.Sprint(*idle+100)), upstreamtest.Set("log_connections", "off"),
		upstreamtest.HBA("host all app 127.0.0.1/32 trust")) // so that a bare relay can be logged in through
	if err != nil {
		return err
	}
	defer pg.Stop()
	if err := prepare(ctx, pg); err != nil {
		return err
	}
	if err := buildProxy(ctx, dir); err != nil {
		return err
	}
	ways := &field{pg: pg, dir: dir}
	defer ways.stop()
	if err := ways.startTargets(ctx); err != nil {
		return err
	}
	if err := measure(ctx, w, measurements(pg), ways.targets); err != nil {
		return err
	}
	if err := processor(ctx, w, pg, ways.targets); err != nil {
		return err
	}
	if err := memory(ctx, w, pg, ways.targets); err != nil {
		return err
	}
	if err := guarded(ctx, w, pg, dir, ways.targets); err != nil {
		return err
	}
	audits := &field{pg: pg, dir: dir}
	defer audits.stop()
	if err := audits.startAudits(ctx); err != nil {
		return err
	}
	fmt.Fprintln(w, "\nWhat -audit-sync costs:")
	return measure(ctx, w, measurements(pg)[:len(clientCounts)], audits.targets)
}

func prepare(ctx context.Context, pg *upstreamtest.Server) error {
	pgbench, err := pg.Pgbench()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, pgbench, "-i", "-s", "5", "-q", pg.DSN("app", "app"))
	cmd.Env = pg.Env()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("pgbench -i: %w\n%s", err, out)
	}
	return nil
}

// field starts targets and stops them.
type field struct {
	pg      *upstreamtest.Server
	dir     string
	targets []target
	stops   []func()
}

func (f *field) stop() {
	for _, stop := range slices.Backward(f.stops) {
		stop()
	}
}

// start starts a way to the database on a free address, if it is wanted.
func (f *field) start(ctx context.Context, name string, command func(addr string) (*exec.Cmd, error)) error {
	if *only != "" && !slices.Contains(strings.Split(*only, ","), name) {
		return nil
	}
	addr, err := freeAddr()
	if err != nil {
		return err
	}
	cmd, err := command(addr)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	f.stops = append(f.stops, func() {
		cmd.Process.Signal(os.Interrupt)
		cmd.Wait()
	})
	f.targets = append(f.targets, target{name, addr, cmd.Process})
	return awaitListener(ctx, addr)
}

// proxy is pgproxy without caps, since a million rows are measured, and
// without a limit of sessions.
func (f *field) proxy(sync, auditLog, dsn string) func(addr string) (*exec.Cmd, error) {
	return func(addr string) (*exec.Cmd, error) {
		policy := filepath.Join(f.dir, "policy")
		if err := os.WriteFile(policy, []byte(`{"default": {"access": "write", "max_rows": 0, "max_bytes": 0}}`), 0o600); err != nil {
			return nil, err
		}
		return exec.Command(filepath.Join(f.dir, "pgproxy"), "-dev-listen", addr, "-upstream", dsn,
			"-audit-log", auditLog, "-audit-sync", sync, "-debug-port", "0", "-log-level", "error",
			"-max-sessions", "0", "-max-sessions-per-user", "0", "-quiet-login", "-policy", policy), nil
	}
}

func (f *field) relay(delay time.Duration) func(addr string) (*exec.Cmd, error) {
	return func(addr string) (*exec.Cmd, error) {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), relayEnv+"="+addr+","+f.pg.Addr()+","+delay.String())
		return cmd, nil
	}
}

// startTargets starts the ways to the database that this machine has.
func (f *field) startTargets(ctx context.Context) error {
	f.targets = []target{{name: "direct", addr: f.pg.Addr()}}
	if err := f.start(ctx, "pgproxy", f.proxy("interval", filepath.Join(f.dir, "audit.jsonl"), f.pg.DSN("app", "app"))); err != nil {
		return err
	}
	if err := f.start(ctx, "relay", f.relay(0)); err != nil {
		return err
	}
	if path, err := findPgbouncer(); err == nil {
		return f.start(ctx, "pgbouncer", func(addr string) (*exec.Cmd, error) { return pgbouncer(path, addr, f.pg, f.dir) })
	}
	return nil
}

// startAudits starts pgproxy with each way to keep records. Those of the first
// go nowhere, which is as near to none as it comes.
func (f *field) startAudits(ctx context.Context) error {
	if err := f.start(ctx, "no records", f.proxy("never", os.DevNull, f.pg.DSN("app", "app"))); err != nil {
		return err
	}
	for _, sync := range []string{"never", "interval", "always"} {
		if err := f.start(ctx, sync, f.proxy(sync, filepath.Join(f.dir, sync+".jsonl"), f.pg.DSN("app", "app"))); err != nil {
			return err
		}
	}
	return nil
}

func buildProxy(ctx context.Context, dir string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(dir, "pgproxy"), "pgproxy")
	cmd.Stderr = os.Stderr
	return cmd.Run()
}

// freeAddr finds a port that outgoing connections do not take.
func freeAddr() (string, error) {
	for port := 21000; port < 32000; port++ {
		ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			ln.Close()
			return ln.Addr().String(), nil
		}
	}
	return "", errors.New("no free port below 32000")
}

func awaitListener(ctx context.Context, addr string) error {
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			return conn.Close()
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return err
		}
	}
}

func findPgbouncer() (string, error) {
	if path, err := exec.LookPath("pgbouncer"); err == nil {
		return path, nil
	}
	const debian = "/usr/sbin/pgbouncer" // not in everybody's PATH
	_, err := os.Stat(debian)
	return debian, err
}

// pgbouncer pools by session, as pgproxy does: one upstream connection a
// client.
func pgbouncer(path, addr string, pg *upstreamtest.Server, dir string) (*exec.Cmd, error) {
	_, port, _ := net.SplitHostPort(addr)
	ini := fmt.Sprintf(`[databases]
app = host=127.0.0.1 port=%d user=app
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %s
unix_socket_dir =
auth_type = any
pool_mode = session
max_client_conn = 5000
default_pool_size = 5000
log_connections = 0
log_disconnections = 0
logfile = %s
`, pg.Port, port, filepath.Join(dir, "pgbouncer.log"))
	file := filepath.Join(dir, "pgbouncer.ini")
	if err := os.WriteFile(file, []byte(ini), 0o644); err != nil {
		return nil, err
	}
	args := []string{"-q", file}
	if os.Getuid() == 0 { // it refuses to run as root
		if err := os.Chmod(dir, 0o777); err != nil {
			return nil, err
		}
		args = append([]string{"-u", "nobody"}, args...)
	}
	return exec.Command(path, args...), nil
}

// measure prints a table: a row for each number, a column for each target and
// one for its ratio to the first.
func measure(ctx context.Context, w io.Writer, list []measurement, targets []target) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(tw, "\t")
	for i, t := range targets {
		fmt.Fprintf(tw, "%s\t", t.name)
		if i > 0 {
			fmt.Fprint(tw, "ratio\t")
		}
	}
	fmt.Fprintln(tw)
	for _, m := range list {
		if err := m.row(ctx, tw, targets); err != nil {
			return err
		}
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(w, "Ratios are to %q; higher is better for speeds, lower for times. Medians of %d rounds.\n", targets[0].name, *rounds)
	return nil
}

// measurement is one number of a target.
type measurement struct {
	name   string
	format string
	take   func(ctx context.Context, addr string) (float64, error)
}

// row takes the measurement of all targets in turn, several times over, so
// that what disturbs the machine disturbs them alike.
func (m measurement) row(ctx context.Context, w io.Writer, targets []target) error {
	taken := make([][]float64, len(targets))
	for range *rounds {
		for i, t := range targets {
			v, err := m.take(ctx, t.addr)
			if err != nil {
				return fmt.Errorf("%s, %s: %w", m.name, t.name, err)
			}
			taken[i] = append(taken[i], v)
		}
	}
	fmt.Fprintf(w, "%s\t", m.name)
	direct := median(taken[0])
	for i := range targets {
		v := median(taken[i])
		fmt.Fprintf(w, m.format+"\t", v)
		if i > 0 {
			fmt.Fprintf(w, "%.2f\t", v/direct)
		}
	}
	fmt.Fprintln(w)
	return nil
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

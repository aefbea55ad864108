// Command demo shows pgproxy at work on one machine: a private tailnet with
// two people in it, a PostgreSQL server with a small shop, and the pgproxy
// binary between them. Nothing leaves loopback and nothing stays behind.
//
// psql can't speak to a tailnet inside a process, so each person has a port on
// loopback: what connects there is, to the tailnet, on that person's device.
//
// On a terminal with psql it opens psql as the first person, and ends with it;
// otherwise it prints what to type, shows the audit records as they come, and
// stays until it is interrupted or terminated. It also ends when its terminal is
// closed, and when the process that started it is gone.
//
// .ci/demo starts it with a directory of its own, which goes when the last of
// the demo's processes has ended, even if that was killed.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"pgproxy/node/nodetest"
	"pgproxy/upstream/upstreamtest"
	"pgproxy/wire/audit"

	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// capability is what the demo's grants are given by.
const capability = "demo.example/cap/pgproxy"

// startTimeout bounds all that has to be up before there is something to see;
// most of it, the first time, is compiling.
const startTimeout = 10 * time.Minute

// person is somebody in the demo's tailnet.
type person struct {
	login, device string
	port, page    int    // where the loopback ports to try begin, for psql and the status page
	grant         string // as in a tailnet policy file
	may           string // the same, in words
}

var people = []person{
	{
		login: "alice@example.com", device: "alice-laptop", port: 15432, page: 15632,
		grant: `{"access": "write", "may_lift": true, "may_observe": true, "may_kill": true, "may_signal": true, "may_approve": true}`,
		may:   "reads and writes, may raise the caps, sees and ends everybody's sessions, and other programs', and answers requests",
	},
	{
		login: "bob@example.com", device: "bob-phone", port: 15433, page: 15633,
		grant: `{"access": "read", "max_rows": 100, "elevate": {"access": "write", "by": "approval", "for": "10m"}}`,
		may:   "reads, 100 rows at a time, and may ask for more",
	},
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) // what nobody reads any more is no reason to leave things behind
	if err := endWithParent(); err != nil {
		return err
	}
	interrupt := make(chan os.Signal, 1)
	signal.Notify(interrupt, os.Interrupt)

	building, stopBuilding := context.WithTimeout(ctx, startTimeout)
	defer stopBuilding()
	ready := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { // Ctrl-C before there is anything to see gives up
		select {
		case <-interrupt:
			stopBuilding()
		case <-ready:
		}
	})
	s, err := build(building)
	close(ready)
	if err != nil {
		if building.Err() != nil && !errors.Is(building.Err(), context.DeadlineExceeded) {
			return errors.New("interrupted")
		}
		return err
	}
	defer s.close()

	s.introduce(os.Stdout)
	psql, err := s.postgres.Psql()
	if err == nil && term.IsTerminal(int(os.Stdin.Fd())) && term.IsTerminal(int(os.Stdout.Fd())) {
		return s.openPsql(ctx, psql, interrupt)
	}
	return s.showRecords(ctx, os.Stdout, interrupt)
}

// parentVariable has the process that started the demo, for one that may have
// ended before the demo could ask to be told.
const parentVariable = "PGPROXY_DEMO_PARENT"

// endWithParent has the parent's death end the demo: neither make nor "go run"
// can pass a SIGKILL on.
func endWithParent() error {
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGTERM), 0, 0, 0); err != nil {
		return err
	}
	if parent := os.Getenv(parentVariable); parent != "" && parent != strconv.Itoa(os.Getppid()) {
		return errors.New("what started the demo has ended")
	}
	return nil
}

// stage is everything that runs.
type stage struct {
	dir      string
	postgres *upstreamtest.Server
	jobs     *jobs
	tailnet  *nodetest.Tailnet
	proxy    *proxy
	doors    []*door // one for each of people, to the database
	pages    []*door // and one to the status page
}

// build sets the stage. On failure nothing is left of it.
func build(ctx context.Context) (*stage, error) {
	s := &stage{}
	if err := s.set(ctx); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *stage) set(ctx context.Context) (err error) {
	if err := needCompiler(ctx); err != nil {
		return err
	}
	if s.dir = os.Getenv(dirVariable); s.dir == "" {
		if s.dir, err = os.MkdirTemp("", "pgproxy-demo-"); err != nil {
			return err
		}
	}
	binary := filepath.Join(s.dir, "pgproxy")
	err = together(
		step("pgproxy is compiled", func() error { return compile(ctx, binary) }),
		step("PostgreSQL runs, with a shop in it", func() error { return s.startPostgres(ctx) }),
		step("alice-laptop and bob-phone are in a tailnet", func() error { return s.startTailnet(ctx) }),
	)
	if err != nil {
		return err
	}
	if err := step(proxyName+" has joined the tailnet", func() (err error) {
		s.proxy, err = startProxy(ctx, binary, s)
		return err
	})(); err != nil {
		return err
	}
	for i, p := range people {
		if err := step(fmt.Sprintf("PostgreSQL answers %s, under that name", p.login), func() error {
			return askWho(ctx, s.doors[i].port, p)
		})(); err != nil {
			return err
		}
	}
	return nil
}

// dirVariable names a directory to use, and to remove, instead of one made here.
const dirVariable = "PGPROXY_DEMO_DIR"

// step prints what a step has come to, with the time that it took.
func step(done string, do func() error) func() error {
	return func() error {
		began := time.Now()
		err := do()
		if err == nil {
			fmt.Printf("%6.1f s  %s\n", time.Since(began).Seconds(), done)
		}
		return err
	}
}

// askWho asks a first question through the tailnet as one of the people, and
// requires that it comes under their name.
func askWho(ctx context.Context, port int, p person) error {
	config, err := pgconn.ParseConfig(fmt.Sprintf("host=127.0.0.1 port=%d user=demo dbname=%s sslmode=disable", port, database))
	if err != nil {
		return err
	}
	conn, err := pgconn.ConnectConfig(ctx, config)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	results, err := conn.Exec(ctx, "SELECT current_setting('pgproxy.user')").ReadAll()
	if err != nil {
		return err
	}
	if got := string(results[0].Rows[0][0]); got != p.login {
		return fmt.Errorf("PostgreSQL takes %s for %q", p.login, got)
	}
	return nil
}

// together runs the steps at the same time, and returns what went wrong.
func together(steps ...func() error) error {
	errs := make([]error, len(steps))
	var wg sync.WaitGroup
	for i, step := range steps {
		wg.Go(func() { errs[i] = step() })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (s *stage) startPostgres(ctx context.Context) (err error) {
	if s.postgres, err = upstreamtest.Run(ctx); err != nil {
		return err
	}
	if err := loadShop(ctx, s.postgres); err != nil {
		return err
	}
	s.jobs, err = startJobs(ctx, s.postgres)
	return err
}

func (s *stage) startTailnet(ctx context.Context) (err error) {
	if s.tailnet, err = nodetest.Start(nodetest.Options{}); err != nil {
		return err
	}
	for _, p := range people {
		s.tailnet.Grant(p.login, capability, p.grant)
		peer, err := s.tailnet.Join(ctx, nodetest.Device{Name: p.device, Login: p.login})
		if err != nil {
			return err
		}
		door, err := openDoor(p.port, proxyName+":5432", peer)
		if err != nil {
			return err
		}
		s.doors = append(s.doors, door)
		if door, err = openDoor(p.page, proxyName+":80", peer); err != nil {
			return err
		}
		s.pages = append(s.pages, door)
	}
	return nil
}

// close takes the stage down, in the order that lets each part end well.
func (s *stage) close() {
	for _, d := range slices.Concat(s.doors, s.pages) {
		d.close()
	}
	if s.proxy != nil {
		s.proxy.stop()
	}
	var wg sync.WaitGroup
	if s.tailnet != nil {
		wg.Go(func() { s.tailnet.Close() })
	}
	if s.jobs != nil {
		s.jobs.stop()
	}
	if s.postgres != nil {
		wg.Go(func() { s.postgres.Stop() })
	}
	wg.Wait()
	if s.dir != "" {
		os.RemoveAll(s.dir)
	}
}

// introduce says who is who, and what is worth a try.
func (s *stage) introduce(w io.Writer) {
	fmt.Fprintf(w, "\nPostgreSQL %s has a shop's database; %s stands before it, in a tailnet of its own.\n", s.postgres.Version, proxyName)
	psql := s.psqlCommand()
	for i, p := range people {
		fmt.Fprintf(w, "\n%s on %s: %s.\n", p.login, p.device, p.may)
		fmt.Fprintf(w, "    %s -h 127.0.0.1 -p %d -d %s\n", psql, s.doors[i].port, database)
		fmt.Fprintf(w, "    http://127.0.0.1:%d/\n", s.pages[i].port)
	}
	fmt.Fprintf(w, `
Things to try:
    SHOW pgproxy.session;                              who you are, and what you may do
    \d+    SELECT * FROM stuck_orders;                 psql as ever
    SELECT * FROM events;                              more rows than you will get
    UPDATE orders SET status = 'paid';                 refused: no WHERE
    UPDATE orders SET status = 'paid' WHERE id = 1337; not refused, for alice
    UPDATE events SET handled = true WHERE id = 7;     waits for a lock: Ctrl-C ends it

The shop stands still: its worker waits for a row that the nightly import has locked, and forgotten.
    SHOW pgproxy.blockers;                             who waits for whom
    SELECT pg_terminate_backend(%d);                 ends the import, for alice; on record
    SHOW pgproxy.blockers;                             nobody waits any more

Bob needs to write, and alice lets him:
    SET pgproxy.access = 'write';                      bob asks, and waits; Ctrl-C gives up
    SHOW pgproxy.requests;                             alice sees who asks for what, here or on her page
    SET pgproxy.approve = 'ID';                        alice gives it, for ten minutes
    SET pgproxy.dry_run = on;                          what follows is shown, and taken back
`, s.jobs.importer.PID())
	fmt.Fprintf(w, "\nAudit records:  %[1]s\nIn words:       %[2]s audit show -f %[1]s\nProxy's log:    %[3]s\n\n",
		s.proxy.records, s.proxy.binary, s.proxy.log)
}

// showRecords prints the audit records in words as they come, until it is
// interrupted or ctx is done.
func (s *stage) showRecords(ctx context.Context, w io.Writer, interrupt <-chan os.Signal) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		defer stop()
		select {
		case <-ctx.Done():
		case <-interrupt:
		case <-s.proxy.exited:
		}
	})
	fmt.Fprintln(w, "Until Ctrl-C, the audit records as they come:")
	if err := audit.Command(ctx, []string{"show", "-f", s.proxy.records}, w, os.Stderr); err != nil {
		return err
	}
	return s.proxy.failure()
}

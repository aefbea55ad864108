package endtoend

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pgproxy/upstream/upstreamtest"
	"pgproxy/wire/audit"
)

// How the crash test is cut. A round is a start of the process, a few
// milliseconds of load and a kill -9.
const (
	crashRounds   = 200
	crashSessions = 4
	crashMaxRun   = 60 * time.Millisecond
)

// The point of the audit log: whatever happens to the process, no statement
// reaches the server that the log does not have.
func TestNothingRunsUnrecorded(t *testing.T) {
	server := upstreamtest.Start(t, upstreamtest.Set("log_statement", "all"))
	server.ExecAs(t, "app", "app", "CREATE TABLE marks (m text)")
	file := filepath.Join(t.TempDir(), "audit.jsonl")
	began := time.Now()
	for round := range crashRounds {
		crash(t, server, file, round)
	}
	t.Logf("%d rounds in %v", crashRounds, time.Since(began).Round(time.Millisecond))

	// Once the backends have ended nothing is added to the server's log.
	eventually(t, patience, "all backends have ended", func() bool {
		return len(server.Exec(t, "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'go-proxy %'")) == 0
	})
	recorded := map[string]bool{}
	for _, r := range readRecords(t, file) {
		if r.Event == audit.Query {
			recorded[mark.FindString(r.SQL)] = true
		}
	}
	for _, row := range server.Exec(t, "SELECT m FROM marks") {
		if !recorded[row[0]] {
			t.Errorf("the database has %s, which is not in the audit log", row[0])
		}
	}
	ran := 0
	for line := range strings.Lines(server.Log()) {
		if _, statement, ok := strings.Cut(line, "LOG:  statement: "); ok && strings.Contains(statement, "'mark-") {
			ran++
			if m := mark.FindString(statement); !recorded[m] {
				t.Errorf("the server ran %s, which is not in the audit log", m)
			}
		}
	}
	t.Logf("%d statements ran, %d are recorded", ran, len(recorded))
	if ran < crashRounds {
		t.Errorf("only %d statements in %d rounds: that proves nothing", ran, crashRounds)
	}
	if out, err := exec.Command(binary, "audit", "verify", file).CombinedOutput(); err != nil || !strings.Contains(string(out), "sound: ") {
		t.Errorf("audit verify: %v\n%s", err, out)
	}
}

var mark = regexp.MustCompile(`mark-\d+-\d+-\d+`)

// crash is one round: a proxy that goes on with the log of the one before, and
// is killed at some moment under load.
func crash(t *testing.T, server *upstreamtest.Server, file string, round int) {
	t.Helper()
	sync := []string{"always", "interval", "never"}[round%3]
	p := &proxy{}
	p.run(t, server, nil, []string{"-dev-listen", "127.0.0.1:0", "-debug-port", "0", "-audit-log", file, "-audit-sync", sync, "-quiet-login"})
	defer p.kill()
	p.addr = p.log.await(t, "serving")["address"].(string)
	working := work(t.Context(), p.addr, round)
	select {
	case <-working.begun:
	case <-time.After(patience):
		t.Fatal("no statement has come through")
	}
	time.Sleep(rand.N(crashMaxRun))
	p.kill()
	working.all.Wait()
}

// load is sessions that run marked statements, half of them reading and half of
// them writing, until they cannot any more.
type load struct {
	begun chan struct{} // closed when the first statement has come through
	all   sync.WaitGroup
}

func work(ctx context.Context, addr string, round int) *load {
	l := &load{begun: make(chan struct{})}
	first := sync.OnceFunc(func() { close(l.begun) })
	for worker := range crashSessions {
		l.all.Go(func() {
			conn, err := pgconn.Connect(ctx, "postgres://whoever@"+addr+"/app?sslmode=disable")
			if err != nil {
				return // killed before it was let in
			}
			defer conn.Close(ctx)
			sql := "SELECT 'mark-%d-%d-%d', pg_sleep(0.002 * random())"
			if worker%2 == 0 {
				sql = "INSERT INTO marks VALUES ('mark-%d-%d-%d')"
			}
			for i := 0; ; i++ {
				if _, err := conn.Exec(ctx, fmt.Sprintf(sql, round, worker, i)).ReadAll(); err != nil {
					return
				}
				first()
			}
		})
	}
	return l
}

package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"time"

	"tailscale.com/client/local"
	"tailscale.com/health"
	"tailscale.com/ipn"
	"tailscale.com/ipn/ipnstate"
	"tailscale.com/tsconst"
)

// probeTimeout bounds the request that tells whether the coordination server is
// there at all.
const probeTimeout = 3 * time.Second

// Up joins the tailnet and returns when the node is up. It waits, for as long
// as ctx and Config.UpTimeout allow, for a person to log the node in, for an
// admin to approve it, and for a coordination server that is out of reach,
// fails, or asks to wait; Ready says meanwhile which of these it is. It fails
// when its time is up, and when the coordination server refuses the node, for a
// bad key for instance. The error never holds a key. It is called once.
func (n *Node) Up(ctx context.Context) error {
	if n.upTimeout > 0 {
		c, cancel := context.WithTimeout(ctx, n.upTimeout)
		defer cancel()
		ctx = c
	}
	status, err := n.join(ctx)
	if err != nil {
		return n.mask.err(fmt.Errorf("joining the tailnet as %q: %w", n.srv.Hostname, err))
	}
	n.dnsName = strings.TrimSuffix(status.Self.DNSName, ".")
	n.ips = status.TailscaleIPs
	n.log.Info("joined the tailnet", "name", n.dnsName, "addresses", n.ips)
	n.warnIfUntagged(status.Self)
	if note := n.nameTaken(n.dnsName); note != "" {
		n.log.Warn(note, "fix", "in the tailnet's admin console, remove the node that has the name, or rename this one")
	}
	n.waitFor("")
	return nil
}

// join starts tsnet and returns when the node is running. On failure nothing is
// left running.
func (n *Node) join(ctx context.Context) (*ipnstate.Status, error) {
	if err := n.start(ctx); err != nil {
		return nil, err
	}
	err := n.noticeDeadPeers()
	if err == nil {
		err = n.awaitRunning(ctx)
	}
	var status *ipnstate.Status
	if err == nil {
		status, err = n.srv.Up(ctx)
	}
	if err != nil {
		n.srv.Close()
	}
	return status, err
}

// start starts tsnet. With an OAuth client's secret in place of a key, that asks
// Tailscale's API for a key first, and tsnet gives up at the first failure.
func (n *Node) start(ctx context.Context) error {
	for wait := time.Second; ; wait = min(2*wait, time.Minute) {
		lc, err := n.startOnce(ctx)
		if err == nil {
			n.lc = lc
			return nil
		}
		if !apiMayAnswer(err) {
			return err
		}
		n.waitFor("Tailscale's API gives no auth key yet; pgproxy's log says why")
		n.log.Warn("Tailscale's API gives no auth key yet", "err", n.mask.err(err), "retry_in", wait)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
		n.srv = n.newServer()
	}
}

// startOnce starts tsnet, or leaves it to itself when ctx ends: tsnet takes no
// context, and the API may hang.
func (n *Node) startOnce(ctx context.Context) (*local.Client, error) {
	type result struct {
		lc  *local.Client
		err error
	}
	srv, started := n.srv, make(chan result, 1)
	go func() {
		lc, err := srv.LocalClient()
		started <- result{lc, err}
	}()
	select {
	case r := <-started:
		return r.lc, r.err
	case <-ctx.Done():
		go func() {
			if r := <-started; r.err == nil {
				srv.Close()
			}
		}()
		return nil, ctx.Err()
	}
}

// busyAnswer is how the errors of asking the API tell of an answer that may be
// another one later.
var busyAnswer = regexp.MustCompile(`(cannot fetch token|Status): (429|5\d\d)`)

// apiMayAnswer reports whether an error of starting is the API's, and may be
// gone when it is asked again.
func apiMayAnswer(err error) bool {
	if !strings.Contains(err.Error(), "resolving auth key") {
		return false
	}
	_, unreachable := errors.AsType[*net.OpError](err)
	return unreachable || errors.Is(err, io.EOF) || busyAnswer.MatchString(err.Error())
}

// awaitRunning returns when the node is running. tsnet's Up, which waits for
// that too, gives up at the first error that the coordination server sends,
// "too many requests" included, though tsnet itself tries again.
func (n *Node) awaitRunning(ctx context.Context) error {
	follow, stop := context.WithCancel(ctx)
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer stop()
	news := make(chan busNews, 1)
	tasks.Go(func() { n.followBus(follow, news) })

	look := time.NewTicker(n.probeEvery)
	defer look.Stop()
	probed := make(chan error, 1) // has room for the one that runs
	j := joining{n: n}
	for {
		wanted := false
		select {
		case <-ctx.Done():
			return j.gaveUp(ctx)
		case got := <-news:
			failure := j.failure
			if err := j.note(got); err != nil {
				return err
			}
			if j.state == ipn.Running {
				return nil
			}
			wanted = j.failure != failure
		case <-look.C:
			wanted = true
		case away := <-probed:
			if j.away != nil && away == nil {
				j.failure = "" // it failed because the server was away
			}
			j.away, j.probing = away, false
		}
		if wanted && !j.probing && j.unexplained() {
			j.probing = true
			tasks.Go(func() { probed <- n.probeControl(follow) })
		}
		j.tell()
	}
}

// joining is what was seen while joining: the last of each kind of news.
type joining struct {
	n        *Node
	state    ipn.State
	loginURL string
	failure  string // why registering has failed, if it has
	away     error  // why the coordination server could not be reached when it was probed
	probing  bool   // it is being probed
	told     string // what tell has logged last
}

// waiting is what the node waits for.
type waiting struct {
	// words are for whoever asks, without an address, and without the login
	// URL: whoever opens that decides in whose tailnet the node is.
	words string
	// log and its detail are for the operator; log is words unless it is set.
	log    string
	detail slog.Attr
}

// limitedPrefix begins what becomes of the coordination server's 429. tsnet
// waits for as long as the server asks, and tries again.
const limitedPrefix = "node registration rate limited"

// note takes news. It returns an error that waiting would not mend.
func (j *joining) note(got busNews) error {
	j.state = cmp.Or(got.state, j.state)
	j.loginURL = cmp.Or(got.loginURL, j.loginURL)
	if got.health != nil {
		login := got.health.Warnings[tsconst.HealthWarnableLoginState]
		j.failure = j.n.mask.text(login.Args[health.ArgError])
	}
	if got.refusal != "" && !strings.HasPrefix(got.refusal, limitedPrefix) {
		return errors.New(got.refusal)
	}
	return nil
}

// unexplained reports whether the server has not said what the node waits for,
// so that a probe can tell more.
func (j *joining) unexplained() bool {
	return j.state != ipn.NeedsMachineAuth && j.loginURL == "" && !j.limited()
}

func (j *joining) limited() bool { return strings.HasPrefix(j.failure, limitedPrefix) }

func (j *joining) waiting() waiting {
	switch {
	case j.state == ipn.NeedsMachineAuth:
		return waiting{words: "the node waits for an admin's approval"}
	case j.loginURL != "":
		return waiting{
			words:  "nobody has logged the node in; the login URL is in pgproxy's log",
			log:    "to let this node into the tailnet, open the login URL",
			detail: slog.String("url", j.loginURL),
		}
	case j.limited():
		return waiting{words: "the coordination server asks to wait: " + j.failure}
	case j.away != nil:
		return waiting{words: "the coordination server is out of reach", detail: slog.Any("err", j.n.mask.err(j.away))}
	case j.failure != "" && !j.probing:
		return waiting{
			words:  "the coordination server does not let the node in yet; pgproxy's log says why",
			log:    "the coordination server does not let the node in yet",
			detail: slog.String("err", j.failure),
		}
	}
	return waiting{words: stillJoining}
}

// tell lets Ready say what the node waits for, and logs it when it is something
// else than before.
func (j *joining) tell() {
	now := j.waiting()
	j.n.waitFor(now.words)
	what := now.words + j.loginURL // details differ each time, but a new URL is news
	if what == j.told || now.words == stillJoining {
		return
	}
	j.told = what
	j.n.log.LogAttrs(context.Background(), slog.LevelWarn, cmp.Or(now.log, now.words), now.detail)
}

// gaveUp is the error when ctx has ended.
func (j *joining) gaveUp(ctx context.Context) error {
	if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return ctx.Err()
	}
	if j.unexplained() {
		j.away = j.n.probeControl(context.WithoutCancel(ctx))
		j.probing = false
	}
	now := j.waiting()
	if now.words == stillJoining {
		return fmt.Errorf("timed out in state %s", j.state)
	}
	if detail := now.detail; detail.Key != "" {
		return fmt.Errorf("timed out: %s: %s", now.words, detail.Value)
	}
	return fmt.Errorf("timed out: %s", now.words)
}

// probeControl asks the coordination server for its public key, as a client
// does first of all, and returns why that failed.
func (n *Node) probeControl(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	prefs, err := n.lc.GetPrefs(ctx)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, "GET", cmp.Or(prefs.ControlURL, ipn.DefaultControlURL)+"/key", nil)
	if err != nil {
		return err
	}
	req.Close = true // an idle connection of before proves nothing
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", req.URL.Host, res.Status)
	}
	return nil
}

package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"tailscale.com/health"
	"tailscale.com/ipn"
	"tailscale.com/ipn/ipnstate"
)

// probeTimeout bounds the one request that tells an unreachable coordination
// server from other reasons, once joining has failed.
const probeTimeout = 3 * time.Second

// up starts tsnet and waits until the node is running. On failure nothing is
// left running.
func (n *Node) up(ctx context.Context) (*ipnstate.Status, error) {
	lc, err := n.srv.LocalClient() // starts the server
	if err != nil {
		return nil, err
	}
	n.lc = lc

	// tsnet's Up says only that its time was up; the bus tells why.
	follow, stop := context.WithCancel(ctx)
	var story story
	var wg sync.WaitGroup
	wg.Go(func() { n.followJoin(follow, &story) })
	status, err := n.srv.Up(ctx)
	stop()
	wg.Wait()
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			err = story.reason(n.probeControl())
		}
		n.srv.Close()
		return nil, err
	}
	return status, nil
}

// story is what was seen while joining: the last of each kind of news.
type story struct {
	state    ipn.State
	loginURL string
	health   *health.State
}

// followJoin writes the bus's news into s until ctx is done, and shows the
// login URL to a person, once.
func (n *Node) followJoin(ctx context.Context, s *story) {
	bus, err := n.lc.WatchIPNBus(ctx, ipn.NotifyInitialState|ipn.NotifyInitialHealthState)
	if err != nil {
		return
	}
	defer bus.Close()
	for {
		news, err := bus.Next()
		if err != nil {
			return
		}
		if news.State != nil {
			s.state = *news.State
		}
		if news.Health != nil {
			s.health = news.Health
		}
		if url := news.BrowseToURL; url != nil && *url != "" && *url != s.loginURL {
			s.loginURL = *url
			n.log.Info("to let this node into the tailnet, open the login URL", "url", s.loginURL)
		}
	}
}

// reason says why joining has not succeeded in time. probe is what came of
// asking the coordination server directly.
func (s *story) reason(probe error) error {
	switch {
	case s.loginURL != "":
		return fmt.Errorf("timed out: nobody has logged the node in at %s", s.loginURL)
	case probe != nil:
		return fmt.Errorf("timed out: coordination server is out of reach: %w", probe)
	case s.state == ipn.NeedsMachineAuth:
		return errors.New("timed out: the node waits for an admin's approval")
	}
	msg := fmt.Sprintf("timed out in state %s", s.state)
	if s.health != nil {
		var texts []string
		for _, w := range s.health.Warnings {
			texts = append(texts, w.Text)
		}
		slices.Sort(texts)
		msg = strings.Join(append([]string{msg}, texts...), ": ")
	}
	return errors.New(msg)
}

// probeControl asks the coordination server for its public key, as a client
// does first of all, and returns why that failed.
func (n *Node) probeControl() error {
	ctx, cancel := context.WithTimeout(context.Background(), probeTimeout)
	defer cancel()
	prefs, err := n.lc.GetPrefs(ctx)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, "GET", cmp.Or(prefs.ControlURL, ipn.DefaultControlURL)+"/key", nil)
	if err != nil {
		return err
	}
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

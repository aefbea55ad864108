// Package notify tells people outside of the tailnet, by a webhook: a JSON object
// with a text, as Slack and others take it.
//
// Nobody waits for it. What is to be told goes into a queue with bounds; one
// goroutine sends it, and tries again for a while. The URL of a webhook is a
// secret, and stands in no log line and no error.
package notify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// maxQueued is how many different texts wait at most. More are dropped.
	maxQueued = 100
	// maxTogether is how many of them one message tells.
	maxTogether = 20
	// maxText is how much of one text is told, in bytes.
	maxText = 1000
)

// Notifier tells a webhook. Safe for concurrent use.
type Notifier struct {
	url    string
	name   string // of the proxy, for people who have several
	log    *slog.Logger
	client *http.Client
	// wait is how long the first pause before another try is, each later one being
	// twice as long; tries is how many there are, and grace how long there is to
	// send what is left at the end.
	wait, grace time.Duration
	tries       int

	mu      sync.Mutex
	queue   []entry
	dropped int // since the last log line
	wake    chan struct{}

	outcomes *prometheus.CounterVec
}

// entry is a text, and how often it was told while it waited.
type entry struct {
	text  string
	times int
}

// ReadURL reads the webhook's URL from a file. Its errors do not hold the URL.
func ReadURL(file string) (string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	text := strings.TrimSpace(string(b))
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		return "", fmt.Errorf("%s holds no URL of a webhook: one line with https://…", file)
	}
	return text, nil
}

// New returns a Notifier for a webhook. It tells nothing before Run.
func New(url, name string, log *slog.Logger) *Notifier {
	n := &Notifier{
		url: url, name: name, log: log, wait: time.Second, grace: 3 * time.Second, tries: 6,
		client: &http.Client{Timeout: 5 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
		wake:   make(chan struct{}, 1),
		outcomes: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "pgproxy", Name: "notifications_total",
			Help: "Texts for the webhook, by outcome."}, []string{"outcome"}),
	}
	for _, outcome := range []string{"sent", "failed", "dropped"} {
		n.outcomes.WithLabelValues(outcome)
	}
	return n
}

// Collector is the Notifier's metric.
func (n *Notifier) Collector() prometheus.Collector { return n.outcomes }

// Tell queues a text, or drops it when too many wait. It does not wait. A text that
// waits already is told once, with a count.
func (n *Notifier) Tell(text string) {
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "") + " …"
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for i := range n.queue {
		if n.queue[i].text == text {
			n.queue[i].times++
			return
		}
	}
	if len(n.queue) >= maxQueued {
		n.dropped++
		n.outcomes.WithLabelValues("dropped").Inc()
		return
	}
	n.queue = append(n.queue, entry{text, 1})
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// Run sends what is told until ctx ends, and then for a few seconds more what is
// left.
func (n *Notifier) Run(ctx context.Context) {
	defer n.client.CloseIdleConnections()
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.Background(), n.grace)
			defer cancel()
			for batch := n.take(); len(batch) > 0; batch = n.take() {
				n.send(last, batch)
			}
			return
		case <-n.wake:
			for ctx.Err() == nil {
				batch := n.take()
				if len(batch) == 0 {
					break
				}
				n.sendUntil(ctx, batch)
			}
		}
	}
}

// sendUntil is send, which the end of ctx gives the grace.
func (n *Notifier) sendUntil(ctx context.Context, batch []entry) {
	sending, cancel := context.WithCancel(context.Background())
	defer cancel()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(n.grace, cancel) })
	defer stop()
	n.send(sending, batch)
}

// take takes the next texts from the queue.
func (n *Notifier) take() []entry {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.dropped > 0 {
		n.log.Warn("too much for the webhook; texts were dropped", "dropped", n.dropped)
		n.dropped = 0
	}
	k := min(len(n.queue), maxTogether)
	batch := n.queue[:k:k]
	n.queue = n.queue[k:]
	return batch
}

// send sends texts as one message, and tries again until that is of no use.
func (n *Notifier) send(ctx context.Context, batch []entry) {
	outcome := "failed"
	defer func() { n.outcomes.WithLabelValues(outcome).Add(float64(len(batch))) }()
	body, err := json.Marshal(map[string]string{"text": n.message(batch)})
	if err != nil {
		n.log.Error("webhook", "err", err)
		return
	}
	for try, wait := 1, n.wait; ; try, wait = try+1, 2*wait {
		err, again := n.post(ctx, body)
		if err == nil {
			outcome = "sent"
			return
		}
		if !again || try == n.tries || ctx.Err() != nil {
			n.log.Warn("the webhook was not told", "texts", len(batch), "tries", try, "err", err)
			return
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

// message is the texts as one. Slack takes &, < and > for its own marks, and some
// of a text is of other people's choice.
func (n *Notifier) message(batch []entry) string {
	var b strings.Builder
	for i, e := range batch {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "%s: %s", n.name, strings.Map(printable, e.text))
		if e.times > 1 {
			fmt.Fprintf(&b, " (%d times)", e.times)
		}
	}
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(b.String())
}

// printable keeps a text in its line.
func printable(r rune) rune {
	if r < ' ' || r == 0x7f {
		return ' '
	}
	return r
}

// post sends a message once. again says that another try may help.
func (n *Notifier) post(ctx context.Context, body []byte) (err error, again bool) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, n.url, bytes.NewReader(body))
	if err != nil {
		return errors.New("the URL cannot be used"), false
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := n.client.Do(req)
	if failed, ok := errors.AsType[*url.Error](err); ok {
		err = failed.Err // without the URL
	}
	if err != nil {
		return err, true
	}
	resp.Body.Close()
	switch code := resp.StatusCode; {
	case code < 300:
		return nil, false
	default:
		return fmt.Errorf("the receiver answers %d", code), code >= 500 || code == http.StatusTooManyRequests
	}
}

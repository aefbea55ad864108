package notify

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"tailscale.com/tstest"
)

const secret = "T000-hunter2"

// receiver is a webhook's receiver, which answers as the test wants.
type receiver struct {
	*httptest.Server
	texts chan string // of the messages that it has taken
}

func newReceiver(t *testing.T, answer func(http.ResponseWriter, *http.Request) (took bool)) *receiver {
	t.Helper()
	r := &receiver{texts: make(chan string, 1000)}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		var m map[string]string
		if err := json.Unmarshal(body, &m); err != nil || req.Method != "POST" || req.Header.Get("Content-Type") != "application/json" || len(m) != 1 {
			t.Errorf("got %s %s, %v", req.Method, body, err)
		}
		if answer == nil || answer(w, req) {
			r.texts <- m["text"]
		}
	}))
	t.Cleanup(r.Close)
	return r
}

// lines is a log that a test looks at.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// start runs a Notifier. stop ends it, and is done when it has ended.
func start(t *testing.T, url string) (n *Notifier, log *lines, stop func()) {
	t.Helper()
	tstest.ResourceCheck(t)
	log = &lines{}
	n = New(url+"/"+secret, "pgproxy-prod", slog.New(slog.NewTextHandler(log, nil)))
	n.wait, n.grace, n.tries = time.Millisecond, 200*time.Millisecond, 3
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.Run(ctx)
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		<-done
		if strings.Contains(log.String(), secret) || strings.Contains(log.String(), "http://") {
			t.Errorf("the log has the URL: %s", log)
		}
	})
	t.Cleanup(stop)
	return n, log, stop
}

// count is how many texts have had that outcome.
func (n *Notifier) count(outcome string) int {
	registry := prometheus.NewRegistry()
	registry.MustRegister(n.Collector())
	families, _ := registry.Gather() // of a single counter
	for _, m := range families[0].GetMetric() {
		if m.GetLabel()[0].GetValue() == outcome {
			return int(m.GetCounter().GetValue())
		}
	}
	return -1
}

func TestTells(t *testing.T) {
	r := newReceiver(t, nil)
	n, _, stop := start(t, r.URL)
	n.Tell("<!channel> alice & bob\nask")
	if got, want := <-r.texts, "pgproxy-prod: &lt;!channel&gt; alice &amp; bob ask"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	n.Tell("the last word")
	stop() // sends what is left
	if got := <-r.texts; got != "pgproxy-prod: the last word" || n.count("sent") != 2 {
		t.Errorf("got %q, %d sent", got, n.count("sent"))
	}
}

// A receiver that fails is tried again; one that says that the message is wrong is
// not.
func TestTriesAgain(t *testing.T) {
	var mu sync.Mutex
	codes := []int{500, 429, 200, 404, 500, 500, 500, 200}
	r := newReceiver(t, func(w http.ResponseWriter, _ *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		code := codes[0]
		codes = codes[1:]
		w.WriteHeader(code)
		return code == 200
	})
	n, log, stop := start(t, r.URL)
	for i, want := range []struct{ sent, failed int }{{1, 0}, {1, 1}, {1, 2}, {2, 2}} {
		n.Tell(fmt.Sprint("text ", i))
		late := time.After(10 * time.Second)
		for n.count("sent") != want.sent || n.count("failed") != want.failed {
			select {
			case <-late:
				t.Fatalf("text %d: %d sent, %d failed", i, n.count("sent"), n.count("failed"))
			case <-time.After(time.Millisecond):
			}
		}
	}
	stop()
	if !strings.Contains(log.String(), "answers 404") || !strings.Contains(log.String(), "answers 500") {
		t.Errorf("the log has %s", log)
	}
}

// Nobody waits for a receiver that is slow: what is too much is dropped, counted
// and logged, and the end comes in its time.
func TestSlowReceiver(t *testing.T) {
	begun, release := make(chan struct{}, 1000), make(chan struct{})
	r := newReceiver(t, func(_ http.ResponseWriter, req *http.Request) bool {
		begun <- struct{}{}
		select {
		case <-release:
		case <-req.Context().Done():
		}
		return true
	})
	n, log, stop := start(t, r.URL)
	n.Tell("first")
	<-begun
	began := time.Now()
	for i := range 1000 {
		n.Tell(fmt.Sprint("text ", i))
		n.Tell("again and again")
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("2000 calls took %v", took)
	}
	if got := n.count("dropped"); got != 2000-(maxQueued-1)-1000 {
		t.Errorf("%d dropped", got)
	}
	close(release)
	<-r.texts
	if got := <-r.texts; strings.Count(got, "\n") != maxTogether-1 || !strings.Contains(got, "again and again (1000 times)") {
		t.Errorf("got %q", got)
	}
	stop()
	if !strings.Contains(log.String(), "dropped=901") {
		t.Errorf("the log has %s", log)
	}
}

func TestHangingReceiver(t *testing.T) {
	begun := make(chan struct{}, 10)
	r := newReceiver(t, func(_ http.ResponseWriter, req *http.Request) bool {
		begun <- struct{}{}
		<-req.Context().Done()
		return false
	})
	n, _, stop := start(t, r.URL)
	n.Tell("never taken")
	<-begun
	n.Tell("nor this")
	began := time.Now()
	stop()
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the end took %v", took)
	}
	if n.count("failed") != 2 {
		t.Errorf("%d failed", n.count("failed"))
	}
}

func TestReceiverGone(t *testing.T) {
	r := newReceiver(t, nil)
	gone := r.URL
	r.Close()
	n, log, stop := start(t, gone)
	n.Tell("for nobody")
	for n.count("failed") == 0 {
		time.Sleep(time.Millisecond)
	}
	stop()
	if !strings.Contains(log.String(), "refused") {
		t.Errorf("the log has %s", log)
	}
}

func TestReadURL(t *testing.T) {
	for text, ok := range map[string]bool{
		"https://hooks.example.com/" + secret + "\n": true, "http://127.0.0.1:1/" + secret: true,
		"": false, secret: false, "ftp://example.com/" + secret: false, "https://": false, "https://exa mple.com/" + secret: false,
	} {
		file := filepath.Join(t.TempDir(), "url")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := ReadURL(file)
		if (err == nil) != ok || ok && got != strings.TrimSpace(text) || err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("%q: got %q, %v", text, got, err)
		}
	}
	if _, err := ReadURL(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("no file, and no error")
	}
}

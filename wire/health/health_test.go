package health

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func get(h http.Handler, path string) (int, string) {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
	return w.Code, w.Body.String()
}

func TestReadyNamesWhatFails(t *testing.T) {
	var broken error
	h := Handler(prometheus.NewRegistry(),
		Check{Name: "fine", Run: func(context.Context) error { return nil }},
		Check{Name: "upstream", Run: func(context.Context) error { return broken }},
	)
	if code, body := get(h, "/readyz"); code != 200 || body != "ready\n" {
		t.Errorf("got %d %q", code, body)
	}
	broken = errors.New("dial 10.1.2.3: refused")
	if code, body := get(h, "/readyz"); code != 503 || body != "not ready: upstream\n" {
		t.Errorf("got %d %q", code, body)
	}
	if code, _ := get(h, "/healthz"); code != 200 {
		t.Errorf("not ready is not dead: got %d", code)
	}
	if code, _ := get(h, "/debug/pprof/"); code != 404 {
		t.Errorf("there is more than there should be: got %d", code)
	}
}

// What may be read is told: why a condition does not hold, and what is amiss
// though it does.
func TestReadyTells(t *testing.T) {
	var waiting error
	h := Handler(prometheus.NewRegistry(), Check{
		Name: "tailnet", Run: func(context.Context) error { return waiting }, Tell: true,
		Notes: func() []string { return []string{"another node has the name"} },
	})
	if code, body := get(h, "/readyz"); code != 200 || body != "ready\nnote: another node has the name\n" {
		t.Errorf("got %d %q", code, body)
	}
	waiting = errors.New("the node waits for approval")
	if code, body := get(h, "/readyz"); code != 503 || body != "not ready: tailnet: the node waits for approval\n" {
		t.Errorf("got %d %q", code, body)
	}
}

func TestMetrics(t *testing.T) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "answer"}, func() float64 { return 42 }))
	if code, body := get(Handler(registry), "/metrics"); code != 200 || !strings.Contains(body, "answer 42") {
		t.Errorf("got %d %q", code, body)
	}
}

// Many who ask at once are one probe, and one that hangs up does not spoil it.
func TestProbeRunsOnce(t *testing.T) {
	release := make(chan struct{})
	runs := 0
	p := NewProbe(time.Hour, func(ctx context.Context) error {
		runs++
		<-release
		return ctx.Err()
	})
	var watcher sync.WaitGroup
	ctx, stop := context.WithCancel(t.Context())
	watcher.Go(func() { p.Watch(ctx) })
	c := p.Check("upstream")

	gone, hangUp := context.WithCancel(t.Context())
	hangUp()
	if err := c.Run(gone); err == nil {
		t.Error("ready without a result")
	}
	if got := p.Last(); !got.At.IsZero() {
		t.Errorf("a result before there is one: %v", got)
	}
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if err := c.Run(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	close(release)
	wg.Wait()
	if got := p.Last(); got.Err != nil || got.At.IsZero() {
		t.Errorf("the last result is %v", got)
	}
	stop()
	watcher.Wait()
	if runs != 1 {
		t.Errorf("%d runs, want 1", runs)
	}
}

// An old result is renewed when somebody asks, and not before.
func TestProbeIsRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var err error
		runs := 0
		p := NewProbe(10*time.Second, func(context.Context) error { runs++; return err })
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go p.Watch(ctx) // the bubble waits for it
		c := p.Check("upstream")
		if err := c.Run(ctx); err != nil {
			t.Error(err)
		}
		err = errors.New("gone")
		time.Sleep(time.Hour)
		if runs != 1 {
			t.Errorf("%d runs while nobody asked, want 1", runs)
		}
		if p.Last().Err != nil {
			t.Error("Last waited for a new result")
		}
		synctest.Wait()
		if p.Last().Err == nil {
			t.Error("Last did not have the result renewed")
		}
		if c.Run(ctx) == nil {
			t.Error("ready, though the last result says otherwise")
		}
		stop()
	})
}

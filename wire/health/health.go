// Package health answers those who watch the process from outside: /healthz
// (it is alive), /readyz (it can take sessions) and /metrics. It shows nothing
// of what sessions do.
package health

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Check is one condition of being ready.
type Check struct {
	// Name is what is told when the condition does not hold: "draining",
	// "upstream out of reach".
	Name string
	// Run returns why the condition does not hold. It is called by several
	// requests at a time.
	Run func(context.Context) error
	// Tell says that Run's error is in words that whoever reaches the port may
	// read. Otherwise the name is all that is told: an upstream's address, for
	// one, stays in the log.
	Tell bool
	// Notes are what is told besides, though the condition holds; nil = none.
	Notes func() []string
}

// NotWhile is the condition that something does not hold.
func NotWhile(name string, holds func() bool) Check {
	return Check{Name: name, Run: func(context.Context) error {
		if holds() {
			return errNotReady
		}
		return nil
	}}
}

var errNotReady = errors.New("not ready")

// NewRegistry has the metrics of the process and of the Go runtime beside those
// given.
func NewRegistry(metrics ...prometheus.Collector) *prometheus.Registry {
	registry := prometheus.NewRegistry()
	registry.MustRegister(metrics...)
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return registry
}

// checkTimeout is for all checks of one request together. Kubelet gives up
// after a second unless told otherwise.
const checkTimeout = 5 * time.Second

// Handler serves the three pages.
func Handler(metrics prometheus.Gatherer, checks ...Check) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) { ready(w, r, checks) })
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	return mux
}

// ready runs all checks and answers 503 with those that fail, or 200 with what
// is to be noted.
func ready(w http.ResponseWriter, r *http.Request, checks []Check) {
	ctx, cancel := context.WithTimeout(r.Context(), checkTimeout)
	defer cancel()
	var failed, notes []string
	for _, c := range checks {
		err := c.Run(ctx)
		switch {
		case err != nil && c.Tell:
			failed = append(failed, c.Name+": "+err.Error())
		case err != nil:
			failed = append(failed, c.Name)
		case c.Notes != nil:
			notes = append(notes, c.Notes()...)
		}
	}
	w.Header().Set("Cache-Control", "no-store")
	if len(failed) == 0 {
		fmt.Fprintln(w, "ready")
	} else {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	for _, name := range failed {
		fmt.Fprintf(w, "not ready: %s\n", name)
	}
	for _, note := range notes {
		fmt.Fprintf(w, "note: %s\n", note)
	}
}

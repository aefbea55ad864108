// Package health answers those who watch the process from outside: /healthz
// (it is alive), /readyz (it can take sessions) and /metrics. It shows nothing
// of what sessions do.
package health

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
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

// ready runs all checks and answers 503 with those that fail. The words are
// the proxy's own: an upstream's address is not for whoever can reach a
// probe's port, so errors stay in the log of who checks.
func ready(w http.ResponseWriter, r *http.Request, checks []Check) {
	ctx, cancel := context.WithTimeout(r.Context(), checkTimeout)
	defer cancel()
	var failed []string
	for _, c := range checks {
		if err := c.Run(ctx); err != nil {
			failed = append(failed, c.Name)
		}
	}
	w.Header().Set("Cache-Control", "no-store")
	if len(failed) == 0 {
		fmt.Fprintln(w, "ready")
		return
	}
	w.WriteHeader(http.StatusServiceUnavailable)
	for _, name := range failed {
		fmt.Fprintf(w, "not ready: %s\n", name)
	}
}

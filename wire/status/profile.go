package status

import (
	"fmt"
	"net/http"
	"net/http/pprof"
	"strconv"
	"time"

	"pgproxy/wire"
)

// maxProfile is the longest that a profile or trace may take. What is collected
// costs the whole process time and memory, and goes on until the end.
const maxProfile = 60 * time.Second

// profiles are the pages of net/http/pprof that are served. cmdline is not: it
// shows the flags.
var profiles = map[string]http.HandlerFunc{
	"":        pprof.Index, // the list, and every profile that has no page of its own
	"profile": pprof.Profile,
	"trace":   pprof.Trace,
	"symbol":  pprof.Symbol,
}

// profile serves profiles to those who may observe: one that takes time at a
// time, and none for longer than maxProfile.
func (p *Page) profile(serve http.HandlerFunc, takesTime bool) http.Handler {
	return p.seen(func(w http.ResponseWriter, r *http.Request, v wire.Viewer) {
		if !v.Rule.MayObserve {
			http.Error(w, "pgproxy: this needs may_observe", http.StatusForbidden)
			return
		}
		asked := r.FormValue("seconds")
		if asked != "" {
			// Written so that NaN is refused.
			if seconds, err := strconv.ParseFloat(asked, 64); err != nil || !(seconds <= maxProfile.Seconds()) {
				http.Error(w, fmt.Sprintf("pgproxy: seconds must be a number up to %v", maxProfile.Seconds()), http.StatusBadRequest)
				return
			}
		}
		if takesTime || asked != "" {
			if !p.profiling.TryLock() {
				http.Error(w, "pgproxy: another profile is being taken; try again when it is done", http.StatusTooManyRequests)
				return
			}
			defer p.profiling.Unlock()
		}
		serve(w, r)
	})
}

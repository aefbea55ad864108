package status

import (
	"bytes"
	"compress/gzip"
	"context"
	"embed"
	"html/template"
	"net/http"
	"strings"
	"time"

	"pgproxy/policy"
	"pgproxy/wire"
	"pgproxy/wire/health"
)

//go:embed *.html
var sources embed.FS

var pages = template.Must(template.New("").Funcs(template.FuncMap{
	"age": age, "took": took, "size": size, "plural": policy.Count, "utc": utc, "clock": clock, "preview": preview, "coloured": coloured, "duration": policy.FormatDuration, "brief": brief,
	"count": func(list []pastStatement) int64 { return int64(len(list)) },
}).ParseFS(sources, "*.html"))

// frame is what all pages have in common: the layout shows it.
type frame struct {
	Page   *Page
	Viewer wire.Viewer // zero = not shown
	Now    time.Time
	Tab    string // of the navigation, where the page belongs
	Said   string // what came of an act
	// Refreshes says that the page keeps itself up to date.
	Refreshes bool
	States    []state
}

// Waiting is how many access requests the viewer may answer.
func (f frame) Waiting() int {
	n := 0
	if f.Viewer.Who() != "" {
		for _, r := range f.Page.Server.Requests(f.Viewer) {
			if r.Answers {
				n++
			}
		}
	}
	return n
}

// frame returns the frame of a page under a tab.
func (p *Page) frame(v wire.Viewer, tab string) frame {
	now := time.Now()
	return frame{Page: p, Viewer: v, Now: now, Tab: tab, States: p.states(now)}
}

// place is an entry of the navigation.
type place struct{ Name, Address string }

var places = []place{{"Sessions", "/"}, {"Database", "/database"}, {"History", "/history"}, {"Requests", "/requests"}}

// Tabs is the navigation.
func (frame) Tabs() []place { return places }

// Tailnet is the domain of the tailnet; empty where there is none.
func (p *Page) Tailnet() string {
	for _, host := range p.Hosts {
		if _, domain, ok := strings.Cut(strings.TrimSuffix(host, "."), "."); ok {
			return domain
		}
	}
	return ""
}

// state is how a part that pgproxy depends on is doing.
type state struct {
	Name, Tone, Words string
	At                time.Time // when it was looked at; zero = just now
	Age               time.Duration
}

// states are those of the upstream, and of what Checks name.
func (p *Page) states(now time.Time) []state {
	list := []state{upstreamState(p.Reach(), now)}
	for _, c := range p.Checks {
		s := state{Name: c.Name, Tone: "good", Words: "ok"}
		if err := c.Run(context.Background()); err != nil {
			s.Tone, s.Words = "bad", "failing"
			if c.Tell {
				s.Words = err.Error()
			}
		}
		list = append(list, s)
	}
	return list
}

func upstreamState(last health.Result, now time.Time) state {
	s := state{Name: "Upstream", At: last.At, Age: now.Sub(last.At)}
	switch {
	case last.At.IsZero():
		s.Tone, s.Words = "quiet", "not checked yet"
	case last.Err != nil:
		s.Tone, s.Words = "bad", "out of reach"
	default:
		s.Tone, s.Words = "good", "reachable"
	}
	return s
}

// Warnings are the notes on the proxy itself.
func (f frame) Warnings() []string {
	if f.Page.Notes == nil {
		return nil
	}
	return f.Page.Notes()
}

// render sends a page, compressed where the browser can read that: most of one
// with hundreds of sessions is said again and again.
func (p *Page) render(w http.ResponseWriter, r *http.Request, status int, name string, data any) {
	var b bytes.Buffer
	if err := pages.ExecuteTemplate(&b, name, data); err != nil {
		p.Logger.Error("status page", "template", name, "err", err)
		http.Error(w, "pgproxy: the page cannot be made", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Vary", "Accept-Encoding")
	if !strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		w.WriteHeader(status)
		w.Write(b.Bytes())
		return
	}
	w.Header().Set("Content-Encoding", "gzip")
	w.WriteHeader(status)
	zip, _ := gzip.NewWriterLevel(w, gzip.BestSpeed) // the level is a valid one
	zip.Write(b.Bytes())
	zip.Close() // who reads has gone, if it fails
}

package status

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgproxy/upstream/upstreamtest"
	"pgproxy/wire"
	"pgproxy/wire/health"
)

// browser is a headless Chromium, spoken to over its DevTools pipe. It finds
// nothing but this machine's loopback.
type browser struct {
	mu      sync.Mutex
	w       io.WriteCloser
	nextID  int
	answers map[int]chan json.RawMessage
	tabs    map[string]*tab // by session
}

// startBrowser starts Chromium, or skips the test where there is none.
// PGPROXY_TEST_CHROMIUM names it where it has another name.
func startBrowser(t *testing.T) *browser {
	t.Helper()
	path := ""
	for _, name := range []string{os.Getenv("PGPROXY_TEST_CHROMIUM"), "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"} {
		if found, err := exec.LookPath(name); name != "" && err == nil {
			path = found
			break
		}
	}
	if path == "" {
		t.Skip("no chromium; .ci/chromium installs it, PGPROXY_TEST_CHROMIUM names another")
	}
	theirIn, ourOut, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	ourIn, theirOut, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-default-apps",
		"--disable-extensions", "--no-first-run", "--no-default-browser-check", "--no-proxy-server",
		"--host-resolver-rules=MAP pgproxy-prod 127.0.0.1, MAP evil.example 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
		"--user-data-dir="+t.TempDir(), "about:blank")
	cmd.ExtraFiles = []*os.File{theirIn, theirOut} // 3 and 4
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirIn.Close()
	theirOut.Close()
	b := &browser{w: ourOut, answers: make(map[int]chan json.RawMessage), tabs: make(map[string]*tab)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b.read(ourIn)
	}()
	t.Cleanup(func() {
		b.send("", "Browser.close", nil, nil)
		ourOut.Close()
		stop := time.AfterFunc(10*time.Second, func() { cmd.Process.Kill() })
		<-ended // it has closed its end
		cmd.Wait()
		stop.Stop()
		ourIn.Close()
	})
	return b
}

// read hands answers and events to those who wait for them.
func (b *browser) read(r io.Reader) {
	in := bufio.NewReader(r)
	for {
		line, err := in.ReadBytes(0)
		if err != nil {
			break
		}
		var msg struct {
			ID        int
			SessionID string
			Method    string
			Params    json.RawMessage
		}
		line = line[:len(line)-1]
		if json.Unmarshal(line, &msg) != nil {
			continue
		}
		b.mu.Lock()
		answer, tab := b.answers[msg.ID], b.tabs[msg.SessionID]
		delete(b.answers, msg.ID)
		b.mu.Unlock()
		switch {
		case answer != nil:
			answer <- line
		case tab != nil && msg.Method != "":
			tab.event(msg.Method, msg.Params)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for id, answer := range b.answers {
		close(answer)
		delete(b.answers, id)
	}
}

// send calls a DevTools method and decodes its result.
func (b *browser) send(session, method string, params map[string]any, result any) error {
	answer := make(chan json.RawMessage, 1)
	b.mu.Lock()
	b.nextID++
	id := b.nextID
	b.answers[id] = answer
	msg := map[string]any{"id": id, "method": method}
	if params != nil {
		msg["params"] = params
	}
	if session != "" {
		msg["sessionId"] = session
	}
	line, err := json.Marshal(msg)
	if err == nil {
		_, err = b.w.Write(append(line, 0))
	}
	b.mu.Unlock()
	if err != nil {
		return err
	}
	select {
	case line, ok := <-answer:
		if !ok {
			return errors.New("the browser has ended")
		}
		var reply struct {
			Result json.RawMessage
			Error  *struct{ Message string }
		}
		if err := json.Unmarshal(line, &reply); err != nil {
			return err
		}
		if reply.Error != nil {
			return errors.New(reply.Error.Message)
		}
		if result == nil {
			return nil
		}
		return json.Unmarshal(reply.Result, result)
	case <-time.After(60 * time.Second):
		return errors.New("no answer")
	}
}

// tab is one page as one person sees it.
type tab struct {
	t       *testing.T
	b       *browser
	session string
	frame   string
	loader  string      // of the page that was loaded last
	loads   chan string // loaders whose page is loaded

	mu       sync.Mutex
	problems []string // exceptions, and what the content policy has blocked
}

// look is how a tab looks at pages.
type look struct {
	width, height int
	dark          bool
	noScript      bool
}

var (
	phone     = look{width: 390, height: 844}
	phoneDark = look{width: 390, height: 844, dark: true}
	desk      = look{width: 1400, height: 900}
)

func (b *browser) open(t *testing.T, l look) *tab {
	t.Helper()
	tb := &tab{t: t, b: b, loads: make(chan string, 100)}
	var target struct{ TargetID, BrowserContextID string }
	tb.must(b.send("", "Target.createBrowserContext", nil, &target))
	tb.must(b.send("", "Target.createTarget", map[string]any{"url": "about:blank", "browserContextId": target.BrowserContextID}, &target))
	var attached struct{ SessionID string }
	tb.must(b.send("", "Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached))
	tb.session, tb.frame = attached.SessionID, target.TargetID // a page's target and its frame have one name
	b.mu.Lock()
	b.tabs[tb.session] = tb
	b.mu.Unlock()
	scheme := "light"
	if l.dark {
		scheme = "dark"
	}
	tb.call("Page.enable", nil)
	var tree struct {
		FrameTree struct{ Frame struct{ LoaderID string } }
	}
	tb.must(json.Unmarshal(tb.call("Page.getFrameTree", nil), &tree))
	tb.loader = tree.FrameTree.Frame.LoaderID
	tb.call("Page.setLifecycleEventsEnabled", map[string]any{"enabled": true})
	tb.call("Runtime.enable", nil)
	tb.call("Log.enable", nil)
	tb.call("Emulation.setDeviceMetricsOverride", map[string]any{"width": l.width, "height": l.height, "deviceScaleFactor": 1, "mobile": l.width < 600})
	tb.call("Emulation.setEmulatedMedia", map[string]any{"features": []map[string]string{{"name": "prefers-color-scheme", "value": scheme}}})
	if l.noScript {
		tb.call("Emulation.setScriptExecutionDisabled", map[string]any{"value": true})
	}
	return tb
}

func (tb *tab) must(err error) {
	tb.t.Helper()
	if err != nil {
		tb.t.Fatal(err)
	}
}

func (tb *tab) call(method string, params map[string]any) json.RawMessage {
	tb.t.Helper()
	var result json.RawMessage
	if err := tb.b.send(tb.session, method, params, &result); err != nil {
		tb.t.Fatalf("%s: %v", method, err)
	}
	return result
}

func (tb *tab) event(method string, params json.RawMessage) {
	switch method {
	case "Page.lifecycleEvent":
		var e struct{ FrameID, LoaderID, Name string }
		if json.Unmarshal(params, &e) == nil && e.Name == "load" && e.FrameID == tb.frame {
			tb.loads <- e.LoaderID
		}
	case "Runtime.exceptionThrown", "Page.javascriptDialogOpening":
		tb.note(string(params))
	case "Log.entryAdded":
		// Chromium asks for an icon by itself, which there is none.
		if !strings.Contains(string(params), "favicon") {
			tb.note(string(params))
		}
	}
}

func (tb *tab) note(problem string) {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	tb.problems = append(tb.problems, problem)
}

// quiet requires that nothing was blocked, and no script has failed.
func (tb *tab) quiet() {
	tb.t.Helper()
	tb.mu.Lock()
	defer tb.mu.Unlock()
	for _, p := range tb.problems {
		tb.t.Errorf("the browser complains: %s", p)
	}
}

func (tb *tab) complained(of string) bool {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	return slices.ContainsFunc(tb.problems, func(p string) bool { return strings.Contains(p, of) })
}

// load does what makes the tab load a page, and waits for the page.
func (tb *tab) load(do func()) {
	tb.t.Helper()
	do()
	timeout := time.After(30 * time.Second)
	for {
		select {
		case loader := <-tb.loads:
			if loader != tb.loader {
				tb.loader = loader
				return
			}
		case <-timeout:
			tb.t.Fatal("no page was loaded")
		}
	}
}

func (tb *tab) visit(url string) {
	tb.t.Helper()
	tb.load(func() { tb.call("Page.navigate", map[string]any{"url": url}) })
}

// eval runs an expression in the page and decodes its value; a promise is
// waited for. It works where the page's own scripts are off, too.
func (tb *tab) eval(expression string, into any) {
	tb.t.Helper()
	var reply struct {
		Result           struct{ Value json.RawMessage }
		ExceptionDetails *struct{ Exception struct{ Description string } }
	}
	err := tb.b.send(tb.session, "Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true, "awaitPromise": true}, &reply)
	if err == nil && reply.ExceptionDetails != nil {
		err = errors.New(reply.ExceptionDetails.Exception.Description)
	}
	if err == nil && into != nil {
		err = json.Unmarshal(reply.Result.Value, into)
	}
	if err != nil {
		tb.t.Fatalf("%s: %v", expression, err)
	}
}

func (tb *tab) text(selector string) string {
	tb.t.Helper()
	var s string
	tb.eval(fmt.Sprintf("document.querySelector(%q)?.innerText ?? ''", selector), &s)
	return s
}

func (tb *tab) count(selector string) int {
	tb.t.Helper()
	var n int
	tb.eval(fmt.Sprintf("document.querySelectorAll(%q).length", selector), &n)
	return n
}

// click presses the mouse on an element, as a person would.
func (tb *tab) click(selector string) {
	tb.t.Helper()
	var at struct{ X, Y float64 }
	tb.eval(fmt.Sprintf(`(() => { const e = document.querySelector(%q); e.scrollIntoView({block: "center"});
		const r = e.getBoundingClientRect(); return {x: r.x + r.width / 2, y: r.y + r.height / 2}; })()`, selector), &at)
	for _, typ := range []string{"mousePressed", "mouseReleased"} {
		tb.call("Input.dispatchMouseEvent", map[string]any{"type": typ, "x": at.X, "y": at.Y, "button": "left", "clickCount": 1})
	}
}

func (tb *tab) write(text string) {
	tb.t.Helper()
	tb.call("Input.insertText", map[string]any{"text": text})
}

// until waits, in the page, until a condition holds after some change of it.
func (tb *tab) until(condition string) {
	tb.t.Helper()
	tb.eval(fmt.Sprintf(`new Promise((done, fail) => {
		const holds = () => (%s);
		if (holds()) return done(true);
		const seen = new MutationObserver(() => { if (holds()) { seen.disconnect(); done(true); } });
		seen.observe(document, {subtree: true, childList: true, attributes: true, characterData: true});
		setTimeout(() => fail(new Error("it did not come to that")), 20000);
	})`, condition), nil)
}

// picture keeps a screenshot of the whole page, where PGPROXY_TEST_SCREENSHOTS
// names a directory for them.
func (tb *tab) picture(name string) {
	tb.t.Helper()
	dir := os.Getenv("PGPROXY_TEST_SCREENSHOTS")
	if dir == "" {
		return
	}
	var shot struct{ Data string }
	tb.must(json.Unmarshal(tb.call("Page.captureScreenshot", map[string]any{"captureBeyondViewport": true}), &shot))
	png, err := base64.StdEncoding.DecodeString(shot.Data)
	tb.must(err)
	tb.must(os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644))
}

// site serves the page to one person.
func site(t *testing.T, p *proxy, v wire.Viewer) *httptest.Server {
	s := httptest.NewServer(pageFor(p, v).Handler())
	t.Cleanup(s.Close)
	return s
}

// byName is a site's address under the node's name: over plain HTTP and not on
// loopback, browsers leave Sec-Fetch-Site out.
func byName(s *httptest.Server) string {
	_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
	return "http://pgproxy-prod:" + port
}

// unreadable finds text that is too small, has too little contrast with what
// is behind it (WCAG AA: 4.5), or buttons too small for a finger.
const unreadable = `(() => {
	const luminance = ([r, g, b]) => [r, g, b].map((c) => { c /= 255; return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; })
		.reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
	const rgb = (s) => s.match(/[\d.]+/g).map(Number);
	const behind = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] === 1) return c; } return [255, 255, 255]; };
	const bad = [];
	for (const e of document.body.querySelectorAll("*")) {
		const box = e.getBoundingClientRect();
		if (!box.width || !box.height) continue;
		if (e.matches("a.button, button, input, select") && box.height < 44) bad.push("small: " + e.outerHTML.slice(0, 80));
		if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
		const style = getComputedStyle(e);
		const [a, b] = [luminance(rgb(style.color)), luminance(behind(e))];
		const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
		if (contrast < 4.5) bad.push("contrast " + contrast.toFixed(1) + ": " + e.outerHTML.slice(0, 80));
		if (parseFloat(style.fontSize) < 14) bad.push(style.fontSize + ": " + e.outerHTML.slice(0, 80));
	}
	return bad;
})()`

// readable requires that all text can be read, and that nothing is wider than
// the screen.
func (tb *tab) readable(page string, l look) {
	tb.t.Helper()
	var bad []string
	tb.eval(unreadable, &bad)
	for _, what := range bad {
		tb.t.Errorf("%s: %s", page, what)
	}
	var width int
	if tb.eval("document.documentElement.scrollWidth", &width); width > l.width {
		tb.t.Errorf("%s is %d wide on a screen of %d", page, width, l.width)
	}
}

// axeCore returns axe-core's script; empty where it is not installed.
func axeCore(t *testing.T) string {
	path := os.Getenv("PGPROXY_TEST_AXE")
	if path == "" {
		path = filepath.Join(upstreamtest.CacheDir(), "axe", "node_modules", "axe-core", "axe.min.js")
	}
	script, err := os.ReadFile(path)
	if err != nil {
		t.Log("no axe-core; .ci/axe installs it, PGPROXY_TEST_AXE names its axe.min.js")
	}
	return string(script)
}

// accessible requires that axe-core finds nothing serious.
func (tb *tab) accessible(page, axe string) {
	tb.t.Helper()
	var found struct {
		Passes   int
		Problems []string
	}
	tb.eval(axe+`; axe.run().then((r) => ({passes: r.passes.length, problems: r.violations.filter((v) => ["serious", "critical"].includes(v.impact))
		.flatMap((v) => v.nodes.map((n) => v.id + ": " + v.help + ": " + n.html.slice(0, 200)))}))`, &found)
	if found.Passes < 10 {
		tb.t.Errorf("%s: axe has looked at %d things alone", page, found.Passes)
	}
	for _, p := range found.Problems {
		tb.t.Errorf("%s: axe: %s", page, p)
	}
}

// press presses a key.
func (tb *tab) press(key string, code int) {
	tb.t.Helper()
	text := ""
	if key == "Enter" {
		text = "\r"
	}
	tb.call("Input.dispatchKeyEvent", map[string]any{"type": "keyDown", "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text})
	tb.call("Input.dispatchKeyEvent", map[string]any{"type": "keyUp", "key": key, "code": key, "windowsVirtualKeyCode": code})
}

func TestBrowser(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	b := startBrowser(t)

	t.Run("readable", func(t *testing.T) {
		axe := axeCore(t)
		for name, l := range map[string]look{
			"phone": phone, "phone-dark": phoneDark, "phone-no-script": {width: 390, height: 844, noScript: true},
			"tablet": {width: 800, height: 1000}, "tablet-dark": {width: 800, height: 1000, dark: true},
			"desk": desk, "desk-dark": {width: 1400, height: 900, dark: true},
		} {
			for _, v := range []wire.Viewer{alice, lead} {
				who, _, _ := strings.Cut(v.Who(), "@")
				if who == "alice" && l != phone && l != desk {
					continue // who may less sees less of the same
				}
				t.Run(name+"/"+who, func(t *testing.T) {
					url := site(t, troubledNight(), v).URL
					tb := b.open(t, l)
					for file, path := range map[string]string{"page": "/", "ask": "/session/aliceactive0/cancel", "said": "/?done=ended&person=nobody",
						"database": "/database", "history": "/history", "requests": "/requests"} {
						tb.visit(url + path)
						tb.picture(name + "-" + who + "-" + file)
						tb.readable(path, l)
						tb.eval(`document.querySelectorAll("details").forEach((d) => { d.open = true; })`, nil)
						tb.picture(name + "-" + who + "-" + file + "-open")
						tb.readable(path+" unfolded", l)
						if axe != "" && !l.noScript && l.width != 800 && who == "lead" {
							tb.accessible(path, axe)
						}
					}
					var title string
					if tb.eval("document.title", &title); strings.Contains(title, "pwned") {
						t.Error("a script in a statement has run")
					}
					tb.quiet()
				})
			}
		}
	})

	// One look: a session is one row on a desk, and no more than two lines on a
	// phone, whatever it runs.
	t.Run("rows", func(t *testing.T) {
		for height, l := range map[int]look{2*22 + 20: phone, 22 + 12: desk} {
			tb := b.open(t, l)
			tb.visit(site(t, troubledNight(), oncall).URL)
			tb.eval(`document.getElementById("idle").open = true`, nil)
			var high []string
			tb.eval(fmt.Sprintf(`[...document.querySelectorAll(".row > details > summary, .row > .line")]
				.filter((e) => e.getBoundingClientRect().height > %d).map((e) => e.getBoundingClientRect().height + ": " + e.innerText)`, height), &high)
			for _, row := range high {
				t.Errorf("on a screen of %d a row is higher than %d: %s", l.width, height, row)
			}
		}
	})

	// The picture in the README.
	t.Run("picture", func(t *testing.T) {
		p := troubledNight()
		p.sessions = slices.DeleteFunc(p.sessions, func(i wire.Info) bool { return strings.HasPrefix(i.ID, "mallory") })
		p.history = slices.DeleteFunc(p.history, func(s wire.Past) bool { return s.User == "mallory@example.com" })
		late := p.sessions[1] // runs since a moment ago
		late.ID, late.User, late.Node, late.State, late.SQL = "carolrunning", "carol@example.com", "carol-desk", "active", "SELECT state, count(*) FROM orders WHERE placed > now() - interval '1 hour' GROUP BY 1"
		late.TxSince, late.StateSince, late.UpstreamPID = time.Time{}, time.Now().Add(-2*time.Second), 4901
		p.sessions = append(p.sessions, late)
		tb := b.open(t, look{width: 1200, height: 900})
		tb.visit(site(t, p, lead).URL)
		tb.until(`document.getElementById("fresh").innerText === "Live."`)
		tb.picture("readme")
		tb.quiet()
	})

	t.Run("keyboard", func(t *testing.T) {
		tb := b.open(t, desk)
		tb.visit(site(t, troubledNight(), oncall).URL)
		tb.eval(`document.getElementById("fold-bobtx0000000").focus()`, nil)
		tb.press("Enter", 13)
		tb.until(`document.getElementById("open-bobtx0000000").open`)
		tb.press("Tab", 9)
		var focus struct {
			ID      string
			Outline string
		}
		tb.eval(`({id: document.activeElement.id, outline: getComputedStyle(document.activeElement).outlineStyle})`, &focus)
		if focus.ID != "end-bobtx0000000" || focus.Outline != "solid" {
			t.Errorf("after Enter and Tab: %+v", focus)
		}
		tb.quiet()
	})

	t.Run("two people", func(t *testing.T) {
		p := busyNight()
		for _, tt := range []struct {
			viewer         wire.Viewer
			sessions, ends int
		}{{alice, 2, 2}, {oncall, 5, 5}, {watch, 5, 0}} {
			tb := b.open(t, phone)
			tb.visit(site(t, p, tt.viewer).URL)
			if n := tb.count("[id^=session-]"); n != tt.sessions {
				t.Errorf("%s sees %d sessions, want %d", tt.viewer.Who(), n, tt.sessions)
			}
			if n := tb.count(".row .danger"); n != tt.ends {
				t.Errorf("%s may end %d sessions, want %d", tt.viewer.Who(), n, tt.ends)
			}
			if got := tb.text(".you"); !strings.Contains(got, tt.viewer.Who()) {
				t.Errorf("the page takes %s for %q", tt.viewer.Who(), got)
			}
		}
	})

	// The whole way without a script, under the node's own name.
	t.Run("without a script", func(t *testing.T) {
		p := busyNight()
		tb := b.open(t, look{width: 390, height: 844, noScript: true})
		tb.visit(byName(site(t, p, oncall)))
		tb.click(`#filter input[name=person]`)
		tb.write("bob")
		tb.load(func() { tb.click("#filter button") })
		if n := tb.count("#statements .row"); n != 2 {
			t.Errorf("the filter shows %d statements, want 2", n)
		}
		tb.load(func() { tb.click("header nav a[aria-current]") })
		tb.click("#fold-aliceactive0")
		tb.load(func() { tb.click("#cancel-aliceactive0") })
		if got := tb.text("main"); !strings.Contains(got, "Cancel this statement?") || !strings.Contains(got, "alice@example.com") {
			t.Errorf("asked is %q", got)
		}
		if got := p.acted(); len(got) > 0 {
			t.Errorf("asking has acted: %v", got)
		}
		tb.load(func() { tb.click("#yes") })
		if want := []string{"cancel aliceactive0/3 by oncall@example.com"}; !slices.Equal(p.acted(), want) {
			t.Errorf("acts %v, want %v", p.acted(), want)
		}
		if got := tb.text(".said"); !strings.Contains(got, "asked to cancel") {
			t.Errorf("said is %q", got)
		}
		tb.quiet()
	})

	// The page changes by itself, and leaves alone what a person is doing.
	t.Run("live", func(t *testing.T) {
		p := busyNight()
		tb := b.open(t, phone)
		tb.visit(byName(site(t, p, oncall)))
		tb.click("#fold-bobtx0000000")
		tb.click(`#filter input[name=person]`)
		tb.write("bob")
		tb.until(`document.querySelectorAll("#statements .row").length === 2`)
		var y float64
		tb.eval("scrollY", &y)
		p.mu.Lock()
		fresh := p.sessions[0]
		fresh.ID, fresh.User, fresh.State = "newcomer0000", "newbob@example.com", "active"
		p.sessions = append(p.sessions, fresh)
		p.mu.Unlock()
		tb.until(`document.getElementById("session-newcomer0000")`)
		var now struct {
			Open         bool
			Focus, Value string
			Rows         int
			Y            float64
		}
		tb.eval(`({open: document.getElementById("open-bobtx0000000").open, focus: document.activeElement.name,
			value: document.querySelector("#filter input[name=person]").value, rows: document.querySelectorAll("#statements .row").length, y: scrollY})`, &now)
		if !now.Open || now.Focus != "person" || now.Value != "bob" || now.Rows != 2 {
			t.Errorf("after an update: %+v", now)
		}
		tb.eval(`document.getElementById("end-bobtx0000000").focus()`, nil)
		p.mu.Lock()
		p.sessions = p.sessions[1:]
		p.reach = health.Result{At: time.Now(), Err: errors.New("gone")}
		p.mu.Unlock()
		tb.until(`document.getElementById("health").innerText.includes("out of reach") && !document.getElementById("session-aliceidle000")`)
		var focus string
		if tb.eval("document.activeElement.id", &focus); focus != "end-bobtx0000000" {
			t.Errorf("the focus went to %q", focus)
		}
		tb.load(func() { tb.click("#end-bobtx0000000") })
		tb.load(func() { tb.click("#yes") })
		if want := []string{"end bobtx0000000 by oncall@example.com"}; !slices.Equal(p.acted(), want) {
			t.Errorf("acts %v, want %v", p.acted(), want)
		}
		tb.quiet()
	})

	t.Run("says when it is not live", func(t *testing.T) {
		s := site(t, busyNight(), alice)
		tb := b.open(t, phone)
		tb.visit(s.URL)
		tb.until(`document.getElementById("fresh").innerText === "Live."`)
		s.Listener.Close()
		s.CloseClientConnections()
		tb.until(`document.querySelector(".stale")?.innerText.startsWith("Not up to date")`)
		tb.picture("phone-alice-stale")
	})

	// A page elsewhere that has its visitors' browsers send the form.
	t.Run("cross-site", func(t *testing.T) {
		p := busyNight()
		ours := site(t, p, oncall)
		for _, target := range []string{ours.URL, byName(ours)} {
			evil := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "text/html")
				fmt.Fprintf(w, `<form method=post action="%s/session/bobtx0000000/end"><button id=yes>Win</button></form><iframe src="%s/"></iframe>`, target, target)
			}))
			defer evil.Close()
			_, port, _ := net.SplitHostPort(evil.Listener.Addr().String())
			tb := b.open(t, desk)
			tb.visit("http://evil.example:" + port)
			if !tb.complained("frame-ancestors") {
				t.Error("the page can be framed")
			}
			tb.load(func() { tb.click("#yes") })
			if got := tb.text("body"); !strings.Contains(got, "cross-origin") {
				t.Errorf("the answer is %q", got)
			}
		}
		if got := p.acted(); len(got) > 0 {
			t.Errorf("another site has acted: %v", got)
		}
	})
}

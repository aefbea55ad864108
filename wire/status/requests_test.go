package status

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"pgproxy/policy"
	"pgproxy/wire"
)

var approver = person("approver@example.com", "desk", func(r *policy.Rule) { r.MayApprove = true })

func (p *proxy) Requests(v wire.Viewer) []wire.Request {
	if !v.Rule.MayApprove && v.Who() != alice.Who() {
		return nil
	}
	now := time.Now()
	return []wire.Request{{ID: "k3v9qa", Session: "aliceidle000", User: alice.Who(), Node: "<b>laptop</b>", Database: "shop", Access: "write",
		For: 15 * time.Minute, Reason: "INC-7 <script>", SQL: hostile, Asked: now.Add(-70 * time.Second), Until: now.Add(8 * time.Minute),
		Answers: v.Rule.MayApprove && v.Who() != alice.Who()}}
}

func (p *proxy) Approve(_ context.Context, by wire.Viewer, id string) error {
	return p.answer("approve", by, id)
}

func (p *proxy) Refuse(_ context.Context, by wire.Viewer, id string) error {
	return p.answer("refuse", by, id)
}

func (p *proxy) answer(verb string, by wire.Viewer, id string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case !by.Rule.MayApprove:
		return wire.ErrMayNotApprove
	case id != "k3v9qa":
		return wire.ErrNoRequest
	case p.fail != nil:
		return p.fail
	}
	p.acts = append(p.acts, verb+" "+id+" by "+by.Who())
	return nil
}

// Requests are shown to those who may approve and to who has asked, and answered
// by a POST of our own page alone.
func TestRequests(t *testing.T) {
	for _, tt := range []struct {
		name, method, target string
		viewer               wire.Viewer
		code                 int
		says, not            string
	}{
		{"the list", "GET", "/requests", approver, 200, `href="/request/k3v9qa/approve"`, "<script>document"},
		{"one's own", "GET", "/requests", alice, 200, "INC-7", "/request/k3v9qa/approve"},
		{"a stranger", "GET", "/requests", oncall, 200, "You ask for nothing", "k3v9qa"},
		{"after an answer", "GET", "/requests?done=approved", approver, 200, "The access was given.", ""},
		{"the question", "GET", "/request/k3v9qa/approve", approver, 200, `action="/request/k3v9qa/approve"`, "<script>document"},
		{"of one's own", "GET", "/request/k3v9qa/approve", alice, 403, "of their own", "action="},
		{"without the right", "GET", "/request/k3v9qa/approve", oncall, 403, "may_approve", "INC-7"},
		{"over", "GET", "/request/gone00/refuse", approver, 303, "done=over", ""},
		{"approved", "POST", "/request/k3v9qa/approve", approver, 303, "done=approved", ""},
		{"refused", "POST", "/request/k3v9qa/refuse", approver, 303, "done=refused", ""},
		{"too late", "POST", "/request/gone00/approve", approver, 303, "done=over", ""},
		{"who may not", "POST", "/request/k3v9qa/approve", oncall, 403, "may_approve", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := busyNight()
			w := serve(pageFor(p, tt.viewer).Handler(), request(tt.method, tt.target, nil))
			body := w.Body.String() + w.Header().Get("Location")
			if w.Code != tt.code || !strings.Contains(body, tt.says) || tt.not != "" && strings.Contains(body, tt.not) {
				t.Errorf("got %d, want %d with %q and without %q: %s", w.Code, tt.code, tt.says, tt.not, body)
			}
			if acted := len(p.acted()) == 1; acted != (strings.HasSuffix(tt.says, "approved") || strings.HasSuffix(tt.says, "refused")) {
				t.Errorf("acted: %v", p.acted())
			}
		})
	}
	p := busyNight()
	r := request("POST", "/request/k3v9qa/approve", nil)
	r.Header.Set("Sec-Fetch-Site", "cross-site")
	if w := serve(pageFor(p, approver).Handler(), r); w.Code != 403 || len(p.acted()) > 0 {
		t.Errorf("another site's form: %d, %v", w.Code, p.acted())
	}
	p.fail = wire.ErrUnrecorded
	if w := serve(pageFor(p, approver).Handler(), request("POST", "/request/k3v9qa/approve", nil)); w.Code != 503 {
		t.Errorf("without a record: %d", w.Code)
	}
	var list []map[string]any
	if err := json.Unmarshal(get(t, p, approver, "/requests.json").Body.Bytes(), &list); err != nil || len(list) != 1 || list[0]["request"] != "k3v9qa" || list[0]["for"] != "15min" {
		t.Errorf("JSON: %v, %v", list, err)
	}
}

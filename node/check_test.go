package node

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tailscale.com/ipn"
	"tailscale.com/ipn/store"
	"tailscale.com/types/logger"
)

func TestCheckNames(t *testing.T) {
	for _, tt := range []struct {
		check func(string) error
		good  []string
		bad   []string
	}{
		{CheckHostname, []string{"pgproxy", "pgproxy-prod", "7"}, []string{"", "pg_proxy", "pg.proxy", "-pg", "pg proxy", strings.Repeat("x", 64)}},
		{CheckControlURL, []string{"https://headscale.example.com", "http://127.0.0.1:8080"}, []string{"headscale.example.com", "ftp://x", "https://", "https://key@x", ":"}},
		{CheckTag, []string{"tag:pgproxy"}, []string{"pgproxy", "tag:", "tag:pg proxy"}},
		{CheckCapability, []string{"corp.example/cap/pgproxy", "https://corp.example/cap/pgproxy"}, []string{"pgproxy", "cap/pgproxy", "corp.example", "corp.example/", "corp.example/cap/pg proxy", "a.example/cap/x,b.example/cap/y z"}},
	} {
		for _, s := range tt.good {
			if err := tt.check(s); err != nil {
				t.Errorf("%q: %v", s, err)
			}
		}
		for _, s := range tt.bad {
			if tt.check(s) == nil {
				t.Errorf("%q passes", s)
			}
		}
	}
}

func TestCheckState(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"empty", "joined", "broken"} {
		if err := os.Mkdir(in(name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(in("open"), 0o755); err != nil {
		t.Fatal(err)
	}
	s, err := store.New(logger.Discard, filepath.Join(in("joined"), stateFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.WriteState(ipn.CurrentProfileStateKey, []byte("profile-1")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(in("broken"), stateFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(in("file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		want State
		err  string
	}{
		{"new/deep", State{}, ""},
		{"empty", State{}, ""},
		{"joined", State{Saved: true}, ""},
		{"open", State{Open: true}, ""},
		{"broken", State{}, "unexpected end of JSON"},
		{"file", State{}, "not a directory"},
		{"file/new", State{}, "not a directory"},
	} {
		got, err := CheckState(in(tt.name))
		tt.want.Dir = in(tt.name)
		if tt.err == "" && (err != nil || got != tt.want) || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
			t.Errorf("%s: got %+v, %v; want %+v, %q", tt.name, got, err, tt.want, tt.err)
		}
	}
	if _, err := os.Stat(in("new")); err == nil {
		t.Error("CheckState has made a directory")
	}
	if info, err := os.Stat(in("open")); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("CheckState has changed the mode: %v, %v", info.Mode(), err)
	}
}

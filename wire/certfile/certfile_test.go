package certfile

import (
	"bytes"
	"crypto/tls"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgproxy/upstream/upstreamtest"
)

// pair is a certificate on disk.
type pair struct{ dir, cert, key string }

func newPair(t *testing.T) pair {
	t.Helper()
	dir := t.TempDir()
	p := pair{dir, filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")}
	p.renew(t)
	return p
}

// renew writes another certificate and sets the files' time to another one.
func (p pair) renew(t *testing.T) {
	t.Helper()
	if err := upstreamtest.MakeCertificate(filepath.Join(p.dir, "ca.crt"), p.cert, p.key); err != nil {
		t.Fatal(err)
	}
	p.touch(t)
}

var clock = time.Now()

func (p pair) touch(t *testing.T) {
	t.Helper()
	clock = clock.Add(time.Second)
	for _, file := range []string{p.cert, p.key} {
		if err := os.Chtimes(file, clock, clock); err != nil {
			t.Fatal(err)
		}
	}
}

// served returns the certificate that a handshake gets.
func served(t *testing.T, p *Pair) []byte {
	t.Helper()
	cert, err := p.GetCertificate(&tls.ClientHelloInfo{})
	if err != nil {
		t.Fatal(err)
	}
	return cert.Certificate[0]
}

func TestReread(t *testing.T) {
	files := newPair(t)
	var log bytes.Buffer
	p, err := Load(files.cert, files.key, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	first := served(t, p)
	if !bytes.Equal(first, served(t, p)) {
		t.Error("another certificate without a change")
	}

	files.renew(t)
	second := served(t, p)
	if bytes.Equal(first, second) {
		t.Error("the renewed certificate is not served")
	}

	if err := os.WriteFile(files.cert, []byte("half a certif"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if !bytes.Equal(second, served(t, p)) {
			t.Error("the one before does not serve on")
		}
	}
	if n := strings.Count(log.String(), "not read again"); n != 1 {
		t.Errorf("logged %d times:\n%s", n, log.String())
	}

	if err := os.Remove(files.cert); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(second, served(t, p)) {
		t.Error("the one before does not serve on without files")
	}

	files.renew(t)
	if third := served(t, p); bytes.Equal(second, third) {
		t.Error("the certificate after a broken one is not served")
	}
}

func TestLoadFails(t *testing.T) {
	files := newPair(t)
	other := newPair(t)
	for name, p := range map[string]pair{
		"no file":     {cert: files.cert + ".none", key: files.key},
		"another key": {cert: files.cert, key: other.key},
		"swapped":     {cert: files.key, key: files.cert},
	} {
		if _, err := Load(p.cert, p.key, slog.New(slog.DiscardHandler)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

package node_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgproxy/node/nodetest"
)

// certName is the name that config asks for.
const certName = "pgproxy-prod." + nodetest.Domain

// TestMain makes a certificate that this process trusts as it trusts Let's
// Encrypt's: tsnet looks at the system's roots, which are read once.
func TestMain(m *testing.M) {
	if err := makeCert(); err != nil {
		log.Fatal(err)
	}
	code := m.Run()
	os.RemoveAll(certFiles)
	os.Exit(code)
}

// certFiles is where the certificate is, as NAME.crt and NAME.key.
var certFiles string

func makeCert() error {
	dir, err := os.MkdirTemp("", "nodecert")
	if err != nil {
		return err
	}
	certFiles = dir
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: certName},
		DNSNames:              []string{certName},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(90 * 24 * time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	crt := filepath.Join(dir, certName+".crt")
	if err := writePEM(crt, "CERTIFICATE", der); err != nil {
		return err
	}
	if err := writePEM(filepath.Join(dir, certName+".key"), "PRIVATE KEY", keyDER); err != nil {
		return err
	}
	// Whether it is time to renew is nobody's to ask in a test.
	if err := os.Setenv("TS_DEBUG_ACME_DIRECTORY_URL", "http://127.0.0.1:1/"); err != nil {
		return err
	}
	return os.Setenv("SSL_CERT_FILE", crt)
}

func writePEM(path, kind string, der []byte) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}

// A client may ask for the full name, the short one, another, or none.
func TestGetCertificate(t *testing.T) {
	tn := nodetest.New(t)
	cfg := config(tn, new(logged))
	cfg.StateDir = t.TempDir()
	if err := os.CopyFS(filepath.Join(cfg.StateDir, "certs"), os.DirFS(certFiles)); err != nil {
		t.Fatal(err)
	}
	n := start(t, cfg)
	if _, err := n.GetCertificate(nil); err != nil {
		t.Fatalf("before serving: %v", err)
	}
	for _, asked := range []string{certName, "pgproxy-prod", "other.example.com", ""} {
		t.Run(asked, func(t *testing.T) {
			clientEnd, serverEnd := net.Pipe()
			defer clientEnd.Close()
			done := make(chan error, 1)
			go func() {
				defer serverEnd.Close()
				done <- tls.Server(serverEnd, &tls.Config{GetCertificate: n.GetCertificate}).HandshakeContext(t.Context())
			}()
			var presented *x509.Certificate
			client := tls.Client(clientEnd, &tls.Config{
				ServerName:         asked,
				InsecureSkipVerify: true, // what is presented is checked here
				VerifyConnection: func(s tls.ConnectionState) error {
					presented = s.PeerCertificates[0]
					return nil
				},
			})
			if err := client.HandshakeContext(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if err := presented.VerifyHostname(certName); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestGetCertificateFails(t *testing.T) {
	tests := []struct {
		name string
		opts nodetest.Options
		want string
	}{
		{"nobody makes one", nodetest.Options{}, "tailnet certificate for " + certName},
		{"not enabled", nodetest.Options{NoHTTPS: true}, "not enabled for this tailnet"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := start(t, config(nodetest.NewWith(t, tt.opts), new(logged)))
			if _, err := n.GetCertificate(nil); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, want %q in it", err, tt.want)
			}
		})
	}
}

package endtoend

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pgproxy/node/nodetest"
)

// certificate makes a certificate that is its own authority, and writes it with
// its key. Its name is told to those who ask who the authority is.
func certificate(t *testing.T, certFile, keyFile, authority, host string) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: authority},
		DNSNames:              []string{host},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(90 * 24 * time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, keyFile, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})))
	write(t, certFile, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// verifyFull is sslmode=verify-full against a host's name, with one authority.
func verifyFull(host string, authority *x509.Certificate) func(*pgconn.Config) {
	roots := x509.NewCertPool()
	roots.AddCert(authority)
	return func(c *pgconn.Config) { c.TLSConfig = &tls.Config{ServerName: host, RootCAs: roots} }
}

// -tls tailnet has the certificate of the node's MagicDNS name. Making one
// takes the internet; here tsnet finds one that is good already.
func TestTailnetCertificate(t *testing.T) {
	t.Parallel()
	const name = "pgproxy-tls"
	const host = name + "." + nodetest.Domain
	state := t.TempDir()
	certs := filepath.Join(state, "certs")
	if err := os.Mkdir(certs, 0o700); err != nil {
		t.Fatal(err)
	}
	certFile := filepath.Join(certs, host+".crt")
	authority := certificate(t, certFile, filepath.Join(certs, host+".key"), "nodetest", host)
	p := startAs(t, tailnet, name, []string{
		"SSL_CERT_FILE=" + certFile,                           // trusted as Let's Encrypt's are
		"TS_DEBUG_ACME_DIRECTORY_URL=http://127.0.0.1:1/none", // nobody to ask about renewing
	}, "-state-dir", state, "-tls", "tailnet", "-require-tls")

	s := p.connect(t, alice, verifyFull(host, authority))
	if got := s.value(t, "SELECT current_setting('pgproxy.user')"); got != "alice@example.com" {
		t.Errorf("inside of TLS the user is %q", got)
	}
	if _, err := p.tryConnect(t, alice, verifyFull("other."+nodetest.Domain, authority)); err == nil || !strings.Contains(err.Error(), host) {
		t.Errorf("under another name: %v", err)
	}
	_, err := p.tryConnect(t, alice)
	if e := wantCode(t, "without TLS", err, "28000"); !strings.Contains(e.Message, "TLS") {
		t.Errorf("without TLS: %v", e)
	}

	// A cancel request comes without TLS from old clients, and inside of it
	// from new ones.
	running := s.begin(t, "SELECT pg_sleep(60)")
	p.cancelFrom(t, alice, s)
	wantCode(t, "cancelled in the clear", running.wait(t, soon), "57014")
	running = s.begin(t, "SELECT pg_sleep(60)")
	if err := s.CancelRequest(t.Context()); err != nil {
		t.Error(err)
	}
	wantCode(t, "cancelled under TLS", running.wait(t, soon), "57014")

	// psql knows the name by the door's address only.
	cmd := psql(t, p, alice, "-d", "host="+host+" hostaddr=127.0.0.1 dbname=app sslmode=verify-full sslrootcert="+certFile, "-c", "SELECT 'secure'", "-c", `\conninfo`)
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "\nsecure\n") || !strings.Contains(string(out), "TLSv1.3") {
		t.Errorf("psql: %v\n%s", err, out)
	}
}

// Files are read again when they have changed, without a signal; live sessions
// stay, and so does the old pair while the new one cannot be read.
func TestCertificateFilesChange(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	const host = "db.example.com"
	first := certificate(t, certFile, keyFile, "first", host)
	p := start(t, "-tls", certFile+":"+keyFile)
	s := p.connect(t, alice, verifyFull(host, first))
	p.connect(t, alice, verifyFull(host, first), func(c *pgconn.Config) { // sslnegotiation=direct
		c.SSLNegotiation, c.TLSConfig.NextProtos = "direct", []string{"postgresql"}
	})

	write(t, keyFile, "half written")
	p.connect(t, alice, verifyFull(host, first))

	second := certificate(t, certFile, keyFile, "second", host)
	eventually(t, soon, "the new certificate is shown", func() bool {
		_, err := p.tryConnect(t, alice, verifyFull(host, second))
		return err == nil
	})
	if _, err := p.tryConnect(t, alice, verifyFull(host, first)); err == nil {
		t.Error("the old certificate is still shown")
	}
	s.query(t, "SELECT 1")
}

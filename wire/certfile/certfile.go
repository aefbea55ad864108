// Package certfile serves a TLS certificate from two files, and reads them
// again when they have changed: whoever renews it need not tell pgproxy.
package certfile

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// Pair is a certificate and its key in PEM files. It is safe for concurrent
// use.
type Pair struct {
	certFile, keyFile string
	log               *slog.Logger

	mu    sync.Mutex
	cert  *tls.Certificate
	stamp stamp // of the files that were read last, whether well or not
}

// stamp tells one version of the two files from another.
type stamp struct {
	cert, key fileStamp
}

type fileStamp struct {
	modified time.Time
	size     int64
}

// Load reads the pair for the first time.
func Load(certFile, keyFile string, log *slog.Logger) (*Pair, error) {
	p := &Pair{certFile: certFile, keyFile: keyFile, log: log}
	s, err := p.look()
	if err != nil {
		return nil, err
	}
	if err := p.read(s); err != nil {
		return nil, err
	}
	return p, nil
}

// GetCertificate is for [tls.Config]. When the files have changed it reads
// them first. A pair that cannot be read, in the middle of a renewal perhaps, is
// logged, once, and the one before it serves on.
func (p *Pair) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, err := p.look()
	if err == nil && s != p.stamp {
		err = p.read(s)
		if err == nil {
			p.log.Info("TLS certificate read again", "file", p.certFile)
		}
	}
	if err != nil && s != p.stamp {
		p.log.Error("TLS certificate not read again; the one before it serves on", "err", err)
	}
	p.stamp = s
	return p.cert, nil
}

// look returns the files' present stamp; where one is missing, the zero stamp.
func (p *Pair) look() (stamp, error) {
	cert, err := os.Stat(p.certFile)
	if err != nil {
		return stamp{}, err
	}
	key, err := os.Stat(p.keyFile)
	if err != nil {
		return stamp{}, err
	}
	return stamp{fileStamp{cert.ModTime(), cert.Size()}, fileStamp{key.ModTime(), key.Size()}}, nil
}

// read loads the files, which had the stamp s before.
func (p *Pair) read(s stamp) error {
	cert, err := tls.LoadX509KeyPair(p.certFile, p.keyFile)
	if err != nil {
		return fmt.Errorf("TLS certificate %s: %w", p.certFile, err)
	}
	p.cert, p.stamp = &cert, s
	return nil
}

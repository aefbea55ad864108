package node

import (
	"errors"
	"os"
	"regexp"
	"strings"
)

// authKey matches the keys and secrets that Tailscale makes.
var authKey = regexp.MustCompile(`tskey-[A-Za-z0-9_-]+`)

// mask hides keys in texts. The coordination server quotes a key that it
// refuses, so whatever comes from tsnet passes through a mask before it is
// logged or returned.
type mask []string // secrets that authKey need not match: other servers' keys

// newMask knows the configured key, however it comes.
func newMask(configured string) mask {
	var m mask
	for _, name := range KeyVariables {
		m = m.with(os.Getenv(name))
	}
	return m.with(configured)
}

func (m mask) with(secret string) mask {
	if secret == "" {
		return m
	}
	return append(m, secret)
}

const hidden = "[auth key]"

// text returns s without keys.
func (m mask) text(s string) string {
	for _, secret := range m {
		s = strings.ReplaceAll(s, secret, hidden)
	}
	return authKey.ReplaceAllString(s, hidden)
}

// err returns err without keys in its text. The wrapped error is dropped where
// the text had to change.
func (m mask) err(err error) error {
	if err == nil {
		return nil
	}
	if was := err.Error(); m.text(was) != was {
		return errors.New(m.text(was))
	}
	return err
}

package upstream

import (
	"testing"

	"pgproxy/upstream/upstreamtest"
)

func TestMain(m *testing.M) { upstreamtest.Main(m) }

// parse is ParseConfig for strings that are right.
func parse(tb testing.TB, dsn string) *Config {
	tb.Helper()
	c, err := ParseConfig(dsn)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

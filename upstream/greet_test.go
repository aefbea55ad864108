package upstream

import (
	"context"
	"errors"
	"testing"
	"time"

	"pgproxy/upstream/upstreamtest"
)

func TestGreet(t *testing.T) {
	s := upstreamtest.Shared(t)
	s.Exec(t, `DROP DATABASE IF EXISTS latin`)
	s.Exec(t, `CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0`)
	for _, tt := range []struct {
		role, database string
		want           Greeting
		code           string
	}{
		{"app", "", Greeting{Version: s.Version, Addr: s.Addr(), Encoding: "UTF8"}, ""},
		{"postgres", "latin", Greeting{Version: s.Version, Addr: s.Addr(), Encoding: "LATIN1", Superuser: true}, ""},
		{"app", "nosuch", Greeting{}, "3D000"},
	} {
		got, err := parse(t, s.DSN(tt.role, "app")).Greet(t.Context(), tt.database)
		if tt.code != "" {
			if e, ok := errors.AsType[*DialError](err); !ok || e.Code != tt.code {
				t.Errorf("%s: %v, want %s", tt.database, err, tt.code)
			}
			continue
		}
		if err != nil || got.Took <= 0 {
			t.Errorf("%s: %v, %v", tt.database, err, got)
		}
		got.Took, got.Version = 0, got.Version[:min(len(s.Version), len(got.Version))]
		if got != tt.want {
			t.Errorf("%s: got %+v, want %+v", tt.database, got, tt.want)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := s.AwaitLog(ctx, "application_name="+HelperName("check")); err != nil {
		t.Error(err)
	}
}

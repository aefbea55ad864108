package upstream

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgproxy/upstream/upstreamtest"
)

func TestDescribe(t *testing.T) {
	ca := filepath.Join(t.TempDir(), "ca.crt")
	if err := upstreamtest.MakeCertificate(ca, ca+".cert", ca+".key"); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ dsn, want string }{
		{"postgres://app:pw@db1:5432/shop?sslmode=verify-full", "app@db1:5432/shop, TLS verify-full"},
		{"postgres://app:pw@db1,db2:5433/shop?sslmode=verify-full", "app@db1:5432,db2:5433/shop, TLS verify-full"},
		{"host=db1,db2 user=app dbname=shop sslmode=verify-ca sslrootcert=" + ca, "app@db1:5432,db2:5432/shop, TLS verify-ca"},
		{"host=db1 user=app sslmode=require sslrootcert=" + ca, "app@db1:5432/app, TLS verify-ca"},
		{"host=db1 user=app sslrootcert=system", "app@db1:5432/app, TLS verify-full"},
		{"host=db1 user=app sslmode=require", "app@db1:5432/app, TLS unverified (anyone in between can read along; sslmode=verify-full checks the server)"},
		{"host=db1 user=app ssl=x sslmode=disable", ""},
		{"host=db1 user=app sslmode=disable", "app@db1:5432/app, no TLS"},
		{"host=/run/pg user=app", "app@/run/pg/.s.PGSQL.5432/app, Unix socket"},
		{"postgres://app@/shop?host=/run/pg", "app@/run/pg/.s.PGSQL.5432/shop, Unix socket"},
		{"postgres://app@[::1]:5433/shop?sslmode=disable", "app@[::1]:5433/shop, no TLS"},
		{"host=localhost user=app", "app@localhost:5432/app, TLS unverified (anyone in between can read along; sslmode=verify-full checks the server) or no TLS"},
	} {
		c, err := ParseConfig(tt.dsn)
		switch {
		case tt.want == "" && err == nil:
			t.Errorf("%s: not refused", tt.dsn)
		case tt.want == "":
		case err != nil:
			t.Errorf("%s: %v", tt.dsn, err)
		case c.Describe() != tt.want:
			t.Errorf("%s:\n got %s\nwant %s", tt.dsn, c.Describe(), tt.want)
		}
	}
}

func TestPlaintextFallbackIsRefused(t *testing.T) {
	for _, tt := range []struct {
		dsn     string
		refused bool
	}{
		{"host=db1 user=app", true},
		{"host=db1 user=app sslmode=prefer", true},
		{"host=db1 user=app sslmode=allow", true},
		{"host=localhost,db1 user=app", true},
		{"host=/run/pg,db1 user=app", true},
		{"postgres://app@192.0.2.1/shop", true},
		{"postgres://app@[2001:db8::1]/shop?sslmode=prefer", true},
		{"host=db1 user=app sslmode=disable", false},
		{"host=db1 user=app sslmode=require", false},
		{"host=db1 user=app sslmode=verify-full", false},
		{"host=db1 user=app sslnegotiation=direct", false},
		{"host=localhost user=app", false},
		{"host=127.0.0.1,::1,localhost,/run/pg user=app sslmode=prefer", false},
		{"host=::ffff:127.0.0.1 user=app", false},
		{"host=localhost.example.com user=app", true},
	} {
		_, err := ParseConfig(tt.dsn)
		if refused := err != nil; refused != tt.refused {
			t.Errorf("%s: refused = %v (%v), want %v", tt.dsn, refused, err, tt.refused)
		}
		if err != nil && !strings.Contains(err.Error(), "sslmode=verify-full") {
			t.Errorf("%s: the error does not say what to do: %v", tt.dsn, err)
		}
	}
}

func TestUnknownKeysAreNamed(t *testing.T) {
	for _, key := range []string{
		"gssencmode", "keepalives", "load_balance_hosts", "tcp_user_timeout", "replication", "pool_max_conns", "options",
		"client_encoding", "application_name", "fallback_application_name", "hostaddr", "service", "servicefile",
		"min_protocol_version", "max_protocol_version", "search_path", "sslmod", "krbsrvname",
	} {
		for _, dsn := range []string{
			"host=localhost user=app password=hunter2 " + key + "=secretvalue",
			"postgres://app:hunter2@localhost/app?" + key + "=secretvalue",
		} {
			_, err := ParseConfig(dsn)
			if err == nil {
				t.Errorf("%s: not refused", key)
				continue
			}
			if !strings.Contains(err.Error(), `"`+key+`"`) {
				t.Errorf("the error does not name %s: %v", key, err)
			}
			for _, secret := range []string{"hunter2", "secretvalue"} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("the error quotes %q: %v", secret, err)
				}
			}
		}
	}
}

// Malformed strings, each in a way that leaves the password where a parser
// does not expect it.
func TestErrorsHoldNoPassword(t *testing.T) {
	const password = "Hunter2!xyz"
	for _, dsn := range []string{
		"",
		"  ",
		password,
		"password=" + password + " host=db1",
		"password='" + password,
		"password='" + password + "\\",
		"password=" + password + " host",
		"user=app password = " + password + " =",
		"user=app password=a " + password + " host=db1",
		"user=app password=a " + password + "=b host=localhost",
		"user app password " + password,
		"postgres://app:" + password + "@db1:port/shop",
		"postgres://app:" + password + "@db1:99999/shop",
		"postgres://app:" + password + "@[::1/shop",
		"postgres://app:" + password + "%@localhost/shop",
		"postgres://app:%zz" + password + "@localhost/shop",
		"postgres://app:pass/" + password + "@localhost/shop",
		"postgres://app:pass?" + password + "@localhost/shop?x",
		"postgres://app:p@ss/" + password + "@localhost/shop?sslmode=disable",
		"postgres://app:" + password + "/x@localhost/shop?sslmode=disable",
		"postgres://app:a@" + password + "@localhost/shop",
		"postgres://app:a:" + password + "@localhost/shop?x",
		"postgres://app@localhost:" + password + "/shop",
		"postgres://app@localhost/shop?password=" + password + "&bogus=1",
		"postgres://app@localhost/shop?" + password,
		"postgres://app@localhost/shop?" + password + "=1",
		"postgres://app@localhost/shop?password=" + password + "=1",
		"postgres://app:" + password + "@localhost,db2:1,2/shop",
		"host=a,b,c port=1,2 password=" + password,
		"host=localhost user=app password=" + password + " sslmode=bogus",
		"host=localhost user=app password=" + password + " sslrootcert=/does/not/exist",
		"host=localhost user=app password=" + password + " sslcert=x",
		"host=localhost user=app password=" + password + " connect_timeout=soon",
		"host=localhost user=app password=" + password + " target_session_attrs=master",
		"host=localhost user=app password=" + password + " channel_binding=maybe",
		"host=localhost user=app password=" + password + " require_auth=magic",
		"host=localhost user=app connect_timeout=" + password,
		"host=localhost user=app target_session_attrs=" + password,
		"host=localhost user=app sslcertmode=" + password,
		"host=localhost user=app sslmode=" + password,
		"host=localhost user=app channel_binding=" + password,
		"host=localhost user=app require_auth=" + password,
		"host=db1 user=app password=" + password,
		"mysql://app:" + password + "@db1/shop",
		"postgres:/app:" + password + "@db1/shop?sslmode=disable",
		"host=localhost user=app password=" + password + "\x00",
	} {
		_, err := ParseConfig(dsn)
		if err == nil {
			t.Errorf("%q: not refused", dsn)
			continue
		}
		if text := err.Error(); strings.Contains(text, password) || strings.Contains(text, "Hunter2") {
			t.Errorf("%q: the error quotes the password: %v", dsn, err)
		}
	}
}

func TestEnvironmentDoesNotLeakIn(t *testing.T) {
	for name, value := range map[string]string{
		"PGHOST": "elsewhere", "PGPORT": "1", "PGUSER": "mallory", "PGDATABASE": "other",
		"PGSSLMODE": "bogus", "PGSSLROOTCERT": "/does/not/exist", "PGSSLCERTMODE": "", "PGSSLNEGOTIATION": "direct",
		"PGAPPNAME": "leak", "PGOPTIONS": "-c work_mem=1MB", "PGTZ": "Mars/Olympus", "PGSERVICE": "none",
		"PGSERVICEFILE": "/does/not/exist", "PGTARGETSESSIONATTRS": "standby", "PGCONNECT_TIMEOUT": "soon",
		"PGMINPROTOCOLVERSION": "3.2", "PGMAXPROTOCOLVERSION": "bogus", "PGCHANNELBINDING": "require", "PGREQUIREAUTH": "none",
		"PGPROXY_TEST_KEPT": "yes",
	} {
		t.Setenv(name, value)
	}
	t.Setenv("PGPASSWORD", "from the environment")

	c := parse(t, "host=127.0.0.1 port=5433 user=app dbname=shop sslmode=disable")
	if want := "app@127.0.0.1:5433/shop, no TLS"; c.Describe() != want {
		t.Errorf("got %s, want %s", c.Describe(), want)
	}
	if c.pg.Password != "from the environment" {
		t.Error("PGPASSWORD is not used")
	}
	if c.pg.MaxProtocolVersion != "3.0" || c.pg.ChannelBinding != "prefer" || c.pg.RequireAuth != "" ||
		c.pg.ValidateConnect != nil || c.pg.ConnectTimeout != 0 || c.pg.SSLNegotiation != "" {
		t.Errorf("the environment got into %+v", c.pg)
	}
	if len(c.pg.RuntimeParams) != 0 {
		t.Errorf("the environment got into the session's parameters: %v", c.pg.RuntimeParams)
	}
	if os.Getenv("PGPROXY_TEST_KEPT") != "yes" {
		t.Error("one of the proxy's own variables is gone")
	}
}

func TestPasswordFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pgpass")
	if err := os.WriteFile(file, []byte("127.0.0.1:5433:shop:app:from the file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const dsn = "host=127.0.0.1 port=5433 user=app dbname=shop sslmode=disable"
	if got := parse(t, dsn+" passfile="+file).pg.Password; got != "from the file" {
		t.Errorf("passfile=: got %q", got)
	}
	t.Setenv("PGPASSFILE", file)
	if got := parse(t, dsn).pg.Password; got != "from the file" {
		t.Errorf("PGPASSFILE: got %q", got)
	}
}

package upstream

import (
	"context"
	"time"
)

// Greeting is what a login tells of the server.
type Greeting struct {
	Version   string // "15.18 (Debian 15.18-0+deb12u1)"
	Addr      string // as in Conn
	Encoding  string // of the database
	Superuser bool
	Took      time.Duration
}

// Greet logs in to a database and out again; "" is Config.Database. It takes no
// longer than ctx allows, and returns a [*DialError] when it fails.
func (c *Config) Greet(ctx context.Context, database string) (Greeting, error) {
	began := time.Now()
	conn, err := c.Dial(ctx, Request{Database: database, Params: map[string]string{"application_name": HelperName("check")}})
	if err != nil {
		return Greeting{}, err
	}
	defer conn.Close()
	return Greeting{
		Version:   conn.Params["server_version"],
		Addr:      conn.Addr,
		Encoding:  conn.Params["server_encoding"],
		Superuser: conn.Params["is_superuser"] == "on",
		Took:      time.Since(began),
	}, nil
}

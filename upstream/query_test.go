package upstream

import (
	"context"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgproxy/upstream/upstreamtest"
)

func TestQuery(t *testing.T) {
	conn := mustDial(t, upstreamtest.Shared(t).DSN("app", "app"), Request{})
	rows, err := conn.Query(t.Context(), "SELECT g, NULL, 'x' || g FROM generate_series(1, 2) g")
	if want := [][]string{{"1", "", "x1"}, {"2", "", "x2"}}; err != nil || !reflect.DeepEqual(rows, want) {
		t.Errorf("got %v, %v; want %v", rows, err, want)
	}
	if _, err := conn.Query(t.Context(), "SELECT 1/0"); err == nil || !strings.Contains(err.Error(), "22012") {
		t.Errorf("got %v, want division by zero", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := conn.Query(ctx, "SELECT pg_sleep(60)"); err == nil {
		t.Error("the context's end did not end the query")
	}
}

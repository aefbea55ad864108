package node_test

import (
	"encoding/json"
	"os"
	"reflect"
	"testing"
)

// fakeAddr is an address as somebody might have written it.
type fakeAddr string

func (fakeAddr) Network() string  { return "tcp" }
func (a fakeAddr) String() string { return string(a) }

func raw(values ...string) []json.RawMessage {
	var all []json.RawMessage
	for _, v := range values {
		all = append(all, json.RawMessage(v))
	}
	return all
}

func equal(t *testing.T, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func modeOf(t *testing.T, path string) os.FileMode {
	t.Helper()
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return fi.Mode().Perm()
}

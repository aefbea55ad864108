package audit

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
)

// fullRecord has a value in every field; a field added to Record and
// forgotten in appendRecord makes TestEncode fail.
func fullRecord(t testing.TB) Record {
	var r Record
	v := reflect.ValueOf(&r).Elem()
	n, f := int64(7), 1.25
	for i := range v.NumField() {
		switch p := v.Field(i).Addr().Interface().(type) {
		case *time.Time:
			*p = time.Date(2026, 11, 22, 10, 0, 0, 123456789, time.UTC)
		case *Event:
			*p = Query
		case *string:
			*p = "a \"quoted\" \\ text\n\t\x01\x7f é 漢 \u2028 of " + v.Type().Field(i).Name
		case *[]string:
			*p = []string{"one", "tw\"o"}
		case *bool:
			*p = true
		case *int64:
			*p = n
		case *uint32:
			*p = 4294967295
		case **int64:
			*p = &n
		case **float64:
			*p = &f
		default:
			t.Fatalf("field %s has a type this test does not know", v.Type().Field(i).Name)
		}
	}
	return r
}

func TestEncode(t *testing.T) {
	zero, zeroMS := int64(0), 0.0
	for name, want := range map[string]Record{
		"full":  fullRecord(t),
		"empty": {Time: time.Unix(0, 0).UTC(), Event: Connect},
		"zeros": {Time: time.Unix(0, 0).UTC(), Rows: &zero, Bytes: &zero, Affected: &zero, DurationMS: &zeroMS, Statements: &zero},
	} {
		line := append(appendRecord(nil, &want, DefaultMaxSQL), '}')
		var got Record
		if err := json.Unmarshal(line, &got); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, line)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v\nwant %+v", name, got, want)
		}
		var gotKeys, wantKeys map[string]any
		std, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		json.Unmarshal(line, &gotKeys)
		json.Unmarshal(std, &wantKeys)
		delete(wantKeys, "event")
		for key := range wantKeys {
			if _, ok := gotKeys[key]; !ok {
				t.Errorf("%s: field %s is missing", name, key)
			}
		}
	}
}

func TestTimesAreUTC(t *testing.T) {
	when := time.Date(2026, 11, 22, 10, 0, 0, 5, time.FixedZone("", 3600))
	line := string(appendRecord(nil, &Record{Time: when}, 1))
	if want := `{"time":"2026-11-22T09:00:00.000000005Z"`; line != want {
		t.Errorf("got %s", line)
	}
}

func TestCutStatement(t *testing.T) {
	for _, tt := range []struct {
		sql, kept string
		marked    bool
	}{
		{"SELECT 1", "SELECT 1", false},
		{"SELECT 'é'", "SELECT '", true},
		{"SELECT \xff", "SELECT \ufffd", true},
	} {
		line := append(appendRecord(nil, &Record{SQL: tt.sql}, 9), '}')
		var got struct {
			SQL    string `json:"sql"`
			Length int    `json:"sql_length"`
			Sum    string `json:"sql_sha256"`
			Cut    bool   `json:"sql_cut"`
		}
		if err := json.Unmarshal(line, &got); err != nil {
			t.Fatal(err)
		}
		cut := len(tt.sql) > 9
		if got.SQL != tt.kept || got.Cut != cut || (got.Length == len(tt.sql)) != tt.marked || (len(got.Sum) == 64) != tt.marked {
			t.Errorf("%q: got %+v", tt.sql, got)
		}
	}
}

func FuzzEncode(f *testing.F) {
	f.Add("SELECT 'x'\x00\xff\u2028")
	f.Fuzz(func(t *testing.T, s string) {
		line := append(appendRecord(nil, &Record{SQL: s, Tags: []string{s}}, DefaultMaxSQL), '}')
		var got Record
		if err := json.Unmarshal(line, &got); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if want := strings.ToValidUTF8(s, "\ufffd"); strings.ToValidUTF8(s, "") == s && got.SQL != want {
			t.Errorf("got %q, want %q", got.SQL, want)
		}
	})
}

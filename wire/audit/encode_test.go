package audit

import (
	"crypto/sha256"
	"encoding/hex"
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
		case **time.Time:
			until := time.Date(2026, 11, 22, 10, 15, 0, 0, time.UTC)
			*p = &until
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

// TestCutRecord: a session keeps the head of a statement that it refuses.
func TestCutRecord(t *testing.T) {
	whole := strings.Repeat("é", 3000)
	r := Record{SQL: whole}
	r.CutSQL(4097)
	sum := sha256.Sum256([]byte(whole))
	if r.SQL != whole[:4096] || !r.SQLCut || r.SQLLength != 6000 || r.SQLSHA256 != hex.EncodeToString(sum[:]) {
		t.Errorf("got %d bytes, %v, %d, %s", len(r.SQL), r.SQLCut, r.SQLLength, r.SQLSHA256)
	}
	var got Record
	line := append(appendRecord(nil, &r, DefaultMaxSQL), '}')
	if err := json.Unmarshal(line, &got); err != nil || !reflect.DeepEqual(got.SQL, r.SQL) || got.SQLSHA256 != r.SQLSHA256 {
		t.Errorf("the record says %s", line)
	}
	short := Record{SQL: "SELECT 1"}
	short.CutSQL(4096)
	if short.SQLCut || short.SQLLength != 0 || short.SQLSHA256 != "" {
		t.Errorf("got %+v", short)
	}
}

// TestJSONSize bounds what a statement may take in the log: one of control
// characters alone is cut, and any other of that length is not.
func TestJSONSize(t *testing.T) {
	const n = 1 << 20
	for _, tt := range []struct {
		text string
		cut  bool
	}{
		{"x", false}, {"\n", false}, {"\"", false}, {"\\", false}, {"\t\r\b\f", false}, {"漢", false}, {"\x01", true}, {"x\x01", true}, {"\x01xxxxxx", false},
	} {
		sql := strings.Repeat(tt.text, n/len(tt.text))
		line := append(appendRecord(nil, &Record{SQL: sql}, n), '}')
		var got Record
		if err := json.Unmarshal(line, &got); err != nil {
			t.Fatal(err)
		}
		if got.SQLCut != tt.cut || len(line) > 2*n+200 || (got.SQL == sql) == tt.cut || !strings.HasPrefix(sql, got.SQL) {
			t.Errorf("%q: %d bytes of %d kept, a line of %d, cut %v", tt.text, len(got.SQL), len(sql), len(line), got.SQLCut)
		}
		quoted := appendString(nil, sql)
		if jsonSize(sql) != len(quoted)-2 {
			t.Errorf("%q: %d bytes of JSON, %d foreseen", tt.text, len(quoted)-2, jsonSize(sql))
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
		if n := len(appendString(nil, s)) - 2; n != jsonSize(s) {
			t.Errorf("%d bytes as JSON, %d foreseen", n, jsonSize(s))
		}
		if want := strings.ToValidUTF8(s, "\ufffd"); strings.ToValidUTF8(s, "") == s && got.SQL != want {
			t.Errorf("got %q, want %q", got.SQL, want)
		}
	})
}

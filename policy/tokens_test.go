package policy

import (
	"fmt"
	"strings"
	"testing"
)

func TestTokens(t *testing.T) {
	var got strings.Builder
	for kind, text := range Tokens(`SELECT "a", 'it''s', $1+1.5 FROM t -- end`) {
		fmt.Fprintf(&got, "%d:%s|", kind, text)
	}
	if want := `1:SELECT|0: |2:"a"|0:, |3:'it''s'|0:, $1+|4:1.5|0: |1:FROM|0: |1:t|0: |5:-- end|`; got.String() != want {
		t.Errorf("got  %s\nwant %s", got.String(), want)
	}
	for range Tokens("SELECT 1") {
		break // must not go on
	}
}

func FuzzTokens(f *testing.F) {
	for _, sql := range []string{"", "SELECT 1", `E'\`, "U&\"", "$a$", "/*/*", "'a'\n'b", "\xff'", "1..2"} {
		f.Add(sql)
	}
	f.Fuzz(func(t *testing.T, sql string) {
		var all strings.Builder
		for _, text := range Tokens(sql) {
			if text == "" {
				t.Error("an empty piece")
			}
			all.WriteString(text)
		}
		if all.String() != sql {
			t.Errorf("the pieces of %q are %q", sql, all.String())
		}
	})
}

package policy_test

import (
	"context"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"pgproxy/policy"
	"pgproxy/upstream/upstreamtest"
)

// preparedNames are names that the server and this package might take for one
// another, or for a word.
var preparedNames = []string{
	"p", "P", `"P"`, `"*"`, `"all"`, `"ALL"`, `U&"\0070"`, "É", "é",
	strings.Repeat("a", 63), strings.Repeat("a", 64), strings.Repeat("A", 70) + "b",
	strings.Repeat("é", 31), strings.Repeat("é", 40), strings.Repeat("é", 40) + "b",
}

// TestPreparedNames prepares and drops statements at random on real servers, and
// asks after each message for what the server has: nothing that changes rows may
// be taken for a read, and what was dropped for all names is forgotten.
func TestPreparedNames(t *testing.T) {
	judge := newJudge(t)
	server := upstreamtest.Shared(t)
	for _, encoding := range []string{"UTF8", "LATIN1"} {
		t.Run(encoding, func(t *testing.T) {
			server.Exec(t, "CREATE DATABASE names_"+encoding+" TEMPLATE template0 ENCODING "+encoding+" LC_COLLATE 'C' LC_CTYPE 'C'")
			conn, err := pgconn.Connect(t.Context(), server.SocketDSN("postgres", "names_"+strings.ToLower(encoding))+" client_encoding=UTF8")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = conn.Close(context.Background()) })
			run(t, conn, "CREATE TABLE t (a int)")
			var memory policy.Memory
			random := rand.New(rand.NewPCG(1, 2))
			known, unknown := 0, 0 // the names beyond ASCII
			for range 600 {
				sql := randomPreparing(random)
				msg := readBy(t, judge, sql)
				results, _ := conn.Exec(t.Context(), sql).ReadAll()
				completed := 0
				for _, r := range results {
					if r.Err == nil {
						completed++
					}
				}
				memory.Note(msg, completed)
				if conn.TxStatus() == 'E' {
					run(t, conn, "ROLLBACK")
				}
				for _, row := range run(t, conn, "SELECT 'EXECUTE ' || quote_ident(name) FROM pg_prepared_statements")[0].Rows {
					execute := readBy(t, judge, string(row[0]))
					tag := run(t, conn, string(row[0]))[0].CommandTag
					switch {
					case tag.Delete() && !memory.Changes(execute, 0):
						t.Fatalf("%s\n%s is taken for a read", sql, row[0])
					case memory.Hidden(execute, 0): // which none of these is
						unknown++
					default:
						known++
					}
				}
			}
			if t.Logf("%d known, %d unknown", known, unknown); known < unknown {
				t.Error("most are unknown")
			}
		})
	}
}

func randomPreparing(random *rand.Rand) string {
	var list []string
	for range 1 + random.IntN(3) {
		name := preparedNames[random.IntN(len(preparedNames))]
		switch random.IntN(14) {
		case 0, 1, 2:
			list = append(list, "PREPARE "+name+" AS SELECT 1")
		case 3, 4, 5:
			list = append(list, "PREPARE "+name+" AS DELETE FROM t WHERE true")
		case 6, 7, 8:
			list = append(list, "DEALLOCATE "+name)
		case 9:
			list = append(list, "DEALLOCATE PREPARE "+name)
		case 10:
			list = append(list, "BEGIN")
		case 11:
			list = append(list, "ROLLBACK")
		case 12:
			list = append(list, "EXECUTE "+name)
		case 13:
			list = append(list, []string{"DEALLOCATE ALL", "DISCARD ALL", "SELECT 1/0", "DEALLOCATE PREPARE ALL"}[random.IntN(4)])
		}
	}
	return strings.Join(list, "; ")
}

package status

import (
	"html/template"
	"strings"

	"pgproxy/policy"
)

// previewBytes is how much of a statement stands in a row.
const previewBytes = 240

// preview is the beginning of a statement on one line.
func preview(sql string) string {
	words := strings.Join(strings.Fields(sql[:min(len(sql), 2*previewBytes)]), " ")
	if len(words) <= previewBytes && len(sql) <= 2*previewBytes {
		return words
	}
	return strings.ToValidUTF8(words[:min(len(words), previewBytes)], "") + " …"
}

// classes are the colours of what has one whatever it says.
var classes = [policy.TokenComment + 1]string{policy.TokenText: "lit", policy.TokenNumber: "lit", policy.TokenComment: "com"}

// coloured is a statement as HTML, with its keywords, literals and comments
// marked. A template would do the same much slower: a page has thousands of
// pieces. Every piece of the text is escaped here, and nothing else is written.
func coloured(sql string) template.HTML {
	var b strings.Builder
	for kind, text := range policy.Tokens(sql) {
		class := classes[kind]
		if kind == policy.TokenWord && len(text) <= longestKeyword && keywords[strings.ToUpper(text)] {
			class = "key"
		}
		if class != "" {
			b.WriteString(`<span class="` + class + `">`)
		}
		template.HTMLEscape(&b, []byte(text))
		if class != "" {
			b.WriteString("</span>")
		}
	}
	return template.HTML(b.String())
}

// keywords are the words that give a statement its shape. Of PostgreSQL's others
// many are names of columns, too.
var keywords = func() map[string]bool {
	set := make(map[string]bool)
	for _, word := range strings.Fields(`ABORT ADD ALL ALTER ANALYZE AND ANY AS ASC BEGIN BETWEEN BY CALL CASCADE CASE CAST CHECK CLOSE COMMIT
		CONCURRENTLY CONFLICT CONSTRAINT COPY CREATE CROSS CURSOR DATABASE DECLARE DEFAULT DELETE DESC DISTINCT DO DROP ELSE END EXCEPT EXECUTE
		EXISTS EXPLAIN FALSE FETCH FOR FOREIGN FROM FULL FUNCTION GRANT GROUP HAVING IF ILIKE IN INDEX INNER INSERT INTERSECT INTERVAL INTO IS
		JOIN KEY LATERAL LEFT LIKE LIMIT LISTEN LOCAL LOCK MATERIALIZED MERGE NOT NOTHING NOTIFY NULL OFFSET ON OR ORDER OUTER OVER PARTITION
		PREPARE PRIMARY REFERENCES REFRESH REINDEX RELEASE RESET RETURNING REVOKE RIGHT ROLLBACK SAVEPOINT SCHEMA SELECT SET SHOW SKIP SOME
		START TABLE TEMP TEMPORARY THEN TO TRANSACTION TRIGGER TRUE TRUNCATE UNION UNIQUE UPDATE USING VACUUM VALUES VIEW WHEN WHERE WITH WORK`) {
		set[word] = true
	}
	return set
}()

// longestKeyword is the length of the longest keyword, in bytes.
const longestKeyword = len("CONCURRENTLY")

package policy_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"pgproxy/policy"
	"pgproxy/upstream/upstreamtest"
)

func TestMain(m *testing.M) { upstreamtest.Main(m) }

// connect connects to a new database of a real server.
func connect(t *testing.T, server *upstreamtest.Server, name string) *pgconn.PgConn {
	server.Exec(t, "CREATE DATABASE "+name)
	conn, err := pgconn.Connect(t.Context(), server.SocketDSN("postgres", name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func run(t *testing.T, conn *pgconn.PgConn, sql string) []*pgconn.Result {
	t.Helper()
	results, err := conn.Exec(t.Context(), sql).ReadAll()
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return results
}

// TestTags runs a statement of many kinds and compares its command tag with
// the one that was expected from its text.
func TestTags(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	judge := newJudge(t)
	upstreamtest.Versions(t, func(t *testing.T, s *upstreamtest.Server) { tags(t, judge, connect(t, s, "tags")) })
}

func tags(t *testing.T, judge *policy.Judge, conn *pgconn.PgConn) {
	for sql := range strings.SplitSeq(tagStatements, "\n") {
		if sql = strings.TrimSpace(sql); sql == "" {
			continue
		}
		msg, err := judge.Parse(t.Context(), sql)
		if err != nil {
			t.Errorf("%s: %v", sql, err)
			continue
		}
		results := run(t, conn, sql)
		if len(results) != len(msg.Statements) {
			t.Errorf("%s: %d results for %d statements", sql, len(results), len(msg.Statements))
			continue
		}
		for i, r := range results {
			if kind := msg.Statements[i].Kind; !policy.KnownKind(kind) {
				t.Errorf("%s: a policy could not name %q", sql, kind)
			}
			tag := strings.TrimRight(r.CommandTag.String(), " 0123456789")
			if want := msg.Statements[i].Tags; want != nil && !slices.Contains(want, tag) {
				t.Errorf("%s: the server says %q, not %q", sql, tag, want)
			}
		}
	}
}

const tagStatements = `
CREATE TABLE t (id int PRIMARY KEY, a text)
CREATE TABLE IF NOT EXISTS t (id int)
CREATE TABLE t2 AS SELECT * FROM t
CREATE TABLE IF NOT EXISTS t2 AS SELECT 1
CREATE TABLE t3 AS SELECT * FROM t WITH NO DATA
SELECT * INTO t4 FROM t
SELECT 1 INTO TEMP t5 UNION SELECT 2
CREATE MATERIALIZED VIEW mv AS SELECT 1
CREATE MATERIALIZED VIEW mv2 AS SELECT 1 WITH NO DATA
REFRESH MATERIALIZED VIEW mv
CREATE VIEW v AS SELECT * FROM t
CREATE OR REPLACE TEMP VIEW tv AS SELECT 1
CREATE INDEX i ON t (a)
CREATE SEQUENCE s
CREATE TYPE mood AS ENUM ('a')
CREATE TYPE pair AS (a int, b int)
CREATE TYPE span AS RANGE (subtype = int)
CREATE TYPE shell
CREATE DOMAIN d AS int
CREATE SCHEMA sc CREATE TABLE st (a int) CREATE VIEW sv AS SELECT 1
CREATE FUNCTION f(int) RETURNS int LANGUAGE sql AS 'SELECT 1'
CREATE FUNCTION g() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END; SELECT g()
CREATE PROCEDURE p() LANGUAGE sql AS 'SELECT 1'
CREATE FUNCTION tf() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'
CREATE TRIGGER tr BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION tf()
CREATE RULE r AS ON UPDATE TO t3 DO INSTEAD DELETE FROM t4
CREATE AGGREGATE agg (int) (SFUNC = int4pl, STYPE = int)
CREATE OPERATOR @@@ (LEFTARG = int, RIGHTARG = int, FUNCTION = int4pl)
CREATE OPERATOR FAMILY fam USING btree
CREATE CAST (mood AS int) WITH INOUT
CREATE COLLATION col FROM "C"
CREATE TEXT SEARCH CONFIGURATION tsc (COPY = simple)
CREATE TEXT SEARCH DICTIONARY tsd (TEMPLATE = simple)
CREATE STATISTICS st ON id, a FROM t
CREATE POLICY pol ON t USING (true)
CREATE PUBLICATION pub FOR TABLE t
CREATE FOREIGN DATA WRAPPER fdw
CREATE SERVER srv FOREIGN DATA WRAPPER fdw
CREATE USER MAPPING FOR PUBLIC SERVER srv
CREATE FOREIGN TABLE ft (a int) SERVER srv
CREATE FUNCTION nothing() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'
CREATE EVENT TRIGGER et ON ddl_command_start WHEN TAG IN ('DROP DOMAIN') EXECUTE FUNCTION nothing()
CREATE ROLE tags_role
CREATE USER tags_user
CREATE GROUP tags_group
ALTER ROLE tags_role NOLOGIN
ALTER ROLE tags_role SET work_mem = '1MB'
ALTER USER tags_user RENAME TO tags_user2
ALTER DATABASE tags SET work_mem = '1MB'
ALTER TABLE t ADD COLUMN b int
ALTER TABLE t RENAME COLUMN b TO c
ALTER TABLE t2 RENAME TO t22
ALTER TABLE t22 SET SCHEMA sc
ALTER TABLE sc.t22 OWNER TO tags_role
ALTER TABLE ALL IN TABLESPACE pg_default OWNED BY tags_role SET TABLESPACE pg_default
ALTER INDEX i RENAME TO i2
ALTER VIEW v RENAME COLUMN a TO aa
ALTER VIEW v RENAME TO vv
ALTER MATERIALIZED VIEW mv RENAME TO mvv
ALTER SEQUENCE s INCREMENT 2
ALTER SEQUENCE s RENAME TO ss
ALTER TYPE mood ADD VALUE 'b'
ALTER TYPE mood RENAME VALUE 'b' TO 'c'
ALTER TYPE pair ADD ATTRIBUTE c int
ALTER TYPE pair RENAME ATTRIBUTE c TO d
ALTER TYPE pair OWNER TO tags_role
ALTER DOMAIN d SET DEFAULT 1
ALTER DOMAIN d ADD CONSTRAINT dc CHECK (value > 0)
ALTER DOMAIN d RENAME CONSTRAINT dc TO dcc
ALTER DOMAIN d RENAME TO dd
ALTER FUNCTION f(int) STABLE
ALTER FUNCTION f(int) RENAME TO ff
ALTER FUNCTION ff(int) DEPENDS ON EXTENSION plpgsql
ALTER PROCEDURE p() SECURITY INVOKER
ALTER ROUTINE p() RENAME TO pp
ALTER AGGREGATE agg (int) RENAME TO agg2
ALTER OPERATOR @@@ (int, int) OWNER TO postgres
ALTER OPERATOR @@@ (int, int) SET (RESTRICT = NONE)
ALTER OPERATOR FAMILY fam USING btree RENAME TO fam2
ALTER COLLATION col RENAME TO col2
ALTER TEXT SEARCH CONFIGURATION tsc RENAME TO tsc2
ALTER TEXT SEARCH CONFIGURATION tsc2 DROP MAPPING FOR word
ALTER TEXT SEARCH DICTIONARY tsd (StopWords = english)
ALTER STATISTICS st SET STATISTICS 10
ALTER STATISTICS st RENAME TO st2
ALTER POLICY pol ON t USING (false)
ALTER POLICY pol ON t RENAME TO pol2
ALTER PUBLICATION pub SET (publish = 'insert')
ALTER PUBLICATION pub RENAME TO pub2
ALTER FOREIGN DATA WRAPPER fdw OPTIONS (a 'b')
ALTER FOREIGN DATA WRAPPER fdw RENAME TO fdw2
ALTER SERVER srv OPTIONS (a 'b')
ALTER SERVER srv RENAME TO srv2
ALTER USER MAPPING FOR PUBLIC SERVER srv2 OPTIONS (a 'b')
ALTER FOREIGN TABLE ft ADD COLUMN b int
ALTER EVENT TRIGGER et DISABLE
ALTER EVENT TRIGGER et RENAME TO et2
ALTER TRIGGER tr ON t RENAME TO tr2
ALTER RULE r ON t3 RENAME TO r2
ALTER SCHEMA sc RENAME TO sc2
ALTER TABLE t RENAME CONSTRAINT t_pkey TO t_key
ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO tags_role
ALTER EXTENSION plpgsql UPDATE
ALTER LANGUAGE plpgsql OWNER TO postgres
ALTER SYSTEM SET work_mem = '4MB'
ALTER SYSTEM RESET ALL
COMMENT ON TABLE t IS 'x'
GRANT SELECT ON t TO tags_role
REVOKE SELECT ON t FROM tags_role
GRANT tags_role TO tags_group
REVOKE tags_role FROM tags_group
INSERT INTO t VALUES (1, 'x'), (2, 'y') RETURNING id
INSERT INTO t3 VALUES (1, 'x')
UPDATE t SET a = 'z' WHERE id = 1
UPDATE t3 SET a = 'z' WHERE id = 1
DELETE FROM t WHERE id = 2
MERGE INTO t USING (VALUES (3)) x(id) ON t.id = x.id WHEN NOT MATCHED THEN INSERT VALUES (x.id)
WITH x AS (DELETE FROM t RETURNING id) SELECT * FROM x
WITH x AS (SELECT 1 AS id) INSERT INTO t SELECT id FROM x
VALUES (1), (2)
TABLE t
SELECT
SELECT * FROM t FOR UPDATE
EXPLAIN SELECT 1
EXPLAIN ANALYZE DELETE FROM t
SHOW work_mem
SHOW ALL
SET work_mem = '4MB'
SET LOCAL work_mem = '4MB'
SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE
SET TIME ZONE 'UTC'
RESET work_mem
RESET ALL
SET ROLE NONE
BEGIN; SAVEPOINT a; ROLLBACK TO a; RELEASE a; COMMIT
START TRANSACTION; SET TRANSACTION READ ONLY; SET CONSTRAINTS ALL DEFERRED; ROLLBACK
BEGIN; COMMIT AND CHAIN; ABORT; BEGIN; END
BEGIN; DECLARE c CURSOR FOR SELECT 1; FETCH c; MOVE c; CLOSE c; CLOSE ALL; LOCK TABLE t; COMMIT
PREPARE q AS SELECT 1
EXECUTE q
CREATE TEMP TABLE te AS EXECUTE q
EXPLAIN EXECUTE q
DEALLOCATE q
DEALLOCATE ALL
LISTEN x
NOTIFY x
UNLISTEN x
UNLISTEN *
DISCARD PLANS
DISCARD SEQUENCES
DISCARD TEMP
DISCARD ALL
DO 'BEGIN END'
CALL pp()
TRUNCATE t
VACUUM t
ANALYZE t
CLUSTER t USING t_key
REINDEX TABLE t
CHECKPOINT
LOAD 'plpgsql'
COPY t TO '/dev/null'
REASSIGN OWNED BY tags_role TO postgres
DROP OWNED BY tags_role
DROP TRIGGER tr2 ON t
DROP RULE r2 ON t3
DROP POLICY pol2 ON t
DROP EVENT TRIGGER et2
DROP STATISTICS st2
DROP PUBLICATION pub2
DROP FOREIGN TABLE ft
DROP USER MAPPING FOR PUBLIC SERVER srv2
DROP SERVER srv2
DROP FOREIGN DATA WRAPPER fdw2
DROP TEXT SEARCH CONFIGURATION tsc2
DROP TEXT SEARCH DICTIONARY tsd
DROP COLLATION col2
DROP CAST (mood AS int)
DROP OPERATOR FAMILY fam2 USING btree
DROP OPERATOR @@@ (int, int)
DROP AGGREGATE agg2 (int)
DROP ROUTINE pp()
DROP FUNCTION ff(int), g(), tf()
DROP DOMAIN dd
DROP TYPE mood, pair, span, shell
DROP SEQUENCE ss
DROP INDEX i2
DROP VIEW vv
DROP MATERIALIZED VIEW mvv, mv2
DROP SCHEMA sc2 CASCADE
DROP TABLE t, t3, t4
DROP ROLE tags_role, tags_user2
DROP GROUP tags_group
CREATE DATABASE tags2
ALTER DATABASE tags2 RENAME TO tags3
ALTER DATABASE tags3 ALLOW_CONNECTIONS false
DROP DATABASE tags3
CREATE EXTENSION IF NOT EXISTS plpgsql
`

func newJudge(t testing.TB) *policy.Judge {
	t.Helper()
	judge, err := policy.NewJudge()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = judge.Close() })
	return judge
}

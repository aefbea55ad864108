# What holds a secret and can be parsed. Every word with "hunter" in it is
# secret and must be gone; every word with "keep" in it must stay. Statements
# end at a line of two semicolons; lines with # are for people.
ALTER ROLE keep_bob PASSWORD 'hunter2'
;;
ALTER USER keep_bob WITH ENCRYPTED PASSWORD 'hunter2' VALID UNTIL 'keep-2027-01-01'
;;
CREATE ROLE keep_bob LOGIN PASSWORD 'hunter2' CONNECTION LIMIT 5
;;
create user keep_bob password $$hunter2$$
;;
CREATE USER keep_bob PASSWORD $q$hunter2$q$ IN ROLE keep_x
;;
ALTER ROLE keep_bob PASSWORD E'hunter\'2hunter'
;;
ALTER ROLE keep_bob PASSWORD 'hunter''s'
;;
ALTER ROLE keep_bob PASSWORD U&'hunter\0032'
;;
ALTER ROLE keep_bob /* now */ PASSWORD -- new
  'hunter2'
;;
ALTER ROLE keep_bob PASSWORD 'hunter'
  'two-hunter'
;;
ALTER ROLE keep_bob PASSWORD 'SCRAM-SHA-256$4096:hunter$hunter:hunter'
;;
CREATE GROUP keep_g PASSWORD 'hunter2'
;;
SELECT 'keep'; ALTER ROLE keep_bob PASSWORD 'hunter2'; SELECT 'keep too'
;;
ALTER ROLE keep_bob SET keep.password = hunter2
;;
ALTER ROLE keep_bob SET keep.password TO 'hunter2'
;;
ALTER DATABASE keep_db SET keep.api_key = 'hunter2'
;;
SET keep.password = 'hunter2'
;;
SET SESSION keep.secret TO hunter2
;;
SET LOCAL "keep.token" = 'hunter2', 'hunter3'
;;
SET keep.db_password = 1234567, hunter
;;
SELECT set_config('keep.password', 'hunter2', false)
;;
SELECT pg_catalog.set_config('my.' || 'pass', 'hunter2', keep)
;;
SELECT set_config(keep.name, 'hunter2', false) FROM keep
;;
ALTER SYSTEM SET primary_conninfo = 'host=h user=u password=hunter2'
;;
CREATE SUBSCRIPTION keep_s CONNECTION 'host=h password=hunter2' PUBLICATION keep_p
;;
ALTER SUBSCRIPTION keep_s CONNECTION 'host=h user=hunter'
;;
CREATE SUBSCRIPTION keep_s CONNECTION 'postgres://u:hunter2@h/db' PUBLICATION keep_p WITH (slot_name = 'keep')
;;
CREATE SERVER keep_s FOREIGN DATA WRAPPER keep_w OPTIONS (host 'keep', password 'hunter2')
;;
ALTER SERVER keep_s OPTIONS (SET password 'hunter2', ADD host 'keep')
;;
CREATE SERVER keep_s FOREIGN DATA WRAPPER keep_w OPTIONS (secret_access_key 'hunter2', "api_key" 'hunter3')
;;
CREATE USER MAPPING FOR keep_bob SERVER keep_s OPTIONS (user 'keep_not', password 'hunter2')
;;
ALTER USER MAPPING FOR CURRENT_USER SERVER keep_s OPTIONS (SET pin 'hunter2')
;;
CREATE FOREIGN TABLE keep_t (keep_a int) SERVER keep_s OPTIONS (token 'hunter2')
;;
SELECT * FROM dblink('host=h password=hunter2', 'select keep_not') AS keep(a int)
;;
SELECT dblink_connect('keep_not', 'host=h dbname=d user=u password=hunter2')
;;
SELECT dblink_connect_u('host=h pass' || 'word=hunter2')
;;
SELECT public.dblink_exec('hunter', $$ALTER ROLE x PASSWORD 'hunter2'$$)
;;
SELECT "dblink"('user=hunter', 'SELECT 1')
;;
SELECT pgp_sym_encrypt(keep_col, 'hunter2') FROM keep
;;
SELECT pgp_sym_decrypt(keep_col::bytea, 'hunter2', 'compress-algo=1') FROM keep WHERE keep_id = 'keep'
;;
SELECT pgp_pub_decrypt(keep_col, dearmor('hunter'), 'hunter2') FROM keep
;;
SELECT encode(encrypt('hunter data', 'hunter key', 'aes'), 'keep-hex')
;;
SELECT decrypt_iv(keep_col, 'hunter', 'hunter', 'aes') FROM keep
;;
SELECT hmac('keep_not', 'hunter2', 'sha256')
;;
SELECT digest('hunter2', 'sha256') AS keep
;;
UPDATE keep_users SET password = crypt('hunter2', gen_salt('bf')) WHERE keep_id = 'keep'
;;
UPDATE keep_users SET keep_name = 'keep', password = 'hunter2' WHERE keep_id = 'keep'
;;
UPDATE keep_users SET (keep_name, password) = ('keep_not', 'hunter2')
;;
UPDATE keep_users SET password = md5('hunter2' || 'hunter3'), keep_n = 'keep'
;;
INSERT INTO keep_users (keep_name, password) VALUES ('keep_not', 'hunter2'), ('x', 'hunter3')
;;
INSERT INTO keep_users AS k (id, api_key) SELECT 1, 'hunter2'
;;
WITH n AS (INSERT INTO keep_users (password) VALUES ('hunter2') RETURNING *) SELECT * FROM n
;;
SELECT keep_id FROM keep_users WHERE password = 'hunter2' AND keep_name = 'keep'
;;
SELECT * FROM keep_users u WHERE u.password = "hunter2"
;;
SELECT * FROM keep_users WHERE 'hunter2' = password
;;
SELECT * FROM keep_users u WHERE 'hunter2' = lower(u.password)
;;
SELECT * FROM keep_users WHERE lower(password) LIKE 'hunter%'
;;
SELECT * FROM keep_users WHERE password::text IN ('hunter2', 'hunter3') OR keep_name = 'keep'
;;
SELECT * FROM keep_users WHERE password BETWEEN 'hunter1' AND 'hunter2'
;;
SELECT * FROM keep_users WHERE (keep_name, password) = ('keep_not', 'hunter2')
;;
SELECT * FROM keep_users WHERE keep_doc->>'password' = 'hunter2'
;;
UPDATE keep_t SET keep_doc = '{"user": "x", "password": "hunter2"}' WHERE keep_id = 'keep'
;;
UPDATE keep_t SET keep_doc = jsonb_build_object('password', 'hunter2')
;;
SELECT 'hunter2' AS password
;;
SELECT * FROM (VALUES ('x', 'hunter2')) AS keep (keep_name, password)
;;
SELECT keep_login(keep_name => 'keep', password => 'hunter2')
;;
SELECT aws_commons.create_aws_credentials('hunter', 'hunter2', '')
;;
SELECT vault.create_secret('hunter2', 'keep_not')
;;
SELECT keep_http('https://keep.example.com/x', 'Authorization: Bearer hunter2')
;;
SELECT keep_copy('postgresql://bob:hunter2@db.example.com/app')
;;
SELECT 'redis://:hunter2@keep_not/0', 'keep'
;;
COPY keep_t FROM PROGRAM 'curl -u bob:hunter2 https://x'
;;
COPY (SELECT 1) TO PROGRAM $$ssh hunter$$
;;
DO $$ BEGIN EXECUTE 'ALTER ROLE bob PASSWORD ''hunter2'''; END $$
;;
DO $keep$ BEGIN ALTER ROLE keep_bob PASSWORD 'hunter2'; PERFORM keep('keep'); END $keep$
;;
DO $$ BEGIN EXECUTE format('ALTER ROLE %I PASSWORD %L', 'bob', 'hunter2'); END $$
;;
DO $$ BEGIN EXECUTE 'ALTER ROLE bob PASSWORD ' || quote_literal('hunter2'); END $$
;;
DO 'BEGIN ALTER ROLE bob PASSWORD ''hunter2''; END'
;;
CREATE FUNCTION keep_f() RETURNS text LANGUAGE sql AS $f$ SELECT dblink_connect('user=hunter') $f$
;;
CREATE FUNCTION keep_f() RETURNS text LANGUAGE sql SET keep.token = 'hunter2' AS 'select 1'
;;
SELECT format('ALTER ROLE %I PASSWORD %L', 'keep_not', 'hunter2')
;;
PREPARE keep_p AS UPDATE keep_users SET password = 'hunter2' WHERE keep_id = $1
;;
EXPLAIN UPDATE keep_users SET password = 'hunter2' WHERE keep_id = 'keep'
;;
CREATE TABLE keep_t (keep_id int, password text DEFAULT 'hunter2')
;;
COMMENT ON ROLE keep_bob IS 'password: hunter2'
;;
/* password hunter2 */ SELECT 'keep'
;;
SELECT 'keep' -- his password is hunter2
;;
SELECT U&"p\0061ssword" FROM keep WHERE "Password" = 'hunter2'
;;
MERGE INTO keep_users k USING keep_src s ON k.keep_id = s.keep_id WHEN MATCHED THEN UPDATE SET password = 'hunter2'
;;
SELECT keep_put('tskey-auth-hunter', 'keep')
;;
SELECT keep_put('-----BEGIN RSA PRIVATE KEY-----
hunter
-----END RSA PRIVATE KEY-----')
;;
DO $$ BEGIN SET keep.password TO hunter2; PERFORM keep('keep'); END $$
;;
CREATE OR REPLACE PROCEDURE keep_p() LANGUAGE plpgsql AS $b$ BEGIN UPDATE keep_u SET password = 'hunter2' WHERE keep_id = 'keep'; END $b$
;;
SELECT keep_copy('postgres://u:hunt/hunter2@h/db')
;;
SELECT keep_copy('postgres://u:hunter?x=1@h/db')
;;
SELECT keep_copy('postgres://u:#hunter2@h/db')
;;
SELECT keep_copy('postgres://u:p@hunter2@h/db')
;;
SELECT keep_copy('postgres://u:5432/hunter2@h/db')
;;
SELECT keep_copy('postgres://u:p:hunter2/?#@[fd7a::1]:5432/db')
;;
SELECT keep_copy('postgres://u/x:hunter2@h/db')
;;
SELECT keep_copy('postgres://u:hunter2@h1:5432,h2:5432/db?sslmode=require')
;;
SELECT keep_copy('postgres://h.example.com/db?user=u&password=hunter2')
;;
SELECT keep_copy('postgres://h/db?sslpassword=hun%2Fhunter2')
;;
SELECT 'keep', 'jdbc:postgresql://h:5432/db?user=u&password=hunter2'
;;
SELECT keep_copy('see https://u:hunter/2@h/ for more')
;;
SELECT keep_copy('{"dsn": "mysql://u:hun/ter@hunter@h/db"}')
;;
SELECT keep_copy($u$amqps://u:hunter/2@h:5671/vhost$u$)
;;
SELECT keep_copy(E'postgres://u:hunter\'s/2@h/db')
;;
SELECT dblink('postgres://u:hunter/2@h/db', 'select keep_not')
;;
CREATE SUBSCRIPTION keep_s CONNECTION 'postgres://u:hunter/2@h/db' PUBLICATION keep_p
;;
COMMENT ON DATABASE keep_db IS 'postgres://u:hunter/2@h/db'
;;
SELECT 'keep' -- postgres://u:hunter/2@h/db
;;
SELECT /* dsn: postgres://u:hun/ter@hunter@h/db */ 'keep'
;;
NOTIFY keep_channel, 'postgres://u:hunter/2@h/db'
;;
DO $$ BEGIN PERFORM keep('postgres://u:hunter/2@h/db'); END $$
;;
COPY keep_t FROM PROGRAM 'psql postgres://u:hunter/2@h/db'
;;
ALTER SYSTEM SET primary_conninfo = 'postgres://u:hunter/2@h/db'
;;
UPDATE keep_cfg SET keep_url = 'https://u:hunter2/@h' WHERE keep_id = 'keep'
;;
SELECT keep_copy('host=h user=u password = ''hunter 2''')
;;
SELECT keep_copy('host=h PASSWORD=hunter2 user=u')
;;
SELECT keep_copy('host=h sslpassword=hunter2')
;;
SELECT keep_copy('PGPASSWORD=hunter2 psql -h db')
;;
SELECT keep_copy('DB_PASS=hunter2')
;;
SELECT keep_copy('smtp-pass: hunter2')
;;
SELECT keep_copy('{"user": "u", "pw": "hunter2"}')
;;
UPDATE keep_users SET pw = 'hunter2' WHERE keep_id = 'keep'
;;
UPDATE keep_users SET db_pass = 'hunter2' WHERE keep_id = 'keep'
;;
INSERT INTO keep_users (keep_name, user_pw) VALUES ('keep_not', 'hunter2')
;;
SELECT keep_copy('<config><password>hunter2</password></config>')
;;
SELECT keep_copy('<db password="hunter2"/>')
;;
SELECT keep_copy('curl -H "X-Api-Key: hunter2" https://h')
;;
SELECT keep_copy('aws-secret-access-key=hunter2')
;;
SELECT keep_copy('the new password is hunter2')
;;
SELECT keep_copy('ghp_hunter2hunter2')
;;
SELECT keep_copy('glpat-hunter2'), keep_copy('keep')
;;
SELECT keep_copy('xoxb-1-hunter')
;;
SELECT keep_copy('eyJhunter0AbCd.eyJhunter0AbCd.hunter')
;;
SELECT keep_copy('SCRAM-SHA-256$4096:hunter$hunter:hunter')
;;
EXPLAIN (ANALYZE, FORMAT json) UPDATE keep_users SET password = 'hunter2'
;;
SELECT jsonb_set(keep_doc, '{password}', '"hunter2"') FROM keep_t
;;
SELECT keep_doc || jsonb_build_object('api-key', 'hunter2') FROM keep_t
;;
SELECT 'keep'; SET keep.pass = hunter2; SELECT 'keep too'
;;
SET pgproxy.reason = 'password=hunter2'
;;
SET pgproxy.password = 'hunter2'
;;
SELECT set_config('keep.db_pw', 'hunter2', true)
;;
BEGIN; ALTER ROLE keep_bob PASSWORD 'hunter2'; COMMIT
;;
CREATE TABLE keep_t AS SELECT 'hunter2' AS password
;;
DECLARE keep_c CURSOR FOR SELECT * FROM keep_users WHERE password = 'hunter2'
;;
WITH keep AS (SELECT 'postgres://u:hunter/2@h/db') SELECT * FROM keep
;;
CREATE DATABASE "postgres://u:hunter/2@h/db"
;;
SELECT keep_a AS "password: hunter2" FROM keep
;;
SHOW "my.password=hunter2"
;;
SELECT keep_copy(E'password\x3dhunter2')
;;
SELECT keep_copy(E'pass\167ord\u003dhunter2')
;;
SELECT keep_copy(U&'pass\0077ord=hunter2')
;;
SELECT keep_copy(U&'pass!0077ord=hunter2' UESCAPE '!')

# What holds no secret, and stays as it is.
SELECT 'keep', 42, $$keep$$ -- a comment
;;
SELECT * FROM orders WHERE customer = 'alice' AND note LIKE '%pass through%'
;;
SELECT passenger, compass FROM trips WHERE passenger = 'bob'
;;
UPDATE orders SET status = 'shipped' WHERE id = 42
;;
SET password_encryption = 'scram-sha-256'
;;
SET SESSION AUTHORIZATION 'bob'
;;
ALTER ROLE bob PASSWORD NULL
;;
ALTER ROLE bob CONNECTION LIMIT 10
;;
SELECT password IS NULL, name FROM users WHERE id = '7'
;;
SELECT password FROM users WHERE name = 'bob'
;;
SELECT id, rolpassword, x FROM pg_authid WHERE rolname = 'bob'
;;
SELECT set_config('search_path', 'app', false)
;;
SELECT md5('keep'), 'https://example.com/a?b=c', 'a@b.example.com'
;;
SELECT 'http://example.com:8080/x', '10:30', 'x://y'
;;
INSERT INTO notes (body) VALUES ('bring the passport'), ('the key is under the mat')
;;
SELECT count(*) FROM api_tokens WHERE owner = 'bob'
;;
COPY t TO '/tmp/x'
;;
SELECT encode('abc', 'hex'), decode('00', 'hex')
;;
ALTER SUBSCRIPTION s SET (password_required = false)
;;
SELECT pg_read_file('/run/secrets/x.txt')
;;
ALTER TABLE users RENAME COLUMN password TO password_hash
;;
GRANT password_admin TO bob
;;
SELECT a.token_count, b.id FROM a JOIN b ON a.id = b.id WHERE b.name = 'x'
;;
SELECT 'https://example.com:8080/a/very/long/path/indeed?a=b&c=d#e', 'mail to a@b.example.com'
;;
SELECT '{"url": "https://example.com:8080/x", "mail": "a@b.example.com"}'
;;
SELECT 'postgres://u@h/db', 'postgres://h:5432/db'
;;
SELECT 'https://example.com:443/0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789'
;;
SELECT compass, bypass, hpw FROM trips WHERE compass = 'north' AND hpw = 4
;;
SELECT 'select name from users where password is null'
;;
PREPARE p(int) AS SELECT * FROM orders WHERE id = $1
;;
SELECT E'a\nb', U&'\0061'

# What cannot be parsed. Words with "hunter" must be gone.
ALTER ROLE bob PASSWORD 'hunter2
;;
ALTER ROLE bob PASSWORD hunter2
;;
ALTER USER bob PASWORD hunter2
;;
ALTER ROLE bob PASSWORD 'it's hunter2'
;;
CREATE USER bob PASSWORD "hunter2"
;;
CRATE ROLE bob PASSWORD 'hunter2'
;;
SELCT 'hunter2'
;;
SELECT 'hunter2' FRM x y
;;
SELECT * FROM users WHERE name = 'hunter' ORDER
;;
SELECT $$hunter2$$ $x$ hunter2
;;
SELECT E'hunter\' hunter' FRM x
;;
SELECT 1 /* hunter2
;;
SELECT ( 'hunter2' -- hunter3
;;
SET app.password hunter2
;;
CREATE SUBSCRIPTION s CONNECTION host=h password=hunter2
;;
select dblink_connect(host=h user=hunter)
;;
UPDATE users SET passwd == hunter2
;;
COPY t FROM PROGRAMM 'hunter'
;;
postgres://bob:hunter2@db/app
;;
PGPASSWORD=hunter2 psql -h db
;;
\password hunter2
;;
SELECT 'hunter' 'hunter' FROM
;;
create user mapping for x server s options (user 'u' pass hunter2
;;
psql postgres://u:hunter/2@h/db
;;
SELECT 'x' FRM 'postgres://u:hun?ter2@hunter@h/db'
;;
EXECUTE up('hunter2'
;;
EXECUTE up 'hunter2'
;;
db_pass=hunter2
;;

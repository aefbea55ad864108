-- The demo's database: a small mail-order shop, the same in every run.

SELECT setseed(0.42);

CREATE TYPE order_status AS ENUM ('new', 'paid', 'shipped', 'returned', 'stuck');

CREATE TABLE customers (
    id         integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text NOT NULL,
    email      text NOT NULL UNIQUE,
    country    char(2) NOT NULL,
    since      date NOT NULL,
    newsletter boolean NOT NULL DEFAULT false
);
COMMENT ON TABLE customers IS 'People who have ordered at least once';

CREATE TABLE products (
    id    integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name  text NOT NULL UNIQUE,
    price numeric(8, 2) NOT NULL CHECK (price > 0),
    stock integer NOT NULL CHECK (stock >= 0)
);
COMMENT ON COLUMN products.stock IS 'Pieces in the warehouse; reserved ones are counted';

CREATE TABLE orders (
    id          integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer_id integer NOT NULL REFERENCES customers,
    placed      timestamptz NOT NULL,
    status      order_status NOT NULL DEFAULT 'new',
    note        text
);
CREATE INDEX ON orders (customer_id);
CREATE INDEX ON orders (placed);

CREATE TABLE order_items (
    order_id   integer NOT NULL REFERENCES orders ON DELETE CASCADE,
    line       smallint NOT NULL,
    product_id integer NOT NULL REFERENCES products,
    quantity   integer NOT NULL CHECK (quantity > 0),
    price      numeric(8, 2) NOT NULL,
    PRIMARY KEY (order_id, line)
);
COMMENT ON COLUMN order_items.price IS 'What a piece cost when it was ordered';

CREATE TABLE events (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at       timestamptz NOT NULL,
    kind     text NOT NULL,
    order_id integer REFERENCES orders,
    payload  jsonb NOT NULL,
    handled  boolean NOT NULL DEFAULT false
);
CREATE INDEX ON events (at);
CREATE INDEX ON events (kind) WHERE NOT handled;
COMMENT ON TABLE events IS 'What other systems told the shop; the nightly import marks rows as handled';

INSERT INTO customers (name, email, country, since, newsletter)
SELECT first || ' ' || last,
       lower(first || '.' || last) || n || '@mail.example',
       (ARRAY['DE', 'FR', 'NL', 'PL', 'SE', 'IT'])[1 + n % 6],
       date '2019-01-01' + (random() * 2400)::integer,
       random() < 0.3
FROM generate_series(1, 800) AS n,
     LATERAL (SELECT (ARRAY['Ada', 'Bram', 'Chloe', 'Dario', 'Elif', 'Finn', 'Greta', 'Hugo', 'Ines', 'Jonas', 'Kaja'])[1 + n % 11] AS first,
                     (ARRAY['Berger', 'Costa', 'Dubois', 'Eriksen', 'Fischer', 'Garcia', 'Horvat', 'Ivanova', 'Jansen'])[1 + n % 9] AS last) AS names;

INSERT INTO products (name, price, stock)
SELECT material || ' ' || thing, round((4 + random() * 180)::numeric, 2), (random() * 400)::integer
FROM unnest(ARRAY['Oak', 'Linen', 'Steel', 'Wool', 'Glass', 'Cork']) AS material,
     unnest(ARRAY['chair', 'lamp', 'bowl', 'blanket', 'shelf', 'clock', 'tray', 'mirror']) AS thing;

INSERT INTO orders (customer_id, placed, status, note)
SELECT 1 + (random() * 799)::integer,
       timestamptz '2026-01-01 08:00+00' + random() * interval '300 days',
       (ARRAY['new', 'paid', 'paid', 'shipped', 'shipped', 'shipped', 'shipped', 'returned'])[1 + (random() * 7)::integer]::order_status,
       CASE WHEN random() < 0.05 THEN 'call before delivery' END
FROM generate_series(1, 4000);
-- Somebody should look at these.
UPDATE orders SET status = 'stuck', note = 'payment provider timed out' WHERE id IN (17, 404, 1337, 2718, 3141);

INSERT INTO order_items (order_id, line, product_id, quantity, price)
SELECT o.id, line, p.id, 1 + (random() * 3)::integer, p.price
FROM orders AS o
CROSS JOIN LATERAL generate_series(1, 1 + o.id % 4) AS line
JOIN products AS p ON p.id = 1 + (o.id * 7 + line * 11) % 48;

INSERT INTO events (at, kind, order_id, payload, handled)
SELECT o.placed + n * interval '7 minutes',
       (ARRAY['payment', 'label', 'pickup'])[n],
       o.id,
       jsonb_build_object('source', (ARRAY['paybridge', 'parcelhub', 'parcelhub'])[n], 'attempt', 1 + (o.id + n) % 3),
       o.id % 50 <> 0
FROM orders AS o, generate_series(1, 3) AS n;

CREATE VIEW order_totals AS
SELECT o.id, c.name AS customer, c.country, o.placed, o.status, sum(i.quantity * i.price) AS total
FROM orders AS o
JOIN customers AS c ON c.id = o.customer_id
JOIN order_items AS i ON i.order_id = o.id
GROUP BY o.id, c.id;

CREATE VIEW revenue_by_month AS
SELECT date_trunc('month', placed)::date AS month, count(*) AS orders, sum(total) AS revenue
FROM order_totals
WHERE status <> 'returned'
GROUP BY 1
ORDER BY 1;

CREATE VIEW stuck_orders AS
SELECT t.id, t.customer, t.placed, t.total, o.note
FROM order_totals AS t
JOIN orders AS o USING (id)
WHERE t.status = 'stuck'
ORDER BY t.placed;

CREATE VIEW who_blocks_whom AS
SELECT waiting.pid, waiting.application_name AS waits,
       blocking.pid AS blocked_by, blocking.application_name AS blocker,
       blocking.state, now() - blocking.xact_start AS open_for, left(waiting.query, 60) AS waiting_query
FROM pg_stat_activity AS waiting
CROSS JOIN LATERAL unnest(pg_blocking_pids(waiting.pid)) AS b (pid)
JOIN pg_stat_activity AS blocking ON blocking.pid = b.pid;
COMMENT ON VIEW who_blocks_whom IS 'Sessions that wait for a lock, and who holds it';

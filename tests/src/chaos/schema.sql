-- Beside the mixed schema: what chaos adds is size, and collisions.
-- Money moves between purses and never comes or goes: whoever sees another sum sees half a transaction.
CREATE TABLE purse (id integer PRIMARY KEY, amount bigint NOT NULL);
INSERT INTO purse SELECT i, 1000 FROM generate_series(1, 200) AS i;

CREATE TABLE region (id integer PRIMARY KEY, name text NOT NULL UNIQUE);
INSERT INTO region SELECT i, 'region ' || i FROM generate_series(1, 10) AS i;
CREATE TABLE account (id bigint PRIMARY KEY, region integer NOT NULL REFERENCES region, balance numeric(14, 2) NOT NULL DEFAULT 0, note text);
ALTER TABLE account ALTER note SET STORAGE EXTERNAL;
INSERT INTO account SELECT i, 1 + i % 10, i / 7.0, CASE WHEN i % 40 = 0 THEN repeat(md5(i::text), 300) END FROM generate_series(1, 15000) AS i;
CREATE TABLE entry (
    id bigint PRIMARY KEY, account bigint REFERENCES account ON DELETE CASCADE ON UPDATE CASCADE, amount numeric(12, 2), what text
);
INSERT INTO entry SELECT i, 1 + i % 15000, i / 3.0, 'entry ' || i FROM generate_series(1, 30000) AS i;
CREATE INDEX ON entry (account);

-- Unique values that change places: at the end of the transaction, or row by row.
CREATE TABLE seat (id integer PRIMARY KEY, place integer NOT NULL UNIQUE DEFERRABLE, holder integer UNIQUE);
INSERT INTO seat SELECT i, i, i FROM generate_series(1, 100) AS i;

CREATE TABLE document_of (id integer PRIMARY KEY, title text, body text NOT NULL);
ALTER TABLE document_of ALTER body SET STORAGE EXTERNAL;
INSERT INTO document_of SELECT i, 'title ' || i, repeat(md5(i::text), 200 + i % 500) FROM generate_series(1, 300) AS i;

-- Emptied now and then, alone and together.
CREATE TABLE basket (id bigint PRIMARY KEY, name text);
CREATE TABLE item (id bigint PRIMARY KEY, basket bigint REFERENCES basket, sku text, count integer DEFAULT 1);
INSERT INTO basket SELECT i, 'basket ' || i FROM generate_series(1, 100) AS i;
INSERT INTO item SELECT i, 1 + i % 100, 'sku ' || i % 17 FROM generate_series(1, 600) AS i;

CREATE TABLE loose (a integer, b text);
ALTER TABLE loose REPLICA IDENTITY FULL;
INSERT INTO loose SELECT i % 30, CASE WHEN i % 3 > 0 THEN 'b' || i % 4 END FROM generate_series(1, 300) AS i;
CREATE TABLE trace (at timestamptz DEFAULT clock_timestamp(), what text);

CREATE TABLE reading (id bigint, at integer, value text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE reading_low PARTITION OF reading FOR VALUES FROM (0) TO (10);
CREATE TABLE reading_high PARTITION OF reading FOR VALUES FROM (10) TO (20);
CREATE TABLE reading_rest PARTITION OF reading DEFAULT;
INSERT INTO reading SELECT i, i % 30, 'r' || i FROM generate_series(1, 2000) AS i;

-- What takes time to copy.
CREATE TABLE bulk (id integer PRIMARY KEY, filler text, n integer DEFAULT 0);
INSERT INTO bulk SELECT i, repeat(md5(i::text), 8) FROM generate_series(1, 40000) AS i;

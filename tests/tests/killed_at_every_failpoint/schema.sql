-- Small, and with something for every failpoint: keys, an index, a foreign key, a trigger, partitions, a table that rows are only added to.
CREATE TABLE keyed (id integer PRIMARY KEY, a integer UNIQUE, b integer UNIQUE, v text, n integer NOT NULL DEFAULT 0);
ALTER TABLE keyed ALTER v SET STORAGE EXTERNAL;
INSERT INTO keyed SELECT i, i, i, repeat(md5(i::text), 20) FROM generate_series(1, 300) AS i;
CREATE INDEX ON keyed (n);
CREATE TABLE refers (id serial PRIMARY KEY, keyed integer REFERENCES keyed ON DELETE CASCADE ON UPDATE CASCADE);
INSERT INTO refers (keyed) SELECT i FROM generate_series(1, 300) AS i;
-- Without a key: a row that came twice shows.
CREATE TABLE journal (n bigint, what text);
INSERT INTO journal SELECT i, 'before' FROM generate_series(1, 100) AS i;
CREATE TABLE emptied (id integer PRIMARY KEY);
INSERT INTO emptied SELECT generate_series(1, 50);
CREATE TABLE parted (id integer, at integer, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE parted_low PARTITION OF parted FOR VALUES FROM (0) TO (100);
CREATE TABLE parted_rest PARTITION OF parted DEFAULT;
INSERT INTO parted SELECT i, i, 'p' FROM generate_series(1, 200) AS i;
-- Nobody writes it: copied once, its rows stay as they were written. Three chunks.
CREATE TABLE still (id integer PRIMARY KEY, v text);
INSERT INTO still SELECT i, repeat(md5(i::text), 32) FROM generate_series(1, 2500) AS i;
-- Some plans leave it out at first.
CREATE TABLE later (id integer PRIMARY KEY, n integer NOT NULL DEFAULT 0);
INSERT INTO later SELECT generate_series(1, 100);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO journal VALUES (new.n, 'trigger');
    RETURN new;
END $$;
CREATE TRIGGER noted AFTER UPDATE OF n ON keyed FOR EACH ROW EXECUTE FUNCTION note();

-- One transaction a line; :r is a random number below 1,000,000.
INSERT INTO everything (small, exact, double, body, instant, length, jsonb, words, mood, home, ints, loose) VALUES (:r % 30000, :r / 7.0, :r / 3.0, repeat('x', :r % 3000), now(), make_interval(days => -(:r % 9), secs => :r), jsonb_build_object('r', :r), ARRAY['a', NULL, ':r'], 'ok', ROW('s', :r, NULL), int4range(:r, NULL), 'LooSe:r')
UPDATE everything SET flag = NOT flag, exact = exact + :r / 1000.0, instant = clock_timestamp() WHERE id % 3003 = :r % 3003
UPDATE everything SET home.number = :r, words[2] = 'changed :r', fixed = 'f' || :r % 100, bits = (:r % 32)::bit(5) WHERE id = 1 + :r % 3003
DELETE FROM everything WHERE id = 1 + :r % 4000
UPDATE documents SET title = 'new :r' WHERE id = 1 + :r % 300
UPDATE documents SET id = 1000 + :r % 300, title = 'moved' WHERE id = 1 + :r % 300
UPDATE documents SET id = id - 1000 WHERE id = 1000 + :r % 300
UPDATE documents SET body = repeat(md5(':r'), 50 + :r % 600) WHERE id = 1 + :r % 300
INSERT INTO customers (email) VALUES ('new:r@example.org')
UPDATE customers SET balance = balance + :r / 100.0 WHERE id = 1 + :r % 2000
BEGIN; UPDATE customers SET balance = balance - 5 WHERE id = 1 + :r % 2000; UPDATE customers SET balance = balance + 5 WHERE id = 1 + :r % 2000; COMMIT
DELETE FROM customers WHERE id = 1 + :r % 2000
INSERT INTO orders VALUES (1 + :r % 2000, 10000 + :r, now(), :r / 100.0, 'note :r')
UPDATE orders SET total = total + 1, note = NULL WHERE customer = 1 + :r % 2000
UPDATE orders SET number = number + 1000000 WHERE customer = 1 + :r % 2000
BEGIN; DELETE FROM orders WHERE customer = :r % 2000; INSERT INTO orders SELECT id, 5, now(), 1, 'again' FROM customers WHERE id = :r % 2000; COMMIT
UPDATE ranking SET place = 101 - place
BEGIN; SET CONSTRAINTS ALL DEFERRED; UPDATE ranking SET place = place + 1; UPDATE ranking SET place = 1 WHERE place = 101; COMMIT
BEGIN; UPDATE booking SET room = :r % 5; DELETE FROM booking WHERE id = 1 + :r % 100; COMMIT
INSERT INTO measures VALUES (date '2022-06-01' + :r % 1200, 10000 + :r, :r) ON CONFLICT DO NOTHING
UPDATE measures SET value = :r WHERE sensor = 1 + :r % 5000
UPDATE measures SET at = date '2022-06-01' + :r % 1200 WHERE sensor = 1 + :r % 5000
DELETE FROM measures WHERE sensor = 1 + :r % 5000
UPDATE animal SET name = 'renamed :r' WHERE id % 50 = :r % 50
INSERT INTO dog VALUES (2000 + :r, 'puppy', 'breed')
DELETE FROM ONLY animal WHERE id = 1 + :r % 200
INSERT INTO keyless VALUES (:r % 20, 'b1'), (:r % 20, NULL)
UPDATE keyless SET b = 'b:r' WHERE ctid = (SELECT ctid FROM keyless WHERE a = :r % 20 LIMIT 1)
DELETE FROM keyless WHERE ctid = (SELECT ctid FROM keyless WHERE a = :r % 20 LIMIT 1)
INSERT INTO journal (what) VALUES ('entry :r'), ('entry')
BEGIN; INSERT INTO empty_one VALUES (:r); SAVEPOINT a; INSERT INTO empty_one VALUES (-1 - :r); ROLLBACK TO a; INSERT INTO empty_one VALUES (1000000 + :r); COMMIT
BEGIN; TRUNCATE empty_one; INSERT INTO empty_one VALUES (:r); COMMIT
INSERT INTO no_columns_of_note (id, kept) VALUES (:r, 'w')
UPDATE no_columns_of_note SET "UPPER" = :r WHERE id = 1 + :r % 50
UPDATE chosen SET code = 'code ' || 1000 + :r % 9000, extra = 'r:r' WHERE id = 1 + :r % 200
UPDATE chosen SET extra = NULL, id = id WHERE id = 1 + :r % 200
UPDATE "Odd Schema"."select" SET "Ünïcode ""quoted""" = 'y:r', "$1" = '\' WHERE "from" = 1 + :r % 150
BEGIN; INSERT INTO customers (email) VALUES ('rolled:r@example.org'); UPDATE ranking SET place = place + 1000 WHERE id = 1; ROLLBACK

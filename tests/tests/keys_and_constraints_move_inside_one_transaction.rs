//! Given transactions that move keys and unique values between rows: the target ends equal. Set-wise they fail, or lose what was
//! not sent.

use anyhow::Result;
use crossfade_tests::follow;

#[tokio::test(flavor = "multi_thread")]
async fn a_key_moves_onto_one_that_was_deleted_and_along_a_chain() -> Result<()> {
    follow::changes(
        "CREATE TABLE t (id integer PRIMARY KEY, v text, n integer DEFAULT 0, u integer UNIQUE); ALTER TABLE t ALTER v SET STORAGE EXTERNAL;
         INSERT INTO t SELECT i, repeat(md5(i::text), 200), 0, i FROM generate_series(1, 50) AS i",
        "BEGIN; DELETE FROM t WHERE id = 2; UPDATE t SET id = 2 WHERE id = 3; UPDATE t SET id = 3 WHERE id = 4; INSERT INTO t VALUES (4, 'again', 0, 1000 + (SELECT max(u) FROM t)); COMMIT
         BEGIN; UPDATE t SET id = 100 WHERE id = 5; UPDATE t SET id = 101 WHERE id = 100; UPDATE t SET id = 102, n = n + 1 WHERE id = 101; UPDATE t SET n = n + 1 WHERE id = 102; UPDATE t SET id = 5 WHERE id = 102; COMMIT
         BEGIN; UPDATE t SET n = n + 1 WHERE id = 6; UPDATE t SET id = 200, n = n + 1 WHERE id = 6; UPDATE t SET n = n + 1 WHERE id = 200; DELETE FROM t WHERE id = 200; INSERT INTO t VALUES (6, 'new', 1, 2000 + (SELECT max(u) FROM t)); COMMIT
         BEGIN; INSERT INTO t VALUES (300, repeat('x', 9000), 1, 300 + (SELECT max(u) FROM t)); UPDATE t SET id = 301 WHERE id = 300; UPDATE t SET n = 2 WHERE id = 301; UPDATE t SET id = 302 WHERE id = 301; DELETE FROM t WHERE id = 302; COMMIT
         BEGIN; UPDATE t SET id = -1 WHERE id = 7; UPDATE t SET id = 7 WHERE id = 8; UPDATE t SET id = 8 WHERE id = -1; UPDATE t SET n = n + 1 WHERE id IN (7, 8); COMMIT
         BEGIN; SAVEPOINT a; UPDATE t SET id = 400 WHERE id = 9; ROLLBACK TO a; UPDATE t SET id = 401 WHERE id = 9; SAVEPOINT b; UPDATE t SET id = 9 WHERE id = 401; RELEASE b; COMMIT",
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn constraints_that_hold_only_at_the_end() -> Result<()> {
    follow::changes(
        "CREATE TABLE swap (id integer PRIMARY KEY, u integer UNIQUE DEFERRABLE);
         CREATE TABLE late (id integer PRIMARY KEY, u integer UNIQUE DEFERRABLE INITIALLY DEFERRED);
         CREATE TABLE two (id integer PRIMARY KEY, u integer UNIQUE, w integer UNIQUE);
         CREATE TABLE room (id integer PRIMARY KEY, during int4range, EXCLUDE USING gist (during WITH &&));
         CREATE TABLE queue (id integer PRIMARY KEY, during int4range, EXCLUDE USING gist (during WITH &&) DEFERRABLE);
         INSERT INTO swap SELECT i, i FROM generate_series(1, 20) AS i; INSERT INTO late SELECT * FROM swap; INSERT INTO two SELECT i, i, i FROM generate_series(1, 20) AS i;
         INSERT INTO room SELECT i, int4range(i * 10, i * 10 + 10) FROM generate_series(1, 20) AS i; INSERT INTO queue SELECT * FROM room",
        "UPDATE swap SET id = -id, u = 21 - u
         BEGIN; UPDATE late SET u = u + 1; UPDATE late SET u = 1 WHERE u = 21; UPDATE late SET id = id + 100 WHERE id < 100; UPDATE late SET id = id - 100; COMMIT
         BEGIN; UPDATE two SET u = NULL, w = -w WHERE id = 1; UPDATE two SET u = 1000 WHERE u = 1; UPDATE two SET u = 1 WHERE id = 2; UPDATE two SET u = 2 WHERE id = 1; UPDATE two SET u = (SELECT 210 - sum(u) FROM two WHERE u < 1000), w = abs(w) WHERE u = 1000; COMMIT
         BEGIN; UPDATE room SET during = int4range(1000, 1010) WHERE id = 1; UPDATE room SET during = int4range(10, 20) WHERE id = 2; UPDATE room SET during = int4range(20, 30) WHERE id = 1; COMMIT
         BEGIN; UPDATE room SET during = int4range(1000, 1010) WHERE id = 2; UPDATE room SET during = int4range(10, 20) WHERE id = 1; UPDATE room SET during = int4range(20, 30) WHERE id = 2; COMMIT
         UPDATE queue SET during = int4range(210 - lower(during), 220 - lower(during))
         BEGIN; UPDATE swap SET u = 21 - u; UPDATE late SET u = 21 - u; DELETE FROM two WHERE id = 9; UPDATE two SET u = 9 WHERE id = 10; UPDATE two SET u = 10 WHERE id = 11; UPDATE two SET u = 11 WHERE id = 12; INSERT INTO two VALUES (9, 12, 9); UPDATE two SET u = id + 500 WHERE id BETWEEN 9 AND 12; UPDATE two SET u = id WHERE id BETWEEN 9 AND 12; UPDATE queue SET id = id; COMMIT",
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn identity_columns_are_written_anew() -> Result<()> {
    follow::changes(
        "CREATE TABLE keyed (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text, n integer DEFAULT 0); ALTER TABLE keyed ALTER v SET STORAGE EXTERNAL;
         CREATE TABLE aside (id integer PRIMARY KEY, number integer GENERATED ALWAYS AS IDENTITY, v text, n integer DEFAULT 0, twice integer GENERATED ALWAYS AS (n * 2) STORED); ALTER TABLE aside ALTER v SET STORAGE EXTERNAL;
         CREATE TABLE loose (number integer GENERATED ALWAYS AS IDENTITY, v text); ALTER TABLE loose REPLICA IDENTITY FULL;
         INSERT INTO keyed (v) SELECT repeat(md5(i::text), 200) FROM generate_series(1, 20) AS i; INSERT INTO aside (id, v) SELECT i, repeat(md5(i::text), 200) FROM generate_series(1, 20) AS i;
         INSERT INTO loose (v) SELECT 'same' FROM generate_series(1, 5)",
        "UPDATE keyed SET id = DEFAULT WHERE id = (SELECT min(id) FROM keyed)
         BEGIN; UPDATE keyed SET id = DEFAULT, n = n + 1 WHERE id = (SELECT min(id) FROM keyed); UPDATE keyed SET n = n + 1 WHERE id = (SELECT max(id) FROM keyed); COMMIT
         UPDATE aside SET number = DEFAULT WHERE id = 3
         BEGIN; UPDATE aside SET number = DEFAULT, n = n + 1; UPDATE aside SET n = n + 1; UPDATE aside SET id = id + 100, number = DEFAULT WHERE id = 4; UPDATE aside SET id = id - 100 WHERE id = 104; COMMIT
         UPDATE aside SET n = n + 1 WHERE id = 5
         UPDATE loose SET number = DEFAULT WHERE number = (SELECT min(number) FROM loose)
         UPDATE loose SET v = 'other' WHERE number = (SELECT max(number) FROM loose)",
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_any_type() -> Result<()> {
    let types = [
        ("c", "ext.citext", "'Key' || i", "upper(id::text)::ext.citext"),
        (
            "l",
            "ext.ltree",
            "('top.k' || i)::ext.ltree",
            "ext.subpath(id, 0, 1) OPERATOR(ext.||) ext.text2ltree('moved') OPERATOR(ext.||) ext.subpath(id, -1)",
        ),
        ("n", "numeric", "i + 0.10", "id * 1.00"),
        ("u", "uuid", "md5(i::text)::uuid", "md5(id::text)::uuid"),
        ("r", "pair", "ROW(i, 'a,b\"' || i)::pair", "ROW((id).a + 1000, NULL)::pair"),
        ("d", "short", "'s' || i", "'t' || id"),
        ("e", "integer[]", "ARRAY[i, NULL]", "id || 7"),
        ("g", "int4range", "int4range(i, i + 5)", "int4range(lower(id), upper(id) + 100)"),
        ("b", "bytea", "int4send(i)", "id || '\\x00'::bytea"),
        ("f", "char(9)", "'x' || i", "'y' || id"),
        ("q", "\"char\"", "chr(64 + i)::\"char\"", "chr(ascii(id::text) + 20)::\"char\""),
        ("t", "timestamptz", "'2026-01-01Z'::timestamptz + i * interval '1 second'", "id + interval '1 year'"),
    ];
    let mut schema = "CREATE SCHEMA ext; CREATE EXTENSION citext SCHEMA ext; CREATE EXTENSION ltree SCHEMA ext; CREATE TYPE pair AS (a integer, b text); CREATE DOMAIN short AS varchar(30);".to_owned();
    let (mut update, mut moves, mut delete) = (String::new(), String::new(), String::new());
    for (table, of, value, moved) in types {
        schema += &format!(
            "CREATE TABLE {table} (id {of} PRIMARY KEY, n integer DEFAULT 0); INSERT INTO {table} SELECT {value} FROM generate_series(1, 9) AS i;"
        );
        update += &format!("UPDATE {table} SET n = n + 1; ");
        moves += &format!(
            "UPDATE {table} SET id = {moved}, n = n + 1 WHERE ctid = ANY (ARRAY(SELECT ctid FROM {table} ORDER BY id LIMIT 3)); "
        );
        delete += &format!("DELETE FROM {table} WHERE ctid = (SELECT ctid FROM {table} ORDER BY id DESC LIMIT 1); ");
    }
    let (update, moves, delete) = (update.trim(), moves.trim(), delete.trim());
    follow::changes(&schema, &format!("{update}\n{moves}\n{delete}\nBEGIN; {update} {delete} {update} COMMIT")).await
}

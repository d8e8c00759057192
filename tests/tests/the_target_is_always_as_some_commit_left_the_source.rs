//! Given money that only changes hands, under load: once copy and tail are joined, whoever looks at the target at any time finds the same sum, and never
//! an order without its lines.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use crossfade_tests::{Crossfade, Pgbench, World, follow};

const MINUTE: Duration = Duration::from_secs(60);

const SCHEMA: &str = "CREATE TABLE account (id integer PRIMARY KEY, balance integer NOT NULL) PARTITION BY HASH (id);
    CREATE TABLE account_0 PARTITION OF account FOR VALUES WITH (MODULUS 2, REMAINDER 0); CREATE TABLE account_1 PARTITION OF account FOR VALUES WITH (MODULUS 2, REMAINDER 1);
    CREATE TABLE vault (id integer PRIMARY KEY, balance integer NOT NULL);
    CREATE TABLE orders (id serial PRIMARY KEY, lines integer NOT NULL); CREATE TABLE line (orders integer, at timestamptz DEFAULT clock_timestamp()); ALTER TABLE line REPLICA IDENTITY FULL;
    INSERT INTO account SELECT i, 100 FROM generate_series(1, 100) AS i; INSERT INTO vault SELECT i, 100 FROM generate_series(1, 10) AS i;";

const LOAD: &str = "\\set a random(1, 100)\n\\set b random(1, 100)\n\\set v random(1, 10)\n\\set x random(-5, 5)\n\\set n random(1, 4)\n
BEGIN;
UPDATE account SET balance = balance - :x WHERE id = :a;
INSERT INTO orders (lines) VALUES (:n);
INSERT INTO line SELECT currval('orders_id_seq') FROM generate_series(1, :n);
UPDATE vault SET balance = balance + :x WHERE id = :v;
SAVEPOINT s;
UPDATE vault SET balance = 0;
ROLLBACK TO s;
UPDATE account SET balance = balance - 1 WHERE id = :b;
UPDATE account SET balance = balance + 1 WHERE id = :a;
DELETE FROM line WHERE orders = currval('orders_id_seq') - 50;
DELETE FROM orders WHERE id = currval('orders_id_seq') - 50;
COMMIT;\n";

#[tokio::test(flavor = "multi_thread")]
async fn whenever_one_looks() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(SCHEMA)?;
    let mut load = Pgbench::new(&world.source, "app").clients(3).rate(300).script(LOAD).start(60)?;
    let crossfade = Crossfade::new(&world.plan().identity("public.line", "full"))?;
    let mut run = follow::following(&crossfade).await?;
    let target = world.target.client("app").await?;
    // One statement sees one snapshot.
    let look = "SELECT (SELECT sum(balance) FROM account)::int8 + (SELECT sum(balance) FROM vault)::int8,
                       (SELECT count(*) FROM orders o WHERE lines <> (SELECT count(*) FROM line l WHERE l.orders = o.id)),
                       (SELECT count(*) FROM line l WHERE NOT EXISTS (SELECT FROM orders o WHERE o.id = l.orders)),
                       (SELECT sum(transactions)::int8 FROM crossfade.checkpoint)";
    let (mut looks, mut states) = (0, std::collections::BTreeSet::new());
    let until_then = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until_then || states.len() < 20 {
        let row = target.query_one(look, &[]).await?;
        let (sum, short, orphans, at): (i64, i64, i64, i64) = (row.get(0), row.get(1), row.get(2), row.get(3));
        ensure!(
            (sum, short, orphans) == (11_000, 0, 0),
            "after {at} transactions: sum {sum}, {short} orders without all their lines, {orphans} lines without order"
        );
        looks += 1;
        states.insert(at);
        ensure!(load.is_running()?, "the load ended early");
    }
    eprintln!("looked {looks} times, saw {} states", states.len());
    load.stop()?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    world.expect_equal().await?;
    run.stop().await
}

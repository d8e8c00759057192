//! Derived tables: what one changed row costs over large mirrors, against small ones; and what a streamed table costs, against one that goes over as
//! it is.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use harness::{Cluster, Crossfade, Nats, Pgbench, PlanFile, Running, World, until};

use crate::{SCALE, say};

/// Rows of the mirror of orders; `BENCH_ROWS` says otherwise of the large one. There is a customer for ten of them.
const SMALL: u64 = 100_000;
const LARGE: u64 = 10_000_000;

/// Changes that are measured, each once the one before is there; and those before them, which meet what is cold.
const ROUNDS: i64 = 100;
const COLD: i64 = 20;

/// Between two looks at the target: the measure's resolution.
const LOOK: Duration = Duration::from_millis(1);

/// Seconds for which a backlog is written.
const BACKLOG: u32 = 20;

/// Longer than the copy of the large tables and the first filling may take.
const PATIENCE: Duration = Duration::from_secs(1800);

/// A maintained table: its name, what the plan says of it, its definition, and what of it a changed amount shows in.
const MAINTAINED: [(&str, &str, &str, &str); 3] = [
    (
        "join",
        "key = [\"id\"]\nsql = \"SELECT o.id, c.name, o.amount FROM shop.public.orders o JOIN shop.public.customer c ON c.id = o.customer\"",
        "id bigint PRIMARY KEY, name text, amount bigint",
        "SELECT amount FROM derived WHERE id = $1",
    ),
    (
        "GROUP BY",
        "key = [\"customer\"]\nsql = \"SELECT customer, count(*) AS orders, sum(amount)::bigint AS amount FROM shop.public.orders GROUP BY customer\"",
        "customer bigint PRIMARY KEY, orders bigint, amount bigint",
        "SELECT amount FROM derived WHERE customer = 1 + $1 % (SELECT max(customer) FROM derived)",
    ),
    (
        "window",
        "key = [\"id\"]\nrecompute_by = [\"customer\"]\nsql = \"\"\"SELECT id, customer, amount, rank() OVER (PARTITION BY customer ORDER BY amount DESC, id) AS place
            FROM shop.public.orders\"\"\"",
        "id bigint PRIMARY KEY, customer bigint, amount bigint, place bigint",
        "SELECT amount FROM derived WHERE id = $1",
    ),
];

/// Seconds from the commit of one changed row until it shows in the derived table.
pub struct Cost {
    /// Which table.
    pub of: &'static str,
    /// Over the large mirrors.
    pub large: Vec<f64>,
    /// Over the small ones.
    pub small: Vec<f64>,
    /// Peak of the memory, in MiB.
    pub rss: u64,
}

/// Measures the three of [`MAINTAINED`], on servers of their own.
pub async fn measure() -> Result<Vec<Cost>> {
    let large = match std::env::var("BENCH_ROWS") {
        Ok(text) => text.parse().context("BENCH_ROWS is a number")?,
        Err(_) => LARGE,
    };
    let (small, large) = (sources(SMALL)?, sources(large)?);
    let mut costs = Vec::new();
    for table in &MAINTAINED {
        let mut rss = 0;
        let small = one_row(&small, table, &mut rss).await?;
        let large = one_row(&large, table, &mut rss).await?;
        costs.push(Cost { of: table.0, large, small, rss });
    }
    Ok(costs)
}

/// Seconds of a streamed table and of the same one as it is, run by run.
#[derive(Default)]
pub struct Streamed {
    /// From the start until copy and tail are joined, with keys: streamed, and as it is.
    pub copy: [Vec<f64>; 2],
    /// Of a backlog: streamed, and as it is.
    pub drain: [Vec<f64>; 2],
    /// Peak of the memory, in MiB.
    pub rss: u64,
}

/// What the plan says, and how the table and its key are called at the target. The streamed one has a projection to work out: without any, and without a filter, its chunks go
/// straight into it.
const STREAMED: [(&str, &str, &str); 2] = [
    (
        "[[table]]\ninto = \"public.account\"\nkey = [\"id\"]\nsql = \"SELECT aid AS id, bid, abalance * 100 AS abalance, filler FROM shop.public.pgbench_accounts\"",
        "account",
        "id",
    ),
    ("", "pgbench_accounts", "aid"),
];

/// pgbench's accounts, streamed into a table and as they are, in turns.
pub async fn streamed(runs: usize) -> Result<Streamed> {
    let cluster = || Cluster::build().durable().set("shared_buffers", "256MB").start();
    let world = World::of(cluster()?, cluster()?, Some(Nats::start()?))?;
    say(&format!("a streamed table, and one as it is: pgbench, scale {SCALE}"));
    let load = Pgbench::new(&world.source, "app").clients(8).simple_update();
    load.fill(SCALE)?;
    let mut times = Streamed::default();
    for run in 0..runs {
        for turn in 0..2 {
            let which = (run + turn) % 2;
            let (section, table, key) = STREAMED[which];
            let ddl = format!("CREATE TABLE {table} ({key} int PRIMARY KEY, bid int, abalance int, filler char(84))");
            let mut migration = Migration::begin(&world, &ddl, &["public.pgbench_accounts"], "", section)?;
            times.copy[which].push(migration.filled(&world).await?);
            migration.stop().await?;
            load.start(BACKLOG)?.wait().await?;
            let end = format!("the end of {run}.{turn}");
            world.at_source(&format!("UPDATE pgbench_accounts SET filler = '{end}' WHERE aid = 1"))?;
            migration.start()?;
            let target = world.target.client("ours").await?;
            let there = format!("SELECT FROM {table} WHERE {key} = 1 AND filler LIKE '{end}%'");
            until("the backlog's end at the target", PATIENCE, || async { Ok(target.query_opt(&there, &[]).await?) })
                .await
                .map_err(|error| error.context(migration.running.log_tail()))?;
            times.drain[which].push(migration.begun.elapsed().as_secs_f64());
            times.rss = times.rss.max(migration.running.peak_rss_mib().unwrap_or_default());
            migration.end(&world).await?;
        }
        let last = |of: &Vec<f64>| of.last().copied().unwrap_or_default();
        say(&format!(
            "run {}: copy {:.2} s, as it is {:.2} s; drain {:.2} s, as it is {:.2} s",
            run + 1,
            last(&times.copy[0]),
            last(&times.copy[1]),
            last(&times.drain[0]),
            last(&times.drain[1])
        ));
    }
    Ok(times)
}

/// Servers with so many orders at the source.
fn sources(rows: u64) -> Result<World> {
    let cluster = || Cluster::build().durable().set("shared_buffers", "256MB").start();
    let world = World::of(cluster()?, cluster()?, Some(Nats::start()?))?;
    say(&format!("derived tables over {rows} rows"));
    let customers = (rows / 10).max(1);
    world.at_source(&format!(
        "CREATE TABLE customer (id bigint PRIMARY KEY, name text NOT NULL);
         CREATE TABLE orders (id bigint PRIMARY KEY, customer bigint NOT NULL, amount bigint NOT NULL);
         INSERT INTO customer SELECT i, 'name ' || i FROM generate_series(1, {customers}) i;
         INSERT INTO orders SELECT i, 1 + i % {customers}, i % 1000 FROM generate_series(1, {rows}) i;
         ANALYZE"
    ))?;
    Ok(world)
}

/// A migration into a database `ours` of the target.
struct Migration {
    crossfade: Crossfade,
    running: Running,
    begun: Instant,
}

impl Migration {
    /// Begins it; `ddl` makes the target's table, `top` and `section` are the plan's.
    fn begin(world: &World, ddl: &str, tables: &[&str], top: &str, section: &str) -> Result<Migration> {
        world.target.create_db("ours")?;
        world.target.psql("ours", ddl)?;
        let plan = PlanFile::new("shop", &world.source_url(), &world.target.url("ours")).target_exists().tables(tables);
        let log = world.nats.as_ref().map_or("embedded".into(), |nats| nats.url());
        let crossfade = Crossfade::new(&plan.log(&log).top(top).section(section))?;
        let begun = Instant::now();
        let mut running = crossfade.start(&["run"])?;
        running.hush();
        Ok(Migration { crossfade, running, begun })
    }

    /// Stops it; what is written meanwhile waits in the slot.
    async fn stop(&mut self) -> Result<()> {
        self.running.term()?;
        self.running.wait(PATIENCE).await.map(drop)
    }

    /// Goes on.
    fn start(&mut self) -> Result<()> {
        self.begun = Instant::now();
        self.running = self.crossfade.start(&["run"])?;
        self.running.hush();
        Ok(())
    }

    /// Waits until copy and tail are joined, and derived tables filled: seconds from the beginning.
    async fn filled(&self, world: &World) -> Result<f64> {
        let target = world.target.client("ours").await?;
        let there =
            "SELECT to_regclass('crossfade.checkpoint') IS NOT NULL AND to_regclass('crossfade.derived') IS NOT NULL";
        let sql = "SELECT bool_and(joined) AND NOT EXISTS (SELECT FROM crossfade.derived WHERE NOT filled) FROM crossfade.checkpoint";
        let filled = until("copy and tail joined, and derived tables filled", PATIENCE, || async {
            if !target.query_one(there, &[]).await?.get::<_, bool>(0) {
                return Ok(None);
            }
            Ok((target.query_one(sql, &[]).await?.get::<_, Option<bool>>(0) == Some(true)).then_some(()))
        });
        filled.await.map_err(|error| error.context(self.running.log_tail()))?;
        Ok(self.begun.elapsed().as_secs_f64())
    }

    /// Ends it and drops the database.
    async fn end(mut self, world: &World) -> Result<()> {
        self.running.stop().await?;
        let done = self.crossfade.run(&["complete", "--yes"]).await?;
        ensure!(done.status.success(), "complete: {done:?}");
        world.target.psql("postgres", "DROP DATABASE ours WITH (FORCE)").map(drop)
    }
}

async fn one_row(world: &World, table: &(&str, &str, &str, &str), rss: &mut u64) -> Result<Vec<f64>> {
    let (of, says, columns, shows) = table;
    let top = if *of == "join" { "" } else { "ignore = [\"public.customer\"]" };
    let section = format!("[[table]]\ninto = \"public.derived\"\n{says}");
    let migration =
        Migration::begin(world, &format!("CREATE TABLE derived ({columns})"), &["public.*"], top, &section)?;
    let took = migration.filled(world).await?;
    let (source, target) = (world.source.client("app").await?, world.target.client("ours").await?);
    let rows: i64 = source.query_one("SELECT max(id) FROM orders", &[]).await?.get(0);
    say(&format!("{of}, {rows} rows: copied, joined and filled after {took:.1} s"));
    let change = source.prepare("UPDATE orders SET amount = amount + 1 WHERE id = $1").await?;
    let shows = target.prepare(shows).await?;
    let mut times = Vec::new();
    for round in 0..COLD + ROUNDS {
        // Far from each other.
        let id = 1 + (round * 7_919_999) % rows;
        let before: i64 = target.query_one(&shows, &[&id]).await?.get(0);
        let at = Instant::now();
        source.execute(&change, &[&id]).await?;
        while target.query_one(&shows, &[&id]).await?.get::<_, i64>(0) == before {
            ensure!(at.elapsed() < PATIENCE, "a change has not arrived\n{}", migration.running.log_tail());
            tokio::time::sleep(LOOK).await;
        }
        if round >= COLD {
            times.push(at.elapsed().as_secs_f64());
        }
    }
    *rss = (*rss).max(migration.running.peak_rss_mib().unwrap_or_default());
    migration.end(world).await?;
    Ok(times)
}

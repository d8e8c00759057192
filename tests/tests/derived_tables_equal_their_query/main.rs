//! Given tables of the target that queries over source tables give (joins, groups, a window, EXISTS, one that is streamed), and an application that writes:
//! when it rests, then each of them holds what its query gives at the source, run in full, whoever was killed meanwhile.

mod shop;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crossfade_tests::{Crossfade, Running, World, follow, until};
use model::failpoint;
use serde_json::json;
use shop::Application;

const MINUTE: Duration = Duration::from_secs(60);

/// Waits until the target has all of it, and compares.
async fn ends_equal(world: &World, crossfade: &Crossfade, run: &mut Running) -> Result<()> {
    crossfade.wait_for_lag_zero(run, MINUTE).await?;
    shop::expect_equal(world).await
}

fn seed() -> Result<u64> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos() as u64;
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(now);
    eprintln!("SEED={seed}");
    Ok(seed)
}

/// The copy, the tail by single transactions and by many, tables emptied, a transaction that is not held whole.
async fn after_everything(world: World) -> Result<()> {
    let seed = seed()?;
    let plan = shop::plan(&world)?;
    let crossfade = Crossfade::new(&plan)?;
    let mut application = Application::new(&world.source, seed).await?;
    let (run, written) = tokio::join!(follow::following(&crossfade), application.write(60));
    written?;
    let mut run = run?;
    ends_equal(&world, &crossfade, &mut run).await.context("while it was copied")?;
    shop::expect_nothing_stored(&world, &UNSTORED).await?;
    application.write(150).await?;
    ends_equal(&world, &crossfade, &mut run).await.context("after transactions")?;
    world.at_source("BEGIN; TRUNCATE event, visit_early; INSERT INTO event VALUES (1, 'w1'), (1, 'w1'); INSERT INTO orders VALUES (900, 7, 'new', 1, 1); COMMIT")?;
    ends_equal(&world, &crossfade, &mut run).await.context("after a TRUNCATE")?;
    for sql in shop::DIRECTED {
        world.at_source(sql)?;
    }
    ends_equal(&world, &crossfade, &mut run).await.context("after directed transactions")?;
    world.at_source(LARGE)?;
    ends_equal(&world, &crossfade, &mut run).await.context("after a large transaction")?;
    run.stop().await?;
    application.write(60).await?;
    let mut run = crossfade.start(&["run"])?;
    application.write(20).await?;
    ends_equal(&world, &crossfade, &mut run).await.context("after a restart")?;
    shop::expect_nothing_stored(&world, &UNSTORED).await?;
    run.stop().await
}

/// All that reads them is streamed.
const UNSTORED: [&str; 3] = ["account", "ledger", "price"];

/// More than a 32nd of the memory budget.
const LARGE: &str = "BEGIN;
    INSERT INTO orders SELECT 10000 + i, i % 45, repeat('s', 60), i % 100, i % 9 FROM generate_series(1, 25000) AS i;
    UPDATE customer SET city = 'large';
    DELETE FROM orders WHERE id > 10000 AND id % 10 <> 0;
    INSERT INTO account SELECT 10000 + i, 'l', i || '@secret', repeat(md5(i::text), 70), NULL, i FROM generate_series(1, 3000) AS i;
    UPDATE account SET points = points + 1;
    UPDATE account SET id = id + 20000 WHERE id > 12500;
    DELETE FROM account WHERE id BETWEEN 10000 AND 12000;
    COMMIT";

#[tokio::test(flavor = "multi_thread")]
async fn after_everything_over_nats() -> Result<()> {
    after_everything(World::with_nats()?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn after_everything_with_the_embedded_log() -> Result<()> {
    after_everything(World::embedded()?).await
}

/// Differences that somebody plants at the target, each with the statement that takes it away again, and what a comparison calls it.
const PLANTED: [(&str, &str, &str, &str); 5] = [
    (
        "UPDATE masked SET owner = 'x' || owner WHERE nr = (SELECT min(nr) FROM masked WHERE owner IS NOT NULL)",
        "UPDATE masked SET owner = substr(owner, 2) WHERE nr = (SELECT min(nr) FROM masked WHERE owner IS NOT NULL)",
        "masked",
        "different",
    ),
    (
        "UPDATE total SET amount = amount + 1 WHERE customer_id = 5",
        "UPDATE total SET amount = amount - 1 WHERE customer_id = 5",
        "total",
        "different",
    ),
    (
        "CREATE TABLE kept AS SELECT * FROM line WHERE order_id = 7; DELETE FROM line WHERE order_id = 7",
        "INSERT INTO line SELECT * FROM kept; DROP TABLE kept",
        "line",
        "missing",
    ),
    (
        "INSERT INTO told SELECT * FROM told WHERE customer_id = 4",
        "DELETE FROM told a WHERE ctid = (SELECT max(ctid) FROM told b WHERE b.customer_id = 4 AND b.what = a.what) AND customer_id = 4",
        "told",
        "extra",
    ),
    ("INSERT INTO idle VALUES (77777)", "DELETE FROM idle WHERE id = 77777", "idle", "extra"),
];

/// A table whose query calls what only the target has.
const SPOKEN: (&str, &str, &str) =
    ("spoken", "key = [\"id\"]", "SELECT id, public.loud(v) AS v FROM shop.public.label");

const LOUD: &str = "CREATE FUNCTION loud(text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT upper($1)';
    CREATE TABLE spoken (id int PRIMARY KEY, v text)";

/// In a mirror and in what is made of it, as if both were wrong together.
fn in_both(mirror: &str, by: i32) -> String {
    format!(
        "WITH o AS (UPDATE {mirror} SET amount = amount + {by}
                     WHERE id = (SELECT min(m.id) FROM {mirror} m JOIN total t USING (customer_id) WHERE m.amount IS NOT NULL) RETURNING customer_id)
         UPDATE total SET amount = amount + {by} WHERE customer_id = (SELECT customer_id FROM o)"
    )
}

/// The verdict on a table that is compared by itself, and where its query was asked.
async fn alone(crossfade: &Crossfade, table: &str) -> Result<(String, String)> {
    let (report, _) = crossfade.says(&["verify", "--table", table]).await?;
    let text = |key: &str| report["tables"][0][key].as_str().map(str::to_owned).with_context(|| format!("{report:#}"));
    Ok((text("verdict")?, text("query")?))
}

/// And how it comes to its end: what others wrote is found, a cutover leads over, and nothing of crossfade is left.
#[tokio::test(flavor = "multi_thread")]
async fn and_it_is_compared_cut_over_and_completed() -> Result<()> {
    let world = World::with_nats()?;
    let plan = shop::plan(&world)?.section(&shop::section(&SPOKEN));
    world.at_target(LOUD)?;
    let crossfade = Crossfade::new(&plan)?;
    let mut run = follow::following(&crossfade).await?;
    Application::new(&world.source, seed()?).await?.write(30).await?;
    world.at_source("INSERT INTO event VALUES (4, 'w0'), (4, 'w1'); INSERT INTO customer (id) VALUES (5) ON CONFLICT (id) DO NOTHING;
        INSERT INTO orders VALUES (7, 5, 's', 1, 1) ON CONFLICT DO NOTHING; INSERT INTO item VALUES (7, 0) ON CONFLICT DO NOTHING")?;
    ends_equal(&world, &crossfade, &mut run).await?;
    let (refused, code) = crossfade.says(&["cutover", "--no-way-back"]).await?;
    ensure!(
        code == Some(1) && refused["refused"].to_string().contains("public.total was never compared"),
        "{refused:#}"
    );
    crossfade.verified().await?;
    for (plant, mend, table, kind) in PLANTED {
        world.at_target(plant)?;
        let (report, code) = crossfade.says(&["verify"]).await?;
        let all = report["tables"].as_array().context("tables")?;
        let different: Vec<&str> = all
            .iter()
            .filter(|table| table["verdict"] != "equal")
            .filter_map(|table| table["table"].as_str())
            .collect();
        ensure!(code == Some(1) && different == [format!("public.{table}")], "{plant}: {report:#}");
        let found = all.iter().find(|found| found["verdict"] != "equal").context("a difference")?;
        ensure!(found["samples"][0]["kind"] == kind, "{plant}: {found:#}");
        let told = &crossfade.status().await?["verify"]["not_equal"];
        let expected =
            json!([{ "source": "", "table": format!("public.{table}"), "verdict": "different", "why": null }]);
        ensure!(*told == expected, "{plant}: status says {told:#}");
        world.at_target(mend)?;
    }
    // The mirror was found to be equal a moment ago: only the query at the source can see it.
    let mirror = "SELECT format('%I.%I', into_schema, into_name) FROM crossfade.tables WHERE name = 'orders'";
    let mirror = world.at_target(mirror)?;
    for (by, verdict) in [(1, "different"), (-1, "equal")] {
        world.at_target(&in_both(&mirror, by))?;
        let found = alone(&crossfade, "public.total").await?;
        ensure!(found == (verdict.to_owned(), "on source shop".to_owned()), "{by}: {found:?}");
    }
    crossfade.verified().await?;
    let (verdict, query) = alone(&crossfade, "public.spoken").await?;
    ensure!(verdict == "equal" && query.contains("public.loud"), "{verdict}: {query}");
    // Apply knows the plan that it was started with.
    let text = std::fs::read_to_string(crossfade.plan())?;
    std::fs::write(crossfade.plan(), text.replace("coalesce(sum(o.amount), 0)", "coalesce(sum(o.amount) * 2, 0)"))?;
    let (refused, code) = crossfade.says(&["cutover", "--no-way-back"]).await?;
    ensure!(
        code == Some(1) && refused["refused"].to_string().contains("public.total is not filled: the plan declares it"),
        "{refused:#}"
    );
    let status = crossfade.status().await?;
    ensure!(status["phase"] == "joining", "it is not filled as the plan declares it: {status:#}");
    std::fs::write(crossfade.plan(), text)?;
    let (refused, code) = crossfade.says(&["cutover"]).await?;
    ensure!(code == Some(1) && refused["refused"][0]["code"] == "no_way_back", "{refused:#}");
    let (report, code) = crossfade.says(&["cutover", "--no-way-back"]).await?;
    ensure!(code == Some(0) && report["outcome"] == "committed", "{report:#}");
    shop::expect_equal(&world).await?;
    // Its number is behind those that the query gave.
    world.target.psql("app", "INSERT INTO card (name, vip) VALUES ('NEW', true)")?;
    ensure!(world.at_source("INSERT INTO orders VALUES (4000, 1, 's', 1, 1)").is_err(), "the source takes writes");
    run.stop().await?;
    let indexes = "SELECT count(*) FROM pg_class WHERE relkind = 'i' AND relname LIKE 'crossfade_derived_%' AND relnamespace = 'public'::regnamespace";
    let indexes: usize = world.at_target(indexes)?.parse()?;
    let (done, code) = crossfade.says(&["complete", "--yes"]).await?;
    let told = done["found"].to_string().matches("index public.crossfade_derived_").count();
    ensure!(code == Some(0) && indexes > 0 && told == indexes, "{indexes}: {done:#}");
    let left = "SELECT (SELECT count(*) FROM pg_namespace WHERE nspname = 'crossfade') + (SELECT count(*) FROM pg_class WHERE relname LIKE 'crossfade%')
                     + (SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'crossfade%') + (SELECT count(*) FROM pg_replication_origin)";
    ensure!(world.at_target(left)? == "0", "something is left at the target");
    shop::expect_equal_but(&world, "card").await
}

/// Tables that queries read are copied again while the application writes, one row of a mirror is put right, and the log is replayed into another database.
#[tokio::test(flavor = "multi_thread")]
async fn after_mirrors_were_copied_again_and_in_a_rehearsal() -> Result<()> {
    let world = World::with_nats()?;
    let crossfade = Crossfade::new(&shop::plan(&world)?)?;
    let mut run = follow::following(&crossfade).await?;
    let mut application = Application::new(&world.source, seed()?).await?;
    let epochs = "SELECT sum(abs(epoch)) FROM crossfade.tables";
    for tables in [["public.orders"].as_slice(), &["public.account", "public.label", "public.visit_late"], &[]] {
        let before = world.at_target(epochs)?;
        let asked = crossfade.run(&[["recopy", "--json"].as_slice(), tables].concat()).await?;
        ensure!(asked.status.success(), "{asked:?}");
        application.write(40).await?;
        until("the copy to be made again", MINUTE, || async {
            Ok((world.at_target(epochs)? != before && world.at_target(JOINED)? == "t").then_some(()))
        })
        .await?;
        ends_equal(&world, &crossfade, &mut run).await.with_context(|| format!("{tables:?} copied again"))?;
    }
    let mirror = "crossfade.\"mirror shop.public.customer\"";
    world.at_target(&format!("UPDATE {mirror} SET city = 'wrong' WHERE id = (SELECT min(id) FROM {mirror})"))?;
    let found = crossfade.run(&["verify"]).await?;
    ensure!(found.status.code() == Some(1), "{found:?}");
    let file = found.stdout.lines().find_map(|line| line.strip_prefix("the rows that differ: "));
    let file = file.with_context(|| found.stdout.clone())?;
    let mended = crossfade.run(&["recopy", "--rows", file, "--json"]).await?;
    ensure!(mended.status.success(), "{mended:?}");
    ends_equal(&world, &crossfade, &mut run).await.context("a row put right")?;
    run.stop().await?;
    // A query that reads what the table did not have when it was copied first: whoever comes by that copy in the log has nothing to do with it.
    world.at_source("ALTER TABLE account ADD COLUMN grade int NOT NULL DEFAULT 1")?;
    let asked = crossfade.run(&["recopy", "--json", "public.account"]).await?;
    ensure!(asked.status.success(), "{asked:?}");
    let (before, text) = (world.at_target(epochs)?, std::fs::read_to_string(crossfade.plan())?);
    let graded = text.replace("SELECT id, points FROM shop", "SELECT id, points + grade AS points FROM shop");
    ensure!(graded != text, "the same");
    std::fs::write(crossfade.plan(), graded)?;
    let mut run = crossfade.start(&["run"])?;
    until("the copy with the new column", MINUTE, || async {
        Ok((world.at_target(epochs)? != before && world.at_target(JOINED)? == "t").then_some(()))
    })
    .await?;
    application.write(20).await?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    let want = world.at_source("SELECT sum(points + grade), count(*) FROM account WHERE points % 2 = 0")?;
    ensure!(world.at_target("SELECT sum(points), count(*) FROM even")? == want, "not {want}");
    shop::expect_equal_but(&world, "even").await?;
    crossfade.verified().await?;
    world.target.create_db("again")?;
    world.target.psql("again", shop::TARGET)?;
    let into = world.target.url("again");
    let rehearsed = crossfade.start(&["rehearse", "--json", "--into", &into])?.finish(2 * MINUTE).await?;
    let report = rehearsed.json()?;
    let all = report["tables"].as_array().context("tables")?;
    let equal = |name: &str| all.iter().any(|table| table["table"] == name && table["verdict"] == "equal");
    ensure!(rehearsed.status.success() && equal("public.card") && equal("public.even"), "{report:#}");
    run.stop().await
}

/// What is streamed without a mirror is of its source table's copy: a plan that says something else wants another copy, and says so.
#[tokio::test(flavor = "multi_thread")]
async fn after_another_declaration_of_what_is_streamed() -> Result<()> {
    let world = World::with_nats()?;
    let crossfade = Crossfade::new(&shop::plan(&world)?)?;
    world.at_target("CREATE TABLE points (owner text PRIMARY KEY, n bigint)")?;
    world.at_target(LOUD)?;
    let mut run = follow::following(&crossfade).await?;
    let mut application = Application::new(&world.source, seed()?).await?;
    application.write(20).await?;
    ends_equal(&world, &crossfade, &mut run).await?;
    run.stop().await?;
    let text = std::fs::read_to_string(crossfade.plan())?;
    let say = |text: &str| std::fs::write(crossfade.plan(), text);
    // Masked in another way.
    let salted = text.replace("md5(email) AS email", "md5(email || 'salt') AS email");
    ensure!(salted != text, "the same");
    say(&salted)?;
    let mut run = refused_until_copied_again(&crossfade, "the plan declared it another way", "account").await?;
    application.write(10).await?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    let want = world.at_source("SELECT string_agg(md5(email || 'salt'), ',' ORDER BY id) FROM account")?;
    let have = world.at_target("SELECT string_agg(email, ',' ORDER BY nr) FROM masked")?;
    ensure!(want == have, "masked in the old way");
    run.stop().await?;
    // A group over them needs a mirror; without it, nobody does.
    let counted = shop::section(&(
        "points",
        "key = [\"owner\"]",
        "SELECT owner, sum(points) AS n FROM shop.public.account WHERE owner IS NOT NULL GROUP BY owner",
    ));
    say(&format!("{text}\n{counted}"))?;
    let mut run =
        refused_until_copied_again(&crossfade, "now it needs a mirror: public.points is maintained", "account").await?;
    application.write(10).await?;
    ends_equal(&world, &crossfade, &mut run).await.context("with a mirror")?;
    let sum = "SELECT sum(points) FROM account WHERE owner IS NOT NULL";
    ensure!(world.at_source(sum)? == world.at_target("SELECT sum(n) FROM points")?, "points differ");
    ensure!(world.at_target(MIRRORED)? == "t", "no mirror");
    run.stop().await?;
    say(&text)?;
    let mut run = crossfade.start(&["run"])?;
    application.write(10).await?;
    ends_equal(&world, &crossfade, &mut run).await.context("with a mirror that nobody needs")?;
    let asked = crossfade.run(&["recopy", "--json", "public.account"]).await?;
    ensure!(asked.status.success(), "{asked:?}");
    until("the mirror to be gone", MINUTE, || async {
        Ok((world.at_target(MIRRORED)? == "f" && world.at_target(JOINED)? == "t").then_some(()))
    })
    .await?;
    application.write(10).await?;
    ends_equal(&world, &crossfade, &mut run).await.context("without a mirror again")?;
    shop::expect_nothing_stored(&world, &UNSTORED).await?;
    run.stop().await?;
    // What only the target can say is compared with nothing.
    let spoken =
        shop::section(&("spoken", "key = [\"id\"]", "SELECT id, public.loud(owner) AS v FROM shop.public.account"));
    say(&format!("{text}\n{spoken}"))?;
    let mut run = refused_until_copied_again(&crossfade, "the plan did not have it", "account").await?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    let (report, code) = crossfade.says(&["verify", "--table", "public.spoken"]).await?;
    let table = &report["tables"][0];
    let why = table["why"].as_str().unwrap_or_default();
    ensure!(code == Some(1) && table["verdict"] == "inconclusive", "{report:#}");
    ensure!(why.contains("public.loud") && why.contains("nothing else is stored"), "{why}");
    run.stop().await
}

const MIRRORED: &str = "SELECT to_regclass('crossfade.\"mirror shop.public.account\"') IS NOT NULL";

/// A start is refused, for this reason and with the table that is to be copied; then it is, and all is there.
async fn refused_until_copied_again(crossfade: &Crossfade, why: &str, table: &str) -> Result<Running> {
    let refused = crossfade.start(&["run"])?.finish(MINUTE).await?;
    let said = format!("{}{}", refused.stdout, refused.stderr);
    ensure!(!refused.status.success() && said.contains(why), "{said}");
    ensure!(said.contains(&format!("crossfade recopy public.{table}")), "{said}");
    let asked = crossfade.run(&["recopy", "--json", &format!("public.{table}")]).await?;
    ensure!(asked.status.success(), "{asked:?}");
    let mut run = crossfade.start(&["run"])?;
    crossfade.wait_for_phase(&mut run, "following", MINUTE).await?;
    Ok(run)
}

/// Nothing is to be copied, copy and tail are joined, and what the plan has is filled.
const JOINED: &str = "SELECT bool_and(joined AND asked IS NULL) AND NOT EXISTS (SELECT FROM crossfade.tables WHERE epoch <= 0 OR next_epoch IS NOT NULL)
      AND NOT EXISTS (SELECT FROM crossfade.derived WHERE NOT filled AND declared <> '') FROM crossfade.checkpoint";

/// What brings a process there that follows, or is about to.
fn provoked(point: &str) -> &'static str {
    match point {
        "derived_undone" => shop::TURNED,
        "made_whole" => "TRUNCATE event; INSERT INTO event VALUES (1, 'w1'), (1, 'w1')",
        "streamed_written" | "streamed_emptied" => "UPDATE account SET points = points + 1",
        "streamed_undone" => shop::TURNED_ACCOUNTS,
        _ => "UPDATE orders SET customer_id = customer_id % 40 + 1 WHERE id % 3 = 0",
    }
}

/// Each of them is walked, in the order in which a migration comes by, and then it is killed anywhere.
async fn killed(world: World) -> Result<()> {
    let seed = seed()?;
    let plan = shop::plan(&world)?;
    let mut crossfade = Crossfade::new(&plan)?;
    let mut application = Application::new(&world.source, seed).await?;
    for (point, _) in failpoint::DERIVED {
        if *point == "declaration_noted" {
            continue;
        }
        // What the application turned, turned again in the same batch, is as it was.
        if !point.ends_with("_undone") {
            application.write(8).await?;
        }
        if *point == "streamed_emptied" {
            let asked = crossfade.run(&["recopy", "--json", "public.account"]).await?;
            ensure!(asked.status.success(), "{asked:?}");
        }
        world.at_source(provoked(point))?;
        let run = crossfade.start_armed(&["run"], point, 0)?;
        // Once it is filled, only another declaration lets it be filled again.
        run.died_at(point, MINUTE).await.with_context(|| (*point).to_owned())?;
        if matches!(*point, "mirror_created" | "derived_filled") {
            continue;
        }
        let mut run = crossfade.start(&["run"])?;
        if *point == "streamed_emptied" {
            until("the copy to be made again", MINUTE, || async {
                Ok((world.at_target(JOINED)? == "t").then_some(()))
            })
            .await?;
        }
        ends_equal(&world, &crossfade, &mut run).await.with_context(|| format!("killed at {point}"))?;
        run.hush();
        run.kill9()?;
    }
    for round in 0..3 {
        let mut run = crossfade.start(&["run"])?;
        application.write(10).await?;
        crossfade.wait_for_phase(&mut run, "following", MINUTE).await?;
        application.write(10 + 7 * round).await?;
        run.hush();
        run.kill9()?;
        let mut run = crossfade.start(&["run"])?;
        ends_equal(&world, &crossfade, &mut run).await.with_context(|| format!("killed anywhere, round {round}"))?;
        run.hush();
        run.kill9()?;
    }
    // A declaration that says something else, and one that is gone.
    let (name, says, sql) = shop::DERIVED[1];
    let other = sql.replace("coalesce(sum(o.amount), 0)", "coalesce(sum(o.amount) * 2, 0)");
    ensure!(other != sql, "the same");
    let text = std::fs::read_to_string(crossfade.plan())?;
    let section = shop::section(&(name, says, sql));
    ensure!(text.contains(&section), "{text}");
    crossfade = {
        std::fs::write(crossfade.plan(), text.replace(&section, &shop::section(&(name, says, &other))))?;
        crossfade
    };
    crossfade.start_armed(&["run"], "declaration_noted", 0)?.died_at("declaration_noted", MINUTE).await?;
    let mut run = crossfade.start(&["run"])?;
    application.write(5).await?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    let doubled = world.at_source("SELECT sum(o.amount) * 2 FROM orders o JOIN customer c ON c.id = o.customer_id")?;
    let have = world.at_target("SELECT sum(amount) FROM total")?;
    ensure!(have == doubled, "{have} is not {doubled}");
    run.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_over_nats() -> Result<()> {
    killed(World::with_nats()?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_with_the_embedded_log() -> Result<()> {
    killed(World::embedded()?).await
}

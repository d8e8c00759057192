//! Given a plan with tables that are queries: `explain` shows how each of them is kept current, or all that is wrong with them, where it stands in the plan.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crossfade_tests::{Crossfade, Finished, PlanFile, World};
use serde_json::Value;

const MINUTE: Duration = Duration::from_secs(60);

const SOURCE: &str = "
CREATE TABLE customer (id integer PRIMARY KEY, name text NOT NULL, email text, country text NOT NULL);
CREATE TABLE orders (id integer PRIMARY KEY, customer_id integer NOT NULL, total numeric NOT NULL, made_at timestamptz NOT NULL DEFAULT '2026-01-01');
CREATE TABLE country (code text PRIMARY KEY, name text NOT NULL);
CREATE TABLE tmp_1 (id integer);
INSERT INTO country VALUES ('ch', 'Switzerland'), ('jp', 'Japan');
INSERT INTO customer SELECT i, 'customer ' || i, 'c' || i || '@example.com', CASE i % 2 WHEN 0 THEN 'ch' ELSE 'jp' END FROM generate_series(1, 2000) i;
INSERT INTO orders SELECT i, i % 2000 + 1, i % 97 FROM generate_series(1, 5000) i;";

const TARGET: &str = "
CREATE SCHEMA sales;
CREATE TABLE country (code text PRIMARY KEY, name text NOT NULL);
CREATE TABLE sales.person (id integer PRIMARY KEY, name text NOT NULL, email text);
CREATE TABLE sales.total (customer_id integer PRIMARY KEY, name text NOT NULL, orders bigint NOT NULL, total numeric);
CREATE TABLE sales.share (id integer PRIMARY KEY, of_all numeric);";

const TABLES: &str = r#"
[[table]]
into = "sales.person"
key = ["id"]
sql = "SELECT id, name, lower(email) AS email FROM shop.public.customer"

[[table]]
into = "sales.total"
key = ["customer_id"]
sql = """
SELECT c.id AS customer_id, c.name, count(o.id) AS orders, sum(o.total) AS total
  FROM shop.public.customer c LEFT JOIN shop.public.orders o ON o.customer_id = c.id
 GROUP BY c.id, c.name"""

[[table]]
into = "sales.share"
key = ["id"]
sql = "SELECT o.id, o.total / (SELECT sum(total) FROM shop.public.orders) AS of_all FROM shop.public.orders o"
"#;

const TOP: &str = "mirror = [\"public.country\"]\nignore = [\"public.tmp_*\"]";

fn world() -> Result<World> {
    let world = World::embedded()?;
    world.at_source(SOURCE)?;
    world.at_target(TARGET)?;
    Ok(world)
}

fn plan(world: &World) -> PlanFile {
    world.plan().target_exists().top(TOP)
}

async fn explained(crossfade: &Crossfade, code: i32) -> Result<Value> {
    let finished = crossfade.run(&["explain", "--json"]).await?;
    exit(&finished, code)?;
    finished.json()
}

fn exit(finished: &Finished, code: i32) -> Result<()> {
    ensure!(finished.status.code() == Some(code), "exit code {code} expected: {finished:?}");
    Ok(())
}

/// The entry of a table.
fn of<'a>(document: &'a Value, into: &str) -> Result<&'a Value> {
    let tables = document["tables"].as_array().context("no tables")?;
    tables.iter().find(|table| table["into"] == into).with_context(|| format!("{into} in {document:#}"))
}

/// The statements that read a table whole.
fn scans(table: &Value) -> Vec<&Value> {
    let statements = table["statements"].as_array().map(Vec::as_slice).unwrap_or_default();
    statements.iter().filter(|one| one["reads_whole"].as_array().is_some_and(|whole| !whole.is_empty())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn way_reason_statements_and_scans_of_each_table() -> Result<()> {
    let world = world()?;
    let crossfade = Crossfade::new(&plan(&world).section(TABLES))?;
    let document = explained(&crossfade, 0).await?;
    let (person, total) = (of(&document, "sales.person")?, of(&document, "sales.total")?);
    ensure!(person["way"] == "streamed" && total["way"] == "maintained", "{document:#}");
    ensure!(total["sources"] == serde_json::json!(["shop.public.customer", "shop.public.orders"]), "{total:#}");
    ensure!(total["reason"].as_str().is_some_and(|reason| reason.contains("join")), "{total:#}");
    ensure!(total["planned"] == false && total["missing"].as_array().is_some_and(|it| it.len() == 2), "{total:#}");
    let why = person["mirrors"][0]["why"].as_str().unwrap_or_default();
    ensure!(why == "sales.total is maintained: it has a join", "{person:#}");
    let untouched = world.at_target("SELECT count(*) FROM pg_namespace WHERE nspname = 'crossfade'")?;
    ensure!(untouched == "0", "explain has changed the target");

    let mut run = crossfade.start(&["run"])?;
    crossfade.wait_for_phase(&mut run, "following", MINUTE).await?;
    let document = explained(&crossfade, 0).await?;
    let (total, share) = (of(&document, "sales.total")?, of(&document, "sales.share")?);
    ensure!(total["planned"] == true, "{total:#}");
    ensure!(scans(total).is_empty(), "with its indexes nothing is read whole: {:#?}", scans(total));
    // What depends on all rows reads all rows, and that is said.
    let said = scans(share).iter().any(|one| one.to_string().contains("shop.public.orders"));
    ensure!(said, "the sum over all orders is not told: {share:#}");
    let guard = |one: &Value| one["guard"].as_str().is_some_and(|guard| guard.contains("sum"));
    ensure!(share["derivations"].as_array().is_some_and(|all| all.iter().any(guard)), "{share:#}");
    let text = crossfade.run(&["explain"]).await?;
    exit(&text, 0)?;
    for part in
        ["maintained", "every statement finds its rows by an index", "is read whole", "-- find the units of old rows"]
    {
        ensure!(text.stdout.contains(part), "{part:?} expected: {}", text.stdout);
    }
    // Without its index a join is a scan, and not a silent one.
    let drop = "SELECT format('DROP INDEX %s', indexrelid::regclass) FROM pg_index
                 WHERE indrelid = to_regclass('crossfade.\"mirror shop.public.orders\"') AND NOT indisprimary";
    for statement in world.at_target(drop)?.lines() {
        world.at_target(statement)?;
    }
    let document = explained(&crossfade, 0).await?;
    let whole = scans(of(&document, "sales.total")?).len();
    ensure!(whole > 0, "without an index on orders.customer_id all orders are read: {document:#}");
    run.stop().await
}

/// Read by streamed tables alone, a source table has no mirror: that is said, with the statements that run, before there is a copy and behind it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_streamed_alone_stores_nothing_besides() -> Result<()> {
    let world = world()?;
    let table = |more: &str| {
        format!(
            "[[table]]\ninto = \"sales.person\"\nkey = [\"id\"]\n{more}\nsql = \"SELECT id, name, md5(email) AS email FROM shop.public.customer\""
        )
    };
    let ignore = "ignore = [\"public.tmp_*\", \"public.orders\", \"public.country\"]";
    let plan = |more: &str| world.plan().target_exists().top(ignore).section(&table(more));
    for (says, identity, why) in [
        ("when_missing = \"keep\"", "FULL", "sales.person keeps rows that its query no longer gives (`when_missing`)"),
        (
            "on_conflict = { name = \"keep\" }",
            "DEFAULT",
            "column name of sales.person depends on what was there before (`on_conflict`)",
        ),
    ] {
        world.at_source(&format!("ALTER TABLE public.customer REPLICA IDENTITY {identity}"))?;
        let document = explained(&Crossfade::new(&plan(says))?, 0).await?;
        let person = of(&document, "sales.person")?;
        ensure!(person["way"] == "streamed" && person["mirrors"][0]["why"] == why, "{person:#}");
    }
    let masked = "[[table]]\nfrom = \"shop.public.customer\"\ninto = \"sales.person\"\ncolumns = [\"id\", \"name\", \"email\"]\nmask = { email = \"md5(email)\" }";
    for (says, mirrors) in [("", 0), ("mask_in = \"rehearsals\"", 1)] {
        let plan = world.plan().target_exists().top(ignore).section(&format!("{masked}\n{says}"));
        let document = explained(&Crossfade::new(&plan)?, 0).await?;
        let person = of(&document, "sales.person")?;
        let why = person["mirrors"].as_array().context("mirrors")?;
        ensure!(why.len() == mirrors && why.iter().all(|one| one.to_string().contains("`mask_in`")), "{person:#}");
    }
    let crossfade = Crossfade::new(&plan(""))?;
    let text = crossfade.run(&["explain"]).await?;
    exit(&text, 0)?;
    let says = |part: &str| ensure_part(&text.stdout, part);
    says("stores     nothing besides these rows")?;
    says("every statement finds its rows by an index")?;
    says("-- take away rows that are gone in shop.public.customer")?;
    says("UPDATE \"sales\".\"person\" AS t SET \"name\" = q.\"name\", \"email\" = q.\"email\"")?;
    let mut run = crossfade.start(&["run"])?;
    crossfade.wait_for_phase(&mut run, "following", MINUTE).await?;
    let again = crossfade.run(&["explain"]).await?;
    ensure!(again.stdout == text.stdout, "{}", again.stdout);
    let emails = |table: &str| format!("SELECT string_agg({table}, ' ' ORDER BY id)");
    let want = world.at_source(&format!("{} FROM public.customer", emails("md5(email)")))?;
    ensure!(world.at_target(&format!("{} FROM sales.person", emails("email")))? == want, "masked emails differ");
    run.stop().await
}

fn ensure_part(text: &str, part: &str) -> Result<()> {
    ensure!(text.contains(part), "{part:?} expected: {text}");
    Ok(())
}

/// Line and character of `part` in the plan, as `explain` tells them.
fn place(crossfade: &Crossfade, part: &str) -> Result<String> {
    let text = std::fs::read_to_string(crossfade.plan())?;
    let at = text.find(part).with_context(|| format!("{part} in {text}"))?;
    let before = &text[..at];
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    Ok(format!("{}:{}:{column} ", crossfade.plan().display(), before.matches('\n').count() + 1))
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_is_wrong_with_its_place_in_the_plan() -> Result<()> {
    let world = world()?;
    let wrong = r#"
[[table]]
into = "sales.person"
key = ["id"]
sql = """
SELECT id, namen AS name, email
  FROM shop.public.customer"""

[[table]]
into = "sales.total"
key = ["customer_id"]
sql = "SELECT o.customer_id, o.customer_id::text || \"name\" AS name, 1::bigint AS orders, random()::numeric AS total FROM shop.public.orders o"

[[table]]
into = "sales.share"
key = ["id"]
sql = 'SELECT id, made_at AS of_all FROM shop.public.orders'

[[table]]
into = "sales.none"
key = ["id"]
sql = 'SELECT id FROM shop.public.tmp_1'
"#;
    // A result that only Postgres can refuse.
    world.at_target("CREATE TABLE sales.first (id integer PRIMARY KEY, at date, name text); CREATE TABLE sales.made (id integer PRIMARY KEY, total numeric)")?;
    let postgres = r#"
[[table]]
into = "sales.first"
key = ["id"]
sql = 'SELECT id, jsonb_build_object(name, 1) AS at, name FROM shop.public.customer'
[[table]]
into = "sales.person"
key = ["id"]
sql = "SELECT o.id, c.name || shop.public.nothing.x AS name, c.email FROM shop.public.orders o JOIN shop.public.customer c ON c.id = o.customer_id"
[[table]]
into = "sales.made"
from = "shop.public.orders"
columns = ["id", "total"]
mask = { total = "made_at" }
mask_in = "rehearsals"
"#;
    let crossfade = Crossfade::new(&plan(&world).section(wrong))?;
    let document = explained(&crossfade, 2).await?;
    let problems = document["problems"].as_array().context("no problems")?;
    for (at, why) in [
        ("namen AS", "namen"),
        ("\\\"name\\\"", "name"),
        // What is wrong with a column of the result is told of the whole table.
        ("[[table]]\ninto = \"sales.share\"", "timestamp with time zone"),
        ("SELECT id FROM shop.public.tmp_1", "no table sales.none"),
    ] {
        let place = place(&crossfade, at)?;
        let place = if at.starts_with("[[") { place.replace(":1 ", " ") } else { place };
        let starts = |problem: &&Value| problem["what"].as_str().is_some_and(|what| what.starts_with(&place));
        let told = problems.iter().find(starts).with_context(|| format!("{place} is not told: {document:#}"))?;
        ensure!(told["why"].as_str().is_some_and(|text| text.contains(why)), "{why} expected: {told:#}");
        ensure!(
            told["code"] == "sql_refused" && told["next"].as_str().is_some_and(|next| !next.is_empty()),
            "{told:#}"
        );
    }
    ensure!(document["error"]["code"] == "sql_refused", "{document:#}");
    let crossfade = Crossfade::new(&plan(&world).section(postgres))?;
    let document = explained(&crossfade, 2).await?;
    let refused = document.to_string();
    ensure!(refused.contains("expression is of type jsonb") && refused.contains("nothing"), "{document:#}");
    ensure!(refused.contains("masked, as rehearsals have it: "), "{document:#}");
    // Nothing begins with such a plan.
    let survey = crossfade.run(&["survey", "--json"]).await?;
    exit(&survey, 1)?;
    ensure!(survey.stdout.contains("sql_refused"), "{survey:?}");
    let run = crossfade.run(&["run"]).await?;
    exit(&run, 2)?;
    ensure!(run.stderr.contains("sql_refused") || run.stderr.contains("[[table]]"), "{run:?}");
    let slots = world.at_source("SELECT count(*) FROM pg_replication_slots")?;
    ensure!(slots == "0", "a slot was made for a plan that is refused");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_nobody_reads_is_an_error_of_the_plan() -> Result<()> {
    let world = world()?;
    let crossfade = Crossfade::new(&world.plan().target_exists().section(TABLES))?;
    let document = explained(&crossfade, 2).await?;
    let problem = &document["error"];
    ensure!(problem["code"] == "plan_invalid", "{document:#}");
    let why = problem["why"].as_str().unwrap_or_default();
    ensure!(why.contains("shop.public.country, shop.public.tmp_1, and"), "{why}");
    // What is ignored is not read by accident.
    let read = TABLES.replace("shop.public.orders)", "shop.public.tmp_1)").replace("sum(total)", "sum(id)");
    let crossfade = Crossfade::new(&plan(&world).section(&read))?;
    let document = explained(&crossfade, 2).await?;
    let why = document["error"]["why"].as_str().unwrap_or_default();
    ensure!(why.contains("`ignore` names it"), "{document:#}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_and_rows_of_the_target_are_looked_at_before_the_start() -> Result<()> {
    let world = world()?;
    world.at_target(
        "CREATE ROLE mover LOGIN; GRANT CREATE, TEMPORARY ON DATABASE app TO mover; GRANT SELECT ON ALL TABLES IN SCHEMA sales TO mover;
         GRANT USAGE ON SCHEMA sales TO mover; INSERT INTO sales.person VALUES (-1, 'nobody', NULL)",
    )?;
    let into = world.target.url_as("mover", "app");
    let plan = PlanFile::new("shop", &world.source_url(), &into).target_exists().top(TOP).section(TABLES);
    let crossfade = Crossfade::new(&plan)?;
    let document = explained(&crossfade, 2).await?;
    let next = document["error"]["next"].as_str().unwrap_or_default();
    ensure!(document["error"]["code"] == "privilege_missing", "{document:#}");
    ensure!(next == "GRANT INSERT, UPDATE, DELETE ON \"sales\".\"person\" TO \"mover\";", "{next}");
    let crossfade = Crossfade::new(&self::plan(&world).section(TABLES))?;
    let survey = crossfade.run(&["survey", "--json"]).await?;
    exit(&survey, 1)?;
    let document = survey.json()?;
    let finding =
        document["findings"].as_array().and_then(|all| all.iter().find(|one| one["code"] == "target_not_empty"));
    let what = finding.context("rows are not told")?["what"].as_str().unwrap_or_default().to_owned();
    ensure!(what.ends_with("([[table]] sales.person)"), "{document:#}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_affects_all_units_is_told_unless_the_plan_knows_better() -> Result<()> {
    let world = world()?;
    let unbounded = r#"
[[table]]
into = "sales.person"
key = ["id"]
sql = "SELECT c.id, c.name, (SELECT max(t.name) FROM shop.public.country t WHERE t.name < c.name) AS email FROM shop.public.customer c"
"#;
    let ignore = "ignore = [\"public.tmp_*\", \"public.orders\"]";
    let plan = |more: &str| world.plan().target_exists().top(ignore).section(&format!("{unbounded}{more}"));
    let crossfade = Crossfade::new(&plan(""))?;
    let document = explained(&crossfade, 0).await?;
    let person = of(&document, "sales.person")?;
    let warning = &person["warnings"][0];
    let place = place(&crossfade, "shop.public.country t")?;
    ensure!(warning["what"].as_str().is_some_and(|what| what.starts_with(&place)), "{place} expected: {person:#}");
    ensure!(warning["why"].as_str().is_some_and(|why| why.contains("makes all units anew")), "{person:#}");
    // Whoever knows says it; what is said wrong is found where it is said.
    let said = "affected_by = { \"shop.public.country\" = \"SELECT c.id FROM changed t JOIN shop.public.customer c ON c.country = t.code\" }";
    let crossfade = Crossfade::new(&plan(said))?;
    let document = explained(&crossfade, 0).await?;
    let person = of(&document, "sales.person")?;
    ensure!(person["warnings"].as_array().is_some_and(Vec::is_empty), "{person:#}");
    let crossfade = Crossfade::new(&plan(&said.replace("t.code", "t.kode")))?;
    let document = explained(&crossfade, 2).await?;
    let place = self::place(&crossfade, "t.kode")?;
    ensure!(document["error"]["what"].as_str().is_some_and(|what| what.starts_with(&place)), "{place}: {document:#}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_makes_the_tables_that_go_over_as_they_are_and_no_others() -> Result<()> {
    let world = World::embedded()?;
    world.at_source(SOURCE)?;
    world.at_target(&TARGET.replace("CREATE TABLE country (code text PRIMARY KEY, name text NOT NULL);", ""))?;
    // It may be read as well; it is read where it is.
    let tables = TABLES.replace("name, lower(email)", "name, (SELECT t.name FROM country t WHERE t.code = c.country)");
    let tables = tables.replace("AS email FROM shop.public.customer\"", "AS email FROM shop.public.customer c\"");
    let crossfade = Crossfade::new(&world.plan().top(TOP).section(&tables))?;
    let mut run = crossfade.start(&["run"])?;
    crossfade.wait_for_phase(&mut run, "following", MINUTE).await?;
    world.at_source("UPDATE country SET name = 'Nippon' WHERE code = 'jp'")?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    let there = "SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'";
    ensure!(world.at_target(there)? == "country", "{}", world.at_target(there)?);
    let mirrors = "SELECT string_agg(relname, ', ' ORDER BY relname) FROM pg_class WHERE relname LIKE 'mirror %' AND relkind = 'r'";
    let mirrors = world.at_target(mirrors)?;
    ensure!(mirrors == "mirror shop.public.customer, mirror shop.public.orders", "{mirrors}");
    let told = "SELECT email, count(*) FROM sales.person GROUP BY email ORDER BY email";
    ensure!(world.at_target(told)? == "Nippon|1000\nSwitzerland|1000", "{}", world.at_target(told)?);
    run.stop().await
}

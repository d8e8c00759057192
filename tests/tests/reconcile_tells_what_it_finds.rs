//! Given checks in the plan: reconcile runs each where it belongs, reads and never writes, and its exit code tells the truth.

use anyhow::{Result, ensure};
use crossfade_tests::reconcile::{self, checks};
use crossfade_tests::{Crossfade, PlanFile, Port, World};
use serde_json::{Value, json};

const ORDERS: &str = "CREATE TABLE orders (id integer PRIMARY KEY, total integer);
     INSERT INTO orders SELECT i, CASE WHEN i <= 25 THEN -i ELSE i END FROM generate_series(1, 100) i";

#[tokio::test(flavor = "multi_thread")]
async fn rows_on_the_target_are_findings_all_counted_and_some_shown() -> Result<()> {
    let world = World::embedded()?;
    world.at_target(ORDERS)?;
    let crossfade = Crossfade::new(&reconcile::plan(
        &world,
        r#"[[check]]
           name = "no order costs less than nothing"
           sql = "SELECT id, total, null AS nothing FROM public.orders WHERE total < 0 ORDER BY id;"
           sample = 2
           [[check]]
           name = "there are orders"
           sql = "SELECT 1 WHERE NOT EXISTS (SELECT FROM public.orders) -- without any the copy is not in""#,
    ))?;
    let found = reconcile::run(&crossfade, false).await?;
    found.ended_with(1)?;
    ensure!(found.document["verdict"] == "findings", "{found:?}");
    let check = found.expect("no order costs less than nothing", "findings", 25)?;
    let row = |id: &str, total: &str| json!({ "row": { "id": id, "total": total, "nothing": null } });
    ensure!(check["samples"] == json!([row("1", "-1"), row("2", "-2")]), "{check:#}");
    found.expect("there are orders", "passed", 0)?;
    ensure!(kept(&crossfade)? == [found.document.clone()], "the report is not kept");

    let told = crossfade.run(&["reconcile"]).await?;
    ensure!(told.status.code() == Some(1) && told.stdout.contains("id=1, total=-1, nothing=null"), "{told:?}");
    ensure!(
        told.stdout.contains("and 23 more") && told.stdout.contains("1 passed, 0 fixed, 1 error, 0 warnings"),
        "{told:?}"
    );

    let steering =
        Crossfade::new(&reconcile::plan(&world, "[[check]]\nname = \"c\"\nsql = \"SELECT E'\\\\x1b[2Jgone'\""))?;
    let told = steering.run(&["reconcile"]).await?;
    ensure!(told.stdout.contains("[2Jgone") && !told.stdout.contains('\u{1b}'), "a row steers the terminal: {told:?}");

    world.at_target("UPDATE orders SET total = -total WHERE total < 0")?;
    let clean = reconcile::run(&crossfade, false).await?;
    clean.ended_with(0)?;
    ensure!(clean.document["verdict"] == "clean", "{clean:?}");
    Ok(())
}

/// The reports in the state folder.
fn kept(crossfade: &Crossfade) -> Result<Vec<Value>> {
    let mut reports = Vec::new();
    for entry in std::fs::read_dir(crossfade.state_dir().join("reports"))? {
        let path = entry?.path();
        ensure!(path.to_string_lossy().ends_with("-reconcile.json"), "{}", path.display());
        reports.push(serde_json::from_slice(&std::fs::read(path)?)?);
    }
    Ok(reports)
}

#[tokio::test(flavor = "multi_thread")]
async fn warnings_are_shown_and_leave_the_exit_code_at_zero() -> Result<()> {
    let world = World::embedded()?;
    world.at_target(ORDERS)?;
    let check = "[[check]]\nname = \"cheap\"\nsql = \"SELECT id FROM public.orders WHERE total < 0\"\nseverity = ";
    let warned = checks(&world, &format!("{check}\"warning\"")).await?;
    warned.ended_with(0)?;
    warned.expect("cheap", "findings", 25)?;
    checks(&world, &format!("{check}\"error\"")).await?.ended_with(1)
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_must_give_the_same_rows_in_whatever_order() -> Result<()> {
    let world = World::embedded()?;
    world.at_source(
        "CREATE TABLE t (a text, b integer); INSERT INTO t VALUES ('é', 1), ('z', 2), ('', 3), (null, 3), ('z', 2)",
    )?;
    world.at_target(
        "CREATE TABLE u (b integer, a text); INSERT INTO u VALUES (3, null), (2, 'z'), (1, 'é'), (2, 'z'), (3, '')",
    )?;
    let both = |rows: &str| {
        format!(
            "[[check]]\nname = \"same\"\non = \"both\"\nsource_sql = \"SELECT a, b FROM public.t\"
             sql = \"SELECT a, b FROM public.u{rows}\"
             [[check]]\nname = \"as many\"\non = \"both\"\nsource_sql = \"SELECT count(*), count(*) FROM public.t\"
             sql = \"SELECT count(*), count(*) FROM public.u\""
        )
    };
    let same = checks(&world, &both("")).await?;
    same.ended_with(0)?;
    same.expect("same", "passed", 0)?;

    // One of two equal rows is missing, an empty text has become null, one row is new.
    world.at_target("DELETE FROM u WHERE ctid = (SELECT min(ctid) FROM u WHERE a = 'z'); UPDATE u SET a = null WHERE a = ''; INSERT INTO u VALUES (9, 'new')")?;
    let differ = checks(&world, &both("")).await?;
    differ.ended_with(1)?;
    differ.expect("as many", "passed", 0)?;
    let check = differ.expect("same", "findings", 4)?;
    let sample = |side: &str, a: Value, b: &str| json!({ "only_in": side, "row": { "a": a, "b": b } });
    let expected = json!([
        sample("source", json!(""), "3"),
        sample("target", json!("new"), "9"),
        sample("source", json!("z"), "2"),
        sample("target", Value::Null, "3"),
    ]);
    ensure!(check["samples"] == expected, "{check:#}");

    let failed = checks(&world, &both("").replace("SELECT a, b FROM public.u", "SELECT a FROM public.u")).await?;
    failed.ended_with(2)?;
    let why = &failed.expect("same", "failed", 0)?["error"]["why"];
    ensure!(why == "the source returns 2 columns and the target 1", "{why}");
    Ok(())
}

const SPACES: &str = "CREATE SCHEMA core; CREATE SCHEMA me_a; CREATE SCHEMA me_b;
     CREATE TABLE core.space (slug text PRIMARY KEY, owner uuid);
     INSERT INTO core.space VALUES ('a', '00000000-0000-0000-0000-00000000000a'), ('b', '00000000-0000-0000-0000-00000000000b');
     CREATE TABLE me_a.memory (id integer, owner uuid); CREATE TABLE me_b.memory (id integer, owner uuid);
     INSERT INTO me_a.memory SELECT 1, owner FROM core.space WHERE slug = 'a';
     INSERT INTO me_b.memory SELECT 2, owner FROM core.space WHERE slug = 'b'";

const TENANTS: &str = "[[check]]
     name = \"memories belong to the owner of their space\"
     tenants = \"SELECT owner, 'me_' || slug AS schema FROM core.space ORDER BY slug\"
     sql = \"SELECT id FROM {schema}.memory WHERE owner <> $1\"
     [[check]]
     name = \"as many memories in each space\"
     on = \"both\"
     tenants = \"SELECT 'me_' || slug AS schema FROM core.space ORDER BY slug\"
     sql = \"SELECT count(*) FROM {schema}.memory\"";

#[tokio::test(flavor = "multi_thread")]
async fn a_check_with_tenants_runs_once_for_each() -> Result<()> {
    let world = World::embedded()?;
    world.at_source(SPACES)?;
    world.at_target(SPACES)?;
    let clean = checks(&world, TENANTS).await?;
    clean.ended_with(0)?;
    ensure!(clean.check("as many memories in each space")?["runs"] == 2, "{clean:?}");

    world.at_target("INSERT INTO me_b.memory SELECT 3, owner FROM core.space WHERE slug = 'a'")?;
    let found = checks(&world, TENANTS).await?;
    found.ended_with(1)?;
    let tenant = json!({ "owner": "00000000-0000-0000-0000-00000000000b", "schema": "me_b" });
    let check = found.expect("memories belong to the owner of their space", "findings", 1)?;
    ensure!(check["samples"] == json!([{ "row": { "id": "3" }, "tenant": tenant }]), "{check:#}");
    let check = found.expect("as many memories in each space", "findings", 2)?;
    ensure!(check["samples"][0]["tenant"] == json!({ "schema": "me_b" }), "{check:#}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_that_are_none_or_no_names_are_told() -> Result<()> {
    let world = World::embedded()?;
    world.at_source(SPACES)?;
    world.at_target(&format!("{SPACES}; UPDATE core.space SET slug = 'b'' OR true --' WHERE slug = 'b'"))?;
    let failed = checks(&world, TENANTS).await?;
    failed.ended_with(2)?;
    let error = &failed.check("memories belong to the owner of their space")?["error"];
    ensure!(error["why"].as_str().is_some_and(|why| why.contains("{schema}")), "{error:#}");
    ensure!(error["what"].as_str().is_some_and(|what| what.contains("schema=me_b' OR true --")), "{error:#}");
    let more = TENANTS.replace("owner <> $1", "owner <> $1 AND $2 <> '' AND id < $3");
    let failed = checks(&world, &more).await?;
    let error = &failed.expect("memories belong to the owner of their space", "failed", 0)?["error"];
    ensure!(error["why"] == "it uses $3, and `tenants` returns 2 columns", "{error:#}");
    world.at_target("DELETE FROM core.space")?;
    let failed = checks(&world, TENANTS).await?;
    failed.ended_with(2)?;
    let error = &failed.expect("as many memories in each space", "failed", 0)?["error"];
    ensure!(error["why"].as_str().is_some_and(|why| why.contains("nothing was checked")), "{error:#}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_that_cannot_be_run_ends_with_2_and_the_others_run() -> Result<()> {
    let world = World::embedded()?;
    world.at_target(ORDERS)?;
    let nobody = Port::reserve()?;
    let away = format!("postgres://postgres:hush@127.0.0.1:{}/app", nobody.number());
    let plan = PlanFile::new("shop", &away, &world.target_url()).target_exists().section(
        r#"[[check]]
           name = "first"
           sql = "SELECT id FROM public.orders WHERE total < -24"
           [[check]]
           name = "misspelt"
           sql = "SELECT id FROM public.order"
           [[check]]
           name = "slow"
           sql = "SELECT pg_sleep(30)"
           timeout = "100ms"
           [[check]]
           name = "at a source that is away"
           sql = "SELECT 1"
           on = "source"
           [[check]]
           name = "without its schema"
           sql = "SELECT id FROM orders WHERE total < -24"
           [[check]]
           name = "with a path"
           sql = "SELECT id FROM orders WHERE total < -24"
           search_path = ["public"]"#,
    );
    let crossfade = Crossfade::new(&plan)?;
    let failed = reconcile::run(&crossfade, false).await?;
    failed.ended_with(2)?;
    ensure!(failed.document["verdict"] == "failed", "{failed:?}");
    for (name, code, mentions) in [
        ("misspelt", "check_failed", ["42P01", "search_path"]),
        ("slow", "check_failed", ["57014", "timeout"]),
        ("at a source that is away", "connection_failed", ["shop", "runs"]),
        ("without its schema", "check_failed", ["42P01", "search_path"]),
    ] {
        let error = &failed.expect(name, "failed", 0)?["error"];
        let text = error.to_string();
        ensure!(error["code"] == code && mentions.iter().all(|word| text.contains(word)), "{error:#}");
        ensure!(text.contains(&format!("check \\\"{name}\\\"")) && text.contains("crossfade.toml:"), "{error:#}");
    }
    failed.expect("first", "findings", 1)?;
    failed.expect("with a path", "findings", 1)?;
    let told = crossfade.run(&["reconcile"]).await?;
    ensure!(told.status.code() == Some(2) && told.stdout.contains("4 could not run"), "{told:?}");
    ensure!(told.stderr.contains("misspelt") && !format!("{told:?}").contains("hush"), "{told:?}");
    let all = told.stdout + &told.stderr;
    ensure!(all.matches("42P01").count() == 2, "two checks failed of it, and each is to be told once: {all}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_cannot_write() -> Result<()> {
    let world = World::embedded()?;
    let table = "CREATE TABLE t (id integer); INSERT INTO t VALUES (1);
         CREATE FUNCTION sneak() RETURNS SETOF integer LANGUAGE sql AS 'DELETE FROM public.t RETURNING id'";
    world.at_source(table)?;
    world.at_target(table)?;
    for (sql, sqlstate) in [
        ("SELECT public.sneak()", "25006"),
        ("DELETE FROM public.t RETURNING id", "25006"),
        ("WITH gone AS (DELETE FROM public.t RETURNING id) SELECT id FROM gone", "25006"),
        ("SELECT 1; COMMIT; DELETE FROM public.t", "42601"),
        ("SELECT set_config('transaction_read_only', 'off', true), public.sneak()", "25001"),
        ("COMMIT", "42601"),
    ] {
        for on in ["source", "target"] {
            // With --fix the target's session may write; the check's transaction still must not.
            let refused =
                reconcile::fixes(&world, &format!("[[check]]\nname = \"c\"\non = \"{on}\"\nsql = \"{sql}\"")).await?;
            refused.ended_with(2)?;
            let error = &refused.expect("c", "failed", 0)?["error"];
            ensure!(error["why"].as_str().is_some_and(|why| why.contains(sqlstate)), "{sql}: {error:#}");
        }
    }
    let rows = "SELECT count(*) FROM t";
    ensure!(world.at_source(rows)?.trim() == "1" && world.at_target(rows)?.trim() == "1", "a check has written");
    Ok(())
}

/// No database is needed: the plan is refused before any is asked.
#[tokio::test(flavor = "multi_thread")]
async fn a_plan_whose_checks_have_no_meaning_is_refused_with_file_and_line() -> Result<()> {
    let plan =
        PlanFile::new("shop", "postgres://nobody@127.0.0.1:1/a", "postgres://nobody@127.0.0.1:1/b").target_exists();
    let check = "[[check]]\nname = \"a\"\nsql = \"SELECT 1\"\n";
    for (lines, key) in [
        (format!("{check}seferity = \"error\""), "check.seferity"),
        (format!("{check}{check}"), "check.name"),
        (format!("{check}safe = true"), "check.safe"),
        (format!("{check}probe = \"ping\""), "check.probe"),
        (format!("{check}on = \"source\"\nfix = \"DELETE FROM public.t\""), "check.fix"),
    ] {
        let crossfade = Crossfade::new(&plan.clone().section(&lines))?;
        let line = std::fs::read_to_string(crossfade.plan())?.lines().count();
        // The second check is three lines, and an empty one behind them.
        let line = if key == "check.name" { line - 2 } else { line };
        let finished = crossfade.run(&["reconcile", "--json"]).await?;
        let error = &finished.json()?["error"];
        let place = format!("crossfade.toml:{line} ({key})");
        ensure!(finished.status.code() == Some(2) && error["code"] == "plan_invalid", "{finished:?}");
        ensure!(error["what"].as_str().is_some_and(|what| what.ends_with(&place)), "{place} expected: {error:#}");
    }
    let without = Crossfade::new(&plan)?.run(&["reconcile", "--json"]).await?;
    ensure!(without.status.code() == Some(2) && without.error_code()? == "plan_invalid", "{without:?}");
    Ok(())
}

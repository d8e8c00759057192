//! Given a check with a fix: it runs only if it is marked safe and asked for, and stays only if the check then passes.

use anyhow::{Result, ensure};
use crossfade_tests::World;
use crossfade_tests::reconcile::{checks, fixes};
use serde_json::json;

const ORDERS: &str = "CREATE TABLE orders (id integer PRIMARY KEY, shop text, total integer CHECK (total < 1000));
     INSERT INTO orders VALUES (1, 'a', -1), (2, 'a', 5), (3, 'b', -7), (4, 'b', -8); CREATE TABLE ran (at integer)";

const NEGATIVE: &str = "[[check]]\nname = \"total\"\nsql = \"SELECT id FROM public.orders WHERE total < 0\"\n";

fn world() -> Result<World> {
    let world = World::embedded()?;
    world.at_target(ORDERS)?;
    Ok(world)
}

fn rows(world: &World) -> Result<String> {
    world.at_target("SELECT * FROM orders ORDER BY id; SELECT * FROM ran")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_safe_fix_is_applied_when_it_is_asked_for() -> Result<()> {
    let world = world()?;
    let check = format!("{NEGATIVE}fix = \"UPDATE public.orders SET total = 0 WHERE total < 0\"\nsafe = true");
    let before = rows(&world)?;
    let listed = checks(&world, &check).await?;
    listed.ended_with(1)?;
    let fix = &listed.expect("total", "findings", 3)?["fix"];
    ensure!(
        fix["sql"] == json!(["UPDATE public.orders SET total = 0 WHERE total < 0"]) && fix["applied"] == 0,
        "{fix:#}"
    );
    ensure!(rows(&world)? == before, "it was applied without --fix");

    let fixed = fixes(&world, &check).await?;
    fixed.ended_with(0)?;
    let fix = &fixed.expect("total", "fixed", 0)?["fix"];
    ensure!(fix["applied"] == 1 && fix["rows"] == 3 && fix["rolled_back"].is_null(), "{fix:#}");
    ensure!(world.at_target("SELECT count(*) FROM orders WHERE total < 0")?.trim() == "0", "it is not committed");
    fixes(&world, &check).await?.expect("total", "passed", 0)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fix_that_is_not_marked_safe_is_listed_for_people() -> Result<()> {
    let world = world()?;
    let before = rows(&world)?;
    for safe in ["", "safe = false"] {
        let listed = fixes(&world, &format!("{NEGATIVE}fix = \"DELETE FROM public.orders\"\n{safe}")).await?;
        listed.ended_with(1)?;
        let fix = &listed.expect("total", "findings", 3)?["fix"];
        ensure!(
            fix["sql"] == json!(["DELETE FROM public.orders"]) && fix["safe"] == false && fix["applied"] == 0,
            "{fix:#}"
        );
    }
    ensure!(rows(&world)? == before, "it was applied");
    Ok(())
}

/// Each is marked safe, changes a row, and then does not mend what was found.
#[tokio::test(flavor = "multi_thread")]
async fn a_fix_that_does_not_mend_is_rolled_back() -> Result<()> {
    let world = world()?;
    let before = rows(&world)?;
    for (fix, why) in [
        ("'UPDATE public.orders SET total = 0 WHERE id = 1'", "still finds 2 rows"),
        ("['DELETE FROM public.orders', 'SELECT 1 / 0']", "22012"),
        ("['DELETE FROM public.orders', '(COMMIT)']", "42601"),
        ("['DELETE FROM public.orders', 'INSERT INTO public.ran VALUES (1); COMMIT']", "42601"),
        ("'UPDATE public.orders SET total = 5000'", "23514"),
        ("'SELECT pg_sleep(30) FROM public.orders'", "57014"),
    ] {
        let check = format!("{NEGATIVE}timeout = \"1s\"\nsafe = true\nfix = {}", fix.replace('\'', "\""));
        let left = fixes(&world, &check).await?;
        left.ended_with(1)?;
        let mending = &left.expect("total", "findings", 3)?["fix"];
        let told = mending["rolled_back"].as_str().is_some_and(|told| told.contains(why));
        ensure!(told && mending["applied"] == 0, "{fix}: {mending:#}");
        ensure!(rows(&world)? == before, "{fix} has left something behind: {}", rows(&world)?);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_deferred_constraint_refuses_at_the_end_is_rolled_back() -> Result<()> {
    let world = world()?;
    world.at_target("ALTER TABLE ran ADD UNIQUE (at) DEFERRABLE INITIALLY DEFERRED")?;
    let before = rows(&world)?;
    let fix = "[\"DELETE FROM public.orders\", \"INSERT INTO public.ran VALUES (1), (1)\"]";
    let left = fixes(&world, &format!("{NEGATIVE}safe = true\nfix = {fix}")).await?;
    left.ended_with(1)?;
    let mending = &left.expect("total", "findings", 3)?["fix"];
    ensure!(mending["rolled_back"].as_str().is_some_and(|why| why.contains("23505")), "{mending:#}");
    ensure!(rows(&world)? == before, "something is left behind: {}", rows(&world)?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fix_never_runs_while_the_check_passes() -> Result<()> {
    let world = world()?;
    world.at_target("UPDATE orders SET total = 1")?;
    let before = rows(&world)?;
    let passed = fixes(&world, &format!("{NEGATIVE}safe = true\nfix = \"INSERT INTO public.ran VALUES (1)\"")).await?;
    passed.ended_with(0)?;
    passed.expect("total", "passed", 0)?;
    ensure!(rows(&world)? == before, "the fix has run");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_tenant_is_mended_for_itself() -> Result<()> {
    let world = world()?;
    // It mends one row of a tenant: enough for shop a, not for shop b.
    let check = "[[check]]\nname = \"total\"\nsafe = true\ntenants = \"SELECT DISTINCT shop FROM public.orders ORDER BY shop\"
         sql = \"SELECT id FROM public.orders WHERE shop = $1 AND total < 0\"
         fix = \"UPDATE public.orders SET total = 0 WHERE id = (SELECT min(id) FROM public.orders WHERE shop = $1 AND total < 0)\"";
    let left = fixes(&world, check).await?;
    left.ended_with(1)?;
    let check = left.expect("total", "findings", 2)?;
    ensure!(check["fix"]["applied"] == 1 && check["fix"]["rolled_back"].is_string(), "{check:#}");
    ensure!(check["samples"][0] == json!({ "tenant": { "shop": "b" }, "row": { "id": "3" } }), "{check:#}");
    let totals = world.at_target("SELECT string_agg(total::text, ' ' ORDER BY id) FROM orders")?;
    ensure!(totals.trim() == "0 5 -7 -8", "{totals}");
    Ok(())
}

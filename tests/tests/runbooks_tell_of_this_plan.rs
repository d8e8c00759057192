//! Given a plan: `crossfade runbook` prints the documents with what is known of it, before anything runs, while it runs, after a cutover and a rollback, and while servers are down.

use anyhow::{Context, Result, ensure};
use crossfade_tests::follow::{captured_back, following};
use crossfade_tests::{Cluster, Crossfade, PlanFile, Shutdown, World};
use serde_json::Value;

const DOCUMENTS: [&str; 4] = ["cutover", "rollback", "monitoring", "announcement"];

/// A document as it is printed.
async fn printed(crossfade: &Crossfade, name: &str) -> Result<String> {
    let finished = crossfade.run(&["runbook", name]).await?;
    ensure!(finished.status.success() && !finished.stdout.contains("{{"), "{finished:?}");
    Ok(finished.stdout)
}

async fn values(crossfade: &Crossfade) -> Result<Value> {
    let finished = crossfade.run(&["runbook", "--json"]).await?;
    ensure!(finished.status.success(), "{finished:?}");
    Ok(finished.json()?["values"].clone())
}

fn expect(text: &str, parts: &[&str]) -> Result<()> {
    for part in parts {
        ensure!(text.contains(part), "{part:?} is missing in:\n{text}");
    }
    Ok(())
}

async fn succeeds(crossfade: &Crossfade, arguments: &[&str]) -> Result<Value> {
    let finished = crossfade.run(&[arguments, &["--json"]].concat()).await?;
    ensure!(finished.status.success(), "{finished:?}");
    finished.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn from_before_anything_runs_until_one_is_back() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source("CREATE TABLE orders (id bigint PRIMARY KEY, v text); INSERT INTO orders SELECT i, repeat('x', 100) FROM generate_series(1, 1000) i; ANALYZE")?;
    let crossfade = Crossfade::new(&world.plan().section("[cutover.hooks]\nroute = \"echo token-of-the-pool\""))?;
    let list = crossfade.run(&["runbook"]).await?;
    ensure!(list.status.success(), "{list:?}");
    expect(&list.stdout, &DOCUMENTS.map(|name| format!("crossfade runbook {name}")).each_ref().map(String::as_str))?;
    let unknown = crossfade.run(&["runbook", "nothing"]).await?;
    ensure!(unknown.status.code() == Some(2), "{unknown:?}");

    let before = printed(&crossfade, "cutover").await?;
    let known = [
        "crossfade_shop_shop",
        "`crossfade cutover --dry-run` makes it known",
        "`crossfade verify` makes it known",
        "there was none",
        "| public.orders | 1000 |",
    ];
    expect(&before, &known)?;
    let there = values(&crossfade).await?;
    ensure!(there["phase"] == "starting" && there["tables"][0]["bytes"].as_i64() > Some(100_000), "{there:#}");
    ensure!(
        there["predicted"].is_null() && there["last_cutover"].is_null() && there["last_verify"].is_null(),
        "{there:#}"
    );

    let mut run = following(&crossfade).await?;
    succeeds(&crossfade, &["verify"]).await?;
    captured_back(&world).await?;
    let dry = succeeds(&crossfade, &["cutover", "--dry-run"]).await?;
    let there = values(&crossfade).await?;
    ensure!(
        there["predicted"]["write_gap_ms"] == dry["write_gap_ms"] && there["last_verify"]["seconds"].is_number(),
        "{there:#}"
    );
    let gap = format!("some {} ms, by the dry run of ", dry["write_gap_ms"]);
    expect(
        &printed(&crossfade, "cutover").await?,
        &[&gap, "1 equal; the oldest verdict is of", "crossfade_shop_shop_back", "`route`"],
    )?;
    expect(&printed(&crossfade, "announcement").await?, &["25006", &gap])?;

    let cutover = succeeds(&crossfade, &["cutover"]).await?;
    let text = printed(&crossfade, "rollback").await?;
    expect(
        &text,
        &[
            "epoch 1, decided at 20",
            &format!("nobody could write for {} ms", cutover["write_gap_ms"]),
            "reversing",
            "there was none",
        ],
    )?;
    ensure!(!text.contains("token-of-the-pool"), "a hook's command is shown");
    succeeds(&crossfade, &["rollback", "--dry-run"]).await?;
    let back = succeeds(&crossfade, &["rollback"]).await?;
    let there = values(&crossfade).await?;
    let (first, second) = (&there["last_cutover"], &there["last_rollback"]);
    ensure!(first["epoch"] == 1 && first["write_gap_ms"] == cutover["write_gap_ms"], "{there:#}");
    ensure!(
        second["epoch"] == 2
            && second["write_gap_ms"] == back["write_gap_ms"]
            && second["steps"].as_array().is_some_and(|steps| steps.len() > 4),
        "{there:#}"
    );
    ensure!(there["predicted_back"]["write_gap_ms"].is_i64(), "{there:#}");
    run.stop().await
}

/// With servers that are down everything is printed, and no password whatever happens.
#[tokio::test(flavor = "multi_thread")]
async fn while_servers_are_down_and_never_a_password() -> Result<()> {
    const PASSWORD: &str = "Nobody-is-to-see-this-7";
    let mut world = World::of(Cluster::start()?, Cluster::start()?, None)?;
    world.at_source("CREATE TABLE t (id integer PRIMARY KEY); INSERT INTO t VALUES (1); ANALYZE")?;
    let with = |url: &str| -> Result<String> {
        let (scheme, rest) = url.split_once("://").context("a URL")?;
        let (user, rest) = rest.split_once('@').context("a user")?;
        let user = user.split(':').next().unwrap_or_default();
        Ok(format!("{scheme}://{user}:{PASSWORD}@{rest}"))
    };
    let plan = PlanFile::new("shop", &with(&world.source_url())?, &with(&world.target_url())?);
    let crossfade = Crossfade::new(&plan)?;
    let expect_no_secret = async || -> Result<()> {
        for name in DOCUMENTS {
            let finished = crossfade.run(&["runbook", name]).await?;
            let shown = format!("{}{}", finished.stdout, finished.stderr);
            ensure!(finished.status.success() && !shown.contains(PASSWORD), "{shown}");
        }
        let finished = crossfade.run(&["runbook", "--json"]).await?;
        ensure!(!format!("{finished:?}").contains(PASSWORD), "{finished:?}");
        Ok(())
    };
    expect_no_secret().await?;
    let mut run = following(&crossfade).await?;
    expect_no_secret().await?;
    run.stop().await?;
    world.source.stop(Shutdown::Fast)?;
    world.target.stop(Shutdown::Fast)?;
    expect_no_secret().await?;
    let text = printed(&crossfade, "cutover").await?;
    expect(&text, &["it is known once the server can be reached", "source_unreachable", "target_unreachable"])?;
    ensure!(!text.contains("there was none") && !text.contains("0 tables"), "what nobody was asked is said:\n{text}");
    let there = values(&crossfade).await?;
    ensure!(
        there["phase"].is_null() && there["writable_side"] == "unknown" && there["sources"][0]["lsn"].is_null(),
        "{there:#}"
    );
    Ok(())
}

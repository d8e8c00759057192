//! Given an application that switches by flags: `crossfade stage` leads it over step by step, and no step goes where something is in the way.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use async_nats::jetstream::{self, kv};
use crossfade_tests::follow::captured_back;
use crossfade_tests::{Crossfade, PlanFile, Port, Running, World, http, until};
use futures::StreamExt;
use serde_json::{Value, json};

const MINUTE: Duration = Duration::from_secs(60);

/// The matrix of examples/promotion.toml; only nobody waits an hour here.
const STAGES: &str = r#"
[stages]
first = "legacy"
[stages.legacy]
flags = { READS = "old", WRITES = "old", DUAL_WRITE = "off" }
next = ["read_new"]
[stages.read_new]
flags = { READS = "new", WRITES = "old", DUAL_WRITE = "off" }
next = ["dual_write", "legacy"]
gate = { lag = "0s", verify = "equal", verify_age = "24h" }
[stages.dual_write]
flags = { READS = "new", WRITES = "old", DUAL_WRITE = "on" }
next = ["write_new", "read_new"]
gate = { lag = "0s", verify = "equal", verify_age = "24h", writable = "source" }
[stages.write_new]
flags = { READS = "new", WRITES = "new", DUAL_WRITE = "on" }
next = ["steady"]
gate = { writable = "target" }
[stages.steady]
flags = { READS = "new", WRITES = "new", DUAL_WRITE = "off" }
gate = { writable = "target", age = "1ms" }
"#;

const TABLE: &str = "CREATE TABLE t (id integer PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 100)";

async fn stage(crossfade: &Crossfade, arguments: &[&str]) -> Result<(Value, Option<i32>)> {
    let finished = crossfade.run(&[&["stage"], arguments, &["--json"]].concat()).await?;
    let document = finished.json().with_context(|| format!("{finished:?}"))?;
    Ok((document, finished.status.code()))
}

/// The codes of what is in the way.
fn codes(document: &Value) -> Vec<&str> {
    let refused = document["refused"].as_array().into_iter().flatten();
    refused.filter_map(|refusal| refusal["code"].as_str()).collect()
}

async fn moves_to(crossfade: &Crossfade, name: &str, revision: u64) -> Result<Value> {
    let (moved, code) = stage(crossfade, &["set", name]).await?;
    let right = moved["outcome"] == "moved" && moved["stage"] == name && moved["revision"] == revision;
    ensure!(right && code == Some(0) && codes(&moved).is_empty(), "{moved:#}");
    Ok(moved)
}

async fn is_refused(crossfade: &Crossfade, name: &str, why: &[&str]) -> Result<()> {
    let (before, _) = stage(crossfade, &["show"]).await?;
    let (moved, code) = stage(crossfade, &["set", name]).await?;
    ensure!(moved["outcome"] == "refused" && code == Some(1), "{name}: {moved:#}");
    ensure!(codes(&moved) == why, "{name}: {why:?} expected: {moved:#}");
    ensure!(moved["stage"] == before["stage"] && moved["revision"] == before["revision"], "{before:#} {moved:#}");
    Ok(())
}

async fn store(world: &World) -> Result<kv::Store> {
    let nats = world.nats.as_ref().context("a nats-server")?;
    Ok(jetstream::new(async_nats::connect(nats.url()).await?).get_key_value("crossfade_shop").await?)
}

fn buckets(world: &World) -> Result<Vec<String>> {
    let names = world.nats.as_ref().context("a nats-server")?.jetstream("STREAM.NAMES", &json!({}))?;
    let names = names["streams"].as_array().into_iter().flatten().filter_map(Value::as_str);
    Ok(names.filter(|name| name.starts_with("KV_")).map(str::to_owned).collect())
}

async fn answers(port: u16) -> Result<()> {
    until("it answers over HTTP", MINUTE, || async {
        Ok((http::get(port, "/health").await?.status == 200).then_some(()))
    })
    .await
}

fn ends(running: Result<Running>) -> Result<Running> {
    let mut running = running?;
    running.hush();
    Ok(running)
}

#[tokio::test(flavor = "multi_thread")]
async fn through_the_gates_from_the_old_side_to_the_new_one() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(TABLE)?;
    let (here, there) = (Port::reserve()?, Port::reserve()?);
    let hooks = "[cutover.hooks]
        before_fence = '\"$PROGRAM\" stage show --env | grep -qx CROSSFADE_STAGE=dual_write'
        route = '\"$PROGRAM\" stage set write_new'";
    let listen = format!("[http]\nlisten = \"127.0.0.1:{}\"", here.number());
    let program = Crossfade::new(&world.plan())?.binary().display().to_string();
    let plan = world.plan().section(STAGES).section(hooks).section(&listen).env("PROGRAM", &program);
    let crossfade = Crossfade::new(&plan)?;
    let mut capture = ends(crossfade.start(&["capture"]))?;
    let elsewhere = crossfade.elsewhere()?;
    let mut apply = ends(elsewhere.start(&["apply", "--listen", &format!("127.0.0.1:{}", there.number())]))?;
    crossfade.wait_for_lag_zero(&mut apply, MINUTE).await?;
    answers(here.number()).await?;
    answers(there.number()).await?;

    let (shown, code) = stage(&crossfade, &[]).await?;
    ensure!(shown["stage"].is_null() && shown["next"][0]["stage"] == "legacy" && code == Some(1), "{shown:#}");
    is_refused(&crossfade, "read_new", &["not_begun"]).await?;
    moves_to(&crossfade, "legacy", 1).await?;
    let mut watch = store(&world).await?.watch_with_history("stage").await?;

    // Nothing was compared yet; a step cannot be left out; and then the target is behind, too.
    is_refused(&crossfade, "read_new", &["verify_missing"]).await?;
    is_refused(&crossfade, "dual_write", &["transition"]).await?;
    apply.freeze()?;
    world.at_source("INSERT INTO t VALUES (101)")?;
    crossfade
        .wait_for(&mut capture, "a transaction that is not applied", MINUTE, |status| {
            status["sources"][0]["lag"]["transactions"] == 1
        })
        .await?;
    is_refused(&crossfade, "read_new", &["lag", "verify_missing"]).await?;
    apply.thaw()?;
    crossfade.wait_for_lag_zero(&mut apply, MINUTE).await?;
    crossfade.verified().await?;
    let (shown, code) = stage(&crossfade, &["show"]).await?;
    ensure!(shown["next"] == json!([{ "stage": "read_new", "open": true, "refused": [] }]), "{shown:#}");
    ensure!(shown["flags"]["READS"] == "old" && code == Some(0), "{shown:#}");
    let moved = moves_to(&crossfade, "read_new", 2).await?;
    ensure!(moved["from"] == "legacy" && moved["flags"]["READS"] == "new", "{moved:#}");

    // What was compared two days ago says nothing of today.
    world.at_target("UPDATE crossfade.verdict SET at = at - interval '2 days'")?;
    is_refused(&crossfade, "dual_write", &["verify_old"]).await?;
    crossfade.verified().await?;
    captured_back(&world).await?;
    world.at_target("DELETE FROM t WHERE id = 1")?;
    let rogue = "SELECT sum(rows) FROM crossfade.rogue";
    until("that it was told", MINUTE, || async { Ok((world.at_target(rogue)? == "1").then_some(())) }).await?;
    ensure!(crossfade.run(&["verify"]).await?.status.code() == Some(1));
    is_refused(&crossfade, "dual_write", &["verify_different", "rogue_writes"]).await?;
    world.at_target("INSERT INTO t VALUES (1)")?;
    until("that it was told", MINUTE, || async { Ok((world.at_target(rogue)? == "2").then_some(())) }).await?;
    crossfade.verified().await?;
    // Another stage is not what the cutover waits for.
    let cut_over = ["cutover", "--no-way-back", "--json"];
    let cancelled = crossfade.run(&cut_over).await?.json()?;
    ensure!(cancelled["outcome"] == "cancelled", "{cancelled:#}");
    moves_to(&crossfade, "dual_write", 3).await?;
    is_refused(&crossfade, "write_new", &["writable"]).await?;
    let committed = crossfade.run(&cut_over).await?.json()?;
    ensure!(committed["outcome"] == "committed" && committed["unfinished"].is_null(), "{committed:#}");
    let (again, code) = stage(&crossfade, &["set", "write_new"]).await?;
    ensure!(again["outcome"] == "already" && again["revision"] == 4 && code == Some(0), "{again:#}");
    is_refused(&crossfade, "dual_write", &["transition"]).await?;
    moves_to(&crossfade, "steady", 5).await?;

    // Whoever watches has seen each of them, in this order.
    let (old, new, on, off) = ("old", "new", "on", "off");
    for (revision, (name, flags)) in (1..).zip([
        ("legacy", [old, old, off]),
        ("read_new", [new, old, off]),
        ("dual_write", [new, old, on]),
        ("write_new", [new, new, on]),
        ("steady", [new, new, off]),
    ]) {
        let entry = tokio::time::timeout(MINUTE, watch.next()).await?.context("it goes on")??;
        let value: Value = serde_json::from_slice(&entry.value)?;
        let right = json!({ "READS": flags[0], "WRITES": flags[1], "DUAL_WRITE": flags[2] });
        ensure!(value["stage"] == name && value["flags"] == right && entry.revision == revision, "{value:#}");
    }
    // Both processes tell the last one, and the metrics name it.
    for port in [here.number(), there.number()] {
        let last = http::get(port, "/stage?after=4&wait=60").await?.json()?;
        ensure!(last["stage"] == "steady" && last["revision"] == 5 && last["flags"]["WRITES"] == "new", "{last:#}");
        let metrics = http::get(port, "/metrics").await?.body;
        ensure!(metrics.contains("crossfade_stage{plan=\"shop\",stage=\"steady\"} 1"), "{metrics}");
    }

    capture.stop().await?;
    apply.stop().await?;
    ensure!(buckets(&world)? == ["KV_crossfade_shop"]);
    let listed = crossfade.run(&["complete"]).await?;
    ensure!(listed.status.success() && listed.stdout.contains("KV bucket crossfade_shop"), "{listed:?}");
    ensure!(buckets(&world)?.len() == 1, "it was removed although it was only listed");
    let done = crossfade.run(&["complete", "--yes"]).await?;
    ensure!(done.status.success() && buckets(&world)?.is_empty(), "{done:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_who_move_at_the_same_time_one_does() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(TABLE)?;
    // What has to be asked for the gates keeps them all busy until each has read the stage.
    let stages = STAGES
        .replace(", verify = \"equal\", verify_age = \"24h\"", "")
        .replace("next = [\"read_new\"]\n", "next = [\"read_new\"]\ngate = { lag = \"0s\" }\n");
    let crossfade = Crossfade::new(&world.plan().section(&stages))?;
    let mut run = ends(crossfade.start(&["run"]))?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    moves_to(&crossfade, "legacy", 1).await?;
    moves_to(&crossfade, "read_new", 2).await?;
    let mut sets = Vec::new();
    for name in ["legacy", "dual_write", "legacy", "dual_write", "legacy", "dual_write"] {
        sets.push(crossfade.start(&["stage", "set", name, "--json"])?);
    }
    let mut won = Vec::new();
    for set in sets {
        let document = set.finish(MINUTE).await?.json()?;
        match document["outcome"].as_str() {
            Some("moved") => won.push(document["stage"].clone()),
            Some("already") => {}
            Some("refused") => {
                let codes = codes(&document);
                ensure!(codes == ["overtaken"] || codes == ["transition"], "{document:#}");
            }
            _ => anyhow::bail!("{document:#}"),
        }
    }
    let (shown, _) = stage(&crossfade, &["show"]).await?;
    ensure!(won.len() == 1 && shown["stage"] == won[0] && shown["revision"] == 3, "{won:?} {shown:#}");
    run.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_is_told_when_it_changes_and_not_before() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(TABLE)?;
    let listen = Port::reserve()?;
    let port = listen.number();
    // Without gates: this is about the waiting.
    let stages: String =
        STAGES.lines().filter(|line| !line.starts_with("gate")).map(|line| format!("{line}\n")).collect();
    let plan = world.plan().section(&stages).section(&format!("[http]\nlisten = \"127.0.0.1:{port}\""));
    let crossfade = Crossfade::new(&plan)?;
    let mut run = ends(crossfade.start(&["run"]))?;
    answers(port).await?;
    let none = http::get(port, "/stage").await?;
    ensure!(none.status == 404 && none.json()?["error"]["code"] == "no_stage", "{none:?}");
    let begins = tokio::spawn(async move { http::get(port, "/stage?wait=60").await });
    moves_to(&crossfade, "legacy", 1).await?;
    let begun = begins.await??.json()?;
    ensure!(begun["stage"] == "legacy" && begun["revision"] == 1, "{begun:#}");

    let waits = tokio::spawn(async move { http::get(port, "/stage?after=1&wait=60").await });
    // One that waits for two seconds is told what it knows, and not sooner.
    let asked = std::time::Instant::now();
    let same = http::get(port, "/stage?after=1&wait=2").await?;
    ensure!(
        same.status == 200 && same.json()?["revision"] == 1 && asked.elapsed() >= Duration::from_secs(2),
        "{same:?}"
    );
    ensure!(!waits.is_finished(), "it returned before anything changed");
    moves_to(&crossfade, "read_new", 2).await?;
    let changed = waits.await??.json()?;
    ensure!(changed["stage"] == "read_new" && changed["revision"] == 2 && changed["from"] == "legacy", "{changed:#}");
    let flags = json!({ "READS": "new", "WRITES": "old", "DUAL_WRITE": "off" });
    ensure!(changed["flags"] == flags, "{changed:#}");
    // Who is behind is told at once.
    let behind = http::get(port, "/stage?after=1&wait=300").await?.json()?;
    ensure!(behind == changed, "{behind:#}");

    let env = crossfade.run(&["stage", "show", "--env"]).await?;
    let lines: Vec<&str> = env.stdout.lines().collect();
    let right = ["DUAL_WRITE=off", "READS=new", "WRITES=old", "CROSSFADE_STAGE=read_new", "CROSSFADE_STAGE_REVISION=2"];
    ensure!(env.status.success() && lines == right, "{env:?}");
    for (query, status) in [("after=x", 400), ("wait=301", 400), ("since=1", 400)] {
        let answer = http::get(port, &format!("/stage?{query}")).await?;
        ensure!(answer.status == status && answer.json()?["error"]["next"].is_string(), "{answer:?}");
    }
    run.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn status_and_metrics_are_told_over_http() -> Result<()> {
    let world = World::embedded()?;
    world.at_source(TABLE)?;
    let listen = Port::reserve()?;
    let port = listen.number();
    let plan = world.plan().section(STAGES).section(&format!("[http]\nlisten = \"127.0.0.1:{port}\""));
    let crossfade = Crossfade::new(&plan)?;
    let mut run = ends(crossfade.start(&["run"]))?;
    answers(port).await?;
    let status = until("lag zero over HTTP", MINUTE, || async {
        let status = http::get(port, "/status").await?.json()?;
        let there = status["phase"] == "following" && crossfade_tests::lag(&status) == Some((0, 0.0, 0));
        Ok(there.then_some(status))
    })
    .await?;
    let command = crossfade.status().await?;
    let keys = |value: &Value| value.as_object().map(|object| object.keys().cloned().collect::<Vec<_>>());
    ensure!(keys(&status) == keys(&command) && status["tables"] == command["tables"], "{status:#}\n{command:#}");

    let answer = http::get(port, "/metrics").await?;
    ensure!(answer.status == 200 && answer.head.contains("content-type: text/plain; version=0.0.4"), "{answer:?}");
    for line in [
        "crossfade_target_reached{plan=\"shop\"} 1",
        "crossfade_phase{plan=\"shop\",phase=\"following\"} 1",
        "crossfade_phase{plan=\"shop\",phase=\"copying\"} 0",
        "crossfade_writable_side{plan=\"shop\",side=\"source\"} 1",
        "crossfade_lag_seconds{plan=\"shop\",source=\"shop\"} 0",
        "crossfade_rows_copied{plan=\"shop\",source=\"shop\"} 100",
        "crossfade_tables{plan=\"shop\",source=\"shop\",state=\"joined\"} 1",
        "crossfade_verify_tables{plan=\"shop\",verdict=\"unverified\"} 1",
        "# TYPE crossfade_applied_rows_total counter",
    ] {
        ensure!(answer.body.lines().any(|other| other == line), "{line} is missing:\n{}", answer.body);
    }
    ensure!(answer.body.contains("\ncrossfade_wal_kept_bytes{plan=\"shop\",source=\"shop\"} "), "{}", answer.body);
    // Whoever wants to write, or something else, is told what there is.
    let posted = http::request(port, "POST", "/status").await?;
    ensure!(posted.status == 405 && posted.head.contains("allow: get, head"), "{posted:?}");
    let elsewhere = http::get(port, "/").await?;
    ensure!(elsewhere.status == 404 && elsewhere.body.contains("/metrics"), "{elsewhere:?}");
    // The embedded log has no place for a stage.
    let stage = http::get(port, "/stage").await?;
    ensure!(stage.status == 404 && stage.json()?["error"]["code"] == "embedded_log", "{stage:?}");
    run.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_by_name() -> Result<()> {
    let world = World::with_nats()?;
    let without = world.crossfade()?;
    let refused = without.run(&["stage", "--json"]).await?;
    ensure!(refused.status.code() == Some(2) && refused.error_code()? == "no_stage", "{refused:?}");
    let crossfade = Crossfade::new(&world.plan().section(STAGES))?;
    for arguments in [&["stage", "set", "nowhere", "--json"][..], &["stage", "show", "--env", "--json"]] {
        let refused = crossfade.run(arguments).await?;
        ensure!(refused.status.code() == Some(2) && refused.error_code()? == "no_stage", "{refused:?}");
    }
    let embedded = PlanFile::new("shop", &world.source_url(), &world.target_url()).section(STAGES);
    let refused = Crossfade::new(&embedded)?.run(&["stage", "set", "legacy", "--json"]).await?;
    ensure!(refused.status.code() == Some(2) && refused.error_code()? == "embedded_log", "{refused:?}");

    // Somebody else's port.
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let crossfade = Crossfade::new(&world.plan().section(&format!("[http]\nlisten = \"{address}\"")))?;
    for command in ["run", "capture", "apply"] {
        let refused = crossfade.run(&[command, "--json"]).await?;
        ensure!(refused.status.code() == Some(2) && refused.error_code()? == "listen_failed", "{refused:?}");
        ensure!(refused.stderr.contains("[http] listen") && refused.stderr.contains(&address), "{refused:?}");
    }
    Ok(())
}

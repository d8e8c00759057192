//! Given a plan that leaves rows out, and says so in findings: they are counted in the status and in the reports, with samples, and are gone when their cause is.
//! Errors keep a cutover from beginning, warnings do not. What a finding asks is refused where it stands in the plan, if it cannot be asked.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crossfade_tests::follow::following;
use crossfade_tests::{Crossfade, Finished, PlanFile, Port, Running, World, http, until};
use serde_json::{Value, json};

const MINUTE: Duration = Duration::from_secs(60);

const SOURCE: &str = "
CREATE TABLE workspace (id integer PRIMARY KEY, name text NOT NULL);
CREATE TABLE person (id integer PRIMARY KEY);
CREATE TABLE member (id integer PRIMARY KEY, workspace_id integer NOT NULL, person_id integer NOT NULL, bio text);
INSERT INTO workspace SELECT i, 'w' || i FROM generate_series(1, 20) i;
INSERT INTO person SELECT generate_series(1, 30);
INSERT INTO member SELECT i, i % 20 + 1, i % 30 + 1, NULL FROM generate_series(1, 100) i;
-- Twelve without a workspace, two without a person.
INSERT INTO member SELECT i, 900 + i % 3, 1, repeat('é', 600) FROM generate_series(101, 112) i;
INSERT INTO member VALUES (201, 1, 77, 'x'), (202, 2, 78, NULL);";

const TARGET: &str = "
CREATE TABLE account (id integer PRIMARY KEY, name text NOT NULL);
CREATE TABLE account_member (id integer PRIMARY KEY, account_id integer NOT NULL);";

const TABLES: &str = r#"
[[table]]
into = "public.account"
key = ["id"]
sql = "SELECT id, name FROM shop.public.workspace"

[[table]]
into = "public.account_member"
key = ["id"]
sql = "SELECT m.id, w.id AS account_id FROM shop.public.member m JOIN shop.public.workspace w ON w.id = m.workspace_id"
"#;

/// `person` is read by nothing else.
const FINDINGS: &str = r#"
[[finding]]
name = "member without a workspace"
reason = "not carried: it would belong to nobody"
sql = """
SELECT m.id, m.workspace_id, m.bio FROM shop.public.member m
 WHERE NOT EXISTS (SELECT FROM shop.public.workspace w WHERE w.id = m.workspace_id)
 ORDER BY m.id"""

[[finding]]
name = "member without a person"
reason = "carried, and nobody can log in"
severity = "warning"
sql = "SELECT m.id, m.bio FROM shop.public.member m LEFT JOIN shop.public.person p ON p.id = m.person_id WHERE p.id IS NULL ORDER BY 1"
"#;

const LOST: &str = "member without a workspace";
const NOBODY: &str = "member without a person";

fn plan(world: &World) -> PlanFile {
    world.plan().target_exists().section(TABLES)
}

/// What a document says of a finding.
fn of<'a>(document: &'a Value, name: &str) -> Result<&'a Value> {
    let all = document["findings"].as_array().with_context(|| format!("no findings: {document:#}"))?;
    all.iter().find(|finding| finding["name"] == name).with_context(|| format!("{name} in {document:#}"))
}

/// Waits until the status counts so many rows.
async fn counted(crossfade: &Crossfade, run: &mut Running, name: &str, rows: u64) -> Result<Value> {
    let what = format!("{rows} rows of {name:?}");
    let status = crossfade.wait_for(run, &what, MINUTE, |status| of(status, name).is_ok_and(|it| it["count"] == rows));
    Ok(of(&status.await?, name)?.clone())
}

/// The ids of its samples.
fn ids(finding: &Value) -> Vec<&str> {
    finding["samples"].as_array().into_iter().flatten().filter_map(|row| row["id"].as_str()).collect()
}

/// Both planted causes, as every document has to tell of them.
fn expect_planted(document: &Value) -> Result<()> {
    let (lost, nobody) = (of(document, LOST)?, of(document, NOBODY)?);
    let first: Vec<String> = (101..=110).map(|id| id.to_string()).collect();
    ensure!(lost["count"] == 12 && lost["severity"] == "error" && ids(lost) == first, "{lost:#}");
    ensure!(lost["reason"] == "not carried: it would belong to nobody" && lost["error"].is_null(), "{lost:#}");
    let bio = lost["samples"][0]["bio"].as_str().context("bio")?;
    ensure!(bio == format!("{}…", "é".repeat(500)), "{bio}");
    ensure!(nobody["count"] == 2 && nobody["severity"] == "warning", "{nobody:#}");
    let samples = json!([{ "id": "201", "bio": "x" }, { "id": "202", "bio": null }]);
    ensure!(nobody["samples"] == samples, "{nobody:#}");
    ensure!(nobody["lsns"]["shop"].as_str().is_some_and(|lsn| lsn.contains('/') && lsn != "0/0"), "{nobody:#}");
    Ok(())
}

fn refusals(report: &Value) -> Vec<&str> {
    let refused = report["refused"].as_array().into_iter().flatten();
    refused.filter(|one| one["code"] == "finding").filter_map(|one| one["text"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn they_are_counted_and_gone_with_their_cause() -> Result<()> {
    const CUTOVER: &[&str] = &["cutover", "--no-way-back", "--dry-run"];
    let world = World::with_nats()?;
    world.at_source(SOURCE)?;
    world.at_target(TARGET)?;
    let port = Port::reserve()?;
    let listen = format!("[http]\nlisten = \"127.0.0.1:{}\"", port.number());
    let number = port.number();
    let crossfade = Crossfade::new(&plan(&world).section(FINDINGS).section(&listen))?;
    drop(port);
    let mut run = following(&crossfade).await?;

    counted(&crossfade, &mut run, LOST, 12).await?;
    let nobody = counted(&crossfade, &mut run, NOBODY, 2).await?;
    ensure!(nobody["age"].as_f64().is_some_and(|age| (0.0..60.0).contains(&age)), "{nobody:#}");
    expect_planted(&crossfade.status().await?)?;
    let text = crossfade.run(&["status"]).await?.stdout;
    ensure!(text.contains("member without a workspace: 12 rows") && text.contains("id=101"), "{text}");
    let metrics = http::get(number, "/metrics").await?.body;
    let line = format!("crossfade_finding_rows{{plan=\"shop\",finding=\"{LOST}\",severity=\"error\"}} 12");
    ensure!(metrics.lines().any(|other| other == line), "{metrics}");
    let page = http::get(number, "/status").await?.json()?;
    ensure!(of(&page, LOST)?["count"] == 12, "{page:#}");

    let (report, code) = crossfade.says(&["verify"]).await?;
    expect_planted(&report)?;
    ensure!(code == Some(0) && report["verdict"] == "equal", "findings are no differences: {report:#}");
    let (report, code) = crossfade.says(&["reconcile"]).await?;
    expect_planted(&report)?;
    ensure!(code == Some(1) && report["verdict"] == "findings", "{report:#}");
    let (report, code) = crossfade.says(CUTOVER).await?;
    expect_planted(&report)?;
    ensure!(code == Some(1) && report["outcome"] == "refused", "{report:#}");
    let [text] = refusals(&report)[..] else { anyhow::bail!("{report:#}") };
    ensure!(text.contains(LOST) && text.contains("12 rows"), "{text}");

    // The cause goes, and with it what was left out comes.
    world.at_source("INSERT INTO workspace VALUES (900, 'a'), (901, 'b'), (902, 'c')")?;
    let lost = counted(&crossfade, &mut run, LOST, 0).await?;
    ensure!(lost["samples"] == json!([]), "{lost:#}");
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    ensure!(world.at_target("SELECT count(*) FROM account_member WHERE id BETWEEN 101 AND 112")? == "12");
    let (report, code) = crossfade.says(&["reconcile"]).await?;
    ensure!(code == Some(0) && of(&report, NOBODY)?["count"] == 2, "a warning is no error: {report:#}");
    crossfade.verified().await?;
    let (report, code) = crossfade.says(CUTOVER).await?;
    ensure!(code == Some(0) && report["outcome"] == "possible", "{report:#}");
    ensure!(of(&report, NOBODY)?["count"] == 2 && of(&report, LOST)?["count"] == 0, "{report:#}");

    world.at_source("DELETE FROM workspace WHERE id = 901; INSERT INTO person VALUES (77), (78)")?;
    counted(&crossfade, &mut run, NOBODY, 0).await?;
    let lost = counted(&crossfade, &mut run, LOST, 4).await?;
    ensure!(ids(&lost) == ["103", "106", "109", "112"], "{lost:#}");
    run.stop().await
}

/// Each: the query in the plan, where it is wrong (line and character), and what is said of it.
const BROKEN: [(&str, &str, &str); 5] = [
    ("SELECT m.id FROM shop.public.members m", ":25", "table shop.public.members: no source of the plan captures it"),
    ("SELECT m.workspace FROM shop.public.member m", ":15", "column m.workspace"),
    ("SELECT id FROM shop.public.member WHERE random() < 0.5", ":48", "VOLATILE"),
    ("SELECT id FROM shop.public.member WHERE", ":47", "syntax error"),
    ("SELECT id FROM shop.public.member WHERE bio > 7", ":8", "the target refuses it"),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_asked_is_refused_with_its_place() -> Result<()> {
    let world = World::embedded()?;
    world.at_source(SOURCE)?;
    world.at_target(TARGET)?;
    for (sql, place, why) in BROKEN {
        let finding = format!("[[finding]]\nname = \"f\"\nreason = \"r\"\nsql = {sql:?}");
        // Person is read by nothing else, and is not what this is about.
        let plan = plan(&world).top("ignore = [\"public.person\"]").section(&finding);
        let crossfade = Crossfade::new(&plan)?;
        let text = std::fs::read_to_string(crossfade.plan())?;
        let line =
            1 + text.lines().position(|line| line.starts_with("sql = ") && line.contains(sql)).context("line")?;
        let finished = crossfade.run(&["explain", "--json"]).await?;
        let problem = &finished.json()?["error"];
        let what = problem["what"].as_str().context("what")?;
        ensure!(finished.status.code() == Some(2) && problem["code"] == "sql_refused", "{finished:?}");
        ensure!(what.contains(&format!(":{line}{place} ([[finding]] \"f\")")), "{sql}: {what}");
        ensure!(problem["why"].as_str().is_some_and(|text| text.contains(why)), "{sql}: {problem:#}");
        let mut run = crossfade.start(&["run", "--json"])?;
        run.hush();
        let status = run.wait(MINUTE).await?;
        ensure!(status.code() == Some(2) && run.error_code().as_deref() == Some("sql_refused"), "{sql}: {status}");
    }
    Ok(())
}

fn slow(finished: &Finished) -> Result<()> {
    ensure!(finished.status.code() == Some(2), "a finding that takes too long was not counted: {finished:?}");
    ensure!(finished.json()?["verdict"] == "failed", "{finished:?}");
    Ok(())
}

/// Tables that go over as they are can be asked as well, and a question that takes its time holds nobody up.
#[tokio::test(flavor = "multi_thread")]
async fn a_question_gives_way_to_the_tail() -> Result<()> {
    const SLOW: &str = "[[finding]]\nname = \"slow\"\nreason = \"r\"\nsql = \"SELECT m.id FROM member m, generate_series(1, 2000000000) s WHERE m.id + s = 0\"";
    let world = World::embedded()?;
    world.at_source(SOURCE)?;
    let crossfade = Crossfade::new(&world.plan().section(SLOW))?;
    let mut run = following(&crossfade).await?;
    let asks = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '%findings%' AND state = 'active' AND query LIKE 'SELECT count(*), coalesce%'";
    until("it is asked", MINUTE, || async { Ok((world.at_target(asks)? == "1").then_some(())) }).await?;
    // While the question holds a lock on the table, and has most of its minute before it.
    world.at_source("TRUNCATE member; INSERT INTO member VALUES (1, 1, 1, 'new')")?;
    let there = "SELECT count(*) FROM member";
    until("the TRUNCATE is applied", MINUTE / 3, || async { Ok((world.at_target(there)? == "1").then_some(())) })
        .await?;
    let gave_way = |status: &Value| {
        of(status, "slow").is_ok_and(|it| it["error"].as_str().is_some_and(|why| why.contains("gave way")))
    };
    crossfade.wait_for(&mut run, "it gave way", MINUTE, gave_way).await?;
    run.stop().await?;

    let mut crossfade = crossfade;
    crossfade.replan(&world.plan().section(&format!("{SLOW}\ntimeout = \"300ms\"")))?;
    let finished = crossfade.run(&["reconcile", "--json"]).await?;
    slow(&finished)?;
    let document = finished.json()?;
    let error = &of(&document, "slow")?["error"];
    ensure!(error.as_str().is_some_and(|why| why.contains("longer than 0.3 s")), "{error}");
    Ok(())
}

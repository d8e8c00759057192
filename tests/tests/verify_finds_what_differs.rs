//! Given one difference, of the kind that comparisons overlook: verify names just these rows, and what is different in them.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crossfade_tests::follow::following;
use crossfade_tests::{Crossfade, World};
use serde_json::Value;

const MINUTE: Duration = Duration::from_secs(60);

async fn verify(crossfade: &Crossfade, arguments: &[&str]) -> Result<Value> {
    let finished = crossfade.start(&[&["verify", "--json"], arguments].concat())?.finish(2 * MINUTE).await?;
    let document = finished.json()?;
    let expected = i32::from(document["verdict"] != "equal");
    ensure!(finished.status.code() == Some(expected), "exit code {expected} expected: {finished:?}");
    Ok(document)
}

/// Its differences, each as `kind key: columns`.
fn found(report: &Value) -> BTreeSet<String> {
    let line = |table: &Value, sample: &Value| {
        let names = |value: &Value| -> Vec<String> {
            value.as_object().map(|columns| columns.keys().cloned().collect()).unwrap_or_default()
        };
        let key: Vec<&str> =
            sample["key"].as_object().map(|key| key.values().filter_map(Value::as_str).collect()).unwrap_or_default();
        let columns = if key.is_empty() { String::new() } else { names(&sample["columns"]).join(" ") };
        let kind = sample["kind"].as_str().unwrap_or_default();
        format!("{} {kind} {} {columns}", table["table"].as_str().unwrap_or_default(), key.join(","))
            .trim_end()
            .to_owned()
    };
    let tables = report["tables"].as_array().map(Vec::as_slice).unwrap_or_default();
    let samples = |table: &Value| table["samples"].as_array().cloned().unwrap_or_default();
    tables
        .iter()
        .flat_map(|table| samples(table).iter().map(|sample| line(table, sample)).collect::<Vec<_>>())
        .collect()
}

fn counts(report: &Value) -> (u64, u64, u64) {
    let tables = report["tables"].as_array().map(Vec::as_slice).unwrap_or_default();
    let sum = |key: &str| tables.iter().filter_map(|table| table[key].as_u64()).sum();
    (sum("missing"), sum("extra"), sum("different"))
}

/// Each is made at the target of a table of a million rows, found, and mended again.
#[tokio::test(flavor = "multi_thread")]
async fn one_at_a_time_among_a_million_rows() -> Result<()> {
    let world = World::embedded()?;
    world.at_source(
        "CREATE EXTENSION citext;
         CREATE TABLE big (id integer PRIMARY KEY, raw bytea, body text, exact numeric, instant timestamptz, fixed char(6));
         INSERT INTO big SELECT i, decode(md5(i::text), 'hex'), CASE WHEN i % 2 = 0 THEN '' END, 1.0, '2024-03-31 00:30+00'::timestamptz + i * interval '1 s', 'ab'
           FROM generate_series(1, 1000000) i;
         CREATE TABLE loose (name citext PRIMARY KEY, v integer); INSERT INTO loose SELECT 'key' || i, i FROM generate_series(1, 1000) i;
         CREATE TABLE p (id integer, region integer, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
         CREATE TABLE p_1 PARTITION OF p FOR VALUES IN (1); CREATE TABLE p_2 PARTITION OF p FOR VALUES IN (2);
         INSERT INTO p SELECT i, 1 + i % 2 FROM generate_series(1, 1000) i",
    )?;
    let crossfade = world.crossfade()?;
    let mut run = following(&crossfade).await?;
    let report = verify(&crossfade, &[]).await?;
    ensure!(report["verdict"] == "equal", "{report:#}");
    // A blank at the end counts in a varchar, and is nothing in a char: values as wide as the source prints them are the same.
    world.at_target("ALTER TABLE big ALTER fixed TYPE varchar(6) USING rpad(fixed, 6)")?;
    // A row in a partition that it does not belong to: Postgres guards against it, as long as it is one.
    world.at_target("ALTER TABLE p DETACH PARTITION p_1")?;
    let planted: [(&str, &str, &[&str]); 10] = [
        (
            "UPDATE big SET raw = set_bit(raw, 3, 1 - get_bit(raw, 3)) WHERE id = 777777",
            "UPDATE big SET raw = set_bit(raw, 3, 1 - get_bit(raw, 3)) WHERE id = 777777",
            &["public.big different 777777 raw"],
        ),
        (
            "CREATE TABLE aside AS SELECT * FROM big WHERE id = 5; DELETE FROM big WHERE id = 5",
            "INSERT INTO big SELECT * FROM aside; DROP TABLE aside",
            &["public.big missing 5"],
        ),
        ("INSERT INTO big VALUES (1000001)", "DELETE FROM big WHERE id = 1000001", &["public.big extra 1000001"]),
        (
            "UPDATE big b SET raw = decode(md5((300003 - b.id)::text), 'hex') WHERE id IN (100001, 200002)",
            "UPDATE big SET raw = decode(md5(id::text), 'hex') WHERE id IN (100001, 200002)",
            &["public.big different 100001 raw", "public.big different 200002 raw"],
        ),
        (
            "UPDATE big SET body = NULL WHERE id = 400000",
            "UPDATE big SET body = '' WHERE id = 400000",
            &["public.big different 400000 body"],
        ),
        (
            "UPDATE big SET exact = 1.00 WHERE id = 1",
            "UPDATE big SET exact = 1.0 WHERE id = 1",
            &["public.big different 1 exact"],
        ),
        (
            "UPDATE big SET instant = instant + interval '1 hour' WHERE id = 1000000",
            "UPDATE big SET instant = instant - interval '1 hour' WHERE id = 1000000",
            &["public.big different 1000000 instant"],
        ),
        (
            "UPDATE big SET fixed = 'ab   ' WHERE id = 123456",
            "UPDATE big SET fixed = 'ab    ' WHERE id = 123456",
            &["public.big different 123456 fixed"],
        ),
        (
            "UPDATE loose SET name = 'KEY7' WHERE v = 7",
            "UPDATE loose SET name = 'key7' WHERE v = 7",
            &["public.loose extra KEY7", "public.loose missing key7"],
        ),
        (
            "INSERT INTO p_1 VALUES (1, 2); DELETE FROM p_2 WHERE id = 1",
            "INSERT INTO p_2 VALUES (1, 2); DELETE FROM p_1 WHERE id = 1",
            &["public.p_1 extra 1,2", "public.p_2 missing 1,2"],
        ),
    ];
    for (plant, mend, expected) in planted {
        world.at_target(plant)?;
        let report = verify(&crossfade, &[]).await.context(plant)?;
        let expected: BTreeSet<String> = expected.iter().map(|line| (*line).to_owned()).collect();
        ensure!(
            report["verdict"] == "different" && found(&report) == expected,
            "{plant}: {:?} of {report:#}",
            found(&report)
        );
        world.at_target(mend)?;
    }
    let report = verify(&crossfade, &[]).await?;
    ensure!(report["verdict"] == "equal", "{report:#}");
    run.stop().await
}

/// XOR does not see two equal rows more, a sum of values not what one row lost and another one won.
#[tokio::test(flavor = "multi_thread")]
async fn neither_hash_nor_sum_cancels_out() -> Result<()> {
    let world = World::embedded()?;
    world.at_source(
        "CREATE TABLE keyless (a integer, b text); ALTER TABLE keyless REPLICA IDENTITY FULL;
         INSERT INTO keyless SELECT i % 100, CASE WHEN i % 3 > 0 THEN 'b' END FROM generate_series(1, 3000) i;
         CREATE TABLE t (id integer PRIMARY KEY, n integer, s text); INSERT INTO t SELECT i, i, 's' FROM generate_series(1, 3000) i",
    )?;
    let crossfade = Crossfade::new(&world.plan().identity("public.keyless", "full"))?;
    let mut run = following(&crossfade).await?;
    ensure!(verify(&crossfade, &[]).await?["verdict"] == "equal");
    // (missing, extra, different)
    let planted = [
        (
            "INSERT INTO keyless SELECT 7, 'b' FROM generate_series(1, 2)",
            "DELETE FROM keyless WHERE ctid IN (SELECT ctid FROM keyless WHERE (a, b) = (7, 'b') LIMIT 2)",
            (0, 2, 0),
        ),
        (
            "INSERT INTO keyless SELECT 7, 'b' FROM generate_series(1, 256)",
            "DELETE FROM keyless WHERE ctid IN (SELECT ctid FROM keyless WHERE (a, b) = (7, 'b') LIMIT 256)",
            (0, 256, 0),
        ),
        // One more of one row, one fewer of another.
        (
            "DELETE FROM keyless WHERE ctid = (SELECT ctid FROM keyless WHERE a = 1 AND b = 'b' LIMIT 1); INSERT INTO keyless VALUES (2, 'b')",
            "DELETE FROM keyless WHERE ctid = (SELECT ctid FROM keyless WHERE a = 2 AND b = 'b' LIMIT 1); INSERT INTO keyless VALUES (1, 'b')",
            (1, 1, 0),
        ),
        // The same change to two rows, and opposite ones.
        ("UPDATE t SET n = n + 1 WHERE id IN (10, 20)", "UPDATE t SET n = id WHERE id IN (10, 20)", (0, 0, 2)),
        (
            "UPDATE t SET n = n + CASE id WHEN 10 THEN 1 ELSE -1 END WHERE id IN (10, 20)",
            "UPDATE t SET n = id WHERE id IN (10, 20)",
            (0, 0, 2),
        ),
        (
            "UPDATE t SET n = id, s = CASE id WHEN 10 THEN '' END WHERE id IN (10, 20)",
            "UPDATE t SET s = 's' WHERE id IN (10, 20)",
            (0, 0, 2),
        ),
        ("UPDATE t SET s = 'S'", "UPDATE t SET s = 's'", (0, 0, 3000)),
        ("DELETE FROM t", "INSERT INTO t SELECT i, i, 's' FROM generate_series(1, 3000) i", (3000, 0, 0)),
    ];
    for (plant, mend, expected) in planted {
        world.at_target(plant)?;
        let report = verify(&crossfade, &[]).await.context(plant)?;
        ensure!(
            report["verdict"] == "different" && counts(&report) == expected,
            "{plant}: {:?} of {report:#}",
            counts(&report)
        );
        world.at_target(mend)?;
    }
    ensure!(verify(&crossfade, &[]).await?["verdict"] == "equal");
    // People see the rows, in the report's file all of them, and with --mask none of their values.
    world.at_target("UPDATE t SET s = 'secret' WHERE id = 10; DELETE FROM t WHERE id = 11")?;
    let finished = crossfade.run(&["verify", "--table", "public.t"]).await?;
    ensure!(
        finished.stdout.contains("missing  id = 11") && finished.stdout.contains("target \"secret\""),
        "{finished:?}"
    );
    let reports: Vec<_> =
        std::fs::read_dir(crossfade.state_dir().join("reports"))?.flatten().map(|entry| entry.path()).collect();
    let lines =
        reports.iter().filter(|path| path.extension().is_some_and(|ending| ending == "jsonl")).max().context("rows")?;
    let lines = std::fs::read_to_string(lines)?;
    ensure!(
        lines.lines().count() == 2 && lines.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()),
        "{lines}"
    );
    let masked = crossfade.run(&["verify", "--table", "public.t", "--mask", "--json"]).await?;
    ensure!(!masked.stdout.contains("secret") && masked.stdout.contains("6 characters"), "{masked:?}");
    run.stop().await
}

/// Nothing compared is not equal.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_compared_is_inconclusive() -> Result<()> {
    let world = World::embedded()?;
    world.at_source("CREATE TABLE t (id integer PRIMARY KEY, v text); CREATE TABLE u (id integer PRIMARY KEY)")?;
    let crossfade = world.crossfade()?;
    let early = crossfade.run(&["verify", "--json"]).await?;
    ensure!(early.status.code() == Some(2) && early.error_code()? == "no_tables", "{early:?}");
    let mut run = following(&crossfade).await?;
    let unknown = crossfade.run(&["verify", "--table", "public.nothing", "--json"]).await?;
    ensure!(unknown.status.code() == Some(2) && unknown.error_code()? == "no_tables", "{unknown:?}");
    let none = crossfade.run(&["verify", "--resume", "--json"]).await?;
    ensure!(none.status.code() == Some(2) && none.error_code()? == "nothing_to_resume", "{none:?}");
    world.at_target("ALTER TABLE t RENAME v TO w; CREATE ROLE other; ALTER TABLE u OWNER TO other")?;
    let report = verify(&crossfade, &[]).await?;
    let t = &report["tables"][0];
    ensure!(
        report["verdict"] == "inconclusive" && t["why"].as_str().is_some_and(|why| why.contains("no column \"v\"")),
        "{report:#}"
    );
    // Nobody is told that it is equal because the other table is.
    let verdicts = world.at_target("SELECT name || ' ' || verdict FROM crossfade.verdict ORDER BY 1")?;
    ensure!(verdicts == "t inconclusive\nu equal", "{verdicts}");
    run.stop().await
}

/// What was done is done, and the rest is under other snapshots.
#[tokio::test(flavor = "multi_thread")]
async fn killed_at_half_it_goes_on_where_it_was() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(
        "CREATE TABLE big (id bigint PRIMARY KEY, filler text); INSERT INTO big SELECT i, repeat(md5(i::text), 30) FROM generate_series(1, 200000) i",
    )?;
    let slow = world.plan().section("[verify]\nrows_per_second = 20000\nconnections = 1\nrenew = \"1s\"");
    let crossfade = Crossfade::new(&slow)?;
    let mut run = following(&crossfade).await?;
    world.at_target("DELETE FROM big WHERE id % 10000 = 1")?;
    let mut first = crossfade.start(&["verify", "--json"])?;
    let done = "SELECT coalesce(string_agg(part || ' ' || done_at, ',' ORDER BY part), '') FROM crossfade.verify_part WHERE done_at IS NOT NULL";
    crossfade_tests::until("a part that is done, and one that is not", MINUTE, || async {
        let row = world.at_target("SELECT to_regclass('crossfade.verify_part') IS NOT NULL")?;
        Ok((row == "t" && world.at_target(done)?.matches(' ').count() >= 2).then_some(()))
    })
    .await?;
    let unfinished = crossfade.status().await?["verify"]["unfinished"].clone();
    ensure!(unfinished["running"] == true && unfinished["done"].as_u64() >= Some(1), "{unfinished:#}");
    first.kill9()?;
    first.hush();
    let status = crossfade_tests::until("nobody at it any more", MINUTE, || async {
        let status = crossfade.status().await?;
        Ok((status["verify"]["unfinished"]["running"] == false).then_some(status))
    });
    let unfinished = status.await?["verify"]["unfinished"].clone();
    ensure!(unfinished["parts"].as_u64() > unfinished["done"].as_u64(), "{unfinished:#}");
    let shown = crossfade.run(&["status"]).await?.stdout;
    ensure!(shown.contains("cut off") && shown.contains("`crossfade verify --resume` goes on with it"), "{shown}");
    let before = world.at_target(done)?;
    let open = world.at_target("SELECT count(*) FROM crossfade.verify_part WHERE done_at IS NULL")?;
    ensure!(open.parse::<u32>()? > 0, "it was through before it was killed");
    // A signal is its pause: it says so, and where the rows are.
    let mut second = crossfade.start(&["verify", "--json", "--resume"])?;
    crossfade_tests::until("another part that is done", MINUTE, || async {
        Ok((world.at_target(done)?.len() > before.len()).then_some(()))
    })
    .await?;
    second.term()?;
    let second = second.finish(MINUTE).await?;
    ensure!(second.status.code() == Some(143) && second.stdout.is_empty(), "{second:?}");
    ensure!(second.stderr.contains("`crossfade verify --resume` goes on"), "{second:?}");
    let file =
        second.stderr.lines().find_map(|line| line.split_once("as far as it came: ")).context("a file of rows")?;
    let lines = std::fs::read_to_string(file.1)?;
    ensure!(lines.lines().count() > 0 && lines.lines().all(|line| line.contains("missing")), "{lines}");
    // Gone on with while nothing runs, it stays as it was.
    run.stop().await?;
    let report = verify(&crossfade, &["--resume"]).await?;
    let why = report["tables"][0]["why"].as_str().unwrap_or_default();
    ensure!(why.contains("neither capture"), "{report:#}");
    let mut run = following(&crossfade).await?;
    let report = verify(&crossfade, &["--resume"]).await?;
    ensure!(counts(&report) == (20, 0, 0) && report["tables"][0]["rows"] == 200_000, "{report:#}");
    let after = world.at_target(done)?;
    ensure!(before.split(',').all(|part| after.contains(part)), "parts were done again: {before} and {after}");
    ensure!(report["fences"].as_u64() >= Some(2), "its snapshots were not renewed: {report:#}");
    ensure!(crossfade.status().await?["verify"]["unfinished"].is_null(), "it is through");
    run.stop().await
}

/// What was changed since it was equal, and nothing else, is compared again; a table that was emptied, as a whole.
#[tokio::test(flavor = "multi_thread")]
async fn rechecked_is_what_was_touched() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(
        "CREATE TABLE t (id integer PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 5000) i;
         CREATE TABLE still (id integer PRIMARY KEY); INSERT INTO still SELECT generate_series(1, 100);
         CREATE TABLE emptied (id integer PRIMARY KEY); INSERT INTO emptied SELECT generate_series(1, 100);
         CREATE TABLE keyless (a integer); ALTER TABLE keyless REPLICA IDENTITY FULL; INSERT INTO keyless VALUES (1), (2)",
    )?;
    let crossfade = Crossfade::new(&world.plan().identity("public.keyless", "full"))?;
    let mut run = following(&crossfade).await?;
    let rows = |report: &Value| -> Vec<String> {
        let tables = report["tables"].as_array().map(Vec::as_slice).unwrap_or_default();
        tables.iter().map(|table| format!("{} {}", table["table"], table["rows"]).replace('"', "")).collect()
    };
    let report = verify(&crossfade, &["--recheck"]).await?;
    let whole = ["public.emptied 100", "public.keyless 2", "public.still 100", "public.t 5000"];
    ensure!(report["verdict"] == "equal" && rows(&report) == whole, "what was never compared is compared: {report:#}");
    world.at_source("UPDATE t SET v = 'w' WHERE id <= 10; UPDATE t SET id = 9000 WHERE id = 11; DELETE FROM t WHERE id = 12; INSERT INTO t VALUES (9001, 'x')")?;
    world.at_source("TRUNCATE emptied; INSERT INTO emptied VALUES (1), (2), (3); INSERT INTO keyless VALUES (3)")?;
    // Beside what was touched, and so not seen; a verify of everything would.
    world.at_target("UPDATE t SET v = 'unseen' WHERE id = 4000")?;
    let report = verify(&crossfade, &["--recheck"]).await?;
    let few = ["public.emptied 3", "public.keyless 3", "public.still 0", "public.t 14"];
    ensure!(report["verdict"] == "equal" && rows(&report) == few, "{report:#}");
    world.at_source("UPDATE t SET v = 'y' WHERE id IN (5, 6)")?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    world.at_target("UPDATE t SET v = 'z' WHERE id = 5")?;
    let report = verify(&crossfade, &["--recheck"]).await?;
    ensure!(found(&report) == BTreeSet::from(["public.t different 5 v".to_owned()]), "{report:#}");
    // It was different: from now on it is compared as a whole, until it is equal.
    let report = verify(&crossfade, &["--recheck"]).await?;
    ensure!(counts(&report) == (0, 0, 2), "{report:#}");
    run.stop().await
}

/// A rehearsal finds in the log what the target held, part by part.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_tells_what_the_target_held() -> Result<()> {
    let world = World::embedded()?;
    world.at_source(
        "CREATE TABLE t (id integer PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 5000) i",
    )?;
    let crossfade = world.crossfade()?;
    let mut run = following(&crossfade).await?;
    // What goes into the log by the source is to be seen by anybody who decodes its WAL.
    world.at_source("SELECT pg_create_logical_replication_slot('reader', 'test_decoding')")?;
    let report = verify(&crossfade, &[]).await?;
    let said = world
        .at_source("SELECT data FROM pg_logical_slot_get_changes('reader', NULL, NULL) WHERE data LIKE '%verified%'")?;
    let line = said.lines().find(|line| line.starts_with('{')).with_context(|| said.clone())?;
    let held: Value = serde_json::from_str(line)?;
    let [zero, other] = [0, 0x5EED].map(|seed| format!("sum(hashtextextended(ROW(id, v)::text, {seed}))::text"));
    let sums = world.at_target(&format!("SELECT {zero} || ' ' || {other} FROM t"))?;
    let mut expected = String::new();
    for sum in sums.split(' ') {
        expected += &format!("{:016x}", sum.parse::<i128>()? as u64);
    }
    ensure!(held["sum"] == expected, "{held}, not {expected}");
    ensure!(held["table"] == "public.t" && held["rows"] == 5000 && held["equal"] == true, "{held}");
    ensure!(held["lsn"] == report["tables"][0]["lsn"], "{held} and {report}");
    world.at_source("SELECT pg_drop_replication_slot('reader')")?;
    run.stop().await
}

/// A part that is done says nothing of a copy that was made later.
#[tokio::test(flavor = "multi_thread")]
async fn resumed_over_another_copy_it_begins_anew() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(
        "CREATE TABLE big (id bigint PRIMARY KEY, filler text); INSERT INTO big SELECT i, repeat(md5(i::text), 30) FROM generate_series(1, 100000) i",
    )?;
    let crossfade = Crossfade::new(&world.plan().section("[verify]\nrows_per_second = 30000"))?;
    let mut run = following(&crossfade).await?;
    let mut first = crossfade.start(&["verify", "--json"])?;
    let done = "SELECT count(*) FROM crossfade.verify_part WHERE done_at IS NOT NULL";
    crossfade_tests::until("a part that is done", MINUTE, || async {
        let row = world.at_target("SELECT to_regclass('crossfade.verify_part') IS NOT NULL")?;
        Ok((row == "t" && world.at_target(done)? != "0").then_some(()))
    })
    .await?;
    first.kill9()?;
    first.hush();
    ensure!(
        world.at_target("SELECT count(*) FROM crossfade.verify_part WHERE done_at IS NULL")? != "0",
        "it was through"
    );
    let finished = crossfade.run(&["recopy", "public.big"]).await?;
    ensure!(finished.status.success(), "{finished:?}");
    crossfade_tests::until("the next copy", MINUTE, || async {
        let sql = "SELECT (SELECT epoch FROM crossfade.tables) = 2 AND (SELECT joined FROM crossfade.checkpoint)";
        Ok((world.at_target(sql)? == "t").then_some(()))
    })
    .await?;
    let copied = world.at_target("SELECT clock_timestamp()")?;
    let report = verify(&crossfade, &["--resume"]).await?;
    ensure!(report["verdict"] == "equal" && report["tables"][0]["rows"] == 100_000, "{report:#}");
    let old = world.at_target(&format!("SELECT count(*) FROM crossfade.verify_part WHERE done_at < '{copied}'"))?;
    ensure!(old == "0", "{old} parts of the copy before were not compared again");
    run.stop().await
}

/// Neither waits for ever, and no table is called equal that nobody knows of.
#[tokio::test(flavor = "multi_thread")]
async fn while_nothing_runs_it_says_so() -> Result<()> {
    let world = World::embedded()?;
    world.at_source("CREATE TABLE t (id integer PRIMARY KEY)")?;
    let crossfade = world.crossfade()?;
    let mut run = following(&crossfade).await?;
    run.stop().await?;
    world.at_source("CREATE TABLE later (id integer PRIMARY KEY)")?;
    let begun = std::time::Instant::now();
    let report = verify(&crossfade, &[]).await?;
    ensure!(begun.elapsed() < MINUTE / 4, "it took {:?} to see that", begun.elapsed());
    let why: Vec<&str> =
        report["tables"].as_array().into_iter().flatten().filter_map(|table| table["why"].as_str()).collect();
    ensure!(report["verdict"] == "inconclusive" && why.len() == 2, "{report:#}");
    ensure!(
        why[0].contains("no copy of it has begun")
            && why[1].contains("neither capture")
            && why[1].contains("start `crossfade run`"),
        "{why:?}"
    );
    ensure!(report["why"] == why[0], "{report:#}");
    Ok(())
}

/// A sample says so, and is never taken for the whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_sample_is_no_verdict_on_the_whole() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(
        "CREATE TABLE big (id bigint PRIMARY KEY, filler text); INSERT INTO big SELECT i, repeat(md5(i::text), 30) FROM generate_series(1, 150000) i;
         CREATE TABLE small (id integer PRIMARY KEY); INSERT INTO small VALUES (1)",
    )?;
    let crossfade = world.crossfade()?;
    let mut run = following(&crossfade).await?;
    let report = verify(&crossfade, &["--sample", "40"]).await?;
    let rows = report["tables"][0]["rows"].as_u64().unwrap_or_default();
    ensure!(report["verdict"] == "equal" && report["sample"] == 40.0 && (1..150_000).contains(&rows), "{report:#}");
    ensure!(report["tables"][1]["rows"] == 1, "a small table is compared whole: {report:#}");
    let parts =
        |table: usize| ["parts", "parts_of"].map(|key| report["tables"][table][key].as_u64().unwrap_or_default());
    let [compared, all] = parts(0);
    ensure!((1..all).contains(&compared) && parts(1) == [1, 1], "{report:#}");
    let told = crossfade.run(&["verify", "--sample", "40", "--table", "public.big"]).await?.stdout;
    ensure!(told.contains("equal: 1 table in "), "{told}");
    ensure!(told.contains(&format!("a sample of 40 %: {compared} of {all} parts")), "{told}");
    let verdicts = world.at_target("SELECT string_agg(sample::text, ' ') FROM crossfade.verdict")?;
    ensure!(verdicts == "40 40", "{verdicts}");
    // What was not looked at may be anything: nothing builds on a sample.
    let report = verify(&crossfade, &["--recheck"]).await?;
    let whole = &report["tables"][0];
    ensure!(whole["rows"] == 150_000 && whole["parts"] == whole["parts_of"], "{report:#}");
    run.stop().await
}

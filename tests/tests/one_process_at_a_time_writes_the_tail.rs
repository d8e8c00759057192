//! Given a process that is stopped (SIGSTOP), replaced, and continued, or that loses the lease in the middle of a batch: it is refused and told by
//! whom, it writes nothing more, and no batch is applied twice. The table has no key, so that a row that came twice shows.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use crossfade_tests::mixed::{self, Writers};
use crossfade_tests::{Cluster, Crossfade, Nats, Running, World, follow, until};
use model::{CopyColumn, CopyEnd, Record, Snapshot, TableBegin, TableEnd, TableName};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio_postgres::Client;

const MINUTE: Duration = Duration::from_secs(60);
const TAKEOVER: Duration = Duration::from_secs(10);

/// Ends when the application's session named so does something for which it waits.
async fn waits_for_a_lock(observer: &Client, session: &str) -> Result<()> {
    let sql = "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE '%' || $1::text AND wait_event_type = 'Lock'";
    until("a session that waits for a lock", MINUTE, || async {
        Ok(observer.query_opt(sql, &[&session]).await?.map(drop))
    })
    .await
}

fn journal(world: &World) -> Result<()> {
    world
        .at_source("CREATE TABLE journal (what text); INSERT INTO journal SELECT i FROM generate_series(1, 100) AS i")
        .map(drop)
}

fn plan(world: &World) -> crossfade_tests::PlanFile {
    world.plan().identity("public.journal", "insert_only")
}

async fn locked(cluster: &Cluster) -> Result<Client> {
    let lock = cluster.client("app").await?;
    lock.batch_execute("BEGIN; LOCK TABLE journal IN SHARE MODE").await?;
    Ok(lock)
}

fn signal(process: &Running, signal: Signal) -> Result<()> {
    Ok(kill(Pid::from_raw(process.pid() as i32), signal)?)
}

/// It has seen a target that had taken in nothing; what it finds then, in the log and in the target, another one has brought there meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_stood_still_before_there_was_anything_misses_nothing() -> Result<()> {
    let world = World::with_nats()?;
    journal(&world)?;
    let (here, there, elsewhere) =
        (Crossfade::new(&plan(&world))?, Crossfade::new(&plan(&world))?, Crossfade::new(&plan(&world))?);
    let first = there.start_standing(&["apply"], "taken_asked", TAKEOVER)?;
    let observer = world.target.client("app").await?;
    let there = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'crossfade apply' AND state = 'idle'";
    until("that it has asked", MINUTE, || async { Ok(observer.query_opt(there, &[]).await?.map(drop)) }).await?;
    let mut capture = here.start(&["capture"])?;
    let second = elsewhere.start(&["apply"])?;
    here.wait_for_phase(&mut capture, "following", MINUTE).await?;
    let both = "SELECT 1 FROM crossfade.worker HAVING count(*) = 2";
    let at_work = until("both at work", MINUTE, || async { Ok(observer.query_opt(both, &[]).await?.map(drop)) });
    at_work.await.with_context(|| first.log_tail())?;
    for mut process in [first, second, capture] {
        process.stop().await?;
    }
    world.expect_equal().await
}

/// Two that start at the same time publish the same tables; which of them goes on, the slot decides.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_publishes_what_another_one_has_published_meanwhile_goes_on() -> Result<()> {
    let world = World::with_nats()?;
    world.at_source(
        "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY); INSERT INTO b VALUES (1)",
    )?;
    let (here, there) = (world.crossfade()?, world.crossfade()?);
    let mut first = there.start_standing(&["capture"], "publication_altered", TAKEOVER)?;
    let published = "SELECT count(*) FROM pg_publication_rel";
    until("the first table to be published", MINUTE, || async {
        Ok((world.at_source(published)? == "1").then_some(()))
    })
    .await?;
    let mut run = follow::following(&here).await?;
    until("the first one to wait for the slot", MINUTE, || async {
        Ok(first.log_tail().contains("another connection reads the slot").then_some(()))
    })
    .await?;
    world.at_source("INSERT INTO b VALUES (2)")?;
    here.wait_for_lag_zero(&mut run, MINUTE).await?;
    first.stop().await?;
    run.stop().await?;
    world.expect_equal().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_apply_that_was_replaced_is_refused_when_it_wakes_and_nothing_of_it_arrives() -> Result<()> {
    let world = World::with_nats()?;
    journal(&world)?;
    let (here, there, elsewhere) =
        (Crossfade::new(&plan(&world))?, Crossfade::new(&plan(&world))?, Crossfade::new(&plan(&world))?);
    let mut capture = here.start(&["capture"])?;
    let first = there.start(&["apply", "--json"])?;
    here.wait_for_phase(&mut capture, "following", MINUTE).await?;
    let mut second = elsewhere.start(&["apply"])?;
    let observer = world.target.client("app").await?;
    let workers = "SELECT 1 FROM crossfade.worker HAVING count(*) = 2";
    until("the second one's first sign", MINUTE, || async { Ok(observer.query_opt(workers, &[]).await?.map(drop)) })
        .await?;

    // The holder stands still in the middle of a batch: it has read it, and holds a transaction with its first rows.
    let lock = locked(&world.target).await?;
    world.at_source("INSERT INTO journal SELECT 'batch ' || i FROM generate_series(1, 100) AS i")?;
    waits_for_a_lock(&observer, "apply tail").await?;
    // Another session of the holder's that holds the lease in a transaction goes with it.
    let other = world.target.client("app").await?;
    other
        .batch_execute("SET application_name = 'crossfade apply control'; BEGIN; SELECT FROM crossfade.lease FOR SHARE")
        .await?;
    signal(&first, Signal::SIGSTOP)?;
    let stopped = Instant::now();
    lock.batch_execute("COMMIT").await?;
    world.at_source("INSERT INTO journal SELECT 'later ' || i FROM generate_series(1, 100) AS i")?;
    let second_pid = second.pid();
    until("the takeover", TAKEOVER, || async {
        let row = observer
            .query_one(
                "SELECT worker LIKE '%:' || $1::text, (SELECT count(*) FROM journal) FROM crossfade.lease",
                &[&second_pid.to_string()],
            )
            .await?;
        Ok((row.get::<_, Option<bool>>(0) == Some(true) && row.get::<_, i64>(1) >= 300).then_some(()))
    })
    .await?;
    eprintln!("taken over after {:?}", stopped.elapsed());
    signal(&first, Signal::SIGCONT)?;
    world.at_source("INSERT INTO journal SELECT 'awake ' || i FROM generate_series(1, 100) AS i")?;
    is_refused_by(first, &second).await?;
    here.wait_for_lag_zero(&mut capture, MINUTE).await?;
    world.expect_equal().await?;
    capture.stop().await?;
    second.stop().await
}

/// It ends, and says who has its place.
async fn is_refused_by(first: Running, second: &Running) -> Result<()> {
    let ended = first.finish(MINUTE).await?;
    ensure!(ended.status.code() == Some(1) && ended.error_code()? == "writer_refused", "{ended:?}");
    ensure!(ended.stdout.contains(&format!(":{}", second.pid())), "it does not say by whom: {}", ended.stdout);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_capture_that_was_replaced_is_refused_when_it_wakes_and_nothing_of_it_arrives() -> Result<()> {
    // The source gives a silent reader's slot to the next one after this time.
    let source = Cluster::build().set("wal_sender_timeout", "3s").start()?;
    let world = World::of(source, Cluster::start()?, Some(Nats::start()?))?;
    mixed::create(&world.source, "app")?;
    let plan = mixed::plan(world.plan());
    let (here, there, elsewhere) = (Crossfade::new(&plan)?, Crossfade::new(&plan)?, Crossfade::new(&plan)?);
    let mut apply = there.start(&["apply"])?;
    let mut first = here.start(&["capture", "--json"])?;
    here.wait_for_phase(&mut first, "following", MINUTE).await?;
    let writers = Writers::start(&world.source, "app", 2, 21).await?;
    let some = async |count: u64| {
        let before = writers.transactions();
        until("some transactions", MINUTE, || async { Ok((writers.transactions() > before + count).then_some(())) })
            .await
    };
    some(200).await?;
    // In the middle of the load: it has appends under way, and more to read.
    signal(&first, Signal::SIGSTOP)?;
    let mut second = elsewhere.start(&["capture"])?;
    until("the other one writes", MINUTE, || async {
        Ok(second.log_tail().contains("tail starts source=\"shop\" ").then_some(()))
    })
    .await?;
    some(200).await?;
    signal(&first, Signal::SIGCONT)?;
    some(200).await?;
    is_refused_by(first, &second).await?;
    writers.stop().await?;
    elsewhere.wait_for_lag_zero(&mut second, MINUTE).await?;
    world.expect_equal().await?;
    second.stop().await?;
    apply.stop().await
}

/// What it has under way to the copy's streams is not chained: these are written by many at once.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_replaced_capture_says_of_its_copies_is_void() -> Result<()> {
    let world = World::with_nats()?;
    journal(&world)?;
    let nats = world.nats.as_ref().context("a world with NATS")?;
    let crossfade = Crossfade::new(&plan(&world))?;
    let mut run = follow::following(&crossfade).await?;
    let table = TableName::new("public", "journal");
    let writer = "replaced".to_owned();
    let column = CopyColumn { name: "what".into(), type_name: "text".into(), not_null: false };
    let begin = TableBegin {
        table: table.clone(),
        epoch: 2,
        snapshot: Snapshot::default(),
        columns: vec![column],
        key: Vec::new(),
        root: None,
        partition_bound: String::new(),
        rows_estimated: 0,
        bytes_estimated: 0,
        marker: "2 public.journal".into(),
        writer: writer.clone(),
        full: false,
        heirs: false,
    };
    let end = TableEnd { table: table.clone(), epoch: 2, chunks: 0, rows: 0, writer: writer.clone() };
    let done = CopyEnd { marker: "nobody emits it".into(), tables: vec![(table, 2)], writer };
    let records =
        [Record::TableBegin(begin), Record::TableEnd(end), Record::CopyEnd(done)].map(|record| record.encode());
    let says = || records.iter().try_for_each(|record| nats.publish("crossfade.shop.shop.copy", record));
    says()?;
    let last = nats.last(&nats.stream("_COPY")?)?;
    let taken = format!("SELECT 1 FROM crossfade.checkpoint WHERE control_seq >= {last}");
    let target = world.target.client("app").await?;
    until("apply has seen them", MINUTE, || async { Ok(target.query_opt(&taken, &[]).await?) }).await?;
    world.at_source("INSERT INTO journal VALUES ('later')")?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    run.stop().await?;
    ensure!(world.at_target("SELECT epoch, next_epoch IS NULL FROM crossfade.tables")? == "1|t");
    // Capture reads them again when it starts, and would take for copied what is to be copied again.
    let asked = crossfade.run(&["recopy", "public.journal"]).await?;
    ensure!(asked.status.success(), "{asked:?}");
    says()?;
    let mut run = crossfade.start(&["run"])?;
    world.at_source("INSERT INTO journal VALUES ('last')")?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    world.expect_equal().await?;
    ensure!(world.at_target("SELECT epoch, next_epoch IS NULL FROM crossfade.tables")? == "2|t");
    run.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lease_cannot_be_taken_from_under_an_open_batch_and_nothing_is_written_without_it() -> Result<()> {
    let world = World::embedded()?;
    journal(&world)?;
    let crossfade = Crossfade::new(&plan(&world))?;
    let mut run = follow::following(&crossfade).await?;
    let other = world.target.client("app").await?;
    let lock = locked(&world.target).await?;
    world.at_source("INSERT INTO journal VALUES ('batch')")?;
    waits_for_a_lock(&other, "apply tail").await?;
    // Somebody who lives takes it: this session, in another process's name.
    let take = "UPDATE crossfade.lease SET token = token + 1, worker = 'other:1', pid = pg_backend_pid(),
                       backend_start = (SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid())";
    other
        .batch_execute(
            "INSERT INTO crossfade.worker VALUES ('other:1', now() + interval '1 hour'); SET lock_timeout = '300ms'",
        )
        .await?;
    ensure!(other.batch_execute(take).await.is_err(), "the lease was taken while a batch was open");
    lock.batch_execute("COMMIT").await?;
    let lsn = "SELECT lsn::text FROM crossfade.checkpoint";
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    other.batch_execute(take).await?;
    let before: String = other.query_one(lsn, &[]).await?.get(0);
    world.at_source("INSERT INTO journal VALUES ('without the lease')")?;
    let ended = run.finish(MINUTE).await?;
    ensure!(ended.status.code() == Some(1) && ended.stderr.contains("other:1"), "{ended:?}");
    ensure!(
        world.at_target("SELECT count(*) FROM journal")? == "101"
            && other.query_one(lsn, &[]).await?.get::<_, String>(0) == before
    );
    drop(other);
    let mut run = crossfade.start(&["run"])?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    world.expect_equal().await?;
    run.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_somebody_else_has_applied_is_not_applied_again() -> Result<()> {
    let world = World::embedded()?;
    journal(&world)?;
    let crossfade = Crossfade::new(&plan(&world))?;
    let mut run = follow::following(&crossfade).await?;
    let lock = locked(&world.target).await?;
    let observer = world.target.client("app").await?;
    world.at_source("INSERT INTO journal VALUES ('batch')")?;
    waits_for_a_lock(&observer, "apply tail").await?;
    // Meanwhile the same batch is applied here, with its checkpoint.
    let end = world.at_source("SELECT pg_current_wal_lsn()")?;
    lock.batch_execute(&format!(
        "SET session_replication_role = replica; INSERT INTO journal VALUES ('batch'); UPDATE crossfade.checkpoint SET lsn = '{end}'; COMMIT"
    ))
    .await?;
    world.at_source("INSERT INTO journal VALUES ('next')")?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    world.expect_equal().await?;
    run.stop().await
}

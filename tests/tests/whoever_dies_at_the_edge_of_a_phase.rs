//! Given a cutover or a rollback that stands at the edge of a phase: whoever else dies there, capture, apply, a server or the log, it ends with one writable side, and nothing that was
//! acknowledged is lost. Two writers, one at each side, try all the time; they must never succeed on both within one epoch.
//!
//! Each edge meets two of those who may die; with EDGES=all (`make soak`) each of them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use crossfade_tests::{Cluster, Crossfade, Nats, Running, Shutdown, World, until};
use serde_json::Value;

const MINUTE: Duration = Duration::from_secs(60);

/// How long a cutover stands still: longer than a server takes to come back, shorter than it leads.
const STANDS: Duration = Duration::from_millis(2_500);

/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// Failpoints of a cutover, each with the state that the journal has by then.
const EDGES: [(&str, &str); 8] = [
    ("cutover_begun", "begun"),
    ("cutover_fencing", "fencing"),
    ("fence_closed", "fencing"),
    ("cutover_fenced", "fenced"),
    ("cutover_drained", "drained"),
    ("cutover_prepared", "prepared"),
    ("decision_committed", "committed"),
    ("application_routed", "committed"),
];

/// Who dies.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Capture,
    Apply,
    Source,
    Target,
    Nats,
}

const VICTIMS: [Victim; 5] = [Victim::Capture, Victim::Apply, Victim::Source, Victim::Target, Victim::Nats];

/// A migration that goes on whatever happens.
struct Scene {
    world: World,
    crossfade: Crossfade,
    capture: Running,
    apply: Running,
}

impl Scene {
    async fn begin() -> Result<Scene> {
        // What a killed server had acknowledged must be there.
        let world =
            World::of(Cluster::build().durable().start()?, Cluster::build().durable().start()?, Some(Nats::start()?))?;
        world.at_source(
            "CREATE TABLE tries (id bigserial PRIMARY KEY, side text, n bigint);
             CREATE TABLE a (id bigint PRIMARY KEY, v text); INSERT INTO a SELECT i, i::text FROM generate_series(1, 2000) i",
        )?;
        let crossfade = world.crossfade()?;
        let capture = crossfade.start(&["capture"])?;
        let mut apply = crossfade.start(&["apply"])?;
        crossfade.wait_for_phase(&mut apply, "following", MINUTE).await?;
        let verified = crossfade.run(&["verify"]).await?;
        ensure!(verified.status.success(), "{verified:?}");
        Ok(Scene { world, crossfade, capture, apply })
    }

    fn kill(&mut self, victim: Victim) -> Result<()> {
        match victim {
            Victim::Capture => {
                self.capture.kill9()?;
                self.capture.hush();
                self.capture = self.crossfade.start(&["capture"])?;
            }
            Victim::Apply => {
                self.apply.kill9()?;
                self.apply.hush();
                self.apply = self.crossfade.start(&["apply"])?;
            }
            Victim::Source => self.world.source.restart(Shutdown::Immediate)?,
            Victim::Target => self.world.target.restart(Shutdown::Immediate)?,
            Victim::Nats => {
                let nats = self.world.nats.as_mut().context("there is one")?;
                nats.kill9()?;
                nats.boot()?;
            }
        }
        Ok(())
    }

    /// A process that has ended because a server was away when it started, or by a law, is started again, as its supervisor would.
    fn supervise(&mut self) -> Result<()> {
        for (running, command) in [(&mut self.capture, "capture"), (&mut self.apply, "apply")] {
            if !running.is_running()? {
                running.hush();
                *running = self.crossfade.start(&[command])?;
            }
        }
        Ok(())
    }

    /// The last epoch's state, in the journal of the side that it opens.
    fn state(&self, back: bool) -> Result<Option<String>> {
        let query = "SELECT state FROM crossfade.journal ORDER BY epoch DESC LIMIT 1";
        let there = "SELECT to_regclass('crossfade.journal') IS NOT NULL";
        let cluster = if back { &self.world.source } else { &self.world.target };
        if cluster.psql("app", there)? != "t" {
            return Ok(None);
        }
        Ok(Some(cluster.psql("app", query)?).filter(|state| !state.is_empty()))
    }
}

/// A write that was acknowledged: where, and when it was.
type Success = (&'static str, Instant);

/// Tries to write to one side until it is told to stop.
async fn tries(dsn: String, side: &'static str, stop: Arc<AtomicBool>, done: Arc<Mutex<Vec<Success>>>) -> Result<i64> {
    let (mut n, mut acknowledged) = (0_i64, 0);
    while !stop.load(Ordering::Relaxed) {
        let Ok((client, connection)) = tokio_postgres::connect(&dsn, tokio_postgres::NoTls).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        tokio::spawn(connection);
        while !stop.load(Ordering::Relaxed) && !client.is_closed() {
            n += 1;
            let written = client.execute("INSERT INTO tries (side, n) VALUES ($1::text, $2)", &[&side, &n]).await;
            if written.is_ok() {
                acknowledged += 1;
                done.lock().map_err(|_| anyhow!("a thread that held the lock panicked"))?.push((side, Instant::now()));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    Ok(acknowledged)
}

/// How often the side changed that writes were acknowledged on.
fn changes(done: &Mutex<Vec<Success>>) -> Result<usize> {
    let mut done = done.lock().map_err(|_| anyhow!("a thread that held the lock panicked"))?.clone();
    done.sort_by_key(|(_, at)| *at);
    Ok(done.windows(2).filter(|pair| pair[0].0 != pair[1].0).count())
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_with_one_writable_side_and_nothing_lost() -> Result<()> {
    let mut scene = Scene::begin().await?;
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
    let writers: Vec<_> = [(&scene.world.source, "source"), (&scene.world.target, "target")]
        .into_iter()
        .map(|(cluster, side)| {
            tokio::spawn(tries(cluster.socket_dsn("app"), side, Arc::clone(&stop), Arc::clone(&done)))
        })
        .collect();
    let all = std::env::var("EDGES").is_ok_and(|edges| edges == "all");
    let (mut back, mut committed, mut cancelled) = (false, 0, 0);
    for (number, (point, state)) in EDGES.into_iter().enumerate() {
        for (which, victim) in VICTIMS.into_iter().enumerate() {
            // Over all edges each of them has its turn three times or more.
            if !all && (which + 2 * number) % 5 > 1 {
                continue;
            }
            let case = format!("{victim:?} at {point}, {}", if back { "rollback" } else { "cutover" });
            let went = one(&mut scene, back, point, state, victim).await.with_context(|| case.clone())?;
            match went {
                true => (committed, back) = (committed + 1, !back),
                false => cancelled += 1,
            }
            // It is the one side now, and it alone.
            let (open, shut) = if back { ("target", "source") } else { ("source", "target") };
            let since = Instant::now();
            until("a write on the open side", MINUTE, || async {
                let done = done.lock().map_err(|_| anyhow!("a thread that held the lock panicked"))?;
                Ok(done.iter().any(|(side, at)| *side == open && *at > since).then_some(()))
            })
            .await
            .with_context(|| case.clone())?;
            let wrong = done
                .lock()
                .map_err(|_| anyhow!("a thread that held the lock panicked"))?
                .iter()
                .filter(|(side, at)| *side == shut && *at > since)
                .count();
            ensure!(wrong == 0, "{case}: {wrong} writes on the {shut}, which is closed");
            let turns = changes(&done)?;
            ensure!(turns == committed, "{case}: the writable side changed {turns} times, {committed} were committed");
        }
    }
    ensure!(committed > 0 && cancelled > 0, "{committed} committed, {cancelled} cancelled");
    println!("{committed} committed, {cancelled} cancelled");
    stop.store(true, Ordering::Relaxed);
    let mut acknowledged = Vec::new();
    for writer in writers {
        acknowledged.push(writer.await??);
    }
    let counts = "SELECT count(DISTINCT n) FILTER (WHERE side = 'source'), count(DISTINCT n) FILTER (WHERE side = 'target') FROM tries";
    let expected = format!("{}|{}", acknowledged[0], acknowledged[1]);
    // One that was written and not acknowledged, because the connection broke, may be there.
    let at_least = |found: &str| {
        let pair =
            |text: &str| text.split_once('|').and_then(|(a, b)| Some((a.parse::<i64>().ok()?, b.parse::<i64>().ok()?)));
        pair(found).zip(pair(&expected)).is_some_and(|(found, expected)| found.0 >= expected.0 && found.1 >= expected.1)
    };
    let begun = Instant::now();
    while let Err(error) = scene.world.expect_equal().await {
        ensure!(begun.elapsed() < MINUTE, "{error:#}");
        scene.supervise()?;
        tokio::time::sleep(LOOK).await;
    }
    let found = scene.world.at_target(counts)?;
    ensure!(at_least(&found), "{expected} writes were acknowledged, {found} are there");
    scene.capture.stop().await?;
    scene.apply.stop().await
}

/// Stands at an edge while somebody dies. Says whether it was committed, once it is at its end.
async fn one(scene: &mut Scene, back: bool, point: &str, state: &str, victim: Victim) -> Result<bool> {
    let command = if back { "rollback" } else { "cutover" };
    ready(scene, command).await?;
    let mut cutover = scene.crossfade.start_standing(&[command, "--json", "--timeout", "20s"], point, STANDS)?;
    cutover.hush();
    while scene.state(back)?.as_deref() != Some(state) {
        ensure!(cutover.is_running()?, "{command} has ended before the journal said {state}");
        tokio::time::sleep(LOOK).await;
    }
    scene.kill(victim)?;
    let ended = cutover.wait(2 * MINUTE).await?;
    // Whoever lives brings it to its end, or the next one of the same kind.
    let begun = Instant::now();
    loop {
        scene.supervise()?;
        match scene.state(back) {
            Ok(Some(state)) if state == "cancelled" => return Ok(false),
            Ok(Some(state)) if state == "routed" && back || state == "reversing" => return Ok(true),
            Ok(Some(state)) if state == "committed" || state == "routed" => {
                scene.crossfade.run(&[command, "--json"]).await?;
            }
            // Undecided: the guard in capture and apply is at it. Or the server is on its way.
            Ok(_) | Err(_) => {}
        }
        ensure!(begun.elapsed() < 2 * MINUTE, "{command} ended with {ended}, and nobody brings it to an end");
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits until nothing is in the way.
async fn ready(scene: &mut Scene, command: &str) -> Result<()> {
    let mut last = Value::Null;
    let begun = Instant::now();
    loop {
        scene.supervise()?;
        let finished = scene.crossfade.run(&[command, "--dry-run", "--json"]).await?;
        if let Ok(report) = finished.json() {
            if report["outcome"] == "possible" {
                return Ok(());
            }
            last = report;
        }
        ensure!(begun.elapsed() < 2 * MINUTE, "{command} is not possible: {last:#}");
    }
}

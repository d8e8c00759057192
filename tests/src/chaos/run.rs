use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::fault::{Fault, Planned};
use super::load::Load;
use super::processes::Processes;
use super::report::{Counts, Report};
use super::scene::Scene;
use super::shape::{Act, Shape};
use crate::{connect, lag};

/// How often processes and faults are looked at.
const TICK: Duration = Duration::from_millis(20);

/// For the load to run before the first process is started.
const HEAD_START: Duration = Duration::from_millis(300);

/// How long everything may take to come to rest once nothing goes wrong any more. Who has not got there by then hangs.
const PATIENCE: Duration = Duration::from_secs(180);

/// How often it is looked how far the migration is.
const LOOK: Duration = Duration::from_millis(100);

/// How often the watch looks whether the target shows half a transaction.
const WATCH: Duration = Duration::from_millis(100);

/// What purses hold together, whatever is moved between them.
const MONEY: i64 = 200 * 1000;

/// What a migration under chaos consists of.
pub(super) struct Chaos {
    scene: Scene,
    processes: Processes,
    counts: Counts,
    log: Vec<String>,
    begun: Instant,
}

/// Does one run and reports; nothing that goes wrong in it is an error of this. With `keep` a good run leaves its folder behind, too.
pub(super) async fn run(shape: &Shape, keep: bool) -> Report {
    let begun = Instant::now();
    let scene = match Scene::set(shape).await {
        Ok(scene) => scene,
        Err(error) => return Report::failed(shape, begun, error.context("setting the scene")),
    };
    let processes = match scene.crossfade(shape).and_then(|home| Processes::ready(shape.mode, &home)) {
        Ok(processes) => processes,
        Err(error) => return Report::failed(shape, begun, error.context("getting ready")),
    };
    let mut chaos = Chaos { scene, processes, counts: Counts::default(), log: Vec::new(), begun: Instant::now() };
    let outcome = chaos.go(shape).await;
    chaos.counts.restarts = chaos.processes.restarts;
    let outcome = outcome.and_then(|()| chaos.counts.expect_something());
    let kept = match &outcome {
        Ok(()) if chaos.counts.differences == 0 && !keep => None,
        _ => Some(chaos.keep(shape, &outcome)),
    };
    Report::new(shape, begun, chaos.counts, outcome, kept)
}

impl Chaos {
    async fn go(&mut self, shape: &Shape) -> Result<()> {
        let dsn = self.scene.source_dsn();
        let load = Load::start(&dsn, shape.seed, shape.clients);
        tokio::time::sleep(HEAD_START).await;
        self.begun = Instant::now();
        let watch = tokio::spawn(watch(self.scene.target_dsn()));
        let tail = async {
            let trouble = self.acts(shape, &load).await;
            if load.expect_alive().is_ok() {
                trouble?;
            }
            self.counts.transactions = load.stop(&dsn).await?;
            self.note(format!("the load has stopped after {} transactions", self.counts.transactions));
            self.come_to_rest().await
        };
        let outcome = tail.await;
        watch.abort();
        let halves = watch.await.ok();
        outcome?;
        if let Some(seen) = halves {
            bail!("the target showed half a transaction: {}", seen?);
        }
        self.compare().await?;
        self.processes.stop().await
    }

    /// Everything that the seed has planned, while the load writes.
    async fn acts(&mut self, shape: &Shape, load: &Load) -> Result<()> {
        self.act(&shape.copy, load).await?;
        let begun = Instant::now();
        while !self.scene.joined().await {
            self.processes.supervise()?;
            load.expect_alive()?;
            ensure!(begun.elapsed() < PATIENCE, "not joined within {PATIENCE:?}\n{}", self.processes.log_tails());
            tokio::time::sleep(LOOK).await;
        }
        self.note("copy and tail are joined".to_owned());
        self.act(&shape.tail, load).await
    }

    async fn act(&mut self, act: &Act, load: &Load) -> Result<()> {
        let begun = Instant::now();
        let mut acts: Vec<(Duration, bool, Planned)> =
            act.faults.iter().flat_map(|fault| [(fault.at, true, *fault), (fault.end(), false, *fault)]).collect();
        // Stable: what is over at once begins before it ends.
        acts.sort_by_key(|(at, ..)| *at);
        let mut acts = acts.into_iter().peekable();
        self.counts.planned += act.faults.len() as u64;
        loop {
            self.processes.supervise()?;
            let now = begun.elapsed();
            while let Some((_, begins, fault)) = acts.next_if(|(at, ..)| *at <= now) {
                if begins {
                    self.begin(fault).await.with_context(|| fault.to_string())?;
                } else {
                    self.end(fault).with_context(|| format!("the end of: {fault}"))?;
                }
            }
            if acts.peek().is_none() && now >= act.length {
                return Ok(());
            }
            load.expect_alive()?;
            tokio::time::sleep(TICK).await;
        }
    }

    async fn begin(&mut self, planned: Planned) -> Result<()> {
        let joined = self.scene.joined().await;
        let (landed, who) = match planned.fault {
            Fault::Kill { process } => {
                let killed = self.processes.kill(process)?;
                self.counts.kills += u64::from(killed.is_some());
                (killed.is_some(), killed.unwrap_or("nobody"))
            }
            Fault::Freeze { process, replaced } => {
                let frozen = self.processes.freeze(process, replaced)?;
                self.counts.freezes += u64::from(frozen.is_some());
                (frozen.is_some(), frozen.unwrap_or("nobody"))
            }
            Fault::Crash(server) => {
                self.scene.stop(server)?;
                self.counts.kills += 1;
                (true, "")
            }
            Fault::Network(server, trouble) => {
                let landed = self.scene.trouble(server, trouble);
                self.counts.cuts += u64::from(landed);
                self.processes.cut_off |= landed;
                (landed, "")
            }
        };
        self.counts.landed += u64::from(landed);
        self.counts.in_copy += u64::from(landed && !joined);
        let phase = if joined { "tail" } else { "copy" };
        self.note(format!("{planned} {who} ({phase}{})", if landed { "" } else { ", to no effect" }));
        Ok(())
    }

    fn end(&mut self, planned: Planned) -> Result<()> {
        match planned.fault {
            Fault::Kill { .. } => {}
            Fault::Freeze { .. } => self.processes.thaw()?,
            Fault::Crash(server) => self.scene.start(server)?,
            Fault::Network(server, trouble) => self.scene.relief(server, trouble),
        }
        self.note(format!("over: {}", planned.fault));
        Ok(())
    }

    /// Until copy and tail are joined and nothing is left to apply.
    async fn come_to_rest(&mut self) -> Result<()> {
        let begun = Instant::now();
        loop {
            self.processes.supervise()?;
            let last = match self.processes.home()?.status().await {
                Ok(status) if status["phase"] == "following" && lag(&status) == Some((0, 0.0, 0)) => break,
                Ok(status) => status.to_string(),
                Err(error) => format!("{error:#}"),
            };
            ensure!(
                begun.elapsed() < PATIENCE,
                "no lag zero within {PATIENCE:?}; last status: {last}\n{}",
                self.processes.log_tails()
            );
            tokio::time::sleep(LOOK).await;
        }
        self.counts.rest = begun.elapsed();
        self.note(format!("at rest after {:.1} s", self.counts.rest.as_secs_f32()));
        Ok(())
    }

    async fn compare(&mut self) -> Result<()> {
        let found = self.scene.compare().await.context("compare")?;
        self.counts.applied = self.scene.applied()?;
        self.counts.rows = found.rows;
        self.counts.differences = found.differences;
        ensure!(found.tables > 0 && found.rows > 0, "there was nothing to compare");
        if found.differences > 0 {
            self.note(found.to_string());
        }
        Ok(())
    }

    fn note(&mut self, what: String) {
        self.log.push(format!("{:6.2} s  {what}", self.begun.elapsed().as_secs_f32()));
    }

    /// Keeps all that shows what happened; says where.
    fn keep(&self, shape: &Shape, outcome: &Result<()>) -> String {
        let folder =
            std::env::temp_dir().join(format!("crossfade-chaos-seed-{}-pid-{}", shape.seed, std::process::id()));
        let keep = || {
            std::fs::create_dir_all(&folder)?;
            let mut text = format!("{shape}\n{}\nexits: {:?}\n", self.log.join("\n"), self.processes.exits);
            if let Err(error) = outcome {
                text += &format!("\n{error:#}\n");
            }
            std::fs::write(folder.join("run.txt"), text)?;
            self.processes.keep(&folder)?;
            self.scene.keep(&folder)
        };
        match keep() {
            Ok(()) => folder.display().to_string(),
            Err(error) => format!("{} (not all of it: {error:#})", folder.display()),
        }
    }
}

/// Ends when the target, once joined, shows purses that do not hold what they must: half a transaction.
async fn watch(dsn: String) -> Result<i64> {
    loop {
        tokio::time::sleep(WATCH).await;
        let Ok(client) = connect(&dsn).await else { continue };
        // One statement, so one snapshot.
        let sql =
            "SELECT sum(amount)::bigint FROM public.purse WHERE (SELECT bool_and(joined) FROM crossfade.checkpoint)";
        while let Ok(row) = client.query_one(sql, &[]).await {
            if let Some(sum) = row.get::<_, Option<i64>>(0).filter(|sum| *sum != MONEY) {
                return Ok(sum);
            }
            tokio::time::sleep(WATCH).await;
        }
    }
}

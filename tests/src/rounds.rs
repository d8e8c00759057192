//! One migration that is cut over and rolled back again and again, while an application goes on writing: what it sees of that, from outside.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::follow::{captured_back, following};
use crate::writers::{self, Fate, Route, Row, Writers};
use crate::{Cluster, Crossfade, Nats, PgBouncer, World, compare, until};

/// How many write through the route.
const WRITERS: i32 = 16;

/// Together some 1,200 commits in a second: more than 1,000, and room for everything else on two processors.
const PAUSE: Duration = Duration::from_micros(13_300);

/// Who tries to write to the source, past every route, and who to the target.
const PROBES: [i32; 2] = [100, 101];

/// How often.
const PROBE_PAUSE: Duration = Duration::from_millis(10);

/// Rows that the new side has to have acknowledged before it goes on.
const ENOUGH: usize = 500;

/// What is refused or cancelled has changed nothing, and is tried again so often.
const TRIES: u32 = 5;

const LIMIT: Duration = Duration::from_secs(120);

/// How the application is led over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// It writes through a PgBouncer of the plan.
    PgBouncer,
    /// It connects anew, by a connection string that the hook `route` changes.
    Route,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Summary {
    /// What the writers saw at each cutover.
    pub cutovers: Vec<Duration>,
    /// What they saw at each rollback.
    pub rollbacks: Vec<Duration>,
    /// Rows that were acknowledged, those of the probes among them.
    pub rows: usize,
    /// Of the writers, in a second.
    pub rate: f64,
    /// Acknowledged rows that a side lacks or has twice, in the end.
    pub fate: Fate,
    /// Epochs in which both sides took writes.
    pub both: usize,
    /// Epochs in which no probe got through.
    pub unseen: usize,
    /// Rows that are not the same on both sides in the end.
    pub differences: u64,
}

impl Summary {
    /// Nothing lost, nothing twice, one writable side.
    pub fn good(&self) -> bool {
        self.fate == Fate::default() && self.both == 0 && self.unseen == 0 && self.differences == 0
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let figures = |gaps: &[Duration]| {
            let mut ms: Vec<u128> = gaps.iter().map(Duration::as_millis).collect();
            ms.sort_unstable();
            let middle = ms.get(ms.len().saturating_sub(1) / 2).copied().unwrap_or_default();
            format!("p50 {middle} ms max {} ms", ms.last().copied().unwrap_or_default())
        };
        write!(
            f,
            "rounds: {} cutovers {}, {} rollbacks {}, {} rows acknowledged, {} lost, {} twice",
            self.cutovers.len(),
            figures(&self.cutovers),
            self.rollbacks.len(),
            figures(&self.rollbacks),
            self.rows,
            self.fate.lost,
            self.fate.twice
        )
    }
}

/// Goes so many rounds, each a cutover and a rollback, and looks for every row in the end. `say` gets a line for each.
///
/// # Errors
/// It could not be measured. What was measured and is wrong stands in the [`Summary`].
pub async fn rounds(count: u32, via: Via, say: impl Fn(&str)) -> Result<Summary> {
    let world =
        World::of(Cluster::build().durable().start()?, Cluster::build().durable().start()?, Some(Nats::start()?))?;
    world.at_source(writers::TABLE)?;
    let pool = PgBouncer::start(&world.source, &world.target).await?;
    let section = match via {
        Via::PgBouncer => pool.section(),
        Via::Route => {
            "[cutover.hooks]\nroute = \"cp $CROSSFADE_WRITABLE_SIDE.dsn now.tmp && mv now.tmp now.dsn\"\n".to_owned()
        }
    };
    let crossfade = Crossfade::new(&world.plan().section(&section))?;
    let file = |name: &str| crossfade.folder().join(name);
    std::fs::write(file("source.dsn"), world.source.socket_dsn("app"))?;
    std::fs::write(file("target.dsn"), world.target.socket_dsn("app"))?;
    std::fs::copy(file("source.dsn"), file("now.dsn"))?;
    let mut run = following(&crossfade).await?;
    captured_back(&world).await?;

    let mut writers = Writers::default();
    for writer in 0..WRITERS {
        let route = match via {
            Via::PgBouncer => Route::Fixed(pool.url()),
            Via::Route => Route::File(file("now.dsn")),
        };
        writers.add(writer, route, PAUSE);
    }
    for (probe, cluster) in PROBES.into_iter().zip([&world.source, &world.target]) {
        writers.add(probe, Route::Fixed(cluster.socket_dsn("app")), PROBE_PAUSE);
    }
    let started = Instant::now();
    let ports = [world.source.port(), world.target.port()];
    until("rows at the source", LIMIT, || async { Ok((writers.count(ports[0], started) > ENOUGH).then_some(())) })
        .await?;
    let verified = crossfade.start(&["verify", "--json"])?.finish(LIMIT).await?;
    ensure!(verified.status.success(), "{verified:?}");

    let mut begun = Vec::new();
    for round in 1..=count {
        let mut line = format!("round {round}:");
        for (command, from, to) in [("cutover", ports[0], ports[1]), ("rollback", ports[1], ports[0])] {
            let (at, report) = committed(&crossfade, command, &say).await.with_context(|| run.log_tail())?;
            begun.push(at);
            until("rows of writers and of the probe at the new side", LIMIT, || async {
                let seen = writers.rows().iter().rev().take_while(|row| row.acknowledged >= at).fold(
                    (0, 0),
                    |(rows, probes), row| match row.port == to {
                        true if PROBES.contains(&row.writer) => (rows, probes + 1),
                        true => (rows + 1, probes),
                        false => (rows, probes),
                    },
                );
                tokio::time::sleep(Duration::from_millis(50)).await;
                Ok((seen.0 >= ENOUGH && seen.1 > 0).then_some(()))
            })
            .await?;
            let rows: Vec<Row> = writers.rows().into_iter().filter(|row| row.acknowledged >= at).collect();
            let gap = writers::change(&of_writers(&rows), from, to)?.gap.as_millis();
            line += &format!(" {command} {gap} ms (by its own word {} ms)", report["write_gap_ms"]);
        }
        say(&line);
    }
    let elapsed = started.elapsed();
    let rows = writers.stop().await?;
    let mut summary = Summary {
        rows: rows.len(),
        rate: of_writers(&rows).len() as f64 / elapsed.as_secs_f64(),
        ..judged(&rows, &begun, ports)?
    };
    settled(&world).await;
    summary.fate = writers::fates(&world, &rows).await?;
    let found = compare::databases(&world.source.socket_dsn("app"), &world.target.socket_dsn("app")).await?;
    say(&found.to_string());
    summary.differences = found.differences;
    say(&format!(
        "{:.0} commits/s of the writers; {} epochs in which both sides took writes, {} in which no probe got through",
        summary.rate, summary.both, summary.unseen
    ));
    run.stop().await?;
    Ok(summary)
}

/// Runs `cutover` or `rollback` until it is committed; when that one began, and what it said.
async fn committed(crossfade: &Crossfade, command: &str, say: &impl Fn(&str)) -> Result<(Instant, Value)> {
    for _ in 0..TRIES {
        let at = Instant::now();
        let finished = crossfade.start(&[command, "--json"])?.finish(LIMIT).await?;
        let report = finished.json().with_context(|| format!("{finished:?}"))?;
        match report["outcome"].as_str() {
            Some("committed") if report["unfinished"].is_null() => return Ok((at, report)),
            Some("refused" | "cancelled") => {
                say(&format!("{command}: {} {}{}", report["outcome"], report["refused"], report["why"]));
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            _ => bail!("{command}: {report:#}\n{}", finished.stderr),
        }
    }
    bail!("{command} was not committed in {TRIES} tries")
}

fn of_writers(rows: &[Row]) -> Vec<Row> {
    rows.iter().filter(|row| !PROBES.contains(&row.writer)).copied().collect()
}

/// The changes, and whether both sides took writes in one: by everybody's rows, from one command to the next.
fn judged(rows: &[Row], begun: &[Instant], ports: [u16; 2]) -> Result<Summary> {
    let mut summary = Summary::default();
    for (epoch, from) in begun.iter().enumerate() {
        let until = begun.get(epoch + 1);
        let within = |row: &&Row| row.acknowledged >= *from && until.is_none_or(|until| row.acknowledged < *until);
        let rows: Vec<Row> = rows.iter().filter(within).copied().collect();
        let (old, new) = if epoch % 2 == 0 { (ports[0], ports[1]) } else { (ports[1], ports[0]) };
        let gaps = if epoch % 2 == 0 { &mut summary.cutovers } else { &mut summary.rollbacks };
        gaps.push(writers::change(&of_writers(&rows), old, new)?.gap);
        summary.both += usize::from(writers::change(&rows, old, new)?.both);
        summary.unseen += usize::from(!rows.iter().any(|row| row.port == new && PROBES.contains(&row.writer)));
    }
    Ok(summary)
}

/// Waits until the side that follows has as much as the other; what it lacks even then is lost.
async fn settled(world: &World) {
    let query = "SELECT count(*) FROM numbered";
    let _ = until("both sides with as many rows", LIMIT, || async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        Ok((world.at_source(query)? == world.at_target(query)?).then_some(()))
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of one writer: the server's port, when it was sent and acknowledged in milliseconds.
    fn rows(begin: Instant, rows: &[(u16, u64, u64)]) -> Vec<Row> {
        let at = |ms: u64| begin + Duration::from_millis(ms);
        let row = |&(port, sent, acknowledged): &(u16, u64, u64)| Row {
            writer: 0,
            number: 0,
            port,
            sent: at(sent),
            acknowledged: at(acknowledged),
        };
        rows.iter().map(row).collect()
    }

    #[test]
    fn a_late_acknowledgement_is_none_of_two_writable_sides() -> Result<()> {
        let begin = Instant::now();
        let late = writers::change(&rows(begin, &[(1, 0, 5), (2, 90, 100), (1, 4, 110)]), 1, 2)?;
        assert!(!late.both && late.gap.is_zero());
        let apart = writers::change(&rows(begin, &[(1, 0, 5), (2, 90, 100)]), 1, 2)?;
        assert!(!apart.both && apart.gap == Duration::from_millis(95));
        let both = writers::change(&rows(begin, &[(1, 0, 5), (2, 90, 100), (1, 101, 102)]), 1, 2)?;
        assert!(both.both);
        Ok(())
    }

    #[test]
    fn what_is_lost_or_written_to_both_sides_is_no_good() {
        assert!(Summary::default().good());
        assert!(!Summary { fate: Fate { lost: 1, twice: 0 }, ..Summary::default() }.good());
        assert!(!Summary { both: 1, ..Summary::default() }.good());
        assert!(!Summary { unseen: 1, ..Summary::default() }.good());
    }
}

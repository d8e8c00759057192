//! Lag at 1,000 transactions/s: the time from a commit at the source until it is seen at the target, looked at from
//! outside on both sides.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use harness::{Pgbench, World, until};

use crate::PATIENCE;
use crate::rivals::{Ours, Theirs};

/// Transactions per second, and for how long.
const RATE: u32 = 1000;
const SECONDS: u32 = 60;
/// Between two probes: 600 of them give six above the 99th percentile.
const EVERY: Duration = Duration::from_millis(100);
/// Between two looks at the target: the measure's resolution, and little work.
const LOOK: Duration = Duration::from_millis(5);

/// What was measured, in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Lag {
    p50: f64,
    /// 99 of 100 commits were there after this.
    pub p99: f64,
    worst: f64,
    /// The last third is clearly behind the first.
    pub growing: bool,
}

impl fmt::Display for Lag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let growing = if self.growing { ", growing" } else { "" };
        write!(f, "p50 {:.3} s, p99 {:.3} s, worst {:.3} s{growing}", self.p50, self.p99, self.worst)
    }
}

/// crossfade's. It is stopped afterwards.
pub async fn ours(world: &World, ours: &Ours, load: &Pgbench, rss: &mut u64) -> Result<Lag> {
    let mut running = ours.start()?;
    let lag = measure(world, "ours", load).await.map_err(|error| error.context(running.log_tail()))?;
    *rss = running.peak_rss_mib().unwrap_or_default();
    running.stop().await?;
    Ok(lag)
}

/// The subscription's. It is disabled afterwards.
pub async fn theirs(world: &World, theirs: &Theirs, load: &Pgbench) -> Result<Lag> {
    theirs.enable(world)?;
    let lag = measure(world, "theirs", load).await?;
    theirs.disable(world).await?;
    Ok(lag)
}

async fn measure(world: &World, database: &str, load: &Pgbench) -> Result<Lag> {
    let (source, target) = (world.source.client("app").await?, world.target.client(database).await?);
    let newest = "SELECT coalesce(max(id), 0) FROM probe";
    // It follows, and nothing is left from before.
    source.execute("INSERT INTO probe SELECT coalesce(max(id), 0) + 1 FROM probe", &[]).await?;
    let first: i64 = source.query_one(newest, &[]).await?.get(0);
    until("changes that arrive", PATIENCE, || async {
        Ok((target.query_one(newest, &[]).await?.get::<_, i64>(0) >= first).then_some(()))
    })
    .await?;

    let mut load = load.clone().rate(RATE).start(SECONDS)?;
    let seen = source.prepare("INSERT INTO probe VALUES ($1)").await?;
    let (mut sent, mut lags): (Vec<Instant>, Vec<f64>) = (Vec::new(), Vec::new());
    let mut probes = tokio::time::interval(EVERY);
    let mut looks = tokio::time::interval(LOOK);
    let mut writing = true;
    // One task does both, so that a slow look delays probes rather than making lag look small.
    while writing || lags.len() < sent.len() {
        tokio::select! {
            biased;
            _ = probes.tick(), if writing => {
                writing = load.is_running()?;
                sent.push(Instant::now());
                source.execute(&seen, &[&(first + sent.len() as i64)]).await?;
            }
            _ = looks.tick() => {
                let there: i64 = target.query_one(newest, &[]).await?.get(0);
                let arrived = usize::try_from(there - first)?;
                ensure!(arrived <= sent.len(), "the target has a probe that was not sent");
                lags.extend(sent[lags.len()..arrived.max(lags.len())].iter().map(|at| at.elapsed().as_secs_f64()));
                let waiting = sent.get(lags.len()).map_or(Duration::ZERO, Instant::elapsed);
                ensure!(waiting < PATIENCE, "a change has not arrived for {waiting:?}");
            }
        }
    }
    let report = load.wait().await?;
    ensure!(report.tps > f64::from(RATE) * 0.9, "the load was only {:.0} transactions/s", report.tps);
    summary(lags).context("no lag was measured")
}

fn summary(lags: Vec<f64>) -> Option<Lag> {
    let third = lags.len() / 3;
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len().max(1) as f64;
    let (early, late) = (mean(lags.get(..third)?), mean(lags.get(lags.len() - third..)?));
    let mut sorted = lags;
    sorted.sort_by(f64::total_cmp);
    let at = |share: f64| sorted.get(((sorted.len() as f64 * share) as usize).min(sorted.len() - 1)).copied();
    // Within a tenth of a second it is noise, whatever the factor.
    Some(Lag { p50: at(0.5)?, p99: at(0.99)?, worst: at(1.0)?, growing: late > 2.0 * early && late > early + 0.1 })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_and_growth_are_seen() {
        let flat = summary(vec![0.1; 300]).unwrap();
        assert_eq!((flat.p50, flat.p99, flat.growing), (0.1, 0.1, false));
        let rising = summary((0..300).map(|i| f64::from(i) / 100.0).collect()).unwrap();
        assert_eq!((rising.p50, rising.p99, rising.worst, rising.growing), (1.5, 2.97, 2.99, true));
    }
}

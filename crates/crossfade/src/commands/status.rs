use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use ::log::Log;
use model::{Code, Problem};
use plan::Plan;
use serde_json::Value;
use status::{Bars, Gather, Status};

use crate::report::Output;
use crate::wiring;

/// How often `--watch` looks.
const REFRESH: Duration = Duration::from_secs(1);

/// What is known without the target is shown all the same; how the migration stands is not among it.
const COULD_NOT_RUN: u8 = 2;

/// Shows how the migration stands, from the plan alone; with `watch` until a signal ends it. Exit code 2 if the target could not be asked.
pub(crate) async fn run(plan: Arc<Plan>, watch: bool, output: Output) -> Result<u8, Problem> {
    let mut gather = Gather::new(Arc::clone(&plan))?;
    let mut log = Kept { plan, open: None };
    if !watch {
        let status = gather.now(async || log.open().await).await;
        if output.json {
            output.print(&document(&status)?);
        } else {
            output.text(&status::text(&status));
        }
        return Ok(if status.phase.is_some() { 0 } else { COULD_NOT_RUN });
    }
    let mut bars = (!output.json && std::io::stderr().is_terminal()).then(Bars::default);
    let mut tick = tokio::time::interval(REFRESH);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let status = gather.now(async || log.open().await).await;
        match &mut bars {
            Some(bars) => bars.show(&status),
            None if output.json => output.print(&document(&status)?),
            None => output.text(&format!("{}\n", status::text(&status))),
        }
    }
}

fn document(status: &Status) -> Result<Value, Problem> {
    serde_json::to_value(status)
        .map_err(|error| Problem::new(Code::Internal, "the status", error.to_string(), "report it"))
}

/// The log's connection. An embedded log shows what was in it when it was opened, so that one is opened again each time.
struct Kept {
    plan: Arc<Plan>,
    open: Option<Arc<dyn Log>>,
}

impl Kept {
    async fn open(&mut self) -> Result<Option<Arc<dyn Log>>, Problem> {
        if let Some(log) = &self.open {
            return Ok(Some(Arc::clone(log)));
        }
        let log = wiring::read_log(&self.plan).await?;
        if matches!(self.plan.log, plan::Log::Nats { .. }) {
            self.open = log.clone();
        }
        Ok(log)
    }
}

use std::sync::Arc;

use cutover::stages::{self, Job};
use model::{Code, Problem};
use plan::Plan;
use serde::Serialize;
use serde_json::Value;

use crate::report::{self, Output};
use crate::wiring;

/// What is asked of the stages.
#[derive(Clone, Debug, clap::Subcommand)]
pub(crate) enum Stage {
    /// Show the stage that is set, its flags as NAME=value lines, and what may come next.
    Show {
        /// Only the NAME=value lines; asks nobody but the log.
        #[arg(long)]
        env: bool,
    },
    /// Move to a stage, unless something is in the way.
    Set {
        /// Its name in the plan.
        #[arg(value_name = "NAME")]
        name: String,
    },
}

/// Shows the stage, or moves to another one. Exit code 1 if none is set yet, or the move is refused.
pub(crate) async fn run(plan: Arc<Plan>, asked: Stage, output: Output) -> Result<u8, Problem> {
    let job = Job {
        bucket: wiring::bucket(&plan).await?,
        log: wiring::open_log(&plan).await?,
        worker: wiring::worker(),
        plan: Arc::clone(&plan),
    };
    match asked {
        Stage::Show { env: true } => {
            let shown = stages::flags(&job).await?;
            tell(output, &shown, stages::env(&shown))?;
            Ok(0)
        }
        Stage::Show { env: false } => {
            let shown = stages::show(&job).await?;
            tell(output, &shown, stages::shown_text(&shown))?;
            Ok(u8::from(shown.stage.is_none()))
        }
        Stage::Set { name } => {
            let moved = stages::set(&job, &name).await?;
            let document = tell(output, &moved, stages::moved_text(&moved))?;
            report::keep(&plan, "stage", &document);
            Ok(moved.outcome.exit())
        }
    }
}

fn tell(output: Output, told: &impl Serialize, text: String) -> Result<Value, Problem> {
    let document = serde_json::to_value(told)
        .map_err(|error| Problem::new(Code::Internal, "the stage", error.to_string(), "report it"))?;
    if output.json {
        output.print(&document);
    } else {
        output.text(&text);
    }
    Ok(document)
}

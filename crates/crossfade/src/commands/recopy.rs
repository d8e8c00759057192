mod named_rows;

use std::path::Path;
use std::sync::Arc;

use model::{Code, Problem, count};
use plan::Plan;
use serde_json::{Value, json};
use verify::Mended;

use crate::report::{self, Output};
use crate::wiring;
use named_rows::read;

/// Asks for everything, or for `tables`, to be copied again into the same log and target. Whoever captures the plan does it.
pub(crate) async fn run(plan: Arc<Plan>, tables: Vec<String>, new_source: bool, output: Output) -> Result<u8, Problem> {
    let names = report::tables(&tables)?;
    let session = pg::connect(&wiring::target(&plan)?, "recopy").await?;
    let target = pg::catalog::identity(&session).await.map_err(pg::PgError::from)?;
    let known = apply::knows(&session, &plan.name).await?;
    if known && apply::is_barred(&session).await? {
        let why = "the application writes to the target since the cutover: what it has written would be lost";
        let next = "`crossfade rollback` first; then it can be copied again";
        return Err(Problem::new(Code::CutoverRefused, "crossfade recopy", why, next));
    }
    let log = wiring::open_log(&plan).await?;
    let mut asked = Vec::new();
    for source in &plan.sources {
        if names.is_empty() {
            let session = pg::connect(&wiring::source(source)?, "recopy").await?;
            let identity = pg::catalog::identity(&session).await.map_err(pg::PgError::from)?;
            let all = capture::recopy_all(&log, &plan, source, &identity, &target, known, new_source).await?;
            if plan.sources.len() == 1 {
                // The way back's state, where there is one.
                apply::adopt(&session, &plan.name, &all.nonce).await?;
            }
            asked.push((source.name.clone(), all));
        } else if let Some(some) = capture::recopy_tables(&log, &plan, source, &target, &names).await? {
            asked.push((source.name.clone(), some));
        }
    }
    let Some((_, first)) = asked.first() else { return Err(unknown(&tables)) };
    if names.is_empty() {
        apply::adopt(&session, &plan.name, &first.nonce).await?;
    }
    let sources: Vec<Value> = asked.iter().map(|(source, asked)| entry(source, asked)).collect();
    let document = json!({ "plan": plan.name, "sources": sources });
    if output.json {
        output.print(&document);
    } else {
        output.text(&text(&asked));
    }
    report::keep(&plan, "recopy", &document);
    Ok(0)
}

/// Puts the rows that a file names right. Exit code 1 if some are not.
pub(crate) async fn rows(plan: Arc<Plan>, file: &Path, output: Output) -> Result<u8, Problem> {
    let wanted = read(&plan, file)?;
    let mended = verify::mend(&wiring::comparison(&plan).await?, &wanted).await?;
    let entry = |mended: &Mended| json!({ "source": mended.source, "table": mended.table.to_string(), "rows": mended.rows, "why": mended.why });
    let document = json!({ "plan": plan.name, "rows": mended.iter().map(entry).collect::<Vec<_>>() });
    let are = |rows: usize| format!("{} {}", count(rows as u64, "row"), if rows == 1 { "is" } else { "are" });
    let line = |mended: &Mended| match &mended.why {
        None => format!(
            "{}: {} as the source has {}\n",
            mended.table,
            are(mended.rows),
            if mended.rows == 1 { "it" } else { "them" }
        ),
        Some(why) => format!("{}: {} not put right: {why}\n", mended.table, are(mended.rows)),
    };
    if output.json {
        output.print(&document);
    } else {
        output.text(&mended.iter().map(line).collect::<String>());
    }
    report::keep(&plan, "recopy-rows", &document);
    Ok(u8::from(mended.iter().any(|mended| mended.why.is_some())))
}

fn unknown(tables: &[String]) -> Problem {
    Problem::new(
        Code::NoTables,
        format!("table {}", tables.join(", ")),
        "no copy of it has begun: the plan does not select it, or has not been run yet",
        "correct the name (schema.table, as at the source); `crossfade status` lists the tables",
    )
}

fn entry(source: &str, asked: &capture::Asked) -> Value {
    let tables: Vec<String> = asked.tables.iter().map(ToString::to_string).collect();
    json!({ "name": source, "recopy": asked.id, "everything": tables.is_empty(), "tables": tables })
}

fn text(asked: &[(String, capture::Asked)]) -> String {
    let line = |(source, asked): &(String, capture::Asked)| match asked.tables.as_slice() {
        [] => format!("{source}: every table will be copied again, and the tail starts anew\n"),
        tables => tables.iter().map(|table| format!("{source}: {table} will be copied again\n")).collect(),
    };
    asked.iter().map(line).collect::<String>()
        + "capture does it as soon as it runs; `crossfade status --watch` shows how far it is\n"
}

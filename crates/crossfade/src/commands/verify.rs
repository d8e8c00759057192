use std::sync::Arc;

use model::{Code, Problem, TableName};
use plan::Plan;
use serde_json::{Value, json};
use verify::{Difference, Options, Report, Verdict};

use crate::report::{self, Lines, Output};
use crate::wiring;

/// Compares both sides at one instant. Exit code 1 unless everything is equal.
pub(crate) async fn run(plan: Arc<Plan>, options: Options, output: Output) -> Result<u8, Problem> {
    let job = wiring::comparison(&plan).await?;
    let rows = Lines::new(&plan, "verify-rows");
    let found = |source: &str, table: &TableName, difference: &Difference| {
        rows.write(&line(source, table, difference));
    };
    let report = verify::run(&job, &options, &found).await?;
    let mut document = document(&report)?;
    if let Some(file) = rows.file() {
        document["rows_file"] = file.display().to_string().into();
    }
    if output.json {
        output.print(&document);
    } else {
        output.text(&verify::text(&report));
        if let Some(file) = rows.file() {
            output.text(&format!("the rows that differ: {}\n", file.display()));
        }
    }
    report::keep(&plan, "verify", &document);
    Ok(u8::from(report.verdict != Verdict::Equal))
}

fn line(source: &str, table: &TableName, difference: &Difference) -> Value {
    let mut line = json!({ "source": source, "table": table.to_string() });
    if let (Some(line), Ok(Value::Object(difference))) = (line.as_object_mut(), serde_json::to_value(difference)) {
        line.extend(difference);
    }
    line
}

fn document(report: &Report) -> Result<Value, Problem> {
    serde_json::to_value(report)
        .map_err(|error| Problem::new(Code::Internal, "the report", error.to_string(), "report it"))
}

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use apply::Counted;
use model::{Code, Problem, TableName};
use plan::Plan;
use serde_json::{Value, json};
use verify::{Difference, Options, Report, Verdict, Watch};

use crate::report::{self, Lines, Output};
use crate::stop::Stop;
use crate::wiring;

/// Compares both sides at one instant. Exit code 1 unless everything is equal; cut off by a signal, that of `stop`.
pub(crate) async fn run(plan: Arc<Plan>, options: Options, output: Output, stop: &Stop) -> Result<u8, Problem> {
    let watch = Told { rows: Lines::new(&plan, "verify-rows"), open: AtomicBool::new(false) };
    let compared = async {
        let job = wiring::comparison_now(&plan).await?;
        let mut report = verify::run(&job, &options, &watch).await?;
        report.findings = apply::findings(&job.target, &plan).await;
        if options.mask {
            report.findings = report.findings.into_iter().map(Counted::masked).collect();
        }
        Ok::<_, Problem>(report)
    };
    let token = stop.token();
    let compared = tokio::select! {
        biased;
        () = token.cancelled() => None,
        compared = compared => Some(compared),
    };
    let Some(Ok(report)) = compared else {
        watch.cut_off(options.recheck);
        return compared.map_or(Ok(stop.exit_code()), |failed| failed.map(|_| 0));
    };
    let mut document = document(&report)?;
    if let Some(file) = watch.rows.file() {
        document["rows_file"] = file.display().to_string().into();
    }
    if output.json {
        output.print(&document);
    } else {
        output.text(&verify::text(&report));
        if let Some(file) = watch.rows.file() {
            output.text(&format!("the rows that differ: {}\n", file.display()));
        }
    }
    report::keep(&plan, "verify", &document);
    Ok(u8::from(report.verdict != Verdict::Equal))
}

/// What is told of a comparison before its report is there.
struct Told {
    rows: Lines,
    /// It can be gone on with.
    open: AtomicBool,
}

impl Watch for Told {
    fn begun(&self) {
        self.open.store(true, Ordering::Relaxed);
    }

    fn found(&self, source: &str, table: &TableName, difference: &Difference) {
        self.rows.write(&line(source, table, difference));
    }

    fn ended(&self) {
        self.open.store(false, Ordering::Relaxed);
    }
}

impl Told {
    /// Says on stderr what is left of a comparison that has not come to its end.
    fn cut_off(&self, recheck: bool) {
        if self.open.load(Ordering::Relaxed) {
            let next = match recheck {
                false => "`crossfade verify --resume` goes on with the parts that are not done",
                true => "`crossfade verify --recheck` begins it again",
            };
            eprintln!("crossfade: the comparison was cut off: {next}");
        }
        if let Some(file) = self.rows.file() {
            eprintln!("crossfade: the rows that differ, as far as it came: {}", file.display());
        }
    }
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

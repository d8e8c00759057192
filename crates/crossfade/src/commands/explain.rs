use std::sync::Arc;

use apply::{CompileError, Explained, Look};
use mapping::{Maintained, Question, Way};
use model::Problem;
use plan::{CheckSeverity, Finding, Plan};
use serde_json::{Value, json};

use crate::report::{self, Output};
use crate::wiring;

/// Shows how each derived table is kept current and what findings ask, changing nothing. Exit code 2 if the plan's SQL is refused; then all that is wrong is told.
pub(crate) async fn run(plan: Arc<Plan>, output: Output) -> Result<u8, Problem> {
    let target = pg::connect(&wiring::target(&plan)?, "explain").await?;
    let (all, questions) = match apply::explain(&plan, &target).await {
        Ok(all) => all,
        Err(CompileError::Refused(problems)) => return Ok(refused(&plan, &problems, output)),
        Err(error) => return Err(error.into()),
    };
    let asked: Vec<(&Finding, &Question)> = plan.findings.iter().zip(&questions).collect();
    let document = json!({
        "tables": all.iter().map(|one| document(&plan, one)).collect::<Vec<_>>(),
        "findings": asked.iter().map(|(finding, question)| asks(&plan, finding, question)).collect::<Vec<_>>(),
    });
    if output.json {
        output.print(&document);
    } else {
        output.text(&text(&plan, &all, &asked));
    }
    report::keep(&plan, "explain", &document);
    Ok(0)
}

fn refused(plan: &Plan, problems: &[Problem], output: Output) -> u8 {
    let objects: Vec<Value> = problems.iter().map(report::object).collect();
    let document = json!({ "error": objects.first(), "problems": objects });
    if output.json {
        output.print(&document);
    } else {
        let told = |problem: &Problem| {
            format!("{} ({})\n  {}\n  → {}\n\n", problem.what, problem.code, problem.why, problem.next)
        };
        let all: String = problems.iter().map(told).collect();
        output.text(&format!("{all}refused: {} problems with the plan's tables\n", problems.len()));
    }
    report::keep(plan, "explain", &document);
    problems.first().map_or(2, |problem| problem.code.exit())
}

fn text(plan: &Plan, all: &[Explained], asked: &[(&Finding, &Question)]) -> String {
    let mut parts: Vec<String> = all.iter().map(|one| table(plan, one)).collect();
    if all.is_empty() {
        let next = "each captured table goes into the target as it is";
        parts.push(format!("{}: the plan has no [[table]]; {next}\n", plan.path.display()));
    }
    parts.extend(asked.iter().map(|(declared, question)| finding(plan, declared, question)));
    parts.join("\n")
}

fn finding(plan: &Plan, declared: &Finding, question: &Question) -> String {
    let mut out = format!("finding {:?} ({}:{})\n", declared.name, plan.path.display(), declared.line);
    let sources: Vec<String> = question.sources.iter().map(ToString::to_string).collect();
    for (name, text) in [
        (severity(declared), declared.reason.clone()),
        ("reads", sources.join(", ")),
        ("gives", question.columns.join(", ")),
    ] {
        out += &format!("  {name:<10} {text}\n");
    }
    out + &format!("\n  -- the rows that are counted\n  {}\n", question.sql.trim().replace('\n', "\n  "))
}

fn severity(declared: &Finding) -> &'static str {
    match declared.severity {
        CheckSeverity::Error => "error",
        CheckSeverity::Warning => "warning",
    }
}

fn asks(plan: &Plan, declared: &Finding, question: &Question) -> Value {
    json!({
        "name": declared.name, "file": plan.path.display().to_string(), "line": declared.line, "severity": severity(declared), "reason": declared.reason,
        "sources": question.sources.iter().map(ToString::to_string).collect::<Vec<_>>(), "columns": question.columns, "sql": question.sql,
    })
}

fn table(plan: &Plan, one: &Explained) -> String {
    let (declared, compiled) = (&one.declared, &one.compiled);
    let list = |names: &[String]| names.join(", ");
    let mut out = format!("{} ({}:{})\n", compiled.into, plan.path.display(), declared.line);
    let mut line = |name: &str, text: &str| out += &format!("  {name:<10} {text}\n");
    match &compiled.way {
        Way::Streamed(streamed) => line("streamed", &streamed.reason),
        Way::Maintained(maintained) => line("maintained", &maintained.reason),
    }
    let sources: Vec<String> = compiled.sources.iter().map(ToString::to_string).collect();
    line("reads", &list(&sources));
    line("gives", &list(&compiled.columns));
    if !compiled.key.is_empty() {
        line("key", &list(&compiled.key));
    }
    if !declared.recompute_by.is_empty() {
        line("unit", &list(&declared.recompute_by));
    }
    if !compiled.oracle.left_out.is_empty() {
        line("history", &format!("{}: verify leaves them out", list(&compiled.oracle.left_out)));
    }
    if one.alone {
        line("stores", "nothing besides these rows");
    } else if matches!(compiled.way, Way::Streamed(_)) {
        for (table, why) in &one.mirrors {
            line("mirror", &format!("{table} has one all the same: {why}"));
        }
    }
    if let Way::Maintained(maintained) = &compiled.way {
        for index in &maintained.indexes {
            line("index", &format!("{} ({}), which crossfade makes", index.table, list(&index.columns)));
        }
        for note in notes(maintained) {
            line("note", &note);
        }
    }
    for problem in &one.warnings {
        line("warning", &format!("{}: {}; {}", problem.what, problem.why, problem.next));
    }
    let whole: Vec<&apply::Statement> = one.statements.iter().filter(|one| !one.reads_whole.is_empty()).collect();
    match &one.look {
        Look::NotYet(mirrors) => {
            let names: Vec<String> = mirrors.iter().map(ToString::to_string).collect();
            line("plans", &format!("not looked at: the target has no {} before the copy", list(&names)));
        }
        Look::Planned if whole.is_empty() => line("plans", "every statement finds its rows by an index"),
        Look::Planned => {
            for statement in whole {
                let names: Vec<String> = statement.reads_whole.iter().map(ToString::to_string).collect();
                line("scan", &format!("to {}, {} is read whole", statement.what, list(&names)));
            }
        }
    }
    for statement in &one.statements {
        out += &format!("\n  -- {}\n  {}\n", statement.what, statement.sql.trim().replace('\n', "\n  "));
    }
    out
}

/// What changes affect more than the units of their rows.
fn notes(maintained: &Maintained) -> Vec<String> {
    let mut notes = Vec::new();
    for derivation in &maintained.derivations {
        let table = &derivation.table;
        let note = match (derivation.bounded, &derivation.guard) {
            (true, None) => continue,
            (_, Some(guard)) => {
                format!("a change in {table} counts where it changes {guard}; then all units are made anew")
            }
            (false, None) => format!("a change in {table} makes all units anew"),
        };
        if !notes.contains(&note) {
            notes.push(note);
        }
    }
    notes
}

fn document(plan: &Plan, one: &Explained) -> Value {
    let (declared, compiled) = (&one.declared, &one.compiled);
    let (way, reason) = match &compiled.way {
        Way::Streamed(streamed) => ("streamed", &streamed.reason),
        Way::Maintained(maintained) => ("maintained", &maintained.reason),
    };
    let (mut derivations, mut indexes) = (Vec::new(), Vec::new());
    if let Way::Maintained(maintained) = &compiled.way {
        derivations.extend(maintained.derivations.iter().map(|derivation| {
            json!({
                "source": derivation.table.to_string(), "old": derivation.old, "new": derivation.new, "bounded": derivation.bounded,
                "nulled": derivation.nulled, "guard": derivation.guard, "said": derivation.mention.is_none(),
            })
        }));
        indexes.extend(
            maintained
                .indexes
                .iter()
                .map(|index| json!({ "table": index.table.to_string(), "columns": index.columns })),
        );
    }
    let names = |tables: &[model::TableName]| tables.iter().map(ToString::to_string).collect::<Vec<_>>();
    let statements: Vec<Value> = one
        .statements
        .iter()
        .map(|statement| {
            json!({ "what": statement.what, "sql": statement.sql, "reads_whole": names(&statement.reads_whole) })
        })
        .collect();
    let missing = match &one.look {
        Look::Planned => Vec::new(),
        Look::NotYet(mirrors) => names(mirrors),
    };
    json!({
        "into": compiled.into.to_string(), "file": plan.path.display().to_string(), "line": declared.line, "way": way, "reason": reason,
        "sources": compiled.sources.iter().map(ToString::to_string).collect::<Vec<_>>(), "columns": compiled.columns, "key": compiled.key,
        "unit": if declared.recompute_by.is_empty() { &compiled.key } else { &declared.recompute_by },
        "mirrors": one.mirrors.iter().map(|(table, why)| json!({ "table": table.to_string(), "why": why })).collect::<Vec<_>>(),
        "left_out_of_verify": compiled.oracle.left_out, "derivations": derivations, "indexes": indexes, "statements": statements,
        "planned": one.look == Look::Planned, "missing": missing, "warnings": one.warnings.iter().map(report::object).collect::<Vec<_>>(),
    })
}

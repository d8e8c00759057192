//! What keeps derived tables current, for people: all statements, and which of them read a whole mirror.

use mapping::{Compiled, Places, Question, Side, SourceTable, Table, Usual, Way};
use model::{Problem, TableName};
use pg::Session;
use plan::{Derived, Plan};
use serde_json::Value;

use super::catalog::{All, CompileError, Reads, home, of_table, problem, with_mirrors};
use super::trial::is_planned;
use crate::ApplyError;

/// How a derived table is kept current.
#[derive(Clone, Debug)]
pub struct Explained {
    /// What the plan says.
    pub declared: Derived,
    /// What it comes to.
    pub compiled: Compiled,
    /// The mirrors that it is read from, and why there is each. Without any it is read where the target has the table anyway, or it is streamed, and nothing is stored besides.
    pub mirrors: Vec<(SourceTable, String)>,
    /// Nothing of its source table is stored besides its rows.
    pub alone: bool,
    /// Every statement of a batch, in order. Which of them run depends on the tables whose rows changed.
    pub statements: Vec<Statement>,
    /// What a person should know and that does not stop it, with its place in the plan.
    pub warnings: Vec<Problem>,
    /// How the target would run them.
    pub look: Look,
}

/// A statement that runs for a batch.
#[derive(Clone, Debug)]
pub struct Statement {
    /// What it does, in a few words.
    pub what: String,
    /// The statement.
    pub sql: String,
    /// The tables that it reads whole; empty as well where it could not be looked.
    pub reads_whole: Vec<TableName>,
}

/// What the target was asked about the statements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look {
    /// How it would run each of them.
    Planned,
    /// Nothing, as these mirrors are not there yet.
    NotYet(Vec<TableName>),
}

/// Explains all derived tables of the plan, in its order, and says what its findings ask.
///
/// # Errors
/// As [`compile_all`](super::compile_all).
pub async fn explain(plan: &Plan, target: &Session) -> Result<(Vec<Explained>, Vec<Question>), CompileError> {
    let (All { tables, questions }, reads) = with_mirrors(plan, target).await?;
    let mut all = Vec::new();
    for (declared, (compiled, reads)) in plan.derived.iter().zip(tables.into_iter().zip(reads)) {
        let Reads { mirrors, tables } = reads;
        let alone = mirrors.is_empty() && compiled.sources.iter().all(|source| home(plan, source) != source.table);
        let mut explained = Explained {
            declared: declared.clone(),
            statements: statements(&compiled, &tables, alone),
            mirrors,
            alone,
            warnings: compiled.warnings.iter().map(|trouble| problem(plan, declared, trouble)).collect(),
            look: Look::Planned,
            compiled,
        };
        look(plan, target, &mut explained).await?;
        all.push(explained);
    }
    Ok((all, questions))
}

fn statements(compiled: &Compiled, tables: &[Table], alone: bool) -> Vec<Statement> {
    let statement = |what: String, sql: &String| Statement { what, sql: sql.clone(), reads_whole: Vec::new() };
    match (&compiled.way, tables) {
        (Way::Streamed(streamed), [table]) if alone => {
            let columns: Vec<(&str, &str)> =
                table.columns.iter().map(|column| (column.name.as_str(), column.type_name.as_str())).collect();
            crate::tail::statements(streamed, &columns)
                .into_iter()
                .map(|(what, sql)| statement(format!("{what} in {}", streamed.source), &sql))
                .collect()
        }
        (Way::Streamed(streamed), _) => streamed
            .steps
            .iter()
            .map(|step| statement(format!("write the rows that changed in {}", streamed.source), &step.sql))
            .collect(),
        (Way::Maintained(maintained), _) => {
            let guards = maintained.before.len().saturating_sub(maintained.derivations.len());
            let mut all = Vec::new();
            for (steps, guard, side) in [
                (&maintained.before, "note the value of a subquery that depends on no row", "old"),
                (&maintained.after, "see whether that value is still the same", "new"),
            ] {
                all.extend(steps.iter().take(guards).map(|step| statement(guard.to_owned(), &step.sql)));
                let derivations = maintained.derivations.iter().zip(steps.iter().skip(guards));
                all.extend(derivations.map(|(derivation, step)| {
                    statement(format!("find the units of {side} rows of {}", derivation.table), &step.sql)
                }));
            }
            all.extend(maintained.recompute.iter().map(|sql| statement("make these units anew".to_owned(), sql)));
            all.extend(maintained.write.iter().map(|sql| statement("write what is different".to_owned(), sql)));
            all.retain(|statement| is_planned(&statement.sql));
            all
        }
    }
}

/// Asks the target how it would run the statements, if it can have an idea.
async fn look(plan: &Plan, target: &Session, explained: &mut Explained) -> Result<(), ApplyError> {
    let compiled = &explained.compiled;
    let read = compiled.sources.iter().filter(|_| !explained.alone);
    let mirrors: Vec<(SourceTable, TableName)> = read.map(|source| (source.clone(), home(plan, source))).collect();
    let mut missing = Vec::new();
    for (_, mirror) in &mirrors {
        let there = target.query_one("SELECT to_regclass($1::text) IS NOT NULL", &[&mirror.quoted()]).await?;
        if !there.get::<_, bool>(0) {
            missing.push(mirror.clone());
        }
    }
    if !missing.is_empty() {
        explained.look = Look::NotYet(missing);
        return Ok(());
    }
    target.batch_execute("BEGIN; SET LOCAL jit = off").await?;
    let planned = planned(target, &mirrors, explained).await;
    target.batch_execute("ROLLBACK").await?;
    let Err(error) = planned else { return Ok(()) };
    if error.retry() {
        return Err(error);
    }
    // As with a mirror of an older shape, which a copy to come will change.
    let why = format!("the target cannot say how it would run its statements: {error}");
    let next = "if nothing changed at the source since its copy, report it as a defect";
    explained.warnings.push(of_table(plan, &explained.declared, why, next));
    Ok(())
}

/// Whether a statement can find its rows by an index is not to depend on how many there are today. Whoever reads a table whole both where every row costs
/// the same and pages nothing, and where reading from end to end is to be avoided at any price, has no other way. Each alone is wrong at times: a table of two
/// rows is read whole in the first, and the price of the second hides what else a plan costs.
const SETTINGS: [&str; 2] = [
    "SET LOCAL seq_page_cost = 0.01; SET LOCAL random_page_cost = 0.01; SET LOCAL cpu_tuple_cost = 1; SET LOCAL cpu_index_tuple_cost = 1; \
     SET LOCAL cpu_operator_cost = 0.0001",
    "SET LOCAL enable_seqscan = off",
];

async fn planned(
    target: &Session,
    mirrors: &[(SourceTable, TableName)],
    explained: &mut Explained,
) -> Result<(), ApplyError> {
    for (source, mirror) in mirrors {
        for side in [Side::Old, Side::New] {
            let changed = Usual.changed(source, side).quoted();
            let mirror = mirror.quoted();
            // One row, as in most batches.
            let sql = format!(
                "CREATE TEMP TABLE {changed} (LIKE {mirror}); INSERT INTO {changed} SELECT * FROM {mirror} LIMIT 1; ANALYZE {changed}"
            );
            target.batch_execute(&sql).await?;
        }
    }
    if let Way::Maintained(maintained) = &explained.compiled.way {
        for sql in &maintained.prepare {
            target.batch_execute(sql).await?;
        }
        for name in ["units", "result"] {
            let scratch = Usual.scratch(&explained.compiled.into, name).quoted();
            // What is in it does not matter, as long as it is not taken for large.
            target.batch_execute(&format!("INSERT INTO {scratch} DEFAULT VALUES; ANALYZE {scratch}")).await?;
        }
    }
    let mut tables: Vec<&TableName> = mirrors.iter().map(|(_, mirror)| mirror).collect();
    tables.push(&explained.compiled.into);
    let mut first = true;
    for settings in SETTINGS {
        target.batch_execute(settings).await?;
        for statement in &mut explained.statements {
            let Json(plan) = plan_of(target, &statement.sql).await?;
            let mut whole = Vec::new();
            wholes(&plan, &mut whole);
            whole.retain(|table| tables.contains(&table) && (first || statement.reads_whole.contains(table)));
            whole.sort();
            whole.dedup();
            statement.reads_whole = whole;
        }
        first = false;
    }
    Ok(())
}

/// How the target would run a statement; one with parameters whatever they are.
async fn plan_of(target: &Session, sql: &str) -> Result<Json, ApplyError> {
    let parameters = (1..).take_while(|number| sql.contains(&format!("${number}::text[]"))).count();
    if parameters == 0 {
        return Ok(target.query_one(&format!("EXPLAIN (FORMAT JSON, VERBOSE) {sql}"), &[]).await?.get(0));
    }
    let prepare = format!("SET LOCAL plan_cache_mode = force_generic_plan; PREPARE crossfade_explained AS {sql}");
    target.batch_execute(&prepare).await?;
    let nulls = vec!["NULL"; parameters].join(", ");
    let explain = format!("EXPLAIN (FORMAT JSON, VERBOSE) EXECUTE crossfade_explained({nulls})");
    let plan = target.query_one(&explain, &[]).await?.get(0);
    target.batch_execute("DEALLOCATE crossfade_explained").await?;
    Ok(plan)
}

/// The tables that a plan reads whole.
fn wholes(plan: &Value, found: &mut Vec<TableName>) {
    match plan {
        Value::Array(parts) => parts.iter().for_each(|part| wholes(part, found)),
        Value::Object(node) => {
            let text = |key: &str| node.get(key).and_then(Value::as_str).unwrap_or_default();
            let whole = match text("Node Type") {
                "Seq Scan" => true,
                "Index Scan" | "Index Only Scan" => node.get("Index Cond").is_none(),
                _ => false,
            };
            if whole {
                found.push(TableName::new(text("Schema"), text("Relation Name")));
            }
            ["Plan", "Plans"].into_iter().filter_map(|key| node.get(key)).for_each(|part| wholes(part, found));
        }
        _ => {}
    }
}

/// What Postgres gives as `json`.
struct Json(Value);

impl tokio_postgres::types::FromSql<'_> for Json {
    fn from_sql(_: &tokio_postgres::types::Type, raw: &[u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Json(serde_json::from_slice(raw)?))
    }

    fn accepts(ty: &tokio_postgres::types::Type) -> bool {
        *ty == tokio_postgres::types::Type::JSON
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_is_read_from_end_to_end_is_no_way_to_find_rows() {
        let scan = |kind: &str, more: Value| {
            let mut node = serde_json::json!({ "Node Type": kind, "Schema": "crossfade", "Relation Name": "mirror a" });
            node.as_object_mut()
                .into_iter()
                .for_each(|node| node.extend(more.as_object().cloned().unwrap_or_default()));
            let plan = serde_json::json!([{ "Plan": { "Node Type": "Nested Loop", "Plans": [node] } }]);
            let mut found = Vec::new();
            wholes(&plan, &mut found);
            found == [TableName::new("crossfade", "mirror a")]
        };
        let by = serde_json::json!({ "Index Cond": "(a.id = b.id)" });
        assert!(scan("Seq Scan", serde_json::json!({})) && scan("Index Only Scan", serde_json::json!({})));
        assert!(!scan("Index Scan", by.clone()) && !scan("Bitmap Heap Scan", by));
    }
}

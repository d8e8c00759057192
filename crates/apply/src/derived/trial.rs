//! Whether the target takes the statements of a derived table: types, operators, casts and rights are known to it alone. They are prepared over empty
//! temp tables in place of the mirrors, in a transaction that is rolled back.

use mapping::{Catalog, Compiled, Places, Question, Side, SourceTable, Usual, Way};
use model::{Code, Problem, TableName, quote};
use pg::{PgError, Session};
use plan::{Derived, Plan, SchemaMode};
use tokio_postgres::error::SqlState;

use super::catalog::of_table;
use super::part::Part;
use crate::{ApplyError, state};

/// Mirrors that are temp tables.
pub(super) struct Trial;

impl Places for Trial {
    fn mirror(&self, table: &SourceTable) -> TableName {
        TableName::new("pg_temp", Usual.mirror(table).name)
    }

    fn changed(&self, table: &SourceTable, side: Side) -> TableName {
        Usual.changed(table, side)
    }

    fn scratch(&self, into: &TableName, name: &str) -> TableName {
        Usual.scratch(into, name)
    }
}

/// What the target has against it.
///
/// # Errors
/// It could not be asked.
pub(super) async fn trouble(
    plan: &Plan,
    derived: &Derived,
    catalog: &Catalog,
    target: &Session,
) -> Result<Option<Problem>, ApplyError> {
    if let Some(problem) = rights(plan, derived, target).await? {
        return Ok(Some(problem));
    }
    if let Some(problem) = trial(plan, derived, catalog, target).await? {
        return Ok(Some(problem));
    }
    // What is for rehearsals alone is known to be right before one.
    let Some(rehearsed) = derived.rehearsal() else { return Ok(None) };
    let problem = trial(plan, &rehearsed, catalog, target).await?;
    Ok(problem.map(|problem| Problem { why: format!("masked, as rehearsals have it: {}", problem.why), ..problem }))
}

async fn trial(
    plan: &Plan,
    derived: &Derived,
    catalog: &Catalog,
    target: &Session,
) -> Result<Option<Problem>, ApplyError> {
    let compiled = match mapping::compile(derived, catalog, &Trial) {
        Ok(compiled) => compiled,
        Err(troubles) => return Ok(troubles.first().map(|trouble| Part::table(plan, derived).trouble(trouble))),
    };
    target.batch_execute("BEGIN").await?;
    let tried = tried(plan, derived, &compiled, catalog, target).await;
    target.batch_execute("ROLLBACK").await?;
    tried
}

async fn tried(
    plan: &Plan,
    derived: &Derived,
    compiled: &Compiled,
    catalog: &Catalog,
    target: &Session,
) -> Result<Option<Problem>, ApplyError> {
    for source in &compiled.sources {
        for name in [Trial.mirror(source), Trial.changed(source, Side::Old), Trial.changed(source, Side::New)] {
            if let Some(refusal) = refused(target.batch_execute(&created(catalog, source, name)).await)? {
                return no_mirror(&Part::table(plan, derived), source, refusal, target).await;
            }
        }
    }
    for statement in statements(compiled) {
        if let Some(refusal) = refused(target.batch_execute(&statement).await)? {
            return Ok(Some(not_taken(&Part::table(plan, derived), refusal)));
        }
    }
    Ok(None)
}

/// Tries a finding's query in the same way: temp tables take the place of what it reads.
///
/// # Errors
/// It could not be asked.
pub(super) async fn trouble_of(
    part: &Part<'_>,
    question: &Question,
    catalog: &Catalog,
    target: &Session,
) -> Result<Option<Problem>, ApplyError> {
    let tried = async {
        for source in &question.sources {
            if let Some(refusal) = refused(target.batch_execute(&created(catalog, source, Trial.mirror(source))).await)?
            {
                return no_mirror(part, source, refusal, target).await;
            }
        }
        let refusal = refused(target.batch_execute(&format!("EXPLAIN {}", question.sql)).await)?;
        Ok(refusal.map(|refusal| not_taken(part, refusal)))
    };
    target.batch_execute("BEGIN").await?;
    let tried = tried.await;
    target.batch_execute("ROLLBACK").await?;
    tried
}

/// A temp table with the columns of a source's.
fn created(catalog: &Catalog, source: &SourceTable, name: TableName) -> String {
    let columns = catalog.tables.iter().find(|table| table.name == *source).map_or(&[][..], |table| &table.columns);
    let columns: Vec<String> =
        columns.iter().map(|column| format!("{} {}", quote::ident(&column.name), column.type_name)).collect();
    format!("CREATE TEMP TABLE {} ({})", name.quoted(), columns.join(", "))
}

fn not_taken(part: &Part<'_>, refusal: Refusal) -> Problem {
    let hint = refusal.hint.map_or_else(
        || "correct the query; casts are written CAST(… AS …)".to_owned(),
        |hint| format!("Postgres says: {hint}"),
    );
    part.refused(format!("the target refuses it: {}", refusal.message), hint)
}

/// Temp tables are made; the rest is only planned.
fn statements(compiled: &Compiled) -> Vec<String> {
    let (made, planned): (&[String], Vec<&String>) = match &compiled.way {
        Way::Streamed(streamed) => (&[], streamed.steps.iter().map(|step| &step.sql).collect()),
        Way::Maintained(maintained) => {
            let steps = maintained.before.iter().chain(&maintained.after).map(|step| &step.sql);
            let rest = maintained.recompute.iter().chain(&maintained.write);
            (&maintained.prepare, steps.chain(rest).chain([&maintained.fill]).collect())
        }
    };
    let planned = planned.into_iter().filter(|sql| is_planned(sql)).map(|sql| format!("EXPLAIN {sql}"));
    made.iter().cloned().chain(planned).collect()
}

/// Whether Postgres makes a plan for such a statement.
pub(super) fn is_planned(sql: &str) -> bool {
    ["SELECT", "INSERT", "UPDATE", "DELETE", "WITH", "MERGE"].iter().any(|word| sql.trim_start().starts_with(word))
}

struct Refusal {
    state: SqlState,
    message: String,
    hint: Option<String>,
}

/// What the server has against a statement; that it is gone, or cannot be asked now, is another matter.
fn refused(outcome: Result<(), tokio_postgres::Error>) -> Result<Option<Refusal>, ApplyError> {
    let Err(error) = outcome else { return Ok(None) };
    let refusal = error.as_db_error().map(|error| Refusal {
        state: error.code().clone(),
        message: error.message().to_owned(),
        hint: error.hint().map(str::to_owned),
    });
    let error = PgError::from(error);
    match refusal {
        Some(refusal) if pg::policy(&error) != pg::Policy::Retry => Ok(Some(refusal)),
        _ => Err(error.into()),
    }
}

/// A type of the source is not there, or temp tables are not allowed.
async fn no_mirror(
    part: &Part<'_>,
    source: &SourceTable,
    refusal: Refusal,
    target: &Session,
) -> Result<Option<Problem>, ApplyError> {
    if refusal.state == SqlState::INSUFFICIENT_PRIVILEGE {
        let why = format!("the role may not make temp tables: {}", refusal.message);
        let next = "GRANT TEMPORARY ON DATABASE … TO the target's role";
        return Ok(Some(Problem::new(Code::PrivilegeMissing, "the target", why, next)));
    }
    let lacks = [SqlState::UNDEFINED_OBJECT, SqlState::INVALID_SCHEMA_NAME].contains(&refusal.state);
    if lacks && part.plan.target.schema == SchemaMode::Clone {
        target.batch_execute("ROLLBACK; BEGIN").await?;
        if !state::exists(target).await? {
            // The types come with the schema.
            return Ok(None);
        }
    }
    let why = format!("the target cannot have a copy of {source}, which it reads: {}", refusal.message);
    let next = "create the types and extensions of that table on the target, under the same names";
    Ok(Some(part.refused(why, next)))
}

/// What the role lacks to keep the table current.
async fn rights(plan: &Plan, derived: &Derived, target: &Session) -> Result<Option<Problem>, ApplyError> {
    let into = derived.into.quoted();
    let row = target
        .query_one(
            "SELECT current_user::text, has_schema_privilege($2::text, 'USAGE'),
                    ARRAY(SELECT p FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) p WHERE NOT has_table_privilege(to_regclass($1::text), p))",
            &[&into, &derived.into.schema],
        )
        .await?;
    let (role, usage, missing): (String, bool, Vec<String>) = (row.get(0), row.get(1), row.get(2));
    let me = quote::ident(&role);
    let mut grants = Vec::new();
    if !usage {
        grants.push(format!("GRANT USAGE ON SCHEMA {} TO {me};", quote::ident(&derived.into.schema)));
    }
    if !missing.is_empty() {
        grants.push(format!("GRANT {} ON {into} TO {me};", missing.join(", ")));
    }
    if grants.is_empty() {
        return Ok(None);
    }
    let why = format!("role {role} may not write table {} of the target", derived.into);
    Ok(Some(Problem { code: Code::PrivilegeMissing, ..of_table(plan, derived, why, grants.join(" ")) }))
}

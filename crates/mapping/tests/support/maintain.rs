//! A derived table kept current as apply would, and held against its query in full.

use crossfade_mapping::{Catalog, Compiled, Derived, Fault, Maintained, Side, Step, Usual, Way, compile_with};
use model::TableName;

use super::server::Session;
use super::world::{Changes, changed, homes, insert, source, target};

/// An error that is planted, to see it found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    None,
    /// Old rows are not followed.
    NoOldPass,
    /// No variants in which a side of an outer join is missing.
    NoNulls,
    /// Conditions with other subqueries are kept.
    KeepSublinks,
    /// The last mention of a table is forgotten.
    ForgetMention,
}

pub fn into() -> TableName {
    TableName::new("public", "derived")
}

/// Creates the target for `sql` and compiles the table; the compiler's refusal as text.
pub async fn compiled(
    session: &Session,
    catalog: &mut Catalog,
    derived: &Derived,
    sql: &str,
    plant: Plant,
) -> Result<Compiled, String> {
    session.run("DROP TABLE IF EXISTS public.derived").await;
    session.try_run(&format!("CREATE UNLOGGED TABLE public.derived AS {sql} WITH NO DATA")).await?;
    // Of a table in part: what tells its rows apart at the source.
    let key = if derived.unit().is_empty() { vec!["id".to_owned()] } else { derived.key.clone() };
    if !key.is_empty() {
        session.run(&format!("ALTER TABLE public.derived ADD PRIMARY KEY ({})", key.join(", "))).await;
    }
    catalog.target = target(session, &into(), &key).await;
    let fault = match plant {
        Plant::NoNulls => Fault::NoNulls,
        Plant::KeepSublinks => Fault::KeepSublinks,
        _ => Fault::None,
    };
    compile_with(derived, catalog, &Usual, fault)
        .map_err(|troubles| troubles.iter().map(|t| format!("[{}] {t}", t.kind)).collect::<Vec<_>>().join("\n"))
}

/// Fills the target and makes the temp tables.
pub async fn start(session: &Session, compiled: &Compiled) {
    session.run("DROP TABLE IF EXISTS pg_temp.\"found public.derived\", pg_temp.\"units public.derived\", pg_temp.\"result public.derived\", pg_temp.\"guards public.derived\"").await;
    match &compiled.way {
        Way::Maintained(maintained) => {
            session.run(&maintained.prepare.join(";")).await;
            session.run(&maintained.fill).await;
        }
        Way::Streamed(_) => session.run(&format!("INSERT INTO public.derived {}", compiled.oracle.over_sources)).await,
    }
}

/// One transaction.
pub async fn batch(session: &Session, compiled: &Compiled, changes: &[Changes], plant: Plant) -> Result<(), String> {
    let mut sql = "BEGIN;".to_owned();
    let mut moves = String::new();
    for Changes { table, old, new } in changes {
        for (side, rows) in [(Side::Old, old), (Side::New, new)] {
            let temp = changed(*table, side);
            sql += &format!("DELETE FROM {temp}; {}", insert(&temp, rows));
        }
        for home in homes(*table) {
            moves += &format!(
                "DELETE FROM {home} WHERE id IN (SELECT id FROM {}); {}",
                changed(*table, Side::Old),
                insert(&home, new)
            );
        }
    }
    let runs = |step: &&Step| changes.iter().any(|changes| step.tables.contains(&source(changes.table)));
    let steps = |steps: &[Step]| -> String { steps.iter().filter(runs).map(|step| format!("{};", step.sql)).collect() };
    match &compiled.way {
        Way::Streamed(streamed) => sql += &(moves + &steps(&streamed.steps)),
        Way::Maintained(maintained) => {
            let (before, after) = planted(maintained, plant);
            sql += &(maintained.clear.join(";") + ";");
            sql += &(steps(&before) + &moves + &steps(&after));
            sql += &maintained.recompute.join(";");
            sql += ";";
            sql += &maintained.write.join(";");
        }
    }
    sql += "; COMMIT";
    let result = session.try_run(&sql).await;
    if result.is_err() {
        session.run("ROLLBACK").await;
    }
    result.map_err(|error| format!("{error}\n{sql}"))
}

/// The steps before and after, with the planted error.
fn planted(maintained: &Maintained, plant: Plant) -> (Vec<Step>, Vec<Step>) {
    let (mut before, mut after) = (maintained.before.clone(), maintained.after.clone());
    let guards = before.len() - maintained.derivations.len();
    match plant {
        Plant::NoOldPass => before.truncate(guards),
        Plant::ForgetMention => {
            let last = maintained.derivations.iter().filter_map(|derivation| derivation.mention).max();
            for steps in [&mut before, &mut after] {
                let mut number = 0;
                steps.retain(|_| {
                    number += 1;
                    number <= guards || maintained.derivations[number - guards - 1].mention != last
                });
            }
        }
        Plant::None | Plant::NoNulls | Plant::KeepSublinks => {}
    }
    (before, after)
}

/// What the target lacks, and what it has too much.
pub async fn difference(session: &Session, compiled: &Compiled) -> Option<String> {
    let rows = |query: &str| format!("SELECT t::text FROM ({query}) AS t");
    let want = session.bag(&rows(&compiled.oracle.over_sources)).await;
    let have = session.bag(&rows(&compiled.oracle.target)).await;
    (want != have).then(|| format!("the query gives  {want:?}\nthe target holds {have:?}"))
}

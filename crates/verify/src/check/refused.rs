use model::{Code, Problem};
use pg::PgError;

/// Why a database did not answer a check, told to those who can change the plan.
pub(super) fn refused(place: &str, error: impl Into<PgError>) -> Problem {
    let error = error.into();
    match error.sqlstate().map(next) {
        Some(next) => Problem::new(Code::CheckFailed, place, error.to_string(), next),
        None => Problem { what: place.to_owned(), ..Problem::from(error) },
    }
}

/// By SQLSTATE (Postgres manual, "PostgreSQL Error Codes").
fn next(sqlstate: &str) -> &'static str {
    match sqlstate {
        "25006" => "a check only reads; what writes belongs into its `fix`",
        "42501" => "grant the role of the URL what the message names, or use another role",
        "42601" => "correct the statement: a check is one query, a fix an INSERT, UPDATE, DELETE, MERGE or SELECT",
        "3F000" | "42P01" | "42704" | "42883" => {
            "correct the name; it needs its schema in front, or the schema in the check's `search_path`"
        }
        "42P18" => "say what type the value has, $1::uuid; and where $2 is used, use $1 too",
        "57014" => "give the check a longer `timeout`, or make the statement cheaper",
        _ => "correct the check in the plan; psql shows the same error",
    }
}

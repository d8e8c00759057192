//! How many rows a finding has, as everybody is told: in memory, in the target, and for people.

use std::collections::BTreeMap;

use model::count;
use pg::Session;
use plan::{CheckSeverity, Finding, Plan};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};
use tokio_postgres::Row;

use crate::ApplyError;

/// Rows shown to people; the JSON has more.
const SHOWN: usize = 3;

/// Of a value, in characters, what people are shown; the JSON has more.
const SHORT: usize = 60;

fn short(text: &str) -> String {
    match text.char_indices().nth(SHORT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// A finding, and how many rows it has. Its JSON is what scripts rely on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Counted {
    /// What is wrong with such rows.
    pub name: String,
    /// What it means that there are any: `error` or `warning`.
    #[serde(serialize_with = "word")]
    pub severity: CheckSeverity,
    /// What becomes of them, and why.
    pub reason: String,
    /// How many there are; null if they could not be counted.
    pub count: Option<u64>,
    /// Some of them: their columns as texts, long ones cut.
    pub samples: Vec<Map<String, Value>>,
    /// When they were counted, or could not be, RFC 3339; null if nobody has tried yet.
    pub at: Option<String>,
    /// How long ago that was, in seconds.
    pub age: Option<f64>,
    /// The last commit of each source that was there then, in Postgres's form.
    pub lsns: BTreeMap<String, String>,
    /// Why they could not be counted.
    pub error: Option<String>,
    /// It is one of the plan's, and not of crossfade's own.
    #[serde(skip)]
    pub(super) declared: bool,
}

fn word<S: Serializer>(severity: &CheckSeverity, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(text_of(*severity))
}

fn text_of(severity: CheckSeverity) -> &'static str {
    match severity {
        CheckSeverity::Error => "error",
        CheckSeverity::Warning => "warning",
    }
}

impl Counted {
    /// A finding of the plan that could not be counted.
    pub(super) fn open(finding: &Finding, why: impl Into<String>) -> Counted {
        Counted {
            name: finding.name.clone(),
            severity: finding.severity,
            reason: finding.reason.clone(),
            count: None,
            samples: Vec::new(),
            at: None,
            age: None,
            lsns: BTreeMap::new(),
            error: Some(why.into()),
            declared: true,
        }
    }

    /// `error` or `warning`.
    pub fn severity(&self) -> &'static str {
        text_of(self.severity)
    }

    /// There are such rows, or nobody knows, and there must be none.
    pub fn is_error(&self) -> bool {
        self.severity == CheckSeverity::Error && self.count != Some(0)
    }

    /// The same without the values of its samples.
    #[must_use]
    pub fn masked(mut self) -> Counted {
        for value in self.samples.iter_mut().flat_map(Map::values_mut) {
            if let Value::String(text) = value {
                *value = format!("({} characters)", text.chars().count()).into();
            }
        }
        self
    }

    /// How many rows there are, as of when, in one line.
    pub fn line(&self) -> String {
        let found = match (self.count, &self.error) {
            (_, Some(error)) => format!("not counted: {error}"),
            (Some(0), _) => "none".to_owned(),
            (rows, None) => count(rows.unwrap_or_default(), "row"),
        };
        let lsns: Vec<&str> = self.lsns.values().map(String::as_str).collect();
        let at = if lsns.is_empty() { String::new() } else { format!(", as of {}", lsns.join(", ")) };
        let reason = if self.count == Some(0) { String::new() } else { format!(" ({})", self.reason) };
        format!("{}: {found}{at}{reason}", self.name)
    }

    /// The severity, the line and some of the rows, for people. What a row holds must not steer the terminal.
    pub fn text(&self) -> String {
        let word = if self.count == Some(0) { "none" } else { text_of(self.severity) };
        let mut text = format!("{word:<8} {}\n", self.line().replace(char::is_control, " "));
        for sample in self.samples.iter().take(SHOWN) {
            let value =
                |(name, value): (&String, &Value)| format!("{name}={}", short(value.as_str().unwrap_or("null")));
            let row: Vec<String> = sample.iter().map(value).collect();
            text += &format!("         {}\n", row.join(", ").replace(char::is_control, " "));
        }
        let more = self.count.unwrap_or_default().saturating_sub(self.samples.len().min(SHOWN) as u64);
        if more > 0 && !self.samples.is_empty() {
            text += &format!("         and {more} more\n");
        }
        text
    }
}

/// A list of objects; what is none is left out.
pub(super) fn objects(text: &str) -> Vec<Map<String, Value>> {
    serde_json::from_str(text).unwrap_or_default()
}

/// An object of texts.
pub(super) fn texts(text: &str) -> BTreeMap<String, String> {
    serde_json::from_str(text).unwrap_or_default()
}

/// What was counted last: every finding of the plan, in its order, and then what crossfade has counted itself, by name.
///
/// # Errors
/// The target.
pub async fn answers(session: &tokio_postgres::Client, plan: &Plan) -> Result<Vec<Counted>, tokio_postgres::Error> {
    // A target whose state is of an older version has no such table.
    let there = "SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                                 WHERE n.nspname = 'crossfade' AND c.relname = 'finding')";
    let query = "SELECT name, severity, reason, count, samples::text, error, lsns::text, declared,
                        to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), extract(epoch FROM clock_timestamp() - at)::float8
                   FROM crossfade.finding ORDER BY name";
    let rows = match session.query_one(there, &[]).await?.get(0) {
        true => session.query(query, &[]).await?,
        false => Vec::new(),
    };
    let of_plan = |finding: &Finding| {
        let sql = Some(finding.sql.text.as_str());
        let row = rows.iter().find(|row| row.get::<_, &str>(0) == finding.name && row.get::<_, Option<&str>>(7) == sql);
        let open = Counted::open(finding, "it has not been counted yet");
        match row {
            // Severity and reason are what the plan says now.
            Some(row) => Counted { severity: open.severity, reason: open.reason, ..answer(row) },
            None => open,
        }
    };
    let own = rows.iter().filter(|row| row.get::<_, Option<&str>>(7).is_none());
    Ok(plan.findings.iter().map(of_plan).chain(own.map(answer)).collect())
}

fn answer(row: &Row) -> Counted {
    Counted {
        name: row.get(0),
        severity: if row.get::<_, &str>(1) == "warning" { CheckSeverity::Warning } else { CheckSeverity::Error },
        reason: row.get(2),
        count: row.get::<_, Option<i64>>(3).map(i64::unsigned_abs),
        samples: objects(row.get(4)),
        error: row.get(5),
        lsns: texts(row.get(6)),
        declared: row.get::<_, Option<&str>>(7).is_some(),
        at: row.get(8),
        age: row.get(9),
    }
}

/// Leaves an answer. `declared` is the plan's query that it is the answer to; none if crossfade has counted it itself.
///
/// # Errors
/// The target.
pub(super) async fn keep(session: &Session, counted: &Counted, declared: Option<&str>) -> Result<(), ApplyError> {
    let samples = serde_json::to_string(&counted.samples).unwrap_or_else(|_| "[]".to_owned());
    let lsns = serde_json::to_string(&counted.lsns).unwrap_or_else(|_| "{}".to_owned());
    let (severity, rows) = (text_of(counted.severity), counted.count.and_then(|rows| i64::try_from(rows).ok()));
    session
        .execute(
            "INSERT INTO crossfade.finding (name, severity, reason, count, samples, error, lsns, declared, at)
             VALUES ($1::text, $2::text, $3::text, $4, $5::text::json, $6::text, $7::text::json, $8::text, coalesce($9::text::timestamptz, now()))
             ON CONFLICT (name, (declared IS NULL)) DO UPDATE SET severity = excluded.severity, reason = excluded.reason, count = excluded.count, samples = excluded.samples,
               error = excluded.error, lsns = excluded.lsns, declared = excluded.declared, at = excluded.at",
            &[
                &counted.name,
                &severity,
                &counted.reason,
                &rows,
                &samples,
                &counted.error,
                &lsns,
                &declared,
                &counted.at,
            ],
        )
        .await?;
    Ok(())
}

/// Takes away the answers to findings that the plan no longer has.
///
/// # Errors
/// The target.
pub(super) async fn forget(session: &Session, plan: &Plan) -> Result<(), ApplyError> {
    let names: Vec<&str> = plan.findings.iter().map(|finding| finding.name.as_str()).collect();
    let gone = "DELETE FROM crossfade.finding WHERE declared IS NOT NULL AND name <> ALL ($1::text[])";
    session.execute(gone, &[&names]).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(rows: Option<u64>) -> Counted {
        let sample = |id: &str| Map::from_iter([("id".to_owned(), Value::from(id)), ("email".to_owned(), Value::Null)]);
        Counted {
            name: "lost".to_owned(),
            severity: CheckSeverity::Error,
            reason: "not carried".to_owned(),
            count: rows,
            samples: (0..rows.unwrap_or_default().min(10)).map(|id| sample(&format!("{id}\u{1b}"))).collect(),
            at: None,
            age: None,
            lsns: BTreeMap::from([("shop".to_owned(), "0/1".to_owned())]),
            error: rows.is_none().then(|| "no time".to_owned()),
            declared: true,
        }
    }

    #[test]
    fn people_are_told_how_many_and_some_of_them() {
        let text = counted(Some(12)).text();
        assert!(text.starts_with("error    lost: 12 rows, as of 0/1 (not carried)\n"), "{text}");
        assert!(text.contains("email=null, id=0 \n") && text.ends_with("and 9 more\n"), "{text}");
        assert!(counted(Some(0)).text().starts_with("none     lost: none, as of 0/1\n"));
        assert!(counted(None).text().contains("not counted: no time"));
        let mut long = counted(Some(1));
        long.samples[0].insert("email".to_owned(), Value::from("ü".repeat(SHORT + 1)));
        assert!(long.text().contains(&format!("email={}…, id=0", "ü".repeat(SHORT))), "{}", long.text());
    }

    #[test]
    fn what_nobody_knows_is_not_right() {
        assert!(counted(None).is_error() && counted(Some(1)).is_error() && !counted(Some(0)).is_error());
        let warning = Counted { severity: CheckSeverity::Warning, ..counted(Some(1)) };
        assert!(!warning.is_error());
    }

    #[test]
    fn a_mask_leaves_names_and_lengths() {
        let masked = counted(Some(1)).masked();
        assert_eq!(masked.samples[0]["id"], "(2 characters)");
        assert_eq!(masked.samples[0]["email"], Value::Null);
    }
}

use std::collections::BTreeMap;

use apply::Counted;
use model::count;
use serde::{Deserialize, Serialize};

use crate::pair::Pair;
use crate::side::Row;

/// What a comparison of both sides found. Its JSON is what scripts rely on.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Of all tables: equal if they all are, else different if one is, else inconclusive.
    pub verdict: Verdict,
    /// Why nothing can be said of a table, of the first one of which that is so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Which comparison.
    pub id: String,
    /// Everything that is equal was so at this commit, or at a later one that its table names.
    pub lsn: String,
    /// The longest time for which the target's tail was held, in milliseconds.
    pub held_ms: u64,
    /// How long it took, without what an earlier run of it had done.
    pub seconds: f64,
    /// Per cent of the parts of large tables that were compared, if not all.
    pub sample: Option<f64>,
    /// How often both sides were brought together, and how often what the source showed was no prefix of its commits.
    pub fences: u64,
    /// See `fences`.
    pub no_prefix: u64,
    /// By source and name.
    pub tables: Vec<TableReport>,
    /// Rows that rules leave out, or let be less than they were, counted by whoever has asked for the comparison, behind it. They have no part in the verdict.
    pub findings: Vec<Counted>,
}

/// What it found of a table.
#[derive(Clone, Debug, Serialize)]
pub struct TableReport {
    /// The source that its rows come from.
    pub source: String,
    /// At the target.
    pub table: String,
    /// Whether it is the same.
    pub verdict: Verdict,
    /// Why nothing can be said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// At this commit, of its oldest part.
    pub lsn: String,
    /// Compared, as the source has them.
    pub rows: i64,
    /// Parts of it that were compared.
    pub parts: u64,
    /// Parts that it has; more than were compared with `sample`.
    pub parts_of: u64,
    /// Rows that only the source has.
    pub missing: u64,
    /// Rows that only the target has.
    pub extra: u64,
    /// Rows with another value.
    pub different: u64,
    /// There are more than were counted.
    pub more: bool,
    /// Rows that were changed just then, compared one by one with what the log says of them.
    pub rechecked: u64,
    /// Some of those that differ.
    pub samples: Vec<Difference>,
    /// Columns that were not compared: what they are depends on what they were.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
    /// Of a derived table: where its query was asked, and if not at its source, why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query: Option<String>,
}

/// Whether both sides are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Every row is the same.
    Equal,
    /// Rows are not.
    Different,
    /// Not all of it was compared, and what was is the same.
    Inconclusive,
}

impl Verdict {
    /// As scripts see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Equal => "equal",
            Verdict::Different => "different",
            Verdict::Inconclusive => "inconclusive",
        }
    }

    /// Of several; of none, nothing can be said.
    pub fn of(verdicts: impl IntoIterator<Item = Verdict>) -> Verdict {
        let verdicts: Vec<Verdict> = verdicts.into_iter().collect();
        if verdicts.contains(&Verdict::Different) {
            return Verdict::Different;
        }
        match verdicts.is_empty() || verdicts.contains(&Verdict::Inconclusive) {
            true => Verdict::Inconclusive,
            false => Verdict::Equal,
        }
    }
}

/// A row that is not the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// What is wrong with it.
    pub kind: Kind,
    /// The values of its key; none in a table without.
    pub key: BTreeMap<String, String>,
    /// Of a different row the columns that are; else, in a table without key, all of them.
    pub columns: BTreeMap<String, Values>,
}

/// What is wrong with a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Only the source has it.
    Missing,
    /// Only the target has it.
    Extra,
    /// Both have it, with other values.
    Different,
}

/// A column's value on both sides; null for NULL, and absent where there is no row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Values {
    /// At the source.
    #[serde(skip_serializing_if = "Option::is_none", default, with = "there")]
    pub source: Option<Option<String>>,
    /// At the target.
    #[serde(skip_serializing_if = "Option::is_none", default, with = "there")]
    pub target: Option<Option<String>>,
}

/// A null that is there is something else than nothing.
mod there {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(value: &Option<Option<String>>, to: S) -> Result<S::Ok, S::Error> {
        value.as_ref().and_then(Option::as_ref).serialize(to)
    }

    pub fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<Option<Option<String>>, D::Error> {
        Option::deserialize(from).map(Some)
    }
}

impl Difference {
    /// A row that only one side has.
    pub(crate) fn whole(pair: &Pair, kind: Kind, row: &Row) -> Difference {
        let values = |value: &Option<String>| match kind {
            Kind::Missing => Values { source: Some(cut(value)), target: None },
            Kind::Extra | Kind::Different => Values { source: None, target: Some(cut(value)) },
        };
        let columns = match pair.key.is_empty() {
            true => pair.columns.iter().zip(row).map(|(column, value)| (column.name.clone(), values(value))).collect(),
            false => BTreeMap::new(),
        };
        Difference { kind, key: key(pair, row), columns }
    }

    /// Another row of the target with a key that it has already.
    pub(crate) fn again(pair: &Pair, key: &[String]) -> Difference {
        let name = |(at, value): (&usize, &String)| (pair.columns[*at].name.clone(), value.clone());
        Difference { kind: Kind::Extra, key: pair.key.iter().zip(key).map(name).collect(), columns: BTreeMap::new() }
    }

    /// A row that both have, if it differs.
    pub(crate) fn between(pair: &Pair, source: &Row, target: &Row) -> Option<Difference> {
        let columns: BTreeMap<String, Values> = pair
            .columns
            .iter()
            .zip(source.iter().zip(target))
            .filter(|(_, (ours, theirs))| ours != theirs)
            .map(|(column, (ours, theirs))| {
                (column.name.clone(), Values { source: Some(cut(ours)), target: Some(cut(theirs)) })
            })
            .collect();
        (!columns.is_empty()).then(|| Difference { kind: Kind::Different, key: key(pair, source), columns })
    }

    /// The same without the values of its columns; the key's stay.
    pub(crate) fn masked(mut self) -> Difference {
        let mask = |value: Option<Option<String>>| {
            value.map(|value| {
                value.map(|text| if is_mask(&text) { text } else { format!("({} characters)", text.chars().count()) })
            })
        };
        for values in self.columns.values_mut() {
            *values = Values { source: mask(values.source.take()), target: mask(values.target.take()) };
        }
        self
    }
}

/// Whether it is what [`Difference::masked`] has made of a value, or as good as that.
fn is_mask(text: &str) -> bool {
    let inner = text.strip_prefix('(').and_then(|text| text.strip_suffix(" characters)"));
    inner.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Of a value, in characters: what a person looks at, and what can be kept of thousands.
pub(crate) const SHOWN_OF_A_VALUE: usize = 4000;

pub(crate) fn cut(value: &Option<String>) -> Option<String> {
    value.as_ref().map(|text| match text.char_indices().nth(SHOWN_OF_A_VALUE) {
        Some((at, _)) => format!("{}… ({} bytes)", &text[..at], text.len()),
        None => text.clone(),
    })
}

fn key(pair: &Pair, row: &Row) -> BTreeMap<String, String> {
    pair.key.iter().map(|at| (pair.columns[*at].name.clone(), row[*at].clone().unwrap_or_default())).collect()
}

/// For people.
pub fn text(report: &Report) -> String {
    let mut text = String::new();
    for table in &report.tables {
        text += &format!(
            "{:<12} {}  {}, {} rechecked, as of {}\n",
            table.verdict.as_str(),
            table.table,
            count(table.rows.unsigned_abs(), "row"),
            table.rechecked,
            table.lsn
        );
        if let Some(why) = &table.why {
            text += &format!("             {why}\n");
        }
        if let Some(query) = &table.query {
            text += &format!("             compared with its query {query}\n");
        }
        if !table.left_out.is_empty() {
            let columns = table.left_out.join(", ");
            text += &format!("             not compared, as they depend on what was there before: {columns}\n");
        }
        if table.verdict == Verdict::Different {
            let more = if table.more { ", and more" } else { "" };
            text += &format!(
                "             {} missing, {} extra, {} different{more}\n",
                table.missing, table.extra, table.different
            );
        }
        for sample in table.samples.iter().take(SHOWN) {
            // No value is to steer the terminal.
            text += &format!("             {}\n", line(sample).replace(char::is_control, " "));
        }
    }
    for finding in &report.findings {
        text += &format!("finding: {}", finding.text());
    }
    let parts = |of: fn(&TableReport) -> u64| report.tables.iter().map(of).sum::<u64>();
    let (compared, all) = (parts(|table| table.parts), parts(|table| table.parts_of));
    let sample = report.sample.map(|sample| format!(", a sample of {sample} %: {compared} of {}", count(all, "part")));
    text + &format!(
        "{}: {} in {:.1} s{}; the tail was held for {} ms at most\n",
        report.verdict.as_str(),
        count(report.tables.len() as u64, "table"),
        report.seconds,
        sample.unwrap_or_default(),
        report.held_ms
    )
}

/// Differences shown of a table; the report has more.
const SHOWN: usize = 5;

fn line(difference: &Difference) -> String {
    let kind = match difference.kind {
        Kind::Missing => "missing",
        Kind::Extra => "extra",
        Kind::Different => "different",
    };
    let key: Vec<String> = difference.key.iter().map(|(name, value)| format!("{name} = {value}")).collect();
    let show = |value: &Option<Option<String>>| match value {
        None => "no row".to_owned(),
        Some(None) => "null".to_owned(),
        Some(Some(text)) => {
            let short: String = text.chars().take(60).collect();
            if short.len() < text.len() { format!("{short:?}…") } else { format!("{short:?}") }
        }
    };
    let columns: Vec<String> = difference
        .columns
        .iter()
        .map(|(name, values)| format!("{name}: source {}, target {}", show(&values.source), show(&values.target)))
        .collect();
    [kind.to_owned(), key.join(", "), columns.join("; ")]
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("  ")
}

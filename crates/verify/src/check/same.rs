use std::cmp::Ordering;

use model::{Code, Problem, quote};
use plan::Check;

use super::databases::Visit;
use super::found::{Found, OnlyIn, Sample};
use super::rows::{Row, Rows, Statement};
use super::tenant::Tenant;

/// One side of a comparison.
pub(super) struct Side<'v> {
    pub(super) visit: &'v Visit<'v>,
    pub(super) sql: &'v str,
}

/// The rows that only one side has, as multisets of text. The servers sort, so that of each side one row is in memory at a time.
pub(super) async fn differences(
    check: &Check,
    tenant: &Tenant,
    source: Side<'_>,
    target: Side<'_>,
) -> Result<Found, Problem> {
    let (ours, theirs) = tokio::try_join!(
        Statement::of(source.visit, source.sql, tenant),
        Statement::of(target.visit, target.sql, tenant)
    )?;
    alike(&ours, &theirs)?;
    let (mut ours, mut theirs) = tokio::try_join!(start(source.visit, &ours), start(target.visit, &theirs))?;
    let (mut left, mut right) = tokio::try_join!(ours.next(), theirs.next())?;
    let mut found = Found::default();
    loop {
        let order = match (&left, &right) {
            (None, None) => return Ok(found),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(left), Some(right)) => order(left, right),
        };
        let only_in = |side, rows: &Rows<'_>, row: &Option<Row>| Sample {
            only_in: Some(side),
            ..Sample::new(tenant, &rows.columns(), row.as_ref().unwrap_or(&Vec::new()))
        };
        match order {
            Ordering::Less => found.add(check.sample, || only_in(OnlyIn::Source, &ours, &left)),
            Ordering::Greater => found.add(check.sample, || only_in(OnlyIn::Target, &theirs, &right)),
            Ordering::Equal => {}
        }
        if order.is_le() {
            left = ours.next().await?;
        }
        if order.is_ge() {
            right = theirs.next().await?;
        }
    }
}

fn alike(source: &Statement, target: &Statement) -> Result<(), Problem> {
    let (ours, theirs) = (source.columns.len(), target.columns.len());
    if ours == theirs && ours > 0 {
        return Ok(());
    }
    let why = format!("the source returns {ours} columns and the target {theirs}");
    Err(Problem::new(Code::CheckFailed, "", why, "let both sides return as many columns, at least one"))
}

/// Sorts by the bytes in UTF-8: what the two databases have as encoding and collation does not count.
async fn start<'v>(visit: &'v Visit<'v>, statement: &Statement) -> Result<Rows<'v>, Problem> {
    let Statement { sql, columns, .. } = statement;
    // Names that no two columns share, which those of the query may do.
    let names: Vec<String> = (1..=columns.len()).map(|n| format!("c{n}")).collect();
    let text = |(name, column): (&String, &String)| format!("{name}::text AS {}", quote::ident(column));
    let texts: Vec<String> = names.iter().zip(columns).map(text).collect();
    let keys: Vec<String> = names.iter().map(|name| format!("convert_to(rows.{name}::text, 'UTF8')")).collect();
    let sorted = format!(
        "SELECT {} FROM (\n{sql}\n) AS rows ({}) ORDER BY {}",
        texts.join(", "),
        names.join(", "),
        keys.join(", ")
    );
    Rows::start(visit, &sorted, &statement.values).await
}

/// The servers' order: value by value, nulls last.
fn order(left: &Row, right: &Row) -> Ordering {
    left.iter().map(key).cmp(right.iter().map(key))
}

fn key(value: &Option<String>) -> (bool, Option<&str>) {
    (value.is_none(), value.as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_ordered_as_the_servers_do() {
        let row = |values: [Option<&str>; 2]| values.map(|value| value.map(str::to_owned)).to_vec();
        let sorted =
            [[Some("B"), None], [Some("a"), Some("")], [Some("a"), Some("é")], [Some("a"), None], [None, None]];
        for (n, left) in sorted.into_iter().enumerate() {
            for (m, right) in sorted.into_iter().enumerate() {
                assert_eq!(order(&row(left), &row(right)), n.cmp(&m));
            }
        }
    }
}

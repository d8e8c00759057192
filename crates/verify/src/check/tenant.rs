use model::{Code, Problem, quote};
use plan::{Asks, Check, Side};

use super::databases::Databases;
use super::rows::{Row, Rows, Statement};

/// More would not be tenants; and they are in memory.
const MOST: usize = 100_000;

/// For whom a check runs: a row of its `tenants`. Without columns where the check has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tenant {
    /// Columns and their values, in the row's order.
    pub(super) columns: Vec<(String, Option<String>)>,
}

impl Tenant {
    /// How many columns it has.
    pub(super) fn width(&self) -> usize {
        self.columns.len()
    }

    /// The first so many values, if there are as many.
    pub(super) fn values(&self, wanted: usize) -> Option<Row> {
        let columns = self.columns.get(..wanted)?;
        Some(columns.iter().map(|(_, value)| value.clone()).collect())
    }

    /// `sql` with this tenant's values in place of `{column}`, as names: for schemas and tables, which no parameter can stand for.
    /// Braces around anything else stay. Of what cannot be done: why, and what next.
    pub(super) fn named(&self, sql: &str) -> Result<String, (String, &'static str)> {
        let mut text = String::with_capacity(sql.len());
        let mut rest = sql;
        while let Some((before, after)) = rest.split_once('{') {
            text += before;
            let inside = after.split_once('}').map(|(inside, _)| inside);
            match self.columns.iter().find(|(column, _)| Some(column.as_str()) == inside) {
                Some((column, value)) => {
                    text += &name(column, value.as_deref())?;
                    rest = &after[column.len() + 1..];
                }
                None => {
                    text.push('{');
                    rest = after;
                }
            }
        }
        Ok(text + rest)
    }

    /// Says for which tenant it was.
    pub(super) fn at(&self, problem: Problem) -> Problem {
        if self.columns.is_empty() {
            return problem;
        }
        let value =
            |(column, value): &(String, Option<String>)| format!("{column}={}", value.as_deref().unwrap_or("null"));
        let tenant = self.columns.iter().map(value).collect::<Vec<_>>().join(", ");
        Problem { what: format!("{}, for {tenant}", problem.what), ..problem }
    }
}

/// A value as an identifier. It may stand anywhere in the statement, in a string or a comment too, so it must not hold what could end those.
fn name(column: &str, value: Option<&str>) -> Result<String, (String, &'static str)> {
    let plain = |value: &&str| value.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-') && !value.is_empty();
    value.filter(plain).map(quote::ident).ok_or_else(|| {
        let why = format!("{{{column}}} stands for {:?}, which is no plain name", value.unwrap_or("null"));
        (why, "names consist of letters, digits, _ and -; pass anything else as a value, $1")
    })
}

/// For whom the check runs.
pub(super) async fn all(check: &Check, databases: &mut Databases) -> Result<Vec<Tenant>, Problem> {
    let Some(sql) = &check.tenants else { return Ok(vec![Tenant::default()]) };
    let side = match &check.asks {
        Asks::Rows { on, .. } | Asks::Http { on, .. } => on,
        Asks::Same { .. } => &Side::Target,
    };
    let visit = databases.read(side, check).await?;
    let Statement { sql, values, .. } = Statement::of(&visit, sql, &Tenant::default()).await?;
    let mut rows = Rows::start(&visit, &sql, &values).await?;
    let mut tenants = Vec::new();
    while let Some(row) = rows.next().await? {
        if tenants.len() == MOST {
            return Err(
                visit.problem(format!("`tenants` returns more than {MOST} rows"), "narrow it, by LIMIT for one")
            );
        }
        tenants.push(Tenant { columns: rows.columns().iter().cloned().zip(row).collect() });
    }
    if tenants.is_empty() {
        return Err(nothing(
            "`tenants` returns no row",
            "correct `tenants`, or take the check out while there are none",
        ));
    }
    Ok(tenants)
}

/// A check that has looked at nothing has not passed.
pub(super) fn nothing(why: &str, next: &str) -> Problem {
    Problem::new(Code::CheckFailed, "", format!("{why}, so nothing was checked"), next)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn tenant(value: Option<&str>) -> Tenant {
        let columns = vec![("slug".to_owned(), value.map(str::to_owned)), ("n".to_owned(), Some("7".to_owned()))];
        Tenant { columns }
    }

    #[test]
    fn a_column_in_braces_is_a_name_and_other_braces_stay() {
        let named =
            tenant(Some("me_1")).named("SELECT '{}', '{1,2}', '{a', {slug}.t, {slug}, '{\"slug\": 1}', {n}").unwrap();
        assert_eq!(named, "SELECT '{}', '{1,2}', '{a', \"me_1\".t, \"me_1\", '{\"slug\": 1}', \"7\"");
    }

    #[test]
    fn what_could_end_a_string_is_no_name() {
        for value in [Some("a'b"), Some("a\"b"), Some("a\\"), Some("$$"), Some("a\nb"), Some("*/"), Some(""), None] {
            let (why, _) = tenant(value).named("SELECT FROM {slug}.t").unwrap_err();
            assert!(why.contains("{slug}"), "{why}");
        }
    }

    #[test]
    fn a_statement_gets_the_values_that_it_uses() {
        assert_eq!(tenant(None).values(1).unwrap(), [None]);
        assert_eq!(tenant(None).values(2).unwrap(), [None, Some("7".to_owned())]);
        assert_eq!(tenant(None).values(3), None);
        assert_eq!(Tenant::default().values(0).unwrap(), []);
    }
}

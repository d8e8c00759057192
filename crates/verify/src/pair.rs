use std::collections::{BTreeMap, BTreeSet};

use model::{CopyColumn, Record, TableBegin, TableName, quote};
use pg::Session;
use pg::catalog::{self, TargetColumn};

use crate::error::VerifyError;

/// One of the two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    Source,
    Target,
}

/// A table of the target, and what at the source its rows come from.
#[derive(Debug)]
pub(crate) struct Pair {
    /// At the target.
    pub table: TableName,
    /// At the source: one, or the partitions that lead into it.
    pub sources: Vec<TableName>,
    pub columns: Vec<Column>,
    /// What tells rows apart, as positions in `columns`; nothing where only all columns together do.
    pub key: Vec<usize>,
    /// Stands before the target's name, so that inheritance children are left alone.
    only: &'static str,
}

/// A column that is compared.
#[derive(Debug)]
pub(crate) struct Column {
    pub name: String,
    /// The log does not carry it: both servers work it out.
    pub generated: bool,
    source: TargetColumn,
    target: TargetColumn,
}

impl Column {
    fn at(&self, at: At) -> &TargetColumn {
        match at {
            At::Source => &self.source,
            At::Target => &self.target,
        }
    }

    /// A value of it as SQL.
    fn literal(&self, at: At, value: Option<&str>) -> String {
        value.map_or("NULL".to_owned(), |value| format!("{}::{}", quote::literal(value), self.at(at).cast))
    }
}

/// Types whose order is the same everywhere, whatever the database's collation.
const ORDERED: [&str; 9] = ["int2", "int4", "int8", "numeric", "uuid", "date", "timestamp", "timestamptz", "bytea"];

impl Pair {
    /// A table of the target by itself, with these of its columns, in this order, and the first column of its key.
    ///
    /// # Errors
    /// The target; or, inside, why it cannot be had.
    pub async fn alone(
        target: &Session,
        table: &TableName,
        names: &[String],
        key: Option<&String>,
    ) -> Result<Result<Pair, String>, VerifyError> {
        let there = catalog::target_columns(target, table).await?;
        if there.is_empty() {
            return Ok(Err("there is no such table".to_owned()));
        }
        let mut columns = Vec::with_capacity(names.len());
        for name in names {
            let Some(column) = there.iter().find(|column| column.name == *name) else {
                return Ok(Err(format!("it has no column {}", quote::ident(name))));
            };
            let (name, generated) = (name.clone(), column.generated);
            columns.push(Column { name, generated, source: column.clone(), target: column.clone() });
        }
        let place = |key: &String| columns.iter().position(|column| column.name == *key);
        let Some(key) = key.into_iter().map(place).collect() else {
            return Ok(Err("its key has a column that is not compared".to_owned()));
        };
        let only = catalog::only(target, table).await?;
        Ok(Ok(Pair { table: table.clone(), sources: Vec::new(), columns, key, only }))
    }

    /// The table's rows at a side, as `t`.
    pub fn from(&self, at: At) -> String {
        match (at, self.sources.as_slice()) {
            (At::Target, _) => format!("{}{} AS t", self.only, self.table.quoted()),
            (At::Source, [one]) => format!("ONLY {} AS t", one.quoted()),
            (At::Source, many) => {
                let columns = quote::idents(self.columns.iter().map(|column| column.name.as_str()));
                let parts: Vec<String> =
                    many.iter().map(|table| format!("SELECT {columns} FROM ONLY {}", table.quoted())).collect();
                format!("({}) AS t", parts.join(" UNION ALL "))
            }
        }
    }

    /// The tables behind it at a side, to be locked.
    pub fn relations(&self, at: At) -> Vec<String> {
        match at {
            At::Target => vec![format!("{}{}", self.only, self.table.quoted())],
            At::Source => self.sources.iter().map(|table| format!("ONLY {}", table.quoted())).collect(),
        }
    }

    /// The columns of `t`.
    pub fn each_cell(&self) -> Vec<String> {
        self.columns.iter().map(|column| format!("t.{}", quote::ident(&column.name))).collect()
    }

    /// The key's columns of `t`.
    pub fn key_cells(&self) -> Vec<String> {
        self.key.iter().map(|at| format!("t.{}", quote::ident(&self.columns[*at].name))).collect()
    }

    /// The condition that `t` is one of the rows with these keys, each given in the key's order.
    pub fn among<'a>(&self, at: At, keys: impl IntoIterator<Item = &'a [String]>) -> String {
        let columns: Vec<&Column> = self.key.iter().map(|at| &self.columns[*at]).collect();
        let line = |key: &[String]| {
            let values: Vec<String> =
                columns.iter().zip(key).map(|(column, value)| column.literal(at, Some(value))).collect();
            format!("({})", values.join(", "))
        };
        let lines: Vec<String> = keys.into_iter().map(line).collect();
        if lines.is_empty() {
            return "false".to_owned();
        }
        let names: Vec<String> = (0..columns.len()).map(|number| format!("c{number}")).collect();
        let equal: Vec<String> = columns
            .iter()
            .enumerate()
            .map(|(number, column)| format!("t.{} {} v.c{number}", quote::ident(&column.name), column.at(at).equals))
            .collect();
        format!(
            "EXISTS (SELECT FROM (VALUES {}) v({}) WHERE {})",
            lines.join(", "),
            names.join(", "),
            equal.join(" AND ")
        )
    }

    /// The condition that the leading key column of `t` is not below `from`, and below `to`.
    pub fn between(&self, at: At, from: Option<&str>, to: Option<&str>) -> String {
        let Some(column) = self.key.first().map(|at| &self.columns[*at]) else { return "true".to_owned() };
        let name = quote::ident(&column.name);
        let bound = |operator: &str, value: &str| format!("t.{name} {operator} {}", column.literal(at, Some(value)));
        match (from, to) {
            (None, None) => "true".to_owned(),
            (Some(from), None) => bound(">=", from),
            (Some(from), Some(to)) => format!("{} AND {}", bound(">=", from), bound("<", to)),
            // A target that somebody else has made may have keys that are null.
            (None, Some(to)) => format!("({} OR t.{name} IS NULL)", bound("<", to)),
        }
    }

    /// The leading key column, if its values can be divided into ranges that mean the same on both sides.
    pub fn divisible(&self) -> Option<String> {
        let column = &self.columns[*self.key.first()?];
        let ordered =
            |side: &TargetColumn| ORDERED.iter().any(|name| side.cast == TableName::new("pg_catalog", *name).quoted());
        let alike = self.sources.len() == 1 && ordered(&column.source) && ordered(&column.target);
        alike.then(|| quote::ident(&column.name))
    }
}

/// Why nothing can be said of tables that are being copied.
pub(crate) const NOT_JOINED: &str = "copy and tail are not joined, and before that the tables do not agree with each other; wait for phase following in `crossfade status`";

/// What there is to compare of a source, and of what nothing can be said, with the reason.
pub(crate) struct Pairs {
    pub pairs: Vec<Pair>,
    pub inconclusive: Vec<(TableName, String)>,
}

/// Looks up the tables of a source; only those named by `only`, if any are.
pub(crate) async fn load(
    source: &Session,
    target: &Session,
    plan: &plan::Source,
    only: &[TableName],
) -> Result<Pairs, VerifyError> {
    let name = &plan.name;
    let mut found = Pairs { pairs: Vec::new(), inconclusive: Vec::new() };
    let joined: bool = target
        .query_one(
            "SELECT coalesce(bool_and(joined), false) FROM crossfade.checkpoint WHERE source = $1::text",
            &[&name],
        )
        .await?
        .get(0);
    let rows = target
        .query(
            "SELECT into_schema, into_name, begin, schema, name FROM crossfade.tables WHERE source = $1::text ORDER BY into_schema, into_name, schema, name",
            &[&name],
        )
        .await?;
    let mut groups: BTreeMap<TableName, Vec<TableBegin>> = BTreeMap::new();
    let copied: Vec<TableName> =
        rows.iter().map(|row| TableName::new(row.get::<_, String>(3), row.get::<_, String>(4))).collect();
    for row in &rows {
        let into = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        let group = groups.entry(into).or_default();
        if let Some(begin) = row.get::<_, Option<&[u8]>>(2)
            && let Record::TableBegin(begin) = Record::decode(begin.to_vec().into()).map_err(log::LogError::Damaged)?
        {
            group.push(begin);
        }
    }
    let wanted = |table: &TableName, group: &[TableBegin]| {
        only.is_empty()
            || only.iter().any(|only| {
                only == table || group.iter().any(|begin| begin.table == *only || begin.root.as_ref() == Some(only))
            })
    };
    let mut there: BTreeMap<TableName, catalog::Table> =
        catalog::tables(source).await?.into_iter().map(|table| (table.name.clone(), table)).collect();
    for (table, group) in groups.into_iter().filter(|(table, group)| wanted(table, group)) {
        if !joined {
            let why = NOT_JOINED;
            found.inconclusive.push((table, why.to_owned()));
            continue;
        }
        match pair(source, target, table.clone(), &group, &mut there).await? {
            Ok(pair) => found.pairs.push(pair),
            Err(why) => found.inconclusive.push((table, why)),
        }
    }
    // What the plan selects and nobody has copied: new, attached, or selected since a moment ago.
    let known: BTreeSet<&TableName> = copied.iter().collect();
    let selects = |table: &TableName, root: Option<&TableName>| {
        plan.tables.selects(table) || root.is_some_and(|root| plan.tables.selects(root))
    };
    for (table, now) in there {
        if known.contains(&table) || !selects(&table, now.root.as_ref()) {
            continue;
        }
        if only.is_empty() || only.contains(&table) || now.root.is_some_and(|root| only.contains(&root)) {
            found.inconclusive.push((table, "the plan selects it, and no copy of it has begun; `crossfade run`, or `crossfade capture`, copies it when it is started again".to_owned()));
        }
    }
    Ok(found)
}

async fn pair(
    source: &Session,
    target: &Session,
    table: TableName,
    group: &[TableBegin],
    there: &mut BTreeMap<TableName, catalog::Table>,
) -> Result<Result<Pair, String>, VerifyError> {
    let Some(first) = group.first() else {
        return Ok(Err("its copy has not begun; `crossfade status` shows how far it is".to_owned()));
    };
    for begin in group {
        let Some(now) = there.remove(&begin.table) else {
            return Ok(Err(format!("table {} is not at the source any more", begin.table)));
        };
        if !CopyColumn::are_alike(&now.columns, &begin.columns) {
            return Ok(Err(format!("the columns of table {} changed at the source since it was copied", begin.table)));
        }
        if now.key != begin.key || now.root != begin.root {
            let why = format!(
                "the key of table {} changed at the source since it was copied, or it was attached or detached",
                begin.table
            );
            return Ok(Err(why));
        }
    }
    let (ours, theirs) =
        (catalog::target_columns(source, &first.table).await?, catalog::target_columns(target, &table).await?);
    let mut columns = Vec::new();
    for column in ours {
        let counterpart = theirs.iter().find(|candidate| candidate.name == column.name);
        match counterpart {
            // Without a key only what the log carries can be added up.
            _ if column.generated && first.key.is_empty() => {}
            Some(counterpart) => columns.push(Column {
                name: column.name.clone(),
                generated: column.generated,
                source: column,
                target: counterpart.clone(),
            }),
            // What the source works out need not be there.
            None if column.generated => {}
            None => {
                return Ok(Err(format!(
                    "the target has no column {}; give it one, or copy the table again",
                    quote::ident(&column.name)
                )));
            }
        }
    }
    let place = |name: &String| columns.iter().position(|column| column.name == *name);
    let Some(key) = first.key.iter().map(place).collect::<Option<Vec<usize>>>() else {
        return Ok(Err("its key has a column that is not compared".to_owned()));
    };
    for (session, side, relations) in [
        (source, "source", group.iter().map(|begin| begin.table.quoted()).collect()),
        (target, "target", vec![table.quoted()]),
    ] {
        if !readable(session, &relations).await? {
            return Ok(Err(format!("the role lacks SELECT on it at the {side}; grant it")));
        }
    }
    let only = catalog::only(target, &table).await?;
    let sources = group.iter().map(|begin| begin.table.clone()).collect();
    Ok(Ok(Pair { table, sources, columns, key, only }))
}

async fn readable(session: &Session, relations: &Vec<String>) -> Result<bool, VerifyError> {
    let query = "SELECT coalesce(bool_and(has_table_privilege(to_regclass(name), 'SELECT')), false) FROM unnest($1::text[]) name";
    Ok(session.query_one(query, &[relations]).await?.get(0))
}

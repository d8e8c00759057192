//! From the text of a query to a [`Query`] in which all is resolved. What is not known to be handled is refused by name:
//! every place that looks at a node of the parse tree lists what it knows, and nothing passes by default.
//!
//! - `parts`: several `[[table]]`s as one query, and rows that share a key as one; `cut`: a table that goes over in part
//! - `select`: SELECT, VALUES, set operations and their clauses
//! - `from`: FROM and its joins
//! - `expr`: expressions; `call`: functions; `literal`: constants, types, operators
//! - `scope`: which names mean what

mod call;
mod cut;
mod expr;
mod from;
mod literal;
mod names;
mod parts;
mod scope;
mod select;

use pg_query::protobuf::{Node, SelectStmt};
use pg_query::{NodeEnum, ParserOptions};
use plan::{Derived, Sql};

use crate::catalog::{Catalog, SourceTable};
use crate::print::Aliases;
use crate::query::Query;
use crate::trouble::{Place, Trouble, TroubleKind};

/// A query that was read.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    pub query: Query,
    pub aliases: Aliases,
    /// For every mention of a table, its place in the catalog and in the SQL.
    pub mentions: Vec<Mention>,
    /// What was seen under way that does not stop it.
    pub warnings: Vec<Trouble>,
}

/// One mention of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mention {
    /// Its index in [`Catalog::tables`].
    pub table: usize,
    pub at: Option<Place>,
}

/// Reads what gives a table's rows.
pub(crate) fn read(derived: &Derived, catalog: &Catalog) -> Result<Reading, Trouble> {
    let Some(first) = derived.parts.first() else { return Err(not_select(&"".into(), "it has no query")) };
    let mut reader = Reader::new(first.sql(), catalog, None);
    let query = reader.derived(derived)?;
    Ok(reader.done(query))
}

/// Reads a query that stands for itself.
pub(crate) fn read_question(sql: &Sql, catalog: &Catalog) -> Result<Reading, Trouble> {
    let mut reader = Reader::new(sql, catalog, None);
    let query = reader.select(&parse(sql, ParserOptions::DEFAULT)?, None)?;
    Ok(reader.done(query))
}

/// Reads what is said of which units the rows of a table affect: it may read them as `changed`.
pub(crate) fn read_said(sql: &Sql, catalog: &Catalog, changed: &SourceTable) -> Result<Reading, Trouble> {
    let mut reader = Reader::new(sql, catalog, Some(changed));
    let query = reader.select(&parse(sql, ParserOptions::DEFAULT)?, None)?;
    Ok(reader.done(query))
}

/// The one SELECT that a text is. As an expression of PL/pgSQL it is what could stand behind the word.
fn parse(sql: &Sql, how: ParserOptions) -> Result<SelectStmt, Trouble> {
    let parsed = pg_query::parse(&sql.text, how).map_err(|error| syntax(sql, how, &error.to_string()))?;
    let mut statements = parsed.protobuf.stmts.into_iter();
    let (Some(statement), None) = (statements.next(), statements.next()) else {
        return Err(not_select(sql, "it is not one statement"));
    };
    match statement.stmt.and_then(|node| node.node) {
        Some(NodeEnum::SelectStmt(select)) => Ok(*select),
        _ => Err(not_select(sql, "it is not a SELECT")),
    }
}

fn not_select(sql: &Sql, why: &str) -> Trouble {
    Trouble {
        kind: TroubleKind::NotSelect,
        at: Place::of(sql, 0),
        table: None,
        what: "the query".to_owned(),
        why: why.to_owned(),
        next: "write one SELECT, without a semicolon and another statement behind it".to_owned(),
    }
}

/// The parser says what it met, not where. The place is the first one up to which it says the same.
fn syntax(sql: &Sql, how: ParserOptions, message: &str) -> Trouble {
    let text = &sql.text;
    let near = message.rsplit_once("at or near \"").and_then(|(_, near)| near.strip_suffix('"'));
    let offset = near.filter(|near| !near.is_empty()).and_then(|near| {
        text.match_indices(near).map(|(offset, _)| offset).find(|offset| {
            text.get(..offset + near.len())
                .and_then(|until| pg_query::parse(until, how).err())
                .is_some_and(|error| error.to_string() == message)
        })
    });
    let end = if near.is_none() { text.len() } else { 0 };
    Trouble {
        kind: TroubleKind::Syntax,
        at: Place::of(sql, offset.unwrap_or(end)),
        table: None,
        what: "the query".to_owned(),
        why: message.trim_start_matches("Invalid statement: ").to_owned(),
        next: "Postgres's own parser says so; try it in psql".to_owned(),
    }
}

struct Reader<'a> {
    /// What is being read.
    sql: &'a Sql,
    catalog: &'a Catalog,
    changed: Option<&'a SourceTable>,
    aliases: Aliases,
    mentions: Vec<Mention>,
    warnings: Vec<Trouble>,
}

impl<'a> Reader<'a> {
    fn new(sql: &'a Sql, catalog: &'a Catalog, changed: Option<&'a SourceTable>) -> Self {
        Reader { sql, catalog, changed, aliases: Aliases::default(), mentions: Vec::new(), warnings: Vec::new() }
    }

    fn done(self, query: Query) -> Reading {
        Reading { query, aliases: self.aliases, mentions: self.mentions, warnings: self.warnings }
    }
}

impl Reader<'_> {
    /// The place of a node; where the parser does not know it and says -1, that of the whole.
    fn place(&self, location: i32) -> Option<Place> {
        Place::of(self.sql, usize::try_from(location).unwrap_or_default())
    }

    fn trouble(
        &self,
        kind: TroubleKind,
        at: i32,
        what: impl Into<String>,
        why: impl Into<String>,
        next: impl Into<String>,
    ) -> Trouble {
        Trouble { kind, at: self.place(at), table: None, what: what.into(), why: why.into(), next: next.into() }
    }

    /// Refuses something that is not known to be handled.
    fn unsupported(&self, at: i32, what: impl Into<String>, next: impl Into<String>) -> Trouble {
        self.trouble(TroubleKind::Unsupported, at, what, "a derived table cannot be kept current through it", next)
    }

    /// Refuses a node that is none of those that stand in this place.
    fn unknown_node(&self, node: Option<&NodeEnum>) -> Trouble {
        let name = node.map_or("nothing".to_owned(), |node| {
            let text = format!("{node:?}");
            text.split(['(', ' ', '{']).next().unwrap_or_default().to_owned()
        });
        let at = node.map_or(-1, location);
        self.unsupported(at, format!("the construct {name}"), "write it another way")
    }
}

/// The node inside.
fn inner(node: &Node) -> Option<&NodeEnum> {
    node.node.as_ref()
}

/// Where a node that is refused begins, as far as it says so.
fn location(node: &NodeEnum) -> i32 {
    match node {
        NodeEnum::ColumnRef(node) => node.location,
        NodeEnum::ParamRef(node) => node.location,
        NodeEnum::FuncCall(node) => node.location,
        NodeEnum::XmlExpr(node) => node.location,
        NodeEnum::XmlSerialize(node) => node.location,
        NodeEnum::JsonObjectConstructor(node) => node.location,
        NodeEnum::JsonArrayConstructor(node) => node.location,
        NodeEnum::JsonArrayQueryConstructor(node) => node.location,
        NodeEnum::JsonIsPredicate(node) => node.location,
        NodeEnum::JsonFuncExpr(node) => node.location,
        NodeEnum::JsonTable(node) => node.location,
        NodeEnum::RangeTableFunc(node) => node.location,
        NodeEnum::RangeTableSample(node) => node.location,
        NodeEnum::MultiAssignRef(_) | NodeEnum::CurrentOfExpr(_) => -1,
        _ => -1,
    }
}

/// The texts of a list of names.
fn strings(nodes: &[Node]) -> Vec<String> {
    nodes
        .iter()
        .filter_map(|node| match inner(node) {
            Some(NodeEnum::String(text)) => Some(text.sval.clone()),
            _ => None,
        })
        .collect()
}

use std::collections::BTreeMap;

use pg_query::ParserOptions;
use plan::{Derived, Part, Rows, Sql};

use super::scope::{Names, Scope, listed};
use super::{Reader, parse};
use crate::query::{Block, Body, By, CallKind, Expr, From, Group, Query, SetKind, SetOperation, Target};
use crate::trouble::{Trouble, TroubleKind};

impl<'a> Reader<'a> {
    /// All that gives a table's rows as one query: UNION ALL of its parts, grouped by the key where rows that share one are merged.
    pub(super) fn derived(&mut self, derived: &'a Derived) -> Result<Query, Trouble> {
        let mut parts = Vec::new();
        for part in &derived.parts {
            self.sql = part.sql();
            let query = match &part.rows {
                Rows::Query(sql) => self.select(&parse(sql, ParserOptions::DEFAULT)?, None)?,
                Rows::Cut(cut) => self.cut(cut, &derived.key)?,
            };
            parts.push(query);
        }
        let mut parts = self.in_one_order(parts, &derived.parts)?;
        let query = united(&mut parts).ok_or_else(|| self.unknown_node(None))?;
        if derived.merge.is_empty() { Ok(query) } else { self.merged(query, derived) }
    }

    /// The parts with their columns in the order of the first one's.
    fn in_one_order(&mut self, parts: Vec<Query>, said: &'a [Part]) -> Result<Vec<Query>, Trouble> {
        let (Some(first), [before, ..]) = (parts.first(), said) else { return Ok(parts) };
        let names: Vec<String> = first.names().into_iter().map(str::to_owned).collect();
        let mut all = Vec::new();
        for (query, part) in parts.into_iter().zip(said) {
            self.sql = part.sql();
            let own: Vec<String> = query.names().into_iter().map(str::to_owned).collect();
            if own == names {
                all.push(query);
                continue;
            }
            let line = before.line;
            let differs = |name: &String, why: String, next: String| {
                self.trouble(TroubleKind::Declaration, 0, format!("column {name}"), why, next)
            };
            if let Some(name) = names.iter().find(|name| !own.contains(name)) {
                let why = format!("the [[table]] in line {line} gives it, and the one in line {} does not", part.line);
                return Err(differs(
                    name,
                    why,
                    format!("all into one table give the same columns; this one gives {}", own.join(", ")),
                ));
            }
            if let Some(name) = own.iter().find(|name| !names.contains(name)) {
                let why = format!("the [[table]] in line {} gives it, and the one in line {line} does not", part.line);
                return Err(differs(
                    name,
                    why,
                    format!("all into one table give the same columns; that one gives {}", names.join(", ")),
                ));
            }
            if own.len() != names.len() {
                let twice = own.iter().find(|name| own.iter().filter(|other| other == name).count() > 1);
                let name = twice.unwrap_or(&own[0]);
                return Err(differs(
                    name,
                    "the result has two of that name".to_owned(),
                    "name one of them AS something else".to_owned(),
                ));
            }
            all.push(self.chosen(query, &names));
        }
        Ok(all)
    }

    /// These columns of a query.
    fn chosen(&mut self, query: Query, names: &[String]) -> Query {
        let item = self.aliases.add("part");
        let targets = names.iter().map(|name| Target { name: name.clone(), expr: Expr::column(item, name) }).collect();
        let from = vec![From::Query { item, lateral: false, query: Box::new(query) }];
        Query::of(Body::Block(Box::new(Block { targets, from, ..Block::default() })))
    }

    /// One row of those that share a key.
    fn merged(&mut self, query: Query, derived: &'a Derived) -> Result<Query, Trouble> {
        let names: Vec<String> = query.names().into_iter().map(str::to_owned).collect();
        let item = self.aliases.add("merged");
        let columns = names.iter().map(|name| (name.clone(), Expr::column(item, name))).collect();
        let scope = Names::of(vec!["merged".to_owned()], columns);
        let mut how = BTreeMap::new();
        for sql in &derived.merge {
            let (name, expr) = self.merge(sql, scope.clone())?;
            if derived.key.contains(&name) {
                let why = "it is a key column, the same in all rows that are merged";
                return Err(self.of_merge(format!("column {name}"), why, "leave it out"));
            }
            if how.insert(name.clone(), expr).is_some() {
                return Err(self.of_merge(
                    format!("column {name}"),
                    "`merge` has two aggregates over it",
                    "keep one of them",
                ));
            }
        }
        if derived.key.is_empty() {
            return Err(self.of_merge(
                "`merge`",
                "the table has no key, so no two rows share one",
                "name a `key`, or leave it out",
            ));
        }
        let mut targets = Vec::new();
        for name in &names {
            let expr = match how.remove(name) {
                Some(expr) => expr,
                None if derived.key.contains(name) => Expr::column(item, name),
                None => {
                    let why = "`merge` does not say what becomes of it where several rows share a key";
                    let next = format!("add an aggregate over it to `merge`: \"max({name})\"");
                    return Err(self.of_merge(format!("column {name}"), why, next));
                }
            };
            targets.push(Target { name: name.clone(), expr });
        }
        let key = names.iter().filter(|name| derived.key.contains(name));
        let group = key.map(|name| Group::By(By::Expr(Expr::column(item, name)))).collect();
        let from = vec![From::Query { item, lateral: false, query: Box::new(query) }];
        Ok(Query::of(Body::Block(Box::new(Block { targets, from, group, ..Block::default() }))))
    }

    /// An aggregate of `merge`, and the column that it is over.
    fn merge(&mut self, sql: &'a Sql, names: Names) -> Result<(String, Expr), Trouble> {
        self.sql = sql;
        let node = self.expression(sql)?;
        let expr = self.expr(&node, &Scope::inside(&None, names))?;
        let used: Vec<String> = expr.columns().into_iter().map(|(_, name)| name).collect();
        let is_aggregate = matches!(&expr, Expr::Call(call) if call.kind == CallKind::Aggregate);
        match used.as_slice() {
            [name] if is_aggregate && !expr.has_sublink() && !expr.has_window() => Ok((name.clone(), expr)),
            used => {
                let used: Vec<&str> = used.iter().map(String::as_str).collect();
                let why = match is_aggregate {
                    true => format!("it is over {}, and has to be over one column of the result", listed(&used)),
                    false => "it is not a call of an aggregate".to_owned(),
                };
                Err(self.of_merge(
                    format!("`merge` {}", sql.text),
                    why,
                    "write one for each column that is not of the key: \"max(access)\"",
                ))
            }
        }
    }

    fn of_merge(&self, what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> Trouble {
        self.trouble(TroubleKind::Declaration, 0, what, why, next)
    }
}

/// UNION ALL of all; as a tree that is as deep as need be and no deeper, for there may be many.
fn united(parts: &mut Vec<Query>) -> Option<Query> {
    let mut right = parts.split_off(parts.len().div_ceil(2));
    if right.is_empty() {
        return parts.pop();
    }
    let (left, right) = (united(parts)?, united(&mut right)?);
    Some(Query::of(Body::Set(Box::new(SetOperation { kind: SetKind::Union, all: true, left, right }))))
}

use pg_query::protobuf::{Node, RangeVar, SelectStmt};
use pg_query::{NodeEnum, ParserOptions};
use plan::{Cut, Sql};

use super::scope::{Names, Scope, listed};
use super::{Reader, inner, parse};
use crate::query::{Block, Body, Expr, Query, Target};
use crate::trouble::{Trouble, TroubleKind};

impl<'a> Reader<'a> {
    /// A source's table in part: chosen columns, masked ones, chosen rows.
    pub(super) fn cut(&mut self, cut: &'a Cut, key: &[String]) -> Result<Query, Trouble> {
        let range = RangeVar {
            catalogname: cut.source.clone(),
            schemaname: cut.table.schema.clone(),
            relname: cut.table.name.clone(),
            ..RangeVar::default()
        };
        let (from, names) = self.range(&range, &None)?;
        let all = names.columns.clone();
        for column in &cut.columns {
            self.sql = column;
            self.known(&column.text, &all)?;
        }
        let is_chosen = |name: &str| cut.columns.is_empty() || cut.columns.iter().any(|column| column.text == name);
        let mut targets: Vec<Target> =
            all.iter().filter(|(name, _)| is_chosen(name)).cloned().map(|(name, expr)| Target { name, expr }).collect();
        for (name, mask) in &cut.masks {
            self.sql = mask;
            self.known(name, &all)?;
            let refused = match (is_chosen(name), key.contains(name)) {
                (false, _) => Some(("`columns` does not choose it", "take out the mask, or add the column there")),
                (_, true) => Some((
                    "it is a key column: rows are told apart by its values, and others refer to them",
                    "mask columns that are not of the key; of new ids write a table with `sql`, and crossfade_id",
                )),
                _ => None,
            };
            if let Some((why, next)) = refused {
                return Err(self.trouble(TroubleKind::Declaration, 0, format!("the mask of column {name}"), why, next));
            }
            // One that does not hold here is read all the same: it has to be right, and has a part in what the table reads.
            let expr = self.of_one_row(mask, names.clone())?;
            if let Some(target) = targets.iter_mut().find(|target| cut.mask_in.holds() && target.name == *name) {
                target.expr = expr;
            }
        }
        let filter = match &cut.filter {
            Some(filter) => self.of_one_row(filter, names)?.conjuncts(),
            None => Vec::new(),
        };
        Ok(Query::of(Body::Block(Box::new(Block { targets, from: vec![from], filter, ..Block::default() }))))
    }

    fn known(&self, name: &str, all: &[(String, Expr)]) -> Result<(), Trouble> {
        if all.iter().any(|(known, _)| known == name) {
            return Ok(());
        }
        let known: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
        let next = format!("it has {}", listed(&known));
        Err(self.trouble(TroubleKind::UnknownColumn, 0, format!("column {name}"), "the table does not have it", next))
    }

    /// A value or condition that goes by one row of the table.
    fn of_one_row(&mut self, sql: &'a Sql, names: Names) -> Result<Expr, Trouble> {
        self.sql = sql;
        let node = self.expression(sql)?;
        let expr = self.expr(&node, &Scope::inside(&None, names))?;
        let what = if expr.has_aggregate() {
            "an aggregate"
        } else if expr.has_window() {
            "a window function"
        } else if expr.returns_set() {
            "a function that returns a set"
        } else {
            return Ok(expr);
        };
        Err(self.trouble(
            TroubleKind::Unsupported,
            0,
            what,
            "one row of the table gives one row here",
            "write the table with `sql`",
        ))
    }

    /// The one expression that a text is.
    pub(super) fn expression(&self, sql: &Sql) -> Result<Node, Trouble> {
        let mut select = parse(sql, ParserOptions::PLPGSQL_EXPR)?;
        let targets = std::mem::take(&mut select.target_list);
        let nothing = SelectStmt { op: select.op, limit_option: select.limit_option, ..SelectStmt::default() };
        match targets.first().and_then(inner) {
            Some(NodeEnum::ResTarget(target)) if targets.len() == 1 && target.name.is_empty() && select == nothing => {
                target.val.as_deref().cloned().ok_or_else(|| self.unknown_node(None))
            }
            _ => Err(self.trouble(
                TroubleKind::Syntax,
                0,
                "the expression",
                "it is more than one expression",
                "write one, without AS, FROM or a comma behind it",
            )),
        }
    }
}

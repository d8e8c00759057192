use std::rc::Rc;

use model::quote;
use pg_query::NodeEnum;
use pg_query::protobuf::{Alias, JoinExpr, JoinType, Node, RangeFunction, RangeSubselect, RangeVar};

use super::names::figure;
use super::scope::{Names, Parent, Scope, listed};
use super::{Mention, Reader, inner, strings};
use crate::catalog::Table;
use crate::query::{Expr, From, JoinKind, Query, Read};
use crate::trouble::{Named, Trouble, TroubleKind};

impl Reader<'_> {
    /// An item of FROM and the names it brings. `before` is what stands left of it, for LATERAL.
    pub(super) fn from<'s>(
        &mut self,
        node: &'s Node,
        outer: &Parent<'s>,
        before: &Names,
    ) -> Result<(From, Names), Trouble> {
        match inner(node) {
            Some(NodeEnum::RangeVar(range)) => self.range(range, outer),
            Some(NodeEnum::RangeSubselect(range)) => self.subselect(range, outer, before),
            Some(NodeEnum::RangeFunction(range)) => self.function(range, outer, before),
            Some(NodeEnum::JoinExpr(join)) => self.join(join, outer, before),
            other => Err(self.unknown_node(other)),
        }
    }

    pub(super) fn range<'s>(&mut self, range: &'s RangeVar, outer: &Parent<'s>) -> Result<(From, Names), Trouble> {
        let alias = range.alias.as_ref();
        if range.schemaname.is_empty() {
            if let Some((cte, scope)) = Scope::cte(outer, &range.relname) {
                let Some(NodeEnum::SelectStmt(select)) = cte.ctequery.as_deref().and_then(inner) else {
                    return Err(self.unknown_node(None));
                };
                let mut query = self.select(select, scope)?;
                query.rename(&strings(&cte.aliascolnames));
                return Ok(self.query(query, alias, &range.relname, false));
            }
            if let (Some(changed), "changed") = (self.changed, range.relname.as_str()) {
                let found = self.catalog.tables.iter().position(|table| table.name == *changed);
                let table = found.ok_or_else(|| self.no_table(range))?;
                return Ok(self.table(range, table, Read::Changed));
            }
        }
        let table = self.find(range)?;
        Ok(self.table(range, table, Read::All))
    }

    fn table(&mut self, range: &RangeVar, table: usize, read: Read) -> (From, Names) {
        let alias = range.alias.as_ref();
        let item = self.aliases.add(alias.map_or(&range.relname, |alias| &alias.aliasname));
        let occurrence = self.mentions.len();
        self.mentions.push(Mention { table, at: self.place(range.location) });
        let known = &self.catalog.tables[table];
        let given = alias.map_or(Vec::new(), |alias| strings(&alias.colnames));
        let columns = known
            .columns
            .iter()
            .enumerate()
            .map(|(number, column)| {
                let visible = given.get(number).unwrap_or(&column.name);
                (visible.clone(), Expr::column(item, &column.name))
            })
            .collect();
        let path = match alias {
            Some(alias) => vec![alias.aliasname.clone()],
            None if read == Read::Changed => vec![range.relname.clone()],
            None => {
                vec![known.name.source.clone(), known.name.table.schema.clone(), known.name.table.name.clone()]
            }
        };
        (From::Table { item, occurrence, table, read }, Names::of(path, columns))
    }

    /// The table that is meant: the source may be left out where there is one only, the schema where the name is enough.
    fn find(&self, range: &RangeVar) -> Result<usize, Trouble> {
        let meant = |table: &&Table| {
            let name = &table.name;
            name.table.name == range.relname
                && (range.schemaname.is_empty() || name.table.schema == range.schemaname)
                && (range.catalogname.is_empty() || name.source == range.catalogname)
        };
        let found: Vec<&Table> = self.catalog.tables.iter().filter(meant).collect();
        let several = {
            let mut sources = self.catalog.tables.iter().map(|table| &table.name.source);
            let first = sources.next();
            sources.any(|source| Some(source) != first)
        };
        match found[..] {
            [table] if !(several && range.catalogname.is_empty()) => self
                .catalog
                .tables
                .iter()
                .position(|known| known.name == table.name)
                .ok_or_else(|| self.no_table(range)),
            [] => Err(self.no_table(range)),
            _ => {
                let names: Vec<String> = found.iter().map(|table| table.name.to_string()).collect();
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                Err(self.trouble(
                    TroubleKind::UnknownTable,
                    range.location,
                    format!("table {}", range.relname),
                    "the plan has several sources, or tables of that name",
                    format!("write its source and schema: {}", listed(&names)),
                ))
            }
        }
    }

    fn no_table(&self, range: &RangeVar) -> Trouble {
        let part = |part: &String| Some(part.clone()).filter(|part| !part.is_empty());
        let (source, schema) = (part(&range.catalogname), part(&range.schemaname));
        let named = Named { source, schema, name: range.relname.clone() };
        let alike: Vec<String> = self
            .catalog
            .tables
            .iter()
            .filter(|table| table.name.table.name == range.relname || self.catalog.tables.len() <= 12)
            .map(|table| table.name.to_string())
            .collect();
        let alike: Vec<&str> = alike.iter().map(String::as_str).collect();
        let trouble = self.trouble(
            TroubleKind::UnknownTable,
            range.location,
            format!("table {named}"),
            "no source of the plan captures it",
            format!("write source.schema.table of a captured table: {}", listed(&alike)),
        );
        Trouble { table: Some(Box::new(named)), ..trouble }
    }

    fn subselect<'s>(
        &mut self,
        range: &'s RangeSubselect,
        outer: &Parent<'s>,
        before: &Names,
    ) -> Result<(From, Names), Trouble> {
        let Some(NodeEnum::SelectStmt(select)) = range.subquery.as_deref().and_then(inner) else {
            return Err(self.unknown_node(range.subquery.as_deref().and_then(inner)));
        };
        let around = if range.lateral { Some(Scope::inside(outer, before.clone())) } else { outer.clone() };
        let query = self.select(select, around)?;
        Ok(self.query(query, range.alias.as_ref(), "unnamed", range.lateral))
    }

    fn query(&mut self, mut query: Query, alias: Option<&Alias>, name: &str, lateral: bool) -> (From, Names) {
        if let Some(alias) = alias {
            query.rename(&strings(&alias.colnames));
        }
        let name = alias.map_or(name, |alias| &alias.aliasname);
        let item = self.aliases.add(name);
        let columns = query.names().into_iter().map(|column| (column.to_owned(), Expr::column(item, column))).collect();
        (From::Query { item, lateral, query: Box::new(query) }, Names::of(vec![name.to_owned()], columns))
    }

    fn function<'s>(
        &mut self,
        range: &'s RangeFunction,
        outer: &Parent<'s>,
        before: &Names,
    ) -> Result<(From, Names), Trouble> {
        let list = match range.functions.as_slice() {
            [one] => inner(one),
            _ => return Err(self.unsupported(-1, "ROWS FROM of several functions", "join them, WITH ORDINALITY each")),
        };
        // Each function comes as a list of itself and its own column definitions.
        let (node, definitions) = match list {
            Some(NodeEnum::List(list)) => match list.items.as_slice() {
                [function] | [function, Node { node: None }] => (function, range.coldeflist.as_slice()),
                [function, Node { node: Some(NodeEnum::List(own)) }] => (function, own.items.as_slice()),
                _ => return Err(self.unknown_node(None)),
            },
            other => return Err(self.unknown_node(other)),
        };
        let Some(NodeEnum::FuncCall(called)) = inner(node) else { return Err(self.unknown_node(inner(node))) };
        let scope = Scope::inside(outer, before.clone());
        let call = self.expr(node, &scope)?;
        if call.has_sublink() {
            let next = "put it into a LATERAL subquery of its own, before the function";
            return Err(self.unsupported(called.location, "a subquery inside a function in FROM", next));
        }
        if call.has_aggregate() || call.has_window() {
            return Err(self.unsupported(called.location, "an aggregate in FROM", "put it into a subquery"));
        }
        let alias = range.alias.as_ref();
        let name = alias.map_or_else(|| figure(node), |alias| alias.aliasname.clone());
        let mut columns = Vec::new();
        let mut printed = Vec::new();
        for node in definitions {
            let Some(NodeEnum::ColumnDef(column)) = inner(node) else { return Err(self.unknown_node(inner(node))) };
            let Some(type_name) = &column.type_name else { return Err(self.unknown_node(None)) };
            printed.push(format!("{} {}", quote::ident(&column.colname), self.type_name(type_name)?));
            columns.push(column.colname.clone());
        }
        if definitions.is_empty() {
            let out = self.functions(&strings(&called.funcname), called.location)?.first().map(|f| f.columns.clone());
            columns = out.filter(|out| !out.is_empty()).unwrap_or_else(|| vec![name.clone()]);
            if range.ordinality {
                columns.push("ordinality".to_owned());
            }
            let given = alias.map_or(Vec::new(), |alias| strings(&alias.colnames));
            if given.len() > columns.len() {
                // A composite type, whose columns only the alias names here.
                columns.clone_from(&given);
            }
            for (column, given) in columns.iter_mut().zip(given) {
                *column = given;
            }
            printed = columns.iter().map(|column| quote::ident(column)).collect();
        }
        let item = self.aliases.add(&name);
        let visible = columns.into_iter().map(|column| (column.clone(), Expr::column(item, column))).collect();
        let from = From::Function { item, call, ordinality: range.ordinality, columns: printed.join(", ") };
        Ok((from, Names::of(vec![name], visible)))
    }

    fn join<'s>(&mut self, join: &'s JoinExpr, outer: &Parent<'s>, before: &Names) -> Result<(From, Names), Trouble> {
        let kind = match join.jointype() {
            JoinType::JoinInner => JoinKind::Inner,
            JoinType::JoinLeft => JoinKind::Left,
            JoinType::JoinRight => JoinKind::Right,
            JoinType::JoinFull => JoinKind::Full,
            _ => return Err(self.unsupported(-1, "a join of another kind", "use JOIN, LEFT, RIGHT or FULL JOIN")),
        };
        let (Some(left), Some(right)) = (join.larg.as_deref(), join.rarg.as_deref()) else {
            return Err(self.unknown_node(None));
        };
        let (left, left_names) = self.from(left, outer, before)?;
        let (right, right_names) = self.from(right, outer, &before.clone().and(left_names.clone()))?;
        let shared: Vec<String> = if join.is_natural {
            let both = |name: &&String| right_names.columns.iter().any(|(column, _)| column == *name);
            left_names.columns.iter().map(|(name, _)| name).filter(both).cloned().collect()
        } else {
            strings(&join.using_clause)
        };
        let mut on = Vec::new();
        let mut merged = Vec::new();
        for name in &shared {
            let (one, other) = (self.shared(name, &left_names)?, self.shared(name, &right_names)?);
            on.push(Expr::binary("=", one.clone(), other.clone()));
            let expr = match kind {
                JoinKind::Inner | JoinKind::Left | JoinKind::Nulled => one,
                JoinKind::Right => other,
                JoinKind::Full => Expr::Coalesce(vec![one, other]),
            };
            merged.push((name.clone(), expr));
        }
        if let Some(quals) = &join.quals {
            let scope = Scope::inside(outer, left_names.clone().and(right_names.clone()));
            on = self.expr(quals, &Rc::clone(&scope))?.conjuncts();
        }
        let rest = |(name, _): &(String, Expr)| !shared.contains(name);
        let mut names = left_names.and(right_names);
        names.columns.retain(rest);
        names.columns.splice(0..0, merged.clone());
        if let Some(alias) = &join.join_using_alias {
            names.relations.push(Names::of(vec![alias.aliasname.clone()], merged).relations.remove(0));
        }
        if let Some(alias) = &join.alias {
            let given = strings(&alias.colnames);
            for ((name, _), given) in names.columns.iter_mut().zip(given) {
                *name = given;
            }
            names = Names::of(vec![alias.aliasname.clone()], names.columns);
        }
        Ok((From::join(kind, left, right, on), names))
    }

    /// The column of one side that USING or NATURAL means.
    fn shared(&self, name: &str, names: &Names) -> Result<Expr, Trouble> {
        let mut found = names.columns.iter().filter(|(column, _)| column == name);
        match (found.next(), found.next()) {
            (Some((_, expr)), None) => Ok(expr.clone()),
            (None, _) => Err(self.trouble(
                TroubleKind::UnknownColumn,
                -1,
                format!("column {name} in USING"),
                "one side of the join does not have it",
                "join ON a condition",
            )),
            _ => Err(self.trouble(
                TroubleKind::UnknownColumn,
                -1,
                format!("column {name} in USING or NATURAL"),
                "one side of the join has more than one",
                "join ON a condition",
            )),
        }
    }
}

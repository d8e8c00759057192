use std::rc::Rc;

use pg_query::NodeEnum;
use pg_query::protobuf::{
    GroupingSetKind, LimitOption, Node, SelectStmt, SetOperation as Operation, SortByDir, SortByNulls, WithClause,
};

use super::names::figure;
use super::scope::{Meaning, Names, Parent, Scope};
use super::{Reader, inner, strings};
use crate::query::{Block, Body, By, Distinct, Expr, Group, Query, SetKind, SetOperation, Sort, Target};
use crate::trouble::{Trouble, TroubleKind};

impl Reader<'_> {
    /// A SELECT, VALUES or set operation, inside `outer`.
    pub(super) fn select<'s>(&mut self, select: &'s SelectStmt, outer: Parent<'s>) -> Result<Query, Trouble> {
        if select.into_clause.is_some() {
            return Err(self.unsupported(-1, "SELECT INTO", "leave INTO out: `into` of the plan says where rows go"));
        }
        if !select.locking_clause.is_empty() {
            return Err(self.unsupported(-1, "FOR UPDATE or FOR SHARE", "leave it out"));
        }
        let outer = match &select.with_clause {
            Some(with) => self.with(with, outer)?,
            None => outer,
        };
        if select.op() != Operation::SetopNone {
            return self.set_operation(select, outer);
        }
        if !select.values_lists.is_empty() {
            return self.values(select, outer);
        }
        self.block(select, outer)
    }

    fn with<'s>(&self, with: &'s WithClause, mut outer: Parent<'s>) -> Result<Parent<'s>, Trouble> {
        if with.recursive {
            return Err(self.trouble(
                TroubleKind::Recursive,
                with.location,
                "WITH RECURSIVE",
                "what a changed row affects cannot be found through it",
                "write the levels that there are as joins, or make a function of it and say with `affected_by` which units change",
            ));
        }
        for node in &with.ctes {
            let Some(NodeEnum::CommonTableExpr(cte)) = inner(node) else { return Err(self.unknown_node(inner(node))) };
            if cte.search_clause.is_some() || cte.cycle_clause.is_some() {
                return Err(self.unsupported(cte.location, "SEARCH or CYCLE", "leave it out"));
            }
            if !matches!(cte.ctequery.as_deref().and_then(inner), Some(NodeEnum::SelectStmt(_))) {
                return Err(self.unsupported(cte.location, "WITH of something that is not a SELECT", "leave it out"));
            }
            outer = Some(Rc::new(Scope { parent: outer, names: Names::default(), cte: Some(cte) }));
        }
        Ok(outer)
    }

    fn set_operation<'s>(&mut self, select: &'s SelectStmt, outer: Parent<'s>) -> Result<Query, Trouble> {
        let kind = match select.op() {
            Operation::SetopUnion => SetKind::Union,
            Operation::SetopIntersect => SetKind::Intersect,
            Operation::SetopExcept => SetKind::Except,
            Operation::Undefined | Operation::SetopNone => return Err(self.unknown_node(None)),
        };
        let (Some(left), Some(right)) = (&select.larg, &select.rarg) else { return Err(self.unknown_node(None)) };
        let left = self.select(left, outer.clone())?;
        let mut right = self.select(right, outer.clone())?;
        let names: Vec<String> = left.names().into_iter().map(str::to_owned).collect();
        if right.names().len() != names.len() {
            let why = format!("its sides have {} and {} columns", names.len(), right.names().len());
            let next = "give both sides the same columns in the same order";
            return Err(self.trouble(TroubleKind::Declaration, -1, "UNION, INTERSECT or EXCEPT", why, next));
        }
        right.rename(&names);
        let mut query = Query::of(Body::Set(Box::new(SetOperation { kind, all: select.all, left, right })));
        for node in &select.sort_clause {
            let (key, how, at) = self.sort_key(node)?;
            let Some(output) = self.output(key, &names) else {
                let next = "name a column of the result, or its number";
                return Err(self.unsupported(at, "ORDER BY an expression behind a set operation", next));
            };
            query.order.push(Sort { by: By::Output(output), how });
        }
        self.limits(select, &mut query, &Scope::inside(&outer, Names::default()))?;
        Ok(query)
    }

    fn values<'s>(&mut self, select: &'s SelectStmt, outer: Parent<'s>) -> Result<Query, Trouble> {
        let scope = Scope::inside(&outer, Names::default());
        let mut rows = Vec::new();
        for node in &select.values_lists {
            let Some(NodeEnum::List(list)) = inner(node) else { return Err(self.unknown_node(inner(node))) };
            let row = list.items.iter().map(|item| self.expr(item, &scope)).collect::<Result<Vec<_>, _>>()?;
            if row.iter().any(Expr::has_sublink) {
                return Err(self.unsupported(-1, "a subquery inside VALUES", "join it in FROM"));
            }
            rows.push(row);
        }
        let names = (1..=rows.first().map_or(0, Vec::len)).map(|number| format!("column{number}")).collect();
        let mut query = Query::of(Body::Values { names, rows });
        if !select.sort_clause.is_empty() {
            return Err(self.unsupported(-1, "ORDER BY behind VALUES", "leave it out"));
        }
        self.limits(select, &mut query, &scope)?;
        Ok(query)
    }

    fn block<'s>(&mut self, select: &'s SelectStmt, outer: Parent<'s>) -> Result<Query, Trouble> {
        let mut block = Block::default();
        let mut names = Names::default();
        for node in &select.from_clause {
            let (from, more) = self.from(node, &outer, &names)?;
            block.from.push(from);
            names = names.and(more);
        }
        let scope = Scope::inside(&outer, names);
        for node in &select.target_list {
            self.target(node, &scope, &mut block.targets)?;
        }
        if let Some(filter) = &select.where_clause {
            block.filter = self.expr(filter, &scope)?.conjuncts();
        }
        let outputs: Vec<String> = block.targets.iter().map(|target| target.name.clone()).collect();
        for node in &select.group_clause {
            let group = self.group(node, &scope, &outputs)?;
            match group {
                // (a, b) says the same as a, b; () alone does not.
                Group::Sets { word: "", content } if !content.is_empty() => block.group.extend(content),
                other => block.group.push(other),
            }
        }
        block.group_distinct = select.group_distinct;
        block.having = select.having_clause.as_ref().map(|having| self.expr(having, &scope)).transpose()?;
        for node in &select.window_clause {
            let Some(NodeEnum::WindowDef(window)) = inner(node) else { return Err(self.unknown_node(inner(node))) };
            block.windows.push((window.name.clone(), self.window(window, &scope)?));
        }
        block.distinct = self.distinct(&select.distinct_clause, &scope, &outputs)?;
        let mut query = Query::of(Body::Values { names: Vec::new(), rows: Vec::new() });
        for node in &select.sort_clause {
            let (key, how, _) = self.sort_key(node)?;
            let by = self.by(key, &scope, &outputs)?;
            query.order.push(Sort { by, how });
        }
        self.limits(select, &mut query, &scope)?;
        query.body = Body::Block(Box::new(block));
        Ok(query)
    }

    fn target<'s>(&mut self, node: &'s Node, scope: &Rc<Scope<'s>>, targets: &mut Vec<Target>) -> Result<(), Trouble> {
        let Some(NodeEnum::ResTarget(target)) = inner(node) else { return Err(self.unknown_node(inner(node))) };
        let Some(value) = target.val.as_deref() else { return Err(self.unknown_node(None)) };
        if let Some(NodeEnum::ColumnRef(reference)) = inner(value) {
            match self.column(reference, scope)? {
                Meaning::All(all) => targets.extend(all.into_iter().map(|(name, expr)| Target { name, expr })),
                Meaning::One(expr) => {
                    let name = if target.name.is_empty() { figure(value) } else { target.name.clone() };
                    targets.push(Target { name, expr });
                }
            }
            return Ok(());
        }
        let expr = self.expr(value, scope)?;
        let name = if target.name.is_empty() { figure(value) } else { target.name.clone() };
        targets.push(Target { name, expr });
        Ok(())
    }

    fn distinct<'s>(
        &mut self,
        nodes: &'s [Node],
        scope: &Rc<Scope<'s>>,
        outputs: &[String],
    ) -> Result<Distinct, Trouble> {
        match nodes {
            [] => Ok(Distinct::None),
            // DISTINCT alone is a list of one empty node.
            [Node { node: None }] => Ok(Distinct::All),
            on => Ok(Distinct::On(on.iter().map(|node| self.by(node, scope, outputs)).collect::<Result<_, _>>()?)),
        }
    }

    /// What a key of ORDER BY or DISTINCT ON means: a number, a column of the result, or an expression.
    fn by<'s>(&mut self, node: &'s Node, scope: &Rc<Scope<'s>>, outputs: &[String]) -> Result<By, Trouble> {
        match self.output(node, outputs) {
            Some(output) => Ok(By::Output(output)),
            None => Ok(By::Expr(self.expr(node, scope)?)),
        }
    }

    /// The column of the result that a number or a bare name means.
    fn output(&self, node: &Node, outputs: &[String]) -> Option<usize> {
        match inner(node)? {
            NodeEnum::AConst(constant) => {
                number(constant).and_then(|number| number.checked_sub(1)).filter(|&output| output < outputs.len())
            }
            NodeEnum::ColumnRef(reference) => match strings(&reference.fields).as_slice() {
                [name] if reference.fields.len() == 1 => outputs.iter().position(|output| output == name),
                _ => None,
            },
            _ => None,
        }
    }

    fn group<'s>(&mut self, node: &'s Node, scope: &Rc<Scope<'s>>, outputs: &[String]) -> Result<Group, Trouble> {
        match inner(node) {
            Some(NodeEnum::GroupingSet(sets)) => {
                let word = match sets.kind() {
                    GroupingSetKind::GroupingSetEmpty | GroupingSetKind::GroupingSetSimple => "",
                    GroupingSetKind::GroupingSetRollup => "ROLLUP",
                    GroupingSetKind::GroupingSetCube => "CUBE",
                    GroupingSetKind::GroupingSetSets => "GROUPING SETS",
                    GroupingSetKind::Undefined => return Err(self.unknown_node(None)),
                };
                let content =
                    sets.content.iter().map(|node| self.group(node, scope, outputs)).collect::<Result<_, _>>()?;
                Ok(Group::Sets { word, content })
            }
            Some(NodeEnum::RowExpr(row)) => {
                let content = row.args.iter().map(|node| self.group(node, scope, outputs)).collect::<Result<_, _>>()?;
                Ok(Group::Sets { word: "", content })
            }
            Some(NodeEnum::ColumnRef(reference)) => {
                // A bare name is a column of FROM first, of the result second: the other way round than in ORDER BY.
                let found = self.column(reference, scope);
                match (found, self.output(node, outputs)) {
                    (Ok(Meaning::One(expr)), _) => Ok(Group::By(By::Expr(expr))),
                    (_, Some(output)) => Ok(Group::By(By::Output(output))),
                    (Err(trouble), None) => Err(trouble),
                    (Ok(Meaning::All(_)), None) => Err(self.unsupported(reference.location, "*", "name the columns")),
                }
            }
            Some(NodeEnum::AConst(_)) => match self.output(node, outputs) {
                Some(output) => Ok(Group::By(By::Output(output))),
                None => Ok(Group::By(By::Expr(self.expr(node, scope)?))),
            },
            _ => Ok(Group::By(By::Expr(self.expr(node, scope)?))),
        }
    }

    fn limits<'s>(&mut self, select: &'s SelectStmt, query: &mut Query, scope: &Rc<Scope<'s>>) -> Result<(), Trouble> {
        let is_null = |expr: &Expr| matches!(expr, Expr::Constant { null: true, .. });
        query.limit = select.limit_count.as_ref().map(|limit| self.expr(limit, scope)).transpose()?;
        query.limit = query.limit.take().filter(|limit| !is_null(limit));
        query.offset = select.limit_offset.as_ref().map(|offset| self.expr(offset, scope)).transpose()?;
        query.ties = select.limit_option() == LimitOption::WithTies;
        Ok(())
    }

    /// A key of ORDER BY, what follows it, and where it stands.
    fn sort_key<'s>(&self, node: &'s Node) -> Result<(&'s Node, String, i32), Trouble> {
        let Some(NodeEnum::SortBy(sort)) = inner(node) else { return Err(self.unknown_node(inner(node))) };
        let Some(key) = sort.node.as_deref() else { return Err(self.unknown_node(None)) };
        let mut how = match sort.sortby_dir() {
            SortByDir::SortbyDefault | SortByDir::SortbyAsc => String::new(),
            SortByDir::SortbyDesc => " DESC".to_owned(),
            SortByDir::SortbyUsing => format!(" USING {}", self.operator(&sort.use_op, sort.location)?),
            SortByDir::Undefined => return Err(self.unknown_node(None)),
        };
        how += match sort.sortby_nulls() {
            SortByNulls::SortbyNullsDefault => "",
            SortByNulls::SortbyNullsFirst => " NULLS FIRST",
            SortByNulls::SortbyNullsLast => " NULLS LAST",
            SortByNulls::Undefined => return Err(self.unknown_node(None)),
        };
        Ok((key, how, sort.location))
    }

    /// ORDER BY of an aggregate or a window, where neither names nor numbers of the result can be meant.
    pub(super) fn sorts<'s>(&mut self, nodes: &'s [Node], scope: &Rc<Scope<'s>>) -> Result<Vec<Sort>, Trouble> {
        let mut sorts = Vec::new();
        for node in nodes {
            let (key, how, _) = self.sort_key(node)?;
            sorts.push(Sort { by: By::Expr(self.expr(key, scope)?), how });
        }
        Ok(sorts)
    }
}

fn number(constant: &pg_query::protobuf::AConst) -> Option<usize> {
    match &constant.val {
        Some(pg_query::protobuf::a_const::Val::Ival(number)) => usize::try_from(number.ival).ok(),
        _ => None,
    }
}

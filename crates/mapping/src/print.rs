//! A query as SQL. Every name is quoted, every operator stands in parentheses: nothing depends on what a word means elsewhere.

use model::quote;

use crate::query::{
    Block, Body, By, Call, CallKind, Distinct, Expr, From, Group, Item, JoinKind, Over, Piece, Query, Read, SetKind,
    Sort, Sublink, SublinkKind, Window,
};

/// The aliases of all FROM items of one query, no two alike.
#[derive(Clone, Debug, Default)]
pub(crate) struct Aliases(Vec<String>);

impl Aliases {
    /// A new item that is called `name`, or nearly so.
    pub fn add(&mut self, name: &str) -> Item {
        let mut alias = name.to_owned();
        let mut number = 1;
        while self.0.contains(&alias) {
            number += 1;
            alias = format!("{name}_{number}");
        }
        self.0.push(alias);
        self.0.len() - 1
    }

    /// What an item is called.
    pub fn of(&self, item: Item) -> &str {
        self.0.get(item).map_or("", String::as_str)
    }
}

/// How a query becomes text: what items are called, and where tables lie.
pub(crate) struct Printer<'a> {
    pub aliases: &'a Aliases,
    pub table: &'a dyn Fn(usize, Read) -> String,
}

impl Printer<'_> {
    pub fn query(&self, query: &Query) -> String {
        let mut sql = match &query.body {
            Body::Block(block) => self.block(block),
            Body::Set(set) => {
                let word = match set.kind {
                    SetKind::Union => "UNION",
                    SetKind::Intersect => "INTERSECT",
                    SetKind::Except => "EXCEPT",
                };
                let all = if set.all { " ALL" } else { "" };
                format!("({}) {word}{all} ({})", self.query(&set.left), self.query(&set.right))
            }
            Body::Values { names, rows } => {
                let rows = rows.iter().map(|row| format!("({})", self.exprs(row))).collect::<Vec<_>>().join(", ");
                format!("SELECT * FROM (VALUES {rows}) AS \"v\"({})", quote::idents(names.iter().map(String::as_str)))
            }
        };
        if !query.order.is_empty() {
            sql += &format!(" ORDER BY {}", self.sorts(&query.order));
        }
        if let Some(offset) = &query.offset {
            sql += &format!(" OFFSET {}", self.expr(offset));
        }
        if let Some(limit) = &query.limit {
            let ties = if query.ties { "WITH TIES" } else { "ONLY" };
            sql += &format!(" FETCH FIRST ({}) ROWS {ties}", self.expr(limit));
        }
        sql
    }

    pub fn block(&self, block: &Block) -> String {
        let mut sql = "SELECT".to_owned();
        match &block.distinct {
            Distinct::None => {}
            Distinct::All => sql += " DISTINCT",
            Distinct::On(by) => {
                sql += &format!(" DISTINCT ON ({})", by.iter().map(|by| self.by(by)).collect::<Vec<_>>().join(", "));
            }
        }
        let targets: Vec<String> = block
            .targets
            .iter()
            .map(|target| format!("{} AS {}", self.expr(&target.expr), quote::ident(&target.name)))
            .collect();
        if !targets.is_empty() {
            sql += &format!(" {}", targets.join(", "));
        }
        if !block.from.is_empty() {
            sql += &format!(" FROM {}", block.from.iter().map(|from| self.from(from)).collect::<Vec<_>>().join(", "));
        }
        if !block.filter.is_empty() {
            sql += &format!(" WHERE {}", self.all_of(&block.filter));
        }
        if !block.group.is_empty() {
            let distinct = if block.group_distinct { "DISTINCT " } else { "" };
            sql += &format!(" GROUP BY {distinct}{}", self.groups(&block.group));
        }
        if let Some(having) = &block.having {
            sql += &format!(" HAVING {}", self.expr(having));
        }
        if !block.windows.is_empty() {
            let each = |(name, window): &(String, Window)| format!("{} AS {}", quote::ident(name), self.window(window));
            sql += &format!(" WINDOW {}", block.windows.iter().map(each).collect::<Vec<_>>().join(", "));
        }
        sql
    }

    fn from(&self, from: &From) -> String {
        match from {
            From::Table { item, table, read, .. } => {
                format!("{} AS {}", (self.table)(*table, *read), self.alias(*item))
            }
            From::Query { item, lateral, query } => {
                let lateral = if *lateral { "LATERAL " } else { "" };
                format!("{lateral}({}) AS {}", self.query(query), self.alias(*item))
            }
            From::Function { item, call, ordinality, columns } => {
                let ordinality = if *ordinality { " WITH ORDINALITY" } else { "" };
                format!("LATERAL {}{ordinality} AS {}({columns})", self.expr(call), self.alias(*item))
            }
            From::Join { kind, left, right, on } => {
                let (word, on) = match kind {
                    JoinKind::Inner => ("JOIN", self.all_of(on)),
                    JoinKind::Left => ("LEFT JOIN", self.all_of(on)),
                    JoinKind::Right => ("RIGHT JOIN", self.all_of(on)),
                    JoinKind::Full => ("FULL JOIN", self.all_of(on)),
                    JoinKind::Nulled => ("LEFT JOIN", "false".to_owned()),
                };
                format!("({} {word} {} ON {on})", self.from(left), self.from(right))
            }
        }
    }

    fn all_of(&self, conjuncts: &[Expr]) -> String {
        match conjuncts {
            [] => "true".to_owned(),
            all => all.iter().map(|expr| self.expr(expr)).collect::<Vec<_>>().join(" AND "),
        }
    }

    fn groups(&self, groups: &[Group]) -> String {
        let each = |group: &Group| match group {
            Group::By(by) => self.by(by),
            Group::Sets { word, content } => format!("{word}({})", self.groups(content)),
        };
        groups.iter().map(each).collect::<Vec<_>>().join(", ")
    }

    fn by(&self, by: &By) -> String {
        match by {
            By::Output(number) => (number + 1).to_string(),
            // A constant alone would be taken for the number of a column.
            By::Expr(expr @ Expr::Constant { .. }) => format!("({}) IS NULL", self.expr(expr)),
            By::Expr(expr) => self.expr(expr),
        }
    }

    pub fn sorts(&self, sorts: &[Sort]) -> String {
        sorts.iter().map(|sort| format!("{}{}", self.by(&sort.by), sort.how)).collect::<Vec<_>>().join(", ")
    }

    fn window(&self, window: &Window) -> String {
        let mut parts = Vec::new();
        parts.extend(window.base.as_deref().map(quote::ident));
        if !window.partition.is_empty() {
            parts.push(format!("PARTITION BY {}", self.exprs(&window.partition)));
        }
        if !window.order.is_empty() {
            parts.push(format!("ORDER BY {}", self.sorts(&window.order)));
        }
        if !window.frame.is_empty() {
            parts.push(self.pieces(&window.frame));
        }
        format!("({})", parts.join(" "))
    }

    fn alias(&self, item: Item) -> String {
        quote::ident(self.aliases.of(item))
    }

    fn exprs(&self, exprs: &[Expr]) -> String {
        exprs.iter().map(|expr| self.expr(expr)).collect::<Vec<_>>().join(", ")
    }

    pub fn pieces(&self, pieces: &[Piece]) -> String {
        let each = |piece: &Piece| match piece {
            Piece::Sql(sql) => sql.clone(),
            Piece::Expr(expr) => self.expr(expr),
        };
        pieces.iter().map(each).collect()
    }

    pub fn expr(&self, expr: &Expr) -> String {
        match expr {
            Expr::Column(item, name) => format!("{}.{}", self.alias(*item), quote::ident(name)),
            Expr::Constant { sql, .. } => sql.clone(),
            Expr::And(all) => format!("({})", self.all_of(all)),
            Expr::Not(arg) => format!("(NOT {})", self.expr(arg)),
            Expr::Binary { op, left, right } => format!("({} {op} {})", self.expr(left), self.expr(right)),
            Expr::NotDistinct(left, right) => {
                format!("({} IS NOT DISTINCT FROM {})", self.expr(left), self.expr(right))
            }
            Expr::Null { arg, not } => format!("({} IS {}NULL)", self.expr(arg), if *not { "NOT " } else { "" }),
            Expr::Coalesce(all) => format!("COALESCE({})", self.exprs(all)),
            Expr::Cast { arg, to } => format!("CAST({} AS {to})", self.expr(arg)),
            Expr::Row(all) => format!("ROW({})", self.exprs(all)),
            Expr::Case { arg, whens, otherwise } => {
                let arg = arg.as_ref().map_or(String::new(), |arg| format!(" {}", self.expr(arg)));
                let whens: String = whens
                    .iter()
                    .map(|(when, then)| format!(" WHEN {} THEN {}", self.expr(when), self.expr(then)))
                    .collect();
                let otherwise =
                    otherwise.as_ref().map_or(String::new(), |otherwise| format!(" ELSE {}", self.expr(otherwise)));
                format!("CASE{arg}{whens}{otherwise} END")
            }
            Expr::Call(call) => self.call(call),
            Expr::Sub(sub) => self.sublink(sub),
            Expr::Made(pieces) => self.pieces(pieces),
        }
    }

    fn call(&self, call: &Call) -> String {
        let sql = self.pieces(&call.pieces);
        match &call.kind {
            CallKind::Plain | CallKind::Aggregate => sql,
            CallKind::Window(Over::Named(name)) => format!("{sql} OVER {}", quote::ident(name)),
            CallKind::Window(Over::Own(window)) => format!("{sql} OVER {}", self.window(window)),
        }
    }

    fn sublink(&self, sub: &Sublink) -> String {
        let query = self.query(&sub.query);
        let test = sub.test.as_ref().map_or(String::new(), |test| self.expr(test));
        match sub.kind {
            SublinkKind::Exists => format!("EXISTS ({query})"),
            SublinkKind::Scalar => format!("({query})"),
            SublinkKind::Array => format!("ARRAY({query})"),
            SublinkKind::Any => format!("({test} {} ANY ({query}))", sub.op),
            SublinkKind::All => format!("({test} {} ALL ({query}))", sub.op),
            SublinkKind::Row => format!("({test} {} ({query}))", sub.op),
        }
    }
}

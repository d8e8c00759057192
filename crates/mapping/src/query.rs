//! A query after it was read: names resolved, `*` expanded, CTEs inlined, USING and NATURAL turned into ON. What is not
//! here has been refused. A FROM item has a number that is unique in the whole query, so a column is a number and a name,
//! and means the same wherever its expression is moved.

/// The number of a FROM item.
pub(crate) type Item = usize;

/// The number of one mention of a source's table.
pub(crate) type Occurrence = usize;

/// A SELECT, VALUES or set operation.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Query {
    pub body: Body,
    pub order: Vec<Sort>,
    pub limit: Option<Expr>,
    pub ties: bool,
    pub offset: Option<Expr>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Body {
    Block(Box<Block>),
    Set(Box<SetOperation>),
    Values { names: Vec<String>, rows: Vec<Vec<Expr>> },
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SetOperation {
    pub kind: SetKind,
    pub all: bool,
    pub left: Query,
    pub right: Query,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SetKind {
    Union,
    Intersect,
    Except,
}

/// One SELECT.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Block {
    pub distinct: Distinct,
    pub targets: Vec<Target>,
    pub from: Vec<From>,
    pub filter: Vec<Expr>,
    pub group: Vec<Group>,
    pub group_distinct: bool,
    pub having: Option<Expr>,
    pub windows: Vec<(String, Window)>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Distinct {
    #[default]
    None,
    All,
    On(Vec<By>),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Target {
    pub name: String,
    pub expr: Expr,
}

/// What is ordered or grouped by.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum By {
    /// A column of the result, from 0.
    Output(usize),
    Expr(Expr),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sort {
    pub by: By,
    /// What follows it: direction and place of nulls.
    pub how: String,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Group {
    By(By),
    /// Grouping sets, or, without a word, a list in parentheses.
    Sets {
        word: &'static str,
        content: Vec<Group>,
    },
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Window {
    /// The named window that it builds on.
    pub base: Option<String>,
    pub partition: Vec<Expr>,
    pub order: Vec<Sort>,
    pub frame: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum From {
    Table { item: Item, occurrence: Occurrence, table: usize, read: Read },
    Query { item: Item, lateral: bool, query: Box<Query> },
    Function { item: Item, call: Expr, ordinality: bool, columns: String },
    Join { kind: JoinKind, left: Box<From>, right: Box<From>, on: Vec<Expr> },
}

/// Which rows of a table are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    All,
    Changed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JoinKind {
    Inner,
    Left,
    Right,
    Full,
    /// Nothing of the right side: its columns are null.
    Nulled,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Expr {
    Column(Item, String),
    /// A constant, as SQL; `null` says whether it is NULL.
    Constant {
        sql: String,
        null: bool,
    },
    And(Vec<Expr>),
    Not(Box<Expr>),
    /// `op` as SQL.
    Binary {
        op: String,
        left: Box<Expr>,
        right: Box<Expr>,
    },
    NotDistinct(Box<Expr>, Box<Expr>),
    Null {
        arg: Box<Expr>,
        not: bool,
    },
    Coalesce(Vec<Expr>),
    Cast {
        arg: Box<Expr>,
        to: String,
    },
    Row(Vec<Expr>),
    Case {
        arg: Option<Box<Expr>>,
        whens: Vec<(Expr, Expr)>,
        otherwise: Option<Box<Expr>>,
    },
    Call(Box<Call>),
    Sub(Box<Sublink>),
    /// Anything else that is a function of its parts and of nothing else.
    Made(Vec<Piece>),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Piece {
    Sql(String),
    Expr(Expr),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Call {
    pub kind: CallKind,
    /// The last part of its name, for messages and for what is known of Postgres's own.
    pub name: String,
    /// Name, arguments and all up to OVER.
    pub pieces: Vec<Piece>,
    pub returns_set: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum CallKind {
    Plain,
    Aggregate,
    /// Over a window.
    Window(Over),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Over {
    Named(String),
    Own(Window),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sublink {
    pub kind: SublinkKind,
    pub test: Option<Expr>,
    /// The operator as SQL, of ANY, ALL and row comparisons.
    pub op: String,
    pub query: Query,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SublinkKind {
    Exists,
    Any,
    All,
    Row,
    Scalar,
    Array,
}

impl Query {
    /// One that is nothing but `body`.
    pub fn of(body: Body) -> Query {
        Query { body, order: Vec::new(), limit: None, ties: false, offset: None }
    }

    /// The names of its columns.
    pub fn names(&self) -> Vec<&str> {
        match &self.body {
            Body::Block(block) => block.targets.iter().map(|target| target.name.as_str()).collect(),
            Body::Set(set) => set.left.names(),
            Body::Values { names, .. } => names.iter().map(String::as_str).collect(),
        }
    }

    /// Names its first columns anew, in all arms.
    pub fn rename(&mut self, with: &[String]) {
        match &mut self.body {
            Body::Block(block) => {
                for (target, name) in block.targets.iter_mut().zip(with) {
                    target.name.clone_from(name);
                }
            }
            Body::Set(set) => {
                set.left.rename(with);
                set.right.rename(with);
            }
            Body::Values { names, .. } => {
                for (old, name) in names.iter_mut().zip(with) {
                    old.clone_from(name);
                }
            }
        }
    }

    pub fn is_limited(&self) -> bool {
        self.limit.is_some() || self.offset.is_some()
    }
}

impl Block {
    /// Whether it gives a row even where FROM gives none: an aggregate without GROUP BY, or grouping sets, one of which
    /// may be the empty one. `order` is that of the query around it.
    pub fn always_has_a_row(&self, order: &[Sort]) -> bool {
        self.group.iter().any(|group| matches!(group, Group::Sets { .. })) || self.is_one_row(order)
    }

    /// Whether it is an aggregate without GROUP BY.
    pub fn is_one_row(&self, order: &[Sort]) -> bool {
        let sorts = order.iter().filter_map(|sort| match &sort.by {
            By::Expr(expr) => Some(expr),
            By::Output(_) => None,
        });
        self.group.is_empty()
            && (self.having.is_some()
                || self.targets.iter().map(|target| &target.expr).chain(sorts).any(Expr::has_aggregate))
    }
}

impl From {
    /// The items under it, not those inside subqueries.
    pub fn leaves(&self) -> Vec<&From> {
        match self {
            From::Join { left, right, .. } => {
                let mut all = left.leaves();
                all.extend(right.leaves());
                all
            }
            leaf => vec![leaf],
        }
    }

    /// The number of a leaf.
    pub fn item(&self) -> Option<Item> {
        match self {
            From::Table { item, .. } | From::Query { item, .. } | From::Function { item, .. } => Some(*item),
            From::Join { .. } => None,
        }
    }

    /// The numbers of its leaves.
    pub fn items(&self) -> Vec<Item> {
        self.leaves().into_iter().filter_map(From::item).collect()
    }

    pub fn join(kind: JoinKind, left: From, right: From, on: Vec<Expr>) -> From {
        From::Join { kind, left: Box::new(left), right: Box::new(right), on }
    }
}

impl Expr {
    pub fn column(item: Item, name: impl Into<String>) -> Expr {
        Expr::Column(item, name.into())
    }

    pub fn sql(sql: impl Into<String>) -> Expr {
        Expr::Constant { sql: sql.into(), null: false }
    }

    pub fn binary(op: &str, left: Expr, right: Expr) -> Expr {
        Expr::Binary { op: op.to_owned(), left: Box::new(left), right: Box::new(right) }
    }

    pub fn is_null(arg: Expr) -> Expr {
        Expr::Null { arg: Box::new(arg), not: false }
    }

    /// What it demands, split at AND.
    pub fn conjuncts(self) -> Vec<Expr> {
        match self {
            Expr::And(parts) => parts.into_iter().flat_map(Expr::conjuncts).collect(),
            other => vec![other],
        }
    }

    /// Two sides that are equal in every row that passes it.
    pub fn equality(&self) -> Option<(&Expr, &Expr)> {
        match self {
            Expr::Binary { op, left, right } if op == "=" => Some((left, right)),
            Expr::NotDistinct(left, right) => Some((left, right)),
            _ => None,
        }
    }
}

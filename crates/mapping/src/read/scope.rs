use std::rc::Rc;

use pg_query::NodeEnum;
use pg_query::protobuf::{ColumnRef, CommonTableExpr};

use super::{Reader, inner};
use crate::query::{Expr, Item};
use crate::trouble::{Trouble, TroubleKind};
use crate::walk::columns;

/// What names mean at one place, and around it.
pub(super) struct Scope<'a> {
    pub parent: Parent<'a>,
    pub names: Names,
    /// A query of WITH, to be read where it is referred to, in the scope that is this one's parent.
    pub cte: Option<&'a CommonTableExpr>,
}

/// The scope around one.
pub(super) type Parent<'a> = Option<Rc<Scope<'a>>>;

/// What FROM makes visible.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    pub relations: Vec<Relation>,
    /// The columns that can be named alone, and that `*` gives.
    pub columns: Vec<(String, Expr)>,
}

#[derive(Clone, Debug)]
pub(super) struct Relation {
    /// Its alias, or, of a table without one, source, schema and name.
    pub path: Vec<String>,
    pub columns: Vec<(String, Expr)>,
}

impl Names {
    pub fn of(path: Vec<String>, columns: Vec<(String, Expr)>) -> Names {
        Names { relations: vec![Relation { path, columns: columns.clone() }], columns }
    }

    pub fn and(mut self, other: Names) -> Names {
        self.relations.extend(other.relations);
        self.columns.extend(other.columns);
        self
    }

    /// The items that these names stand for.
    fn items(&self) -> Vec<Item> {
        let all = self.relations.iter().flat_map(|relation| &relation.columns).chain(&self.columns);
        columns(all.map(|(_, expr)| expr)).into_iter().map(|(item, _)| item).collect()
    }

    fn named(&self, path: &[String]) -> Vec<&Relation> {
        self.relations.iter().filter(|relation| relation.path.ends_with(path)).collect()
    }
}

impl<'a> Scope<'a> {
    pub fn inside(parent: &Parent<'a>, names: Names) -> Rc<Scope<'a>> {
        Rc::new(Scope { parent: parent.clone(), names, cte: None })
    }

    /// The WITH query of that name, and the scope to read it in.
    pub fn cte(parent: &Parent<'a>, name: &str) -> Option<(&'a CommonTableExpr, Parent<'a>)> {
        let mut next = parent.as_ref();
        while let Some(scope) = next {
            if let Some(cte) = scope.cte.filter(|cte| cte.ctename == name) {
                return Some((cte, scope.parent.clone()));
            }
            next = scope.parent.as_ref();
        }
        None
    }

    pub fn is_own(&self, item: Item) -> bool {
        self.names.items().contains(&item)
    }
}

/// What a column reference stands for.
pub(super) enum Meaning {
    One(Expr),
    All(Vec<(String, Expr)>),
}

impl Reader<'_> {
    /// What `reference` means in `scope`.
    pub(super) fn column(&self, reference: &ColumnRef, scope: &Rc<Scope<'_>>) -> Result<Meaning, Trouble> {
        let mut path = Vec::new();
        let mut star = false;
        for field in &reference.fields {
            match inner(field) {
                Some(NodeEnum::String(text)) => path.push(text.sval.clone()),
                Some(NodeEnum::AStar(_)) => star = true,
                other => return Err(self.unknown_node(other)),
            }
        }
        let at = reference.location;
        if star {
            if path.is_empty() {
                return Ok(Meaning::All(scope.names.columns.clone()));
            }
            return Ok(Meaning::All(self.relation(&path, at, scope)?.columns));
        }
        let Some((name, path)) = path.split_last() else { return Err(self.unknown_node(None)) };
        if path.is_empty() {
            return self.alone(name, at, scope).map(Meaning::One);
        }
        let relation = self.relation(path, at, scope)?;
        let mut found = relation.columns.iter().filter(|(column, _)| column == name);
        match (found.next(), found.next()) {
            (Some((_, expr)), None) => Ok(Meaning::One(expr.clone())),
            (Some(_), Some(_)) => Err(self.ambiguous(name, at)),
            _ => {
                let known: Vec<&str> = relation.columns.iter().map(|(name, _)| name.as_str()).collect();
                Err(self.trouble(
                    TroubleKind::UnknownColumn,
                    at,
                    format!("column {}.{name}", path.join(".")),
                    "there is none of that name",
                    format!("it has {}", listed(&known)),
                ))
            }
        }
    }

    fn alone(&self, name: &str, at: i32, scope: &Rc<Scope<'_>>) -> Result<Expr, Trouble> {
        let mut next = Some(scope);
        let mut whole = false;
        while let Some(scope) = next {
            let mut found = scope.names.columns.iter().filter(|(column, _)| column == name);
            match (found.next(), found.next()) {
                (Some((_, expr)), None) => return Ok(expr.clone()),
                (Some(_), Some(_)) => return Err(self.ambiguous(name, at)),
                _ => {}
            }
            whole |= !scope.names.named(&[name.to_owned()]).is_empty();
            next = scope.parent.as_ref();
        }
        if whole {
            return Err(self.unsupported(
                at,
                format!("{name}, a whole row as one value"),
                "name its columns one by one",
            ));
        }
        let known: Vec<&str> = scope.names.columns.iter().map(|(name, _)| name.as_str()).collect();
        Err(self.trouble(
            TroubleKind::UnknownColumn,
            at,
            format!("column {name}"),
            "none of the tables in FROM has it",
            format!("they have {}", listed(&known)),
        ))
    }

    fn ambiguous(&self, name: &str, at: i32) -> Trouble {
        let next = "put the table's alias and a dot before it";
        self.trouble(
            TroubleKind::UnknownColumn,
            at,
            format!("column {name}"),
            "more than one in FROM is called so",
            next,
        )
    }

    fn relation(&self, path: &[String], at: i32, scope: &Rc<Scope<'_>>) -> Result<Relation, Trouble> {
        let mut next = Some(scope);
        while let Some(scope) = next {
            match scope.names.named(path)[..] {
                [relation] => return Ok(relation.clone()),
                [] => {}
                _ => {
                    let next = "give each an alias of its own";
                    let what = format!("table {}", path.join("."));
                    return Err(self.trouble(TroubleKind::UnknownTable, at, what, "FROM has more than one", next));
                }
            }
            next = scope.parent.as_ref();
        }
        let next = "name it by its alias in FROM";
        Err(self.trouble(TroubleKind::UnknownTable, at, format!("table {}", path.join(".")), "it is not in FROM", next))
    }
}

/// `names` for a message, a few of them.
pub(super) fn listed(names: &[&str]) -> String {
    const FEW: usize = 12;
    match names {
        [] => "none".to_owned(),
        few if few.len() <= FEW => few.join(", "),
        many => format!("{} and {} more", many[..FEW].join(", "), many.len() - FEW),
    }
}

use std::rc::Rc;

use model::quote;
use pg_query::NodeEnum;
use pg_query::protobuf::{
    AExpr, AExprKind, AIndirection, BoolExprType, BoolTestType, CaseExpr, MinMaxOp, Node, NullTestType,
    SqlValueFunction, SqlValueFunctionOp, SubLink, SubLinkType,
};

use super::scope::{Meaning, Scope};
use super::{Reader, inner, strings};
use crate::query::{Expr, Piece, Sublink, SublinkKind};
use crate::trouble::{Trouble, TroubleKind};

/// Expressions with text between them, in order.
macro_rules! made {
    ($($piece:expr),+ $(,)?) => { Expr::Made(vec![$(Piece::from($piece)),+]) };
}

impl From<&str> for Piece {
    fn from(sql: &str) -> Piece {
        Piece::Sql(sql.to_owned())
    }
}

impl From<String> for Piece {
    fn from(sql: String) -> Piece {
        Piece::Sql(sql)
    }
}

impl From<Expr> for Piece {
    fn from(expr: Expr) -> Piece {
        Piece::Expr(expr)
    }
}

/// `exprs` with commas between them.
pub(super) fn listed(exprs: Vec<Expr>) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (number, expr) in exprs.into_iter().enumerate() {
        if number > 0 {
            pieces.push(", ".into());
        }
        pieces.push(expr.into());
    }
    pieces
}

/// `pieces` between two texts.
fn around(before: &str, pieces: Vec<Piece>, after: &str) -> Expr {
    let mut all = vec![Piece::from(before)];
    all.extend(pieces);
    all.push(after.into());
    Expr::Made(all)
}

impl Reader<'_> {
    pub(super) fn exprs<'s>(&mut self, nodes: &'s [Node], scope: &Rc<Scope<'s>>) -> Result<Vec<Expr>, Trouble> {
        nodes.iter().map(|node| self.expr(node, scope)).collect()
    }

    fn boxed<'s>(&mut self, node: &'s Option<Box<Node>>, scope: &Rc<Scope<'s>>) -> Result<Expr, Trouble> {
        match node {
            Some(node) => self.expr(node, scope),
            None => Err(self.unknown_node(None)),
        }
    }

    pub(super) fn expr<'s>(&mut self, node: &'s Node, scope: &Rc<Scope<'s>>) -> Result<Expr, Trouble> {
        match inner(node) {
            Some(NodeEnum::ColumnRef(column)) => match self.column(column, scope)? {
                Meaning::One(expr) => Ok(expr),
                Meaning::All(_) => Err(self.unsupported(column.location, "* inside an expression", "name the columns")),
            },
            Some(NodeEnum::AConst(constant)) => self.constant(constant),
            Some(NodeEnum::AExpr(expr)) => self.operation(expr, scope),
            Some(NodeEnum::BoolExpr(expr)) => {
                let mut args = self.exprs(&expr.args, scope)?;
                match expr.boolop() {
                    BoolExprType::AndExpr => Ok(Expr::And(args)),
                    BoolExprType::OrExpr => {
                        let mut pieces = vec![Piece::from("(")];
                        for (number, arg) in args.into_iter().enumerate() {
                            pieces.push(if number > 0 { " OR " } else { "" }.into());
                            pieces.push(arg.into());
                        }
                        pieces.push(")".into());
                        Ok(Expr::Made(pieces))
                    }
                    BoolExprType::NotExpr => match args.pop() {
                        Some(arg) => Ok(Expr::Not(Box::new(arg))),
                        None => Err(self.unknown_node(None)),
                    },
                    BoolExprType::Undefined => Err(self.unknown_node(None)),
                }
            }
            Some(NodeEnum::FuncCall(call)) => self.call(call, scope),
            // The name of a named argument is put before it where the call is written.
            Some(NodeEnum::NamedArgExpr(named)) => self.boxed(&named.arg, scope),
            Some(NodeEnum::SubLink(sub)) => self.sublink(sub, scope),
            Some(NodeEnum::CaseExpr(case)) => self.case(case, scope),
            Some(NodeEnum::CoalesceExpr(expr)) => Ok(Expr::Coalesce(self.exprs(&expr.args, scope)?)),
            Some(NodeEnum::MinMaxExpr(expr)) => {
                let word = match expr.op() {
                    MinMaxOp::IsGreatest => "GREATEST(",
                    MinMaxOp::IsLeast => "LEAST(",
                    MinMaxOp::Undefined => return Err(self.unknown_node(None)),
                };
                Ok(around(word, listed(self.exprs(&expr.args, scope)?), ")"))
            }
            Some(NodeEnum::NullTest(test)) => {
                let arg = Box::new(self.boxed(&test.arg, scope)?);
                match test.nulltesttype() {
                    NullTestType::IsNull => Ok(Expr::Null { arg, not: false }),
                    NullTestType::IsNotNull => Ok(Expr::Null { arg, not: true }),
                    NullTestType::Undefined => Err(self.unknown_node(None)),
                }
            }
            Some(NodeEnum::BooleanTest(test)) => {
                let word = match test.booltesttype() {
                    BoolTestType::IsTrue => " IS TRUE)",
                    BoolTestType::IsNotTrue => " IS NOT TRUE)",
                    BoolTestType::IsFalse => " IS FALSE)",
                    BoolTestType::IsNotFalse => " IS NOT FALSE)",
                    BoolTestType::IsUnknown => " IS UNKNOWN)",
                    BoolTestType::IsNotUnknown => " IS NOT UNKNOWN)",
                    BoolTestType::Undefined => return Err(self.unknown_node(None)),
                };
                Ok(made!("(", self.boxed(&test.arg, scope)?, word))
            }
            Some(NodeEnum::TypeCast(cast)) => {
                let Some(name) = &cast.type_name else { return Err(self.unknown_node(None)) };
                Ok(Expr::Cast { arg: Box::new(self.boxed(&cast.arg, scope)?), to: self.type_name(name)? })
            }
            Some(NodeEnum::AArrayExpr(array)) => Ok(around("ARRAY[", listed(self.exprs(&array.elements, scope)?), "]")),
            Some(NodeEnum::RowExpr(row)) => Ok(Expr::Row(self.exprs(&row.args, scope)?)),
            Some(NodeEnum::AIndirection(indirection)) => self.indirection(indirection, scope),
            Some(NodeEnum::CollateClause(collate)) => {
                let name =
                    strings(&collate.collname).iter().map(|part| quote::ident(part)).collect::<Vec<_>>().join(".");
                Ok(made!("(", self.boxed(&collate.arg, scope)?, format!(" COLLATE {name})")))
            }
            Some(NodeEnum::SqlvalueFunction(function)) => self.value_function(function),
            Some(NodeEnum::GroupingFunc(grouping)) => {
                Ok(around("GROUPING(", listed(self.exprs(&grouping.args, scope)?), ")"))
            }
            other => Err(self.unknown_node(other)),
        }
    }

    fn operation<'s>(&mut self, expr: &'s AExpr, scope: &Rc<Scope<'s>>) -> Result<Expr, Trouble> {
        let kind = expr.kind();
        if matches!(
            kind,
            AExprKind::AexprIn
                | AExprKind::AexprBetween
                | AExprKind::AexprNotBetween
                | AExprKind::AexprBetweenSym
                | AExprKind::AexprNotBetweenSym
        ) {
            return self.of_list(expr, kind, scope);
        }
        let right = self.boxed(&expr.rexpr, scope)?;
        if expr.lexpr.is_none() {
            let op = self.operator(&expr.name, expr.location)?;
            return Ok(made!(format!("({op} "), right, ")"));
        }
        let left = self.boxed(&expr.lexpr, scope)?;
        match kind {
            AExprKind::AexprOp | AExprKind::AexprLike | AExprKind::AexprIlike | AExprKind::AexprSimilar => {
                Ok(Expr::binary(&self.operator(&expr.name, expr.location)?, left, right))
            }
            AExprKind::AexprOpAny | AExprKind::AexprOpAll => {
                let op = self.operator(&expr.name, expr.location)?;
                let word = if kind == AExprKind::AexprOpAny { "ANY" } else { "ALL" };
                Ok(made!("(", left, format!(" {op} {word} ("), right, "))"))
            }
            AExprKind::AexprDistinct => Ok(made!("(", left, " IS DISTINCT FROM ", right, ")")),
            AExprKind::AexprNotDistinct => Ok(Expr::NotDistinct(Box::new(left), Box::new(right))),
            AExprKind::AexprNullif => Ok(made!("NULLIF(", left, ", ", right, ")")),
            _ => Err(self.unsupported(expr.location, "this operator", "write it another way")),
        }
    }

    /// IN and BETWEEN, whose right side is a list.
    fn of_list<'s>(&mut self, expr: &'s AExpr, kind: AExprKind, scope: &Rc<Scope<'s>>) -> Result<Expr, Trouble> {
        let left = self.boxed(&expr.lexpr, scope)?;
        let Some(NodeEnum::List(list)) = expr.rexpr.as_deref().and_then(inner) else {
            return Err(self.unknown_node(expr.rexpr.as_deref().and_then(inner)));
        };
        let right = self.exprs(&list.items, scope)?;
        let word = match kind {
            AExprKind::AexprIn if strings(&expr.name) == ["="] => " IN (",
            AExprKind::AexprIn => " NOT IN (",
            AExprKind::AexprBetween => " BETWEEN ",
            AExprKind::AexprNotBetween => " NOT BETWEEN ",
            AExprKind::AexprBetweenSym => " BETWEEN SYMMETRIC ",
            _ => " NOT BETWEEN SYMMETRIC ",
        };
        if kind == AExprKind::AexprIn {
            let mut pieces = vec!["(".into(), left.into(), word.into()];
            pieces.extend(listed(right));
            pieces.push("))".into());
            return Ok(Expr::Made(pieces));
        }
        match <[Expr; 2]>::try_from(right) {
            Ok([from, to]) => Ok(made!("(", left, word, from, " AND ", to, ")")),
            Err(_) => Err(self.unknown_node(None)),
        }
    }

    fn case<'s>(&mut self, case: &'s CaseExpr, scope: &Rc<Scope<'s>>) -> Result<Expr, Trouble> {
        let arg = case.arg.as_deref().map(|arg| self.expr(arg, scope)).transpose()?.map(Box::new);
        let mut whens = Vec::new();
        for node in &case.args {
            let Some(NodeEnum::CaseWhen(when)) = inner(node) else { return Err(self.unknown_node(inner(node))) };
            whens.push((self.boxed(&when.expr, scope)?, self.boxed(&when.result, scope)?));
        }
        let otherwise = case.defresult.as_deref().map(|node| self.expr(node, scope)).transpose()?.map(Box::new);
        Ok(Expr::Case { arg, whens, otherwise })
    }

    fn indirection<'s>(&mut self, indirection: &'s AIndirection, scope: &Rc<Scope<'s>>) -> Result<Expr, Trouble> {
        let mut pieces = vec!["(".into(), self.boxed(&indirection.arg, scope)?.into(), ")".into()];
        for node in &indirection.indirection {
            match inner(node) {
                Some(NodeEnum::String(field)) => pieces.push(format!(".{}", quote::ident(&field.sval)).into()),
                Some(NodeEnum::AIndices(indices)) => {
                    pieces.push("[".into());
                    if let Some(lower) = indices.lidx.as_deref() {
                        pieces.push(self.expr(lower, scope)?.into());
                    }
                    pieces.push(if indices.is_slice { ":" } else { "" }.into());
                    if let Some(upper) = indices.uidx.as_deref() {
                        pieces.push(self.expr(upper, scope)?.into());
                    }
                    pieces.push("]".into());
                }
                other => return Err(self.unknown_node(other)),
            }
        }
        Ok(Expr::Made(pieces))
    }

    fn sublink<'s>(&mut self, sub: &'s SubLink, scope: &Rc<Scope<'s>>) -> Result<Expr, Trouble> {
        let kind = match sub.sub_link_type() {
            SubLinkType::ExistsSublink => SublinkKind::Exists,
            SubLinkType::AllSublink => SublinkKind::All,
            SubLinkType::AnySublink => SublinkKind::Any,
            SubLinkType::RowcompareSublink => SublinkKind::Row,
            SubLinkType::ExprSublink => SublinkKind::Scalar,
            SubLinkType::ArraySublink => SublinkKind::Array,
            SubLinkType::Undefined | SubLinkType::MultiexprSublink | SubLinkType::CteSublink => {
                return Err(self.unsupported(sub.location, "a subquery of another kind", "write it another way"));
            }
        };
        let Some(NodeEnum::SelectStmt(select)) = sub.subselect.as_deref().and_then(inner) else {
            return Err(self.unknown_node(sub.subselect.as_deref().and_then(inner)));
        };
        let test = sub.testexpr.as_deref().map(|test| self.expr(test, scope)).transpose()?;
        // IN comes without its operator.
        let op = if sub.oper_name.is_empty() { "=".to_owned() } else { self.operator(&sub.oper_name, sub.location)? };
        let query = self.select(select, Some(Rc::clone(scope)))?;
        Ok(Expr::Sub(Box::new(Sublink { kind, test, op, query })))
    }

    fn value_function(&mut self, function: &SqlValueFunction) -> Result<Expr, Trouble> {
        let precise =
            |word: &str| if function.typmod >= 0 { format!("{word}({})", function.typmod) } else { word.to_owned() };
        let sql = match function.op() {
            SqlValueFunctionOp::SvfopCurrentDate => "CURRENT_DATE".to_owned(),
            SqlValueFunctionOp::SvfopCurrentTime | SqlValueFunctionOp::SvfopCurrentTimeN => precise("CURRENT_TIME"),
            SqlValueFunctionOp::SvfopCurrentTimestamp | SqlValueFunctionOp::SvfopCurrentTimestampN => {
                precise("CURRENT_TIMESTAMP")
            }
            SqlValueFunctionOp::SvfopLocaltime | SqlValueFunctionOp::SvfopLocaltimeN => precise("LOCALTIME"),
            SqlValueFunctionOp::SvfopLocaltimestamp | SqlValueFunctionOp::SvfopLocaltimestampN => {
                precise("LOCALTIMESTAMP")
            }
            _ => {
                let what = "a value of the session, such as current_user";
                let next = "write the value that is meant";
                return Err(self.unsupported(function.location, what, next));
            }
        };
        let warning = self.trouble(
            TroubleKind::NotDeterministic,
            function.location,
            sql.to_lowercase(),
            "it is another one each time a row is computed, so rows depend on when they were",
            "take a time from a column",
        );
        self.warnings.push(warning);
        Ok(made!(sql))
    }
}

use pg_query::NodeEnum;
use pg_query::protobuf::{AExprKind, MinMaxOp, Node, SelectStmt, SqlValueFunctionOp, SubLinkType};

use super::{inner, strings};

/// The name that Postgres gives a column of the result that has none (its `FigureColname`).
pub(super) fn figure(node: &Node) -> String {
    strong(node).map_or("?column?".to_owned(), |(name, _)| name)
}

/// A name, and whether it is more than the fallback of a type's or a CASE's name.
fn strong(node: &Node) -> Option<(String, bool)> {
    let sure = |name: &str| Some((name.to_owned(), true));
    match inner(node)? {
        NodeEnum::ColumnRef(column) => strings(&column.fields).pop().map(|name| (name, true)),
        NodeEnum::FuncCall(call) => strings(&call.funcname).pop().map(|name| (name, true)),
        NodeEnum::AIndirection(indirection) => match strings(&indirection.indirection).pop() {
            Some(field) => Some((field, true)),
            None => strong(indirection.arg.as_deref()?),
        },
        NodeEnum::AExpr(expr) if expr.kind() == AExprKind::AexprNullif => sure("nullif"),
        NodeEnum::TypeCast(cast) => match cast.arg.as_deref().and_then(strong) {
            Some((name, true)) => Some((name, true)),
            weak => {
                let type_name = cast.type_name.as_ref().and_then(|name| strings(&name.names).pop());
                type_name.map(|name| (name, false)).or(weak)
            }
        },
        NodeEnum::CollateClause(collate) => strong(collate.arg.as_deref()?),
        NodeEnum::GroupingFunc(_) => sure("grouping"),
        NodeEnum::CaseExpr(case) => match case.defresult.as_deref().and_then(strong) {
            Some((name, true)) => Some((name, true)),
            _ => Some(("case".to_owned(), false)),
        },
        NodeEnum::AArrayExpr(_) => sure("array"),
        NodeEnum::RowExpr(_) => sure("row"),
        NodeEnum::CoalesceExpr(_) => sure("coalesce"),
        NodeEnum::MinMaxExpr(expr) => match expr.op() {
            MinMaxOp::IsGreatest => sure("greatest"),
            MinMaxOp::IsLeast => sure("least"),
            MinMaxOp::Undefined => None,
        },
        NodeEnum::SubLink(sub) => match sub.sub_link_type() {
            SubLinkType::ExistsSublink => sure("exists"),
            SubLinkType::ArraySublink => sure("array"),
            SubLinkType::ExprSublink => match sub.subselect.as_deref().and_then(inner) {
                Some(NodeEnum::SelectStmt(select)) => first(select),
                _ => None,
            },
            _ => None,
        },
        NodeEnum::SqlvalueFunction(function) => match function.op() {
            SqlValueFunctionOp::SvfopCurrentDate => sure("current_date"),
            SqlValueFunctionOp::SvfopCurrentTime | SqlValueFunctionOp::SvfopCurrentTimeN => sure("current_time"),
            SqlValueFunctionOp::SvfopCurrentTimestamp | SqlValueFunctionOp::SvfopCurrentTimestampN => {
                sure("current_timestamp")
            }
            SqlValueFunctionOp::SvfopLocaltime | SqlValueFunctionOp::SvfopLocaltimeN => sure("localtime"),
            SqlValueFunctionOp::SvfopLocaltimestamp | SqlValueFunctionOp::SvfopLocaltimestampN => {
                sure("localtimestamp")
            }
            _ => None,
        },
        _ => None,
    }
}

/// What a scalar subquery's only column is called.
fn first(select: &SelectStmt) -> Option<(String, bool)> {
    let mut leftmost = select;
    while let Some(left) = leftmost.larg.as_deref() {
        leftmost = left;
    }
    match leftmost.target_list.first().and_then(inner)? {
        NodeEnum::ResTarget(target) if target.name.is_empty() => strong(target.val.as_deref()?),
        NodeEnum::ResTarget(target) => Some((target.name.clone(), true)),
        _ => None,
    }
}

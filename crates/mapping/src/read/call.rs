use std::rc::Rc;

use model::quote;
use pg_query::NodeEnum;
use pg_query::protobuf::{FuncCall, WindowDef};

use super::expr::listed;
use super::scope::Scope;
use super::{Reader, inner, strings};
use crate::catalog::{Function, FunctionKind, Volatility};
use crate::query::{By, Call, CallKind, Expr, Over, Piece, Sort, Window};
use crate::trouble::{Trouble, TroubleKind};
use crate::walk::columns;

/// The function that makes new ids of old ones; it is written out, so that it is the same wherever it runs.
const NEW_ID: &str = "crossfade_id";

impl Reader<'_> {
    /// The functions of that name.
    pub(super) fn functions(&self, path: &[String], at: i32) -> Result<Vec<&Function>, Trouble> {
        let Some((name, schema)) = path.split_last() else { return Err(self.unknown_node(None)) };
        let meant = |function: &&Function| {
            function.name.name == *name && schema.last().is_none_or(|schema| *schema == function.name.schema)
        };
        let found: Vec<&Function> = self.catalog.functions.iter().filter(meant).collect();
        if found.is_empty() && name != NEW_ID {
            return Err(self.trouble(
                TroubleKind::UnknownFunction,
                at,
                format!("function {}", path.join(".")),
                "the target has none of that name",
                "create it there, or use another one",
            ));
        }
        Ok(found)
    }

    pub(super) fn call<'s>(&mut self, call: &'s FuncCall, scope: &Rc<Scope<'s>>) -> Result<Expr, Trouble> {
        let path = strings(&call.funcname);
        let name = path.last().cloned().unwrap_or_default();
        let at = call.location;
        let (kind, volatility, returns_set) = {
            let found = self.functions(&path, at)?;
            // Named by OVER and WITHIN GROUP where both exist: rank is a window function and an aggregate.
            let fits = |function: &&&Function| match function.kind {
                FunctionKind::Window => call.over.is_some(),
                FunctionKind::Aggregate => true,
                FunctionKind::Plain => call.over.is_none(),
            };
            let fitting: Vec<&&Function> = found.iter().filter(fits).collect();
            let kinds: Vec<FunctionKind> = fitting.iter().map(|function| function.kind).collect();
            let aggregate = kinds.contains(&FunctionKind::Aggregate) && call.over.is_none();
            if aggregate && kinds.contains(&FunctionKind::Plain) {
                let why = "there is an aggregate and a plain function of that name";
                let next = "put the schema of the one that is meant before it";
                return Err(self.trouble(TroubleKind::UnknownFunction, at, format!("function {name}"), why, next));
            }
            (
                if aggregate { FunctionKind::Aggregate } else { FunctionKind::Plain },
                fitting.iter().map(|function| function.volatility).max().unwrap_or(Volatility::Immutable),
                fitting.iter().any(|function| function.returns_set),
            )
        };
        self.volatility(&name, volatility, at)?;
        let args = self.exprs(&call.args, scope)?;
        if path == [NEW_ID] {
            return self.new_id(args, at);
        }
        if kind == FunctionKind::Aggregate {
            let used = columns(&args);
            if !used.is_empty() && !used.iter().any(|(item, _)| scope.is_own(*item)) {
                let what = format!("{name} over columns of the query around it");
                return Err(self.unsupported(at, what, "compute it in the query around it"));
            }
        }
        let order = self.sorts(&call.agg_order, scope)?;
        let filter = call.agg_filter.as_deref().map(|filter| self.expr(filter, scope)).transpose()?;
        let kind = match (&call.over, kind) {
            (Some(window), _) if !window.name.is_empty() => CallKind::Window(Over::Named(window.name.clone())),
            (Some(window), _) => CallKind::Window(Over::Own(self.window(window, scope)?)),
            (None, FunctionKind::Aggregate) => CallKind::Aggregate,
            (None, _) => CallKind::Plain,
        };
        let printed = path.iter().map(|part| quote::ident(part)).collect::<Vec<_>>().join(".");
        let pieces = arguments(call, printed, args, order, filter);
        Ok(Expr::Call(Box::new(Call { kind, name, pieces, returns_set })))
    }

    fn volatility(&mut self, name: &str, volatility: Volatility, at: i32) -> Result<(), Trouble> {
        match volatility {
            Volatility::Immutable => Ok(()),
            Volatility::Stable => {
                let warning = self.trouble(
                    TroubleKind::NotDeterministic,
                    at,
                    format!("function {name}"),
                    "it is STABLE: its result may depend on settings or on the time, not on the rows alone",
                    "use one that is IMMUTABLE, or be sure that what it depends on does not change",
                );
                self.warnings.push(warning);
                Ok(())
            }
            Volatility::Volatile => {
                let next = if name.contains("uuid") || name == "nextval" {
                    "for new ids use crossfade_id(source, table, old id), which is the same each time"
                } else {
                    "use a function that is IMMUTABLE"
                };
                let why = "it is VOLATILE: it gives another result each time a row is computed";
                Err(self.trouble(TroubleKind::Volatile, at, format!("function {name}"), why, next))
            }
        }
    }

    pub(super) fn window<'s>(&mut self, window: &'s WindowDef, scope: &Rc<Scope<'s>>) -> Result<Window, Trouble> {
        let base = (!window.refname.is_empty()).then(|| window.refname.clone());
        let partition = self.exprs(&window.partition_clause, scope)?;
        let order = self.sorts(&window.order_clause, scope)?;
        Ok(Window { base, partition, order, frame: self.frame(window, scope)? })
    }

    /// The frame, from the bits that `nodes/parsenodes.h` of Postgres gives its options.
    fn frame<'s>(&mut self, window: &'s WindowDef, scope: &Rc<Scope<'s>>) -> Result<Vec<Piece>, Trouble> {
        let has = |bit: i32| window.frame_options & bit != 0;
        if !has(0x1) {
            return Ok(Vec::new());
        }
        let unit = match (has(0x2), has(0x4), has(0x8)) {
            (true, _, _) => "RANGE",
            (_, true, _) => "ROWS",
            (_, _, true) => "GROUPS",
            _ => return Err(self.unsupported(window.location, "this window frame", "write it another way")),
        };
        let mut pieces = vec![Piece::from(format!("{unit} BETWEEN "))];
        let ends = [
            (has(0x20), has(0x80), has(0x200), has(0x800), has(0x2000), &window.start_offset),
            (has(0x40), has(0x100), has(0x400), has(0x1000), has(0x4000), &window.end_offset),
        ];
        for (number, (first, last, current, one, other, offset)) in ends.into_iter().enumerate() {
            // The bits for PRECEDING and FOLLOWING alternate between start and end.
            let (preceding, following) = (one, other);
            if number > 0 {
                pieces.push(" AND ".into());
            }
            if first {
                pieces.push("UNBOUNDED PRECEDING".into());
            } else if last {
                pieces.push("UNBOUNDED FOLLOWING".into());
            } else if current {
                pieces.push("CURRENT ROW".into());
            } else if let (true, Some(offset)) = (preceding || following, offset) {
                pieces.push(self.expr(offset, scope)?.into());
                pieces.push(if preceding { " PRECEDING" } else { " FOLLOWING" }.into());
            } else {
                return Err(self.unsupported(window.location, "this window frame", "write it another way"));
            }
        }
        pieces.push(
            if has(0x8000) {
                " EXCLUDE CURRENT ROW"
            } else if has(0x10000) {
                " EXCLUDE GROUP"
            } else if has(0x20000) {
                " EXCLUDE TIES"
            } else {
                ""
            }
            .into(),
        );
        Ok(pieces)
    }

    /// `crossfade_id(source, table, old id)`: a UUID (RFC 9562, version 8) of the SHA-256 of the three, each behind its
    /// length, so that no two lists of three give the same text.
    fn new_id(&mut self, args: Vec<Expr>, at: i32) -> Result<Expr, Trouble> {
        let Ok([source, table, old]) = <[Expr; 3]>::try_from(args) else {
            let next = "call it as crossfade_id('source', 'schema.table', old id)";
            return Err(self.trouble(TroubleKind::UnknownFunction, at, NEW_ID, "it takes three arguments", next));
        };
        let mut pieces = vec![Piece::from("CAST(overlay(overlay(encode(substring(sha256(convert_to(")];
        for (number, part) in [source, table, old].into_iter().enumerate() {
            let part = Expr::Cast { arg: Box::new(part), to: "\"pg_catalog\".\"text\"".to_owned() };
            pieces.push(if number > 0 { " || length(" } else { "length(" }.into());
            pieces.push(part.clone().into());
            pieces.push(") || ':' || ".into());
            pieces.push(part.into());
        }
        pieces.push(", 'UTF8')) from 1 for 16), 'hex') placing '8' from 13) placing '8' from 17) AS uuid)".into());
        Ok(Expr::Call(Box::new(Call { kind: CallKind::Plain, name: NEW_ID.to_owned(), pieces, returns_set: false })))
    }
}

/// A call as SQL, up to OVER.
fn arguments(call: &FuncCall, name: String, args: Vec<Expr>, order: Vec<Sort>, filter: Option<Expr>) -> Vec<Piece> {
    let mut pieces = vec![Piece::from(format!("{name}("))];
    if call.agg_distinct {
        pieces.push("DISTINCT ".into());
    }
    if call.agg_star {
        pieces.push("*".into());
    }
    let last = args.len().saturating_sub(1);
    for (number, (arg, node)) in args.into_iter().zip(&call.args).enumerate() {
        if number > 0 {
            pieces.push(", ".into());
        }
        if call.func_variadic && number == last {
            pieces.push("VARIADIC ".into());
        }
        if let Some(NodeEnum::NamedArgExpr(named)) = inner(node) {
            pieces.push(format!("{} => ", quote::ident(&named.name)).into());
        }
        pieces.push(arg.into());
    }
    let mut sorted: Vec<Piece> = Vec::new();
    for (number, sort) in order.into_iter().enumerate() {
        sorted.push(if number > 0 { ", " } else { "ORDER BY " }.into());
        if let By::Expr(expr) = sort.by {
            sorted.extend(listed(vec![expr]));
        }
        sorted.push(sort.how.into());
    }
    if call.agg_within_group {
        pieces.push(") WITHIN GROUP (".into());
    } else if !sorted.is_empty() {
        pieces.push(" ".into());
    }
    pieces.extend(sorted);
    pieces.push(")".into());
    if let Some(filter) = filter {
        pieces.push(" FILTER (WHERE ".into());
        pieces.push(filter.into());
        pieces.push(")".into());
    }
    pieces
}

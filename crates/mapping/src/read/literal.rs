use model::quote;
use pg_query::NodeEnum;
use pg_query::protobuf::{AConst, Node, TypeName, a_const};

use super::{Reader, inner, strings};
use crate::query::Expr;
use crate::trouble::Trouble;

impl Reader<'_> {
    pub(super) fn constant(&self, constant: &AConst) -> Result<Expr, Trouble> {
        if constant.isnull {
            return Ok(Expr::Constant { sql: "NULL".to_owned(), null: true });
        }
        let sql = match &constant.val {
            Some(a_const::Val::Ival(number)) => signed(&number.ival.to_string()),
            Some(a_const::Val::Fval(number)) => signed(&number.fval),
            Some(a_const::Val::Boolval(truth)) => truth.boolval.to_string(),
            Some(a_const::Val::Sval(text)) => quote::literal(&text.sval),
            Some(a_const::Val::Bsval(bits)) => {
                let (base, digits) = bits.bsval.split_at_checked(1).unwrap_or_default();
                format!("{base}{}", quote::literal(digits))
            }
            None => return Err(self.unknown_node(None)),
        };
        Ok(Expr::sql(sql))
    }

    /// A type's name as SQL.
    pub(super) fn type_name(&self, name: &TypeName) -> Result<String, Trouble> {
        if name.setof || name.pct_type {
            return Err(self.unsupported(name.location, "SETOF or %TYPE", "write the type's name"));
        }
        let path = strings(&name.names);
        let mut sql = path.iter().map(|part| quote::ident(part)).collect::<Vec<_>>().join(".");
        if !name.typmods.is_empty() {
            let modifiers = name.typmods.iter().map(|node| self.modifier(node)).collect::<Result<Vec<_>, _>>()?;
            sql += &format!("({})", modifiers.join(", "));
        }
        sql += &"[]".repeat(name.array_bounds.len());
        Ok(sql)
    }

    fn modifier(&self, node: &Node) -> Result<String, Trouble> {
        match inner(node) {
            Some(NodeEnum::AConst(constant)) => match self.constant(constant)? {
                Expr::Constant { sql, .. } => Ok(sql),
                _ => Err(self.unknown_node(inner(node))),
            },
            Some(NodeEnum::ColumnRef(word)) => match strings(&word.fields).as_slice() {
                [word] => Ok(quote::ident(word)),
                _ => Err(self.unknown_node(inner(node))),
            },
            other => Err(self.unknown_node(other)),
        }
    }

    /// An operator as SQL.
    pub(super) fn operator(&self, name: &[Node], at: i32) -> Result<String, Trouble> {
        let parts = strings(name);
        let is_operator = |text: &str| !text.is_empty() && text.chars().all(|c| "+-*/<>=~!@#%^&|`?".contains(c));
        match parts.as_slice() {
            [op] if is_operator(op) => Ok(op.clone()),
            [schema, op] if is_operator(op) => Ok(format!("OPERATOR({}.{op})", quote::ident(schema))),
            _ => Err(self.unsupported(at, format!("the operator {}", parts.join(".")), "write it another way")),
        }
    }
}

/// A number, so that a sign before it belongs to nothing else.
fn signed(number: &str) -> String {
    if number.starts_with('-') { format!("({number})") } else { number.to_owned() }
}

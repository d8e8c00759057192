use std::error::Error;

use bytes::{BufMut, BytesMut};
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};

/// One column of many rows, as a parameter of type `text[]`. Values go as the bytes that they came in.
#[derive(Debug)]
pub(super) struct TextArray<'a>(pub Vec<Option<&'a [u8]>>);

impl ToSql for TextArray<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        // The manual does not describe it; array_recv() does: dimensions, nulls?, element type, length, lower bound, elements.
        out.put_i32(1);
        out.put_i32(i32::from(self.0.iter().any(Option::is_none)));
        out.put_u32(Type::TEXT.oid());
        out.put_i32(i32::try_from(self.0.len())?);
        out.put_i32(1);
        for value in &self.0 {
            match value {
                None => out.put_i32(-1),
                Some(text) => {
                    out.put_i32(i32::try_from(text.len())?);
                    out.put_slice(text);
                }
            }
        }
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TEXT_ARRAY
    }

    to_sql_checked!();
}

use bytes::{BufMut, Bytes, BytesMut};
use model::{Cell, Tuple};

/// The rows as COPY's text format has them (Postgres manual, "COPY", "Text Format"): a line each, tabs between the columns.
pub(super) fn lines(rows: &[&Tuple]) -> Bytes {
    let bytes: usize = rows.iter().map(|row| row.bytes().len()).sum();
    let mut out = BytesMut::with_capacity(bytes);
    for row in rows {
        for (column, cell) in row.cells().enumerate() {
            if column > 0 {
                out.put_u8(b'\t');
            }
            match cell {
                Cell::Text(text) => escaped(text, &mut out),
                Cell::Null | Cell::Unchanged => out.put_slice(b"\\N"),
            }
        }
        out.put_u8(b'\n');
    }
    out.freeze()
}

/// Only these four bytes mean something to COPY; no other character's UTF-8 holds one of them.
fn escaped(text: &[u8], out: &mut BytesMut) {
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| matches!(byte, b'\\' | b'\t' | b'\n' | b'\r')) {
        out.put_slice(&rest[..at]);
        out.put_u8(b'\\');
        out.put_u8(match rest[at] {
            b'\t' => b't',
            b'\n' => b'n',
            b'\r' => b'r',
            other => other,
        });
        rest = &rest[at + 1..];
    }
    out.put_slice(rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_and_what_copy_would_misread_are_escaped() {
        let cells = [Cell::Text(b"a\tb\\N\r\n"), Cell::Null, Cell::Text(b""), Cell::Text("\\.ä".as_bytes())];
        let row = Tuple::from_cells(cells.into_iter());
        assert_eq!(lines(&[&row, &row]), "a\\tb\\\\N\\r\\n\t\\N\t\t\\\\.ä\n".repeat(2));
    }
}

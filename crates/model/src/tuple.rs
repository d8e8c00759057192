use bytes::{Buf, BufMut, Bytes, BytesMut};

/// A row version in pgoutput's TupleData format (Postgres manual, "Logical Replication Message Formats"), checked
/// when it was made. Cloning is cheap: the bytes are shared with the message they came in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tuple(Bytes);

/// One column of a [`Tuple`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cell<'a> {
    /// SQL NULL.
    Null,
    /// A large value that the change did not touch and the source did not send. Absent, not null.
    Unchanged,
    /// The value as its type prints it, UTF-8.
    Text(&'a [u8]),
}

impl<'a> Cell<'a> {
    /// The text, if there is one.
    pub fn text(self) -> Option<&'a [u8]> {
        match self {
            Cell::Text(text) => Some(text),
            Cell::Null | Cell::Unchanged => None,
        }
    }
}

/// The bytes are not TupleData.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum TupleError {
    /// They end inside a column.
    #[error("a row ends in the middle of column {column}")]
    Truncated {
        /// From 0.
        column: usize,
    },
    /// A column is of a kind that was not asked for (binary, for one).
    #[error("a row has a column of unknown kind {kind:#04x} at position {column}")]
    Kind {
        /// The kind's byte.
        kind: u8,
        /// From 0.
        column: usize,
    },
    /// There is more than the tuple.
    #[error("a row has {0} bytes too many")]
    Trailing(usize),
}

impl Tuple {
    /// Takes a tuple off the front of `input`, sharing its memory.
    ///
    /// # Errors
    /// The bytes are malformed; `input` is then used up to an unspecified point.
    pub fn take(input: &mut Bytes) -> Result<Tuple, TupleError> {
        let length = measure(input)?;
        Ok(Tuple(input.split_to(length)))
    }

    /// The tuple that is the whole of `bytes`.
    ///
    /// # Errors
    /// The bytes are malformed, or there are more than a tuple.
    pub fn from_bytes(bytes: Bytes) -> Result<Tuple, TupleError> {
        match bytes.len() - measure(&bytes)? {
            0 => Ok(Tuple(bytes)),
            more => Err(TupleError::Trailing(more)),
        }
    }

    /// Builds one from cells. There are at most 1,600 columns in a table, so the count fits.
    pub fn from_cells<'a>(cells: impl ExactSizeIterator<Item = Cell<'a>>) -> Tuple {
        let mut out = BytesMut::new();
        out.put_u16(cells.len() as u16);
        for cell in cells {
            match cell {
                Cell::Null => out.put_u8(b'n'),
                Cell::Unchanged => out.put_u8(b'u'),
                Cell::Text(text) => {
                    out.put_u8(b't');
                    out.put_u32(text.len() as u32);
                    out.put_slice(text);
                }
            }
        }
        Tuple(out.freeze())
    }

    /// The encoding.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// How many columns it has.
    pub fn len(&self) -> usize {
        usize::from(u16::from_be_bytes([self.0[0], self.0[1]]))
    }

    /// Whether it has no column.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The columns, in order.
    pub fn cells(&self) -> Cells<'_> {
        Cells { rest: &self.0[2..] }
    }
}

/// Walks a [`Tuple`].
#[derive(Clone, Debug)]
pub struct Cells<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Cells<'a> {
    type Item = Cell<'a>;

    fn next(&mut self) -> Option<Cell<'a>> {
        let (kind, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(match kind {
            b'n' => Cell::Null,
            b'u' => Cell::Unchanged,
            // `measure` walked the same bytes when the tuple was made: the only other kind is text, and its length is inside.
            _ => {
                let (length, rest) = rest.split_at(4);
                let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]);
                let (text, rest) = rest.split_at(length as usize);
                self.rest = rest;
                Cell::Text(text)
            }
        })
    }
}

/// How many bytes the tuple at the front of `bytes` takes.
fn measure(bytes: &[u8]) -> Result<usize, TupleError> {
    let mut rest = bytes;
    if rest.len() < 2 {
        return Err(TupleError::Truncated { column: 0 });
    }
    let columns = usize::from(rest.get_u16());
    for column in 0..columns {
        let (kind, after) = rest.split_first().ok_or(TupleError::Truncated { column })?;
        rest = after;
        match kind {
            b'n' | b'u' => {}
            b't' => {
                let length = rest.try_get_u32().map_err(|_| TupleError::Truncated { column })? as usize;
                rest = rest.get(length..).ok_or(TupleError::Truncated { column })?;
            }
            kind => return Err(TupleError::Kind { kind: *kind, column }),
        }
    }
    Ok(bytes.len() - rest.len())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_a_tuple_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(tuple) = Tuple::from_bytes(Bytes::from(bytes)) {
                prop_assert_eq!(tuple.cells().count(), tuple.len());
            }
        }

        #[test]
        fn cells_come_back_as_they_went_in(cells in proptest::collection::vec(proptest::option::of(proptest::option::of(".{0,9}")), 0..9)) {
            let cells: Vec<Cell<'_>> = cells.iter().map(|cell| match cell {
                None => Cell::Null,
                Some(None) => Cell::Unchanged,
                Some(Some(text)) => Cell::Text(text.as_bytes()),
            }).collect();
            let tuple = Tuple::from_cells(cells.iter().copied());
            let again = Tuple::from_bytes(tuple.bytes().clone()).unwrap();
            prop_assert_eq!(again.cells().collect::<Vec<_>>(), cells);
        }
    }
}

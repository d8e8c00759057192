use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use model::TableName;
use postgres_protocol::message::backend::{DataRowBody, ErrorFields, Message};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::error::{PgError, ServerError};
use crate::transport::Transport;

/// CopyBothResponse, which postgres-protocol does not know.
const COPY_BOTH: u8 = b'W';

/// The messages of a connection, one after the other.
pub(super) struct Wire {
    pub(super) transport: Transport,
    /// Read, and not taken yet.
    pub(super) incoming: BytesMut,
}

/// A message from the server.
pub(super) enum Incoming {
    Message(Message),
    /// From here on both sides send CopyData.
    CopyBoth,
}

impl Wire {
    pub(super) fn new(transport: Transport) -> Wire {
        Wire { transport, incoming: BytesMut::new() }
    }

    pub(super) async fn send(&mut self, message: &[u8]) -> Result<(), PgError> {
        self.transport.write_all(message).await?;
        Ok(self.transport.flush().await?)
    }

    pub(super) async fn query(&mut self, sql: &str) -> Result<(), PgError> {
        let mut message = BytesMut::new();
        frontend::query(sql, &mut message).map_err(|_| PgError::protocol("a statement holds a zero byte"))?;
        self.send(&message).await
    }

    pub(super) async fn next(&mut self) -> Result<Incoming, PgError> {
        loop {
            if self.incoming.first() == Some(&COPY_BOTH) {
                if let Some(length) = self.incoming.get(1..5) {
                    let length = 1 + length.iter().fold(0usize, |sum, byte| sum << 8 | usize::from(*byte));
                    if self.incoming.len() >= length {
                        let _ = self.incoming.split_to(length);
                        return Ok(Incoming::CopyBoth);
                    }
                }
            } else if let Some(message) = Message::parse(&mut self.incoming).map_err(malformed)? {
                return Ok(Incoming::Message(message));
            }
            if self.transport.read_buf(&mut self.incoming).await? == 0 {
                return Err(PgError::closed("the server closed the connection"));
            }
        }
    }

    /// Runs a statement and collects its rows, as text.
    pub(super) async fn rows(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>, PgError> {
        self.query(sql).await?;
        let mut rows = Vec::new();
        // After an error the server still says that it is ready; the connection stays usable.
        let mut refused = None;
        loop {
            match self.next().await? {
                Incoming::Message(Message::DataRow(body)) => rows.push(texts(&body)?),
                Incoming::Message(Message::ErrorResponse(body)) => refused = Some(server_error(body.fields())),
                Incoming::Message(Message::ReadyForQuery(_)) => return refused.map_or(Ok(rows), Err),
                Incoming::Message(_) => {}
                Incoming::CopyBoth => return Err(PgError::protocol("a copy starts where rows were asked for")),
            }
        }
    }

    /// What may come at any time is passed over, an error is returned.
    pub(super) fn pass_over(&self, message: Message) -> Result<(), PgError> {
        match message {
            Message::NoticeResponse(_) | Message::ParameterStatus(_) | Message::NotificationResponse(_) => Ok(()),
            Message::ErrorResponse(body) => Err(server_error(body.fields())),
            _ => Err(PgError::protocol("the server sent a message that has no place here")),
        }
    }
}

pub(super) fn malformed(error: std::io::Error) -> PgError {
    PgError::protocol(format!("a message cannot be read: {error}"))
}

fn texts(body: &DataRowBody) -> Result<Vec<Option<String>>, PgError> {
    let text = |range| {
        let bytes: &[u8] = body.buffer().get::<std::ops::Range<usize>>(range).unwrap_or_default();
        String::from_utf8_lossy(bytes).into_owned()
    };
    body.ranges().map(|range| Ok(range.map(text))).collect().map_err(malformed)
}

/// Reads an ErrorResponse (Postgres manual, "Error and Notice Message Fields").
pub(super) fn server_error(mut fields: ErrorFields<'_>) -> PgError {
    let mut error = ServerError::default();
    let (mut schema, mut table) = (String::new(), None);
    while let Ok(Some(field)) = fields.next() {
        let value = String::from_utf8_lossy(field.value_bytes()).into_owned();
        match field.type_() {
            b'C' => error.sqlstate = value,
            b'M' => error.message = value,
            b'D' => error.detail = Some(value),
            b'H' => error.hint = Some(value),
            b'W' => error.context = Some(value),
            b's' => schema = value,
            b't' => table = Some(value),
            b'c' => error.column = Some(value),
            b'n' => error.constraint = Some(value),
            _ => {}
        }
    }
    error.table = table.map(|table| TableName::new(schema, table));
    PgError::Server(Box::new(error))
}

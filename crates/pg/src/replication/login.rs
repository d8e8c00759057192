//! Startup packet and authentication (Postgres manual, "Message Flow", "SASL Authentication").

use std::collections::HashMap;

use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{self, ScramSha256};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;

use super::wire::{Incoming, Wire, malformed, server_error};
use crate::endpoint::{ChannelBinding, Endpoint};
use crate::error::PgError;
use crate::settings;

/// Logs in and returns what the server reports about itself.
pub(super) async fn login(
    wire: &mut Wire,
    endpoint: &Endpoint,
    purpose: &str,
) -> Result<HashMap<String, String>, PgError> {
    let name = settings::application_name(endpoint.application_name.as_deref(), purpose);
    let options = settings::options(endpoint.options.as_deref(), false);
    let startup = [
        ("client_encoding", "UTF8"),
        ("user", endpoint.user.as_str()),
        ("database", endpoint.database.as_str()),
        ("replication", "database"),
        ("application_name", name.as_str()),
        ("options", options.as_str()),
    ];
    let mut message = BytesMut::new();
    frontend::startup_message(startup, &mut message).map_err(malformed)?;
    wire.send(&message).await?;
    authenticate(wire, endpoint).await?;
    let mut parameters = HashMap::new();
    loop {
        match message_of(wire).await? {
            Message::ParameterStatus(body) => {
                let (name, value) = (body.name().map_err(malformed)?, body.value().map_err(malformed)?);
                parameters.insert(name.to_owned(), value.to_owned());
            }
            Message::ReadyForQuery(_) => return Ok(parameters),
            Message::BackendKeyData(_) | Message::NoticeResponse(_) => {}
            _ => return Err(PgError::protocol("the server sent a message that has no place after logging in")),
        }
    }
}

async fn authenticate(wire: &mut Wire, endpoint: &Endpoint) -> Result<(), PgError> {
    match message_of(wire).await? {
        Message::AuthenticationOk => return without_binding(endpoint),
        Message::AuthenticationCleartextPassword => {
            without_binding(endpoint)?;
            send_password(wire, password(endpoint)?.as_bytes()).await?;
        }
        Message::AuthenticationMd5Password(body) => {
            without_binding(endpoint)?;
            let hash = md5_hash(endpoint.user.as_bytes(), password(endpoint)?.as_bytes(), body.salt());
            send_password(wire, hash.as_bytes()).await?;
        }
        Message::AuthenticationSasl(body) => scram(wire, endpoint, &body).await?,
        _ => {
            return Err(PgError::credentials(
                "the server asks for a way of logging in that crossfade does not have (it has SCRAM-SHA-256, md5, \
                 password, trust and client certificates)",
            ));
        }
    }
    match message_of(wire).await? {
        Message::AuthenticationOk => Ok(()),
        _ => Err(PgError::protocol("the server does not say whether it lets us in")),
    }
}

async fn scram(wire: &mut Wire, endpoint: &Endpoint, offer: &AuthenticationSaslBody) -> Result<(), PgError> {
    let password = password(endpoint)?;
    let offered: Vec<&str> = offer.mechanisms().collect().map_err(malformed)?;
    let hash = match endpoint.channel_binding {
        ChannelBinding::Disable => None,
        ChannelBinding::Prefer | ChannelBinding::Require => wire.transport.end_point_hash(),
    };
    let (mechanism, binding) = match hash {
        Some(hash) if offered.contains(&sasl::SCRAM_SHA_256_PLUS) => {
            (sasl::SCRAM_SHA_256_PLUS, sasl::ChannelBinding::tls_server_end_point(hash))
        }
        other => {
            without_binding(endpoint)?;
            // "We could have, but you did not offer it" lets the server notice that somebody removed its offer.
            let binding = match other {
                Some(_) => sasl::ChannelBinding::unrequested(),
                None => sasl::ChannelBinding::unsupported(),
            };
            (sasl::SCRAM_SHA_256, binding)
        }
    };
    if !offered.contains(&mechanism) {
        return Err(PgError::credentials(format!("the server offers no SCRAM-SHA-256, only {}", offered.join(", "))));
    }
    let mut scram = ScramSha256::new(password.as_bytes(), binding);
    let mut message = BytesMut::new();
    frontend::sasl_initial_response(mechanism, scram.message(), &mut message).map_err(malformed)?;
    wire.send(&message).await?;
    let Message::AuthenticationSaslContinue(body) = message_of(wire).await? else {
        return Err(PgError::protocol("the server breaks off SCRAM"));
    };
    scram.update(body.data()).map_err(refused)?;
    message.clear();
    frontend::sasl_response(scram.message(), &mut message).map_err(malformed)?;
    wire.send(&message).await?;
    let Message::AuthenticationSaslFinal(body) = message_of(wire).await? else {
        return Err(PgError::protocol("the server breaks off SCRAM"));
    };
    // Here the server proves that it knows the password too.
    scram.finish(body.data()).map_err(refused)
}

fn refused(error: std::io::Error) -> PgError {
    PgError::credentials(format!("SCRAM failed: {error}"))
}

fn password(endpoint: &Endpoint) -> Result<&str, PgError> {
    endpoint
        .password
        .as_deref()
        .ok_or_else(|| PgError::credentials("the server asks for a password, and there is none"))
}

fn without_binding(endpoint: &Endpoint) -> Result<(), PgError> {
    match endpoint.channel_binding {
        ChannelBinding::Require => Err(PgError::credentials("the server lets us in without channel binding")),
        ChannelBinding::Disable | ChannelBinding::Prefer => Ok(()),
    }
}

async fn send_password(wire: &mut Wire, password: &[u8]) -> Result<(), PgError> {
    let mut message = BytesMut::new();
    frontend::password_message(password, &mut message).map_err(malformed)?;
    wire.send(&message).await
}

async fn message_of(wire: &mut Wire) -> Result<Message, PgError> {
    match wire.next().await? {
        Incoming::Message(Message::ErrorResponse(body)) => Err(server_error(body.fields())),
        Incoming::Message(message) => Ok(message),
        Incoming::CopyBoth => Err(PgError::protocol("a copy starts before anybody is logged in")),
    }
}

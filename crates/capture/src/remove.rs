use model::quote;
use pg::Session;

use crate::{CaptureError, publication, slot};

/// Something that crossfade made at a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removal {
    /// A replication slot.
    Slot(String),
    /// A publication.
    Publication(String),
}

impl std::fmt::Display for Removal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Removal::Slot(name) => write!(f, "replication slot {name}"),
            Removal::Publication(name) => write!(f, "publication {name}"),
        }
    }
}

/// What the plan has at this source; with `really` it is removed.
///
/// # Errors
/// The source, or a slot that somebody still reads.
pub async fn remove(session: &Session, plan: &str, source: &str, really: bool) -> Result<Vec<Removal>, CaptureError> {
    let mut found = Vec::new();
    let name = slot::slot_name(plan, source);
    if let Some(state) = slot::state(session, &name).await? {
        if really {
            if let Some(pid) = state.active_pid {
                session.execute("SELECT pg_terminate_backend($1, 5000)", &[&pid]).await?;
            }
            session.execute("SELECT pg_drop_replication_slot($1::text::name)", &[&name]).await?;
            model::failpoint!("slot_dropped");
        }
        found.push(Removal::Slot(name));
    }
    for name in publication::names(plan, source) {
        if !session.query("SELECT FROM pg_publication WHERE pubname = $1::text", &[&name]).await?.is_empty() {
            if really {
                session.batch_execute(&format!("DROP PUBLICATION IF EXISTS {}", quote::ident(&name))).await?;
                model::failpoint!("publication_dropped");
            }
            found.push(Removal::Publication(name));
        }
    }
    Ok(found)
}

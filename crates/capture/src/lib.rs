//! Source → log.
//!
//! [`run`] is the whole life of one source: claim the streams ([`claim`]), publish the tables ([`publication`]), make
//! the slot ([`slot`]) and pass the [`barrier`]; then [`copy`] and [`tail`] go on side by side, while [`watch`] looks at the
//! catalogs for what the tail does not say. [`chain`] refuses what does not meet; [`recopy`] is the way out. [`schema`] is what pg_dump says
//! ([`left_out`]: what it is not to say),
//! [`preflight`] what must be right before anything is changed, [`remove`] takes everything away again.
//! [`guard`] keeps the source's disk from running full of WAL.
//!
//! Knows nothing of the target but its identity, and never writes to a table of the source.

mod barrier;
mod chain;
mod claim;
mod copy;
mod error;
mod guard;
mod left_out;
mod marker;
mod preflight;
mod publication;
mod recopy;
mod remove;
mod run;
mod schema;
mod select;
mod slot;
mod tail;
mod watch;

pub use claim::{Streams, header, streams};
pub use error::CaptureError;
pub use marker::emit as emit_marker;
pub use preflight::{Needs, needs, preflight, preflight_log};
pub use recopy::{Asked, recopy_all, recopy_tables};
pub use remove::{Removal, remove};
pub use run::{Job, run};
pub use slot::{SlotState, slot_name, state as slot_state};

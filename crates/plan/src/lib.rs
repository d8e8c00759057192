//! The plan file: as written, then as checked. What gets past [`Plan::parse`] has a meaning; nothing later asks again.
//!
//! - [`Plan`] and its parts are what everybody else works with; docs/plan.md is the reference for people
//! - `written` is the file itself: TOML, in which every key knows its line
//! - [`Derived`] is a table that the plan gives as SQL, by one [`Part`] or several; what the SQL means, others read
//! - [`Finding`] counts the rows that such a table, or a rule of people's, leaves out
//! - `check` makes the one from the other; all it refuses is a [`Problem`](model::Problem) with file, line and a next step
//! - [`Direction`]: the same plan the other way round is a plan, too; so is the one of a `drill`
//! - [`Patterns`] select tables, [`Secret`] keeps URLs out of logs, `size` and `server` read what stands in strings

mod check;
mod derived;
mod direction;
mod drill;
mod finding;
mod patterns;
mod plan;
mod secret;
mod server;
mod size;
mod stages;
mod written;

pub use check::{is_flag, is_flag_value};
pub use derived::{AffectedBy, Cut, Derived, MaskIn, OnConflict, Part, Rows, Sql, WhenMissing};
pub use direction::{Direction, back_name, is_side_of, origins, source_side, target_side};
pub use finding::Finding;
pub use patterns::Patterns;
pub use plan::{
    Asks, Check, CheckSeverity, Cutover, Fence, FenceCommand, Fix, Hooks, Identity, Limits, Log, OnWalCritical,
    PgBouncer, Plan, SchemaMode, Side, Source, Target, Verify,
};
pub use secret::Secret;
pub use stages::{Gate, Stage, Stages, WritableSide};

/// What `crossfade init` writes: a plan with every key explained. It is a plan itself once the environment variables
/// that it names are set.
pub fn template() -> &'static str {
    include_str!("template.toml")
}

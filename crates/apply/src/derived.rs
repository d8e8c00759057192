//! Derived tables: what the plan gives as SQL over source tables, kept current by the tail.
//!
//! A table that queries read is in the target: as itself where the plan lets it go over, else as a mirror in schema `crossfade` ([`home`]). But where all that read it
//! are streamed, nothing besides their rows is ([`stored`]): its [`chunk`]s go through into them, and its changes behind. What the
//! SQL comes to is [`kept`] while a process runs. Once copy and tail are joined, a derived table is filled ([`fill`]); from there on every
//! transaction of the tail takes it along ([`pass`]): which units its rows affect is asked before the mirrors change and after, and these units
//! alone are made anew, in the same transaction. Where it is not known which rows changed (a TRUNCATE), or mirrors were copied again, it is made anew whole.
//!
//! The plan's [`finding`]s are read in the same way, and counted elsewhere. [`oracle`] tells others what a derived table must be.

mod catalog;
mod chunk;
mod explain;
mod fill;
mod finding;
pub(crate) mod home;
mod kept;
mod oracle;
mod part;
mod pass;
pub(crate) mod stored;
mod trial;

pub(crate) use catalog::problem;
pub use catalog::{All, CompileError, compile_all};
pub(crate) use chunk::Chunks;
pub use explain::{Explained, Look, Statement, explain};
pub(crate) use fill::{drop_indexes, indexes, look};
pub(crate) use kept::Known;
pub use oracle::{Derived, Filled, derived, unfilled};
pub(crate) use pass::Derivations;

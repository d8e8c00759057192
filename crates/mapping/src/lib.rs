//! From the SQL of a derived table to the statements that keep it current. Pure: it reads no database and runs nothing. The
//! caller says what tables, functions and columns there are ([`Catalog`]) and where mirrors and temp tables lie ([`Places`]).
//!
//! - what comes in: [`Derived`], a table as the plan declares it, by one `[[table]]` or several
//! - `read` parses with Postgres's own parser, resolves all names and makes one query of all that gives the table's rows; what it does not know, it refuses by name
//! - `clean` and `nulls` say what is known of columns; `fit` holds the result against the target, `warn` tells what rows alone do not fix
//! - `streamed`: rows made from the changed rows alone; `maintained`: from mirrors, by `relax` (which units can have changed),
//!   `recompute` (their rows) and `write` (the target)
//! - `question` is what is asked and not kept: a query over mirrors, and no more
//! - what comes out: [`Compiled`], or [`Trouble`]s with their places in the plan
//!
//! # Why it is right
//!
//! Of a query Q there is a monotone query L (joins, filters and unions only) such that Q's rows of a unit depend only on
//! which combinations of rows L finds for that unit. If these differ between the old state and the new one, some combination is in one of
//! them only, so it holds a changed row in its old or its new version, and L with that one mention of a table replaced by the
//! changed rows finds it in that state. So old rows are followed over the old mirrors, before these change, and new rows over the
//! new ones. Whatever is not monotone has to be relaxed everywhere in the query, not only around the mention that is replaced.
//!
//! # A batch
//!
//! The net change of each row is known: the first old version, the last new one, equal ones left out; old versions are read from
//! the mirror. In one transaction, with `jit = off`, and of steps only those whose tables changed:
//!
//! ```text
//! once per session   Maintained::prepare                 temp tables; those of changed rows are the caller's (Places::changed)
//!  1  clear          Maintained::clear                   and the temp tables of changed rows
//!  2  load           old and new rows of each table that changed; ANALYZE them: without it a derivation of one row can
//!                    take a hundred times as long
//!  3  old pass       Maintained::before                  values of guards, units of old rows, over mirrors as they were
//!  4  mirrors        delete the old rows, insert the new
//!  5  new pass       Maintained::after                   guards that stayed the same go, units of new rows
//!  6  recompute      Maintained::recompute               units made distinct, ANALYZE, all rows of all units
//!  7  write          Maintained::write                   delete within the units what is gone, insert and update the rest
//! ```
//!
//! All tables of a plan go through each of 3 to 5 together, as mirrors change once. A [`Streamed`] table takes part with step 2
//! and its own steps alone.

mod catalog;
mod clean;
mod compile;
mod derived;
mod fit;
mod indexes;
mod maintained;
mod mentions;
mod nulls;
mod oracle;
mod print;
mod query;
mod question;
mod read;
mod recompute;
mod relax;
mod streamed;
mod trouble;
mod walk;
mod warn;
mod words;
mod write;

pub use catalog::{
    Catalog, Column, Function, FunctionKind, Places, Side, SourceTable, Table, Target, TargetColumn, Usual, Volatility,
};
#[doc(hidden)]
pub use compile::compile_with;
pub use compile::{Compiled, Step, Way, compile};
pub use derived::{Derived, OnConflict, WhenMissing};
pub use indexes::Index;
pub use maintained::{Derivation, Maintained};
pub use mentions::{mentions, mentions_of};
pub use oracle::Oracle;
pub use question::{Question, question};
#[doc(hidden)]
pub use relax::Fault;
pub use streamed::{Streamed, StreamedColumn};
pub use trouble::{Named, Place, Trouble, TroubleKind};
pub use words::{words, words_of};

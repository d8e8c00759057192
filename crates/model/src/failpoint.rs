//! Places where a test lets the process die: between two durable things that change one after the other.
//!
//! `model::failpoint!("slot_created")` stands right behind the first of the two. In builds with debug assertions it aborts the process if the
//! environment says so, in the syntax of the crate [`fail`](https://docs.rs/fail): `FAILPOINTS=slot_created=return`, or after three
//! passages, `FAILPOINTS=chunk_appended=3*off->return`. An abort, no panic: a panic would end one task, and the rest of the process would tidy up.
//!
//! In builds without debug assertions, releases among them, the macro expands to nothing, and of the rest of this module only the names are left.
//! `tests/tests/failpoints.rs` holds both that and the list; `tests/tests/killed_at_every_failpoint` goes over those of a migration, `tests/tests/a_cutover_is_whole_or_not_at_all.rs` over those of a cutover, `tests/tests/one_can_go_back.rs` over those of the way back, `tests/tests/derived_tables_equal_their_query.rs` over those of derived tables.

macro_rules! names {
    ($(#[doc = $what:literal])+ $list:ident: $($(#[doc = $doc:literal])+ $name:literal,)+) => {
        $(#[doc = $what])+
        pub const $list: &[(&str, &str)] = &[$(($name, concat!($($doc),+).trim_ascii())),+];
    };
}

/// Every name, each with what it stands behind. Each stands in the code once.
pub fn all() -> impl Iterator<Item = &'static (&'static str, &'static str)> {
    MIGRATION.iter().chain(CUTOVER).chain(WAY_BACK).chain(DERIVED)
}

names! {
    /// Those on the way of a migration, from its first start until it follows, and of its end.
    MIGRATION:

    // Capture, before its first row.
    /// The copy stream is there, the source's others are not.
    "copy_stream_created",
    /// All of a source's streams are there, and empty.
    "streams_created",
    /// The log's first record says whose it is.
    "header_claimed",
    /// One of the two publications is as it must be.
    "publication_set",
    /// Tables were added to a publication, or taken out of it.
    "publication_altered",
    /// The slot is there.
    "slot_created",
    /// The slot knows the catalogs as they are now.
    "catalog_touched",
    /// All transactions older than slot and publication have ended.
    "barrier_passed",

    // Capture, the copy.
    /// pg_dump's output is in the log.
    "schema_logged",
    /// One of the markers before the tables' snapshots is in the source's WAL.
    "copy_marker_emitted",
    /// All transactions older than these markers have ended.
    "copy_barrier_passed",
    /// A table gave way to the application, and the marker of its next epoch is in the source's WAL.
    "next_epoch_announced",
    /// A table's snapshot is in the log.
    "table_begun",
    /// A part of a record that is larger than a message is in the log.
    "blob_appended",
    /// Rows are in the log, and nothing there says so.
    "chunk_appended",
    /// The log says where these rows are.
    "chunk_logged",
    /// All rows of a table are in the log.
    "table_read",
    /// The log says that a table is complete.
    "table_ended",
    /// The marker that joins copy and tail is in the source's WAL.
    "joined_marker_emitted",
    /// The log says that the copy is complete, and names that marker.
    "copy_ended",

    // Capture, the tail.
    /// The log knows its new writer.
    "tail_begun",
    /// A part of a transaction in progress is on the local disk.
    "spill_written",
    /// A part of a record that is larger than a message is sent.
    "blob_pushed",
    /// Transactions are sent to the log.
    "batch_sent",
    /// The log has acknowledged transactions.
    "log_acknowledged",
    /// The offset store knows of that.
    "offset_saved",
    /// The source is told what it may forget.
    "wal_acknowledged",
    /// The log is told that there is nothing new.
    "heartbeat_sent",

    // The embedded log.
    /// Messages are stored, and nobody is told.
    "log_stored",
    /// Messages are synced, and nobody is told.
    "log_synced",

    // Apply, before its first row.
    /// The schema `crossfade` is there.
    "state_opened",
    /// The target is asked what it has taken in, the log is not.
    "taken_asked",
    /// A replication origin is there.
    "origin_created",
    /// What was left of the lease's last holder is terminated.
    "holder_ended",
    /// The lease is taken.
    "lease_taken",
    /// Somebody else holds the lease.
    "lease_lost",
    /// The lease is given back.
    "lease_released",

    // Apply, the copy.
    /// Tables, and what they need, are created in an open transaction.
    "schema_created",
    /// Control records are taken in by an open transaction.
    "control_written",
    /// Control records are taken in.
    "control_committed",
    /// A table's next epoch is noted in an open transaction.
    "epoch_announced",
    /// A table's epoch has begun, in an open transaction.
    "epoch_begun",
    /// The rows of a table's earlier epoch are gone, in an open transaction.
    "epoch_emptied",
    /// Rows are copied, in an open transaction.
    "chunk_copied",
    /// The ledger says so, in the same transaction.
    "ledger_written",
    /// Rows and ledger are committed.
    "ledger_committed",
    /// A key or an index is built, in an open transaction.
    "index_built",
    /// A key or an index is built.
    "index_committed",
    /// Something that stands on no copied table is built, in an open transaction.
    "final_built",
    /// Something that stands on no copied table is built.
    "final_committed",
    /// The target says that the tail runs.
    "tail_started",

    // Apply, the tail.
    /// Changes are written, in an open transaction.
    "batch_written",
    /// A piece of a large transaction is written, in an open transaction.
    "piece_written",
    /// What was written set-wise is undone, to be written row by row.
    "set_undone",
    /// Tables are emptied by a TRUNCATE, in an open transaction.
    "tables_emptied",
    /// The checkpoint is moved, in an open transaction.
    "checkpoint_moved",
    /// A marker is noted, in an open transaction.
    "marker_noted",
    /// Changes and checkpoint are committed.
    "batch_committed",
    /// The tail is past the marker of a table's copy, whose epoch may not have begun.
    "gate_reached",
    /// The tail is past the marker of a table's copy, and has begun its epoch.
    "gated_epoch_begun",
    /// The tail goes on behind such a marker.
    "gate_passed",
    /// A foreign key is there, unchecked.
    "foreign_added",
    /// A foreign key is checked.
    "foreign_checked",
    /// A trigger or rule is created, in an open transaction.
    "trigger_created",
    /// A trigger or rule is created and disabled.
    "trigger_disabled",

    // `crossfade complete`.
    /// The slot is gone.
    "slot_dropped",
    /// A publication is gone.
    "publication_dropped",
    /// The target's schema `crossfade` is gone.
    "target_schema_dropped",
    /// A replication origin is gone.
    "origin_dropped",
    /// A stream is gone.
    "stream_removed",
}

names! {
    /// Those of a cutover.
    CUTOVER:

    // Up to the decision.
    /// The journal has the epoch.
    "cutover_begun",
    /// The source has its triggers, which do nothing yet.
    "fence_prepared",
    /// The application's pool is paused.
    "pgbouncer_paused",
    /// The journal says that the source is being closed.
    "cutover_fencing",
    /// The triggers are enabled, in an open transaction that holds all locks.
    "fence_written",
    /// The source takes no writes.
    "fence_closed",
    /// New sessions are read-only, too.
    "read_only_set",
    /// The plan's fence command is about to be run.
    "fence_command_noted",
    /// It has closed the source.
    "fence_command_run",
    /// The journal says so.
    "cutover_fenced",
    /// The marker behind the last write is in the source's WAL.
    "drain_marker_emitted",
    /// The journal says that the target has everything.
    "cutover_drained",
    /// The journal is ready for the decision.
    "cutover_prepared",
    /// The target's sequences are where the source's are; an open transaction is about to decide.
    "sequences_set",
    /// The decision is written, in an open transaction.
    "decision_written",

    // Behind it.
    /// The target takes writes.
    "decision_committed",
    /// The pool's file names the other side, and the pool does not know.
    "pgbouncer_switched",
    /// The pool knows, and is paused.
    "pgbouncer_reloaded",
    /// The application is led over.
    "application_routed",
    /// The journal says so.
    "cutover_routed",

    // Giving up.
    /// Earlier leaders can do nothing at a source any more.
    "cancel_leads",
    /// Nor in the journal.
    "cancel_leads_journal",
    /// The journal says that it is cancelled.
    "cancel_decided",
    /// The source takes writes again.
    "source_reopened",
    /// New sessions are what they were before the fence, and those from meanwhile may be there still.
    "read_only_lifted",
    /// The plan has undone its fence command, and nothing says so.
    "fence_command_undone",
    /// A pool that was paused goes on.
    "pgbouncer_resumed",

    // `crossfade complete`.
    /// The source has no fence any more.
    "source_fence_removed",
    /// The source's schema `crossfade` is gone.
    "source_schema_dropped",
}

names! {
    /// Those of the way back.
    WAY_BACK:

    /// The source has the way back's state, and the source still takes writes.
    "way_back_prepared",
    /// What is written to the target goes to the source from now on.
    "way_back_begun",
    /// A rollback is decided, and apply may write to the target again.
    "forward_again",
    /// Rows that others have written to the target are counted, or a marker of the way back is noted.
    "rogue_noted",
}

names! {
    /// Those of derived tables.
    DERIVED:

    /// A mirror is there, in an open transaction.
    "mirror_created",
    /// A declaration that has changed is noted, or one that is gone.
    "declaration_noted",
    /// Derived tables are filled, in an open transaction.
    "derived_filled",
    /// Derived tables are filled.
    "derived_committed",
    /// The units of rows as they were are known, in an open transaction.
    "units_found",
    /// The mirrors have changed, and the units of rows as they are are known, in an open transaction.
    "units_found_again",
    /// The units' rows are made, in an open transaction.
    "units_made",
    /// They are written, in an open transaction.
    "units_written",
    /// What was written to a derived table is undone, to be written in another order.
    "derived_undone",
    /// A derived table is made anew as a whole, in an open transaction.
    "made_whole",
    /// Changed rows of a table of which nothing is stored are written to one that is streamed from it, in an open transaction.
    "streamed_written",
    /// What was written to such a table is undone, to be written in another order.
    "streamed_undone",
    /// Its rows of an earlier copy are gone, in an open transaction.
    "streamed_emptied",
}

/// Arms what the environment variable `FAILPOINTS` names.
///
/// # Errors
/// A name that is not in [`all`], or an action that is none: a test that arms nothing would show nothing.
#[cfg(debug_assertions)]
pub fn arm() -> Result<(), String> {
    let Ok(points) = std::env::var("FAILPOINTS") else { return Ok(()) };
    for point in points.split(';').filter(|point| !point.trim().is_empty()) {
        let (name, action) = point.split_once('=').ok_or_else(|| format!("{point:?} names no action"))?;
        if !all().any(|(known, _)| *known == name) {
            return Err(format!("there is no failpoint {name:?}"));
        }
        fail::cfg(name, action)?;
    }
    Ok(())
}

/// What [`failpoint!`](crate::failpoint!) expands to.
#[cfg(debug_assertions)]
#[doc(hidden)]
pub fn reached(name: &str) {
    fail::fail_point!(name, |_| {
        eprintln!("failpoint {name}: abort");
        std::process::abort()
    });
}

/// A place where a test may let the process die; see [`mod@crate::failpoint`].
#[cfg(debug_assertions)]
#[macro_export]
macro_rules! failpoint {
    ($name:literal) => {
        $crate::failpoint::reached($name)
    };
}

/// A place where a test may let the process die; here it is nothing.
#[cfg(not(debug_assertions))]
#[macro_export]
macro_rules! failpoint {
    ($name:literal) => {{}};
}

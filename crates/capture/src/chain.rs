//! Slot, log and copy must meet without a gap. Looked at by every start; what does not meet is refused, and only a recopy of everything
//! leads out of it.

use model::{Code, Header, Lsn, Problem, Seq};

use crate::copy::Progress;
use crate::slot::SlotState;
use crate::tail::Resume;

/// Checks that what the slot can still send follows what the log has. `position` is where the source's WAL ends.
///
/// # Errors
/// It does not.
pub(crate) fn check(
    header: &Header,
    name: &str,
    slot: Option<&SlotState>,
    resume: Resume,
    progress: &Progress,
    position: Lsn,
) -> Result<(), Problem> {
    let begun = resume.lsn.is_some() || progress.begun();
    let lost = |why: &str| Problem::lost(Code::SlotLost, format!("slot {name} of source {:?}", header.source), why);
    let Some(slot) = slot else {
        return if begun { Err(lost("it does not exist any more")) } else { Ok(()) };
    };
    if slot.wal_status == "lost" {
        return Err(lost("the server has removed WAL that it needs (max_slot_wal_keep_size)"));
    }
    if resume.last < resume.begin {
        let why = format!(
            "the tail stream ends at message {}, and starts with message {}: it was deleted, or has lost its end",
            resume.last, resume.begin
        );
        return Err(gap(header, why));
    }
    let Some(end) = resume.lsn else {
        let why = "the tail stream is empty although tables have been copied: it was deleted or purged";
        return if progress.begun() || resume.begin > Seq::ZERO { Err(gap(header, why)) } else { Ok(()) };
    };
    if slot.confirmed > end {
        let why = format!(
            "the log ends at {end}, the slot was told that everything up to {} is safe: the log has lost what is between",
            slot.confirmed
        );
        return Err(gap(header, why));
    }
    if position < end {
        let why = format!(
            "the source stands at {position}, and was at {end} when the log was written: it was put back, or is a standby that lacked the last transactions when it was promoted"
        );
        return Err(gap(header, why));
    }
    Ok(())
}

/// Something is missing that cannot be had again.
pub(crate) fn gap(header: &Header, why: impl Into<String>) -> Problem {
    Problem::lost(Code::Gap, format!("plan {:?}, source {:?}", header.plan, header.source), why)
}

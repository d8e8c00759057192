//! One file per command. Each takes the checked plan and says how it went: an exit code, or the problem that ended it.

pub(crate) mod apply;
pub(crate) mod capture;
pub(crate) mod complete;
pub(crate) mod cutover;
pub(crate) mod explain;
pub(crate) mod init;
pub(crate) mod reconcile;
pub(crate) mod recopy;
pub(crate) mod rehearse;
pub(crate) mod run;
pub(crate) mod runbook;
pub(crate) mod stage;
pub(crate) mod status;
pub(crate) mod supervise;
pub(crate) mod survey;
pub(crate) mod verify;

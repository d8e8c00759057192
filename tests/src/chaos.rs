//! Whole migrations in which everything goes wrong that may: processes are killed and stopped, servers crash, the network breaks, stalls and
//! leaves half-open connections behind, in the copy and in the tail, while an application writes. In the end the load stops, and source and target must be
//! equal, after nothing but what a supervisor does by itself.
//!
//! A seed decides everything that can be decided ([`Shape`]): who does the work over which log, what the clients do one after the other, which faults
//! ([`fault`]) come when. What meets what in the end is the machine's business, so a seed that failed may pass the next time; the folder that a
//! failing run leaves behind says what happened.
//!
//! [`scene`] has the servers and what is between, [`processes`] keeps the program running as systemd would, [`load`] is the application and
//! [`transaction`] what it does, [`run`] brings them together, [`report`] says how it went. They live as long as the run.

mod fault;
mod load;
mod processes;
mod report;
mod run;
mod scene;
mod shape;
mod transaction;

pub use fault::{Fault, Planned, Server, Trouble};
pub use load::Load;
pub use report::{Counts, Report};
pub use scene::SCHEMA;
pub use shape::{Act, Mode, Shape, identities};

/// Does the run of one seed. One that fails leaves a folder behind with all that shows why; with `keep` every one does.
pub async fn of_seed(seed: u64, keep: bool) -> Report {
    run::run(&Shape::of(seed), keep).await
}

//! What the tests of this crate share: a Postgres server of their own, a small database in it, queries of every class.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod classes;
pub mod dice;
pub mod ground;
pub mod maintain;
pub mod server;
pub mod world;

//! Given whole migrations in which processes die, servers crash and the network breaks while the application writes: they go on by themselves and end
//! equal. `make chaos RUNS=n SEED=s` does more of them.

use anyhow::{Context, Result, ensure};
use crossfade_tests::chaos::{self, Fault, Mode, Shape};

/// The run of the first seed from `from` on that is of this kind.
async fn ends_equal(from: u64, kind: impl Fn(&Shape) -> bool) -> Result<()> {
    let shape = (from..from + 1000).map(Shape::of).find(kind).context("there is such a seed")?;
    eprintln!("{shape}");
    let report = chaos::of_seed(shape.seed, false).await;
    eprintln!("{report}");
    ensure!(report.good(), "{report}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_embedded_log() -> Result<()> {
    ends_equal(1, |shape| shape.mode == Mode::Embedded).await
}

#[tokio::test(flavor = "multi_thread")]
async fn with_run_over_nats() -> Result<()> {
    ends_equal(1, |shape| shape.mode == Mode::Run).await
}

#[tokio::test(flavor = "multi_thread")]
async fn with_capture_and_two_apply_processes() -> Result<()> {
    ends_equal(1, |shape| shape.mode == Mode::Split).await
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_process_that_stands_still_and_is_replaced() -> Result<()> {
    let replaces = |shape: &Shape| {
        shape.tail.faults.iter().any(|planned| matches!(planned.fault, Fault::Freeze { replaced: true, .. }))
    };
    ends_equal(10, replaces).await
}

#[test]
fn a_seed_decides_the_same_again_and_another_one_something_else() {
    let told = |seed| Shape::of(seed).to_string();
    assert_eq!(told(7), told(7));
    assert_ne!(told(7), told(8));
}

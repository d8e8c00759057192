//! SIGTERM and SIGINT: the first one asks everything to end, a second one does not wait for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use model::{Code, Problem};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What the signals have asked for.
pub(crate) struct Stop {
    token: CancellationToken,
    code: Arc<AtomicU8>,
}

impl Stop {
    /// From here on signals do not kill the process by themselves.
    pub(crate) fn on_signals() -> Result<Stop, Problem> {
        let failed = |error: std::io::Error| {
            Problem::new(
                Code::Internal,
                "signal handlers",
                error.to_string(),
                "report it with the system's name and version",
            )
        };
        let mut term = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let stop = Stop { token: CancellationToken::new(), code: Arc::new(AtomicU8::new(TERM)) };
        let (token, code) = (stop.token.clone(), Arc::clone(&stop.code));
        tokio::spawn(async move {
            loop {
                let which = tokio::select! {
                    biased;
                    _ = term.recv() => TERM,
                    _ = interrupt.recv() => INTERRUPT,
                };
                if token.is_cancelled() {
                    std::process::exit(which.into());
                }
                code.store(which, Ordering::Relaxed);
                token.cancel();
                tracing::info!("stopping; a second signal ends it at once");
            }
        });
        Ok(stop)
    }

    /// Cancelled by the first signal.
    pub(crate) fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// The exit code of a command that a signal cut off.
    pub(crate) fn exit_code(&self) -> u8 {
        self.code.load(Ordering::Relaxed)
    }
}

/// 128 and the signal's number, as shells have it.
const TERM: u8 = 143;
const INTERRUPT: u8 = 130;

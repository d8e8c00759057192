//! The HTTP server beside `run`, `capture` and `apply`, where the plan or the command line says where to listen.

use std::net::SocketAddr;
use std::sync::Arc;

use ::log::Log;
use model::Problem;
use plan::Plan;
use status::http::{self, Serving};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::wiring;

/// The address, taken before anything is begun.
pub(crate) struct Listening(Option<TcpListener>);

/// Takes it. `address` goes before what the plan says.
///
/// # Errors
/// It cannot be listened on.
pub(crate) async fn listen(plan: &Plan, address: Option<SocketAddr>) -> Result<Listening, Problem> {
    Ok(Listening(match address.or(plan.http) {
        Some(address) => Some(http::listen(address).await?),
        None => None,
    }))
}

impl Listening {
    /// What is served, if anything is. Of a plan without stages, or one whose log has no room for them, that is told to who asks.
    ///
    /// # Errors
    /// The log's server cannot be reached.
    pub(crate) async fn open(self, plan: &Arc<Plan>, log: &Arc<dyn Log>) -> Result<Server, Problem> {
        let Some(listener) = self.0 else { return Ok(Server(None)) };
        let stage = match (&plan.stages, &plan.log) {
            (None, _) => Err(cutover::stages::none_declared(plan)),
            (Some(_), plan::Log::Embedded) => Err(wiring::no_bucket()),
            (Some(_), plan::Log::Nats { .. }) => Ok(wiring::bucket(plan).await?),
        };
        Ok(Server(Some((listener, Serving { plan: Arc::clone(plan), log: Arc::clone(log), stage }))))
    }
}

/// What answers, ready to be one of the parts of this process.
pub(crate) struct Server(Option<(TcpListener, Serving)>);

impl Server {
    /// Answers until `stop`.
    pub(crate) fn start(self, parts: &mut JoinSet<Result<(), Problem>>, stop: CancellationToken) {
        if let Some((listener, serving)) = self.0 {
            parts.spawn(http::serve(listener, serving, stop));
        }
    }
}

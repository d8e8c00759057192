//! The status over HTTP/1.1, beside what a process does: JSON at `/status`, Prometheus's text at `/metrics`, the stage of applications that switch by flags at `/stage`,
//! and `/health`. Everything is read; nobody is asked who he is, so it listens where the plan says and nowhere else.
//!
//! [`look`] asks source, log and target, once for all who ask within a second. [`stage`] follows the stage and lets those wait who want to know the next one.

mod look;
mod stage;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ::log::{Bucket, Log};
use ::model::{Code, Problem};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use plan::Plan;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::metrics;
use look::Look;
use stage::Follower;

/// Connections at a time; each that waits for a stage is one. Below the files that a process may usually have open (1,024).
const MOST: usize = 512;

/// For a request's head, and between two requests: whoever says nothing must not keep others out.
const HEAD: Duration = Duration::from_secs(10);

/// What a request's head may take; ours are lines.
const BUFFER: usize = 16 << 10;

/// After a connection could not be taken: too many files are open, and one of them has to be closed first.
const PAUSE: Duration = Duration::from_millis(200);

/// What is served.
pub struct Serving {
    /// How it stands is told of this plan.
    pub plan: Arc<Plan>,
    /// Its log, as this process has it open.
    pub log: Arc<dyn Log>,
    /// Where the stage is kept, or why there is none.
    pub stage: Result<Bucket, Problem>,
}

/// Takes the address, before anything else is begun.
///
/// # Errors
/// [`Code::ListenFailed`].
pub async fn listen(address: SocketAddr) -> Result<TcpListener, Problem> {
    TcpListener::bind(address).await.map_err(|error| {
        let next = match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                "end what listens there, or name another address: [http] listen in the plan, or --listen for this process alone"
            }
            _ => "name an address of this machine that this user may listen on: [http] listen in the plan, or --listen for this process alone",
        };
        Problem::new(Code::ListenFailed, format!("{address} ([http] listen)"), error.to_string(), next)
    })
}

/// Answers until `stop`; whoever waits then is cut off.
///
/// # Errors
/// The plan's URLs make no sense.
pub async fn serve(listener: TcpListener, serving: Serving, stop: CancellationToken) -> Result<(), Problem> {
    let routes = Arc::new(Routes {
        look: Look::new(Arc::clone(&serving.plan), serving.log)?,
        stage: serving.stage.map(Follower::start),
    });
    if let Ok(address) = listener.local_addr() {
        info!("status at http://{address}/status, metrics at http://{address}/metrics");
    }
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < MOST => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, Arc::clone(&routes)));
                }
                Err(error) => {
                    warn!("[http] listen: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
            },
        }
    }
}

async fn connection(stream: TcpStream, routes: Arc<Routes>) {
    let service = service_fn(|request: Request<Incoming>| {
        let routes = Arc::clone(&routes);
        async move { Ok::<_, Infallible>(routes.answer(&request).await) }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(BUFFER);
    if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!("an HTTP connection ended: {error}");
    }
}

struct Routes {
    look: Look,
    stage: Result<Follower, Problem>,
}

/// An answer.
type Answer = Response<Full<Bytes>>;

impl Routes {
    async fn answer(&self, request: &Request<Incoming>) -> Answer {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut answer = refused(StatusCode::METHOD_NOT_ALLOWED, "it can only be read", "ask with GET");
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        match request.uri().path() {
            "/health" => text("text/plain; charset=utf-8", "ok\n".to_owned()),
            "/status" => match self.look.now().await.map(|status| serde_json::to_value(&*status)) {
                Some(Ok(status)) => document(StatusCode::OK, &status),
                Some(Err(_)) | None => defect(),
            },
            "/metrics" => {
                let stage = self.stage.as_ref().ok().and_then(Follower::now);
                match self.look.now().await {
                    Some(status) => text(metrics::CONTENT_TYPE, metrics::text(&status, stage.as_ref())),
                    None => defect(),
                }
            }
            "/stage" => match &self.stage {
                Ok(follower) => stage::answer(follower, request.uri().query().unwrap_or_default()).await,
                Err(problem) => failed(StatusCode::NOT_FOUND, problem),
            },
            path => {
                let why = format!("there is nothing at {path}");
                refused(StatusCode::NOT_FOUND, &why, "ask for /status, /metrics, /stage or /health")
            }
        }
    }
}

fn text(kind: &'static str, body: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

fn document(status: StatusCode, body: &Value) -> Answer {
    let mut answer = text("application/json", format!("{body}\n"));
    *answer.status_mut() = status;
    answer
}

/// A problem, as `--json` has it.
fn failed(status: StatusCode, problem: &Problem) -> Answer {
    let Problem { code, what, why, next } = problem;
    document(status, &json!({ "error": { "code": code.as_str(), "what": what, "why": why, "next": next } }))
}

fn defect() -> Answer {
    let next = "ask again, and report it with the log of this process";
    let problem = Problem::new(Code::Internal, "the status", "looking at it broke off", next);
    failed(StatusCode::INTERNAL_SERVER_ERROR, &problem)
}

/// A request that makes no sense.
fn refused(status: StatusCode, why: &str, next: &str) -> Answer {
    document(status, &json!({ "error": { "code": "bad_request", "what": "the request", "why": why, "next": next } }))
}

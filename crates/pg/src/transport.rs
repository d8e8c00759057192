//! The bytes' way to a server: a socket, encrypted or not. Sessions and the replication connection both use it, so
//! that they get in the same way and fail with the same words.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio_postgres::tls::{ChannelBinding, TlsConnect};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::endpoint::{Endpoint, Host, SslMode};
use crate::error::PgError;
use crate::tls;

/// A silent peer is asked after 30 s whether it is still there, and given up after three more questions 10 s apart: a
/// cut network is noticed within a minute, where the system's default is two hours.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(Duration::from_secs(10)).with_retries(3);

/// An open way to a server.
pub(crate) enum Transport {
    Tcp(TcpStream),
    Socket(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Opens one to a single host. Bounded in time by the caller.
///
/// # Errors
/// [`PgError::Unreachable`], [`PgError::Tls`] or, where the server breaks off, [`PgError::Closed`].
pub(crate) async fn open(endpoint: &Endpoint, host: &Host) -> Result<Transport, PgError> {
    if host.is_socket() {
        let path = format!("{}/.s.PGSQL.{}", host.name, host.port);
        let stream = UnixStream::connect(&path).await.map_err(|error| unreachable(&path, &error))?;
        return Ok(Transport::Socket(stream));
    }
    let mut stream = dial(host).await?;
    if endpoint.tls.mode == SslMode::Disable {
        return Ok(Transport::Tcp(stream));
    }
    // SSLRequest (Postgres manual, "SSL Session Encryption"): length 8, code 80877103.
    stream.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).await?;
    match stream.read_u8().await? {
        b'S' => {}
        b'N' if endpoint.tls.mode == SslMode::Prefer => return Ok(Transport::Tcp(stream)),
        b'N' => return Err(PgError::tls("the server does no TLS, and sslmode asks for it")),
        answer => return Err(PgError::protocol(format!("it answers {answer:#04x} to a request for TLS"))),
    }
    let name = ServerName::try_from(host.name.clone())
        .map_err(|_| PgError::tls(format!("{:?} is no host name", host.name)))?;
    let connector = TlsConnector::from(Arc::new(tls::config(&endpoint.tls)?));
    Ok(Transport::Tls(Box::new(connector.connect(name, stream).await?)))
}

async fn dial(host: &Host) -> Result<TcpStream, PgError> {
    let place = host.to_string();
    let mut last = None;
    for address in lookup_host((host.name.as_str(), host.port)).await.map_err(|error| unreachable(&place, &error))? {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                let prepared =
                    stream.set_nodelay(true).and_then(|()| SockRef::from(&stream).set_tcp_keepalive(&KEEPALIVE));
                prepared.map_err(|error| unreachable(&place, &error))?;
                return Ok(stream);
            }
            Err(error) => last = Some(error),
        }
    }
    let error = last.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    Err(unreachable(&place, &error))
}

fn unreachable(place: &str, error: &io::Error) -> PgError {
    PgError::Unreachable { place: String::new(), reason: format!("no connection to {place}: {error}") }
}

impl Transport {
    /// What SCRAM binds itself to: the hash of the server's certificate.
    pub(crate) fn end_point_hash(&self) -> Option<Vec<u8>> {
        match self {
            Transport::Tcp(_) | Transport::Socket(_) => None,
            Transport::Tls(stream) => tls::end_point_hash(stream.get_ref().1.peer_certificates()?.first()?),
        }
    }

    /// Lets little lie between the server and us from now on. While more than that is under way, what the server sends waits on its
    /// side, and goes off in large pieces when we have read: half the server's cost of sending many small messages (measured on
    /// one machine: 7 instead of 12 µs of system time for a transaction of four). Only for a near server: over a distance it would cap
    /// the rate at this much a round trip.
    pub(crate) fn keep_little_under_way(&self) {
        let socket = match self {
            Transport::Tcp(stream) => SockRef::from(stream),
            Transport::Tls(stream) => SockRef::from(stream.get_ref().0),
            Transport::Socket(_) => return,
        };
        // Where the system refuses, it stays as it was.
        let _ = socket.set_recv_buffer_size(64 << 10);
    }

    /// From now on the socket counts as readable with so many unread bytes only (or at its end); one that has them already does
    /// so at once. Where the system has no such option, every byte wakes, as before.
    #[allow(unsafe_code)]
    pub(crate) fn wake_at(&self, bytes: i32) {
        let socket = match self {
            Transport::Tcp(stream) => stream.as_raw_fd(),
            Transport::Tls(stream) => stream.get_ref().0.as_raw_fd(),
            Transport::Socket(_) => return,
        };
        let size = size_of_val(&bytes) as libc::socklen_t;
        // SAFETY: the socket is open as long as `self` owns it, and the kernel reads `size` bytes, which is what `bytes` has.
        unsafe { libc::setsockopt(socket, libc::SOL_SOCKET, libc::SO_RCVLOWAT, (&raw const bytes).cast(), size) };
    }

    /// Gives up on unacknowledged bytes after a minute, as on a silent peer. Only for connections whose other end
    /// always reads: a peer that leaves us waiting would be cut off too.
    pub(crate) fn limit_unacknowledged(&self) {
        let tcp = match self {
            Transport::Tcp(stream) => stream,
            Transport::Tls(stream) => stream.get_ref().0,
            Transport::Socket(_) => return,
        };
        // Where the system has no such option, its own patience applies.
        let _ = SockRef::from(tcp).set_tcp_user_timeout(Some(Duration::from_secs(60)));
    }
}

impl tokio_postgres::tls::TlsStream for Transport {
    fn channel_binding(&self) -> ChannelBinding {
        self.end_point_hash().map_or_else(ChannelBinding::none, ChannelBinding::tls_server_end_point)
    }
}

/// Tells tokio-postgres that encryption has been dealt with: it takes the transport as it is, channel binding included.
pub(crate) struct Established;

impl TlsConnect<Transport> for Established {
    type Stream = Transport;
    type Error = Infallible;
    type Future = Ready<Result<Transport, Infallible>>;

    fn connect(self, stream: Transport) -> Self::Future {
        ready(Ok(stream))
    }
}

/// Calls the same method of whichever stream it is.
macro_rules! delegate {
    ($self:ident, $method:ident($($argument:expr),*)) => {
        match $self.get_mut() {
            Transport::Tcp(stream) => Pin::new(stream).$method($($argument),*),
            Transport::Socket(stream) => Pin::new(stream).$method($($argument),*),
            Transport::Tls(stream) => Pin::new(stream.as_mut()).$method($($argument),*),
        }
    };
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        delegate!(self, poll_read(cx, buf))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        delegate!(self, poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, poll_shutdown(cx))
    }
}

use std::net::SocketAddr;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What the network between a program and a server is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weather {
    Fair,
    /// Connections stay, nothing arrives.
    Stalled,
    /// Connections break, new ones are closed at once.
    Cut,
}

/// A TCP proxy on a port of its own; connections through it can be stalled and cut. Ends when dropped.
pub struct Proxy {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    listener: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1 and passes connections on to `port` there.
    pub async fn start(port: u16) -> Result<Proxy> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let (weather, watched) = watch::channel(Weather::Fair);
        let listener = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, port, watched.clone()));
            }
        });
        Ok(Proxy { address, weather, listener })
    }

    /// Its own port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Breaks all connections, and refuses new ones until [`Proxy::resume`].
    pub fn cut(&self) {
        self.weather.send_replace(Weather::Cut);
    }

    /// Keeps all connections, and lets nothing through until [`Proxy::resume`].
    pub fn stall(&self) {
        self.weather.send_replace(Weather::Stalled);
    }

    /// Lets everything through again.
    pub fn resume(&self) {
        self.weather.send_replace(Weather::Fair);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.weather.send_replace(Weather::Cut);
        self.listener.abort();
    }
}

/// Carries one connection until an end closes it or it is cut; both ends are closed then.
async fn carry(client: TcpStream, port: u16, mut weather: watch::Receiver<Weather>) {
    if *weather.borrow() == Weather::Cut {
        return;
    }
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    let ((client_in, client_out), (server_in, server_out)) = (client.into_split(), server.into_split());
    let (there, back) = (pass(client_in, server_out, weather.clone()), pass(server_in, client_out, weather.clone()));
    tokio::select! {
        biased;
        _ = weather.wait_for(|weather| *weather == Weather::Cut) => {}
        _ = there => {}
        _ = back => {}
    }
}

/// Ends with the first error or end of either side.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut weather: watch::Receiver<Weather>) -> Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let n = from.read(&mut buffer).await?;
        weather.wait_for(|weather| *weather != Weather::Stalled).await?;
        if n == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..n]).await?;
    }
}

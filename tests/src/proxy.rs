use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How long a throttled connection rests between two pieces.
const REST: Duration = Duration::from_millis(20);

/// What the network between a program and a server is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weather {
    Fair,
    /// Connections stay, nothing arrives.
    Stalled,
    /// Connections break, new ones are closed at once.
    Cut,
    /// Each direction of each connection carries so many bytes a second.
    Throttled(u32),
}

/// Who still holds a connection of which the other end is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Orphan {
    /// The program; the server has seen the end.
    Program,
    /// The server; the program has seen the end.
    Server,
    /// Both, and neither hears of the other.
    Both,
}

#[derive(Clone, Copy, Debug)]
struct State {
    weather: Weather,
    /// How often connections were orphaned, and how the last time.
    orphaned: (u64, Orphan),
    /// Up to which of these times the orphans were told that nobody is there.
    released: u64,
}

/// A TCP proxy on a port of its own; connections through it can be stalled, throttled, cut and orphaned. Ends when
/// dropped.
pub struct Proxy {
    address: SocketAddr,
    state: watch::Sender<State>,
    open: Arc<AtomicUsize>,
    listener: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1 and passes connections on to `port` there.
    pub async fn start(port: u16) -> Result<Proxy> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let fair = State { weather: Weather::Fair, orphaned: (0, Orphan::Both), released: 0 };
        let (state, watched) = watch::channel(fair);
        let open = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&open);
        let listener = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, port, watched.clone(), Arc::clone(&count)));
            }
        });
        Ok(Proxy { address, state, open, listener })
    }

    /// Its own port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// How many connections go through it now.
    pub fn connections(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Breaks all connections, and refuses new ones until [`Proxy::resume`].
    pub fn cut(&self) {
        self.set(Weather::Cut);
    }

    /// Keeps all connections, and lets nothing through until [`Proxy::resume`].
    pub fn stall(&self) {
        self.set(Weather::Stalled);
    }

    /// Lets so many bytes a second through, in each direction of each connection, until [`Proxy::resume`].
    pub fn throttle(&self, bytes_a_second: u32) {
        self.set(Weather::Throttled(bytes_a_second));
    }

    /// Makes all connections half-open: one end, or neither, hears of it. New ones are not touched. Those who were left
    /// learn it by [`Proxy::release`], as they would from the kernel's keepalive in the end.
    pub fn orphan(&self, who: Orphan) {
        self.state.send_modify(|state| state.orphaned = (state.orphaned.0 + 1, who));
    }

    /// Closes what [`Proxy::orphan`] left half-open.
    pub fn release(&self) {
        self.state.send_modify(|state| state.released = state.orphaned.0);
    }

    /// Lets everything through again.
    pub fn resume(&self) {
        self.set(Weather::Fair);
    }

    fn set(&self, weather: Weather) {
        self.state.send_modify(|state| state.weather = weather);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.release();
        self.cut();
        self.listener.abort();
    }
}

/// Carries one connection until an end closes it or it is cut; both ends are closed then. An orphan stays as it is
/// until it is released.
async fn carry(client: TcpStream, port: u16, mut state: watch::Receiver<State>, open: Arc<AtomicUsize>) {
    let now = *state.borrow();
    if now.weather == Weather::Cut {
        return;
    }
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    let counted = Count::up(open);
    let (mut client, mut server) = (client.into_split(), server.into_split());
    let passing = async {
        let there = pass(&mut client.0, &mut server.1, state.clone());
        let back = pass(&mut server.0, &mut client.1, state.clone());
        tokio::select! {
            biased;
            _ = there => {}
            _ = back => {}
        }
    };
    let mut watched = state.clone();
    let over = watched.wait_for(|new| new.weather == Weather::Cut || new.orphaned.0 > now.orphaned.0);
    let orphaned = tokio::select! {
        biased;
        over = over => over.ok().filter(|over| over.weather != Weather::Cut).map(|over| over.orphaned),
        () = passing => None,
    };
    drop(counted);
    let Some((number, who)) = orphaned else { return };
    // Nobody reads what is left; who writes to it fills the socket's buffers, and waits.
    let _kept = match who {
        Orphan::Program => {
            drop(server);
            (Some(client), None)
        }
        Orphan::Server => {
            drop(client);
            (None, Some(server))
        }
        Orphan::Both => (Some(client), Some(server)),
    };
    let _ = state.wait_for(|new| new.released >= number).await;
}

/// One of the connections that are open, while it lives.
struct Count(Arc<AtomicUsize>);

impl Count {
    fn up(open: Arc<AtomicUsize>) -> Count {
        open.fetch_add(1, Ordering::Relaxed);
        Count(open)
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Ends with the first error or end of either side.
async fn pass(from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf, mut state: watch::Receiver<State>) -> Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let n = from.read(&mut buffer).await?;
        let mut rest = &buffer[..n];
        state.wait_for(|state| state.weather != Weather::Stalled).await?;
        if n == 0 {
            return Ok(());
        }
        while !rest.is_empty() {
            let weather = state.borrow().weather;
            let piece = match weather {
                Weather::Throttled(a_second) => {
                    tokio::time::sleep(REST).await;
                    (u64::from(a_second) * REST.as_millis() as u64 / 1000).max(1) as usize
                }
                Weather::Fair | Weather::Cut | Weather::Stalled => rest.len(),
            };
            let (now, later) = rest.split_at(piece.min(rest.len()));
            to.write_all(now).await?;
            rest = later;
        }
    }
}

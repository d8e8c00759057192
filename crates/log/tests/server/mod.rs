//! A nats-server for one test: JetStream in a folder that goes with it, a port of its own that it keeps over restarts.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub struct Server {
    pub port: u16,
    folder: TempDir,
    process: Option<Child>,
}

impl Server {
    /// With JetStream and nothing else.
    pub fn start() -> Server {
        Server::with(|store| format!("jetstream {{ store_dir: {store:?} }}"))
    }

    /// Three that make a cluster.
    pub fn cluster() -> Vec<Server> {
        let held: Vec<_> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports: Vec<_> = held.iter().map(|port| port.local_addr().unwrap().port()).collect();
        drop(held);
        let routes: Vec<_> = ports.iter().map(|port| format!("\"nats://127.0.0.1:{port}\"")).collect();
        let routes = routes.join(", ");
        let one = |port: &u16| {
            Server::with(|store| {
                format!(
                    "server_name: s{port}\njetstream {{ store_dir: {store:?} }}\n\
                     cluster {{ name: c, listen: \"127.0.0.1:{port}\", routes: [{routes}] }}"
                )
            })
        };
        ports.iter().map(one).collect()
    }

    /// With the configuration that the function makes for a store folder.
    pub fn with(configuration: impl FnOnce(&Path) -> String) -> Server {
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let text = format!("listen: \"127.0.0.1:{port}\"\n{}\n", configuration(&folder.path().join("store")));
        std::fs::write(folder.path().join("server.conf"), text).unwrap();
        let mut server = Server { port, folder, process: None };
        server.up();
        server
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// As `kill -9` does it.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    pub fn up(&mut self) {
        let output = std::fs::File::create(self.folder.path().join("server.log")).unwrap();
        let mut process = Command::new("nats-server")
            .arg("-c")
            .arg(self.folder.path().join("server.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output)
            .spawn()
            .unwrap();
        let start = Instant::now();
        while !greets(self.port) {
            let log = || std::fs::read_to_string(self.folder.path().join("server.log")).unwrap_or_default();
            assert!(process.try_wait().unwrap().is_none(), "nats-server ended: {}", log());
            assert!(start.elapsed() < Duration::from_secs(10), "nats-server does not greet: {}", log());
            std::thread::sleep(Duration::from_millis(10));
        }
        self.process = Some(process);
    }
}

fn greets(port: u16) -> bool {
    let Ok(mut connection) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    connection.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut greeting = [0; 4];
    connection.read_exact(&mut greeting).is_ok() && &greeting == b"INFO"
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

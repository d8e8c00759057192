//! What an operator does to streams, spoken over a plain connection: the harness needs a few requests, no client.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::Nats;

/// Longer than a server takes to answer.
const LIMIT: Duration = Duration::from_secs(10);

impl Nats {
    /// A request to `$JS.API.<subject>`; an error it answers is one.
    pub fn jetstream(&self, subject: &str, body: &Value) -> Result<Value> {
        let stream = TcpStream::connect(("127.0.0.1", self.port()))?;
        stream.set_read_timeout(Some(LIMIT))?;
        let mut out = stream.try_clone()?;
        let mut lines = BufReader::new(stream);
        let body = body.to_string();
        write!(
            out,
            "CONNECT {{\"verbose\":false}}\r\nSUB answer 1\r\nPUB $JS.API.{subject} answer {}\r\n{body}\r\n",
            body.len()
        )?;
        loop {
            let mut line = String::new();
            ensure!(lines.read_line(&mut line)? > 0, "the nats-server closed the connection");
            if line.starts_with("-ERR") {
                bail!("nats-server: {line}");
            }
            if line.starts_with("MSG") {
                let length = line.split_whitespace().last().context("MSG says its length")?.parse()?;
                let mut answer = vec![0; length];
                lines.read_exact(&mut answer)?;
                let answer: Value = serde_json::from_slice(&answer)?;
                ensure!(answer["error"].is_null(), "{subject}: {}", answer["error"]);
                return Ok(answer);
            }
        }
    }

    /// Puts a message into a stream, as any client of the server can, and waits until it is stored.
    pub fn publish(&self, subject: &str, payload: &[u8]) -> Result<()> {
        let stream = TcpStream::connect(("127.0.0.1", self.port()))?;
        stream.set_read_timeout(Some(LIMIT))?;
        let mut out = stream.try_clone()?;
        write!(out, "CONNECT {{\"verbose\":false}}\r\nSUB answer 1\r\nPUB {subject} answer {}\r\n", payload.len())?;
        out.write_all(payload)?;
        out.write_all(b"\r\n")?;
        for line in BufReader::new(stream).lines() {
            let line = line?;
            ensure!(!line.starts_with("-ERR") && !line.contains("\"error\""), "nats-server: {line}");
            if line.contains("\"seq\"") {
                return Ok(());
            }
        }
        bail!("the nats-server closed the connection")
    }

    /// The stream whose name ends like that: `TAIL`, for one.
    pub fn stream(&self, ending: &str) -> Result<String> {
        let names = self.jetstream("STREAM.NAMES", &json!({}))?;
        let mut names = names["streams"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let lower = ending.to_lowercase();
        names
            .find(|name| name.to_lowercase().ends_with(&lower))
            .map(str::to_owned)
            .with_context(|| format!("no stream *{ending}"))
    }

    /// The sequence of a stream's last message.
    pub fn last(&self, stream: &str) -> Result<u64> {
        let info = self.jetstream(&format!("STREAM.INFO.{stream}"), &json!({}))?;
        info["state"]["last_seq"].as_u64().context("a state")
    }

    /// Deletes a stream.
    pub fn delete(&self, ending: &str) -> Result<()> {
        self.jetstream(&format!("STREAM.DELETE.{}", self.stream(ending)?), &json!({})).map(drop)
    }

    /// Changes one setting of a stream.
    pub fn reconfigure(&self, stream: &str, key: &str, value: Value) -> Result<()> {
        let info = self.jetstream(&format!("STREAM.INFO.{stream}"), &json!({}))?;
        let mut config = info["config"].clone();
        config[key] = value;
        self.jetstream(&format!("STREAM.UPDATE.{stream}"), &config).map(drop)
    }
}

//! Given rows that say what an HTTP server must answer: reconcile asks it, and what is answered otherwise is a finding.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use anyhow::{Result, anyhow, ensure};
use crossfade_tests::reconcile::{Reconciled, checks};
use crossfade_tests::{Port, World};
use serde_json::{Value, json};

/// A server that knows a few pages. It ends with the test process.
struct Server {
    address: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start() -> Result<Server> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = format!("http://{}", listener.local_addr()?);
        let asked = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that goes away is nothing to us.
                let _ = answer(&stream, &heard);
            }
        });
        Ok(Server { address, asked })
    }

    fn asked(&self) -> Result<Vec<String>> {
        Ok(self.asked.lock().map_err(|_| anyhow!("the server panicked"))?.clone())
    }
}

fn answer(mut stream: &TcpStream, heard: &Mutex<Vec<String>>) -> Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    heard.lock().map_err(|_| anyhow!("a test panicked"))?.push(request.clone());
    let path = request.split(' ').nth(1).unwrap_or_default();
    let head = match path.split_once("/to/") {
        Some(("/moved", place)) => format!("301 Moved Permanently\r\nLocation: https://new.example/{place}"),
        Some(("/found", place)) => format!("302 Found\r\nLocation: https://new.example/{place}"),
        _ if path == "/page" => "200 OK".to_owned(),
        _ => "404 Not Found".to_owned(),
    };
    write!(stream, "HTTP/1.1 {head}\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")?;
    Ok(())
}

async fn probe(world: &World, query: &str, more: &str) -> Result<Reconciled> {
    checks(world, &format!("[[check]]\nname = \"links\"\nprobe = \"http\"\nsql = \"{query}\"\n{more}")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_right_by_status_and_exact_location() -> Result<()> {
    let world = World::embedded()?;
    let server = Server::start()?;
    let url = &server.address;
    world.at_target(&format!(
        "CREATE TABLE links (id integer, url text, status integer, location text);
         INSERT INTO links VALUES (1, '{url}/moved/to/a', 301, 'https://new.example/a'), (2, '{url}/page', 200, null),
             (3, '{url}/moved/to/a?b=c', 301, 'https://new.example/a?b=c'), (4, '{url}/nowhere', 404, null)"
    ))?;
    let all = "SELECT url, status, location FROM public.links ORDER BY id";
    let right = probe(&world, all, "").await?;
    right.ended_with(0)?;
    let check = right.expect("links", "passed", 0)?;
    ensure!(check["probed"] == json!({ "pages": 4, "of": 4 }), "{check:#}");
    let mut asked = server.asked()?;
    asked.sort();
    let expected =
        ["GET /moved/to/a HTTP/1.1", "GET /moved/to/a?b=c HTTP/1.1", "GET /nowhere HTTP/1.1", "GET /page HTTP/1.1"];
    ensure!(asked == expected, "{asked:?}");

    let nobody = Port::reserve()?;
    world.at_target(&format!(
        "UPDATE links SET location = 'https://new.example/a/' WHERE id = 1; UPDATE links SET url = '{url}/gone' WHERE id = 2;
         UPDATE links SET url = '{url}/found/to/a' WHERE id = 3; UPDATE links SET url = '/page', status = 200 WHERE id = 4;
         INSERT INTO links VALUES (5, 'http://127.0.0.1:{}/', 200, null)",
        nobody.number()
    ))?;
    let wrong = probe(&world, all, "").await?;
    wrong.ended_with(1)?;
    let check = wrong.expect("links", "findings", 5)?;
    let got: Vec<&str> = check["samples"].as_array().into_iter().flatten().filter_map(|s| s["got"].as_str()).collect();
    ensure!(got[..3] == ["301 to https://new.example/a", "404", "302 to https://new.example/a"], "{check:#}");
    ensure!(got[3].contains("no http://") && got[4].contains("refused"), "{check:#}");
    ensure!(check["samples"][0]["row"]["location"] == "https://new.example/a/", "{check:#}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_rows_a_sample_is_fetched_and_always_the_same() -> Result<()> {
    let world = World::embedded()?;
    let server = Server::start()?;
    let query =
        format!("SELECT '{}/moved/to/' || i AS url, 301 AS status FROM generate_series(1, 1000) i", server.address);
    let mut runs: Vec<Vec<String>> = Vec::new();
    for _ in 0..2 {
        let fetched = server.asked()?.len();
        let passed = probe(&world, &query, "sample = 7").await?;
        passed.ended_with(0)?;
        ensure!(passed.check("links")?["probed"] == json!({ "pages": 7, "of": 1000 }), "{passed:?}");
        let mut run = server.asked()?.split_off(fetched);
        run.sort();
        runs.push(run);
    }
    ensure!(runs[0].len() == 7 && runs[0] == runs[1], "{runs:?}");
    let last = |request: &String| request.split(['/', ' ']).filter_map(|part| part.parse::<u32>().ok()).max();
    ensure!(runs[0].iter().filter_map(last).max() > Some(500), "only the beginning is looked at: {runs:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_names_no_page_is_told() -> Result<()> {
    let world = World::embedded()?;
    for (query, why) in [
        ("SELECT 'http://127.0.0.1/' AS url WHERE false", "nothing was checked"),
        ("SELECT 'http://127.0.0.1/' AS link", "no `url`"),
        ("SELECT 'http://127.0.0.1/' AS url, 'gone' AS status", "no `status`"),
    ] {
        let failed = probe(&world, query, "").await?;
        failed.ended_with(2)?;
        let error: &Value = &failed.expect("links", "failed", 0)?["error"];
        ensure!(error["why"].as_str().is_some_and(|told| told.contains(why)), "{error:#}");
    }
    Ok(())
}

//! The replication connection against a real server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use crossfade_pg as pg;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use model::{Cell, Code, Lsn, Problem};
use pg::pgoutput::{Decoder, PgOutput};
use pg::{Endpoint, Frame, PgError, Policy, ProtocolVersion, Replication, ReplicationStream, Session, policy};
use support::{Authority, Cluster, eventually};

const SLOT: &str = "slot_1";

/// A session, and a stream of everything that is committed from here on in tables that exist by now.
async fn begin(cluster: &Cluster, setup: &str) -> (Session, ReplicationStream) {
    let session = pg::connect(&cluster.tcp(), "test").await.unwrap();
    session.batch_execute(setup).await.unwrap();
    session.batch_execute("CREATE PUBLICATION \"Odd, 'name'\" FOR ALL TABLES").await.unwrap();
    let mut replication = Replication::connect(&cluster.tcp(), "tail").await.unwrap();
    let slot = replication.create_slot(SLOT, true).await.unwrap();
    assert_eq!(slot.name, SLOT);
    let stream = start(replication, slot.consistent_point).await.unwrap();
    (session, stream)
}

async fn start(replication: Replication, from: Lsn) -> Result<ReplicationStream, PgError> {
    let protocol = ProtocolVersion::for_server(replication.server_version()).unwrap();
    replication.start(SLOT, from, &["Odd, 'name'".to_owned()], protocol).await
}

/// Messages until one is the last.
async fn read_until(stream: &mut ReplicationStream, last: impl Fn(&PgOutput) -> bool) -> Vec<PgOutput> {
    let mut decoder = Decoder::default();
    let mut messages = Vec::new();
    loop {
        let frame =
            tokio::time::timeout(Duration::from_secs(60), stream.next()).await.expect("a frame in time").unwrap();
        if let Frame::Data { payload, .. } = frame {
            messages.push(decoder.decode(payload).unwrap());
            if messages.last().is_some_and(&last) {
                return messages;
            }
        }
    }
}

fn is_commit(message: &PgOutput) -> bool {
    matches!(message, PgOutput::Commit { .. } | PgOutput::StreamCommit { .. })
}

async fn text(session: &Session, sql: &str) -> String {
    session.query_one(sql, &[]).await.unwrap().get::<_, Option<String>>(0).unwrap_or_default()
}

async fn lsn(session: &Session, sql: &str) -> Lsn {
    text(session, &format!("SELECT ({sql})::text")).await.parse().unwrap_or(Lsn::ZERO)
}

#[tokio::test]
async fn it_identifies_the_system() {
    let cluster = Cluster::start(&[]);
    let session = pg::connect(&cluster.tcp(), "test").await.unwrap();
    let mut replication = Replication::connect(&cluster.tcp(), "tail").await.unwrap();
    let system = replication.identify().await.unwrap();
    assert_eq!(
        system.system_identifier,
        text(&session, "SELECT system_identifier::text FROM pg_control_system()").await
    );
    assert_eq!((system.timeline, system.database.as_str()), (1, "postgres"));
    assert!(system.xlogpos > Lsn::ZERO && system.xlogpos <= lsn(&session, "pg_current_wal_lsn()").await);
    assert_eq!(replication.server_version(), session.server_version());
}

#[tokio::test]
async fn values_are_printed_under_the_pinned_settings_whatever_the_database_says() {
    let cluster = Cluster::start(&[]);
    let setup = "
        ALTER DATABASE postgres SET intervalstyle = sql_standard;
        ALTER ROLE postgres SET datestyle = 'German, DMY';
        ALTER DATABASE postgres SET extra_float_digits = -10;
        ALTER ROLE postgres SET timezone = 'Asia/Kathmandu';
        ALTER ROLE postgres SET bytea_output = escape;
        CREATE TABLE public.t (i interval, d date, t timestamptz, f float8, b bytea)";
    let (session, mut stream) = begin(&cluster, setup).await;
    let row = "INSERT INTO public.t VALUES
        ('-1 day -2:03:04', '2026-02-01', '2026-02-01 12:00+00', 0.1::float8 + 0.2::float8, '\\xff00')";
    session.batch_execute(row).await.unwrap();
    let messages = read_until(&mut stream, is_commit).await;
    let insert = messages.iter().find_map(|message| match message {
        PgOutput::Insert { new, .. } => Some(new.clone()),
        _ => None,
    });
    let insert = insert.unwrap();
    let cells: Vec<&str> = insert.cells().map(|cell| std::str::from_utf8(cell.text().unwrap()).unwrap()).collect();
    assert_eq!(cells, ["-1 days -02:03:04", "2026-02-01", "2026-02-01 12:00:00+00", "0.30000000000000004", "\\xff00"]);
}

#[tokio::test]
async fn every_kind_of_change_arrives_in_order() {
    let cluster = Cluster::start(&[]);
    let setup = "
        CREATE TYPE public.mood AS ENUM ('fine');
        CREATE TABLE public.k (id int PRIMARY KEY, m public.mood, big text);
        ALTER TABLE public.k ALTER big SET STORAGE EXTERNAL;
        CREATE TABLE public.f (a int, b text);
        ALTER TABLE public.f REPLICA IDENTITY FULL";
    let (session, mut stream) = begin(&cluster, setup).await;
    session
        .batch_execute(
            "BEGIN; INSERT INTO public.k VALUES (1, 'fine', repeat('x', 10000)); UPDATE public.k SET id = 2; DELETE FROM public.k;
             INSERT INTO public.f VALUES (1, NULL); UPDATE public.f SET b = 'ü'; DELETE FROM public.f;
             TRUNCATE public.k, public.f RESTART IDENTITY CASCADE;
             SELECT pg_logical_emit_message(true, 'crossfade', 'hello'); COMMIT",
        )
        .await
        .unwrap();
    let messages = read_until(&mut stream, is_commit).await;
    let kinds: String = messages
        .iter()
        .map(|message| match message {
            PgOutput::Begin { .. } => 'B',
            PgOutput::Commit { .. } => 'C',
            PgOutput::Relation { .. } => 'R',
            PgOutput::Type { .. } => 'Y',
            PgOutput::Insert { .. } => 'I',
            PgOutput::Update { .. } => 'U',
            PgOutput::Delete { .. } => 'D',
            PgOutput::Truncate { .. } => 'T',
            PgOutput::Message { .. } => 'M',
            other => panic!("{other:?}"),
        })
        .collect();
    // A TRUNCATE invalidates what the server has told of a table, so it tells it again.
    assert_eq!(kinds, "BYRIUDRIUDYRRTMC");
    let (PgOutput::Begin { final_lsn, commit_time, .. }, PgOutput::Commit { commit_lsn, end_lsn, commit_time: again }) =
        (&messages[0], &messages[15])
    else {
        panic!("{messages:?}")
    };
    assert_eq!((final_lsn, commit_time), (commit_lsn, again));
    assert!(end_lsn > commit_lsn);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros() as i64;
    assert!((now - commit_time).abs() < 60_000_000, "the commit was a moment ago: {commit_time}");
    let PgOutput::Relation { xid: None, relation } = &messages[2] else { panic!("{:?}", messages[2]) };
    assert_eq!(relation.table.to_string(), "public.k");
    assert_eq!(relation.identity.letter(), 'd');
    assert_eq!(relation.columns.iter().map(|column| column.key).collect::<Vec<_>>(), [true, false, false]);
    // The key changed, so the old one is there; the large value did not, so it is not.
    let PgOutput::Update { old: Some(model::Old::Key(old)), new, .. } = &messages[4] else {
        panic!("{:?}", messages[4])
    };
    assert_eq!(old.cells().next(), Some(Cell::Text(b"1")));
    assert_eq!(new.cells().collect::<Vec<_>>(), [Cell::Text(b"2"), Cell::Text(b"fine"), Cell::Unchanged]);
    let PgOutput::Update { old: Some(model::Old::Full(old)), .. } = &messages[8] else { panic!("{:?}", messages[8]) };
    assert_eq!(old.cells().collect::<Vec<_>>(), [Cell::Text(b"1"), Cell::Null]);
    let PgOutput::Truncate { relations, cascade: true, restart_identity: true, .. } = &messages[13] else {
        panic!("{:?}", messages[13])
    };
    assert_eq!(relations.len(), 2);
    let PgOutput::Message { transactional: true, prefix, content, xid: None, .. } = &messages[14] else {
        panic!("{:?}", messages[14])
    };
    assert_eq!((prefix.as_str(), &content[..]), ("crossfade", &b"hello"[..]));
}

#[tokio::test]
async fn logical_messages_arrive_without_any_table_and_from_a_read_only_transaction() {
    let cluster = Cluster::start(&[]);
    let (_session, mut stream) = begin(&cluster, "SELECT").await;
    let reader = pg::connect_read_only(&cluster.tcp(), "marker").await.unwrap();
    reader.batch_execute("SELECT pg_logical_emit_message(true, 'crossfade', 'a marker')").await.unwrap();
    let messages = read_until(&mut stream, is_commit).await;
    assert!(matches!(&messages[1], PgOutput::Message { content, .. } if &content[..] == b"a marker"), "{messages:?}");
}

#[tokio::test]
async fn a_transaction_in_progress_is_streamed_with_its_subtransactions() {
    let cluster = Cluster::start(&["logical_decoding_work_mem = '64kB'"]);
    let (session, mut stream) = begin(&cluster, "CREATE TABLE public.t (id int PRIMARY KEY, b text)").await;
    let rows = |from: i32| {
        format!("INSERT INTO public.t SELECT i, repeat('x', 100) FROM generate_series({from}, {from} + 4999) i")
    };
    session
        .batch_execute(&format!(
            "BEGIN; {}; SAVEPOINT a; {}; ROLLBACK TO a; SAVEPOINT b; {};",
            rows(0),
            rows(10_000),
            rows(20_000)
        ))
        .await
        .unwrap();
    let top: u32 = text(&session, "SELECT pg_current_xact_id()::xid::text").await.parse().unwrap();
    // It arrives before it is committed.
    let mut messages = read_until(&mut stream, |message| matches!(message, PgOutput::StreamStop)).await;
    session.batch_execute("COMMIT").await.unwrap();
    messages.extend(read_until(&mut stream, is_commit).await);

    let mut aborted = HashSet::new();
    let mut inserts = Vec::new();
    let mut subtransactions = HashSet::new();
    let mut first = Vec::new();
    for message in &messages {
        match message {
            PgOutput::StreamStart { xid, first: is_first } => {
                assert_eq!(*xid, top);
                first.push(*is_first);
            }
            PgOutput::StreamAbort { xid, subxid } => {
                assert_eq!(*xid, top);
                aborted.insert(*subxid);
            }
            PgOutput::Insert { xid, new, .. } => {
                let xid = xid.expect("a streamed change says whose it is");
                subtransactions.insert(xid);
                let id: i32 =
                    std::str::from_utf8(new.cells().next().unwrap().text().unwrap()).unwrap().parse().unwrap();
                inserts.push((xid, id));
            }
            _ => {}
        }
    }
    assert!(first.len() > 2 && first[0] && first[1..].iter().all(|first| !first), "{first:?}");
    assert_eq!(aborted.len(), 1);
    assert!(subtransactions.contains(&top) && subtransactions.len() == 3, "{subtransactions:?}");
    inserts.retain(|(xid, _)| !aborted.contains(xid));
    let kept: Vec<i32> = inserts.iter().map(|(_, id)| *id).collect();
    assert_eq!(kept, (0..5_000).chain(20_000..25_000).collect::<Vec<_>>());
    assert!(matches!(messages.last(), Some(PgOutput::StreamCommit { xid, .. }) if *xid == top));
}

#[tokio::test]
async fn the_connection_survives_a_reader_that_is_slower_than_wal_sender_timeout() {
    let cluster = Cluster::start(&["wal_sender_timeout = '2s'"]);
    let (session, mut stream) = begin(&cluster, "CREATE TABLE public.t (id int, b text)").await;
    let sender = "SELECT backend_start::text FROM pg_stat_activity WHERE application_name = 'crossfade tail'";
    let before = text(&session, sender).await;
    // Twice and more of what channel and sockets hold.
    session
        .batch_execute("INSERT INTO public.t SELECT i, repeat('x', 1000) FROM generate_series(1, 80000) i")
        .await
        .unwrap();
    let end = lsn(&session, "pg_current_wal_lsn()").await;
    let stalled = Instant::now();
    while stalled.elapsed() < Duration::from_secs(6) {
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(text(&session, sender).await, before, "it is the same connection");
    }
    let replied = "SELECT (now() - reply_time < interval '1.5 s')::text FROM pg_stat_replication";
    assert_eq!(text(&session, replied).await, "true", "we have reported all the time");
    let held = format!("SELECT (sent_lsn < '{end}')::text FROM pg_stat_replication");
    assert_eq!(text(&session, &held).await, "true", "the server waits for us");
    let messages = read_until(&mut stream, is_commit).await;
    assert_eq!(messages.iter().filter(|message| matches!(message, PgOutput::Insert { .. })).count(), 80_000);
    assert_eq!(text(&session, sender).await, before, "it is the same connection");
}

#[tokio::test]
async fn an_idle_reader_that_reports_nothing_is_kept_too() {
    let cluster = Cluster::start(&["wal_sender_timeout = '1s'"]);
    let (session, mut stream) = begin(&cluster, "SELECT").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    session.batch_execute("SELECT pg_logical_emit_message(true, 'crossfade', 'still there?')").await.unwrap();
    read_until(&mut stream, is_commit).await;
}

#[tokio::test]
async fn a_value_larger_than_the_channel_passes() {
    let cluster = Cluster::start(&[]);
    let (session, mut stream) = begin(&cluster, "CREATE TABLE public.t (b text)").await;
    session.batch_execute("INSERT INTO public.t VALUES (repeat('x', 40000000)), ('small')").await.unwrap();
    let messages = read_until(&mut stream, is_commit).await;
    let lengths: Vec<usize> = messages
        .iter()
        .filter_map(|message| match message {
            PgOutput::Insert { new, .. } => Some(new.bytes().len() - 7),
            _ => None,
        })
        .collect();
    assert_eq!(lengths, [40_000_000, 5]);
}

#[tokio::test]
async fn a_large_value_of_no_interest_is_passed_over_and_what_is_behind_it_arrives() {
    let cluster = Cluster::start(&[]);
    let (session, mut stream) = begin(&cluster, "CREATE TABLE public.t (b text)").await;
    let insert = "INSERT INTO public.t VALUES ('first'), (repeat('x', 40000000)), (repeat('y', 50000000)), ('last')";
    let values = |messages: &[PgOutput]| -> Vec<String> {
        let value = |message: &PgOutput| match message {
            PgOutput::Insert { new, .. } => {
                let text = String::from_utf8(new.cells().next()?.text()?.to_vec()).unwrap();
                Some(if text.len() < 10 { text } else { format!("{} {}", &text[..1], text.len()) })
            }
            _ => None,
        };
        messages.iter().filter_map(value).collect()
    };
    for of_no_interest in [true, false, true] {
        session.batch_execute(insert).await.unwrap();
        read_until(&mut stream, |message| matches!(message, PgOutput::Begin { .. })).await;
        stream.pass_over(of_no_interest);
        let messages = read_until(&mut stream, is_commit).await;
        match of_no_interest {
            true => assert_eq!(values(&messages), ["first", "last"]),
            false => assert_eq!(values(&messages), ["first", "x 40000000", "y 50000000", "last"]),
        }
        stream.pass_over(false);
    }
}

#[tokio::test]
async fn write_and_flush_are_reported_apart_and_nothing_is_confirmed_unasked() {
    let cluster = Cluster::start(&[]);
    let (session, mut stream) = begin(&cluster, "CREATE TABLE public.t (id int)").await;
    let confirmed = "SELECT confirmed_flush_lsn FROM pg_replication_slots";
    let at_first = lsn(&session, confirmed).await;
    let mut ends = Vec::new();
    for id in 0..2 {
        session.batch_execute(&format!("INSERT INTO public.t VALUES ({id})")).await.unwrap();
        match read_until(&mut stream, is_commit).await.last() {
            Some(PgOutput::Commit { end_lsn, .. }) => ends.push(*end_lsn),
            other => panic!("{other:?}"),
        }
    }
    stream.status(Lsn::ZERO, Lsn::ZERO, true).await.unwrap();
    while !matches!(stream.next().await.unwrap(), Frame::Keepalive { .. }) {}
    assert_eq!(lsn(&session, confirmed).await, at_first);

    stream.status(ends[1], ends[0], false).await.unwrap();
    let positions = "SELECT write_lsn || ' ' || flush_lsn || ' ' || replay_lsn FROM pg_stat_replication";
    let wanted = format!("{} {} {}", ends[1], ends[0], ends[0]);
    eventually("both positions are there", async || text(&session, positions).await == wanted).await;
    assert_eq!(lsn(&session, confirmed).await, ends[0]);

    // Backwards is not passed on.
    stream.status(ends[0], at_first, false).await.unwrap();
    stream.close().await;
    assert_eq!(lsn(&session, confirmed).await, ends[0]);
}

#[tokio::test]
async fn a_closed_stream_has_let_go_of_the_slot_and_the_next_one_goes_on() {
    let cluster = Cluster::start(&[]);
    let (session, mut stream) = begin(&cluster, "CREATE TABLE public.t (id int)").await;
    session.batch_execute("INSERT INTO public.t VALUES (1)").await.unwrap();
    let Some(PgOutput::Commit { end_lsn, .. }) = read_until(&mut stream, is_commit).await.pop() else { panic!() };

    let second = Replication::connect(&cluster.tcp(), "second").await.unwrap();
    let error = start(second, Lsn::ZERO).await.map(drop).unwrap_err();
    assert_eq!((error.sqlstate(), policy(&error)), (Some("55006"), Policy::Retry), "{error}");

    stream.status(end_lsn, end_lsn, false).await.unwrap();
    stream.close().await;
    assert_eq!(text(&session, "SELECT active::text FROM pg_replication_slots").await, "false");

    session.batch_execute("INSERT INTO public.t VALUES (2)").await.unwrap();
    let second = Replication::connect(&cluster.tcp(), "second").await.unwrap();
    let mut stream = start(second, Lsn::ZERO).await.unwrap();
    let messages = read_until(&mut stream, is_commit).await;
    let inserts = messages.iter().filter(|message| matches!(message, PgOutput::Insert { .. })).count();
    assert_eq!(inserts, 1, "what was confirmed does not come again");
    drop(stream);
    eventually("the slot is free", async || {
        text(&session, "SELECT active::text FROM pg_replication_slots").await == "false"
    })
    .await;
}

#[tokio::test]
async fn a_server_that_stops_does_not_wait_for_us_and_is_worth_another_try() {
    let cluster = Cluster::start(&[]);
    let (session, mut stream) = begin(&cluster, "CREATE TABLE public.t (id int)").await;
    // Read, but never confirmed: a log that confirms late looks like this all the time.
    session.batch_execute("INSERT INTO public.t VALUES (1)").await.unwrap();
    read_until(&mut stream, is_commit).await;
    let reading = tokio::spawn(async move {
        loop {
            if let Err(error) = stream.next().await {
                return error;
            }
        }
    });
    let start = Instant::now();
    let cluster = tokio::task::spawn_blocking(move || {
        cluster.control(&["-m", "fast", "-w", "stop"]);
        cluster
    });
    let cluster = cluster.await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert_eq!(policy(&reading.await.unwrap()), Policy::Retry);
    drop(cluster);
}

#[tokio::test]
async fn what_a_slot_cannot_do_is_told() {
    let cluster = Cluster::start(&["max_replication_slots = 1"]);
    let (_session, stream) = begin(&cluster, "SELECT").await;
    let mut replication = Replication::connect(&cluster.tcp(), "second").await.unwrap();
    let problem = Problem::from(replication.create_slot("another", false).await.unwrap_err());
    assert_eq!(problem.code, Code::SlotsExhausted, "{problem}");
    // A refusal leaves the connection usable.
    replication.identify().await.unwrap();
    let protocol = ProtocolVersion::V2;
    let problem = Problem::from(replication.start("missing", Lsn::ZERO, &[], protocol).await.map(drop).unwrap_err());
    assert_eq!(problem.code, Code::SlotLost, "{problem}");
    assert!(problem.what.contains("missing"), "{problem}");
    drop(stream);

    let cluster = Cluster::start(&["wal_level = replica"]);
    let mut replication = Replication::connect(&cluster.tcp(), "tail").await.unwrap();
    let problem = Problem::from(replication.create_slot(SLOT, false).await.unwrap_err());
    assert_eq!(problem.code, Code::WalLevel, "{problem}");

    let session = pg::connect(&cluster.tcp(), "test").await.unwrap();
    session.batch_execute("CREATE ROLE nobody LOGIN").await.unwrap();
    let nobody = Replication::connect(&cluster.endpoint("nobody", "127.0.0.1", "postgres"), "tail").await;
    let problem = Problem::from(nobody.map(drop).unwrap_err());
    assert!([Code::PrivilegeMissing, Code::AuthenticationFailed].contains(&problem.code), "{problem}");
}

#[tokio::test]
async fn data_passes_encrypted_too() {
    let authority = Authority::new("ours");
    let files = tempfile::tempdir().unwrap();
    let ca = authority.write(files.path(), "ca.crt");
    let tls = ["ssl = on", "ssl_cert_file = 'server.crt'", "ssl_key_file = 'server.key'"];
    let cluster = Cluster::start_with(&tls, "hostssl all all 127.0.0.1/32 trust\n", |data| {
        authority.issue(data, "server", "server", &["127.0.0.1"]);
    });
    let session = pg::connect(&cluster.tcp(), "test").await.unwrap();
    let setup = "CREATE TABLE public.t (id int, b text); CREATE PUBLICATION \"Odd, 'name'\" FOR ALL TABLES";
    session.batch_execute(setup).await.unwrap();
    let verified = format!("postgres?sslmode=verify-full&sslrootcert={}", ca.display());
    let mut replication =
        Replication::connect(&cluster.endpoint("postgres", "127.0.0.1", &verified), "tail").await.unwrap();
    let point = replication.create_slot(SLOT, false).await.unwrap().consistent_point;
    let mut stream = start(replication, point).await.unwrap();
    let rows = "INSERT INTO public.t SELECT i, repeat('x', i % 3000) FROM generate_series(1, 20000) i";
    session.batch_execute(rows).await.unwrap();
    let messages = read_until(&mut stream, is_commit).await;
    assert_eq!(messages.iter().filter(|message| matches!(message, PgOutput::Insert { .. })).count(), 20_000);
    stream.close().await;
}

/// Not a test of speed, but of there being no gross waste: it took well under a second when it was written.
#[tokio::test]
async fn many_small_changes_pass_quickly() {
    let cluster = Cluster::start(&[]);
    let (session, mut stream) = begin(&cluster, "CREATE TABLE public.t (id int PRIMARY KEY, b int)").await;
    session.batch_execute("INSERT INTO public.t SELECT i, i FROM generate_series(1, 300000) i").await.unwrap();
    let start = Instant::now();
    let messages = read_until(&mut stream, is_commit).await;
    println!("{} frames in {:?}", messages.len(), start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(15));
}

#[test]
fn a_password_is_in_no_debug_output() {
    let endpoint = Endpoint::parse("postgres://u:hidden@h/d").unwrap();
    assert!(!format!("{endpoint:?}").contains("hidden"));
}

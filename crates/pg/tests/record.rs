//! Records the fuzzing corpus from a real server. It does so only when asked to, as the recording is kept:
//! `CROSSFADE_RECORD=1 cargo test -p crossfade-pg --test record`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::HashMap;
use std::path::Path;

use crossfade_pg::pgoutput::{Decoder, PgOutput};
use crossfade_pg::{Frame, ProtocolVersion, Replication, connect};
use support::Cluster;

/// Of each kind, inside and outside of streams.
const EXAMPLES: usize = 4;

const TABLES: &str = "
    CREATE TYPE public.mood AS ENUM ('fine', 'ärgerlich');
    CREATE TABLE public.k (id int PRIMARY KEY, m public.mood, big text, n numeric(9,2));
    ALTER TABLE public.k ALTER big SET STORAGE EXTERNAL;
    CREATE TABLE public.\"Full\" (a int, b text, c int GENERATED ALWAYS AS (a + 1) STORED);
    ALTER TABLE public.\"Full\" REPLICA IDENTITY FULL;
    CREATE TABLE public.nothing (a int);
    CREATE PUBLICATION p FOR ALL TABLES;
    SELECT pg_replication_origin_create('elsewhere')";

const CHANGES: &str = "
    INSERT INTO public.k VALUES (1, 'ärgerlich', repeat('x', 5000), 1.5), (2, NULL, '', -3);
    UPDATE public.k SET m = 'fine' WHERE id < 3; UPDATE public.k SET id = id + 10 WHERE id < 3;
    DELETE FROM public.k WHERE id < 100;
    INSERT INTO public.\"Full\" VALUES (1, NULL), (2, 'zwei'); UPDATE public.\"Full\" SET b = 'ü'; DELETE FROM public.\"Full\";
    INSERT INTO public.nothing VALUES (1);
    SELECT pg_logical_emit_message(true, 'crossfade', 'content');
    SELECT pg_logical_emit_message(false, 'other', '');
    TRUNCATE public.k, public.nothing; TRUNCATE public.\"Full\" RESTART IDENTITY CASCADE;";

#[tokio::test]
async fn record() {
    if std::env::var_os("CROSSFADE_RECORD").is_none() {
        return;
    }
    let cluster = Cluster::start(&["logical_decoding_work_mem = '64kB'"]);
    let session = connect(&cluster.tcp(), "test").await.unwrap();
    session.batch_execute(TABLES).await.unwrap();
    let mut replication = Replication::connect(&cluster.tcp(), "tail").await.unwrap();
    let point = replication.create_slot("recorder", false).await.unwrap().consistent_point;
    let mut stream = replication.start("recorder", point, &["p".to_owned()], ProtocolVersion::V2).await.unwrap();

    session.batch_execute(&format!("BEGIN; {CHANGES} COMMIT")).await.unwrap();
    let fill = |from| {
        format!("INSERT INTO public.k SELECT i, 'fine', repeat('y', 90) FROM generate_series({from}, {from} + 999) i")
    };
    session
        .batch_execute(&format!(
            "BEGIN; {}; {CHANGES} SAVEPOINT a; {}; ROLLBACK TO a; SAVEPOINT b; {}; {CHANGES} {}; COMMIT",
            fill(1000),
            fill(3000),
            fill(5000),
            fill(7000)
        ))
        .await
        .unwrap();
    session.batch_execute(&format!("BEGIN; {}; ROLLBACK", fill(20000))).await.unwrap();
    session
        .batch_execute(
            "SELECT pg_replication_origin_session_setup('elsewhere');
             BEGIN; SELECT pg_replication_origin_xact_setup('7/8', now()); INSERT INTO public.nothing VALUES (2); COMMIT;
             SELECT pg_logical_emit_message(true, 'end', '')",
        )
        .await
        .unwrap();

    let folder = Path::new("fuzz/corpus/pgoutput");
    std::fs::remove_dir_all(folder).unwrap();
    std::fs::create_dir_all(folder).unwrap();
    let (mut decoder, mut in_stream, mut seen) = (Decoder::default(), false, HashMap::new());
    loop {
        let Frame::Data { payload, .. } = stream.next().await.unwrap() else { continue };
        let message = decoder.decode(payload.clone()).unwrap();
        let kind = format!("{message:?}").split([' ', '(']).next().unwrap().to_lowercase();
        let place = if in_stream { "streamed_" } else { "" };
        let count: &mut usize = seen.entry((in_stream, kind.clone())).or_default();
        *count += 1;
        if *count <= EXAMPLES {
            let bytes = [&[u8::from(in_stream)], &payload[..]].concat();
            std::fs::write(folder.join(format!("{place}{kind}_{count}")), bytes).unwrap();
        }
        match message {
            PgOutput::StreamStart { .. } => in_stream = true,
            PgOutput::StreamStop => in_stream = false,
            PgOutput::Message { prefix, .. } if prefix == "end" => break,
            _ => {}
        }
    }
}

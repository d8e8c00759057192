//! What a session is like once it is there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use crossfade_pg as pg;

use pg::{Policy, policy};
use support::{Cluster, eventually};

/// Defaults that print values in other ways, or end what we do.
const ADVERSE: &[(&str, &str)] = &[
    ("datestyle", "'German, DMY'"),
    ("intervalstyle", "sql_standard"),
    ("timezone", "'Asia/Kathmandu'"),
    ("extra_float_digits", "0"),
    ("bytea_output", "escape"),
    ("search_path", "public"),
    ("row_security", "on"),
    ("statement_timeout", "'10s'"),
    ("lock_timeout", "'10s'"),
    ("idle_in_transaction_session_timeout", "'10s'"),
];

#[tokio::test]
async fn pinned_settings_win_over_those_of_database_and_role() {
    let cluster = Cluster::start(&[]);
    let admin = pg::connect(&cluster.admin(), "test").await.unwrap();
    for (name, value) in ADVERSE {
        let of = if name.len() % 2 == 0 { "DATABASE" } else { "ROLE" };
        admin.batch_execute(&format!("ALTER {of} postgres SET {name} = {value}")).await.unwrap();
    }
    let endpoint = cluster.endpoint("postgres", "127.0.0.1", "postgres?options=-c%20datestyle%3DSQL");
    for session in
        [pg::connect(&endpoint, "one").await.unwrap(), pg::connect_read_only(&endpoint, "two").await.unwrap()]
    {
        for (name, pinned) in [
            ("datestyle", "ISO"),
            ("intervalstyle", "postgres"),
            ("timezone", "UTC"),
            ("extra_float_digits", "3"),
            ("bytea_output", "hex"),
            ("lc_monetary", "C"),
            ("search_path", ""),
            ("row_security", "off"),
            ("client_encoding", "UTF8"),
            ("standard_conforming_strings", "on"),
            ("statement_timeout", "0"),
            ("lock_timeout", "0"),
            ("idle_in_transaction_session_timeout", "0"),
            ("tcp_keepalives_idle", "30"),
            ("tcp_keepalives_interval", "10"),
            ("tcp_keepalives_count", "3"),
        ] {
            let value: String = session.query_one("SELECT current_setting($1)", &[&name]).await.unwrap().get(0);
            assert_eq!(value.split(',').next(), Some(pinned), "{name}");
        }
    }
}

#[tokio::test]
async fn a_read_only_session_cannot_write_and_says_who_it_is() {
    let cluster = Cluster::start(&[]);
    let session = pg::connect_read_only(&cluster.tcp(), "copy").await.unwrap();
    let error = session.batch_execute("CREATE TABLE public.t ()").await.unwrap_err();
    assert_eq!(pg::PgError::from(error).sqlstate(), Some("25006"));
    let name: String = session.query_one("SELECT current_setting('application_name')", &[]).await.unwrap().get(0);
    assert_eq!(name, "crossfade copy");
    assert!(session.server_version() >= 140_000);
}

#[tokio::test]
async fn notifications_arrive_and_end_with_the_connection() {
    let cluster = Cluster::start(&[]);
    let mut listener = pg::connect(&cluster.tcp(), "listener").await.unwrap();
    listener.batch_execute("LISTEN crossfade").await.unwrap();
    let speaker = pg::connect(&cluster.tcp(), "speaker").await.unwrap();
    speaker.batch_execute("NOTIFY crossfade, 'here'").await.unwrap();
    assert_eq!(listener.notification().await.unwrap().payload(), "here");
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'crossfade listener'";
    speaker.batch_execute(end).await.unwrap();
    let error = listener.notification().await.unwrap_err();
    assert_eq!(policy(&error), Policy::Retry);
}

#[tokio::test]
async fn a_dropped_session_ends_at_the_server_even_in_the_middle_of_a_statement() {
    let cluster = Cluster::start(&[]);
    let watcher = pg::connect(&cluster.tcp(), "watcher").await.unwrap();
    let sessions = async || -> i64 {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'crossfade sleeper'";
        watcher.query_one(sql, &[]).await.unwrap().get(0)
    };
    let sleeper = pg::connect(&cluster.tcp(), "sleeper").await.unwrap();
    let asleep =
        tokio::time::timeout(std::time::Duration::from_millis(200), sleeper.batch_execute("SELECT pg_sleep(600)"));
    assert!(asleep.await.is_err());
    assert_eq!(sessions().await, 1);
    drop(sleeper);
    eventually("the session is gone", async || sessions().await == 0).await;
}

#[tokio::test]
async fn a_statement_is_cancelled_from_elsewhere() {
    let cluster = Cluster::start(&[]);
    let session = pg::connect(&cluster.tcp(), "sleeper").await.unwrap();
    let canceller = session.canceller();
    let cancel = async {
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        canceller.cancel().await.unwrap();
    };
    let (slept, ()) = tokio::join!(session.batch_execute("SELECT pg_sleep(600)"), cancel);
    assert_eq!(pg::PgError::from(slept.unwrap_err()).sqlstate(), Some("57014"));
}

#[tokio::test]
async fn a_refused_row_names_table_and_constraint() {
    let cluster = Cluster::start(&[]);
    let session = pg::connect(&cluster.tcp(), "test").await.unwrap();
    session.batch_execute("CREATE TABLE public.t (id int CONSTRAINT positive CHECK (id > 0))").await.unwrap();
    let refused = session.batch_execute("INSERT INTO public.t VALUES (-1)").await.unwrap_err();
    let error = pg::PgError::from(refused).at(session.place());
    assert_eq!(policy(&error), Policy::Constraint);
    let problem = model::Problem::from(error);
    assert_eq!(problem.code, model::Code::RowRefused);
    assert!(problem.why.contains("table public.t, constraint positive"), "{problem}");
    assert!(problem.what.ends_with(&format!("{}/postgres", cluster.port)), "{problem}");
}

/// An application's TRUNCATE of a root locks its partitions in the other order; whoever is asked for the tables again and again must not meet it.
#[tokio::test]
async fn the_list_of_tables_keeps_no_lock_on_any() {
    let cluster = Cluster::start(&[]);
    let session = pg::connect(&cluster.admin(), "test").await.unwrap();
    session
        .batch_execute(
            "CREATE TABLE public.t (id integer PRIMARY KEY, n integer CHECK (n > 0), other integer REFERENCES public.t);
             CREATE TABLE public.r (at integer) PARTITION BY RANGE (at); CREATE TABLE public.leaf PARTITION OF public.r FOR VALUES FROM (1) TO (5)",
        )
        .await
        .unwrap();
    session.batch_execute("BEGIN").await.unwrap();
    let tables = pg::catalog::tables(&session).await.unwrap();
    assert_eq!(tables.iter().map(|table| table.name.name.as_str()).collect::<Vec<_>>(), ["leaf", "t"]);
    let locked = "SELECT relation::regclass::text FROM pg_locks WHERE relation >= 16384 AND pid = pg_backend_pid()";
    let locks: Vec<String> = session.query(locked, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(locks, Vec::<String>::new());
    let bound = pg::catalog::partition_bound(&session, &tables[0].name).await.unwrap();
    assert_eq!(bound, "((at IS NOT NULL) AND (at >= 1) AND (at < 5))");
}

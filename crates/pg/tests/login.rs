//! Every way in, by both kinds of connection, and the words when there is none.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use crossfade_pg as pg;

use std::time::{Duration, Instant};

use model::{Code, Problem};
use pg::{Endpoint, PgError, Policy, Replication, policy};
use support::{Authority, Cluster};

/// Logs in both ways; they must agree.
async fn login(endpoint: &Endpoint) -> Result<(), Problem> {
    let session = pg::connect(endpoint, "test").await.map(drop).map_err(Problem::from);
    let replication = Replication::connect(endpoint, "test").await.map(drop).map_err(Problem::from);
    match (session, replication) {
        (Ok(()), Ok(())) => Ok(()),
        (Err(one), Err(other)) => {
            assert_eq!(one.code, other.code, "{one} / {other}");
            Err(other)
        }
        (one, other) => panic!("a session says {one:?}, the replication connection {other:?}"),
    }
}

const ROLES: &str = "
    CREATE ROLE trusted LOGIN REPLICATION;
    SET password_encryption = 'md5';
    CREATE ROLE old LOGIN REPLICATION PASSWORD 'p:w';
    SET password_encryption = 'scram-sha-256';
    CREATE ROLE modern LOGIN REPLICATION PASSWORD 'p:w';
    CREATE ROLE plain LOGIN REPLICATION PASSWORD 'p:w';
    CREATE ROLE certified LOGIN REPLICATION";

const HBA: &str = "
host all trusted 127.0.0.1/32 trust
host all old 127.0.0.1/32 md5
host all modern 127.0.0.1/32 scram-sha-256
host all plain 127.0.0.1/32 password
hostssl all certified 127.0.0.1/32 cert
";

#[tokio::test]
async fn trust_md5_cleartext_and_scram_let_in() {
    let cluster = Cluster::start_with(&[], HBA, |_| {});
    pg::connect(&cluster.admin(), "test").await.unwrap().batch_execute(ROLES).await.unwrap();
    for who in ["trusted", "old:p%3Aw", "modern:p%3Aw", "plain:p%3Aw"] {
        login(&cluster.endpoint(who, "127.0.0.1", "postgres")).await.unwrap_or_else(|error| panic!("{who}: {error}"));
    }
    for who in ["old", "modern", "plain"] {
        let wrong = login(&cluster.endpoint(&format!("{who}:guess"), "127.0.0.1", "postgres")).await.unwrap_err();
        assert_eq!(wrong.code, Code::AuthenticationFailed, "{who}");
        assert!(wrong.to_string().contains("password is wrong"), "{wrong}");
        assert!(!wrong.to_string().contains("guess"), "{wrong}");
        let none = login(&cluster.endpoint(who, "127.0.0.1", "postgres")).await.unwrap_err();
        assert_eq!(none.code, Code::AuthenticationFailed, "{who}");
        assert!(none.why.contains("password"), "{none}");
    }
    let stranger = login(&cluster.endpoint("stranger", "127.0.0.1", "postgres")).await.unwrap_err();
    assert_eq!(stranger.code, Code::AuthenticationFailed);
    assert!(stranger.to_string().contains("pg_hba.conf"), "{stranger}");
    let nowhere = login(&cluster.endpoint("trusted", "127.0.0.1", "nowhere")).await.unwrap_err();
    assert_eq!(nowhere.code, Code::ConnectionFailed);
    assert!(nowhere.why.contains("\"nowhere\" does not exist"), "{nowhere}");
    let plain = login(&cluster.endpoint("trusted", "127.0.0.1", "postgres?sslmode=require")).await.unwrap_err();
    assert_eq!(plain.code, Code::TlsFailed, "{plain}");
}

#[tokio::test]
async fn tls_binds_scram_and_takes_client_certificates() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let files = tempfile::tempdir().unwrap();
    let folder = files.path();
    let ca = ours.write(folder, "ca.crt");
    let wrong_ca = theirs.write(folder, "wrong.crt");
    let good = ours.issue(folder, "client", "certified", &[]);
    let bad = theirs.issue(folder, "forged", "certified", &[]);
    let tls = ["ssl = on", "ssl_cert_file = 'server.crt'", "ssl_key_file = 'server.key'", "ssl_ca_file = 'ca.crt'"];
    let cluster = Cluster::start_with(&tls, HBA, |data| {
        ours.write(data, "ca.crt");
        ours.issue(data, "server", "server", &["127.0.0.1"]);
    });
    pg::connect(&cluster.admin(), "test").await.unwrap().batch_execute(ROLES).await.unwrap();
    let at = |who: &str, host: &str, options: String| cluster.endpoint(who, host, &format!("postgres?{options}"));
    let trusting = |mode: &str| format!("sslmode={mode}&sslrootcert={}", ca.display());

    // Bound to the channel: the server offers it, and we refuse to do without.
    let bound = format!("{}&channel_binding=require", trusting("verify-full"));
    login(&at("modern:p%3Aw", "127.0.0.1", bound.clone())).await.unwrap();
    let unbound = login(&at("modern:p%3Aw", "127.0.0.1", "sslmode=disable&channel_binding=require".into())).await;
    assert_eq!(unbound.unwrap_err().code, Code::AuthenticationFailed);
    assert_eq!(login(&at("old:p%3Aw", "127.0.0.1", bound)).await.unwrap_err().code, Code::AuthenticationFailed);
    let encrypted = pg::connect(&at("modern:p%3Aw", "127.0.0.1", trusting("verify-ca")), "test").await.unwrap();
    let row = encrypted.query_one("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", &[]).await.unwrap();
    assert!(row.get::<_, bool>(0));

    // The name counts for verify-full alone; nothing does for require without a CA file, nor for prefer.
    login(&at("trusted", "localhost", trusting("verify-ca"))).await.unwrap();
    login(&at("trusted", "localhost", trusting("require"))).await.unwrap();
    login(&at("trusted", "127.0.0.1", "sslmode=require".into())).await.unwrap();
    login(&at("trusted", "127.0.0.1", "sslmode=prefer".into())).await.unwrap();
    let name = login(&at("trusted", "localhost", trusting("verify-full"))).await.unwrap_err();
    assert_eq!(name.code, Code::TlsFailed);
    assert!(name.why.contains("localhost"), "{name}");

    // Wrong CA and wrong password are told apart.
    for mode in ["require", "verify-ca", "verify-full"] {
        let options = format!("sslmode={mode}&sslrootcert={}", wrong_ca.display());
        let wrong = login(&at("modern:p%3Aw", "127.0.0.1", options)).await.unwrap_err();
        assert_eq!(wrong.code, Code::TlsFailed);
        assert!(wrong.to_string().contains("not signed by an authority that is trusted"), "{wrong}");
    }
    let wrong = login(&at("modern:guess", "127.0.0.1", trusting("verify-full"))).await.unwrap_err();
    assert_eq!(wrong.code, Code::AuthenticationFailed);
    assert!(wrong.to_string().contains("password is wrong"), "{wrong}");
    let missing =
        login(&at("trusted", "127.0.0.1", "sslmode=verify-ca&sslrootcert=/nowhere".into())).await.unwrap_err();
    assert_eq!(missing.code, Code::TlsFailed);
    assert!(missing.why.contains("/nowhere"), "{missing}");

    // Client certificates.
    let with = |files: &(std::path::PathBuf, std::path::PathBuf)| {
        format!("{}&sslcert={}&sslkey={}", trusting("verify-full"), files.0.display(), files.1.display())
    };
    login(&at("certified", "127.0.0.1", with(&good))).await.unwrap();
    let forged = login(&at("certified", "127.0.0.1", with(&bad))).await.unwrap_err();
    assert_eq!(forged.code, Code::TlsFailed, "{forged}");
    assert!(forged.why.contains("sslcert"), "{forged}");
    let without = login(&at("certified", "127.0.0.1", trusting("verify-full"))).await.unwrap_err();
    assert_eq!(without.code, Code::AuthenticationFailed, "{without}");
}

#[tokio::test]
async fn a_server_that_is_not_there_or_does_not_answer_is_unreachable_in_time() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let start = Instant::now();
    for url in [
        "postgres://u@127.0.0.1:1/d".to_owned(),
        "postgres://u@nowhere.invalid/d".to_owned(),
        format!("postgres://u@127.0.0.1:{port}/d?connect_timeout=1"),
    ] {
        let endpoint = Endpoint::parse(&url).unwrap();
        let error = pg::connect(&endpoint, "test").await.map(drop).unwrap_err();
        assert!(matches!(error, PgError::Unreachable { .. }), "{error:?}");
        assert_eq!(policy(&error), Policy::Retry);
        let problem = login(&endpoint).await.unwrap_err();
        assert_eq!(problem.code, Code::ConnectionFailed);
        assert_eq!(problem.what, endpoint.describe());
    }
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn of_several_hosts_the_first_that_answers_is_taken() {
    let cluster = Cluster::start(&[]);
    let url =
        format!("postgres://postgres@127.0.0.1:1,127.0.0.1:{}/postgres?target_session_attrs=read-write", cluster.port);
    login(&Endpoint::parse(&url).unwrap()).await.unwrap();
}

//! A nats-server that cannot be used says which reason it is, and says it soon.
#![allow(clippy::unwrap_used, clippy::panic)]

mod server;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossfade_log::{Log, LogError, Nats, NatsOptions, StreamKind, StreamName};
use model::{Code, Problem, Seq};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use server::Server;
use tempfile::TempDir;

async fn refused(options: &NatsOptions) -> LogError {
    let start = Instant::now();
    let Err(error) = Nats::connect(options).await else { panic!("connected") };
    assert!(start.elapsed() < Duration::from_secs(6), "{error:?} after {:?}", start.elapsed());
    assert!(!error.to_string().contains("s3cr3t"), "{error}");
    error
}

async fn works(options: &NatsOptions) {
    let log = Nats::connect(options).await.unwrap();
    let stream = StreamName::new("shop", "main", StreamKind::Copy);
    log.create(&stream).await.unwrap();
    log.append(&stream, Bytes::from("message")).await.unwrap();
    log.read(&stream, Seq(1)).await.unwrap().next().await.unwrap();
    assert!(!log.describe().contains("s3cr3t"), "{}", log.describe());
}

fn jetstream(store: &Path) -> String {
    format!("jetstream {{ store_dir: {store:?} }}")
}

fn code(error: LogError) -> Code {
    Problem::from(error).code
}

#[tokio::test]
async fn nobody_there_and_somebody_who_is_silent_are_unavailable() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let error = refused(&NatsOptions::new(format!("nats://127.0.0.1:{port}"))).await;
    assert!(matches!(error, LogError::Unavailable(_)), "{error:?}");
    drop(silent);
    let error = refused(&NatsOptions::new(format!("nats://me:s3cr3t@127.0.0.1:{port}"))).await;
    assert!(error.to_string().contains(&format!("127.0.0.1:{port}")), "{error}");
    assert!(matches!(error, LogError::Unavailable(_)), "{error:?}");
    assert_eq!(code(error), Code::ConnectionFailed);
}

#[tokio::test]
async fn a_wrong_password_is_told_as_such() {
    let server =
        Server::with(|store| format!("{}\nauthorization {{ user: \"me\", password: \"s3cr3t:@\" }}", jetstream(store)));
    let at = |user: &str| NatsOptions::new(format!("nats://{user}127.0.0.1:{}", server.port));
    works(&at("me:s3cr3t%3A%40@")).await;
    for user in ["", "me:wrong@", "s3cr3t@"] {
        let error = refused(&at(user)).await;
        assert!(matches!(error, LogError::Auth(_)), "{error:?}");
        assert_eq!(code(error), Code::AuthenticationFailed);
    }
    let server = Server::with(|store| format!("{}\nauthorization {{ token: \"s3cr3t\" }}", jetstream(store)));
    works(&NatsOptions::new(format!("nats://s3cr3t@127.0.0.1:{}", server.port))).await;
}

#[tokio::test]
async fn a_server_without_jetstream_is_told_as_such() {
    let server = Server::with(|_| String::new());
    let error = refused(&NatsOptions::new(server.url())).await;
    assert!(matches!(error, LogError::NoJetStream), "{error:?}");
    assert_eq!(code(error), Code::NoJetstream);
}

#[tokio::test]
async fn an_account_without_jetstream_is_told_as_such() {
    let server = Server::with(|store| {
        let accounts = "accounts { A { users: [{user: a, password: a}], jetstream: enabled }
            B { users: [{user: b, password: b}] } }";
        format!("{}\n{accounts}", jetstream(store))
    });
    works(&NatsOptions::new(format!("nats://a:a@127.0.0.1:{}", server.port))).await;
    let error = refused(&NatsOptions::new(format!("nats://b:b@127.0.0.1:{}", server.port))).await;
    assert!(matches!(error, LogError::NoJetStreamForAccount), "{error:?}");
    assert_eq!(code(error), Code::NoJetstream);
}

/// Two authorities; a server's and a client's certificate, both of the first one.
struct Certificates {
    folder: TempDir,
}

impl Certificates {
    fn make() -> Certificates {
        let certificates = Certificates { folder: tempfile::tempdir().unwrap() };
        for name in ["ca", "other"] {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let key = KeyPair::generate().unwrap();
            certificates.write(name, &params.self_signed(&key).unwrap().pem());
            let issuer = Issuer::new(params, key);
            if name == "ca" {
                for name in ["server", "client"] {
                    let key = KeyPair::generate().unwrap();
                    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
                    certificates.write(name, &params.signed_by(&key, &issuer).unwrap().pem());
                    certificates.write(&format!("{name}-key"), &key.serialize_pem());
                }
            }
        }
        certificates
    }

    fn write(&self, name: &str, pem: &str) {
        std::fs::write(self.path(name), pem).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.pem"))
    }

    fn server(&self, verify: bool) -> Server {
        Server::with(|store| {
            format!(
                "{}\ntls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: {verify} }}",
                jetstream(store),
                self.path("server"),
                self.path("server-key"),
                self.path("ca"),
            )
        })
    }
}

#[tokio::test]
async fn tls_with_a_private_authority_works_and_a_wrong_one_is_told_as_such() {
    let certificates = Certificates::make();
    let server = certificates.server(false);
    let plain = NatsOptions::new(server.url());
    let with = |ca: &str| NatsOptions { ca_file: Some(certificates.path(ca)), ..plain.clone() };
    works(&with("ca")).await;
    works(&NatsOptions { url: server.url().replace("nats:", "tls:"), ..with("ca") }).await;
    for options in [with("other"), with("absent"), with("server-key"), plain.clone()] {
        let error = refused(&options).await;
        assert!(matches!(error, LogError::Tls(_)), "{error:?}");
        assert_eq!(code(error), Code::TlsFailed);
    }
    let absent = refused(&with("absent")).await.to_string();
    assert!(absent.contains("absent.pem"), "{absent}");
    // A server that has no TLS.
    let server = Server::start();
    let error = refused(&NatsOptions { url: server.url(), ..with("ca") }).await;
    assert!(matches!(error, LogError::Tls(_) | LogError::Unavailable(_)), "{error:?}");
}

#[tokio::test]
async fn a_client_certificate_opens_and_its_absence_is_told_as_such() {
    let certificates = Certificates::make();
    let server = certificates.server(true);
    let without = NatsOptions { ca_file: Some(certificates.path("ca")), ..NatsOptions::new(server.url()) };
    let with = NatsOptions {
        cert_file: Some(certificates.path("client")),
        key_file: Some(certificates.path("client-key")),
        ..without.clone()
    };
    works(&with).await;
    let half = NatsOptions { key_file: None, ..with.clone() };
    for options in [&without, &half] {
        let error = refused(options).await;
        assert!(matches!(error, LogError::Tls(_)), "{error:?}");
    }
}

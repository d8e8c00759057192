//! Encryption by rustls, with libpq's meaning of `sslmode`.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256, Sha384, Sha512};
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::der::oid::db::rfc5912;

use crate::endpoint::{SslMode, Tls};
use crate::error::PgError;

/// How a server's certificate is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verify {
    Nothing,
    Authority,
    AuthorityAndName,
}

/// The client's side of a handshake under `tls`.
///
/// # Errors
/// [`PgError::Tls`]: a file cannot be read or holds no certificate or key.
pub(crate) fn config(tls: &Tls) -> Result<ClientConfig, PgError> {
    let verify = match (tls.mode, &tls.roots) {
        // As libpq does: naming a CA file with `require` means that it is to be used.
        (SslMode::Require, Some(_)) | (SslMode::VerifyCa, _) => Verify::Authority,
        (SslMode::VerifyFull, _) => Verify::AuthorityAndName,
        (SslMode::Disable | SslMode::Prefer | SslMode::Require, _) => Verify::Nothing,
    };
    let trusted = match verify {
        Verify::Nothing => Vec::new(),
        Verify::Authority | Verify::AuthorityAndName => trusted(tls.roots.as_deref())?,
    };
    let provider = Arc::new(ring::default_provider());
    let verifier = Verifier { verify, roots: store(&trusted)?, trusted, provider: Arc::clone(&provider) };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| PgError::tls(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    match &tls.identity {
        None => Ok(builder.with_no_client_auth()),
        Some((certificate, key)) => {
            let chain = certificates(certificate)?;
            let private = PrivateKeyDer::from_pem_file(key)
                .map_err(|error| PgError::tls(format!("{}: no usable private key: {error}", key.display())))?;
            builder
                .with_client_auth_cert(chain, private)
                .map_err(|error| PgError::tls(format!("{} and {}: {error}", certificate.display(), key.display())))
        }
    }
}

fn trusted(file: Option<&Path>) -> Result<Vec<CertificateDer<'static>>, PgError> {
    match file {
        Some(file) => certificates(file),
        None => {
            let found = rustls_native_certs::load_native_certs();
            match (found.certs.is_empty(), found.errors.first()) {
                (true, Some(error)) => Err(PgError::tls(format!("the system's trusted certificates: {error}"))),
                (true, None) => Err(PgError::tls("the system has no trusted certificates; give sslrootcert")),
                (false, _) => Ok(found.certs),
            }
        }
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, PgError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
    match found {
        Ok(found) if found.is_empty() => Err(PgError::tls(format!("{}: it holds no certificate", file.display()))),
        Ok(found) => Ok(found),
        Err(error) => Err(PgError::tls(format!("{}: {error}", file.display()))),
    }
}

fn store(trusted: &[CertificateDer<'static>]) -> Result<RootCertStore, PgError> {
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(trusted.iter().cloned());
    if added == 0 && !trusted.is_empty() {
        return Err(PgError::tls("none of the trusted certificates can be read"));
    }
    Ok(roots)
}

/// Looks at the server's certificate.
#[derive(Debug)]
struct Verifier {
    verify: Verify,
    roots: RootCertStore,
    /// The same as the roots, to be compared as a whole.
    trusted: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.verify == Verify::Nothing {
            return Ok(ServerCertVerified::assertion());
        }
        let parsed = ParsedCertificate::try_from(end_entity)?;
        // A self-signed certificate that the person names as its own authority is what the Postgres manual shows how to
        // make; path building refuses it because it is marked as an authority.
        if !self.trusted.iter().any(|trusted| trusted == end_entity) {
            let algorithms = self.provider.signature_verification_algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
        }
        if self.verify == Verify::AuthorityAndName {
            verify_server_name(&parsed, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// `tls-server-end-point` of RFC 5929: the certificate's hash, by the algorithm of its signature, MD5 and SHA-1 replaced
/// by SHA-256. `None` for signatures without a hash of their own (Ed25519), for which nobody has agreed on one.
pub(crate) fn end_point_hash(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let parsed = Certificate::from_der(certificate).ok()?;
    match parsed.signature_algorithm.oid {
        rfc5912::SHA_1_WITH_RSA_ENCRYPTION | rfc5912::SHA_256_WITH_RSA_ENCRYPTION | rfc5912::ECDSA_WITH_SHA_256 => {
            Some(Sha256::digest(certificate).to_vec())
        }
        rfc5912::SHA_384_WITH_RSA_ENCRYPTION | rfc5912::ECDSA_WITH_SHA_384 => {
            Some(Sha384::digest(certificate).to_vec())
        }
        rfc5912::SHA_512_WITH_RSA_ENCRYPTION | rfc5912::ECDSA_WITH_SHA_512 => {
            Some(Sha512::digest(certificate).to_vec())
        }
        _ => None,
    }
}

/// The error in words that say whose certificate it is about.
pub(crate) fn explain(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "the server's certificate is not signed by an authority that is trusted (wrong sslrootcert?)".to_owned()
        }
        Error::InvalidCertificate(reason) => format!("the server's certificate is not accepted: {reason}"),
        Error::AlertReceived(alert) => format!("the server ended the TLS handshake: {alert:?} (wrong sslcert?)"),
        other => format!("TLS failed: {other}"),
    }
}

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use tempfile::TempDir;

use crate::folder::temp_folder;

/// A certificate and its private key, as PEM files.
#[derive(Clone, Debug)]
pub struct KeyPairFiles {
    /// The certificate.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// A private certificate authority with its files in a temporary folder.
pub struct Authority {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes one; two of them do not trust each other.
    pub fn new() -> Result<Authority> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "crossfade test authority");
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let folder = temp_folder("ca")?;
        std::fs::write(folder.path().join("ca.crt"), params.self_signed(&key)?.pem())?;
        Ok(Authority { folder, issuer: Issuer::new(params, key) })
    }

    /// The authority's own certificate.
    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.crt")
    }

    /// A certificate for a server on `localhost` and 127.0.0.1.
    pub fn server(&self) -> Result<KeyPairFiles> {
        self.issue("server", vec!["localhost".into(), "127.0.0.1".into()], ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A certificate for a client whose common name is `user`, as Postgres's `cert` authentication wants it.
    pub fn client(&self, user: &str) -> Result<KeyPairFiles> {
        self.issue(user, vec![user.into()], ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn issue(&self, name: &str, subjects: Vec<String>, usage: ExtendedKeyUsagePurpose) -> Result<KeyPairFiles> {
        let mut params = CertificateParams::new(subjects)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages.push(usage);
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let at = |ending| self.folder.path().join(format!("{name}.{ending}"));
        let files = KeyPairFiles { cert: at("crt"), key: at("key") };
        std::fs::write(&files.cert, params.signed_by(&key, &self.issuer)?.pem())?;
        std::fs::write(&files.key, key.serialize_pem())?;
        // libpq's programs refuse a key that others may read.
        std::fs::set_permissions(&files.key, Permissions::from_mode(0o600))?;
        Ok(files)
    }
}

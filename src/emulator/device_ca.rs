//! The CAs whose certificates devices may show: those the operator registered, and one of the emulator's
//! own that signs on request.
//!
//! A certificate is judged at CONNECT, never in the handshake, as the hub does: a chain to one of these,
//! valid now, for clients. Whose it is says its common name, which the caller compares.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::ring as provider;
use rustls::pki_types::{CertificateDer, UnixTime, pem::PemObject};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;

use crate::ca::Ca;
use crate::certificates::DeviceCertificate;
use crate::hub_error::HubError;
use crate::start_error::StartError;
use crate::store::write_atomically;

/// What a client showed in the handshake: its certificate, then those between it and the CA. Empty when
/// it showed none.
#[derive(Debug, Clone, Default)]
pub(crate) struct Chain(Arc<[CertificateDer<'static>]>);

impl Chain {
    pub(crate) fn of(connection: &rustls::ServerConnection) -> Self {
        let shown = connection.peer_certificates().unwrap_or_default();
        Self(shown.iter().map(|der| der.clone().into_owned()).collect())
    }

    /// The client's own certificate.
    pub(crate) fn leaf(&self) -> Option<&CertificateDer<'static>> {
        self.0.first()
    }
}

impl std::ops::Deref for Chain {
    type Target = [CertificateDer<'static>];

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// The CAs in force.
pub(crate) struct DeviceCas {
    own: Ca,
    roots: RootCertStore,
    verifier: Arc<dyn ClientCertVerifier>,
    /// The registered CAs, all but the emulator's own, in PEM.
    file: PathBuf,
    registered: Vec<CertificateDer<'static>>,
}

impl DeviceCas {
    /// Takes the CAs from `directory` and adds those in `files`.
    pub(crate) fn open(directory: &Path, files: &[PathBuf]) -> Result<Self, StartError> {
        let own = Ca::open_as(directory, "device-ca", "iothub-emulator device CA")?;
        let bad = |path: &Path| {
            let path = path.to_owned();
            move |source: Box<dyn std::error::Error + Send + Sync>| StartError::DeviceCa {
                path,
                source,
            }
        };
        let pem = fs::read(&own.file).map_err(|source| StartError::state(&own.file, source))?;
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&pem).map_err(bad(&own.file))? {
            roots.add(certificate)?;
        }
        let verifier = verifier(&roots).map_err(bad(&own.file))?;
        let file = directory.join("device-cas.pem");
        let mut cas = Self {
            own,
            roots,
            verifier,
            file,
            registered: Vec::new(),
        };
        let kept = cas.file.exists().then(|| cas.file.clone());
        for path in kept.iter().chain(files) {
            let pem = fs::read(path).map_err(|source| bad(path)(source.into()))?;
            cas.register(&pem)
                .map_err(|error| bad(path)(error.into()))?;
        }
        Ok(cas)
    }

    /// The certificate of the emulator's own CA for devices.
    pub(crate) fn own_file(&self) -> &Path {
        &self.own.file
    }

    /// Registers the CAs in `pem`; how many there are. Registering one again changes nothing.
    pub(crate) fn register(&mut self, pem: &[u8]) -> Result<usize, HubError> {
        let refused = |error: Box<dyn std::error::Error + Send + Sync>| {
            HubError::argument(format!("This is no CA certificate in PEM: {error}"))
        };
        let found = certificates(pem).map_err(refused)?;
        let (mut roots, mut registered) = (self.roots.clone(), self.registered.clone());
        for certificate in &found {
            if !registered.contains(certificate) {
                roots
                    .add(certificate.clone())
                    .map_err(|error| refused(error.into()))?;
                registered.push(certificate.clone());
            }
        }
        self.verifier = verifier(&roots).map_err(refused)?;
        (self.roots, self.registered) = (roots, registered);
        self.save();
        Ok(found.len())
    }

    /// Whether `chain` leads to one of the CAs and is valid now; why not, in words.
    pub(crate) fn check(&self, chain: &[CertificateDer<'static>]) -> Result<(), String> {
        let (leaf, between) = chain
            .split_first()
            .ok_or("there is no client certificate")?;
        self.verifier
            .verify_client_cert(leaf, between, UnixTime::now())
            .map(drop)
            .map_err(|error| {
                format!("the client certificate does not lead to a registered CA: {error}")
            })
    }

    /// A certificate for device `id` of the emulator's own CA, good for `life` seconds.
    pub(crate) fn issue(&self, id: &str, life: i64) -> Result<DeviceCertificate, HubError> {
        DeviceCertificate::signed(id, life, &self.own.issuer).map_err(|error| {
            HubError::argument(format!("No certificate can be made for '{id}': {error}"))
        })
    }

    fn save(&self) {
        let pem: String = self.registered.iter().map(|der| to_pem(der)).collect();
        if let Err(error) = write_atomically(&self.file, pem.as_bytes(), 0o644) {
            tracing::error!(
                "cannot save {}: {error}; the CAs registered since are lost at the next start",
                self.file.display()
            );
        }
    }
}

fn verifier(
    roots: &RootCertStore,
) -> Result<Arc<dyn ClientCertVerifier>, Box<dyn std::error::Error + Send + Sync>> {
    let provider = Arc::new(provider::default_provider());
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots.clone()), provider);
    Ok(builder.build()?)
}

fn certificates(
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, Box<dyn std::error::Error + Send + Sync>> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>()?;
    if found.is_empty() {
        return Err("there is no certificate in it".into());
    }
    Ok(found)
}

fn to_pem(der: &[u8]) -> String {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let text = BASE64_STANDARD.encode(der);
    let mut pem = "-----BEGIN CERTIFICATE-----\n".to_owned();
    for line in text.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem + "-----END CERTIFICATE-----\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(made: &DeviceCertificate) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(made.certificate.as_bytes()).unwrap()
    }

    #[test]
    fn only_chains_to_a_registered_ca_are_good() {
        let (mine, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut cas = DeviceCas::open(mine.path(), &[]).unwrap();
        let others = DeviceCas::open(theirs.path(), &[]).unwrap();
        assert_eq!(cas.check(&[leaf(&cas.issue("pi", 60).unwrap())]), Ok(()));

        let foreign = leaf(&others.issue("pi", 60).unwrap());
        let refused = cas.check(std::slice::from_ref(&foreign)).unwrap_err();
        assert!(refused.contains("registered CA"), "{refused}");
        assert_eq!(cas.register(&fs::read(others.own_file()).unwrap()), Ok(1));
        assert_eq!(cas.check(std::slice::from_ref(&foreign)), Ok(()));

        // A restart still knows it.
        let again = DeviceCas::open(mine.path(), &[]).unwrap();
        assert_eq!(again.check(&[foreign]), Ok(()));
    }

    #[test]
    fn none_a_self_signed_and_an_expired_one_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let cas = DeviceCas::open(directory.path(), &[]).unwrap();
        assert!(
            cas.check(&[])
                .unwrap_err()
                .contains("no client certificate")
        );
        let own = DeviceCertificate::self_signed("pi", 60).unwrap();
        assert!(cas.check(&[leaf(&own)]).is_err());
        let old = cas.issue("pi", -60).unwrap();
        let refused = cas.check(&[leaf(&old)]).unwrap_err();
        assert!(refused.contains("expired"), "{refused}");
    }

    #[test]
    fn a_file_without_a_certificate_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("empty.pem");
        fs::write(&file, "nothing").unwrap();
        let error = DeviceCas::open(directory.path(), &[file]).err().unwrap();
        assert_eq!(error.code(), "emulator-device-ca");
        assert!(error.to_string().contains("empty.pem"), "{error}");
    }
}

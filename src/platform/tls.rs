//! One TLS configuration for everything that leaves the device: whom it trusts, and the device's certificate
//! where it has one.
//!
//! Trust is the system's (`update-ca-certificates` counts) or, where the configuration names a CA file,
//! that file alone. TLS 1.2 and 1.3, cryptography by `ring`. No certificates are built in.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::{CryptoProvider, ring},
    pki_types::{
        CertificateDer,
        pem::{self, PemObject},
    },
    sign::SingleCertAndKey,
};
use tracing::{debug, warn};

use super::device_certificate::DeviceCertificate;
use crate::update::failure::{Class, Coded};

/// Why no TLS configuration could be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The CA file cannot be read.
    #[error("cannot read the CA file {}; check its path and who may read it", .file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The CA file is not PEM.
    #[error("the CA file {} is not valid PEM; it must hold one or more `BEGIN CERTIFICATE` sections", .file.display())]
    NotPem {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        #[source]
        source: pem::Error,
    },
    /// The CA file holds a certificate that cannot be a trust anchor.
    #[error("certificate {number} in the CA file {} cannot be used", .file.display())]
    BadCertificate {
        /// The file.
        file: PathBuf,
        /// Which one, from 1.
        number: usize,
        /// What is wrong with it.
        #[source]
        source: rustls::Error,
    },
    /// The CA file holds no certificate.
    #[error("the CA file {} holds no certificate; it must hold one or more `BEGIN CERTIFICATE` sections", .file.display())]
    Empty {
        /// The file.
        file: PathBuf,
    },
    /// The system trusts nobody.
    #[error(
        "no CA certificates found on this system, so no server can be trusted; install the package ca-certificates or set ca_file in the configuration{0}"
    )]
    NoRoots(String),
    /// The library refused its own defaults.
    #[error("TLS cannot be set up on this system")]
    Setup(#[source] rustls::Error),
}

impl Coded for TlsError {
    fn code(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "ca-file-unreadable",
            Self::NotPem { .. } | Self::BadCertificate { .. } => "ca-file-invalid",
            Self::Empty { .. } => "ca-file-empty",
            Self::NoRoots(_) => "no-root-certificates",
            Self::Setup(_) => "tls-setup",
        }
    }

    fn class(&self) -> Class {
        Class::Final
    }
}

/// Makes `ring` the process's cryptography, for libraries that ask for the default. Call first thing in
/// each `main`; later calls do nothing.
pub fn install_provider() {
    // An error says that a provider is installed already, which is what we want.
    let _ = ring::default_provider().install_default();
}

/// A client configuration that trusts the certificates in `ca_file`, or the system's without one. ALPN is
/// left empty: who speaks HTTP adds it.
///
/// # Errors
/// See [`TlsError`].
pub fn client_config(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, TlsError> {
    client_config_as(roots(ca_file)?, None)
}

/// As [`client_config`], for a device that shows `certificate` to a server which asks for one.
///
/// # Errors
/// [`TlsError::Setup`].
pub fn client_config_as(
    roots: RootCertStore,
    certificate: Option<&DeviceCertificate>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let provider: Arc<CryptoProvider> = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(TlsError::Setup)?
        .with_root_certificates(roots);
    Ok(Arc::new(match certificate {
        None => config.with_no_client_auth(),
        Some(certificate) => config.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(
            certificate.certified_key(),
        ))),
    }))
}

/// The certificates that are trusted: those in `ca_file` and no others, or the system's. Never empty.
///
/// # Errors
/// See [`TlsError`].
pub fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, TlsError> {
    let roots = match ca_file {
        Some(file) => roots_in(file)?,
        None => system_roots()?,
    };
    debug!(count = roots.len(), ?ca_file, "CA certificates loaded");
    Ok(roots)
}

fn roots_in(file: &Path) -> Result<RootCertStore, TlsError> {
    let text = std::fs::read(file).map_err(|source| TlsError::Unreadable {
        file: file.to_owned(),
        source,
    })?;
    let mut roots = RootCertStore::empty();
    for (index, certificate) in CertificateDer::pem_slice_iter(&text).enumerate() {
        let certificate = certificate.map_err(|source| TlsError::NotPem {
            file: file.to_owned(),
            source,
        })?;
        // Someone wrote this file by hand for this purpose: a mistake in it must not pass unnoticed.
        roots
            .add(certificate)
            .map_err(|source| TlsError::BadCertificate {
                file: file.to_owned(),
                number: index + 1,
                source,
            })?;
    }
    if roots.is_empty() {
        return Err(TlsError::Empty {
            file: file.to_owned(),
        });
    }
    Ok(roots)
}

fn system_roots() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        warn!("some CA certificates of the system cannot be read: {error}");
    }
    let mut roots = RootCertStore::empty();
    // Systems carry old certificates that no longer parse; the rest is as good as ever.
    let (_, ignored) = roots.add_parsable_certificates(found.certs);
    if ignored > 0 {
        debug!("{ignored} CA certificates of the system cannot be used");
    }
    if roots.is_empty() {
        let reasons: String = found.errors.iter().map(|e| format!(" ({e})")).collect();
        return Err(TlsError::NoRoots(reasons));
    }
    Ok(roots)
}

/// The TLS error inside `error`. `io::Error` hides the error it wraps from `source()`, so it is asked.
#[must_use]
pub fn error_in<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref() {
            return Some(tls);
        }
        next = match error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
        {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ca() -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.self_signed(&key).unwrap().pem()
    }

    fn roots_of(contents: &[u8]) -> Result<RootCertStore, TlsError> {
        let file = tempfile::NamedTempFile::with_prefix("fwupdated-ca").unwrap();
        std::fs::write(file.path(), contents).unwrap();
        client_config(Some(file.path())).and_then(|_| roots(Some(file.path())))
    }

    #[test]
    fn a_ca_file_is_trusted_alone_whatever_else_is_in_it() {
        let text = format!("# ours\n{}\nnotes\n{}", ca(), ca());
        assert_eq!(roots_of(text.as_bytes()).unwrap().len(), 2);
    }

    #[test]
    fn a_ca_file_that_gives_no_trust_is_an_error_that_names_it() {
        let torn = ca().replace("-----END CERTIFICATE-----", "");
        let nonsense = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (contents, code) in [
            ("", "ca-file-empty"),
            ("hello", "ca-file-empty"),
            (torn.as_str(), "ca-file-invalid"),
            (nonsense, "ca-file-invalid"),
        ] {
            let error = roots_of(contents.as_bytes()).unwrap_err();
            assert_eq!(error.code(), code, "{contents}");
            assert!(error.to_string().contains("fwupdated-ca"), "{error}");
        }
        let missing = Path::new("/nonexistent/ca.pem");
        let error = client_config(Some(missing)).unwrap_err();
        assert_eq!(error.code(), "ca-file-unreadable");
        assert!(error.to_string().contains("/nonexistent/ca.pem"));
    }

    #[test]
    fn installing_the_provider_twice_is_harmless() {
        install_provider();
        install_provider();
        assert!(CryptoProvider::get_default().is_some());
    }
}

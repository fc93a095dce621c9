//! The device's own X.509 certificate and private key, from PEM files.
//!
//! Guarantees: whoever holds a [`DeviceCertificate`] holds a chain that TLS can use, with the key that
//! belongs to it; neither an error nor `Debug` shows anything of the key. Validity is told, not judged: the
//! device's clock may be wrong where the certificate is right.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use rustls::{
    crypto::ring,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
    sign::CertifiedKey,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::update::failure::{Class, Coded};

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read.
    #[error("cannot read {}, the device's certificate or its key; check path, owner and mode", .file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// No certificate in it.
    #[error("{} holds no usable certificate ({why}); it must hold the device's certificate in PEM (`BEGIN CERTIFICATE`), then its chain", .file.display())]
    Certificate {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// No key in it. The parser's own words could quote it.
    #[error("{} holds no usable private key; it must hold one in PEM (PKCS#8, SEC1 or PKCS#1), without a password", .file.display())]
    Key {
        /// The file.
        file: PathBuf,
    },
    /// The two do not belong together.
    #[error("the private key in {} does not belong to the certificate in {}; put the pair in place again", .key.display(), .certificate.display())]
    Mismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
}

impl Coded for CertificateError {
    fn code(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "hub-certificate-unreadable",
            Self::Certificate { .. } => "hub-certificate-invalid",
            Self::Key { .. } => "hub-private-key-invalid",
            Self::Mismatch { .. } => "hub-private-key-mismatch",
        }
    }

    fn class(&self) -> Class {
        Class::Final
    }
}

/// A certificate, its chain and its key.
pub struct DeviceCertificate {
    key: Arc<CertifiedKey>,
    /// The subject's common name, which names the device to the provisioning service.
    pub common_name: Option<String>,
    /// Its first moment.
    pub valid_from: Timestamp,
    /// Its last moment.
    pub valid_to: Timestamp,
}

impl fmt::Debug for DeviceCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceCertificate")
            .field("common_name", &self.common_name)
            .field("valid_from", &self.valid_from)
            .field("valid_to", &self.valid_to)
            .finish_non_exhaustive()
    }
}

/// A file and what is in it.
#[derive(Clone, Copy)]
pub struct Read<'a> {
    /// Where it is, for errors.
    pub file: &'a Path,
    /// Its content.
    pub bytes: &'a [u8],
}

impl DeviceCertificate {
    /// The certificate in `certificate`, which may be followed by its chain, with the key in `key`.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn parse(certificate: Read<'_>, key: Read<'_>) -> Result<Self, CertificateError> {
        let unusable = |why: String| CertificateError::Certificate {
            file: certificate.file.to_owned(),
            why,
        };
        let chain: Vec<_> = CertificateDer::pem_slice_iter(certificate.bytes)
            .collect::<Result<_, pem::Error>>()
            .map_err(|_| unusable("it is no valid PEM".to_owned()))?;
        let leaf = chain
            .first()
            .ok_or_else(|| unusable("there is none".to_owned()))?;
        let (_, parsed) =
            X509Certificate::from_der(leaf).map_err(|error| unusable(error.to_string()))?;
        let moment = |seconds| {
            Timestamp::from_second(seconds).map_err(|_| unusable("a date out of range".to_owned()))
        };
        let valid_from = moment(parsed.validity().not_before.timestamp())?;
        let valid_to = moment(parsed.validity().not_after.timestamp())?;
        let common_name = parsed
            .subject()
            .iter_common_name()
            .next()
            .and_then(|name| name.as_str().ok())
            .map(str::to_owned);

        let no_key = || CertificateError::Key {
            file: key.file.to_owned(),
        };
        let private = PrivateKeyDer::from_pem_slice(key.bytes).map_err(|_| no_key())?;
        let private = ring::default_provider()
            .key_provider
            .load_private_key(private)
            .map_err(|_| no_key())?;
        // Compared here and not by rustls, which would refuse a certificate of version 1: OpenSSL makes such a
        // one where no extension is asked for, and it is the server that judges it.
        let belongs = private
            .public_key()
            .is_none_or(|public| public.as_ref() == parsed.public_key().raw);
        if !belongs {
            return Err(CertificateError::Mismatch {
                certificate: certificate.file.to_owned(),
                key: key.file.to_owned(),
            });
        }
        let certified = CertifiedKey::new(chain, private);
        Ok(Self {
            key: Arc::new(certified),
            common_name,
            valid_from,
            valid_to,
        })
    }

    /// For the TLS handshake.
    pub(super) fn certified_key(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DnType, Issuer, KeyPair};

    const PASSWORD_PROTECTED: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIGwMBsGCSqGSIb3DQEFAzAO\n-----END ENCRYPTED PRIVATE KEY-----\n";

    fn made(common_name: &str) -> (String, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        params.not_before = rcgen::date_time_ymd(2026, 1, 2);
        params.not_after = rcgen::date_time_ymd(2027, 3, 4);
        (params.self_signed(&key).unwrap().pem(), key)
    }

    fn parse(certificate: &[u8], key: &[u8]) -> Result<DeviceCertificate, CertificateError> {
        DeviceCertificate::parse(
            Read {
                file: Path::new("/c.pem"),
                bytes: certificate,
            },
            Read {
                file: Path::new("/k.pem"),
                bytes: key,
            },
        )
    }

    #[test]
    fn name_and_validity_are_the_leafs_and_the_chain_is_kept() {
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
        let key = KeyPair::generate().unwrap();
        let mut leaf = CertificateParams::new(Vec::new()).unwrap();
        leaf.distinguished_name.push(DnType::CommonName, "pi-01");
        leaf.not_before = rcgen::date_time_ymd(2026, 1, 2);
        leaf.not_after = rcgen::date_time_ymd(2027, 3, 4);
        let issuer = Issuer::new(ca, ca_key);
        let leaf = leaf.signed_by(&key, &issuer).unwrap().pem();
        let text = format!("Subject: pi-01\n{leaf}{ca_pem}");
        let found = parse(text.as_bytes(), key.serialize_pem().as_bytes()).unwrap();
        assert_eq!(found.common_name.as_deref(), Some("pi-01"));
        assert_eq!(found.valid_from.to_string(), "2026-01-02T00:00:00Z");
        assert_eq!(found.valid_to.to_string(), "2027-03-04T00:00:00Z");
        assert_eq!(found.certified_key().cert.len(), 2);
        assert!(!format!("{found:?}").contains("key"));
    }

    #[test]
    fn what_cannot_be_used_is_told_apart_and_no_key_is_shown() {
        let (certificate, key) = made("pi-01");
        let (_, other) = made("pi-02");
        let key = key.serialize_pem();
        let torn = certificate.replace("-----END CERTIFICATE-----", "");
        let nonsense = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (certificate, key, code) in [
            ("", key.as_str(), "hub-certificate-invalid"),
            (&key, &key, "hub-certificate-invalid"),
            (&torn, &key, "hub-certificate-invalid"),
            (nonsense, &key, "hub-certificate-invalid"),
            (&certificate, "", "hub-private-key-invalid"),
            (&certificate, &certificate, "hub-private-key-invalid"),
            (&certificate, PASSWORD_PROTECTED, "hub-private-key-invalid"),
            (
                &certificate,
                &other.serialize_pem(),
                "hub-private-key-mismatch",
            ),
        ] {
            let error = parse(certificate.as_bytes(), key.as_bytes()).unwrap_err();
            assert_eq!(error.code(), code, "{error}");
            let said = format!("{error} {error:?}");
            assert!(said.contains("/c.pem") || said.contains("/k.pem"), "{said}");
            let secret = key.lines().nth(1).unwrap_or("-");
            assert!(secret.len() < 5 || !said.contains(secret), "{said}");
        }
    }

    proptest! {
        #[test]
        fn no_file_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(parse(&bytes, &bytes).is_err());
            let pem = pem_of(&bytes);
            prop_assert!(parse(pem.as_bytes(), &bytes).is_err());
        }
    }

    fn pem_of(bytes: &[u8]) -> String {
        use base64::{Engine, engine::general_purpose::STANDARD};
        let text = STANDARD.encode(bytes);
        format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
    }
}

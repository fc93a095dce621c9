//! Certificates for devices: made here, so that X.509 can be tried without openssl, and told apart.

use std::time::Duration;

use rcgen::{
    CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose, SigningKey,
    date_time_ymd,
};
use ring::digest;
use serde::Serialize;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::ca;
use crate::clock;

/// How long a certificate is good when nothing else is said: ten years.
pub(crate) const LIFE_SECONDS: i64 = 10 * 365 * 24 * 3600;

/// A device's certificate with its private key, made by the emulator.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceCertificate {
    /// The certificate, in PEM.
    pub certificate: String,
    /// Its private key (ECDSA P-256, PKCS#8), in PEM.
    pub private_key: String,
    /// SHA-1 of the certificate in hex, as a `selfSigned` device is registered.
    pub sha1_thumbprint: String,
    /// SHA-256 of the certificate in hex, as a `selfSigned` device is registered.
    pub sha256_thumbprint: String,
}

impl std::fmt::Debug for DeviceCertificate {
    /// Without the key, which is a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceCertificate")
            .field("sha256_thumbprint", &self.sha256_thumbprint)
            .finish_non_exhaustive()
    }
}

impl DeviceCertificate {
    /// A self-signed certificate whose common name is `id`, good for `life` seconds from now; a negative
    /// life makes one that has expired.
    pub fn self_signed(id: &str, life: i64) -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate()?;
        let certificate = params(id, life)?.self_signed(&key)?;
        Ok(Self::new(&certificate, &key))
    }

    /// One signed by `issuer`.
    pub(crate) fn signed(
        id: &str,
        life: i64,
        issuer: &Issuer<'_, impl SigningKey>,
    ) -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate()?;
        let certificate = params(id, life)?.signed_by(&key, issuer)?;
        Ok(Self::new(&certificate, &key))
    }

    fn new(certificate: &rcgen::Certificate, key: &KeyPair) -> Self {
        let [sha1_thumbprint, sha256_thumbprint] = thumbprints(certificate.der());
        Self {
            certificate: certificate.pem(),
            private_key: key.serialize_pem(),
            sha1_thumbprint,
            sha256_thumbprint,
        }
    }
}

fn params(id: &str, life: i64) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = ca::name(id);
    params.not_before = date_time_ymd(2000, 1, 1);
    let end = clock::unix_seconds().saturating_add_signed(life);
    params.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(end.min(LAST_DATE));
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

/// The end of 2199: far beyond use, and within what every date format can say.
const LAST_DATE: u64 = 7_258_118_400;

/// SHA-1 and SHA-256 of a certificate in DER, in hex.
pub(crate) fn thumbprints(certificate: &[u8]) -> [String; 2] {
    [&digest::SHA1_FOR_LEGACY_USE_ONLY, &digest::SHA256].map(|algorithm| {
        let print = digest::digest(algorithm, certificate);
        print
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    })
}

/// The common name of a certificate's subject; `None` when it has none or is no certificate.
pub(crate) fn common_name(certificate: &[u8]) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let name = parsed.subject().iter_common_name().next()?;
    name.as_str().ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustls::pki_types::{CertificateDer, pem::PemObject};

    use super::*;

    #[test]
    fn the_common_name_is_the_device_id() {
        let made = DeviceCertificate::self_signed("Pi:01", 60).unwrap();
        let der = CertificateDer::from_pem_slice(made.certificate.as_bytes()).unwrap();
        assert_eq!(common_name(&der).as_deref(), Some("Pi:01"));
        assert_eq!(
            thumbprints(&der),
            [made.sha1_thumbprint, made.sha256_thumbprint]
        );
    }

    #[test]
    fn a_debug_print_shows_no_key() {
        let made = DeviceCertificate::self_signed("pi", 60).unwrap();
        assert!(!format!("{made:?}").contains("PRIVATE"));
    }

    #[test]
    fn any_life_makes_a_certificate() {
        for life in [i64::MIN, -1, 0, i64::MAX] {
            DeviceCertificate::self_signed("pi", life).unwrap();
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes: Vec<u8>) {
            let _ = common_name(&bytes);
        }
    }
}

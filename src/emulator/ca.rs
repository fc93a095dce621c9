//! The emulator's own certificate authorities (one for its server, one for devices), and the TLS settings
//! of its two listeners.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, date_time_ymd,
};
use ring::digest;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring as provider};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName as RawName, ServerConfig, SignatureScheme};

use crate::start_error::StartError;
use crate::store::write_atomically;

/// A certificate authority that lives in two files of a directory, such as `ca.pem` and `ca.key`.
pub(crate) struct Ca {
    pub(crate) issuer: Issuer<'static, KeyPair>,
    /// Its certificate.
    pub(crate) file: PathBuf,
}

impl Ca {
    /// Takes the CA of the server from `directory`, or makes a new one there.
    pub(crate) fn open(directory: &Path) -> Result<Self, StartError> {
        Self::open_as(directory, "ca", "iothub-emulator CA")
    }

    /// Takes the CA in `{stem}.pem` and `{stem}.key` from `directory`, or makes a new one called `title`.
    pub(crate) fn open_as(directory: &Path, stem: &str, title: &str) -> Result<Self, StartError> {
        let key_file = directory.join(format!("{stem}.key"));
        let file = directory.join(format!("{stem}.pem"));
        let bad = |source| StartError::BadCa {
            path: key_file.clone(),
            source,
        };
        let key = match fs::read_to_string(&key_file) {
            Ok(pem) => KeyPair::from_pem(&pem).map_err(bad)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key = KeyPair::generate().map_err(bad)?;
                write_atomically(&key_file, key.serialize_pem().as_bytes(), 0o600)
                    .map_err(|source| StartError::state(&key_file, source))?;
                key
            }
            Err(source) => return Err(StartError::state(&key_file, source)),
        };
        let params = ca_params(&key, title);
        // The same key gives the same names, so a file that clients already trust stays right.
        if !file.exists() {
            let certificate = params.self_signed(&key).map_err(bad)?;
            write_atomically(&file, certificate.pem().as_bytes(), 0o644)
                .map_err(|source| StartError::state(&file, source))?;
        }
        Ok(Self {
            issuer: Issuer::new(params, key),
            file,
        })
    }

    /// TLS for a server called `hub` that also answers at `address`. Clients may show a certificate; it is
    /// judged at CONNECT.
    pub(crate) fn server_config(
        &self,
        hub: &str,
        address: IpAddr,
    ) -> Result<ServerConfig, StartError> {
        let bad = |source| StartError::Certificate {
            name: hub.to_owned(),
            source,
        };
        let mut names = vec![
            hub.to_owned(),
            "localhost".to_owned(),
            "127.0.0.1".to_owned(),
            "::1".to_owned(),
        ];
        if !address.is_unspecified() {
            names.push(address.to_string());
        }
        names.sort();
        names.dedup();
        let mut params = CertificateParams::new(names).map_err(bad)?;
        params.distinguished_name = name(hub);
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(2049, 1, 1);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().map_err(bad)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(bad)?;

        let builder = ServerConfig::builder_with_provider(Arc::new(provider::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(Arc::new(AnyCertificate::new()));
        let key = PrivateKeyDer::try_from(key.serialize_der())
            .map_err(|text| rustls::Error::General(text.to_owned()))?;
        Ok(builder.with_single_cert(vec![certificate.der().clone()], key)?)
    }
}

fn ca_params(key: &KeyPair, title: &str) -> CertificateParams {
    let print = digest::digest(&digest::SHA256, key.public_key_raw());
    let short: String = print.as_ref()[..4]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let mut params = CertificateParams::default();
    // A name of its own, so that the CAs of several emulators can stand in one trust store.
    params.distinguished_name = name(&format!("{title} {short}"));
    params.not_before = date_time_ymd(2000, 1, 1);
    params.not_after = date_time_ymd(2049, 1, 1);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

pub(crate) fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

/// Asks for a client certificate, lets the client show none, and takes any: the hub decides at CONNECT,
/// by thumbprint or by the chain. That the client holds the certificate's key is checked here.
#[derive(Debug)]
struct AnyCertificate(WebPkiSupportedAlgorithms);

impl AnyCertificate {
    fn new() -> Self {
        let provider: CryptoProvider = provider::default_provider();
        Self(provider.signature_verification_algorithms)
    }
}

impl ClientCertVerifier for AnyCertificate {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[RawName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_keeps_the_ca() {
        let directory = tempfile::tempdir().unwrap();
        let first = Ca::open(directory.path()).unwrap();
        let pem = fs::read_to_string(&first.file).unwrap();
        let again = Ca::open(directory.path()).unwrap();
        assert_eq!(fs::read_to_string(&again.file).unwrap(), pem);
        again
            .server_config("localhost", [127, 0, 0, 1].into())
            .unwrap();
    }

    #[test]
    fn two_cas_have_two_names() {
        let subject = |ca: &Ca| {
            let pem = fs::read_to_string(&ca.file).unwrap();
            pem.lines().skip(1).collect::<String>()
        };
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (one, two) = (Ca::open(one.path()).unwrap(), Ca::open(two.path()).unwrap());
        assert_ne!(
            ca_params(one.issuer.key(), "CA").distinguished_name,
            ca_params(two.issuer.key(), "CA").distinguished_name
        );
        assert_ne!(subject(&one), subject(&two));
    }

    #[test]
    fn a_damaged_key_is_named() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("ca.key"), "junk").unwrap();
        let error = Ca::open(directory.path()).err().unwrap().to_string();
        assert!(
            error.contains("ca.key") && error.contains("remove it"),
            "{error}"
        );
    }
}

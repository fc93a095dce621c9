//! The HTTP clients: which proxy, which certificate, which connections.
//!
//! Guarantees: only hosts in `fetch.client_certificate_hosts` get the client that can show the device's
//! certificate. Secrets are read again for each request, so that they can be renewed while the daemon runs; a
//! pair of files that is being replaced does not end a download, the earlier one is used meanwhile. Connections
//! are kept and used again as long as nothing changes.

use std::{
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use reqwest::{Client, Proxy, Url, header::HeaderValue, redirect};
use ring::digest::{Context, SHA256};
use rustls::RootCertStore;
use tracing::warn;

use super::FetchError;
use crate::{
    config::{ClientCertificateConfig, FetchConfig, FetchProxy, ProxyConfig},
    platform::{
        device_certificate::{CertificateError, DeviceCertificate, Read},
        tls,
    },
    update::uri,
};

/// A client and what it was made from.
struct Made {
    stamp: [u8; 32],
    client: Client,
}

/// See the module.
pub(super) struct Clients {
    roots: RootCertStore,
    connect_timeout: Duration,
    connections: usize,
    proxy: FetchProxy,
    certificate: Option<ClientCertificateConfig>,
    plain: Mutex<Option<Made>>,
    certified: Mutex<Option<Made>>,
}

/// The files that a client is made from.
#[derive(Default)]
struct Secrets {
    proxy: Option<HeaderValue>,
    certificate: Option<(Vec<u8>, Vec<u8>)>,
}

impl Clients {
    /// Reads the CA certificates; secrets are read when they are needed.
    pub(super) fn new(config: &FetchConfig) -> Result<Self, FetchError> {
        let clients = Self {
            roots: tls::roots(config.ca_file.as_deref())?,
            connect_timeout: config.connect_timeout,
            connections: config.connections,
            proxy: config.proxy.clone(),
            certificate: config.client_certificate.clone(),
            plain: Mutex::new(None),
            certified: Mutex::new(None),
        };
        // What is wrong with the system shall be known at the start, not at the first update.
        clients.make(&Secrets::default())?;
        Ok(clients)
    }

    /// Whether the server at `url` may see the device's certificate.
    pub(super) fn shows_certificate_to(&self, url: &Url) -> bool {
        let listed = |config: &ClientCertificateConfig| uri::is_listed(url, &config.hosts);
        url.scheme() == "https" && self.certificate.as_ref().is_some_and(listed)
    }

    /// The client for `url`.
    pub(super) async fn at(&self, url: &Url) -> Result<Client, FetchError> {
        let certificate = self
            .certificate
            .as_ref()
            .filter(|_| self.shows_certificate_to(url));
        let place = match certificate {
            Some(_) => &self.certified,
            None => &self.plain,
        };
        let made = match self.secrets(certificate).await {
            Ok(secrets) => {
                let stamp = secrets.stamp();
                let known = place.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(made) = known.as_ref().filter(|made| made.stamp == stamp) {
                    return Ok(made.client.clone());
                }
                drop(known);
                self.make(&secrets).map(|client| Made { stamp, client })
            }
            Err(error) => Err(error),
        };
        let mut known = place.lock().unwrap_or_else(PoisonError::into_inner);
        match (made, known.as_ref()) {
            (Ok(made), _) => Ok(known.insert(made).client.clone()),
            (Err(error), Some(earlier)) => {
                warn!("the files that were read before are used for this request: {error}");
                Ok(earlier.client.clone())
            }
            (Err(error), None) => Err(error),
        }
    }

    async fn secrets(
        &self,
        certificate: Option<&ClientCertificateConfig>,
    ) -> Result<Secrets, FetchError> {
        let proxy = match &self.proxy {
            FetchProxy::Through(ProxyConfig {
                authorization_file: Some(file),
                ..
            }) => Some(proxy_authorization(file).await?),
            _ => None,
        };
        let certificate = match certificate {
            Some(config) => Some((
                certificate_file(&config.certificate_file).await?,
                certificate_file(&config.key_file).await?,
            )),
            None => None,
        };
        Ok(Secrets { proxy, certificate })
    }

    fn make(&self, secrets: &Secrets) -> Result<Client, FetchError> {
        let certificate = match (&secrets.certificate, &self.certificate) {
            (Some((certificate, key)), Some(config)) => Some(DeviceCertificate::parse(
                Read {
                    file: &config.certificate_file,
                    bytes: certificate,
                },
                Read {
                    file: &config.key_file,
                    bytes: key,
                },
            )?),
            _ => None,
        };
        let mut tls = (*tls::client_config_as(self.roots.clone(), certificate.as_ref())?).clone();
        // One body at a time: HTTP/2 would have nothing to multiplex, and blob stores speak 1.1.
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let mut client = Client::builder()
            .tls_backend_preconfigured(tls)
            .http1_only()
            .redirect(redirect::Policy::none())
            .referer(false)
            .connect_timeout(self.connect_timeout)
            .pool_max_idle_per_host(self.connections)
            .user_agent(concat!("fwupdated/", env!("CARGO_PKG_VERSION")));
        match &self.proxy {
            FetchProxy::Environment => {}
            FetchProxy::Direct => client = client.no_proxy(),
            FetchProxy::Through(through) => {
                let mut proxy = Proxy::all(address(through)).map_err(FetchError::Setup)?;
                if let Some(value) = &secrets.proxy {
                    proxy = proxy.custom_http_auth(value.clone());
                }
                client = client.no_proxy().proxy(proxy);
            }
        }
        client.build().map_err(FetchError::Setup)
    }
}

impl Secrets {
    /// Differs where anything in it does.
    fn stamp(&self) -> [u8; 32] {
        let mut hash = Context::new(&SHA256);
        let certificate = self.certificate.iter().flat_map(|(c, k)| [&c[..], &k[..]]);
        for part in self
            .proxy
            .iter()
            .map(HeaderValue::as_bytes)
            .chain(certificate)
        {
            hash.update(&part.len().to_le_bytes());
            hash.update(part);
        }
        let mut stamp = [0; 32];
        stamp.copy_from_slice(hash.finish().as_ref());
        stamp
    }
}

fn address(proxy: &ProxyConfig) -> String {
    match proxy.host.contains(':') {
        true => format!("http://[{}]:{}", proxy.host, proxy.port),
        false => format!("http://{}:{}", proxy.host, proxy.port),
    }
}

async fn proxy_authorization(file: &Path) -> Result<HeaderValue, FetchError> {
    let text = tokio::fs::read_to_string(file).await;
    let text = text.map_err(|source| FetchError::ProxyAuthorizationFile {
        file: file.to_owned(),
        source: Some(source),
    })?;
    // White space around it is a file's last newline.
    let text = text.trim();
    if !text.contains(':') {
        return Err(FetchError::ProxyAuthorizationFile {
            file: file.to_owned(),
            source: None,
        });
    }
    let value = format!("Basic {}", STANDARD.encode(text));
    let mut value = HeaderValue::try_from(value).expect("base64 is a valid header");
    value.set_sensitive(true);
    Ok(value)
}

async fn certificate_file(file: &Path) -> Result<Vec<u8>, FetchError> {
    let content = tokio::fs::read(file).await;
    content.map_err(|source| {
        FetchError::ClientCertificateFile(CertificateError::Unreadable {
            file: file.to_owned(),
            source,
        })
    })
}

//! A TLS server of one version in front of another server: what a hub that speaks only that version is like.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
};

use fwupdated::platform::tls;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_rustls::{
    TlsAcceptor, TlsConnector,
    rustls::{
        ProtocolVersion, ServerConfig, SupportedProtocolVersion,
        crypto::ring,
        pki_types::{PrivateKeyDer, ServerName},
    },
};

/// Version and SNI of a handshake.
type Seen = (ProtocolVersion, Option<String>);

/// The front; gone when dropped.
pub(crate) struct TlsFront {
    pub(crate) address: SocketAddr,
    /// Its certificate, in PEM.
    pub(crate) ca: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    listener: JoinHandle<()>,
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

impl TlsFront {
    /// Listens on `listen` as `name` and leads to port `port`, whose CA is in `ca`. `None` when this machine
    /// has no such address.
    pub(crate) async fn start(
        version: &'static SupportedProtocolVersion,
        name: &str,
        listen: &str,
        (port, ca): (u16, &Path),
    ) -> Option<Self> {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let server = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let listener = TcpListener::bind((listen, 0)).await.ok()?;
        let address = listener.local_addr().unwrap();
        let (acceptor, inside) = (
            TlsAcceptor::from(Arc::new(server)),
            TlsConnector::from(tls::client_config(Some(ca)).unwrap()),
        );
        let seen = Arc::<Mutex<Vec<_>>>::default();
        let shared = Arc::clone(&seen);
        let listener = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, inside) = (acceptor.clone(), inside.clone());
                let seen = Arc::clone(&shared);
                tokio::spawn(async move {
                    let mut outer = acceptor.accept(stream).await?;
                    let (_, connection) = outer.get_ref();
                    let version = connection.protocol_version().unwrap();
                    let name = connection.server_name().map(str::to_owned);
                    seen.lock().unwrap().push((version, name));
                    let tcp = TcpStream::connect(("127.0.0.1", port)).await?;
                    let name = ServerName::try_from("localhost").unwrap();
                    let mut inner = inside.connect(name, tcp).await?;
                    copy_bidirectional(&mut outer, &mut inner).await
                });
            }
        });
        Some(Self {
            address,
            ca: made.cert.pem(),
            seen,
            listener,
        })
    }

    /// Version and SNI of each handshake.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

//! A small service side of an IoT Hub over real TLS, answering as a test scripts it: for answers that no
//! well-behaved hub gives on request. It checks access tokens by its own reading of the specification.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Bytes,
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

const KEY: &[u8] = b"0123456789abcdef0123456789abcdef";

/// One answer: status, headers, body.
#[derive(Clone, Debug)]
pub(crate) struct Reply(
    pub(crate) u16,
    pub(crate) Vec<(&'static str, String)>,
    pub(crate) Value,
);

/// A request that the stub got.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

#[derive(Default)]
struct Script {
    twins: VecDeque<Reply>,
    others: VecDeque<Reply>,
    seen: Vec<Seen>,
}

pub(crate) struct HubStub {
    script: Arc<Mutex<Script>>,
    pub(crate) address: SocketAddr,
    pub(crate) ca_file: PathBuf,
    serving: tokio::task::JoinHandle<()>,
}

impl HubStub {
    /// Starts it on a free port of the loopback interface, its CA certificate in `dir`.
    pub(crate) async fn start(dir: &Path) -> Self {
        let ca_key = rcgen::KeyPair::generate().unwrap();
        let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca_certificate = ca.self_signed(&ca_key).unwrap();
        let ca_file = dir.join("ca.pem");
        std::fs::write(&ca_file, ca_certificate.pem()).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let issuer = rcgen::Issuer::new(ca, &ca_key);
        let certificate = rcgen::CertificateParams::new(vec!["localhost".to_owned()])
            .unwrap()
            .signed_by(&key, &issuer)
            .unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let listener = TlsListener {
            tcp,
            tls: TlsAcceptor::from(Arc::new(tls)),
        };
        let script = Arc::new(Mutex::new(Script::default()));
        let app = Router::new()
            .fallback(answer)
            .with_state((Arc::clone(&script), address.port()));
        let serving = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self {
            script,
            address,
            ca_file,
            serving,
        }
    }

    pub(crate) fn connection_string(&self) -> String {
        format!(
            "HostName=localhost:{};SharedAccessKeyName=service;SharedAccessKey={}",
            self.address.port(),
            BASE64.encode(KEY)
        )
    }

    /// The answers to reads of a twin, in order; the last one stays.
    pub(crate) fn twins(&self, replies: impl IntoIterator<Item = Reply>) {
        self.script.lock().unwrap().twins.extend(replies);
    }

    /// The answers to everything else, in order; the last one stays.
    pub(crate) fn answers(&self, replies: impl IntoIterator<Item = Reply>) {
        self.script.lock().unwrap().others.extend(replies);
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.script.lock().unwrap().seen.clone()
    }

    pub(crate) fn stop(&self) {
        self.serving.abort();
    }
}

/// A twin whose reported `iothubDM.firmwareUpdate` is `section`.
pub(crate) fn twin(section: Value) -> Reply {
    // The hub's bookkeeping changes whenever the section is written.
    let written = section.to_string().len();
    Reply(
        200,
        Vec::new(),
        json!({"deviceId": "pi-01", "properties": {
            "desired": {"$version": 1, "$metadata": {}},
            "reported": {"iothubDM": {"firmwareUpdate": section}, "$version": 7,
                "$metadata": {"iothubDM": {"firmwareUpdate": {"$lastUpdated": written}}}},
        }}),
    )
}

/// A refusal in the newer of the hub's two shapes.
pub(crate) fn refusal(status: u16, number: u32, message: &str) -> Reply {
    let inner = json!({"errorCode": number, "trackingId": "0-G:0", "message": message, "timestampUtc": "2018-08-24T17:49:33Z"});
    Reply(
        status,
        Vec::new(),
        json!({"Message": inner.to_string(), "ExceptionMessage": ""}),
    )
}

async fn answer(
    State((script, port)): State<(Arc<Mutex<Script>>, u16)>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let body: Bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    if !authorized(&parts.headers, port) {
        let body = r#"{"Message":"ErrorCode:IotHubUnauthorizedAccess;Unauthorized","ExceptionMessage":""}"#;
        return (StatusCode::UNAUTHORIZED, body).into_response();
    }
    let is_twin = parts.method == Method::GET && parts.uri.path().starts_with("/twins/");
    let mut script = script.lock().unwrap();
    script.seen.push(Seen {
        method: parts.method,
        uri: parts.uri,
        headers: parts.headers,
        body: serde_json::from_slice(&body).unwrap_or_default(),
    });
    let replies = if is_twin {
        &mut script.twins
    } else {
        &mut script.others
    };
    let Reply(status, headers, body) = match replies.len() {
        0 => panic!("the test scripts no answer"),
        1 => replies[0].clone(),
        _ => replies.pop_front().unwrap(),
    };
    let mut response = (StatusCode::from_u16(status).unwrap(), body.to_string()).into_response();
    for (name, value) in headers {
        response.headers_mut().insert(name, value.parse().unwrap());
    }
    response
}

/// Checks the token as the specification has it: over the raw text of `sr`.
fn authorized(headers: &HeaderMap, port: u16) -> bool {
    let token = headers["authorization"].to_str().unwrap();
    let Some(fields) = token.strip_prefix("SharedAccessSignature ") else {
        return false;
    };
    let field = |name: &str| {
        fields
            .split('&')
            .find_map(|field| field.split_once('=').filter(|(n, _)| *n == name))
            .map(|(_, value)| value)
    };
    let decode = |text: &str| {
        url::form_urlencoded::parse(format!("x={text}").as_bytes())
            .next()
            .unwrap()
            .1
            .into_owned()
    };
    let (resource, expiry) = (field("sr").unwrap(), field("se").unwrap());
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, KEY);
    let signature = BASE64.decode(decode(field("sig").unwrap())).unwrap();
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    ring::hmac::verify(&key, format!("{resource}\n{expiry}").as_bytes(), &signature).is_ok()
        && decode(resource) == format!("localhost:{port}")
        && expiry.parse::<u64>().unwrap() > now
        && field("skn") == Some("service")
}

struct TlsListener {
    tcp: TcpListener,
    tls: TlsAcceptor,
}

impl axum::serve::Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let Ok((stream, address)) = self.tcp.accept().await else {
                continue;
            };
            // A client that does not trust the certificate ends the handshake: the next one, please.
            if let Ok(stream) = self.tls.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.tcp.local_addr()
    }
}

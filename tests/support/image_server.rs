//! A real HTTPS server for images, with faults on request. For tests only; use it from a test with
//! `#[path = "support/image_server.rs"] mod image_server;`.
//!
//! It runs on a thread of its own, on a free port of 127.0.0.1 under the name `localhost`, with a CA made
//! at start ([`ImageServer::ca_file`]). It knows ranges, `If-Range`, ETag and Last-Modified; it streams
//! files from disk; it keeps a log of requests; it can be slowed down and taken down.
//!
//! ```ignore
//! let server = ImageServer::start();
//! server.put("/a.img", vec![1; 100_000]);
//! server.fault("/a.img", Fault::DropAfter(5_000));
//! assert_eq!(download(&server.url("/a.img"), server.ca_file()).len(), 100_000);
//! assert_eq!(server.requests()[1].range.as_deref(), Some("bytes=5000-"));
//! ```

// Each test uses its own part of this.
#![allow(dead_code)]

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header},
};
use futures_util::stream;
use fwupdated::config::{FetchConfig, FetchProxy};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::{Notify, watch},
};
use tokio_rustls::{TlsAcceptor, rustls};

/// Bytes handed to the connection at a time.
const PIECE: u64 = 16 * 1024;

/// Where a file's bytes come from.
#[derive(Clone)]
pub(crate) enum Contents {
    /// From memory.
    Bytes(Bytes),
    /// From a file on disk, read as it is sent.
    File(PathBuf),
}

impl From<Vec<u8>> for Contents {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes.into())
    }
}

impl From<&[u8]> for Contents {
    fn from(bytes: &[u8]) -> Self {
        bytes.to_vec().into()
    }
}

impl From<&Path> for Contents {
    fn from(path: &Path) -> Self {
        Self::File(path.to_owned())
    }
}

impl From<PathBuf> for Contents {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

/// A file and what the server says about it.
#[derive(Clone)]
pub(crate) struct Resource {
    pub(crate) contents: Contents,
    /// The entity tag, quotes included.
    pub(crate) etag: Option<String>,
    pub(crate) last_modified: Option<String>,
    /// Whether parts of it can be had.
    pub(crate) ranges: bool,
    /// Whether the length is told; otherwise the body is chunked.
    pub(crate) length: bool,
}

/// What goes wrong with one request.
#[derive(Clone)]
pub(crate) enum Fault {
    /// The connection breaks after so many bytes of the body.
    DropAfter(u64),
    /// Silence after so many bytes of the body, on a connection that stays.
    StallAfter(u64),
    /// The body ends properly after so many bytes, whatever was promised.
    EndAfter(u64),
    /// One byte at a time, each after so long.
    Drip(Duration),
    /// As the first three, but at this byte of the file.
    DropAt(u64),
    /// See [`Fault::DropAt`].
    StallAt(u64),
    /// See [`Fault::DropAt`].
    EndAt(u64),
    /// This `Content-Length`, whatever comes.
    Length(u64),
    /// So many more bytes than promised, after the others.
    Extra(u64),
    /// So many more bytes than promised, together with the last of the others.
    ExtraAtOnce(u64),
    /// 200 and the whole file for a range.
    IgnoreRange,
    /// 206, but from a byte further on than asked; for the rest consistent.
    WrongContentRange,
    /// 206, but without saying which part it is.
    NoContentRange,
    /// The file now has this entity tag.
    NewEtag(&'static str),
    /// The file now says neither tag nor time.
    NoValidators,
    /// Sent with this `Content-Encoding`.
    Encoding(&'static str),
    /// This status, these headers and this body.
    Status(u16, &'static [(&'static str, &'static str)], &'static str),
    /// A redirect with this status to there.
    Redirect(u16, String),
}

/// One request that was answered.
#[derive(Debug, Clone)]
pub(crate) struct Logged {
    pub(crate) path: String,
    pub(crate) query: Option<String>,
    pub(crate) range: Option<String>,
    pub(crate) if_range: Option<String>,
    pub(crate) authorization: Option<String>,
    pub(crate) accept_encoding: Option<String>,
    pub(crate) user_agent: Option<String>,
    pub(crate) status: u16,
    /// Bytes of the body handed to the connection so far.
    pub(crate) bytes: u64,
    sent: Arc<AtomicU64>,
}

#[derive(Default)]
struct Shared {
    resources: Mutex<HashMap<String, Resource>>,
    once: Mutex<HashMap<String, VecDeque<Fault>>>,
    always: Mutex<HashMap<String, Fault>>,
    log: Mutex<Vec<Logged>>,
    connections: AtomicUsize,
    versions: AtomicU64,
    /// Bytes a second of each body; 0: as fast as it goes.
    throttle: AtomicU64,
}

/// The server. Ends when dropped.
pub(crate) struct ImageServer {
    shared: Arc<Shared>,
    scheme: &'static str,
    port: u16,
    dir: TempDir,
    ca: Option<Ca>,
    down: watch::Sender<bool>,
    stop: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
}

impl ImageServer {
    /// An HTTPS server with a certificate for `localhost` and 127.0.0.1.
    pub(crate) fn start() -> Self {
        Self::start_with_validity((2020, 1, 1), (2120, 1, 1))
    }

    /// An HTTPS server whose certificate is for another name than its own.
    pub(crate) fn start_for_name(name: &str) -> Self {
        Self::run(Some((&[name], (2020, 1, 1), (2120, 1, 1))), false)
    }

    /// An HTTPS server that wants a certificate of its own CA from each client
    /// ([`Self::make_client_certificate`]).
    pub(crate) fn start_for_known_clients() -> Self {
        Self::run(
            Some((&["localhost", "127.0.0.1"], (2020, 1, 1), (2120, 1, 1))),
            true,
        )
    }

    /// An HTTPS server whose certificate is valid between these days (year, month, day).
    pub(crate) fn start_with_validity(from: (i32, u8, u8), to: (i32, u8, u8)) -> Self {
        Self::run(Some((&["localhost", "127.0.0.1"], from, to)), false)
    }

    /// A server without TLS.
    pub(crate) fn start_plain() -> Self {
        Self::run(None, false)
    }

    fn run(certificate: Option<(&[&str], Day, Day)>, known_clients: bool) -> Self {
        let dir = TempDir::with_prefix("image-server").unwrap();
        let made = certificate
            .map(|(names, from, to)| make_certificates(dir.path(), names, from, to, known_clients));
        let (tls, ca) = made.unzip();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let shared = Arc::new(Shared::default());
        let (down, down_now) = watch::channel(false);
        let stop = Arc::new(Notify::new());
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let thread = std::thread::spawn({
            let (shared, stop) = (Arc::clone(&shared), Arc::clone(&stop));
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(async {
                    let listener = TcpListener::from_std(listener).unwrap();
                    tokio::select! {
                        () = accept(listener, tls, shared, down_now) => {}
                        () = stop.notified() => {}
                    }
                });
            }
        });
        Self {
            shared,
            scheme,
            port,
            dir,
            ca,
            down,
            stop,
            thread: Some(thread),
        }
    }

    /// The URL of `path` (which starts with `/`).
    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}://localhost:{}{path}", self.scheme, self.port)
    }

    /// The same file under the server's other name: another origin.
    pub(crate) fn url_by_address(&self, path: &str) -> String {
        format!("{}://127.0.0.1:{}{path}", self.scheme, self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The CA certificate (PEM) that signed the server's.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// A certificate (PEM) that this server's CA signs, and its key.
    pub(crate) fn make_client_certificate(&self, name: &str) -> (String, String) {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let key = rcgen::KeyPair::generate().unwrap();
        let ca = self.ca.as_ref().expect("a server with TLS");
        let certificate = params.signed_by(&key, ca).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// Puts a file there, with a new entity tag each time.
    pub(crate) fn put(&self, path: &str, contents: impl Into<Contents>) {
        let version = self.shared.versions.fetch_add(1, Ordering::Relaxed);
        let resource = Resource {
            contents: contents.into(),
            etag: Some(format!("\"v{version}\"")),
            last_modified: Some("Mon, 23 Nov 2026 10:00:00 GMT".to_owned()),
            ranges: true,
            length: true,
        };
        self.put_resource(path, resource);
    }

    /// Changes what the server says about a file.
    pub(crate) fn describe(&self, path: &str, change: impl FnOnce(&mut Resource)) {
        change(
            lock(&self.shared.resources)
                .get_mut(path)
                .expect("the file is there"),
        );
    }

    pub(crate) fn put_resource(&self, path: &str, resource: Resource) {
        lock(&self.shared.resources).insert(path.to_owned(), resource);
    }

    pub(crate) fn remove(&self, path: &str) {
        lock(&self.shared.resources).remove(path);
    }

    /// The next request for `path` that no earlier fault is waiting for goes wrong like this.
    pub(crate) fn fault(&self, path: &str, fault: Fault) {
        lock(&self.shared.once)
            .entry(path.to_owned())
            .or_default()
            .push_back(fault);
    }

    /// These go wrong one after the other.
    pub(crate) fn faults(&self, path: &str, faults: impl IntoIterator<Item = Fault>) {
        for fault in faults {
            self.fault(path, fault);
        }
    }

    /// Every request for `path` goes wrong like this (unless one of [`Self::fault`] is waiting).
    pub(crate) fn always(&self, path: &str, fault: Fault) {
        lock(&self.shared.always).insert(path.to_owned(), fault);
    }

    /// From now on all is well.
    pub(crate) fn clear_faults(&self) {
        lock(&self.shared.once).clear();
        lock(&self.shared.always).clear();
    }

    /// Bytes a second of each body; `None`: as fast as it goes.
    pub(crate) fn throttle(&self, bytes_per_second: Option<u64>) {
        let rate = bytes_per_second.unwrap_or(0);
        self.shared.throttle.store(rate, Ordering::Relaxed);
    }

    /// Down: every connection is cut, new ones are closed at once.
    pub(crate) fn set_down(&self, down: bool) {
        self.down.send_replace(down);
    }

    /// Requests so far, in order.
    pub(crate) fn requests(&self) -> Vec<Logged> {
        let mut log = lock(&self.shared.log).clone();
        for logged in &mut log {
            logged.bytes = logged.sent.load(Ordering::Relaxed);
        }
        log
    }

    /// Settings of a fetcher that trusts this server, is quick to retry and quick to give up.
    pub(crate) fn fetch_config(&self) -> FetchConfig {
        FetchConfig {
            ca_file: Some(self.ca_file()).filter(|file| file.exists()),
            insecure_hosts: Vec::new(),
            connect_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(5),
            give_up_after: Duration::from_secs(20),
            retry_max: Duration::from_millis(20),
            max_redirects: 3,
            authorization_file: None,
            authorization_hosts: Vec::new(),
            connections: 4,
            rate_limit: None,
            proxy: FetchProxy::Direct,
            client_certificate: None,
        }
    }

    /// Forgets the requests so far.
    pub(crate) fn clear_requests(&self) {
        lock(&self.shared.log).clear();
    }

    /// Bytes of all bodies so far.
    pub(crate) fn bytes_sent(&self) -> u64 {
        self.requests().iter().map(|logged| logged.bytes).sum()
    }

    /// Connections accepted so far.
    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }
}

impl Drop for ImageServer {
    fn drop(&mut self) {
        self.stop.notify_one();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !std::thread::panicking() {
                ended.expect("the image server panicked");
            }
        }
    }
}

type Day = (i32, u8, u8);
type Ca = rcgen::CertifiedIssuer<'static, rcgen::KeyPair>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no test panics while it holds a lock")
}

/// Writes `ca.pem`; gives the server's side, and the CA.
fn make_certificates(
    dir: &Path,
    names: &[&str],
    from: Day,
    to: Day,
    known_clients: bool,
) -> (TlsAcceptor, Ca) {
    let day = |(year, month, day)| rcgen::date_time_ymd(year, month, day);
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "image server test CA");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let ca =
        rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap();
    std::fs::write(dir.join("ca.pem"), ca.pem()).unwrap();

    let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = rcgen::CertificateParams::new(names).unwrap();
    params.not_before = day(from);
    params.not_after = day(to);
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &ca).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap();
    let config = if known_clients {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(ca.der().clone()).unwrap();
        let verifier =
            rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
        config.with_client_cert_verifier(verifier.build().unwrap())
    } else {
        config.with_no_client_auth()
    };
    let config = config
        .with_single_cert(
            vec![certificate.der().clone()],
            rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    (TlsAcceptor::from(Arc::new(config)), ca)
}

async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    shared: Arc<Shared>,
    down: watch::Receiver<bool>,
) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        if *down.borrow() {
            continue;
        }
        shared.connections.fetch_add(1, Ordering::Relaxed);
        let (tls, shared, mut down) = (tls.clone(), Arc::clone(&shared), down.clone());
        tokio::spawn(async move {
            let serving = async {
                match tls {
                    // A client that trusts another CA ends here; that is its business.
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(stream).await {
                            serve(stream, shared).await;
                        }
                    }
                    None => serve(stream, shared).await,
                }
            };
            tokio::select! {
                () = serving => {}
                _ = down.wait_for(|down| *down) => {}
            }
        });
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, shared: Arc<Shared>) {
    let router = Router::new().fallback(answer).with_state(shared);
    // Broken connections are what these tests are about.
    let _ = auto::Builder::new(TokioExecutor::new())
        .http1_only()
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .await;
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    request: Request,
) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let text = |name: HeaderName| {
        let value = request.headers().get(name)?.to_str().ok()?;
        Some(value.to_owned())
    };
    let once = lock(&shared.once)
        .get_mut(&path)
        .and_then(VecDeque::pop_front);
    let fault = once.or_else(|| lock(&shared.always).get(&path).cloned());
    let resource = lock(&shared.resources).get(&path).cloned();
    let sent = Arc::new(AtomicU64::new(0));
    let response = respond(request.headers(), resource, fault, &shared, &sent);
    lock(&shared.log).push(Logged {
        path,
        query: request.uri().query().map(str::to_owned),
        range: text(header::RANGE),
        if_range: text(header::IF_RANGE),
        authorization: text(header::AUTHORIZATION),
        accept_encoding: text(header::ACCEPT_ENCODING),
        user_agent: text(header::USER_AGENT),
        status: response.status().as_u16(),
        bytes: 0,
        sent,
    });
    Ok(response)
}

fn respond(
    asked: &HeaderMap,
    resource: Option<Resource>,
    fault: Option<Fault>,
    shared: &Arc<Shared>,
    sent: &Arc<AtomicU64>,
) -> Response<Body> {
    match &fault {
        Some(Fault::Status(status, headers, body)) => {
            let mut response = Response::builder().status(*status);
            for (name, value) in *headers {
                response = response.header(*name, *value);
            }
            return response.body(Body::from(*body)).unwrap();
        }
        Some(Fault::Redirect(status, target)) => {
            return Response::builder()
                .status(*status)
                .header(header::LOCATION, target)
                .body(Body::empty())
                .unwrap();
        }
        _ => {}
    }
    let Some(mut resource) = resource else {
        return Response::builder()
            .status(StatusCode::NOT_FOUND)
            .body(Body::from("no such file"))
            .unwrap();
    };
    match &fault {
        Some(Fault::NewEtag(tag)) => resource.etag = Some((*tag).to_owned()),
        Some(Fault::NoValidators) => (resource.etag, resource.last_modified) = (None, None),
        _ => {}
    }
    let total = match &resource.contents {
        Contents::Bytes(bytes) => bytes.len() as u64,
        Contents::File(path) => std::fs::metadata(path).unwrap().len(),
    };
    let ranges = resource.ranges && !matches!(fault, Some(Fault::IgnoreRange));
    let part = wanted_part(asked, &resource, total).filter(|_| ranges);
    let mut headers = HeaderMap::new();
    let mut set = |name: HeaderName, value: &str| {
        headers.insert(name, HeaderValue::from_str(value).unwrap());
    };
    if let Some(etag) = &resource.etag {
        set(header::ETAG, etag);
    }
    if let Some(time) = &resource.last_modified {
        set(header::LAST_MODIFIED, time);
    }
    if ranges {
        set(header::ACCEPT_RANGES, "bytes");
    }
    if let Some(Fault::Encoding(encoding)) = &fault {
        set(header::CONTENT_ENCODING, encoding);
    }
    let (status, start, end) = match part {
        None => (StatusCode::OK, 0, total),
        Some((start, _)) if start >= total => {
            set(header::CONTENT_RANGE, &format!("bytes */{total}"));
            (StatusCode::RANGE_NOT_SATISFIABLE, 0, 0)
        }
        Some((start, end)) => {
            let start = start + u64::from(matches!(fault, Some(Fault::WrongContentRange)));
            if !matches!(fault, Some(Fault::NoContentRange)) {
                let value = format!("bytes {start}-{}/{total}", end - 1);
                set(header::CONTENT_RANGE, &value);
            }
            (StatusCode::PARTIAL_CONTENT, start, end)
        }
    };
    let chunked = matches!(
        fault,
        Some(Fault::EndAfter(_) | Fault::EndAt(_) | Fault::Extra(_) | Fault::ExtraAtOnce(_))
    );
    if let Some(Fault::Length(length)) = fault {
        set(header::CONTENT_LENGTH, &length.to_string());
    } else if resource.length && !chunked {
        set(header::CONTENT_LENGTH, &(end - start).to_string());
    }
    let stream = Sending {
        contents: resource.contents,
        at: start,
        end,
        left: match fault {
            Some(Fault::DropAfter(n) | Fault::StallAfter(n) | Fault::EndAfter(n)) => n,
            Some(Fault::DropAt(n) | Fault::StallAt(n) | Fault::EndAt(n)) => n.saturating_sub(start),
            _ => u64::MAX,
        },
        extra: match fault {
            Some(Fault::Extra(n) | Fault::ExtraAtOnce(n)) => n,
            _ => 0,
        },
        fault,
        shared: Arc::clone(shared),
        sent: Arc::clone(sent),
    };
    let mut response = Response::new(Body::from_stream(stream::unfold(stream, Sending::next)));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// The range asked for (start, end), if it is one and `If-Range` holds.
fn wanted_part(asked: &HeaderMap, resource: &Resource, total: u64) -> Option<(u64, u64)> {
    let range = asked.get(header::RANGE)?.to_str().ok()?;
    if let Some(condition) = asked.get(header::IF_RANGE) {
        let condition = condition.to_str().ok();
        let holds = condition.is_some()
            && (condition == resource.etag.as_deref()
                || condition == resource.last_modified.as_deref());
        if !holds {
            return None;
        }
    }
    let (start, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let start = start.parse().ok()?;
    let end = match last {
        "" => total,
        last => last.parse::<u64>().ok()?.saturating_add(1).min(total),
    };
    Some((start, end))
}

/// A body on its way.
struct Sending {
    contents: Contents,
    at: u64,
    end: u64,
    /// Bytes until the fault.
    left: u64,
    extra: u64,
    fault: Option<Fault>,
    shared: Arc<Shared>,
    sent: Arc<AtomicU64>,
}

impl Sending {
    async fn next(mut self) -> Option<(io::Result<Bytes>, Self)> {
        if self.left == 0 {
            // Lets what was sent before leave the server, so that tests can count on it.
            tokio::time::sleep(Duration::from_millis(30)).await;
            match self.fault {
                Some(Fault::DropAfter(_) | Fault::DropAt(_)) => {
                    return Some((Err(io::Error::other("dropped on request")), self));
                }
                Some(Fault::StallAfter(_) | Fault::StallAt(_)) => std::future::pending().await,
                _ => return None,
            }
        }
        let mut length = PIECE.min(self.end - self.at).min(self.left);
        if let Some(Fault::Drip(pause)) = &self.fault {
            length = length.min(1);
            tokio::time::sleep(*pause).await;
        }
        if length == 0 {
            let extra = usize::try_from(std::mem::take(&mut self.extra)).unwrap();
            return (extra > 0).then(|| (Ok(vec![0xee; extra].into()), self));
        }
        let mut bytes = match &self.contents {
            Contents::Bytes(bytes) => {
                let start = usize::try_from(self.at).unwrap();
                bytes.slice(start..start + usize::try_from(length).unwrap())
            }
            Contents::File(path) => {
                let mut bytes = vec![0; usize::try_from(length).unwrap()];
                let file = std::fs::File::open(path).unwrap();
                file.read_exact_at(&mut bytes, self.at).unwrap();
                bytes.into()
            }
        };
        let rate = self.shared.throttle.load(Ordering::Relaxed);
        if let Some(micros) = (length * 1_000_000).checked_div(rate) {
            tokio::time::sleep(Duration::from_micros(micros)).await;
        }
        self.at += length;
        self.left -= length;
        if matches!(self.fault, Some(Fault::ExtraAtOnce(_))) && self.at == self.end {
            let extra = usize::try_from(std::mem::take(&mut self.extra)).unwrap();
            bytes = [&bytes[..], &vec![0xee; extra]].concat().into();
        }
        self.sent.fetch_add(length, Ordering::Relaxed);
        Some((Ok(bytes), self))
    }
}

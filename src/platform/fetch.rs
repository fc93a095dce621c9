//! DOWNLOADS the image: resumed by itself, never mixed from two versions of a file, never in clear by
//! accident.
//!
//! [`Fetcher::open`] asks for a range of a file and gives a [`Download`], whose bytes come in order and
//! each once, whatever the network does meanwhile: after a drop it asks for the rest (`Range` with
//! `If-Range`), checks that the answer continues exactly there in the same file, and backs off with full
//! jitter, as `Retry-After` says, until [`FetchConfig::give_up_after`] passed without progress. What drips
//! in at less than 1 KiB a second, over ten times [`FetchConfig::read_timeout`], is no progress.
//! What no repetition can cure ends at once with an error that says what to do.
//!
//! Rules: https unless the host is listed in `fetch.insecure_hosts`; a redirect never leads from https to
//! http; the `Authorization` header goes to the hosts in `fetch.authorization_hosts` only, and never along
//! with a redirect to another origin; no automatic decompression (it
//! would break ranges and hashes); no time limit on a whole body, only on silence and on a drip. The query of a URL is a
//! secret: neither errors nor logs contain it.

mod answer;
mod download;
mod error;
mod patience;
mod validator;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use reqwest::{
    Client, Method, Request, Response, StatusCode, Url,
    header::{ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderValue, IF_RANGE, LOCATION, RANGE},
    redirect,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use tracing::warn;

use self::{
    answer::{Answer, content_range, text_of},
    patience::{Patience, retry_after},
    validator::ContentRange,
};
pub use self::{
    download::Download,
    error::FetchError,
    validator::{ByteRange, Comparison, Validator},
};
use crate::{
    config::FetchConfig,
    platform::tls,
    update::{failure::Failure, uri::PackageUri},
};

/// Most of an error page that is read to find out what a refusal means.
const ERROR_PAGE_BYTES: usize = 16 * 1024;

/// A download waits before it asks again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retrying {
    /// Why the last attempt failed.
    pub reason: Failure,
    /// Failed attempts since the last new byte.
    pub attempts: u32,
    /// The pause before the next attempt.
    pub pause: Duration,
}

/// Downloads files. Cheap to clone; clones share connections and counters.
#[derive(Clone)]
pub struct Fetcher(Arc<Inner>);

struct Inner {
    client: Client,
    insecure_hosts: Vec<String>,
    authorization_file: Option<PathBuf>,
    authorization_hosts: Vec<String>,
    connect_timeout: Duration,
    read_timeout: Duration,
    give_up_after: Duration,
    retry_max: Duration,
    max_redirects: u8,
    received: AtomicU64,
    retrying: watch::Sender<Option<Retrying>>,
}

impl Fetcher {
    /// A fetcher with the settings of `[fetch]`. Connects to nobody.
    ///
    /// # Errors
    /// When the CA certificates or the proxy settings cannot be used.
    pub fn new(config: &FetchConfig) -> Result<Self, FetchError> {
        let mut tls = (*tls::client_config(config.ca_file.as_deref())?).clone();
        // One body at a time: HTTP/2 would have nothing to multiplex, and blob stores speak 1.1.
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let client = Client::builder()
            .tls_backend_preconfigured(tls)
            .http1_only()
            .redirect(redirect::Policy::none())
            .referer(false)
            .connect_timeout(config.connect_timeout)
            .user_agent(concat!("fwupdated/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(FetchError::Setup)?;
        Ok(Self(Arc::new(Inner {
            client,
            insecure_hosts: config.insecure_hosts.clone(),
            authorization_file: config.authorization_file.clone(),
            authorization_hosts: config.authorization_hosts.clone(),
            connect_timeout: config.connect_timeout,
            read_timeout: config.read_timeout,
            give_up_after: config.give_up_after,
            retry_max: config.retry_max,
            max_redirects: config.max_redirects,
            received: AtomicU64::new(0),
            retrying: watch::Sender::new(None),
        })))
    }

    /// Bytes of bodies received so far by this fetcher and its clones, those included that a server sent
    /// again because it ignores ranges.
    #[must_use]
    pub fn bytes_received(&self) -> u64 {
        self.0.received.load(Ordering::Relaxed)
    }

    /// Tells when a download waits before it asks again, and `None` when it goes on.
    #[must_use]
    pub fn retrying(&self) -> watch::Receiver<Option<Retrying>> {
        self.0.retrying.subscribe()
    }

    /// Asks for `range` of the file at `uri`, again and again while that may help. With `expect` it must
    /// be the same file as then. An empty range asks the server nothing.
    ///
    /// # Errors
    /// See [`FetchError`]: final ones at once, the others after `give_up_after`.
    pub async fn open(
        &self,
        uri: &PackageUri,
        range: impl Into<ByteRange>,
        expect: Option<&Validator>,
    ) -> Result<Download, FetchError> {
        let range = range.into();
        if range.end.is_some_and(|end| end <= range.start) {
            return Ok(Download::empty(self, uri, range, expect));
        }
        let mut patience = self.patience();
        loop {
            match self.ask(uri, range, expect).await {
                Ok(answer) => {
                    self.goes_on();
                    return Ok(Download::new(self, uri, range, answer));
                }
                // An empty file has no first byte that could be asked for.
                Err(FetchError::RangeUnsatisfiable {
                    start: 0,
                    total: Some(0),
                    ..
                }) => {
                    let empty = Validator {
                        length: Some(0),
                        ..Validator::default()
                    };
                    return Ok(Download::empty(self, uri, range, Some(&empty)));
                }
                Err(error) => sleep_until(self.schedule(uri, error, &mut patience)?).await,
            }
        }
    }

    /// The whole of a small file, such as a detached signature; `None` when the server has none.
    ///
    /// # Errors
    /// See [`FetchError`]; `file-too-large` when it has more than `max_bytes`.
    pub async fn get_small(
        &self,
        uri: &PackageUri,
        max_bytes: usize,
    ) -> Result<Option<Vec<u8>>, FetchError> {
        let mut download = match self.open(uri, .., None).await {
            Ok(download) => download,
            Err(FetchError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let too_large = || FetchError::TooLarge {
            uri: uri.to_string(),
            limit: max_bytes,
        };
        if download
            .total()
            .is_some_and(|total| total > max_bytes as u64)
        {
            return Err(too_large());
        }
        let mut contents = Vec::new();
        while let Some(bytes) = download.next_chunk().await? {
            if contents.len() + bytes.len() > max_bytes {
                return Err(too_large());
            }
            contents.extend_from_slice(&bytes);
        }
        Ok(Some(contents))
    }

    fn patience(&self) -> Patience {
        Patience::new(self.0.retry_max, self.0.give_up_after, self.0.read_timeout)
    }

    fn goes_on(&self) {
        self.0
            .retrying
            .send_if_modified(|retrying| retrying.take().is_some());
    }

    /// When to try again after `error`, which everyone who watches is told.
    ///
    /// # Errors
    /// `error` itself when nothing is to be hoped for.
    fn schedule(
        &self,
        uri: &PackageUri,
        error: FetchError,
        patience: &mut Patience,
    ) -> Result<Instant, FetchError> {
        if !error.may_pass() {
            return Err(error);
        }
        let Some(pause) = patience.pause(Instant::now(), error.retry_after()) else {
            return Err(error);
        };
        let reason = Failure::from(&error);
        let attempts = patience.attempts();
        warn!(%uri, fwupdated_error_code = reason.code, attempts, ?pause, "download waits: {}", reason.message);
        self.0.retrying.send_replace(Some(Retrying {
            reason,
            attempts,
            pause,
        }));
        Ok(Instant::now() + pause)
    }

    /// One request for `range`, redirects included; the answer is checked against it and `before`.
    async fn ask(
        &self,
        uri: &PackageUri,
        range: ByteRange,
        before: Option<&Validator>,
    ) -> Result<Answer, FetchError> {
        uri.check_transport(&self.0.insecure_hosts)?;
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if range != ByteRange::WHOLE {
            let last = range
                .end
                .map_or_else(String::new, |end| (end - 1).to_string());
            let value = format!("bytes={}-{last}", range.start);
            headers.insert(RANGE, header(&value).expect("digits are a valid header"));
            // A tag that is no valid header cannot have come from one; without it the answer is compared
            // all the same.
            if let Some(value) = before.and_then(Validator::if_range).and_then(header) {
                headers.insert(IF_RANGE, value);
            }
        }
        let response = self.follow(uri, &headers).await?;
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => {
                Answer::judge(uri, range, before, response)
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                let total = match content_range(&response) {
                    Some(ContentRange::Unsatisfied { total }) => Some(total),
                    _ => None,
                };
                let length = before.and_then(|before| before.length);
                Err(match (length, total) {
                    (Some(length), Some(total)) if length != total => FetchError::Changed {
                        uri: uri.to_string(),
                        what: format!("{length} bytes before, {total} now"),
                    },
                    _ => FetchError::RangeUnsatisfiable {
                        uri: uri.to_string(),
                        start: range.start,
                        total,
                    },
                })
            }
            status => Err(self.refusal(uri, status, response).await),
        }
    }

    /// Sends the request and follows redirects; the answer is none.
    async fn follow(&self, uri: &PackageUri, headers: &HeaderMap) -> Result<Response, FetchError> {
        let mut url = uri.secret().clone();
        // Whoever sends an update chooses its address, but not who hears the secret; plain http would show it
        // to everyone on the way.
        let trusted = url.scheme() == "https" && uri.is_at_one_of(&self.0.authorization_hosts);
        let mut authorization = match &self.0.authorization_file {
            Some(file) if trusted => Some(read_authorization(file).await?),
            _ => None,
        };
        for _ in 0..=self.0.max_redirects {
            let mut request = Request::new(Method::GET, url.clone());
            *request.headers_mut() = headers.clone();
            if let Some(value) = &authorization {
                request.headers_mut().insert(AUTHORIZATION, value.clone());
            }
            let response = self.send(uri, request).await?;
            let status = response.status();
            if !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let next =
                redirect_target(&url, &response).ok_or_else(|| FetchError::RedirectInvalid {
                    uri: uri.to_string(),
                    status,
                })?;
            let host = next.host_str().unwrap_or_default();
            let listed = |host: &str| {
                let mut hosts = self.0.insecure_hosts.iter();
                hosts.any(|listed| listed.eq_ignore_ascii_case(host))
            };
            if next.scheme() == "http" && (url.scheme() == "https" || !listed(host)) {
                return Err(FetchError::RedirectInsecure {
                    uri: uri.to_string(),
                    host: host.to_owned(),
                });
            }
            if next.origin() != url.origin() {
                // For good: a way back must not bring it back.
                authorization = None;
            }
            url = next;
        }
        Err(FetchError::RedirectLimit {
            uri: uri.to_string(),
            limit: self.0.max_redirects,
        })
    }

    async fn send(&self, uri: &PackageUri, request: Request) -> Result<Response, FetchError> {
        let host = request.url().host_str().unwrap_or_default().to_owned();
        let after = self.0.connect_timeout + self.0.read_timeout;
        match timeout(after, self.0.client.execute(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(FetchError::from_send(
                error,
                uri,
                &host,
                self.0.connect_timeout,
            )),
            Err(_) => Err(FetchError::NoAnswer {
                uri: uri.to_string(),
                host,
                after,
            }),
        }
    }

    /// What a status that brings no file means.
    async fn refusal(
        &self,
        uri: &PackageUri,
        status: StatusCode,
        response: Response,
    ) -> FetchError {
        let uri = uri.to_string();
        match status.as_u16() {
            404 | 410 => FetchError::NotFound { uri, status },
            401 | 403 => {
                let page = timeout(self.0.read_timeout, error_page(response)).await;
                if page.is_ok_and(|page| tells_of_expiry(&page)) {
                    FetchError::UrlExpired { uri, status }
                } else {
                    FetchError::Forbidden { uri, status }
                }
            }
            408 | 425 | 429 | 500..=599 => FetchError::Busy {
                uri,
                status,
                retry_after: retry_after(response.headers()),
            },
            _ => FetchError::Status { uri, status },
        }
    }
}

impl std::fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fetcher")
            .field("received", &self.bytes_received())
            .finish_non_exhaustive()
    }
}

fn header(text: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(text).ok()
}

fn redirect_target(from: &Url, response: &Response) -> Option<Url> {
    let target = from.join(text_of(response, LOCATION)?).ok()?;
    let usable = matches!(target.scheme(), "https" | "http") && target.has_host();
    usable.then_some(target)
}

/// Read for each request, so that a token in it may be renewed while the daemon runs.
async fn read_authorization(file: &PathBuf) -> Result<HeaderValue, FetchError> {
    let text = tokio::fs::read_to_string(file).await.map_err(|source| {
        FetchError::AuthorizationUnreadable {
            file: file.clone(),
            source,
        }
    })?;
    let line = text.trim();
    let mut value = header(line)
        .filter(|_| !line.is_empty())
        .ok_or_else(|| FetchError::AuthorizationInvalid { file: file.clone() })?;
    value.set_sensitive(true);
    Ok(value)
}

async fn error_page(mut response: Response) -> String {
    let mut page = Vec::new();
    while let Ok(Some(bytes)) = response.chunk().await {
        page.extend_from_slice(&bytes);
        if page.len() >= ERROR_PAGE_BYTES {
            break;
        }
    }
    String::from_utf8_lossy(&page).into_owned()
}

/// How Azure, S3 and Google Cloud Storage say that a signed URL is outside its time frame.
fn tells_of_expiry(page: &str) -> bool {
    [
        "Signature not valid in the specified time frame",
        "Request has expired",
        "ExpiredToken",
    ]
    .iter()
    .any(|sign| page.contains(sign))
}

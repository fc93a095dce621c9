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
//! with a redirect to another origin; the device's certificate is shown to the hosts in
//! `fetch.client_certificate_hosts` only; no automatic decompression (it would break ranges and hashes); no time
//! limit on a whole body, only on silence and on a drip. The query of a URL is a secret: neither errors nor logs
//! contain it.
//!
//! Several downloads may run at once. They share the connections, the bandwidth limit (`fetch.rate_limit`) and
//! the time without progress after which all of them give up: while one of them gets bytes, another may go on
//! trying.

mod answer;
mod clients;
mod codes;
mod download;
mod error;
mod patience;
mod rate;
mod refusal;
mod request;
mod signed;
mod together;
mod unanswered;
mod validator;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tracing::warn;

use self::{
    answer::Answer,
    clients::Clients,
    patience::Patience,
    rate::Rate,
    together::{Member, Together},
};
pub use self::{
    download::Download,
    error::FetchError,
    validator::{ByteRange, Comparison, Validator},
};
use crate::{
    config::FetchConfig,
    update::{events, failure::Failure, uri::PackageUri},
};

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

/// How long a server may keep a file back that the update can do without.
const EXTRA: Duration = Duration::from_secs(60);

/// Downloads files. Cheap to clone; clones share connections, counters, the bandwidth limit and, unless
/// [`Fetcher::afresh`] made them, the time that is left for trying.
#[derive(Clone)]
pub struct Fetcher {
    inner: Arc<Inner>,
    together: Arc<Together>,
}

struct Inner {
    clients: Clients,
    insecure_hosts: Vec<String>,
    authorization_file: Option<PathBuf>,
    authorization_hosts: Vec<String>,
    connect_timeout: Duration,
    read_timeout: Duration,
    retry_max: Duration,
    max_redirects: u8,
    connections: usize,
    rate: Option<Rate>,
    received: AtomicU64,
}

impl Fetcher {
    /// A fetcher with the settings of `[fetch]`. Connects to nobody.
    ///
    /// # Errors
    /// When the CA certificates or the proxy settings cannot be used.
    pub fn new(config: &FetchConfig) -> Result<Self, FetchError> {
        let inner = Inner {
            clients: Clients::new(config)?,
            insecure_hosts: config.insecure_hosts.clone(),
            authorization_file: config.authorization_file.clone(),
            authorization_hosts: config.authorization_hosts.clone(),
            connect_timeout: config.connect_timeout,
            read_timeout: config.read_timeout,
            retry_max: config.retry_max,
            max_redirects: config.max_redirects,
            connections: config.connections,
            rate: config.rate_limit.map(Rate::new),
            received: AtomicU64::new(0),
        };
        let retrying = watch::Sender::new(None);
        let together = Together::new(config.give_up_after, config.read_timeout, retrying);
        Ok(Self {
            inner: Arc::new(inner),
            together,
        })
    }

    /// The same fetcher for another update: the time that it may go on without progress begins anew, whatever
    /// failed before. The downloads that it and its clones open share that time.
    #[must_use]
    pub fn afresh(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            together: self.together.afresh(),
        }
    }

    /// The same fetcher for a file that the update can do without: it gives up after a minute without progress, on
    /// a budget of its own.
    #[must_use]
    pub fn for_an_extra(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            together: self.together.within(EXTRA),
        }
    }

    /// Bytes of bodies received so far by this fetcher and its clones, those included that a server sent
    /// again because it ignores ranges.
    #[must_use]
    pub fn bytes_received(&self) -> u64 {
        self.inner.received.load(Ordering::Relaxed)
    }

    /// Tells when the download is at a halt, because each part of it that is under way waits before it asks
    /// again; `None` when it goes on, or ended.
    #[must_use]
    pub fn retrying(&self) -> watch::Receiver<Option<Retrying>> {
        self.together.retrying()
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
        let (member, mut patience) = (self.together.join(), self.patience());
        loop {
            match self.ask(uri, range, expect).await {
                Ok(answer) => {
                    member.answered();
                    return Ok(Download::new(self, uri, range, answer, member, patience));
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
                Err(error) => sleep_until(schedule(uri, error, &mut patience, &member)?).await,
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
        let Inner {
            retry_max,
            read_timeout,
            connections,
            ..
        } = *self.inner;
        Patience::new(retry_max, read_timeout, connections)
    }
}

/// When to try again after `error`, which everyone who watches is told.
///
/// # Errors
/// `error` itself when nothing is to be hoped for.
fn schedule(
    uri: &PackageUri,
    error: FetchError,
    patience: &mut Patience,
    member: &Member,
) -> Result<Instant, FetchError> {
    if !error.may_pass() {
        return Err(error);
    }
    let now = Instant::now();
    let left = member.left(now);
    if left.is_zero() {
        return Err(error);
    }
    let pause = patience.pause(left, error.retry_after());
    let reason = Failure::from(&error);
    let attempts = patience.attempts();
    warn!(
        message_id = events::DOWNLOAD_WAITS,
        fwupdated_error_code = reason.code,
        "{uri}: the download waits {:.1} s after {attempts} attempts: {reason}",
        pause.as_secs_f32()
    );
    let retrying = Retrying {
        reason,
        attempts,
        pause,
    };
    member.waits(retrying, now);
    Ok(now + pause)
}

impl std::fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fetcher")
            .field("received", &self.bytes_received())
            .finish_non_exhaustive()
    }
}

//! One file, or a range of it, on its way.

use std::{pin::Pin, sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::{
    Answer, ByteRange, FetchError, Fetcher, Validator, patience::Patience, schedule,
    together::Member,
};
use crate::update::uri::PackageUri;

/// How long to wait for the end of a body all of whose bytes are here.
const END_OF_BODY: Duration = Duration::from_secs(1);

/// A request on its way. Owned, so that a caller who gives up waiting does not cancel it.
type Asking = Pin<Box<dyn Future<Output = Result<Answer, FetchError>> + Send>>;

/// The bytes of a range of a file, in order, each once.
pub struct Download {
    fetcher: Fetcher,
    uri: PackageUri,
    range: ByteRange,
    /// The next byte to give out.
    next: u64,
    total: Option<u64>,
    validator: Validator,
    ranges: bool,
    asking: Option<Asking>,
    body: Option<Answer>,
    /// Until when the next bytes must come, once somebody waits for them.
    silent_until: Option<Instant>,
    /// The server ended a body whose length it had not told: that is the end.
    ended: bool,
    patience: Patience,
    /// Among those that are under way; `None` when there was nothing to ask for.
    member: Option<Member>,
    /// Not to read or ask before: a pause after a failure, or the bandwidth limit.
    resume_at: Option<Instant>,
}

impl Download {
    pub(super) fn new(
        fetcher: &Fetcher,
        uri: &PackageUri,
        range: ByteRange,
        answer: Answer,
        member: Member,
        patience: Patience,
    ) -> Self {
        Self {
            member: Some(member),
            patience,
            total: answer.total,
            validator: answer.validator.clone(),
            ranges: answer.ranges,
            body: Some(answer),
            ..Self::empty(fetcher, uri, range, None)
        }
    }

    pub(super) fn empty(
        fetcher: &Fetcher,
        uri: &PackageUri,
        range: ByteRange,
        expect: Option<&Validator>,
    ) -> Self {
        let validator = expect.cloned().unwrap_or_default();
        Self {
            fetcher: fetcher.clone(),
            uri: uri.clone(),
            range,
            next: range.start,
            total: validator.length,
            validator,
            ranges: false,
            asking: None,
            body: None,
            silent_until: None,
            ended: false,
            patience: fetcher.patience(),
            member: None,
            resume_at: None,
        }
    }

    /// Length of the whole file, if the server has told it.
    #[must_use]
    pub fn total(&self) -> Option<u64> {
        self.total
    }

    /// What tells this version of the file from others; store it to continue later.
    #[must_use]
    pub fn validator(&self) -> &Validator {
        &self.validator
    }

    /// Whether the server gives parts of the file, as far as it has shown. If not, a range costs the
    /// whole file up to its end.
    #[must_use]
    pub fn supports_ranges(&self) -> bool {
        self.ranges
    }

    /// Where in the file the next byte lies.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.next
    }

    /// The next bytes, never empty; `None` at the end of the range. After a drop it waits and continues by
    /// itself. The call may be dropped while it waits and made again: no byte, request, pause or deadline
    /// is lost.
    ///
    /// # Errors
    /// See [`FetchError`]: final ones at once, the others after `give_up_after` without progress. After
    /// an error the download may be asked again; it then tries to continue at once.
    pub async fn next_chunk(&mut self) -> Result<Option<Bytes>, FetchError> {
        loop {
            if self.finished() {
                self.leave().await?;
                self.member = None;
                return Ok(None);
            }
            if let Some(resume_at) = self.resume_at {
                sleep_until(resume_at).await;
                self.resume_at = None;
            }
            match self.step().await {
                Ok(Some(bytes)) => {
                    self.patience.progress();
                    self.member().progress(bytes.len() as u64, Instant::now());
                    return Ok(Some(bytes));
                }
                Ok(None) => {}
                Err(error) => {
                    self.body = None;
                    let member = self.member.as_ref().expect("it is not finished");
                    let resume_at = schedule(&self.uri, error, &mut self.patience, member)?;
                    self.resume_at = Some(resume_at);
                }
            }
        }
    }

    fn member(&self) -> &Member {
        self.member.as_ref().expect("only what is under way asks")
    }

    /// One past the last byte to give out, if it is known.
    fn stop(&self) -> Option<u64> {
        match (self.range.end, self.total) {
            (Some(end), Some(total)) => Some(end.min(total)),
            (end, total) => end.or(total),
        }
    }

    fn finished(&self) -> bool {
        self.ended || self.stop().is_some_and(|stop| self.next >= stop)
    }

    /// Asks or reads once. `None`: no new byte yet, but no error either.
    async fn step(&mut self) -> Result<Option<Bytes>, FetchError> {
        if self.body.is_none() {
            return self.resume().await.map(|()| None);
        }
        let alone = self.patience.too_slow();
        if let Some((bytes, after)) = alone.or_else(|| self.member().too_slow()) {
            return Err(FetchError::TooSlow {
                uri: self.uri.to_string(),
                at: self.next,
                bytes,
                after,
            });
        }
        let silence = self.fetcher.inner.read_timeout;
        let body = self.body.as_mut().expect("it was there just now");
        let until = *self
            .silent_until
            .get_or_insert_with(|| Instant::now() + silence);
        let came = timeout_at(until, body.response.chunk()).await;
        self.silent_until = None;
        let began = until - silence;
        let ended = Instant::now().min(until);
        self.patience.waited(ended.saturating_duration_since(began));
        self.member().waited(began, ended);
        match came {
            Ok(Ok(Some(bytes))) => self.accept(bytes),
            Ok(Ok(None)) => self.body_ended().map(|()| None),
            Ok(Err(error)) => Err(self.dropped(Some(error))),
            Err(_) => Err(FetchError::Stalled {
                uri: self.uri.to_string(),
                at: self.next,
                after: silence,
            }),
        }
    }

    /// Asks for what is missing.
    async fn resume(&mut self) -> Result<(), FetchError> {
        let rest = ByteRange {
            start: self.next,
            end: self.range.end,
        };
        let asking = self.asking.get_or_insert_with(|| {
            let (fetcher, uri) = (self.fetcher.clone(), self.uri.clone());
            let validator = self.validator.clone();
            Box::pin(async move { fetcher.ask(&uri, rest, Some(&validator)).await })
        });
        let answer = asking.await;
        self.asking = None;
        let answer = match answer {
            Ok(answer) => answer,
            // Only the end of a file of untold length was missing.
            Err(FetchError::RangeUnsatisfiable {
                total: Some(total), ..
            }) if self.total.is_none() && total == self.next => {
                self.ended = true;
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.ranges = answer.ranges;
        // A server may say less in a later answer; what it said first still holds.
        self.total = self.total.or(answer.total);
        self.validator.length = self.total;
        self.body = Some(answer);
        Ok(())
    }

    /// Takes what came; `None` when all of it was here already or lies behind the range.
    fn accept(&mut self, mut bytes: Bytes) -> Result<Option<Bytes>, FetchError> {
        let body = self.body.as_mut().expect("bytes come from a body");
        let came = bytes.len() as u64;
        let inner = &self.fetcher.inner;
        inner.received.fetch_add(came, Ordering::Relaxed);
        self.patience.received(came);
        if let Some(member) = &self.member {
            member.received(came);
        }
        if let Some(rate) = &inner.rate {
            self.resume_at = Some(rate.take(came, Instant::now()));
        }
        if body.at == 0 && body.page && bytes.trim_ascii_start().starts_with(b"<") {
            return Err(FetchError::WebPage {
                uri: self.uri.to_string(),
            });
        }
        let start = body.at;
        body.at += came;
        if let Some(promised) = body.end.or(self.total)
            && body.at > promised
        {
            return Err(FetchError::TooLong {
                uri: self.uri.to_string(),
                promised,
            });
        }
        let known = self.next.saturating_sub(start).min(came);
        let left = self.stop().map_or(u64::MAX, |stop| stop - self.next);
        bytes = bytes.split_off(usize::try_from(known).expect("at most the length of the bytes"));
        bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        self.next += bytes.len() as u64;
        Ok((!bytes.is_empty()).then_some(bytes))
    }

    fn body_ended(&mut self) -> Result<(), FetchError> {
        let body = self.body.take().expect("only a body ends");
        if body.end.or(self.total).is_some() {
            return Err(self.dropped(None));
        }
        if body.at < self.next {
            return Err(FetchError::Changed {
                uri: self.uri.to_string(),
                what: format!(
                    "it had at least {} bytes and has {} now",
                    self.next, body.at
                ),
            });
        }
        self.total = Some(body.at);
        self.validator.length = self.total;
        self.ended = true;
        Ok(())
    }

    fn dropped(&self, source: Option<reqwest::Error>) -> FetchError {
        FetchError::Dropped {
            uri: self.uri.to_string(),
            at: self.next,
            source: source.map(reqwest::Error::without_url),
        }
    }

    /// All bytes are here: sees the body end, which lets the connection be used again, unless there is
    /// more of it that nobody wants.
    async fn leave(&mut self) -> Result<(), FetchError> {
        let Some(mut body) = self.body.take() else {
            return Ok(());
        };
        let promised = body.end.or(self.total);
        if promised.is_none_or(|end| body.at < end) {
            return Ok(());
        }
        match timeout(END_OF_BODY, body.response.chunk()).await {
            Ok(Ok(Some(bytes))) if !bytes.is_empty() => Err(FetchError::TooLong {
                uri: self.uri.to_string(),
                promised: body.at,
            }),
            // Whatever else happens there: everything that was asked for is here.
            _ => Ok(()),
        }
    }
}

impl std::fmt::Debug for Download {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Download")
            .field("uri", &self.uri)
            .field("range", &self.range)
            .field("next", &self.next)
            .field("total", &self.total)
            .finish_non_exhaustive()
    }
}

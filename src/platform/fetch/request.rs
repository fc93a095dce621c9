//! One request for a range: which secrets go along, which redirects are followed, and whether what answers is
//! a file at all.
//!
//! Guarantees: a redirect never leads out of TLS; the `Authorization` header goes to the hosts listed for it
//! and never along to another origin; the head of an answer comes in bounded time and size.

use std::path::Path;

use reqwest::{
    Method, Request, Response, StatusCode, Url,
    header::{ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderValue, IF_RANGE, LOCATION, RANGE},
};
use tokio::time::{sleep_until, timeout};

use super::{
    FetchError, Fetcher, Validator,
    answer::{Answer, content_range, text_of},
    error::shown,
    refusal::refusal,
    validator::{ByteRange, ContentRange},
};
use crate::update::uri::PackageUri;

impl Fetcher {
    /// One request for `range`, redirects included; the answer is checked against it and `before`.
    pub(super) async fn ask(
        &self,
        uri: &PackageUri,
        range: ByteRange,
        before: Option<&Validator>,
    ) -> Result<Answer, FetchError> {
        uri.check_transport(&self.inner.insecure_hosts)?;
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
        if let Some(free_at) = self.inner.rate.as_ref().and_then(|rate| rate.free_at()) {
            sleep_until(free_at).await;
        }
        let (url, response) = self.follow(uri, &headers).await?;
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
            _ => {
                let shows = self.inner.clients.shows_certificate_to(&url);
                Err(refusal(uri, &url, shows, response, self.inner.read_timeout).await)
            }
        }
    }

    /// Sends the request and follows redirects; the answer is none, and from the address it comes with.
    async fn follow(
        &self,
        uri: &PackageUri,
        headers: &HeaderMap,
    ) -> Result<(Url, Response), FetchError> {
        let mut url = uri.secret().clone();
        // Whoever sends an update chooses its address, but not who hears the secret; plain http would show it
        // to everyone on the way.
        let trusted = url.scheme() == "https" && uri.is_at_one_of(&self.inner.authorization_hosts);
        let mut authorization = match &self.inner.authorization_file {
            Some(file) if trusted => Some(read_authorization(file).await?),
            _ => None,
        };
        let mut seen = Vec::new();
        for _ in 0..=self.inner.max_redirects {
            let mut request = Request::new(Method::GET, url.clone());
            *request.headers_mut() = headers.clone();
            if let Some(value) = &authorization {
                request.headers_mut().insert(AUTHORIZATION, value.clone());
            }
            let response = self.send(uri, request).await?;
            let status = response.status();
            if !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok((url, response));
            }
            let next =
                redirect_target(&url, &response).ok_or_else(|| FetchError::RedirectInvalid {
                    uri: uri.to_string(),
                    status,
                })?;
            let host = next.host_str().unwrap_or_default();
            let listed = |host: &str| {
                let mut hosts = self.inner.insecure_hosts.iter();
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
            seen.push(std::mem::replace(&mut url, next));
        }
        // Told apart only now: a server may well send a client once around and then answer.
        let again = seen.contains(&url);
        Err(match again {
            true => FetchError::RedirectLoop {
                uri: uri.to_string(),
                back_to: shown(&url),
            },
            false => FetchError::RedirectLimit {
                uri: uri.to_string(),
                limit: self.inner.max_redirects,
            },
        })
    }

    async fn send(&self, uri: &PackageUri, request: Request) -> Result<Response, FetchError> {
        let host = request.url().host_str().unwrap_or_default().to_owned();
        let shows = self.inner.clients.shows_certificate_to(request.url());
        let client = self.inner.clients.at(request.url()).await?;
        let after = self.inner.connect_timeout + self.inner.read_timeout;
        match timeout(after, client.execute(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(FetchError::from_send(
                error,
                uri,
                &host,
                shows,
                self.inner.connect_timeout,
            )),
            Err(_) => Err(FetchError::NoAnswer {
                uri: uri.to_string(),
                host,
                after,
            }),
        }
    }
}

fn header(text: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(text).ok()
}

fn redirect_target(from: &Url, response: &Response) -> Option<Url> {
    let target = from.join(text_of(response, LOCATION)?).ok()?;
    let usable = matches!(target.scheme(), "https" | "http")
        && target.has_host()
        && target.username().is_empty()
        && target.password().is_none();
    usable.then_some(target)
}

/// Read for each request, so that a token in it may be renewed while the daemon runs.
async fn read_authorization(file: &Path) -> Result<HeaderValue, FetchError> {
    let text = tokio::fs::read_to_string(file).await.map_err(|source| {
        FetchError::AuthorizationUnreadable {
            file: file.to_owned(),
            source,
        }
    })?;
    let line = text.trim();
    let mut value = header(line).filter(|_| !line.is_empty()).ok_or_else(|| {
        FetchError::AuthorizationInvalid {
            file: file.to_owned(),
        }
    })?;
    value.set_sensitive(true);
    Ok(value)
}

//! The calls of IoT Hub's service REST API that this tool needs.
//!
//! Throttled calls (429) are made again, reads also after 5xx; a method call that may have reached the
//! device never is. A token is made fresh for each call: it costs a hash and cannot be out of date.

use std::{path::Path, sync::Arc, time::Duration};

use jiff::Timestamp;
use reqwest::{Method, RequestBuilder, header::HeaderMap};
use rustls::ClientConfig;
use serde_json::{Value, json};
use url::Url;

use super::{
    connection::ConnectionString,
    fault::{Fault, HubError},
};
use crate::{ctl::output::note, platform::tls};

/// The version of the API that every call names.
const API_VERSION: &str = "2021-04-12";

/// Until a connection stands.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// For a whole call, on top of what the hub is asked to wait.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Pauses before the calls after the first, unless the hub names one.
const RETRY_PAUSES: [Duration; 4] = [
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];

/// The longest pause that the hub can ask for.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(30);

/// A pause as long as this is told: someone may be waiting.
const TOLD_PAUSE: Duration = Duration::from_secs(2);

/// The marker of the next page of a query.
const CONTINUATION: &str = "x-ms-continuation";

/// What a device answered to a method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MethodAnswer {
    /// The device's status: whatever it chose.
    pub status: i32,
    /// The device's payload.
    pub payload: Value,
}

/// A method call.
#[derive(Debug, Clone)]
pub struct MethodCall<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its payload.
    pub payload: Value,
    /// How long the device may take to answer, 5 s to 300 s.
    pub response_timeout: Duration,
    /// How long to wait for the device to come online, up to 300 s.
    pub connect_timeout: Duration,
}

/// When a failed call is made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Retry {
    /// Never: the caller has its own way.
    Never,
    /// Only when the hub certainly did nothing.
    Throttled,
    /// Also when the hub may have done it: a read.
    Read,
}

/// A client of one hub.
pub struct HubClient {
    http: reqwest::Client,
    connection: ConnectionString,
}

impl HubClient {
    /// A client that trusts the CA certificates in `ca_file`, or the system's.
    ///
    /// # Errors
    /// When there is no usable CA certificate.
    pub fn new(connection: ConnectionString, ca_file: Option<&Path>) -> Result<Self, HubError> {
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls_config(ca_file)?)
            .https_only(true)
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(concat!("fwupdatectl/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|source| HubError::Setup {
                source: source.into(),
            })?;
        Ok(Self { http, connection })
    }

    /// Calls a method of `device`.
    ///
    /// # Errors
    /// [`HubError`]; a refusal by the device itself is an answer.
    pub async fn invoke(
        &self,
        device: &str,
        call: &MethodCall<'_>,
    ) -> Result<MethodAnswer, HubError> {
        let wait = call.response_timeout + call.connect_timeout;
        let body = json!({
            "methodName": call.name,
            "payload": call.payload,
            "responseTimeoutInSeconds": call.response_timeout.as_secs(),
            "connectTimeoutInSeconds": call.connect_timeout.as_secs(),
        });
        let request = || {
            self.request(Method::POST, &["twins", device, "methods"])
                .timeout(CALL_TIMEOUT + wait)
                .json(&body)
        };
        let (_, answer) = self.call(request, Some(device), Retry::Throttled).await?;
        let status = answer
            .get("status")
            .and_then(Value::as_i64)
            .and_then(|n| i32::try_from(n).ok());
        match status {
            Some(status) => Ok(MethodAnswer {
                status,
                payload: answer.get("payload").cloned().unwrap_or_default(),
            }),
            None => Err(HubError::NotJson {
                host: self.connection.host().to_owned(),
            }),
        }
    }

    /// The whole twin of `device`, as the hub writes it.
    ///
    /// # Errors
    /// [`HubError`].
    pub async fn twin(&self, device: &str) -> Result<Value, HubError> {
        let request = || self.request(Method::GET, &["twins", device]);
        Ok(self.call(request, Some(device), Retry::Read).await?.1)
    }

    /// The same, tried once: for callers that poll.
    ///
    /// # Errors
    /// [`HubError`].
    pub async fn twin_once(&self, device: &str) -> Result<Value, HubError> {
        let request = || self.request(Method::GET, &["twins", device]);
        Ok(self.call(request, Some(device), Retry::Never).await?.1)
    }

    /// One page of a query's rows, and the marker of the next page.
    ///
    /// # Errors
    /// [`HubError`].
    pub async fn query(
        &self,
        query: &str,
        page: Option<&str>,
        page_size: u32,
    ) -> Result<(Vec<Value>, Option<String>), HubError> {
        let body = json!({"query": query});
        let request = || {
            let request = self
                .request(Method::POST, &["devices", "query"])
                .header("x-ms-max-item-count", page_size)
                .json(&body);
            match page {
                Some(page) => request.header(CONTINUATION, page),
                None => request,
            }
        };
        let (headers, rows) = self.call(request, None, Retry::Read).await?;
        let next = headers
            .get(CONTINUATION)
            .and_then(|next| next.to_str().ok());
        match rows {
            Value::Array(rows) => Ok((
                rows,
                next.filter(|next| !next.is_empty()).map(str::to_owned),
            )),
            _ => Err(HubError::NotJson {
                host: self.connection.host().to_owned(),
            }),
        }
    }

    fn request(&self, method: Method, path: &[&str]) -> RequestBuilder {
        let mut url = Url::parse(&format!("https://{}", self.connection.host()))
            .expect("a connection string has a host");
        url.path_segments_mut()
            .expect("https URLs have a path")
            .clear()
            .extend(path);
        url.query_pairs_mut()
            .append_pair("api-version", API_VERSION);
        self.http
            .request(method, url)
            .timeout(CALL_TIMEOUT)
            .header(reqwest::header::ACCEPT, "application/json")
            .header(
                reqwest::header::AUTHORIZATION,
                self.connection.token(Timestamp::now()),
            )
    }

    async fn call(
        &self,
        request: impl Fn() -> RequestBuilder,
        device: Option<&str>,
        retry: Retry,
    ) -> Result<(HeaderMap, Value), HubError> {
        let mut pauses = RETRY_PAUSES.into_iter();
        loop {
            let fault = match self.attempt(request()).await? {
                Ok(answer) => return Ok(answer),
                Err(fault) => fault,
            };
            let again = match fault.status {
                429 => retry != Retry::Never,
                // With a device named, 504 means that the device did not answer.
                500 | 502 | 503 | 504 => retry == Retry::Read,
                _ => false,
            };
            match pauses.next().filter(|_| again) {
                Some(pause) => {
                    let pause = fault.retry_after.unwrap_or(pause).min(RETRY_PAUSE_MAX);
                    if pause >= TOLD_PAUSE {
                        let (status, seconds) = (fault.status, pause.as_secs());
                        note(format!(
                            "the hub answers {status}; trying again in {seconds} s"
                        ));
                    }
                    tokio::time::sleep(pause).await;
                }
                None => return Err(fault.into_error(device)),
            }
        }
    }

    async fn attempt(
        &self,
        request: RequestBuilder,
    ) -> Result<Result<(HeaderMap, Value), Fault>, HubError> {
        let no_answer = |error: reqwest::Error| HubError::no_answer(self.connection.host(), &error);
        let answer = request.send().await.map_err(no_answer)?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let body = answer.bytes().await.map_err(no_answer)?;
        if !status.is_success() {
            return Ok(Err(Fault::read(status, &headers, &body)));
        }
        match serde_json::from_slice(&body) {
            Ok(document) => Ok(Ok((headers, document))),
            Err(_) => Err(HubError::NotJson {
                host: self.connection.host().to_owned(),
            }),
        }
    }
}

/// The TLS configuration, with the protocols that the HTTP client speaks.
fn tls_config(ca_file: Option<&Path>) -> Result<ClientConfig, HubError> {
    let mut config = Arc::unwrap_or_clone(tls::client_config(ca_file)?);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

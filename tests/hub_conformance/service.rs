//! The service side of a hub over REST, as a service tool of someone else's would write it: it shares nothing with
//! `fwupdatectl hub`, so that a misread of the interface shows.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use reqwest::{Method, header::HeaderMap};
use ring::hmac;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

/// The interface that every call names.
const API_VERSION: &str = "2021-04-12";

/// How long a call that the hub throttles, or cannot serve now, is made again.
const PATIENCE: Duration = Duration::from_secs(180);

/// Everything but letters, digits and `-_.~` as `%XX`.
pub(crate) fn encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

/// A shared access signature for `resource`, with a device's key or that of the hub's `policy`.
pub(crate) fn sign(resource: &str, key: &str, policy: Option<&str>, life: i64) -> String {
    let expiry = jiff::Timestamp::now().as_second() + life;
    let resource = encode(resource);
    let key = STANDARD.decode(key).expect("a key is base64");
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
    let signature = hmac::sign(&key, format!("{resource}\n{expiry}").as_bytes());
    let signature = encode(&STANDARD.encode(signature));
    let policy = policy.map(|policy| format!("&skn={}", encode(policy)));
    format!(
        "SharedAccessSignature sr={resource}&sig={signature}&se={expiry}{}",
        policy.unwrap_or_default()
    )
}

/// What a hub answered.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl Reply {
    /// The body of a call that must succeed.
    #[track_caller]
    pub(crate) fn expect(self, what: &str) -> Value {
        let Self { status, body, .. } = self;
        assert!((200..300).contains(&status), "{what}: {status} {body}");
        body
    }

    /// One header, or nothing.
    pub(crate) fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.and_then(|value| value.to_str().ok()).unwrap_or("")
    }

    /// The hub's number for what went wrong, whichever of its shapes the body has; else its name.
    pub(crate) fn error(&self) -> String {
        let inner = self.body["Message"].as_str().unwrap_or_default();
        let inner: Value = serde_json::from_str(inner).unwrap_or_else(|_| self.body.clone());
        match &inner["errorCode"] {
            Value::Number(number) => number.to_string(),
            _ => self.header("iothub-errorcode").to_owned(),
        }
    }

    /// For the notes.
    pub(crate) fn summary(&self) -> String {
        let name = self.header("iothub-errorcode");
        format!("{} {} {name}", self.status, self.error())
    }
}

/// The keys of a device.
#[derive(Clone)]
pub(crate) struct Keys {
    pub(crate) primary: String,
    pub(crate) secondary: String,
}

impl Keys {
    fn of(identity: &Value) -> Self {
        let keys = &identity["authentication"]["symmetricKey"];
        let key = |name: &str| keys[name].as_str().expect("a key").to_owned();
        Self {
            primary: key("primaryKey"),
            secondary: key("secondaryKey"),
        }
    }
}

/// A service that may do everything.
pub(crate) struct Service {
    http: reqwest::Client,
    /// Host, and port where there is one.
    authority: String,
    policy: String,
    key: String,
    /// Calls so far: on a real hub they count.
    pub(crate) calls: AtomicU64,
}

impl Service {
    /// Reads a service connection string.
    pub(crate) fn new(connection_string: &str, tls: rustls::ClientConfig) -> Self {
        let part = |name: &str| {
            let parts = connection_string.trim().split(';');
            let mut parts = parts.filter_map(|part| part.split_once('='));
            let found = parts.find(|(key, _)| *key == name);
            // Never the string itself: it is a secret.
            let found = found
                .unwrap_or_else(|| panic!("the hub's connection string has no {name}; it must be that of a policy with all rights, such as iothubowner"));
            found.1.to_owned()
        };
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .timeout(Duration::from_secs(400))
            .build()
            .expect("an HTTP client");
        Self {
            http,
            authority: part("HostName"),
            policy: part("SharedAccessKeyName"),
            key: part("SharedAccessKey"),
            calls: AtomicU64::new(0),
        }
    }

    /// The hub's name.
    pub(crate) fn host(&self) -> &str {
        let authority = &self.authority;
        authority
            .rsplit_once(':')
            .map_or(authority, |(host, _)| host)
    }

    /// Makes a call, again while the hub throttles it.
    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        headers: &[(&'static str, &str)],
        body: Option<&Value>,
    ) -> Reply {
        let until = Instant::now() + PATIENCE;
        loop {
            self.calls.fetch_add(1, Ordering::Relaxed);
            let reply = match self.once(method.clone(), path, headers, body).await {
                Ok(reply) => reply,
                // Networks fail. Only what changes nothing is asked again.
                Err(error) => {
                    let again = method == Method::GET && Instant::now() < until;
                    assert!(again, "{method} {path}: {error:?}");
                    sleep(Duration::from_secs(1)).await;
                    continue;
                }
            };
            if !matches!(reply.status, 429 | 500 | 503) || Instant::now() > until {
                return reply;
            }
            let pause = reply.header("retry-after").parse().unwrap_or(3);
            sleep(Duration::from_secs(pause.clamp(1, 60))).await;
        }
    }

    async fn once(
        &self,
        method: Method,
        path: &str,
        headers: &[(&'static str, &str)],
        body: Option<&Value>,
    ) -> reqwest::Result<Reply> {
        let authority = &self.authority;
        let separator = if path.contains('?') { '&' } else { '?' };
        let url = format!("https://{authority}{path}{separator}api-version={API_VERSION}");
        let token = sign(authority, &self.key, Some(&self.policy), 3600);
        let mut request = self
            .http
            .request(method, url)
            .header("authorization", token);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request = match body {
            Some(body) => request.json(body),
            None => request.header("content-length", "0"),
        };
        let answer = request.send().await?;
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let bytes = answer.bytes().await?;
        let text = || Value::String(String::from_utf8_lossy(&bytes).into_owned());
        Ok(Reply {
            status,
            headers,
            body: serde_json::from_slice(&bytes).unwrap_or_else(|_| text()),
        })
    }

    /// Registers a device with keys of the hub's making.
    pub(crate) async fn register(&self, id: &str) -> Keys {
        let body = json!({
            "deviceId": id, "status": "enabled",
            "authentication": {"type": "sas", "symmetricKey": {"primaryKey": "", "secondaryKey": ""}},
        });
        let path = format!("/devices/{id}");
        let reply = self.call(Method::PUT, &path, &[], Some(&body)).await;
        let keys = Keys::of(&reply.expect("registering a device"));
        // Its twin may come a moment later.
        let until = Instant::now() + PATIENCE;
        let twin = format!("/twins/{id}");
        while self.call(Method::GET, &twin, &[], None).await.status == 404 {
            assert!(Instant::now() < until, "{id} has no twin");
            sleep(Duration::from_secs(1)).await;
        }
        keys
    }

    /// Changes what is registered of a device; returns its keys then.
    pub(crate) async fn change_identity(&self, id: &str, change: impl FnOnce(&mut Value)) -> Keys {
        let path = format!("/devices/{id}");
        let identity = self.call(Method::GET, &path, &[], None).await;
        let mut identity = identity.expect("reading an identity");
        change(&mut identity);
        let any = [("if-match", "\"*\"")];
        let reply = self.call(Method::PUT, &path, &any, Some(&identity)).await;
        Keys::of(&reply.expect("changing an identity"))
    }

    /// Enables or disables a device.
    pub(crate) async fn set_enabled(&self, id: &str, enabled: bool) {
        let status = if enabled { "enabled" } else { "disabled" };
        let change = |identity: &mut Value| identity["status"] = status.into();
        self.change_identity(id, change).await;
    }

    /// Deletes a device, a job, a configuration: `path` names it. One that is not there is no error.
    pub(crate) async fn delete(&self, path: &str) {
        let any = [("if-match", "\"*\"")];
        let reply = self.call(Method::DELETE, path, &any, None).await;
        assert!(
            reply.status < 300 || reply.status == 404,
            "deleting {path}: {reply:?}; delete it by hand"
        );
    }

    /// The twin.
    pub(crate) async fn twin(&self, id: &str) -> Value {
        let path = format!("/twins/{id}");
        let reply = self.call(Method::GET, &path, &[], None).await;
        reply.expect("reading a twin")
    }

    /// Merges `patch` into tags and desired properties.
    pub(crate) async fn patch_twin(&self, id: &str, patch: &Value) -> Value {
        let path = format!("/twins/{id}");
        let reply = self.call(Method::PATCH, &path, &[], Some(patch)).await;
        reply.expect("writing a twin")
    }

    /// Calls a method. Times are in seconds.
    pub(crate) async fn invoke(
        &self,
        id: &str,
        method: &str,
        payload: &Value,
        (respond, connect): (u64, u64),
    ) -> Reply {
        let body = json!({
            "methodName": method, "payload": payload,
            "responseTimeoutInSeconds": respond, "connectTimeoutInSeconds": connect,
        });
        let path = format!("/twins/{id}/methods");
        self.call(Method::POST, &path, &[], Some(&body)).await
    }

    /// A query's first page.
    pub(crate) async fn query(&self, query: &str) -> Reply {
        let body = json!({ "query": query });
        self.call(Method::POST, "/devices/query", &[], Some(&body))
            .await
    }
}

//! A hub with its REST side at hand, and devices to connect to it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use fwupdated::platform::tls;
use iothub_emulator::{Emulator, Options};
use reqwest::{Method, RequestBuilder, header::HeaderMap};
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS, TlsConfiguration, Transport};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

/// The longest that anything may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// A running emulator and a client with every right.
pub(crate) struct Hub {
    pub(crate) emulator: Emulator,
    http: reqwest::Client,
    base: String,
    token: String,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    /// Null when there was none.
    pub(crate) body: Value,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    /// The body, of an answer that must be good.
    pub(crate) fn ok(self) -> Value {
        assert!((200..300).contains(&self.status), "{self:?}");
        self.body
    }

    /// Number and name of an error in the usual shape, whose status, header and body must agree.
    pub(crate) fn error(&self) -> (u64, &str) {
        let inner = self.inner();
        let number = inner["errorCode"].as_u64().unwrap();
        assert_eq!(number / 1000, u64::from(self.status), "{self:?}");
        assert!(!inner["trackingId"].as_str().unwrap().is_empty());
        assert!(inner["timestampUtc"].as_str().unwrap().ends_with('Z'));
        assert_eq!(self.body["ExceptionMessage"], "");
        assert!(!self.header("x-ms-request-id").is_empty());
        (number, self.header("iothub-errorcode"))
    }

    /// Status and name of an error in the old shape, whose header and body must agree.
    pub(crate) fn old_error(&self) -> (u16, &str) {
        let name = self.header("iothub-errorcode");
        let text = self.body["Message"].as_str().unwrap();
        assert!(text.starts_with(&format!("ErrorCode:{name};")), "{text}");
        let exception = self.body["ExceptionMessage"].as_str().unwrap();
        assert!(exception.starts_with("Tracking ID:"), "{exception}");
        assert!(!self.header("x-ms-request-id").is_empty());
        (self.status, name)
    }

    /// The text of an error in the usual shape.
    pub(crate) fn message(&self) -> String {
        self.inner()["message"].as_str().unwrap().to_owned()
    }

    /// What an error's body holds as a text in the usual shape.
    pub(crate) fn inner(&self) -> Value {
        let text = self.body["Message"].as_str().unwrap();
        serde_json::from_str(text).unwrap_or_else(|_| panic!("not the usual shape: {self:?}"))
    }
}

fn parts(connection_string: &str) -> BTreeMap<&str, &str> {
    let parts = connection_string.split(';');
    parts.filter_map(|part| part.split_once('=')).collect()
}

impl Hub {
    pub(crate) async fn start(options: Options) -> Self {
        let emulator = Emulator::start(options).await.unwrap();
        let ready = emulator.ready();
        let parts = parts(&ready.service_connection_string);
        let host = parts["HostName"].to_owned();
        let token = iothub_emulator::sign(
            &host,
            parts["SharedAccessKey"],
            4_000_000_000,
            Some(parts["SharedAccessKeyName"]),
        )
        .unwrap();
        tls::install_provider();
        let config = tls::client_config(Some(&ready.ca_file)).unwrap();
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(Arc::unwrap_or_clone(config))
            .no_proxy()
            .timeout(LIMIT)
            .build()
            .unwrap();
        Self {
            base: format!("https://{host}"),
            token,
            http,
            emulator,
        }
    }

    /// A hub with these devices.
    pub(crate) async fn with(devices: &[&str]) -> Self {
        let options = devices
            .iter()
            .fold(Options::default(), |options, id| options.device(id));
        Self::start(options).await
    }

    /// A request with api-version and token.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let separator = if path.contains('?') { '&' } else { '?' };
        let url = format!("{}{path}{separator}api-version=2021-04-12", self.base);
        self.bare(method, &url).header("Authorization", &self.token)
    }

    /// A request with nothing of the kind; `url` may be a path.
    pub(crate) fn bare(&self, method: Method, url: &str) -> RequestBuilder {
        match url.strip_prefix('/') {
            Some(_) => self.http.request(method, format!("{}{url}", self.base)),
            None => self.http.request(method, url),
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        send(self.request(Method::GET, path)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        send(self.request(Method::DELETE, path)).await
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> Answer {
        send(self.request(Method::PUT, path).json(&body)).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        send(self.request(Method::POST, path).json(&body)).await
    }

    pub(crate) async fn patch(&self, path: &str, body: Value) -> Answer {
        send(self.request(Method::PATCH, path).json(&body)).await
    }

    /// The rows of a query.
    pub(crate) async fn query(&self, query: &str) -> Vec<Value> {
        let answer = self.post("/devices/query", json!({ "query": query })).await;
        answer.ok().as_array().unwrap().clone()
    }

    /// Asks for `path` until `done` says so of the answer.
    pub(crate) async fn until(&self, path: &str, done: impl Fn(&Value) -> bool) -> Value {
        let start = std::time::Instant::now();
        loop {
            let body = self.get(path).await.ok();
            if done(&body) {
                return body;
            }
            assert!(start.elapsed() < LIMIT, "{path} stays {body}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Gives a device tags.
    pub(crate) async fn tag(&self, device: &str, tags: Value) {
        let body = json!({ "tags": tags });
        self.patch(&format!("/twins/{device}"), body).await.ok();
    }
}

pub(crate) async fn send(request: RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let text = response.text().await.unwrap();
    let body = match text.as_str() {
        "" => Value::Null,
        text => serde_json::from_str(text).unwrap_or_else(|_| panic!("{status}: {text}")),
    };
    Answer {
        status,
        headers,
        body,
    }
}

/// What a device has seen.
#[derive(Default)]
struct Seen {
    methods: Vec<(String, Value)>,
    pushes: Vec<Value>,
    /// The topics and bodies of answers to twin requests.
    answers: Vec<(String, Value)>,
}

/// A connected device. It answers a method as told, or not at all.
pub(crate) struct Device {
    seen: Arc<Mutex<Seen>>,
    pub(crate) client: AsyncClient,
    running: JoinHandle<()>,
}

impl Device {
    /// Connects, subscribes, and waits until the hub knows of it.
    pub(crate) async fn connect(
        hub: &Hub,
        id: &str,
        answer: impl Fn(&str, &Value) -> Option<(i32, String)> + Send + 'static,
    ) -> Self {
        let device = Self::start(hub, id, answer);
        let listens = |emulator: &Emulator| emulator.is_connected(id);
        assert!(hub.emulator.wait_until(LIMIT, listens).await);
        // It asks for its twin after it has subscribed.
        device.until(|seen| !seen.answers.is_empty()).await;
        device
    }

    /// Connects in its own time.
    pub(crate) fn start(
        hub: &Hub,
        id: &str,
        answer: impl Fn(&str, &Value) -> Option<(i32, String)> + Send + 'static,
    ) -> Self {
        let ready = hub.emulator.ready();
        let parts = parts(&ready.devices[id]);
        let host = parts["HostName"];
        let resource = format!("{host}/devices/{id}");
        let token = iothub_emulator::sign(&resource, parts["SharedAccessKey"], 4_000_000_000, None)
            .unwrap();
        let tls = tls::client_config(Some(&ready.ca_file)).unwrap();
        let mut options = MqttOptions::new(id, "localhost", ready.mqtt_port);
        options
            .set_transport(Transport::Tls(TlsConfiguration::Rustls(tls)))
            .set_credentials(format!("{host}/{id}/?api-version=2021-04-12"), token)
            .set_max_packet_size(1024 * 1024, 1024 * 1024)
            .set_clean_session(false);
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (client, mut events) = AsyncClient::new(options, 50);
        let (notes, to_publish) = (seen.clone(), client.clone());
        let running = tokio::spawn(async move {
            loop {
                match events.poll().await {
                    Ok(Event::Incoming(Packet::ConnAck(_))) => {
                        for topic in [
                            "$iothub/methods/POST/#",
                            "$iothub/twin/PATCH/properties/desired/#",
                            "$iothub/twin/res/#",
                        ] {
                            to_publish.try_subscribe(topic, QoS::AtMostOnce).unwrap();
                        }
                        to_publish
                            .try_publish("$iothub/twin/GET/?$rid=0", QoS::AtMostOnce, false, "")
                            .unwrap();
                    }
                    Ok(Event::Incoming(Packet::Publish(message))) => {
                        let topic = message.topic.clone();
                        let body = serde_json::from_slice(&message.payload).unwrap_or_default();
                        match topic.strip_prefix("$iothub/methods/POST/") {
                            Some(call) => {
                                let (name, rid) = call.split_once("/?$rid=").unwrap();
                                notes.lock().unwrap().methods.push((name.to_owned(), body));
                                let body = notes.lock().unwrap().methods.last().unwrap().1.clone();
                                if let Some((status, payload)) = answer(name, &body) {
                                    let topic = format!("$iothub/methods/res/{status}/?$rid={rid}");
                                    to_publish
                                        .try_publish(topic, QoS::AtMostOnce, false, payload)
                                        .unwrap();
                                }
                            }
                            None if topic.starts_with("$iothub/twin/res/") => {
                                notes.lock().unwrap().answers.push((topic, body));
                            }
                            None => notes.lock().unwrap().pushes.push(body),
                        }
                    }
                    Ok(_) => {}
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            }
        });
        Self {
            seen,
            client,
            running,
        }
    }

    /// The methods it was asked for so far.
    pub(crate) fn methods(&self) -> Vec<(String, Value)> {
        self.seen.lock().unwrap().methods.clone()
    }

    /// The pushes of desired properties so far.
    pub(crate) fn pushes(&self) -> Vec<Value> {
        self.seen.lock().unwrap().pushes.clone()
    }

    /// Waits for so many pushes of desired properties.
    pub(crate) async fn pushed(&self, count: usize) -> Vec<Value> {
        self.until(|seen| seen.pushes.len() >= count).await;
        self.pushes()
    }

    /// Reports a patch, and waits for the hub's answer: its topic and body.
    pub(crate) async fn report(&self, patch: Value) -> (String, Value) {
        let before = self.seen.lock().unwrap().answers.len();
        let topic = format!("$iothub/twin/PATCH/properties/reported/?$rid=r{before}");
        self.client
            .publish(topic, QoS::AtMostOnce, false, patch.to_string())
            .await
            .unwrap();
        self.until(|seen| seen.answers.len() > before).await;
        self.seen.lock().unwrap().answers[before].clone()
    }

    /// Waits for so many method calls.
    pub(crate) async fn called(&self, count: usize) -> Vec<(String, Value)> {
        self.until(|seen| seen.methods.len() >= count).await;
        self.methods()
    }

    async fn until(&self, done: impl Fn(&Seen) -> bool) {
        let start = std::time::Instant::now();
        while !done(&self.seen.lock().unwrap()) {
            assert!(start.elapsed() < LIMIT, "nothing came");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.running.abort();
    }
}

/// An answer to a method that all devices may give.
pub(crate) fn well(_name: &str, payload: &Value) -> Option<(i32, String)> {
    Some((200, json!({ "got": payload }).to_string()))
}

//! A fleet of simulated devices in one process, and the service side that works with it over REST.

// Each program uses its own part of this.
#![allow(dead_code)]

pub(crate) mod device;
pub(crate) mod scale;

use std::{
    path::Path,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use fwupdated::{
    config::{Config, HubConfig},
    hub::{credentials::Credentials, session::SessionOptions},
    platform::tls,
};
use iothub_emulator::Ready;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep},
};

use self::device::{Device, Tally, Timetable};

/// Devices that live.
pub(crate) struct Fleet {
    pub(crate) tally: Arc<Tally>,
    devices: JoinSet<()>,
    stop: watch::Sender<bool>,
}

impl Fleet {
    /// Starts every device that `ready` names and `chosen` picks, as `config` says, their connections spread over
    /// `start_delay`; a token lives for `token_lifetime`.
    pub(crate) fn start(
        ready: &Ready,
        chosen: impl Fn(&str) -> bool,
        config: Config,
        timetable: Timetable,
        start_delay: Duration,
        token_lifetime: Duration,
    ) -> Self {
        let tls = tls::client_config(Some(&ready.ca_file)).expect("the emulator's CA is good");
        let way = HubConfig {
            mqtt_port: ready.mqtt_port,
            ..config.hub.clone()
        };
        let config = Arc::new(config);
        let (stop, stopped) = watch::channel(false);
        let tally = Arc::<Tally>::default();
        let mut devices = JoinSet::new();
        for (_, text) in ready.devices.iter().filter(|(id, _)| chosen(id)) {
            let credentials: Credentials = text.parse().expect("the emulator's strings are good");
            let (hub, id) = (credentials.hub(), credentials.device_id());
            let names = (hub.to_owned(), id.to_owned());
            let options = SessionOptions {
                start_delay,
                token_lifetime,
                ..SessionOptions::new(credentials, tls.clone(), &way)
            };
            let device = Device::new(names, options, config.clone(), timetable, tally.clone());
            devices.spawn(device.live(stopped.clone()));
        }
        Self {
            tally,
            devices,
            stop,
        }
    }

    /// How many devices are connected now.
    pub(crate) fn connected(&self) -> usize {
        self.tally.connected.load(Relaxed)
    }

    /// Waits until `done` holds; false when `limit` passed first.
    pub(crate) async fn until(&self, limit: Duration, done: impl Fn(&Tally) -> bool) -> bool {
        let end = Instant::now() + limit;
        while !done(&self.tally) {
            if Instant::now() > end {
                return false;
            }
            sleep(Duration::from_millis(20)).await;
        }
        true
    }

    /// Stops every device as systemd would, and waits for it.
    pub(crate) async fn stop(mut self) {
        self.stop.send_replace(true);
        while let Some(ended) = self.devices.join_next().await {
            ended.expect("no device panics");
        }
    }
}

/// The configuration of a fleet: the defaults but for `settings`, named like variables of the environment.
pub(crate) fn configuration(settings: &[(&str, &str)]) -> Config {
    let settings = settings
        .iter()
        .map(|(name, value)| (format!("FWUPDATED_{name}"), (*value).to_owned()));
    Config::load_from(&[], settings).expect("the settings are valid")
}

/// What a method call ended with.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Called {
    /// The device's status and body.
    Answered(i64, Value),
    /// The hub's own status: not online, no answer in time, ...
    Refused(u16),
    /// The hub could not be reached.
    Unreachable,
}

/// The service side, over REST. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Service {
    client: reqwest::Client,
    base: String,
    token: String,
}

impl Service {
    /// With the rights of the emulator's owner, for a day.
    pub(crate) fn new(ready: &Ready) -> Self {
        let part = |name: &str| {
            let mut parts = ready.service_connection_string.split(';');
            let value = parts.find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
            value.unwrap_or_default().to_owned()
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let token = iothub_emulator::sign(
            &ready.hub_name,
            &part("SharedAccessKey"),
            now.as_secs() + 24 * 3600,
            Some(&part("SharedAccessKeyName")),
        );
        Self {
            client: client(&ready.ca_file),
            base: format!("https://{}:{}", ready.hub_name, ready.https_port),
            token: token.expect("the emulator's key is base64"),
        }
    }

    /// Calls a direct method and waits for the device's answer.
    pub(crate) async fn call(&self, device: &str, method: &str, payload: Value) -> Called {
        self.call_within(0, device, method, payload).await
    }

    /// The same, waiting so many seconds for the device to be there.
    pub(crate) async fn call_within(
        &self,
        seconds: u64,
        device: &str,
        method: &str,
        payload: Value,
    ) -> Called {
        let url = format!(
            "{}/twins/{device}/methods?api-version=2021-04-12",
            self.base
        );
        let body = json!({
            "methodName": method,
            "payload": payload,
            "connectTimeoutInSeconds": seconds,
            "responseTimeoutInSeconds": 30,
        });
        let request = self.client.post(url).header("Authorization", &self.token);
        let Ok(response) = request.json(&body).send().await else {
            return Called::Unreachable;
        };
        let status = response.status().as_u16();
        match response.json::<Value>().await {
            Ok(body) if status == 200 => Called::Answered(
                body["status"].as_i64().unwrap_or_default(),
                body["payload"].clone(),
            ),
            Ok(_) | Err(_) => Called::Refused(status),
        }
    }

    /// Calls a direct method on every device by a job, and waits for the job's end; the job as it is then.
    pub(crate) async fn job(&self, id: &str, method: &str, payload: Value) -> Value {
        let url = format!("{}/jobs/v2/{id}?api-version=2021-04-12", self.base);
        let body = json!({
            "jobId": id,
            "type": "scheduleDeviceMethod",
            "queryCondition": "*",
            "cloudToDeviceMethod": {"methodName": method, "payload": payload, "responseTimeoutInSeconds": 30},
            "maxExecutionTimeInSeconds": 3600,
        });
        let request = self.client.put(&url).header("Authorization", &self.token);
        let response = request.json(&body).send().await.unwrap();
        assert!(response.status().is_success(), "{response:?}");
        loop {
            sleep(Duration::from_millis(100)).await;
            let request = self.client.get(&url).header("Authorization", &self.token);
            let job: Value = request.send().await.unwrap().json().await.unwrap();
            if !["queued", "running", "scheduled"].contains(&job["status"].as_str().unwrap()) {
                return job;
            }
        }
    }

    /// Takes a device out of the registry.
    pub(crate) async fn delete(&self, device: &str) {
        let url = format!("{}/devices/{device}?api-version=2021-04-12", self.base);
        let request = self.client.delete(url).header("Authorization", &self.token);
        let response = request.header("If-Match", "*").send().await.unwrap();
        assert!(response.status().is_success(), "{response:?}");
    }

    /// Runs a query of the twins.
    pub(crate) async fn query(&self, text: &str) -> Value {
        let url = format!("{}/devices/query?api-version=2021-04-12", self.base);
        let request = self.client.post(url).header("Authorization", &self.token);
        let response = request.json(&json!({"query": text})).send().await;
        response.unwrap().json().await.unwrap()
    }

    /// Asks the emulator's own controls.
    pub(crate) async fn observe(&self, path: &str) -> Value {
        let response = self.client.get(self.control(path)).send().await;
        response.unwrap().json().await.unwrap()
    }

    /// Tells the emulator's own controls something.
    pub(crate) async fn tell(&self, path: &str) {
        let response = self.client.post(self.control(path)).send().await.unwrap();
        assert!(response.status().is_success(), "{path}: {response:?}");
    }

    /// Every reported patch of `device` that was accepted, in order.
    pub(crate) async fn history(&self, device: &str) -> Vec<Value> {
        let history = self
            .observe(&format!("devices/{device}/reported-history"))
            .await;
        serde_json::from_value(history).expect("a list")
    }

    fn control(&self, path: &str) -> String {
        format!("{}/emulator/{path}", self.base)
    }
}

fn client(ca_file: &Path) -> reqwest::Client {
    let pem = std::fs::read(ca_file).unwrap();
    let ca = reqwest::Certificate::from_pem(&pem).unwrap();
    reqwest::Client::builder()
        .tls_certs_only([ca])
        .no_proxy()
        .timeout(Duration::from_secs(60))
        .build()
        .unwrap()
}

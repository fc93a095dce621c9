//! A device of the suite's own at the hub under test: registered, installed with the real daemon, and watched as a
//! back end watches it, by its twin. Each look at the twin also checks what must hold at any time.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{
    hub::Hub,
    relay::Relay,
    service::{Keys, Reply},
};
use crate::support::{
    image_server::ImageServer,
    rig::{Device, Site},
};

/// Every status word of a good update, in order.
pub(crate) const GOOD: [&str; 5] = [
    "waiting",
    "downloading",
    "downloadComplete",
    "applying",
    "applyComplete",
];

/// The words that end an update.
pub(crate) const ENDS: [&str; 3] = ["applyComplete", "applyFailed", "downloadfailed"];

/// Most bytes of what a device reports, as the hub stores it.
const REPORTED_LIMIT: usize = 4096;

/// The name of the good image at the scene's server.
pub(crate) const IMAGE: &str = "/rootfs-1.1.0.img.zst";

/// How a device is set up.
pub(crate) struct Setup<'a> {
    /// More lines for `[hub]`.
    pub(crate) hub: &'a str,
    /// More tables; `{dir}` stands for the device's folder.
    pub(crate) settings: &'a str,
}

impl Default for Setup<'_> {
    fn default() -> Self {
        Self {
            hub: "reconnect_max = \"2s\"",
            settings: "",
        }
    }
}

/// A device, and the image server it loads from.
pub(crate) struct Scene {
    pub(crate) hub: Arc<Hub>,
    pub(crate) id: String,
    pub(crate) keys: Keys,
    pub(crate) device: Device,
    pub(crate) server: ImageServer,
    /// The highest `$version` that the reported section had.
    version: u64,
}

impl Scene {
    /// A registered device that runs version 1.0.0 and has not been switched on.
    pub(crate) async fn prepare(hub: &Arc<Hub>, setup: Setup<'_>) -> Self {
        let (id, keys) = hub.register().await;
        let server = ImageServer::start();
        server.put(IMAGE, hub.image.file.as_path());
        let site = Site {
            connection_string: hub.connection_string(&id, &keys.primary),
            hub_ca: hub.ca_file.clone(),
            mqtt_port: hub.mqtt_port,
            hub: setup.hub.to_owned(),
            image_ca: server.ca_file(),
            key: hub.key.clone(),
        };
        let dir = hub.dir().join(&id);
        let settings = setup.settings.replace("{dir}", &dir.display().to_string());
        let device = Device::install(&site, &dir, 2 << 20, "1.0.0", &settings);
        Self {
            hub: Arc::clone(hub),
            id,
            keys,
            device,
            server,
            version: 0,
        }
    }

    /// A device that is switched on and has told the hub what it is.
    pub(crate) async fn connected(hub: &Arc<Hub>, setup: Setup<'_>) -> Self {
        let mut scene = Self::prepare(hub, setup).await;
        scene.device.boot();
        scene.until_reported().await;
        scene
    }

    /// The same with a relay in between.
    pub(crate) async fn behind_a_relay(hub: &Arc<Hub>, setup: Setup<'_>) -> (Self, Relay) {
        let relay = Relay::start().await;
        let lines = format!("{}\n{}", setup.hub, relay.setting());
        let through = Setup {
            hub: &lines,
            ..setup
        };
        (Self::connected(hub, through).await, relay)
    }

    /// Waits until the device has told the hub what it is, and its section is settled.
    async fn until_reported(&mut self) {
        self.until("first report", |twin| {
            reported(twin)["fwupdated"].is_object().then_some(())
        })
        .await;
    }

    /// The address of a file at the scene's image server.
    pub(crate) fn url(&self, path: &str) -> String {
        self.server.url(path)
    }

    /// Gives the device another key.
    pub(crate) fn write_key(&mut self, key: &str) {
        let text = self.hub.connection_string(&self.id, key);
        std::fs::write(self.device.dir.join("connection-string"), text).unwrap();
    }

    /// The twin, after checking what must hold at any time.
    pub(crate) async fn twin(&mut self) -> Value {
        let twin = self.hub.service.twin(&self.id).await;
        self.check(&twin);
        twin
    }

    fn check(&mut self, twin: &Value) {
        let reported = reported(twin);
        let version = reported["$version"].as_u64().expect("a $version");
        assert!(
            version >= self.version,
            "$version went from {} to {version}",
            self.version
        );
        self.version = version;
        let bare = without_bookkeeping(reported);
        let size = bare.to_string().len();
        assert!(size < REPORTED_LIMIT, "{size} bytes are reported: {bare}");
        let section = section(twin);
        let all = count_members(&bare, "status");
        assert_eq!(all, usize::from(section["status"].is_string()), "{bare}");
        if let Some(word) = section["status"].as_str() {
            assert!(GOOD.contains(&word) || ENDS.contains(&word), "{word}");
        }
    }

    /// Lives on, reboots included, until `done` says something about the twin.
    pub(crate) async fn until<T>(
        &mut self,
        what: &str,
        mut done: impl FnMut(&Value) -> Option<T>,
    ) -> T {
        let began = Instant::now();
        loop {
            self.device.follow_reboot();
            let twin = self.twin().await;
            if let Some(result) = done(&twin) {
                return result;
            }
            self.still_alive(what, began, &twin);
            sleep(self.hub.pace.poll).await;
        }
    }

    /// Lives on, reboots included, until `done` says something about the device; the hub is not asked.
    pub(crate) async fn until_device<T>(
        &mut self,
        what: &str,
        mut done: impl FnMut(&Device) -> Option<T>,
    ) -> T {
        let began = Instant::now();
        loop {
            self.device.follow_reboot();
            if let Some(result) = done(&self.device) {
                return result;
            }
            self.still_alive(what, began, &Value::Null);
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Lives on until the daemon has said `text` since [`Scene::mark`]; returns what it has said since.
    pub(crate) async fn until_logged(&mut self, mark: usize, text: &str) -> String {
        let began = Instant::now();
        loop {
            let log = self.device.log().split_off(mark);
            if log.contains(text) {
                return log;
            }
            self.still_alive(&format!("\"{text}\" in the log"), began, &Value::Null);
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Where the daemon's log is now.
    pub(crate) fn mark(&self) -> usize {
        self.device.log().len()
    }

    fn still_alive(&mut self, what: &str, began: Instant, twin: &Value) {
        if let Some(daemon) = &mut self.device.daemon
            && let Some(status) = daemon.try_wait().unwrap()
            && !self.device.reboot_is_asked()
        {
            panic!(
                "the daemon ended with {status} while waiting for {what}\n{}",
                self.tail()
            );
        }
        assert!(
            began.elapsed() < self.hub.pace.patience,
            "no {what} after {:?}\n{:#}\n{}",
            began.elapsed(),
            without_bookkeeping(&twin["properties"]),
            self.tail()
        );
    }

    /// The last lines of the daemon's log.
    fn tail(&self) -> String {
        let log = self.device.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// Calls a method on a device that is there. Returns the device's status and body.
    pub(crate) async fn invoke(&self, method: &str, payload: Value) -> (i64, Value) {
        let began = Instant::now();
        let reply = self.call(method, payload, (30, 0)).await;
        self.hub.note_answer(began.elapsed());
        let body = reply.expect(method);
        let status = body["status"].as_i64();
        (status.expect("a status"), body["payload"].clone())
    }

    /// Calls a method; any answer of the hub will do.
    pub(crate) async fn call(&self, method: &str, payload: Value, seconds: (u64, u64)) -> Reply {
        let service = &self.hub.service;
        service.invoke(&self.id, method, &payload, seconds).await
    }

    /// Waits until the device answers methods (again).
    pub(crate) async fn until_it_answers(&mut self) {
        let began = Instant::now();
        while self
            .call("firmwareUpdateStatus", Value::Null, (10, 0))
            .await
            .status
            != 200
        {
            self.still_alive("answer to a method", began, &Value::Null);
            sleep(self.hub.pace.poll).await;
        }
    }

    /// Waits until the hub says that the device is not there: 404103.
    pub(crate) async fn until_it_is_offline(&mut self) {
        let began = Instant::now();
        loop {
            let reply = self
                .call("firmwareUpdateStatus", Value::Null, (10, 0))
                .await;
            if reply.error() == "404103" {
                return;
            }
            assert!(began.elapsed() < self.hub.pace.patience, "{reply:?}");
            sleep(self.hub.pace.poll).await;
        }
    }

    /// Starts an update; returns its id.
    pub(crate) async fn start(&self, uri: &str) -> String {
        let (status, body) = self
            .invoke("firmwareUpdate", json!({"fwPackageUri": uri}))
            .await;
        assert_eq!(status, 200, "{body}");
        assert_eq!(body["message"], "FirmwareUpdate started");
        body["updateId"].as_str().expect("an update id").to_owned()
    }

    /// Lives on until the twin shows the end of an update; returns its section.
    pub(crate) async fn until_end(&mut self, update: &str) -> Value {
        self.until(&format!("end of update {update}"), |twin| {
            let section = section(twin);
            let ended = ENDS.iter().any(|end| section["status"] == *end);
            (section["updateId"] == update && ended).then(|| section.clone())
        })
        .await
    }

    /// Lives on until the twin shows `word` for an update.
    pub(crate) async fn until_word(&mut self, update: &str, word: &str) {
        self.until(&format!("{word} of update {update}"), |twin| {
            let section = section(twin);
            (section["updateId"] == update && section["status"] == word).then_some(())
        })
        .await;
    }

    /// Asserts that the end of an update is a good one.
    #[track_caller]
    pub(crate) fn assert_complete(&self, section: &Value) {
        assert_eq!(
            section["status"],
            "applyComplete",
            "{section:#}\n{}",
            self.tail()
        );
        assert_eq!(section["fwVersion"], self.hub.image.version.as_str());
        assert!(section["error"].is_null(), "{section:#}");
        let slot = self.device.running();
        assert!(self.device.holds(slot, &self.hub.image.raw));
        let confirmed = self.device.variable("fwupdated_slot");
        assert_eq!(confirmed.as_deref(), Some(slot.name()));
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.device.kill();
        self.hub.delete_now(&format!("/devices/{}", self.id));
        if std::thread::panicking() {
            return;
        }
        let log = self.device.log();
        for secret in [
            &self.keys.primary,
            &self.keys.secondary,
            "SharedAccess",
            "sig=",
        ] {
            assert!(
                !log.contains(secret),
                "the log of {} shows a secret",
                self.id
            );
        }
        // Large, and of no use any more.
        let _ = std::fs::remove_dir_all(&self.device.dir);
    }
}

/// What the device reports.
pub(crate) fn reported(twin: &Value) -> &Value {
    &twin["properties"]["reported"]
}

/// The section that the back ends of the samples read.
pub(crate) fn section(twin: &Value) -> &Value {
    &reported(twin)["iothubDM"]["firmwareUpdate"]
}

/// Without the hub's own members.
pub(crate) fn without_bookkeeping(value: &Value) -> Value {
    match value {
        Value::Object(members) => members
            .iter()
            .filter(|(name, _)| !name.starts_with('$'))
            .map(|(name, value)| (name.clone(), without_bookkeeping(value)))
            .collect(),
        other => other.clone(),
    }
}

/// Members called `name`, at any depth.
fn count_members(value: &Value, name: &str) -> usize {
    match value {
        Value::Object(members) => members
            .iter()
            .map(|(key, value)| usize::from(key == name) + count_members(value, name))
            .sum(),
        _ => 0,
    }
}

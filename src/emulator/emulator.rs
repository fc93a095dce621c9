//! An emulator in this process: start, stop, faults and observers.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::ca::Ca;
use crate::hub::{Device, Hub, IfMatch};
use crate::hub_error::HubError;
use crate::listen;
use crate::methods::{Call, MethodAnswer};
use crate::options::{Options, Ready};
use crate::policies::{OWNER, Policies};
use crate::rest;
use crate::start_error::StartError;
use crate::store::{Store, write_atomically};
use crate::twin::Mode;
use crate::wire_log::WireLog;

/// A running emulator. Dropping it closes everything at once; [`Emulator::stop`] also waits.
#[derive(Debug)]
pub struct Emulator {
    hub: Arc<Hub>,
    ready: Arc<Ready>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
    /// Holds the CA when there is no state directory.
    _temporary: Option<TempDir>,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Emulator {
    /// Starts an emulator; it serves when this returns. Needs a tokio runtime.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        let wire = match &options.wire_log {
            Some(path) => WireLog::open(path).map_err(|source| StartError::Output {
                path: path.clone(),
                option: "--wire-log",
                source,
            })?,
            None => WireLog::default(),
        };
        let (temporary, directory) = match &options.state {
            Some(directory) => (None, directory.clone()),
            None => {
                let temporary = tempfile::Builder::new()
                    .prefix("iothub-emulator-")
                    .tempdir()
                    .map_err(StartError::Temporary)?;
                let path = temporary.path().to_owned();
                (Some(temporary), path)
            }
        };
        let (store, policies, records) = match &options.state {
            Some(directory) => {
                let (store, policies, records) = Store::open(directory)?;
                (Some(store), policies, records)
            }
            None => (None, Policies::generate(), Vec::new()),
        };
        let owner_key = policies.owner_key().to_owned();
        let ca = Ca::open(&directory)?;
        let mqtt_tls = ca.server_config(&options.hub_name, options.listen, true)?;
        let mut https_tls = ca.server_config(&options.hub_name, options.listen, false)?;
        https_tls.alpn_protocols = vec![b"http/1.1".to_vec()];

        let mqtt = bind(options.listen, options.mqtt_port, "MQTT", "--mqtt-port").await?;
        let https = bind(options.listen, options.https_port, "HTTPS", "--https-port").await?;
        let (mqtt_port, https_port) = (port(&mqtt), port(&https));

        let hub = Hub::new(
            options.hub_name.clone(),
            options.token_grace,
            wire,
            policies,
            records,
            store,
        );
        for spec in &options.devices {
            hub.ensure_device(&spec.id, spec.key.clone())
                .map_err(|source| StartError::Device {
                    id: spec.id.clone(),
                    source,
                })?;
        }
        let service_host = match https_port {
            443 => options.hub_name.clone(),
            port => format!("{}:{port}", options.hub_name),
        };
        let ready = Arc::new(Ready {
            hub_name: options.hub_name.clone(),
            mqtt_port,
            https_port,
            page_url: None,
            ca_file: ca.file,
            service_connection_string: format!(
                "HostName={service_host};SharedAccessKeyName={OWNER};SharedAccessKey={owner_key}"
            ),
            devices: connection_strings(&hub),
            dps: None,
        });

        let stop = CancellationToken::new();
        let router = rest::router(rest::App {
            hub: hub.clone(),
            ready: ready.clone(),
            stop: stop.clone(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(listen::mqtt(
            mqtt,
            TlsAcceptor::from(Arc::new(mqtt_tls)),
            hub.clone(),
            stop.clone(),
        ));
        tasks.spawn(listen::https(
            https,
            TlsAcceptor::from(Arc::new(https_tls)),
            hub.clone(),
            router,
            stop.clone(),
        ));
        let emulator = Self {
            hub,
            ready,
            stop,
            tasks,
            _temporary: temporary,
        };
        if let Some(path) = &options.ready_file {
            emulator.write_ready(path)?;
        }
        Ok(emulator)
    }

    /// What clients need to know.
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// The certificate to trust, in PEM.
    pub fn ca_file(&self) -> &Path {
        &self.ready.ca_file
    }

    /// Closes every connection and both ports, and waits until that is done.
    pub async fn stop(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }

    // Faults.

    /// Closes the connection of `device` without notice; whether it had one.
    pub fn drop_connection(&self, device: &str) -> bool {
        self.hub.drop_connection(device)
    }

    /// The hub goes away for `time`: live connections are dropped, new ones reset.
    pub fn outage(&self, time: Duration) {
        self.hub.set_down(Some(Some(time)));
    }

    /// The hub goes away until told to come back.
    pub fn set_down(&self, down: bool) {
        self.hub.set_down(down.then_some(None));
    }

    /// Refuses the next `count` CONNECTs with CONNACK 3, "server unavailable".
    pub fn refuse_connects(&self, count: u32) {
        self.hub.refuse_connects(count, 3);
    }

    /// Refuses the next `count` CONNECTs with this CONNACK code (1 to 5; others count as 3).
    pub fn refuse_connects_with(&self, count: u32, code: u8) {
        self.hub.refuse_connects(count, code);
    }

    /// Holds back each twin answer for `delay`; zero ends it.
    pub fn delay_twin_answers(&self, delay: Duration) {
        self.hub.delay_twin_answers(delay);
    }

    /// Carries out the next `count` twin requests but loses their answers.
    pub fn swallow_twin_answers(&self, count: u32) {
        self.hub.swallow_twin_answers(count);
    }

    /// Refuses the next `count` reported patches with this status (429, 500 and so on).
    pub fn fail_twin_patches(&self, count: u32, status: u16) {
        self.hub.fail_twin_patches(count, status);
    }

    /// Forgets what `device` subscribed to: its next connection starts without subscriptions. A live
    /// connection goes on as it is. Whether the device is known.
    pub fn forget_session(&self, device: &str) -> bool {
        self.hub.forget_session(device)
    }

    /// Declares every token used so far expired: connections that use one are closed with no grace, and a
    /// CONNECT with one is refused with CONNACK 5. Takes up to a second, until a fresh token is sure to
    /// be another text than the expired ones.
    pub async fn expire_tokens(&self) {
        self.hub.expire_tokens().await;
    }

    // Observers.

    /// The twin of `device` as service tools see it; null when the device is not registered.
    pub fn twin(&self, device: &str) -> Value {
        self.hub.get_twin(device).unwrap_or_default()
    }

    /// Each accepted reported patch of `device` since the start, in order:
    /// `{"time":…,"version":…,"patch":…}`.
    pub fn reported_history(&self, device: &str) -> Vec<Value> {
        let state = self.hub.lock();
        let device = state.devices.get(device);
        device.map_or_else(Vec::new, Device::reported_history)
    }

    /// The last 100 telemetry messages of `device`:
    /// `{"time":…,"properties":{…},"body":text}`, or `bodyBase64` when the body is no text.
    pub fn telemetry(&self, device: &str) -> Vec<Value> {
        let state = self.hub.lock();
        let device = state.devices.get(device);
        device.map_or_else(Vec::new, |device| {
            device.telemetry.iter().cloned().collect()
        })
    }

    /// How many CONNECTs of `device` were accepted since the start.
    pub fn connections(&self, device: &str) -> u64 {
        let state = self.hub.lock();
        state
            .devices
            .get(device)
            .map_or(0, |device| device.connects)
    }

    /// How many CONNECTs of `device` were refused since the start.
    pub fn refusals(&self, device: &str) -> u64 {
        let state = self.hub.lock();
        state
            .devices
            .get(device)
            .map_or(0, |device| device.refusals)
    }

    /// Whether `device` is connected now.
    pub fn is_connected(&self, device: &str) -> bool {
        let state = self.hub.lock();
        state
            .devices
            .get(device)
            .is_some_and(|device| device.link.is_some())
    }

    /// Waits until `condition` holds, looking again at each change in the hub; false when `limit` passed
    /// first.
    pub async fn wait_until(
        &self,
        limit: Duration,
        mut condition: impl FnMut(&Self) -> bool,
    ) -> bool {
        let deadline = Instant::now() + limit;
        let mut changes = self.hub.changes();
        loop {
            changes.mark_unchanged();
            if condition(self) {
                return true;
            }
            if timeout_at(deadline, changes.changed()).await.is_err() {
                return false;
            }
        }
    }

    // The service side without HTTP.

    /// Calls a direct method, as `POST /twins/{device}/methods` with its default timeouts.
    pub async fn invoke(
        &self,
        device: &str,
        method: &str,
        payload: Value,
    ) -> Result<MethodAnswer, HubError> {
        let body = serde_json::json!({ "methodName": method, "payload": payload });
        self.hub.invoke(device, &Call::parse(&body)?).await
    }

    /// Merges `patch` into the desired properties, as `PATCH /twins/{device}`; the twin afterwards.
    pub fn patch_desired(&self, device: &str, patch: &Value) -> Result<Value, HubError> {
        let body = serde_json::json!({ "properties": { "desired": patch } });
        self.hub
            .write_twin(device, &body, Mode::Merge, &IfMatch::Absent)
    }

    fn write_ready(&self, path: &Path) -> Result<(), StartError> {
        let output = |source| StartError::Output {
            path: PathBuf::from(path),
            option: "--ready-file",
            source,
        };
        let mut line = serde_json::to_string(&*self.ready)
            .map_err(std::io::Error::from)
            .map_err(output)?;
        line.push('\n');
        write_atomically(path, line.as_bytes(), 0o600).map_err(output)
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn bind(
    listen: IpAddr,
    port: u16,
    purpose: &'static str,
    option: &'static str,
) -> Result<TcpListener, StartError> {
    let address = SocketAddr::new(listen, port);
    TcpListener::bind(address)
        .await
        .map_err(|source| StartError::Listen {
            address,
            purpose,
            option,
            source,
        })
}

fn port(listener: &TcpListener) -> u16 {
    listener.local_addr().map_or(0, |address| address.port())
}

fn connection_strings(hub: &Hub) -> std::collections::BTreeMap<String, String> {
    let state = hub.lock();
    let of = |id: &String| {
        let credentials = match state.devices[id].record.identity.primary_key() {
            Some(key) => format!("SharedAccessKey={key}"),
            None => "x509=true".to_owned(),
        };
        format!("HostName={};DeviceId={id};{credentials}", hub.name)
    };
    state
        .devices
        .keys()
        .map(|id| (id.clone(), of(id)))
        .collect()
}

//! An emulator in this process: start, stop, faults and observers.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
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
use crate::configurations::{self, ConfigurationBoard};
use crate::device_ca::DeviceCas;
use crate::fault::{Fault, Parameters};
use crate::fault_kind::FaultKind;
use crate::hub::{Device, Hub, IfMatch, Parts};
use crate::hub_error::HubError;
use crate::jobs::{self, JobBoard, Journal};
use crate::listen;
use crate::methods::{Call, MethodAnswer};
use crate::options::{Options, Ready};
use crate::page;
use crate::policies::{OWNER, Policies};
use crate::rest;
use crate::start_error::StartError;
use crate::store::{Store, write_atomically};
use crate::throttle::Throttle;
use crate::twin::Mode;
use crate::wire_log::WireLog;

/// A running emulator. Dropping it closes everything at once; [`Emulator::stop`] also waits.
#[derive(Debug)]
pub struct Emulator {
    pub(crate) hub: Arc<Hub>,
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
        let wire = match options.page_port {
            Some(_) => wire.remembering(),
            None => wire,
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
        let kept_jobs = match &options.state {
            Some(directory) => Some(Journal::open(directory)?),
            None => None,
        };
        let configurations =
            ConfigurationBoard::open(options.state.as_deref(), options.configuration_interval)?;
        let owner_key = policies.owner_key().to_owned();
        let ca = Ca::open(&directory)?;
        let device_cas = DeviceCas::open(&directory, &options.device_cas)?;
        let device_ca_file = device_cas.own_file().to_owned();
        let mqtt_tls = ca.server_config(&options.hub_name, options.listen)?;
        let mut https_tls = mqtt_tls.clone();
        https_tls.alpn_protocols = vec![b"http/1.1".to_vec()];

        let mqtt = bind(options.listen, options.mqtt_port, "MQTT", "--mqtt-port").await?;
        let https = bind(options.listen, options.https_port, "HTTPS", "--https-port").await?;
        let (mqtt_port, https_port) = (port(&mqtt), port(&https));
        let page = match options.page_port {
            Some(port) => {
                Some(bind(loopback(options.listen), port, "the page", "--page-port").await?)
            }
            None => None,
        };

        let hub = Hub::new(Parts {
            name: options.hub_name.clone(),
            token_grace: options.token_grace,
            wire,
            policies,
            device_cas,
            records,
            store,
            jobs: JobBoard::new(options.max_active_jobs, kept_jobs),
            configurations,
        });
        for spec in &options.devices {
            hub.ensure_device(&spec.id, spec.key.clone())
                .map_err(|source| StartError::Device {
                    id: spec.id.clone(),
                    source,
                })?;
        }
        let certificates =
            hub.ensure_x509_devices(&options.x509_devices, &directory.join("certificates"))?;
        let dps = hub.open_dps(&options)?;
        hub.lock().meters.set(options.throttle);
        for fault in options.faults {
            let shown = fault.to_string();
            hub.inject(fault)
                .await
                .map_err(|source| StartError::Fault {
                    fault: shown,
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
            page_url: page.as_ref().and_then(page_url),
            ca_file: ca.file,
            device_ca_file,
            service_connection_string: format!(
                "HostName={service_host};SharedAccessKeyName={OWNER};SharedAccessKey={owner_key}"
            ),
            devices: connection_strings(&hub),
            certificates,
            dps: Some(dps),
        });

        let stop = hub.stop.clone();
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
        tasks.spawn(configurations::board::run(hub.clone(), stop.clone()));
        tasks.spawn(jobs::engine::run(hub.clone(), stop.clone()));
        if let Some(listener) = page {
            let ports = page::Ports {
                mqtt: mqtt_port,
                https: https_port,
            };
            let router = page::router(hub.clone(), &ports, stop.clone());
            tasks.spawn(listen::page(listener, router, stop.clone()));
        }
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
        self.refuse_connects_with(count, 3);
    }

    /// Refuses the next `count` CONNECTs with this CONNACK code (1 to 5; others count as 3).
    pub fn refuse_connects_with(&self, count: u32, code: u8) {
        let code = Some(code.into());
        self.set(
            FaultKind::RefuseConnects,
            Parameters {
                code,
                ..Parameters::count(count)
            },
        );
    }

    /// Holds back each twin answer for `delay`; zero ends it.
    pub fn delay_twin_answers(&self, delay: Duration) {
        let milliseconds = Some(delay.as_millis().try_into().unwrap_or(u32::MAX));
        let delay = Parameters {
            milliseconds,
            ..Parameters::default()
        };
        self.set(FaultKind::DelayTwinAnswers, delay);
    }

    /// Carries out the next `count` twin requests but loses their answers.
    pub fn swallow_twin_answers(&self, count: u32) {
        self.set(FaultKind::SwallowTwinAnswers, Parameters::count(count));
    }

    /// Refuses the next `count` reported patches with this status (429, 500 and so on).
    pub fn fail_twin_patches(&self, count: u32, status: u16) {
        let status = Some(status.into());
        self.set(
            FaultKind::FailTwinPatches,
            Parameters {
                status,
                ..Parameters::count(count)
            },
        );
    }

    fn set(&self, kind: FaultKind, parameters: Parameters) {
        self.hub.set_fault(Fault::new(kind, parameters));
    }

    /// Puts any fault in force, such as `"fail-twin-reads=2,status=503,device=pi-01".parse()?`. Waits
    /// only for `expire-tokens`. Refuses a fault for a device that is not there to suffer it now.
    pub async fn inject(&self, fault: Fault) -> Result<(), HubError> {
        self.hub.inject(fault).await
    }

    /// What faults are in force, as `GET /emulator/faults`.
    pub fn faults(&self) -> Value {
        self.hub.trouble()
    }

    /// Keeps the throttles of a hub of this size from now on; `None` keeps none.
    pub fn throttle(&self, throttle: Option<Throttle>) {
        self.hub.lock().meters.set(throttle);
    }

    /// Forgets what `device` subscribed to: its next connection starts without subscriptions. A live
    /// connection goes on as it is. Whether the device is known.
    pub fn forget_session(&self, device: &str) -> bool {
        self.hub.forget_sessions(Some(device)).is_ok()
    }

    /// Declares every token used so far expired: connections that use one are closed with no grace, and a
    /// CONNECT with one is refused with CONNACK 5. Takes up to a second, until a fresh token is sure to
    /// be another text than the expired ones.
    pub async fn expire_tokens(&self) {
        self.hub.expire_tokens().await;
    }

    /// Applies the configurations to every device now, instead of within a moment or at the next interval.
    pub async fn apply_configurations(&self) {
        let hub = self.hub.clone();
        // It fails only when the runtime is shutting down.
        let _ = tokio::task::spawn_blocking(move || hub.apply_configurations(true)).await;
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

/// Where the page listens: it has no keys and no TLS, so on this machine only, whatever else is let in.
fn loopback(listen: IpAddr) -> IpAddr {
    match listen.is_loopback() {
        true => listen,
        false => Ipv4Addr::LOCALHOST.into(),
    }
}

fn page_url(listener: &TcpListener) -> Option<String> {
    let address = listener.local_addr().ok()?;
    Some(format!("http://{address}/"))
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

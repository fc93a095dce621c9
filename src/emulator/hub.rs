//! The hub's state: devices with identity, twin, session and connection, and the operations of the
//! registry and the twins. One lock around all of it, held for short, synchronous steps only.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::configurations::{Applied, ConfigurationBoard};
use crate::connect::Proof;
use crate::device_ca::DeviceCas;
use crate::devices::Devices;
use crate::dps::Dps;
use crate::faults::Faults;
use crate::hub_error::{HubError, Kind};
use crate::jobs::JobBoard;
use crate::policies::Policies;
use crate::registry::Identity;
use crate::store::Store;
use crate::throttle::Meters;
use crate::topics::Filter;
use crate::twin::{Mode, ServiceWrite, Twin};
use crate::wire_log::WireLog;

/// Telemetry messages kept for each device; older ones are dropped.
const TELEMETRY_KEPT: usize = 100;

/// The hub behind both listeners.
pub(crate) struct Hub {
    pub(crate) name: String,
    pub(crate) token_grace: Duration,
    pub(crate) wire: WireLog,
    pub(crate) jobs: JobBoard,
    pub(crate) configurations: ConfigurationBoard,
    /// Ends what [`Hub::spawn`] started, and everything else of the emulator.
    pub(crate) stop: CancellationToken,
    runtime: Handle,
    state: Mutex<State>,
    store: Option<Store>,
    changes: watch::Sender<u64>,
}

/// What a hub is made of.
pub(crate) struct Parts {
    pub(crate) name: String,
    pub(crate) token_grace: Duration,
    pub(crate) wire: WireLog,
    pub(crate) policies: Policies,
    pub(crate) device_cas: DeviceCas,
    pub(crate) records: Vec<Record>,
    pub(crate) store: Option<Store>,
    pub(crate) jobs: JobBoard,
    pub(crate) configurations: ConfigurationBoard,
}

/// What the lock protects.
pub(crate) struct State {
    pub(crate) policies: Policies,
    pub(crate) devices: Devices,
    pub(crate) device_cas: DeviceCas,
    pub(crate) faults: Faults,
    pub(crate) meters: Meters,
    pub(crate) dps: Dps,
    pub(crate) tokens: Tokens,
    pub(crate) last_link: u64,
}

/// The tokens that devices have used, so that they can be declared expired.
#[derive(Default)]
pub(crate) struct Tokens {
    pub(crate) seen: HashSet<Vec<u8>>,
    pub(crate) expired: HashSet<Vec<u8>>,
    /// When the last one was accepted; seconds since 1970.
    pub(crate) last_accepted: u64,
}

/// A registered device.
pub(crate) struct Device {
    pub(crate) record: Record,
    pub(crate) link: Option<Link>,
    /// Wakes who waits for the device to connect and to listen for methods. One for each device: a fleet changes
    /// all the time, and thousands may wait.
    pub(crate) arrival: Arc<Notify>,
    pub(crate) connects: u64,
    pub(crate) refusals: u64,
    pub(crate) reported_history: Vec<Reported>,
    pub(crate) telemetry: VecDeque<Value>,
    /// The last change of the desired properties: version and what was pushed.
    pub(crate) last_push: Option<(u64, String)>,
    /// When it connected or disconnected last.
    pub(crate) connection_state_updated: String,
}

/// A reported patch that was accepted. Kept as text: parsed it takes ten times as much memory, and a fleet has many.
#[derive(Clone)]
pub(crate) struct Reported {
    pub(crate) time: String,
    pub(crate) version: u64,
    pub(crate) patch: Box<str>,
}

impl Reported {
    /// `{"time":…,"version":…,"patch":…}`.
    pub(crate) fn document(&self) -> Value {
        // It was parsed when it was accepted.
        let patch: Value = serde_json::from_str(&self.patch).unwrap_or_default();
        json!({ "time": self.time, "version": self.version, "patch": patch })
    }
}

/// What of a device outlives the program.
#[derive(Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) identity: Identity,
    pub(crate) twin: Twin,
    /// The kept session: what the device subscribed to, with the granted QoS.
    pub(crate) subscriptions: BTreeMap<Filter, u8>,
    pub(crate) last_activity: String,
    /// What configurations have done to it.
    #[serde(default)]
    pub(crate) configurations: Applied,
}

/// A live connection.
pub(crate) struct Link {
    pub(crate) id: u64,
    pub(crate) outbox: mpsc::UnboundedSender<Outgoing>,
    pub(crate) subscriptions: BTreeMap<Filter, u8>,
    /// Clean session 0: subscriptions go into the record as well.
    pub(crate) keeps_session: bool,
    /// The user name had an api-version, without which twins are refused.
    pub(crate) has_api_version: bool,
    /// What it connected with.
    pub(crate) proof: Proof,
    pub(crate) model_id: Option<String>,
    pub(crate) will: Option<(String, Vec<u8>)>,
    pub(crate) methods: HashMap<String, oneshot::Sender<(i32, Vec<u8>)>>,
    pub(crate) last_rid: u64,
}

/// What a connection's task is told to do.
#[derive(Debug)]
pub(crate) enum Outgoing {
    Publish {
        topic: String,
        payload: Vec<u8>,
    },
    /// Close without notice, for this reason.
    Close(String),
}

/// The condition of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum IfMatch {
    /// None was given.
    Absent,
    /// `*`.
    Any,
    Etag(String),
}

impl Device {
    pub(crate) fn new(record: Record) -> Self {
        Self {
            record,
            link: None,
            arrival: Arc::default(),
            connects: 0,
            refusals: 0,
            reported_history: Vec::new(),
            telemetry: VecDeque::new(),
            last_push: None,
            connection_state_updated: clock::NO_DATE.to_owned(),
        }
    }

    /// Notes that the device connected, disconnected or sent something.
    pub(crate) fn touch(&mut self, connection_changed: bool) {
        self.record.last_activity = clock::stamp();
        if connection_changed {
            self.connection_state_updated = clock::stamp();
        }
    }

    pub(crate) fn keep_telemetry(&mut self, message: Value) {
        if self.telemetry.len() == TELEMETRY_KEPT {
            self.telemetry.pop_front();
        }
        self.telemetry.push_back(message);
    }

    /// Tells a live connection to close; whether there was one.
    pub(crate) fn close(&mut self, reason: &str) -> bool {
        match self.link.take() {
            Some(link) => {
                // A send fails only when the connection's task has ended by itself.
                let _ = link.outbox.send(Outgoing::Close(reason.to_owned()));
                self.touch(true);
                true
            }
            None => false,
        }
    }

    /// Each accepted reported patch, in order: `{"time":…,"version":…,"patch":…}`.
    pub(crate) fn reported_history(&self) -> Vec<Value> {
        (self.reported_history.iter())
            .map(Reported::document)
            .collect()
    }

    fn connection_state(&self) -> &'static str {
        match self.link {
            Some(_) => "Connected",
            None => "Disconnected",
        }
    }

    fn identity_document(&self) -> Value {
        let mut document = self.record.identity.document();
        document["connectionState"] = self.connection_state().into();
        document["connectionStateUpdatedTime"] = self.connection_state_updated.clone().into();
        document["lastActivityTime"] = self.record.last_activity.clone().into();
        document
    }

    /// What a twin shows besides tags, properties and configurations.
    pub(crate) fn twin_head(&self) -> Value {
        let (identity, twin) = (&self.record.identity, &self.record.twin);
        let model = self.link.as_ref().and_then(|link| link.model_id.as_deref());
        json!({
            "deviceId": identity.id,
            "etag": twin.etag(),
            "deviceEtag": identity.etag,
            "status": identity.status(),
            "statusReason": identity.status_reason,
            "statusUpdateTime": identity.status_updated,
            "connectionState": self.connection_state(),
            "lastActivityTime": self.record.last_activity,
            "cloudToDeviceMessageCount": 0,
            "authenticationType": identity.credentials.kind(),
            "x509Thumbprint": identity.credentials.thumbprints(),
            "modelId": model.unwrap_or_default(),
            "version": twin.version(),
            "capabilities": { "iotEdge": identity.edge },
        })
    }

    /// The twin as service tools see it.
    pub(crate) fn twin_document(&self) -> Value {
        let twin = &self.record.twin;
        let mut document = self.twin_head();
        document["properties"] = twin.properties();
        if !twin.tags.is_empty() {
            document["tags"] = twin.tags.clone().into();
        }
        if let Some(configurations) = self.record.configurations.document() {
            document["configurations"] = configurations;
        }
        document
    }
}

impl Record {
    pub(crate) fn new(identity: Identity) -> Self {
        Self {
            identity,
            twin: Twin::new(&clock::stamp()),
            subscriptions: BTreeMap::new(),
            last_activity: clock::NO_DATE.to_owned(),
            configurations: Applied::default(),
        }
    }
}

impl IfMatch {
    /// Reads the header: `"etag"`, `etag`, `"*"` or `*`.
    pub(crate) fn parse(header: Option<&str>) -> Self {
        match header.map(|text| text.trim().trim_matches('"')) {
            None => Self::Absent,
            Some("*") => Self::Any,
            Some(etag) => Self::Etag(etag.to_owned()),
        }
    }

    pub(crate) fn check(&self, current: &str, what: &str) -> Result<(), HubError> {
        match self {
            Self::Etag(etag) if etag != current => Err(HubError::stale(what)),
            Self::Absent | Self::Any | Self::Etag(_) => Ok(()),
        }
    }
}

impl Hub {
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        let Parts {
            name,
            token_grace,
            wire,
            policies,
            device_cas,
            records,
            store,
            jobs,
            configurations,
        } = parts;
        let devices = records
            .into_iter()
            .map(|record| (record.identity.id.clone(), Device::new(record)))
            .collect();
        Arc::new(Self {
            name,
            token_grace,
            wire,
            jobs,
            configurations,
            stop: CancellationToken::new(),
            runtime: Handle::current(),
            state: Mutex::new(State {
                policies,
                devices,
                device_cas,
                faults: Faults::default(),
                meters: Meters::default(),
                dps: Dps::default(),
                tokens: Tokens::default(),
                last_link: 0,
            }),
            store,
            changes: watch::Sender::new(0),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves no half-made change: each is put in place in one assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes everyone who waits for something to change.
    pub(crate) fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Lets `task` run until it ends or the emulator stops.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.runtime.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// The state directory, with `--state`.
    pub(crate) fn store(&self) -> Option<&Store> {
        self.store.as_ref()
    }

    /// Makes a device's record durable (with `--state`), wakes who waits, and lets the configurations
    /// have another look at it.
    pub(crate) fn save(&self, record: &Record) {
        self.save_quietly(record);
        self.configurations.touch(&record.identity.id);
    }

    /// Saves what the configurations themselves have changed.
    pub(crate) fn save_quietly(&self, record: &Record) {
        if let Some(store) = &self.store {
            store.save_device(record);
        }
        self.changed();
    }

    /// Registers `identity` unless a device of that id is there; then only a given key is taken over.
    pub(crate) fn ensure_device(&self, id: &str, key: Option<String>) -> Result<(), HubError> {
        let given = key.is_some();
        let identity = Identity::new(id, key)?;
        let mut state = self.lock();
        match state.devices.get_mut(id) {
            Some(device) if given => device.record.identity.credentials = identity.credentials,
            Some(_) => {}
            None => {
                let device = Device::new(Record::new(identity));
                state.devices.insert(id.to_owned(), device);
            }
        }
        self.save(&state.devices[id].record);
        Ok(())
    }

    /// `PUT /devices/{id}`: creates without `If-Match`, updates with it.
    pub(crate) fn put_device(
        &self,
        id: &str,
        body: &Value,
        condition: &IfMatch,
    ) -> Result<Value, HubError> {
        let mut state = self.lock();
        match (state.devices.get_mut(id), condition) {
            (Some(_), IfMatch::Absent) => Err(HubError::new(
                Kind::DeviceAlreadyExists,
                format!("The device '{id}' exists already."),
            )),
            (Some(device), _) => {
                let old = &device.record.identity;
                condition.check(&old.etag, "the device's etag")?;
                let identity = Identity::from_body(id, body, Some(old))?;
                let fits = |link: &Link| link.proof.fits(&identity.credentials);
                let rekeyed = !device.link.as_ref().is_none_or(fits);
                device.record.identity = identity;
                device.record.twin.identity_changed();
                if !device.record.identity.enabled {
                    device.close("the device was disabled");
                } else if rekeyed {
                    device.close("the device's keys were changed");
                }
                self.save(&device.record);
                Ok(device.identity_document())
            }
            (None, IfMatch::Absent) => {
                let device = Device::new(Record::new(Identity::from_body(id, body, None)?));
                let document = device.identity_document();
                self.save(&device.record);
                state.devices.insert(id.to_owned(), device);
                Ok(document)
            }
            (None, _) => Err(HubError::no_device(id)),
        }
    }

    pub(crate) fn get_device(&self, id: &str) -> Result<Value, HubError> {
        let state = self.lock();
        Ok(state.device(id)?.identity_document())
    }

    pub(crate) fn list_devices(&self, top: usize) -> Vec<Value> {
        let state = self.lock();
        let devices = state.devices.values().take(top);
        devices.map(Device::identity_document).collect()
    }

    pub(crate) fn delete_device(&self, id: &str, condition: &IfMatch) -> Result<(), HubError> {
        let mut state = self.lock();
        let device = state.device_mut(id)?;
        condition.check(&device.record.identity.etag, "the device's etag")?;
        device.close("the device was deleted");
        device.arrival.notify_waiters();
        state.devices.remove(id);
        if let Some(store) = &self.store {
            store.remove_device(id);
        }
        self.changed();
        Ok(())
    }

    pub(crate) fn device_ids(&self) -> Vec<String> {
        self.lock().devices.keys().cloned().collect()
    }

    pub(crate) fn statistics(&self) -> Value {
        let state = self.lock();
        let enabled = |device: &&Device| device.record.identity.enabled;
        let enabled = state.devices.values().filter(enabled).count();
        json!({
            "totalDeviceCount": state.devices.len(),
            "enabledDeviceCount": enabled,
            "disabledDeviceCount": state.devices.len() - enabled,
        })
    }

    pub(crate) fn connected_count(&self) -> usize {
        let state = self.lock();
        let connected = |device: &&Device| device.link.is_some();
        state.devices.values().filter(connected).count()
    }

    pub(crate) fn get_twin(&self, id: &str) -> Result<Value, HubError> {
        let state = self.lock();
        Ok(state.device(id)?.twin_document())
    }

    /// A service write to a twin. Pushes the change to a device that listens for it.
    pub(crate) fn write_twin(
        &self,
        id: &str,
        body: &Value,
        mode: Mode,
        condition: &IfMatch,
    ) -> Result<Value, HubError> {
        let write = ServiceWrite::parse(body)?;
        let mut state = self.lock();
        let state = &mut *state;
        let device = (state.devices.get_mut(id)).ok_or_else(|| HubError::no_device(id))?;
        condition.check(&device.record.twin.etag(), "the twin's etag")?;
        if let Some(push) = device.record.twin.write(&write, mode, &clock::stamp())? {
            self.push_desired(device, &mut state.faults, &push);
        }
        self.save(&device.record);
        Ok(device.twin_document())
    }
}

impl State {
    pub(crate) fn device(&self, id: &str) -> Result<&Device, HubError> {
        self.devices.get(id).ok_or_else(|| HubError::no_device(id))
    }

    pub(crate) fn device_mut(&mut self, id: &str) -> Result<&mut Device, HubError> {
        self.devices
            .get_mut(id)
            .ok_or_else(|| HubError::no_device(id))
    }
}

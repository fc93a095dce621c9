//! The provisioning service: enrollments, what registers under them, and which hub each device gets.
//!
//! It stands in front of this one hub: a device that is assigned here is registered here. Who speaks to it
//! over MQTT: `dps_side.rs`.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::clock;
use crate::configurations::Applied;
use crate::connect::Proof;
use crate::device_ca::DeviceCas;
use crate::enrollment::{Attestation, Enrollment, Status};
use crate::fault_kind::FaultKind;
use crate::hub::{Device, Hub, Link, Record, State};
use crate::hub_error::{HubError, Kind};
use crate::percent;
use crate::registry::{Credentials, Identity};
use crate::start_error::StartError;
use crate::store::Store;
use crate::twin::{Mode, Twin};

/// The group whose keys devices derive theirs from.
pub(crate) const KEY_GROUP: &str = "keys";
/// The group for certificates of registered CAs.
const CERTIFICATE_GROUP: &str = "certificates";
/// Where it is kept, with `--state`.
const FILE: &str = "dps.json";
const FOLDER: &str = "registrations";

/// The service's state.
#[derive(Default)]
pub(crate) struct Dps {
    pub(crate) settings: Settings,
    registrations: BTreeMap<String, Registration>,
    /// What each registration id began last and did not ask for yet.
    operations: HashMap<String, Operation>,
}

/// A registration under way.
struct Operation {
    id: String,
    /// How many answers more say "assigning".
    left: u32,
}

/// All of it but the registrations.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Settings {
    pub(crate) id_scope: String,
    /// The hub that devices are sent to; this one when absent.
    pub(crate) assigned_hub: Option<String>,
    /// Seconds that a device is told to wait.
    pub(crate) retry_after: u32,
    /// How often a device has to ask before it is assigned.
    pub(crate) polls: u32,
    pub(crate) enrollments: BTreeMap<String, Enrollment>,
    pub(crate) groups: BTreeMap<String, Enrollment>,
}

/// What became of a registration id.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct Registration {
    /// Requests to register that were taken.
    pub(crate) count: u64,
    /// What the device sent with the last.
    pub(crate) request: Value,
    /// The registration state as the device got it; null until it asked.
    pub(crate) state: Value,
}

/// The enrollment that a device proved to be in, and what the hub shall know it by.
#[derive(Clone)]
pub(crate) struct Admission {
    group: Option<String>,
    credentials: Credentials,
}

/// What a request comes to.
pub(crate) enum Progress {
    /// Ask again, with this operation id.
    Assigning(String),
    /// The final answer.
    Final(Value),
}

impl Dps {
    /// Takes the service from the state directory, or makes a new one with a group for keys and one for
    /// certificates.
    pub(crate) fn open(store: Option<&Store>) -> Result<Self, StartError> {
        let kept = match store {
            Some(store) => store.load(FILE)?,
            None => None,
        };
        let settings = match kept {
            Some(settings) => settings,
            None => Settings::new()?,
        };
        let registrations = match store {
            Some(store) => store.load_all(FOLDER)?.into_iter().collect(),
            None => BTreeMap::new(),
        };
        Ok(Self {
            settings,
            registrations,
            operations: HashMap::new(),
        })
    }

    pub(crate) fn registration(&self, id: &str) -> Option<&Registration> {
        self.registrations.get(id)
    }

    /// The primary key of the group from which devices derive theirs.
    pub(crate) fn group_key(&self) -> &str {
        let group = self.settings.groups.get(KEY_GROUP);
        group.and_then(Enrollment::primary_key).unwrap_or_default()
    }

    /// Which enrollment `proof` is for: the individual one, else the first group that it fits.
    pub(crate) fn admit(
        &self,
        id: &str,
        proof: &Proof,
        cas: &DeviceCas,
    ) -> Result<Admission, String> {
        if let Some(enrollment) = self.settings.enrollments.get(id) {
            let credentials = enrollment.attest(id, proof, false, cas)?;
            return Ok(Admission {
                group: None,
                credentials,
            });
        }
        let mut why = "there is no enrollment for this registration id".to_owned();
        for (name, group) in &self.settings.groups {
            match group.attest(id, proof, true, cas) {
                Ok(credentials) => {
                    let group = Some(name.clone());
                    return Ok(Admission { group, credentials });
                }
                Err(reason) => why = format!("{why}; group '{name}': {reason}"),
            }
        }
        Err(why)
    }

    fn enrollment(&self, id: &str, admission: &Admission) -> Option<&Enrollment> {
        match &admission.group {
            Some(group) => self.settings.groups.get(group),
            None => self.settings.enrollments.get(id),
        }
    }

    /// The service as the controls show it.
    pub(crate) fn document(&self) -> Value {
        let mut document = json!(self.settings);
        document["registrations"] = json!(self.registrations);
        document
    }
}

impl Settings {
    fn new() -> Result<Self, StartError> {
        let scope = u32::from_be_bytes(clock::random::<4>());
        let mut settings = Self {
            id_scope: format!("0ne{scope:08X}"),
            assigned_hub: None,
            retry_after: 1,
            polls: 1,
            enrollments: BTreeMap::new(),
            groups: BTreeMap::new(),
        };
        for (name, mut group) in [
            (KEY_GROUP, Enrollment::with_key(String::new())),
            (
                CERTIFICATE_GROUP,
                Enrollment::with(Attestation::CertificateAuthority),
            ),
        ] {
            group.complete().map_err(|source| StartError::Device {
                id: name.to_owned(),
                source,
            })?;
            settings.groups.insert(name.to_owned(), group);
        }
        Ok(settings)
    }
}

impl Hub {
    /// Creates or changes an enrollment: a group, or an individual one of a registration id.
    pub(crate) fn enroll(&self, id: &str, is_group: bool, body: &Value) -> Result<Value, HubError> {
        let id = registration_id(id)?;
        let mut state = self.lock();
        let enrollments = state.dps.settings.enrollments_mut(is_group);
        let enrollment = Enrollment::from_body(body, enrollments.get(&id))?;
        let document = json!(enrollment);
        enrollments.insert(id, enrollment);
        self.save_dps(&state.dps);
        Ok(document)
    }

    /// Removes an enrollment; whether there was one. What was registered under it stays.
    pub(crate) fn unenroll(&self, id: &str, is_group: bool) -> bool {
        let mut state = self.lock();
        let enrollments = state.dps.settings.enrollments_mut(is_group);
        let found = enrollments.remove(&id.to_ascii_lowercase()).is_some();
        self.save_dps(&state.dps);
        found
    }

    pub(crate) fn save_dps(&self, dps: &Dps) {
        if let Some(store) = self.store() {
            store.save(FILE, &dps.settings);
        }
        self.changed();
    }

    /// A request to register, with the body that the device sent.
    pub(crate) fn register(
        &self,
        id: &str,
        admission: &Admission,
        body: &[u8],
    ) -> Result<Progress, HubError> {
        let request = read_request(id, body)?;
        let mut state = self.lock();
        let state = &mut *state;
        self.refuse_registration(state, id)?;
        let registration = state.dps.registrations.entry(id.to_owned()).or_default();
        registration.count += 1;
        registration.request = request;
        self.save_registration(&state.dps, id);
        let operation = new_operation();
        match state.dps.settings.polls {
            0 => Ok(Progress::Final(
                self.finish(state, id, &operation, admission)?,
            )),
            polls => {
                let begun = Operation {
                    id: operation.clone(),
                    left: polls - 1,
                };
                state.dps.operations.insert(id.to_owned(), begun);
                Ok(Progress::Assigning(operation))
            }
        }
    }

    /// A question what became of `operation`.
    pub(crate) fn operation_status(
        &self,
        id: &str,
        admission: &Admission,
        operation: &str,
    ) -> Result<Progress, HubError> {
        let mut state = self.lock();
        let state = &mut *state;
        self.refuse_registration(state, id)?;
        match state.dps.operations.get_mut(id) {
            Some(begun) if begun.id == operation && begun.left > 0 => {
                begun.left -= 1;
                Ok(Progress::Assigning(operation.to_owned()))
            }
            Some(begun) if begun.id == operation => {
                let answer = self.finish(state, id, operation, admission)?;
                state.dps.operations.remove(id);
                Ok(Progress::Final(answer))
            }
            Some(_) | None => Err(HubError::new(
                Kind::NotFound,
                "There is no such operation of this registration.",
            )),
        }
    }

    fn refuse_registration(&self, state: &mut State, id: &str) -> Result<(), HubError> {
        self.refuse_on_request(&mut state.faults, FaultKind::FailRegistrations, id)
    }

    /// Decides, registers the device, and keeps the outcome.
    fn finish(
        &self,
        state: &mut State,
        id: &str,
        operation: &str,
        admission: &Admission,
    ) -> Result<Value, HubError> {
        let enrollment = state.dps.enrollment(id, admission).cloned();
        let enrollment = enrollment.ok_or_else(|| {
            HubError::new(
                Kind::IotHubUnauthorizedAccess,
                "The enrollment was removed.",
            )
        })?;
        let before = state
            .dps
            .registration(id)
            .map(|registration| registration.state.clone());
        let created =
            before.and_then(|state| state["createdDateTimeUtc"].as_str().map(str::to_owned));
        let now = clock::stamp();
        let mut outcome = json!({
            "registrationId": id,
            "createdDateTimeUtc": created.unwrap_or_else(|| now.clone()),
            "lastUpdatedDateTimeUtc": now,
            "etag": clock::new_identity_etag(),
        });
        let status = match (enrollment.status, &enrollment.failure) {
            (Status::Disabled, _) => {
                outcome["errorCode"] = 401_002.into();
                outcome["errorMessage"] = "The enrollment is disabled.".into();
                "disabled"
            }
            (Status::Enabled, Some(reason)) => {
                outcome["errorCode"] = 400_207.into();
                outcome["errorMessage"] = reason.clone().into();
                "failed"
            }
            (Status::Enabled, None) => {
                let device = enrollment
                    .device_id
                    .clone()
                    .unwrap_or_else(|| id.to_owned());
                let hub = enrollment.assigned_hub.clone();
                let hub = hub.or_else(|| state.dps.settings.assigned_hub.clone());
                let hub = hub.unwrap_or_else(|| self.name.clone());
                outcome["substatus"] = match hub.eq_ignore_ascii_case(&self.name) {
                    true => self.provision(state, &device, &enrollment, &admission.credentials)?,
                    // Another hub's registry is not ours to write.
                    false => "initialAssignment",
                }
                .into();
                outcome["assignedHub"] = hub.into();
                outcome["deviceId"] = device.into();
                outcome["payload"] = enrollment.payload.clone();
                "assigned"
            }
        };
        outcome["status"] = status.into();
        let proved = match admission.credentials {
            Credentials::Sas { .. } => "symmetricKey",
            Credentials::SelfSigned { .. } | Credentials::CertificateAuthority => "x509",
        };
        outcome[proved] = json!({ "enrollmentGroupId": admission.group });
        let registration = state.dps.registrations.entry(id.to_owned()).or_default();
        registration.state = outcome.clone();
        self.save_registration(&state.dps, id);
        Ok(json!({ "operationId": operation, "status": status, "registrationState": outcome }))
    }

    /// Puts the device into this hub's registry, or gives the one that is there its credentials.
    fn provision(
        &self,
        state: &mut State,
        id: &str,
        enrollment: &Enrollment,
        credentials: &Credentials,
    ) -> Result<&'static str, HubError> {
        let mut identity = Identity::with(id, credentials.clone())?;
        let now = clock::stamp();
        let mut twin = Twin::new(&now);
        if let Some(write) = enrollment.twin()? {
            twin.write(&write, Mode::Merge, &now)?;
        }
        let Some(device) = state.devices.get_mut(id) else {
            let mut device = Device::new(Record::new(identity));
            device.record.twin = twin;
            self.save(&device.record);
            state.devices.insert(id.to_owned(), device);
            return Ok("initialAssignment");
        };
        let old = &device.record.identity;
        if old.credentials != *credentials {
            identity.generation.clone_from(&old.generation);
            identity.enabled = old.enabled;
            identity.status_reason.clone_from(&old.status_reason);
            identity.status_updated.clone_from(&old.status_updated);
            device.record.identity = identity;
            let fits = |link: &Link| link.proof.fits(credentials);
            if !device.link.as_ref().is_none_or(fits) {
                device.close("the device was provisioned with other credentials");
            }
        }
        let substatus = match enrollment.reset_twin {
            true => {
                device.record.twin = twin;
                device.record.configurations = Applied::default();
                "deviceDataReset"
            }
            false => "initialAssignment",
        };
        self.save(&device.record);
        Ok(substatus)
    }

    fn save_registration(&self, dps: &Dps, id: &str) {
        if let (Some(store), Some(registration)) = (self.store(), dps.registration(id)) {
            let name = format!("{FOLDER}/{}.json", percent::encode(id));
            store.save(&name, &(id, registration));
        }
        self.changed();
    }
}

impl Settings {
    fn enrollments_mut(&mut self, is_group: bool) -> &mut BTreeMap<String, Enrollment> {
        match is_group {
            true => &mut self.groups,
            false => &mut self.enrollments,
        }
    }
}

/// The registration id as the service knows it: letters are lower case.
pub(crate) fn registration_id(id: &str) -> Result<String, HubError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
    if (1..=128).contains(&id.len()) && id.bytes().all(allowed) {
        return Ok(id.to_ascii_lowercase());
    }
    Err(HubError::argument(format!(
        "'{}' is no registration id: 1 to 128 letters, digits and - . _ :",
        id.chars().take(140).collect::<String>()
    )))
}

/// The `payload` of a request whose `registrationId` is `id`.
fn read_request(id: &str, body: &[u8]) -> Result<Value, HubError> {
    let body: Value = serde_json::from_slice(body)
        .map_err(|error| HubError::argument(format!("The request is not JSON: {error}")))?;
    match body.get("registrationId").and_then(Value::as_str) {
        Some(named) if named.eq_ignore_ascii_case(id) => Ok(body["payload"].clone()),
        _ => Err(HubError::argument(
            "'registrationId' in the body is not the one of the connection.",
        )),
    }
}

fn new_operation() -> String {
    let [first, second] = [clock::random::<8>(), clock::random::<8>()].map(u64::from_be_bytes);
    format!("4.{first:016x}.{second:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registration_ids_are_lower_case() {
        assert_eq!(registration_id("Pi-01.a_b:C").unwrap(), "pi-01.a_b:c");
        for bad in ["", "a b", "a/b", &"x".repeat(129)] {
            assert!(registration_id(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_request_names_its_registration() {
        let payload = read_request("pi", br#"{"registrationId":"PI","payload":{"a":1}}"#).unwrap();
        assert_eq!(payload, json!({ "a": 1 }));
        for bad in [&b""[..], b"[]", b"{}", br#"{"registrationId":"other"}"#] {
            assert!(read_request("pi", bad).is_err());
        }
    }

    #[test]
    fn an_enrollment_of_its_own_comes_before_every_group() {
        let directory = tempfile::tempdir().unwrap();
        let cas = DeviceCas::open(directory.path(), &[]).unwrap();
        let mut dps = Dps::open(None).unwrap();
        let key = crate::sas::derive_key(dps.group_key(), "pi").unwrap();
        let token = crate::sas::sign("scope/registrations/pi", &key, 1, None).unwrap();
        let proof = Proof::Token(crate::sas::Token::parse(&token).unwrap());
        let admitted = dps.admit("pi", &proof, &cas).unwrap();
        assert_eq!(admitted.group.as_deref(), Some(KEY_GROUP));
        // The same key is another device's no more.
        assert!(dps.admit("pj", &proof, &cas).is_err());
        let own = Enrollment::from_body(&json!({}), None).unwrap();
        dps.settings.enrollments.insert("pi".to_owned(), own);
        assert!(dps.admit("pi", &proof, &cas).is_err());
    }
}

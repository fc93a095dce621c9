//! Identities without HTTP: certificates, CAs, devices and enrollments for whoever starts the emulator.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::certificates::{DeviceCertificate, LIFE_SECONDS};
use crate::dps::{Dps, KEY_GROUP};
use crate::emulator::Emulator;
use crate::enrollment::Enrollment;
use crate::hub::{Hub, IfMatch};
use crate::hub_error::{HubError, Kind};
use crate::options::{CertificateFiles, DpsReady, Options};
use crate::percent;
use crate::sas::derive_key;
use crate::start_error::StartError;
use crate::store::write_atomically;

impl Emulator {
    /// A certificate for device `id`, or for the registration id `id`, signed by the emulator's own CA for
    /// devices and good for ten years.
    pub fn issue_certificate(&self, id: &str) -> Result<DeviceCertificate, HubError> {
        self.issue_certificate_for(id, LIFE_SECONDS)
    }

    /// The same, good for `life` seconds from now; a negative life makes one that has expired.
    pub fn issue_certificate_for(
        &self,
        id: &str,
        life: i64,
    ) -> Result<DeviceCertificate, HubError> {
        self.hub.lock().device_cas.issue(id, life)
    }

    /// Registers the CAs in `pem`: certificates that lead to one of them are taken from
    /// `certificateAuthority` devices and for X.509 enrollments. How many there were.
    pub fn register_device_ca(&self, pem: &str) -> Result<usize, HubError> {
        self.hub.lock().device_cas.register(pem.as_bytes())
    }

    /// Creates or changes a device, as `PUT /devices/{id}`; its identity afterwards.
    pub fn put_device(&self, id: &str, body: &Value) -> Result<Value, HubError> {
        match self.hub.put_device(id, body, &IfMatch::Absent) {
            Err(error) if error.kind() == Kind::DeviceAlreadyExists => {
                self.hub.put_device(id, body, &IfMatch::Any)
            }
            result => result,
        }
    }

    /// Removes a device, as `DELETE /devices/{id}`.
    pub fn delete_device(&self, id: &str) -> Result<(), HubError> {
        self.hub.delete_device(id, &IfMatch::Any)
    }
}

/// The provisioning service.
impl Emulator {
    /// Creates or changes the individual enrollment of a registration id, as
    /// `PUT /emulator/dps/enrollments/{id}`; the enrollment afterwards.
    pub fn enroll(&self, registration_id: &str, body: &Value) -> Result<Value, HubError> {
        self.hub.enroll(registration_id, false, body)
    }

    /// Creates or changes a group of enrollments, as `PUT /emulator/dps/groups/{name}`. There are `keys` and
    /// `certificates` from the start.
    pub fn enroll_group(&self, name: &str, body: &Value) -> Result<Value, HubError> {
        self.hub.enroll(name, true, body)
    }

    /// The key that the device with this registration id has in the group `keys`.
    pub fn derived_key(&self, registration_id: &str) -> String {
        let state = self.hub.lock();
        derive_key(state.dps.group_key(), registration_id).unwrap_or_default()
    }

    /// How many requests to register the service took from this registration id.
    pub fn registrations(&self, registration_id: &str) -> u64 {
        let state = self.hub.lock();
        let registration = state.dps.registration(registration_id);
        registration.map_or(0, |registration| registration.count)
    }

    /// The registration state that the device got last; null when it got none.
    pub fn registration(&self, registration_id: &str) -> Value {
        let state = self.hub.lock();
        let registration = state.dps.registration(registration_id);
        registration.map_or(Value::Null, |registration| registration.state.clone())
    }

    /// Sends devices that provision themselves to this hub name; `None`: to this hub.
    pub fn assign_to(&self, hub: Option<&str>) {
        let mut state = self.hub.lock();
        state.dps.settings.assigned_hub = hub.map(str::to_owned);
        self.hub.save_dps(&state.dps);
    }
}

impl Hub {
    /// Opens the provisioning service and enrolls what the options name.
    pub(crate) fn open_dps(&self, options: &Options) -> Result<DpsReady, StartError> {
        let mut dps = Dps::open(self.store())?;
        if let Some(scope) = &options.id_scope {
            dps.settings.id_scope.clone_from(scope);
        }
        self.lock().dps = dps;
        let by_key = |id: &str, is_group, key: &str| {
            let attestation = json!({ "type": "symmetricKey", "primaryKey": key });
            self.enroll(id, is_group, &json!({ "attestation": attestation }))
                .map_err(|source| StartError::Device {
                    id: id.to_owned(),
                    source,
                })
        };
        if let Some(key) = &options.dps_group_key {
            by_key(KEY_GROUP, true, key)?;
        }
        for spec in &options.enrollments {
            let known = self.lock().dps.settings.enrollments.contains_key(&spec.id);
            if spec.key.is_some() || !known {
                by_key(&spec.id, false, spec.key.as_deref().unwrap_or_default())?;
            }
        }
        let state = self.lock();
        self.save_dps(&state.dps);
        let key = |(id, enrollment): (&String, &Enrollment)| {
            Some((id.clone(), enrollment.primary_key()?.to_owned()))
        };
        Ok(DpsReady {
            host: self.name.clone(),
            id_scope: state.dps.settings.id_scope.clone(),
            group_key: state.dps.group_key().to_owned(),
            enrollments: state
                .dps
                .settings
                .enrollments
                .iter()
                .filter_map(key)
                .collect(),
        })
    }

    /// Registers each of `ids` as a `certificateAuthority` device unless it is there, and puts certificate
    /// and key into `{id}.pem` and `{id}.key` of `directory` unless they are there.
    pub(crate) fn ensure_x509_devices(
        &self,
        ids: &[String],
        directory: &Path,
    ) -> Result<BTreeMap<String, CertificateFiles>, StartError> {
        let mut files = BTreeMap::new();
        for id in ids {
            let refused = |source| StartError::Device {
                id: id.clone(),
                source,
            };
            if self.get_device(id).is_err() {
                let body = json!({ "authentication": { "type": "certificateAuthority" } });
                self.put_device(id, &body, &IfMatch::Absent)
                    .map_err(refused)?;
            }
            let pair = CertificateFiles::of(directory, id);
            if !pair.certificate_file.exists() || !pair.private_key_file.exists() {
                let made = self.lock().device_cas.issue(id, LIFE_SECONDS);
                let made = made.map_err(refused)?;
                fs::create_dir_all(directory)
                    .map_err(|source| StartError::state(directory, source))?;
                for (path, pem, mode) in [
                    (&pair.private_key_file, &made.private_key, 0o600),
                    (&pair.certificate_file, &made.certificate, 0o644),
                ] {
                    write_atomically(path, pem.as_bytes(), mode)
                        .map_err(|source| StartError::state(path, source))?;
                }
            }
            files.insert(id.clone(), pair);
        }
        Ok(files)
    }
}

impl CertificateFiles {
    fn of(directory: &Path, id: &str) -> Self {
        let name = percent::encode(id);
        Self {
            certificate_file: directory.join(format!("{name}.pem")),
            private_key_file: directory.join(format!("{name}.key")),
        }
    }
}

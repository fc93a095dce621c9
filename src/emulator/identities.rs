//! Identities without HTTP: certificates, CAs, devices for whoever starts the emulator.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::certificates::{DeviceCertificate, LIFE_SECONDS};
use crate::emulator::Emulator;
use crate::hub::{Hub, IfMatch};
use crate::hub_error::{HubError, Kind};
use crate::options::CertificateFiles;
use crate::percent;
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
    /// `certificateAuthority` devices and for X.509 enrolments. How many there were.
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

impl Hub {
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

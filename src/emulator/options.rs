//! How an emulator is started, and what it says when it serves.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fault::Fault;
use crate::throttle::Throttle;

/// How an emulator is started. The default takes free ports on 127.0.0.1 and keeps nothing.
#[derive(Debug, Clone)]
pub struct Options {
    /// The hub's host name: in connection strings, user names, tokens and the certificate.
    pub hub_name: String,
    /// The address to listen on.
    pub listen: IpAddr,
    /// Port for MQTT over TLS; 0 takes a free one.
    pub mqtt_port: u16,
    /// Port for HTTPS and WebSocket; 0 takes a free one.
    pub https_port: u16,
    /// Port for the page for people, always on loopback; 0 takes a free one. Without it there is no page.
    pub page_port: Option<u16>,
    /// Where the CAs, the registry, the twins, enrollments, jobs and configurations are kept. Without it they
    /// live as long as the emulator.
    pub state: Option<PathBuf>,
    /// Devices to register at the start, unless the state has them already.
    pub devices: Vec<DeviceSpec>,
    /// Devices to register at the start with a certificate of the emulator's own CA for devices, unless the
    /// state has them already; [`Ready::certificates`] says where certificate and key are.
    pub x509_devices: Vec<String>,
    /// Files with CAs, in PEM, whose certificates devices may show.
    pub device_cas: Vec<PathBuf>,
    /// Individual enrollments, with their key, for the provisioning service.
    pub enrollments: Vec<DeviceSpec>,
    /// The key of the group `keys`, from which device keys are derived; one is made when absent.
    pub dps_group_key: Option<String>,
    /// The id scope of the provisioning service; one is made when absent.
    pub id_scope: Option<String>,
    /// The throttles to keep; none when absent.
    pub throttle: Option<Throttle>,
    /// Faults in force from the start.
    pub faults: Vec<Fault>,
    /// Where to append one line for each packet.
    pub wire_log: Option<PathBuf>,
    /// Where to write [`Ready`] as one line of JSON once the emulator serves.
    pub ready_file: Option<PathBuf>,
    /// How long a connection outlives its token.
    pub token_grace: Duration,
    /// How many jobs may be active: waiting for their time, or running.
    pub max_active_jobs: usize,
    /// How often every device is compared with the configurations, besides those that have changed.
    pub configuration_interval: Duration,
}

/// A device to register at the start.
#[derive(Clone, PartialEq, Eq)]
pub struct DeviceSpec {
    /// Its id.
    pub id: String,
    /// Its primary key in base64; one is made when absent.
    pub key: Option<String>,
}

impl std::fmt::Debug for DeviceSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceSpec")
            .field("id", &self.id)
            .field("key", &self.key.as_ref().map(|_| "***"))
            .finish()
    }
}

impl std::str::FromStr for DeviceSpec {
    type Err = std::convert::Infallible;

    /// Reads `ID` or `ID=KEY`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (id, key) = match text.split_once('=') {
            Some((id, key)) => (id, Some(key.to_owned())),
            None => (text, None),
        };
        Ok(Self {
            id: id.to_owned(),
            key,
        })
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            hub_name: "localhost".to_owned(),
            listen: Ipv4Addr::LOCALHOST.into(),
            mqtt_port: 0,
            https_port: 0,
            page_port: None,
            state: None,
            devices: Vec::new(),
            x509_devices: Vec::new(),
            device_cas: Vec::new(),
            enrollments: Vec::new(),
            dps_group_key: None,
            id_scope: None,
            throttle: None,
            faults: Vec::new(),
            wire_log: None,
            ready_file: None,
            token_grace: Self::TOKEN_GRACE,
            max_active_jobs: Self::MAX_ACTIVE_JOBS,
            configuration_interval: Self::CONFIGURATION_INTERVAL,
        }
    }
}

impl Options {
    /// The default of [`Options::token_grace`]: the shortest published for the real hub.
    pub const TOKEN_GRACE: Duration = Duration::from_secs(5 * 60);

    /// The default of [`Options::max_active_jobs`]: more than a real hub of any size takes.
    pub const MAX_ACTIVE_JOBS: usize = 100;

    /// The default of [`Options::configuration_interval`]; on the real hub it is about five minutes.
    pub const CONFIGURATION_INTERVAL: Duration = Duration::from_secs(60);

    /// Adds a device with keys of the emulator's making.
    #[must_use]
    pub fn device(mut self, id: &str) -> Self {
        self.devices.push(DeviceSpec {
            id: id.to_owned(),
            key: None,
        });
        self
    }

    /// Adds a device with a certificate of the emulator's making.
    #[must_use]
    pub fn x509_device(mut self, id: &str) -> Self {
        self.x509_devices.push(id.to_owned());
        self
    }
}

/// What clients need to know: printed, written to the ready file, and returned by
/// [`Emulator::ready`](crate::Emulator::ready).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ready {
    /// The hub's host name.
    pub hub_name: String,
    /// Port for MQTT over TLS.
    pub mqtt_port: u16,
    /// Port for HTTPS and WebSocket.
    pub https_port: u16,
    /// Address of the page for people; null without [`Options::page_port`].
    pub page_url: Option<String>,
    /// The certificate to trust.
    pub ca_file: PathBuf,
    /// The emulator's own CA for devices, which signs their certificates on request.
    pub device_ca_file: PathBuf,
    /// For service tools; it has every right.
    pub service_connection_string: String,
    /// Device id to connection string.
    pub devices: BTreeMap<String, String>,
    /// Certificate and key of each of [`Options::x509_devices`], by device id.
    pub certificates: BTreeMap<String, CertificateFiles>,
    /// How devices provision themselves.
    pub dps: Option<DpsReady>,
}

impl std::fmt::Debug for Ready {
    /// Without the connection strings, which are secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ready")
            .field("hub_name", &self.hub_name)
            .field("mqtt_port", &self.mqtt_port)
            .field("https_port", &self.https_port)
            .field("ca_file", &self.ca_file)
            .field("devices", &self.devices.keys())
            .finish_non_exhaustive()
    }
}

/// Where a device's certificate and key are, in PEM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateFiles {
    /// The certificate.
    pub certificate_file: PathBuf,
    /// Its private key, readable by its owner only.
    pub private_key_file: PathBuf,
}

/// What a device needs to provision itself. The service is on the hub's own ports.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DpsReady {
    /// The host name; the ports are [`Ready::mqtt_port`] and [`Ready::https_port`].
    pub host: String,
    /// The scope of the registrations.
    pub id_scope: String,
    /// The key from which device keys are derived, in base64.
    pub group_key: String,
    /// The primary key of each individual enrollment that has keys, by registration id.
    pub enrollments: BTreeMap<String, String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_may_end_in_equals_signs() {
        let spec: DeviceSpec = "pi=AAAA==".parse().unwrap();
        assert_eq!(
            (spec.id.as_str(), spec.key.as_deref()),
            ("pi", Some("AAAA=="))
        );
        assert!(!format!("{spec:?}").contains("AAAA"));
    }
}

//! The command line of `iothub-emulator`: what `--help` says, and what the man page and the completions are made of.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use clap::Parser;

use crate::{DeviceSpec, Fault, Options, Throttle};

const FIRST_SESSION: &str = "\
A first session:

  1. Start it with one device, on ports that need no root:

       iothub-emulator --https-port 8443 --device pi-01

     It prints one line of JSON with the connection strings and the CA file, and serves until
     Ctrl-C. Port 0 takes a free port.

  2. Point a device at it: connect to localhost:8883 with the device's connection string and
     trust the CA file.

  3. Open http://127.0.0.1:8080 in a browser: devices, twins and running updates, live.

  4. Look at it from scripts and make things go wrong (https://localhost:8443/emulator lists all of
     it):

       curl --cacert CA_FILE https://localhost:8443/emulator/devices/pi-01/twin
       curl --cacert CA_FILE -X POST 'https://localhost:8443/emulator/outage?seconds=10'

     A device that shows a certificate instead of a key: --x509-device pi-02; the line says where
     certificate and key are. For any other name:

       curl --cacert CA_FILE -X POST https://localhost:8443/emulator/certificates/pi-03

     Let devices provision themselves (DPS): the same host and ports; the line has id scope and
     group key.

  5. Use service tools and SDKs with the service connection string. They must trust the CA file
     too (Python: REQUESTS_CA_BUNDLE, Node: NODE_EXTRA_CA_CERTS).

With --state DIR a restart goes on with the same CAs, keys, devices, twins, enrollments, jobs and
configurations.
RUST_LOG=debug shows more on standard error.";

/// A local Azure IoT Hub: MQTT for devices, REST for service tools, faults on request.
#[derive(Parser)]
#[command(name = "iothub-emulator", version, after_help = FIRST_SESSION)]
pub struct Arguments {
    /// The hub's host name, in connection strings and in the certificate
    #[arg(long, value_name = "NAME", default_value = "localhost")]
    pub hub_name: String,
    /// The address to listen on; others than loopback let other machines in
    #[arg(long, value_name = "ADDRESS", default_value_t = Ipv4Addr::LOCALHOST.into())]
    pub listen: IpAddr,
    /// Port for MQTT over TLS; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 8883)]
    pub mqtt_port: u16,
    /// Port for HTTPS and for MQTT over WebSocket; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 443)]
    pub https_port: u16,
    /// Port for the page that shows devices, twins and updates live, on loopback only; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    pub page_port: u16,
    /// Serve no page
    #[arg(long, conflicts_with = "page_port")]
    pub no_page: bool,
    /// Keep the CAs, the devices, their twins, enrollments, jobs and configurations in this directory
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Register a device, with this primary key (base64) or a new one; may be repeated
    #[arg(long = "device", value_name = "ID[=KEY]")]
    pub devices: Vec<DeviceSpec>,
    /// Register a device that shows a certificate, and make certificate and key for it; the ready line says
    /// where they are; may be repeated
    #[arg(long = "x509-device", value_name = "ID")]
    pub x509_devices: Vec<String>,
    /// Let devices show certificates that lead to the CAs in this file (PEM); may be repeated
    #[arg(long = "device-ca", value_name = "FILE")]
    pub device_cas: Vec<PathBuf>,
    /// Enroll a registration id for provisioning (DPS), with this primary key (base64) or a new one; may be
    /// repeated. The group "keys" takes any id with a key derived from the group key
    #[arg(long = "enroll", value_name = "ID[=KEY]")]
    pub enrollments: Vec<DeviceSpec>,
    /// The key of the group "keys", from which device keys are derived
    #[arg(long, value_name = "KEY")]
    pub dps_group_key: Option<String>,
    /// The id scope of provisioning
    #[arg(long, value_name = "SCOPE")]
    pub id_scope: Option<String>,
    /// Keep the throttles of a hub of this size: F1, S1, S2 or S3; ",no-retry-after" leaves that out of
    /// refused twin requests
    #[arg(long, value_name = "TIER[:UNITS]")]
    pub throttle: Option<Throttle>,
    /// Compare every device with the configurations after so many seconds, besides those that have changed
    #[arg(long, value_name = "SECONDS", default_value_t = Options::CONFIGURATION_INTERVAL.as_secs(),
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub configuration_interval: u64,
    /// How many jobs may be active, waiting for their time or running; one more is refused
    #[arg(long, value_name = "N", default_value_t = Options::MAX_ACTIVE_JOBS)]
    pub max_active_jobs: usize,
    /// Start with this fault in force, such as refuse-connects=3,code=5; may be repeated. GET /emulator
    /// lists all
    #[arg(long = "fault", value_name = "FAULT")]
    pub faults: Vec<Fault>,
    /// Append one line for each MQTT packet and each HTTP request, without secrets
    #[arg(long, value_name = "FILE")]
    pub wire_log: Option<PathBuf>,
    /// Write the line that is printed at the start to this file too, when everything serves
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
}

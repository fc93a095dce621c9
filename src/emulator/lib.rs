//! A local Azure IoT Hub, for demos, tests and development.
//!
//! It serves the device side (MQTT 3.1.1 over TLS and over WebSocket, shared access signatures and
//! certificates, provisioning, kept sessions, twins, direct methods) and the service side (REST: registry,
//! twins, methods, queries, jobs, configurations) well enough that the official SDKs run against it unmodified, and it makes
//! things go wrong on request. It shares no protocol code with the daemon but the MQTT packet codec of a
//! library, so that a misread specification cannot cancel out.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use iothub_emulator::{Emulator, Options};
//!
//! let emulator = Emulator::start(Options::default().device("pi-01")).await?;
//! let ready = emulator.ready();
//! // Connect to localhost, ready.mqtt_port, trusting ready.ca_file, as ready.devices["pi-01"] says.
//! emulator.drop_connection("pi-01");
//! emulator.stop().await;
//! # Ok(())
//! # }
//! ```

mod arguments;
mod bulk;
mod ca;
mod certificates;
mod chaos;
mod clock;
mod configurations;
mod connect;
mod control;
mod desired;
mod device_ca;
mod device_side;
mod devices;
mod dps;
mod dps_control;
mod dps_side;
mod emulator;
mod enrollment;
mod fault;
mod fault_kind;
mod faults;
mod hub;
mod hub_error;
mod identities;
mod impostor;
mod jobs;
mod listen;
mod methods;
mod modules;
mod mqtt;
mod options;
mod page;
mod percent;
mod policies;
mod query;
mod registry;
mod rest;
mod rest_shape;
mod sas;
mod start_error;
mod store;
mod throttle;
mod topics;
mod twin;
mod twin_limits;
mod user_name;
mod websocket;
mod wire_log;

pub use arguments::Arguments;
pub use certificates::DeviceCertificate;
pub use emulator::Emulator;
pub use fault::{Fault, FaultError};
pub use hub_error::{HubError, Kind};
pub use methods::MethodAnswer;
pub use options::{CertificateFiles, DeviceSpec, DpsReady, Options, Ready};
pub use sas::{derive_key, sign};
pub use start_error::StartError;
pub use throttle::{BadThrottle, Throttle, Tier};

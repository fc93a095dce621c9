//! Why the emulator could not start.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::hub_error::HubError;

/// Why the emulator could not start: what failed, on what, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A port is taken or may not be used.
    #[error("cannot listen on {address} for {purpose}; {}", listen_advice(.option, .source))]
    Listen {
        /// Where.
        address: SocketAddr,
        /// `MQTT` or `HTTPS`.
        purpose: &'static str,
        /// The option that names the port.
        option: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file or folder of the state directory cannot be used.
    #[error("cannot use {} in the state directory; check that it can be written, or choose another with --state", .path.display())]
    State {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file of the state directory is damaged.
    #[error("{} is damaged; restore it, or remove it to start afresh", .path.display())]
    BadState {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The saved CA cannot be used.
    #[error("cannot use the CA of the state directory, {}; remove it and the .pem file of its name to make a new CA", .path.display())]
    BadCa {
        /// The key file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// A CA file of the options holds no usable certificate.
    #[error("cannot take {} (--device-ca) as a CA of devices; it must hold certificates in PEM", .path.display())]
    DeviceCa {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No certificate could be made for the hub's name.
    #[error("cannot make a certificate for the hub name '{name}'; use a DNS name or an IP address")]
    Certificate {
        /// The hub name.
        name: String,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// TLS could not be set up.
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
    /// A fault of the options cannot be put in force.
    #[error("cannot put the fault '{fault}' in force")]
    Fault {
        /// Which.
        fault: String,
        /// Why.
        #[source]
        source: HubError,
    },
    /// A device or enrollment of the options cannot be registered.
    #[error("cannot register '{id}'")]
    Device {
        /// Its id.
        id: String,
        /// Why.
        #[source]
        source: HubError,
    },
    /// A file the options name cannot be written.
    #[error("cannot write {} ({option}); check its folder and its permissions", .path.display())]
    Output {
        /// Which.
        path: PathBuf,
        /// The option that names it.
        option: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no place for temporary files.
    #[error("cannot make a temporary directory; set TMPDIR or use --state")]
    Temporary(#[source] io::Error),
}

impl StartError {
    /// Stable kebab-case name.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Listen { .. } => "emulator-listen",
            Self::State { .. } => "emulator-state",
            Self::BadState { .. } => "emulator-bad-state",
            Self::BadCa { .. } => "emulator-bad-ca",
            Self::DeviceCa { .. } => "emulator-device-ca",
            Self::Certificate { .. } => "emulator-certificate",
            Self::Tls(_) => "emulator-tls",
            Self::Fault { .. } => "emulator-fault",
            Self::Device { .. } => "emulator-device",
            Self::Output { .. } => "emulator-output",
            Self::Temporary(_) => "emulator-temporary",
        }
    }

    pub(crate) fn state(path: &Path, source: io::Error) -> Self {
        Self::State {
            path: path.to_owned(),
            source,
        }
    }
}

fn listen_advice(option: &str, source: &io::Error) -> String {
    match source.kind() {
        io::ErrorKind::PermissionDenied => {
            format!("ports below 1024 need root: choose another with {option}, or 0 for a free one")
        }
        io::ErrorKind::AddrInUse => format!(
            "another program has it: stop that one, choose another port with {option}, or 0 for a free one"
        ),
        _ => "check the address given with --listen".to_owned(),
    }
}

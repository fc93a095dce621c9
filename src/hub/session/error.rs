//! Why there is no connection to the hub.

use std::error::Error;

use jiff::Timestamp;

use super::identity::Validity;
use crate::{
    hub::{
        credentials::{ClockNotSet, Credentials, Secret},
        provisioning::ProvisioningError,
    },
    update::failure::{Class, Coded},
};

/// A cause that another library gave.
pub(super) type Cause = Box<dyn Error + Send + Sync>;

/// Why there is no connection to the hub.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The clock is not set.
    #[error(transparent)]
    Clock(#[from] ClockNotSet),
    /// No way to the host.
    #[error("cannot reach {at}; check the network, name resolution and that the port is open")]
    Unreachable {
        /// Host and port.
        at: String,
        /// The system's reason.
        #[source]
        source: Cause,
    },
    /// Nothing came of it in time.
    #[error(
        "{at} did not complete a connection in time (at {stage}); check the network and firewalls"
    )]
    Timeout {
        /// Host and port.
        at: String,
        /// How far it came.
        stage: &'static str,
    },
    /// The proxy wants a password.
    #[error(
        "the proxy {proxy} wants user and password, or others; put `user:password` into the file of hub.proxy_authorization_file"
    )]
    ProxyAuthorization {
        /// Host and port.
        proxy: String,
    },
    /// The proxy does not lead there.
    #[error(
        "the proxy {proxy} does not lead to {at} (HTTP status {status}); many allow port 443 only: try hub.transport = \"websocket\""
    )]
    ProxyRefused {
        /// Host and port.
        proxy: String,
        /// Where we want to go.
        at: String,
        /// Its answer.
        status: u16,
    },
    /// The proxy is none.
    #[error("the proxy {proxy} does not work; check hub.proxy")]
    ProxyFailed {
        /// Host and port.
        proxy: String,
        /// The reason.
        #[source]
        source: Cause,
    },
    /// No WebSocket.
    #[error("{at} opens no WebSocket for MQTT; check the host and hub.websocket_port")]
    WebSocket {
        /// Host and port.
        at: String,
        /// The reason.
        #[source]
        source: Cause,
    },
    /// Within `dial` only: the server does not take our certificate.
    #[error("the server refused the device's certificate")]
    CertificateAlert,
    /// No trust.
    #[error(
        "the TLS handshake with {at} failed; check hub.ca_file (or the system's CA certificates) and the clock"
    )]
    Tls {
        /// Host and port.
        at: String,
        /// The reason.
        #[source]
        source: Cause,
    },
    /// CONNACK 4 or 5.
    #[error(
        "the hub {hub} refused device `{device}`: unknown or disabled device, wrong key, or a wrong clock; compare the connection string with the hub's"
    )]
    CredentialsRefused {
        /// The hub.
        hub: String,
        /// The device.
        device: String,
    },
    /// The hub does not take the certificate.
    #[error(
        "the hub {hub} refused device `{device}` with its certificate: unknown or disabled device, or another certificate is registered for it; compare the thumbprint, or the CA and the common name"
    )]
    CertificateRefused {
        /// The hub.
        hub: String,
        /// The device.
        device: String,
    },
    /// It was valid once.
    #[error(
        "the hub {hub} refused device `{device}`, whose certificate expired at {when}; renew it (the files are read again at the next attempt)"
    )]
    CertificateExpired {
        /// The hub.
        hub: String,
        /// The device.
        device: String,
        /// Its last moment.
        when: Timestamp,
    },
    /// It will be valid.
    #[error(
        "the hub {hub} refused device `{device}`, whose certificate is valid from {when} on; check the clock"
    )]
    CertificateNotYetValid {
        /// The hub.
        hub: String,
        /// The device.
        device: String,
        /// Its first moment.
        when: Timestamp,
    },
    /// The provisioning service cannot be asked.
    #[error(
        "the provisioning service, which knows the hub of this device, cannot be asked; check provisioning.host and the network"
    )]
    Provisioning(#[source] Box<SessionError>),
    /// It does not take our credentials.
    #[error(
        "the provisioning service {at} refused registration id `{registration}`: no enrollment, another key or certificate, a wrong id scope, or a wrong clock"
    )]
    ProvisioningRefused {
        /// Host and port.
        at: String,
        /// Our name there.
        registration: String,
    },
    /// It gives no assignment.
    #[error(transparent)]
    Registration(#[from] ProvisioningError),
    /// CONNACK 1 or 2.
    #[error(
        "the hub refused the connection ({0}); its MQTT version is not ours or the device id is not allowed"
    )]
    Refused(String),
    /// CONNACK 3.
    #[error("the hub says that it is unavailable")]
    Unavailable,
    /// Closed before CONNACK.
    #[error(
        "{at} closed the connection without an answer; a wrong key, an unknown hub or a busy server can be the reason"
    )]
    ClosedEarly {
        /// Host and port.
        at: String,
        /// The reason.
        #[source]
        source: Cause,
    },
    /// The connection ended.
    #[error("the connection to {at} ended")]
    Lost {
        /// Host and port.
        at: String,
        /// The reason.
        #[source]
        source: Cause,
    },
    /// The other side does not answer.
    #[error(
        "nothing came from {at} for {seconds} s though it was asked; the network may have dropped the connection without a word"
    )]
    Silent {
        /// Host and port.
        at: String,
        /// How long.
        seconds: u64,
    },
    /// Connections are ended again and again.
    #[error(
        "the hub ended {times} connections of late: probably another client uses this device id (`{device}`); give each device its own identity"
    )]
    IdentityConflict {
        /// The device.
        device: String,
        /// Within 20 minutes.
        times: usize,
        /// How the last one ended.
        #[source]
        source: Box<SessionError>,
    },
    /// SUBACK with a failure, or none.
    #[error("the hub did not grant the subscriptions; it may not be an IoT hub")]
    Subscribe,
    /// The twin cannot be read.
    #[error("the hub refused to give the device's twin (status {0})")]
    TwinRefused(u16),
    /// The twin is no twin.
    #[error("the hub sent a twin that is not JSON")]
    TwinMalformed(#[source] serde_json::Error),
    /// No answer to the twin read.
    #[error("the hub did not answer the twin read in time")]
    TwinSilent,
    /// The network takes nothing.
    #[error("the connection takes no more data; dropping it")]
    Stuck,
    /// A defect in the MQTT library.
    #[error("the MQTT client failed; this is a defect of the program, please report it")]
    Client,
}

impl SessionError {
    /// Whether the hub knows us and does not want us.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::CredentialsRefused { .. }
                | Self::CertificateRefused { .. }
                | Self::CertificateExpired { .. }
                | Self::CertificateNotYetValid { .. }
                | Self::Refused(_)
        )
    }

    /// Why the hub does not take `credentials` at `now`.
    pub(super) fn refused(
        credentials: &Credentials,
        certificate: Option<Validity>,
        now: Timestamp,
    ) -> Self {
        let hub = credentials.hub().to_owned();
        let device = credentials.device_id().to_owned();
        match (credentials.secret(), certificate) {
            (Secret::Key(_), _) => Self::CredentialsRefused { hub, device },
            (_, Some(Validity { to: when, .. })) if when < now => {
                Self::CertificateExpired { hub, device, when }
            }
            (_, Some(Validity { from: when, .. })) if when > now => {
                Self::CertificateNotYetValid { hub, device, when }
            }
            _ => Self::CertificateRefused { hub, device },
        }
    }

    /// Whether another way to the server (transport) may lead there.
    pub(super) fn may_be_the_way(&self) -> bool {
        match self {
            Self::Provisioning(source) => source.may_be_the_way(),
            Self::Unreachable { .. }
            | Self::Timeout { .. }
            | Self::Tls { .. }
            | Self::ClosedEarly { .. }
            | Self::ProxyRefused { .. }
            | Self::ProxyFailed { .. }
            | Self::WebSocket { .. } => true,
            _ => false,
        }
    }

    /// Whether the network itself is the reason.
    pub(super) fn is_network(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Timeout { .. }
                | Self::Silent { .. }
                | Self::ProxyRefused { .. }
                | Self::ProxyFailed { .. }
                | Self::ProxyAuthorization { .. }
        )
    }

    /// Whether a standing connection was ended by the other side.
    pub(super) fn is_loss(&self) -> bool {
        matches!(self, Self::Lost { .. })
    }
}

impl Coded for SessionError {
    fn code(&self) -> &'static str {
        match self {
            Self::Clock(_) => "hub-clock-not-set",
            Self::Unreachable { .. } => "hub-unreachable",
            Self::Timeout { .. } => "hub-timeout",
            Self::ProxyAuthorization { .. } => "hub-proxy-authorization",
            Self::ProxyRefused { .. } => "hub-proxy-refused",
            Self::ProxyFailed { .. } => "hub-proxy-failed",
            Self::WebSocket { .. } => "hub-websocket",
            Self::Tls { .. } => "hub-tls",
            Self::CredentialsRefused { .. } => "hub-credentials-refused",
            Self::CertificateAlert | Self::CertificateRefused { .. } => "hub-certificate-refused",
            Self::CertificateExpired { .. } => "hub-certificate-expired",
            Self::CertificateNotYetValid { .. } => "hub-certificate-not-yet-valid",
            Self::Provisioning(_) => "dps-unreachable",
            Self::ProvisioningRefused { .. } => "dps-refused",
            Self::Registration(error) => error.code(),
            Self::Refused(_) => "hub-refused",
            Self::Unavailable => "hub-unavailable",
            Self::ClosedEarly { .. } => "hub-closed-early",
            Self::Lost { .. } => "hub-connection-lost",
            Self::Silent { .. } => "hub-silent",
            Self::IdentityConflict { .. } => "hub-identity-conflict",
            Self::Subscribe => "hub-subscribe",
            Self::TwinRefused(_) => "hub-twin-refused",
            Self::TwinMalformed(_) => "hub-twin-malformed",
            Self::TwinSilent => "hub-twin-silent",
            Self::Stuck => "hub-stuck",
            Self::Client => "hub-client",
        }
    }

    fn class(&self) -> Class {
        match self {
            Self::Clock(_)
            | Self::Tls { .. }
            | Self::ProxyAuthorization { .. }
            | Self::CredentialsRefused { .. }
            | Self::CertificateAlert
            | Self::CertificateRefused { .. }
            | Self::CertificateExpired { .. }
            | Self::CertificateNotYetValid { .. }
            | Self::ProvisioningRefused { .. }
            | Self::Refused(_)
            | Self::IdentityConflict { .. } => Class::Wait,
            Self::Registration(error) => error.class(),
            Self::Unreachable { .. }
            | Self::Timeout { .. }
            | Self::ProxyRefused { .. }
            | Self::ProxyFailed { .. }
            | Self::WebSocket { .. }
            | Self::Provisioning(_)
            | Self::Unavailable
            | Self::ClosedEarly { .. }
            | Self::Lost { .. }
            | Self::Silent { .. }
            | Self::Subscribe
            | Self::TwinRefused(_)
            | Self::TwinMalformed(_)
            | Self::TwinSilent
            | Self::Stuck
            | Self::Client => Class::Retry,
        }
    }
}

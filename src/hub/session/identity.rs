//! Who the session is: what it asks its owner for before each attempt.
//!
//! The owner reads files, which may have changed; the session only ever sees the values. So a rotated key
//! or a renewed certificate counts from the next attempt on.

use std::{fmt, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;

use crate::{
    hub::{
        credentials::Credentials,
        provisioning::{Assignment, Enrollment},
    },
    update::failure::Failure,
};

/// Where the session gets its identity from. The calls may block on files; the session makes them on a
/// thread of their own.
pub trait IdentitySource: Send + Sync + 'static {
    /// The identity as it is now.
    ///
    /// # Errors
    /// There is none, or it cannot be used. The session asks again.
    fn read(&self) -> Result<Identity, Failure>;

    /// Keeps what the provisioning service assigned to `enrollment`, so that [`IdentitySource::read`] gives
    /// it, also after a restart.
    ///
    /// # Errors
    /// It cannot be kept. The session goes on with it, and the service is asked again after a restart.
    fn keep(&self, enrollment: &Enrollment, assignment: &Assignment) -> Result<(), Failure>;
}

/// What is needed to connect.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Who we are to the hub; `None` until the provisioning service has said.
    pub device: Option<Credentials>,
    /// How the provisioning service is asked; `None` when it is not.
    pub enrollment: Option<Enrollment>,
    /// Roots and the device's certificate, without ALPN.
    pub tls: Arc<rustls::ClientConfig>,
    /// When that certificate is valid.
    pub certificate: Option<Validity>,
    /// What the proxy asks for.
    pub proxy_authorization: Option<ProxyAuthorization>,
    /// Differs when anything of it differs.
    pub stamp: Stamp,
}

/// A digest of all that an identity was made of.
pub type Stamp = [u8; 32];

/// From when to when a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// Its first moment.
    pub from: Timestamp,
    /// Its last.
    pub to: Timestamp,
}

/// User and password for an HTTP proxy. `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyAuthorization(String);

impl ProxyAuthorization {
    /// From `user:password`; white space around it (a file's last newline) is ignored. `None` without a
    /// colon.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        text.contains(':')
            .then(|| Self(format!("Basic {}", STANDARD.encode(text))))
    }

    /// The header's value: only for the request to the proxy.
    pub(super) fn header(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ProxyAuthorization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProxyAuthorization(hidden)")
    }
}

/// An identity that never changes and needs no file: for tests and tools.
#[derive(Debug)]
pub struct FixedIdentity(Identity);

impl FixedIdentity {
    /// `credentials`, over `tls`.
    #[must_use]
    pub fn new(credentials: Credentials, tls: Arc<rustls::ClientConfig>) -> Self {
        Self(Identity {
            device: Some(credentials),
            enrollment: None,
            tls,
            certificate: None,
            proxy_authorization: None,
            stamp: Stamp::default(),
        })
    }
}

impl IdentitySource for FixedIdentity {
    fn read(&self) -> Result<Identity, Failure> {
        Ok(self.0.clone())
    }

    fn keep(&self, _: &Enrollment, _: &Assignment) -> Result<(), Failure> {
        Ok(())
    }
}

/// How the session is known and how it connects, as the status shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// The hub; `None` until it is known.
    pub hub: Option<String>,
    /// The device id, or until it is known the registration id.
    pub device_id: Option<String>,
    /// `mqtt` or `websocket`.
    pub transport: Option<&'static str>,
    /// `symmetric-key` or `x509`.
    pub authentication: Option<&'static str>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proxys_password_is_encoded_and_never_shown() {
        let authorization = ProxyAuthorization::new("me:hunter2\n").unwrap();
        assert_eq!(authorization.header(), "Basic bWU6aHVudGVyMg==");
        let shown = format!("{authorization:?}");
        assert!(!shown.contains("hunter2") && !shown.contains("bWU6"));
        assert_eq!(ProxyAuthorization::new("no password"), None);
    }
}

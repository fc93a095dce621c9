//! Who this device is to the hub: the connection string, and the CONNECT user name and password.
//!
//! Guarantees: no error text and no `Debug` output contains the key, a token or any part of a connection
//! string that might be one. Format: Azure IoT Hub's device connection strings, api-version 2021-04-12.

use std::{str::FromStr, time::Duration};

use jiff::Timestamp;

use super::{percent, sas::SymmetricKey};
use crate::update::failure::{Class, Coded};

pub use super::sas::{ClockNotSet, SasToken, check_clock};

/// The version of the hub's interface that the user name asks for.
pub const API_VERSION: &str = "2021-04-12";

/// Longest device id the hub takes, in characters.
const MAX_DEVICE_ID: usize = 128;

/// What stands in a device connection string, by its exact spelling.
const KNOWN: [&str; 8] = [
    "HostName",
    "DeviceId",
    "SharedAccessKey",
    "GatewayHostName",
    "ModuleId",
    "x509",
    "SharedAccessSignature",
    "SharedAccessKeyName",
];

/// Why a text is no usable device connection string. Never holds any of the text but the device id's
/// or host's offending character.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// Nothing there.
    #[error(
        "the connection string is empty; copy the device's primary connection string from the IoT hub into the file"
    )]
    Empty,
    /// A part without `=`.
    #[error(
        "part {0} of the connection string is not of the form Key=Value; expected HostName=...;DeviceId=...;SharedAccessKey=..."
    )]
    Malformed(usize),
    /// A key nobody knows. Its text may be a piece of the secret, so only its place is named.
    #[error(
        "part {0} of the connection string has an unknown key; known are HostName, DeviceId, SharedAccessKey, x509 and GatewayHostName"
    )]
    UnknownKey(usize),
    /// A known key in another case.
    #[error("part {part} of the connection string must spell its key `{expected}`; case matters")]
    Spelling {
        /// Place, from 1.
        part: usize,
        /// The right spelling.
        expected: &'static str,
    },
    /// A key given twice.
    #[error("the connection string has `{0}` twice; remove one")]
    Twice(&'static str),
    /// A key that must be there.
    #[error("the connection string has no `{0}`; copy the device's whole connection string again")]
    Missing(&'static str),
    /// `HostName` or `GatewayHostName` is no host name.
    #[error(
        "`{0}` in the connection string is not a host name; expected a name such as myhub.azure-devices.net, without scheme and port"
    )]
    Host(&'static str),
    /// The device id breaks the hub's rules.
    #[error("the device id is not one an IoT hub can hold: {0}")]
    DeviceId(DeviceIdError),
    /// `SharedAccessKey` is no base64.
    #[error(
        "`SharedAccessKey` in the connection string is not base64 of a key; copy it again, whole (it often ends in `=`)"
    )]
    Key,
    /// A module's connection string.
    #[error(
        "the connection string is a module's (it has `ModuleId`); fwupdated needs the connection string of the device itself"
    )]
    Module,
    /// `x509=true` and a key.
    #[error(
        "the connection string has both `SharedAccessKey` and `x509=true`; a device has a key or a certificate, so remove one"
    )]
    KeyAndCertificate,
    /// `x509` with another value.
    #[error("`x509` in the connection string must be `true`, or be left out")]
    X509Value,
    /// A ready-made token.
    #[error(
        "the connection string holds a ready-made `SharedAccessSignature`, which cannot be renewed when it expires; use one with `SharedAccessKey`"
    )]
    Signature,
    /// A service's connection string.
    #[error(
        "the connection string is a service's (it has `SharedAccessKeyName`) and must not be on a device; use the device's own"
    )]
    Service,
}

impl Coded for CredentialsError {
    fn code(&self) -> &'static str {
        match self {
            Self::Empty => "hub-connection-string-empty",
            Self::Malformed(_) => "hub-connection-string-malformed",
            Self::UnknownKey(_) => "hub-connection-string-unknown-key",
            Self::Spelling { .. } => "hub-connection-string-spelling",
            Self::Twice(_) => "hub-connection-string-twice",
            Self::Missing(_) => "hub-connection-string-missing",
            Self::Host(_) => "hub-host-invalid",
            Self::DeviceId(_) => "hub-device-id-invalid",
            Self::Key => "hub-key-invalid",
            Self::Module => "hub-module-unsupported",
            Self::KeyAndCertificate => "hub-key-and-certificate",
            Self::X509Value => "hub-x509-value",
            Self::Signature => "hub-sas-unsupported",
            Self::Service => "hub-service-connection-string",
        }
    }

    fn class(&self) -> Class {
        Class::Final
    }
}

/// Why a text is no device id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceIdError {
    /// Empty or too long.
    #[error("it has {0} characters; 1 to {MAX_DEVICE_ID} are allowed")]
    Length(usize),
    /// A character the hub does not allow (or one that is an MQTT wildcard).
    #[error(
        "it has the character {0:?}; allowed are A-Z a-z 0-9 and - . % _ * ? ! ( ) , : = @ $ '"
    )]
    Character(char),
}

/// Checks a device id: 1 to 128 ASCII alphanumerics and ``- . % _ * ? ! ( ) , : = @ $ '``. The MQTT
/// wildcards `+` and `#`, which old hubs allowed, are refused.
///
/// # Errors
/// [`DeviceIdError`].
pub fn check_device_id(id: &str) -> Result<(), DeviceIdError> {
    let length = id.chars().count();
    if length == 0 || length > MAX_DEVICE_ID {
        return Err(DeviceIdError::Length(length));
    }
    match id
        .chars()
        .find(|c| !c.is_ascii_alphanumeric() && !"-.%_*?!(),:=@$'".contains(*c))
    {
        Some(wrong) => Err(DeviceIdError::Character(wrong)),
        None => Ok(()),
    }
}

/// How a device proves who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Secret {
    /// By tokens that a symmetric key signs.
    Key(SymmetricKey),
    /// By the X.509 certificate that it shows in the TLS handshake. There is no password then.
    Certificate,
}

impl Secret {
    /// Stable name, as the status shows it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Key(_) => "symmetric-key",
            Self::Certificate => "x509",
        }
    }

    /// The password of a CONNECT at `now`: the token for `resource`; none with a certificate.
    ///
    /// # Errors
    /// [`ClockNotSet`], also with a certificate: the server's own could not be checked.
    pub fn password(
        &self,
        resource: &str,
        policy: Option<&str>,
        now: Timestamp,
        lifetime: Duration,
    ) -> Result<Option<SasToken>, ClockNotSet> {
        check_clock(now)?;
        let lifetime = i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX);
        let expires = now.as_second().saturating_add(lifetime);
        Ok(match self {
            Self::Key(key) => Some(key.sign(resource, expires, policy)),
            Self::Certificate => None,
        })
    }
}

/// A device's identity at its hub, from a connection string or from the provisioning service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    hub: String,
    device_id: String,
    gateway: Option<String>,
    secret: Secret,
}

impl Credentials {
    /// The identity that the provisioning service assigned. Without a gateway.
    ///
    /// # Errors
    /// `hub` is no host name or `device_id` no device id.
    pub fn assigned(hub: &str, device_id: &str, secret: Secret) -> Result<Self, CredentialsError> {
        check_host(hub).ok_or(CredentialsError::Host("assignedHub"))?;
        check_device_id(device_id).map_err(CredentialsError::DeviceId)?;
        Ok(Self {
            hub: hub.to_owned(),
            device_id: device_id.to_owned(),
            gateway: None,
            secret,
        })
    }

    /// How it is proved.
    #[must_use]
    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// The hub's host name, as user name and token say it.
    #[must_use]
    pub fn hub(&self) -> &str {
        &self.hub
    }

    /// The device id, which is also the MQTT client id.
    #[must_use]
    pub fn device_id(&self) -> &str {
        &self.device_id
    }

    /// The host to connect to when it is not the hub itself.
    #[must_use]
    pub fn gateway(&self) -> Option<&str> {
        self.gateway.as_deref()
    }

    /// The CONNECT user name; `client` names this program and its version to the hub's operator.
    #[must_use]
    pub fn user_name(&self, client: &str) -> String {
        format!(
            "{}/{}/?api-version={API_VERSION}&DeviceClientType={}",
            self.hub,
            self.device_id,
            percent::encode(client)
        )
    }

    /// The CONNECT password at `now`: a token that is valid for `lifetime`; none with a certificate.
    ///
    /// # Errors
    /// [`ClockNotSet`].
    pub fn password(
        &self,
        now: Timestamp,
        lifetime: Duration,
    ) -> Result<Option<SasToken>, ClockNotSet> {
        let resource = format!("{}/devices/{}", self.hub, self.device_id);
        self.secret.password(&resource, None, now, lifetime)
    }
}

impl FromStr for Credentials {
    type Err = CredentialsError;

    /// Reads a device connection string: `Key=Value` parts with `;` between them, in any order, each
    /// split at its first `=`. White space around the whole (a file's last newline) is ignored.
    fn from_str(text: &str) -> Result<Self, CredentialsError> {
        use CredentialsError as E;

        let text = text.trim().trim_end_matches(';');
        if text.is_empty() {
            return Err(E::Empty);
        }
        let mut values: [Option<&str>; KNOWN.len()] = [None; KNOWN.len()];
        for (index, part) in text.split(';').enumerate() {
            let part_number = index + 1;
            let (name, value) = part.split_once('=').ok_or(E::Malformed(part_number))?;
            let Some(known) = KNOWN.iter().position(|known| *known == name) else {
                let meant = KNOWN.iter().find(|known| known.eq_ignore_ascii_case(name));
                return Err(
                    meant.map_or(E::UnknownKey(part_number), |expected| E::Spelling {
                        part: part_number,
                        expected,
                    }),
                );
            };
            if values[known].replace(value).is_some() {
                return Err(E::Twice(KNOWN[known]));
            }
        }
        let [host, device, key, gateway, module, x509, signature, policy] = values;
        if policy.is_some() {
            return Err(E::Service);
        }
        if module.is_some() {
            return Err(E::Module);
        }
        let present = |value: Option<&'_ str>, name| match value {
            Some(value) if !value.is_empty() => Ok(value.to_owned()),
            _ => Err(E::Missing(name)),
        };
        let hub = present(host, "HostName")?;
        let device_id = present(device, "DeviceId")?;
        check_host(&hub).ok_or(E::Host("HostName"))?;
        check_device_id(&device_id).map_err(E::DeviceId)?;
        if let Some(gateway) = gateway {
            check_host(gateway).ok_or(E::Host("GatewayHostName"))?;
        }
        let by_certificate = match x509 {
            None => false,
            Some(value) if value.eq_ignore_ascii_case("true") => true,
            Some(_) => return Err(E::X509Value),
        };
        let secret = if by_certificate {
            if key.is_some() {
                return Err(E::KeyAndCertificate);
            }
            Secret::Certificate
        } else {
            if signature.is_some() && key.is_none() {
                return Err(E::Signature);
            }
            let key = present(key, "SharedAccessKey")?;
            Secret::Key(SymmetricKey::from_base64(&key).map_err(|_| E::Key)?)
        };
        Ok(Self {
            hub,
            device_id,
            gateway: gateway.map(str::to_owned),
            secret,
        })
    }
}

fn check_host(host: &str) -> Option<()> {
    let fits = (1..=253).contains(&host.len());
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    (fits && host.chars().all(allowed)).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::sas::EPOCH_OF_THE_BUILD;
    use base64::{Engine, engine::general_purpose::STANDARD};
    use proptest::prelude::*;

    const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

    fn pi() -> Credentials {
        format!("HostName=myhub.azure-devices.net;DeviceId=pi-01;SharedAccessKey={KEY}")
            .parse()
            .unwrap()
    }

    fn refused(text: &str) -> CredentialsError {
        text.parse::<Credentials>().unwrap_err()
    }

    #[test]
    fn the_token_is_the_one_of_the_published_vector() {
        let made_at = Timestamp::from_second(EPOCH_OF_THE_BUILD).unwrap();
        let token = pi().password(made_at, Duration::from_secs(3600)).unwrap();
        assert_eq!(token.unwrap().expires(), EPOCH_OF_THE_BUILD + 3600);
        let Secret::Key(key) = pi().secret().clone() else {
            panic!("a key");
        };
        assert_eq!(
            key.sign("myhub.azure-devices.net/devices/pi-01", 1_700_000_000, None)
                .secret(),
            "SharedAccessSignature sr=myhub.azure-devices.net%2Fdevices%2Fpi-01\
             &sig=IrNH6jlgHTq5kL6ZLPEyta5fEzpUQky6SJtnAbv5rGY%3D&se=1700000000"
        );
    }

    #[test]
    fn the_user_name_names_hub_device_and_client() {
        assert_eq!(
            pi().user_name("fwupdated/0.1.0 (linux; arm)"),
            "myhub.azure-devices.net/pi-01/?api-version=2021-04-12\
             &DeviceClientType=fwupdated%2F0.1.0%20%28linux%3B%20arm%29"
        );
    }

    #[test]
    fn parts_come_in_any_order_and_a_file_may_end_in_a_newline() {
        let text =
            format!("SharedAccessKey={KEY};GatewayHostName=edge.lan;DeviceId=a=b;HostName=h;\n");
        let credentials: Credentials = text.parse().unwrap();
        assert_eq!(credentials.device_id(), "a=b");
        assert_eq!(credentials.hub(), "h");
        assert_eq!(credentials.gateway(), Some("edge.lan"));
    }

    #[test]
    fn each_mistake_has_its_own_code() {
        for (text, code) in [
            ("", "hub-connection-string-empty"),
            (" \n", "hub-connection-string-empty"),
            ("HostName", "hub-connection-string-malformed"),
            (KEY, "hub-connection-string-unknown-key"),
            ("hostname=h", "hub-connection-string-spelling"),
            ("HostName=h;HostName=h", "hub-connection-string-twice"),
            ("HostName=h;DeviceId=d", "hub-connection-string-missing"),
            (
                "DeviceId=d;SharedAccessKey=QQ==",
                "hub-connection-string-missing",
            ),
            (
                "HostName=https://h;DeviceId=d;SharedAccessKey=QQ==",
                "hub-host-invalid",
            ),
            (
                "HostName=h;DeviceId=d;SharedAccessKey=QQ==;GatewayHostName=",
                "hub-host-invalid",
            ),
            (
                "HostName=h;DeviceId=a b;SharedAccessKey=QQ==",
                "hub-device-id-invalid",
            ),
            (
                "HostName=h;DeviceId=a/b;SharedAccessKey=QQ==",
                "hub-device-id-invalid",
            ),
            (
                "HostName=h;DeviceId=a+;SharedAccessKey=QQ==",
                "hub-device-id-invalid",
            ),
            ("HostName=h;DeviceId=d;SharedAccessKey=Q", "hub-key-invalid"),
            (
                "HostName=h;DeviceId=d;ModuleId=m;SharedAccessKey=QQ==",
                "hub-module-unsupported",
            ),
            (
                "HostName=h;DeviceId=d;x509=true;SharedAccessKey=QQ==",
                "hub-key-and-certificate",
            ),
            ("HostName=h;DeviceId=d;x509=yes", "hub-x509-value"),
            (
                "HostName=h;DeviceId=d;SharedAccessSignature=x",
                "hub-sas-unsupported",
            ),
            (
                "HostName=h;SharedAccessKeyName=p;SharedAccessKey=QQ==",
                "hub-service-connection-string",
            ),
        ] {
            assert_eq!(refused(text).code(), code, "{text}");
        }
    }

    #[test]
    fn with_a_certificate_there_is_no_password() {
        let text = "HostName=h;DeviceId=d;x509=true;GatewayHostName=edge.lan";
        let credentials: Credentials = text.parse().unwrap();
        assert_eq!(credentials.secret(), &Secret::Certificate);
        assert_eq!(credentials.gateway(), Some("edge.lan"));
        let now = Timestamp::from_second(EPOCH_OF_THE_BUILD).unwrap();
        let lifetime = Duration::from_secs(3600);
        assert_eq!(
            credentials.password(now, lifetime).unwrap().map(|_| ()),
            None
        );
        assert!(
            credentials
                .password(Timestamp::UNIX_EPOCH, lifetime)
                .is_err()
        );
    }

    #[test]
    fn neither_debug_nor_errors_show_the_key() {
        assert!(!format!("{:?}", pi()).contains(&KEY[..8]));
        assert!(!format!("{:?}", pi()).contains("0123"));
        for text in [
            KEY.to_owned(),
            format!("{KEY};HostName=h"),
            format!("HostName=h;{KEY}"),
        ] {
            let error = refused(&text);
            assert!(!format!("{error} {error:?}").contains(&KEY[..8]));
        }
    }

    #[test]
    fn no_token_is_made_before_the_clock_is_set() {
        let lifetime = Duration::from_secs(3600);
        for second in [0, 1_700_000_000, EPOCH_OF_THE_BUILD - 1] {
            let now = Timestamp::from_second(second).unwrap();
            assert_eq!(pi().password(now, lifetime).unwrap_err(), ClockNotSet(now));
        }
        let now = Timestamp::from_second(EPOCH_OF_THE_BUILD).unwrap();
        assert!(pi().password(now, lifetime).unwrap().is_some());
        assert_eq!(now.to_string(), "2026-01-01T00:00:00Z");
    }

    proptest! {
        #[test]
        fn no_text_panics_and_no_error_repeats_it(text in "[ -~é;=]{8,80}") {
            if let Err(error) = text.parse::<Credentials>() {
                let said = format!("{error} {error:?}");
                prop_assert!(!said.contains(&text));
            }
        }

        #[test]
        fn every_valid_identity_is_read_back(
            id in "[-A-Za-z0-9.%_*?!(),:=@$']{1,128}", key in prop::collection::vec(any::<u8>(), 1..65)
        ) {
            let key = STANDARD.encode(key);
            let text = format!("DeviceId={id};SharedAccessKey={key};HostName=hub");
            let credentials: Credentials = text.parse().unwrap();
            prop_assert_eq!(credentials.device_id(), id);
        }
    }
}

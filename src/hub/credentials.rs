//! Who this device is to the hub: the connection string, SAS tokens and the CONNECT user name.
//!
//! Guarantees: the key never leaves this file but as the signature of a token; no error text and no
//! `Debug` output contains the key, a token or any part of a connection string that might be one.
//! Formats: Azure IoT Hub's device connection strings and SAS tokens, api-version 2021-04-12.

use std::{fmt, str::FromStr, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;

use super::percent;
use crate::update::failure::{Class, Coded};

/// The version of the hub's interface that the user name asks for.
pub const API_VERSION: &str = "2021-04-12";

/// 2026-01-01T00:00:00Z in Unix seconds: no build of this program is older, so an earlier clock is
/// not set.
const EPOCH_OF_THE_BUILD: i64 = 1_767_225_600;

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
        "part {0} of the connection string has an unknown key; known are HostName, DeviceId, SharedAccessKey and GatewayHostName"
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
    /// `x509=true`.
    #[error(
        "the connection string asks for an X.509 certificate (`x509=true`), which this version cannot use; give the device a symmetric key"
    )]
    X509,
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
            Self::X509 => "hub-x509-unsupported",
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

/// A symmetric key. `Debug` hides it.
#[derive(Clone)]
struct Key(Vec<u8>);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(hidden)")
    }
}

/// A device's identity and key, from its connection string.
#[derive(Debug, Clone)]
pub struct Credentials {
    hub: String,
    device_id: String,
    gateway: Option<String>,
    key: Key,
}

/// A SAS token: the CONNECT password. `Debug` hides it.
#[derive(Clone)]
pub struct SasToken {
    text: String,
    expires: i64,
}

impl SasToken {
    /// The token itself: only for the CONNECT packet.
    #[must_use]
    pub fn secret(&self) -> &str {
        &self.text
    }

    /// When the hub stops taking it, in Unix seconds.
    #[must_use]
    pub fn expires(&self) -> i64 {
        self.expires
    }
}

impl fmt::Debug for SasToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SasToken(expires {})", self.expires)
    }
}

/// The clock shows a time before this program was built: a token made now would be refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the clock is not set (it shows {0}); waiting for time synchronisation")]
pub struct ClockNotSet(pub Timestamp);

/// Whether `now` can be the true time.
///
/// # Errors
/// [`ClockNotSet`] when it is before the build's epoch, 2026-01-01.
pub fn check_clock(now: Timestamp) -> Result<(), ClockNotSet> {
    if now.as_second() < EPOCH_OF_THE_BUILD {
        Err(ClockNotSet(now))
    } else {
        Ok(())
    }
}

impl Credentials {
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

    /// A token that is valid for `lifetime` from `now` on.
    ///
    /// # Errors
    /// [`ClockNotSet`].
    pub fn token(&self, now: Timestamp, lifetime: Duration) -> Result<SasToken, ClockNotSet> {
        check_clock(now)?;
        let lifetime = i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX);
        Ok(self.sign(now.as_second().saturating_add(lifetime)))
    }

    /// The token that expires at `expires` (Unix seconds).
    #[must_use]
    pub fn sign(&self, expires: i64) -> SasToken {
        let resource = percent::encode(&format!("{}/devices/{}", self.hub, self.device_id));
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &self.key.0);
        let signature = ring::hmac::sign(&key, format!("{resource}\n{expires}").as_bytes());
        let signature = percent::encode(&STANDARD.encode(signature));
        SasToken {
            text: format!("SharedAccessSignature sr={resource}&sig={signature}&se={expires}"),
            expires,
        }
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
        if x509.is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Err(E::X509);
        }
        if signature.is_some() && key.is_none() {
            return Err(E::Signature);
        }
        let key = present(key, "SharedAccessKey")?;
        let key = STANDARD.decode(key).map_err(|_| E::Key)?;
        if key.is_empty() {
            return Err(E::Key);
        }
        Ok(Self {
            hub,
            device_id,
            gateway: gateway.map(str::to_owned),
            key: Key(key),
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
        assert_eq!(
            pi().sign(1_700_000_000).secret(),
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
            ("HostName=h;DeviceId=d;x509=true", "hub-x509-unsupported"),
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
    fn neither_debug_nor_errors_show_the_key() {
        assert!(!format!("{:?}", pi()).contains(&KEY[..8]));
        assert!(!format!("{:?}", pi()).contains("0123"));
        assert!(!format!("{:?}", pi().sign(1)).contains("sig"));
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
            assert_eq!(pi().token(now, lifetime).unwrap_err(), ClockNotSet(now));
        }
        let now = Timestamp::from_second(EPOCH_OF_THE_BUILD).unwrap();
        let token = pi().token(now, lifetime).unwrap();
        assert_eq!(token.expires(), EPOCH_OF_THE_BUILD + 3600);
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

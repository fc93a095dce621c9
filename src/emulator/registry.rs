//! The identity registry: who may connect, with which keys.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::clock;
use crate::hub_error::HubError;

/// The keys or certificates of a device.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Credentials {
    /// Two symmetric keys in base64.
    Sas { primary: String, secondary: String },
    /// Thumbprints (hex SHA-1 or SHA-256) of self-signed certificates.
    SelfSigned {
        primary: Option<String>,
        secondary: Option<String>,
    },
    /// A certificate of a registered CA, with the device's id as common name.
    CertificateAuthority,
}

/// A device's identity, all but what depends on its connection.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) id: String,
    pub(crate) generation: String,
    pub(crate) etag: String,
    pub(crate) enabled: bool,
    pub(crate) status_reason: Option<String>,
    pub(crate) status_updated: String,
    pub(crate) credentials: Credentials,
    pub(crate) edge: bool,
}

impl Identity {
    /// A new, enabled device with `key` as its primary key, or fresh keys.
    pub(crate) fn new(id: &str, key: Option<String>) -> Result<Self, HubError> {
        check_id(id)?;
        if let Some(key) = &key {
            check_key(key)?;
        }
        Ok(Self {
            id: id.to_owned(),
            generation: new_generation(),
            etag: clock::new_identity_etag(),
            enabled: true,
            status_reason: None,
            status_updated: clock::NO_DATE.to_owned(),
            credentials: Credentials::Sas {
                primary: key.unwrap_or_else(clock::new_key),
                secondary: clock::new_key(),
            },
            edge: false,
        })
    }

    /// A new, enabled device with these credentials.
    pub(crate) fn with(id: &str, credentials: Credentials) -> Result<Self, HubError> {
        let mut identity = Self::new(id, None)?;
        identity.credentials = credentials;
        Ok(identity)
    }

    /// The identity that `PUT /devices/{id}` with `body` makes, out of `old` if there is one.
    pub(crate) fn from_body(id: &str, body: &Value, old: Option<&Self>) -> Result<Self, HubError> {
        check_id(id)?;
        let body = body
            .as_object()
            .ok_or_else(|| HubError::argument("The device must be a JSON object."))?;
        match body.get("deviceId") {
            None => {}
            Some(Value::String(named)) if named == id => {}
            Some(_) => {
                return Err(HubError::argument(
                    "'deviceId' in the body is not the one in the path.",
                ));
            }
        }
        let enabled = match body.get("status") {
            None | Some(Value::Null) => old.is_none_or(|old| old.enabled),
            Some(Value::String(status)) if status == "enabled" => true,
            Some(Value::String(status)) if status == "disabled" => false,
            Some(_) => {
                return Err(HubError::argument(
                    "'status' must be 'enabled' or 'disabled'.",
                ));
            }
        };
        let status_reason = match body.get("statusReason") {
            None | Some(Value::Null) => None,
            Some(Value::String(reason)) if reason.chars().count() <= 128 => Some(reason.clone()),
            Some(_) => {
                return Err(HubError::argument(
                    "'statusReason' must be a text of at most 128 characters.",
                ));
            }
        };
        let edge = body
            .get("capabilities")
            .and_then(|capabilities| capabilities.get("iotEdge"))
            .and_then(Value::as_bool)
            .unwrap_or(old.is_some_and(|old| old.edge));
        let unchanged = old.filter(|old| old.enabled == enabled);
        Ok(Self {
            id: id.to_owned(),
            generation: old.map_or_else(new_generation, |old| old.generation.clone()),
            etag: clock::new_identity_etag(),
            enabled,
            status_reason,
            status_updated: match (old, unchanged) {
                (None, _) => clock::NO_DATE.to_owned(),
                (_, Some(old)) => old.status_updated.clone(),
                (Some(_), None) => clock::stamp(),
            },
            credentials: Credentials::from_body(
                body.get("authentication"),
                old.map(|old| &old.credentials),
            )?,
            edge,
        })
    }

    /// The identity as REST shows it, without what depends on the connection.
    pub(crate) fn document(&self) -> Value {
        json!({
            "deviceId": self.id,
            "generationId": self.generation,
            "etag": self.etag,
            "status": self.status(),
            "statusReason": self.status_reason,
            "statusUpdatedTime": self.status_updated,
            "cloudToDeviceMessageCount": 0,
            "authentication": self.credentials.document(),
            "capabilities": { "iotEdge": self.edge },
            "parentScopes": [],
        })
    }

    /// `enabled` or `disabled`.
    pub(crate) fn status(&self) -> &'static str {
        if self.enabled { "enabled" } else { "disabled" }
    }

    /// The primary key, when the device has keys.
    pub(crate) fn primary_key(&self) -> Option<&str> {
        match &self.credentials {
            Credentials::Sas { primary, .. } => Some(primary),
            Credentials::SelfSigned { .. } | Credentials::CertificateAuthority => None,
        }
    }
}

impl Credentials {
    /// `sas`, `selfSigned` or `certificateAuthority`.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Sas { .. } => "sas",
            Self::SelfSigned { .. } => "selfSigned",
            Self::CertificateAuthority => "certificateAuthority",
        }
    }

    /// `{"primaryThumbprint":…,"secondaryThumbprint":…}`.
    pub(crate) fn thumbprints(&self) -> Value {
        let (primary, secondary) = match self {
            Self::Sas { .. } | Self::CertificateAuthority => (&None, &None),
            Self::SelfSigned { primary, secondary } => (primary, secondary),
        };
        json!({ "primaryThumbprint": primary, "secondaryThumbprint": secondary })
    }

    fn document(&self) -> Value {
        let keys = match self {
            Self::Sas { primary, secondary } => {
                json!({ "primaryKey": primary, "secondaryKey": secondary })
            }
            Self::SelfSigned { .. } | Self::CertificateAuthority => {
                json!({ "primaryKey": null, "secondaryKey": null })
            }
        };
        json!({ "symmetricKey": keys, "x509Thumbprint": self.thumbprints(), "type": self.kind() })
    }

    fn from_body(body: Option<&Value>, old: Option<&Self>) -> Result<Self, HubError> {
        let body = match body {
            None | Some(Value::Null) => {
                return Ok(old.cloned().unwrap_or_else(|| Self::Sas {
                    primary: clock::new_key(),
                    secondary: clock::new_key(),
                }));
            }
            Some(body) => body,
        };
        let text = |group: &str, name: &str| {
            body.get(group)
                .and_then(|group| group.get(name))
                .and_then(Value::as_str)
                .filter(|text| !text.is_empty())
                .map(str::to_owned)
        };
        let kind = match body.get("type") {
            None | Some(Value::Null) => "sas",
            Some(Value::String(kind)) => kind,
            Some(_) => return Err(HubError::argument("'authentication.type' must be a text.")),
        };
        match kind {
            "sas" => {
                let key = |name| match text("symmetricKey", name) {
                    Some(key) => check_key(&key).map(|()| key),
                    None => Ok(clock::new_key()),
                };
                Ok(Self::Sas {
                    primary: key("primaryKey")?,
                    secondary: key("secondaryKey")?,
                })
            }
            "selfSigned" => {
                let thumbprint = |name| match text("x509Thumbprint", name) {
                    Some(print) => check_thumbprint(&print).map(|()| Some(print)),
                    None => Ok(None),
                };
                Ok(Self::SelfSigned {
                    primary: thumbprint("primaryThumbprint")?,
                    secondary: thumbprint("secondaryThumbprint")?,
                })
            }
            "certificateAuthority" => Ok(Self::CertificateAuthority),
            other => Err(HubError::argument(format!(
                "'authentication.type' is '{other}'; this emulator knows 'sas', 'selfSigned' and \
                 'certificateAuthority'."
            ))),
        }
    }
}

fn new_generation() -> String {
    // 18 digits, as the real hub's.
    (100_000_000_000_000_000 + u64::from_be_bytes(clock::random::<8>()) % 800_000_000_000_000_000)
        .to_string()
}

/// Refuses what is no device id: 1 to 128 of the allowed ASCII characters.
pub(crate) fn check_id(id: &str) -> Result<(), HubError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-.%_*?!(),:=@$'".contains(&byte);
    if (1..=128).contains(&id.len()) && id.bytes().all(allowed) {
        return Ok(());
    }
    Err(HubError::argument(format!(
        "'{}' is no device id: 1 to 128 letters, digits and - . % _ * ? ! ( ) , : = @ $ '",
        id.chars().take(140).collect::<String>()
    )))
}

/// Refuses what is no symmetric key.
pub(crate) fn check_key(key: &str) -> Result<(), HubError> {
    match BASE64_STANDARD.decode(key) {
        Ok(bytes) if (16..=64).contains(&bytes.len()) => Ok(()),
        _ => Err(HubError::argument(
            "A symmetric key must be base64 of 16 to 64 bytes.",
        )),
    }
}

/// Refuses what is no thumbprint.
pub(crate) fn check_thumbprint(print: &str) -> Result<(), HubError> {
    let hex = print.bytes().all(|byte| byte.is_ascii_hexdigit());
    if hex && matches!(print.len(), 40 | 64) {
        return Ok(());
    }
    Err(HubError::argument(
        "A thumbprint must be 40 (SHA-1) or 64 (SHA-256) hexadecimal digits.",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_keys_are_made_by_the_hub() {
        let body = json!({ "authentication": { "type": "sas", "symmetricKey": { "primaryKey": "", "secondaryKey": null } } });
        let identity = Identity::from_body("pi", &body, None).unwrap();
        let Credentials::Sas { primary, secondary } = &identity.credentials else {
            panic!("not a SAS device");
        };
        assert_eq!(BASE64_STANDARD.decode(primary).unwrap().len(), 32);
        assert_ne!(primary, secondary);
    }

    #[test]
    fn an_update_without_authentication_keeps_the_keys_and_renews_the_etag() {
        let old = Identity::new("pi", None).unwrap();
        let new = Identity::from_body("pi", &json!({ "status": "disabled" }), Some(&old)).unwrap();
        assert_eq!(new.primary_key(), old.primary_key());
        assert_eq!(new.generation, old.generation);
        assert_ne!(new.etag, old.etag);
        assert_ne!(new.status_updated, old.status_updated);
    }

    #[test]
    fn a_ca_signed_device_has_neither_keys_nor_thumbprints() {
        let body = json!({ "authentication": { "type": "certificateAuthority" } });
        let document = Identity::from_body("pi", &body, None).unwrap().document();
        let authentication = &document["authentication"];
        assert_eq!(authentication["type"], "certificateAuthority");
        assert_eq!(authentication["symmetricKey"]["primaryKey"], Value::Null);
        assert_eq!(
            authentication["x509Thumbprint"]["primaryThumbprint"],
            Value::Null
        );
    }

    #[test]
    fn bad_ids_keys_and_thumbprints_are_refused() {
        for id in ["", "a/b", "a#", "ü", &"x".repeat(129)] {
            assert!(Identity::new(id, None).is_err(), "{id:?}");
        }
        assert!(Identity::new("pi", Some("no base64!".into())).is_err());
        assert!(Identity::new("pi", Some("c2hvcnQ=".into())).is_err());
        let body = json!({ "authentication": { "type": "selfSigned", "x509Thumbprint": { "primaryThumbprint": "12" } } });
        assert!(Identity::from_body("pi", &body, None).is_err());
        assert!(Identity::from_body("pi", &json!({ "deviceId": "other" }), None).is_err());
    }
}

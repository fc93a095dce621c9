//! Enrollments of the provisioning service: who may register, how it is proved, and what comes of it.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::certificates::{common_name, thumbprints};
use crate::clock;
use crate::connect::Proof;
use crate::device_ca::DeviceCas;
use crate::hub_error::HubError;
use crate::registry::{Credentials, check_id, check_key, check_thumbprint};
use crate::sas::derive_key;
use crate::twin::ServiceWrite;

/// An individual enrollment or a group.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Enrollment {
    pub(crate) attestation: Attestation,
    pub(crate) status: Status,
    /// What the hub shall call the device; the registration id when absent. Not for a group.
    #[serde(default)]
    pub(crate) device_id: Option<String>,
    /// The hub the device is sent to; the service's default when absent.
    #[serde(default)]
    pub(crate) assigned_hub: Option<String>,
    /// Given to the device with its assignment, as a custom allocation does.
    #[serde(default)]
    pub(crate) payload: Value,
    /// `{"tags":…,"properties":{"desired":…}}` of a new device.
    #[serde(default)]
    pub(crate) initial_twin: Value,
    /// Whether provisioning again makes the twin anew.
    #[serde(default)]
    pub(crate) reset_twin: bool,
    /// Provisioning fails with these words, as when a custom allocation does.
    #[serde(default)]
    pub(crate) failure: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Status {
    Enabled,
    Disabled,
}

/// How a device proves that it may register.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "type",
    rename_all = "camelCase",
    rename_all_fields = "camelCase",
    deny_unknown_fields
)]
pub(crate) enum Attestation {
    /// By a token of one of two keys; in a group by a key derived from one. Empty keys are made.
    SymmetricKey {
        #[serde(default)]
        primary_key: String,
        #[serde(default)]
        secondary_key: String,
    },
    /// By a certificate with one of these thumbprints (hex SHA-1 or SHA-256).
    X509 { thumbprints: Vec<String> },
    /// By a certificate of a registered CA, with the registration id as common name.
    CertificateAuthority,
}

impl Enrollment {
    /// An enabled one, proved by a key; an empty one is made.
    pub(crate) fn with_key(primary_key: String) -> Self {
        Self::with(Attestation::SymmetricKey {
            primary_key,
            secondary_key: String::new(),
        })
    }

    pub(crate) fn with(attestation: Attestation) -> Self {
        Self {
            attestation,
            status: Status::Enabled,
            device_id: None,
            assigned_hub: None,
            payload: Value::Null,
            initial_twin: Value::Null,
            reset_twin: false,
            failure: None,
        }
    }

    /// What `body` makes of `old`: members that are given replace those of before.
    pub(crate) fn from_body(body: &Value, old: Option<&Self>) -> Result<Self, HubError> {
        let members = body
            .as_object()
            .ok_or_else(|| HubError::argument("The enrollment must be a JSON object."))?;
        let mut whole = match old {
            Some(old) => json!(old),
            None => json!(Self::with_key(String::new())),
        };
        for (name, value) in members {
            whole[name] = value.clone();
        }
        let mut enrollment: Self = serde_json::from_value(whole)
            .map_err(|error| HubError::argument(format!("This is no enrollment: {error}")))?;
        enrollment.complete()?;
        Ok(enrollment)
    }

    /// Makes empty keys, and refuses what cannot be used later.
    pub(crate) fn complete(&mut self) -> Result<(), HubError> {
        match &mut self.attestation {
            Attestation::SymmetricKey {
                primary_key,
                secondary_key,
            } => {
                for key in [primary_key, secondary_key] {
                    if key.is_empty() {
                        *key = clock::new_key();
                    }
                    check_key(key)?;
                }
            }
            Attestation::X509 { thumbprints } => {
                thumbprints
                    .iter()
                    .try_for_each(|print| check_thumbprint(print))?;
            }
            Attestation::CertificateAuthority => {}
        }
        if let Some(id) = &self.device_id {
            check_id(id)?;
        }
        self.twin()?;
        Ok(())
    }

    /// What the twin of a new device gets.
    pub(crate) fn twin(&self) -> Result<Option<ServiceWrite>, HubError> {
        match &self.initial_twin {
            Value::Null => Ok(None),
            twin => ServiceWrite::parse(twin).map(Some),
        }
    }

    /// The primary key, if it has keys.
    pub(crate) fn primary_key(&self) -> Option<&str> {
        match &self.attestation {
            Attestation::SymmetricKey { primary_key, .. } => Some(primary_key),
            Attestation::X509 { .. } | Attestation::CertificateAuthority => None,
        }
    }

    /// Whether `proof` is one for registration id `id`: the credentials the hub registers the device with, or
    /// why not. In a group, keys are derived.
    pub(crate) fn attest(
        &self,
        id: &str,
        proof: &Proof,
        in_group: bool,
        cas: &DeviceCas,
    ) -> Result<Credentials, String> {
        match (&self.attestation, proof) {
            (
                Attestation::SymmetricKey {
                    primary_key,
                    secondary_key,
                },
                Proof::Token(token),
            ) => {
                let own = |key: &String| match in_group {
                    true => derive_key(key, id).unwrap_or_default(),
                    false => key.clone(),
                };
                let (primary, secondary) = (own(primary_key), own(secondary_key));
                if token.signed_by(&primary) || token.signed_by(&secondary) {
                    return Ok(Credentials::Sas { primary, secondary });
                }
                Err("the token's signature is wrong".to_owned())
            }
            (Attestation::X509 { thumbprints: known }, Proof::Certificate(chain)) => {
                let leaf = chain.leaf().ok_or("there is no client certificate")?;
                let shown = thumbprints(leaf);
                let fits =
                    |known: &String| shown.iter().any(|print| print.eq_ignore_ascii_case(known));
                match known.iter().any(fits) {
                    true => Ok(by_thumbprint(shown)),
                    false => Err("the client certificate is not the enrollment's".to_owned()),
                }
            }
            (Attestation::CertificateAuthority, Proof::Certificate(chain)) => {
                let leaf = chain.leaf().ok_or("there is no client certificate")?;
                cas.check(chain)?;
                let name = common_name(leaf).unwrap_or_default();
                match name.eq_ignore_ascii_case(id) {
                    true => Ok(by_thumbprint(thumbprints(leaf))),
                    false => Err(format!(
                        "the client certificate's common name is '{name}', not the registration id"
                    )),
                }
            }
            (Attestation::SymmetricKey { .. }, _) => {
                Err("the enrollment asks for a token, and there is none".to_owned())
            }
            (Attestation::X509 { .. } | Attestation::CertificateAuthority, _) => {
                Err("the enrollment asks for a certificate, and a token came".to_owned())
            }
        }
    }
}

/// The service registers what it saw: a device with the certificate's thumbprint, also below a CA.
fn by_thumbprint([_, sha256]: [String; 2]) -> Credentials {
    Credentials::SelfSigned {
        primary: Some(sha256),
        secondary: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_changes_what_it_names_and_keeps_the_rest() {
        let new = Enrollment::from_body(&json!({ "payload": { "a": 1 } }), None).unwrap();
        assert!(new.primary_key().is_some_and(|key| key.len() == 44));
        let disabled = Enrollment::from_body(&json!({ "status": "disabled" }), Some(&new)).unwrap();
        assert_eq!(disabled.status, Status::Disabled);
        assert_eq!(disabled.payload, json!({ "a": 1 }));
        assert_eq!(disabled.primary_key(), new.primary_key());
    }

    #[test]
    fn what_could_not_be_used_later_is_refused() {
        for body in [
            json!([]),
            json!({ "status": "off" }),
            json!({ "colour": "red" }),
            json!({ "attestation": { "type": "tpm" } }),
            json!({ "attestation": { "type": "symmetricKey", "primaryKey": "short" } }),
            json!({ "attestation": { "type": "x509", "thumbprints": ["12"] } }),
            json!({ "deviceId": "a/b" }),
            json!({ "initialTwin": { "tags": 5 } }),
        ] {
            assert!(Enrollment::from_body(&body, None).is_err(), "{body}");
        }
    }
}

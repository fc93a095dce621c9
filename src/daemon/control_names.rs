//! What the daemon's control socket and its clients must agree on: names and documents.
//!
//! At [`PATH`] stands [`INTERFACE`], on the Unix socket `control.socket` (peer to peer) and on the system bus. Its members
//! are described in `docs/reference/d-bus.md`; the documents that they take and return are here, and
//! [`crate::update::status::Status`].

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::update::{
    digest::Sha256,
    slot::{NotASlot, Slot},
    status::SlotState,
    uri::{self, PackageUri},
};

/// The bus name (not needed peer to peer).
pub const NAME: &str = "org.fwupdated1";

/// The object.
pub const PATH: &str = "/org/fwupdated1";

/// Its interface.
pub const INTERFACE: &str = "org.fwupdated1.Manager";

/// What to install: the same document that the direct method `firmwareUpdate` takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstallRequest {
    /// Where the image is. Written whole, secrets included.
    #[serde(deserialize_with = "uri::from_outside")]
    pub fw_package_uri: PackageUri,
    /// The version that the caller expects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fw_version: Option<String>,
    /// The digest of the file at the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fw_package_sha256: Option<Sha256>,
    /// The caller's name for the update.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_id: Option<String>,
    /// Skip the policy's wait and the memory of images that were rolled back; never a check.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

/// A slot as people name it: `a`, `b`, `running` or `other` (than the running one).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhichSlot {
    /// The slot of this name.
    Named(Slot),
    /// The one that runs.
    Running,
    /// The one that does not.
    Other,
}

impl WhichSlot {
    /// The slot that is meant while `running` runs.
    #[must_use]
    pub fn of(self, running: Slot) -> Slot {
        match self {
            Self::Named(slot) => slot,
            Self::Running => running,
            Self::Other => running.other(),
        }
    }
}

impl FromStr for WhichSlot {
    type Err = NotASlot;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "running" => Ok(Self::Running),
            "other" => Ok(Self::Other),
            name => name.parse().map(Self::Named),
        }
    }
}

impl fmt::Display for WhichSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Named(slot) => slot.name(),
            Self::Running => "running",
            Self::Other => "other",
        })
    }
}

/// What is known of one slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SlotInfo {
    /// Which.
    pub slot: Slot,
    /// Whether `/` is in it.
    pub running: bool,
    /// Whether it boots when no trial is pending; `None` when the bootloader could not be asked.
    pub confirmed: Option<bool>,
    /// Boots left in its trial, if one is pending.
    pub tries_left: Option<u8>,
    /// What is known about its content.
    pub state: SlotState,
    /// The version in it, when known.
    pub version: Option<String>,
    /// The device or file of its root file system.
    pub device: Option<String>,
    /// How many bytes that holds.
    pub size: Option<u64>,
    /// The digest of what was installed in it, when known.
    pub installed: Option<Sha256>,
}

/// The daemon's answer to a call: the same that a direct method gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// 200 accepted, 400 wrong, 403 forbidden, 409 busy, 503 not now.
    pub status: u16,
    /// `{"message","updateId"}` when accepted, `{"code","message"}` otherwise.
    pub body: Value,
}

impl Answer {
    /// True when the call was accepted.
    #[must_use]
    pub fn accepted(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The id of the update that the answer is about.
    #[must_use]
    pub fn update_id(&self) -> Option<&str> {
        self.body.get("updateId")?.as_str()
    }

    /// The answer in words: the message, and the code if there is one.
    #[must_use]
    pub fn text(&self) -> String {
        let member = |name| self.body.get(name).and_then(Value::as_str);
        match (member("message").or(self.body.as_str()), member("code")) {
            (Some(message), Some(code)) => format!("{message} [{code}]"),
            (Some(message), None) => message.to_owned(),
            (None, _) => self.body.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_request_is_the_method_s_payload_with_only_what_is_given() {
        let request = InstallRequest {
            fw_package_uri: "https://h/x?sig=1".parse().unwrap(),
            fw_version: Some("2".to_owned()),
            fw_package_sha256: None,
            update_id: None,
            force: false,
        };
        let document = serde_json::to_value(&request).unwrap();
        assert_eq!(
            document,
            json!({"fwPackageUri": "https://h/x?sig=1", "fwVersion": "2"})
        );
        assert_eq!(
            serde_json::from_value::<InstallRequest>(document).unwrap(),
            request
        );
    }

    #[test]
    fn a_request_s_address_is_read_as_strictly_as_the_method_s() {
        for uri in [
            "https://user@h/x",
            "https://h/a b",
            "https:h/x",
            "ftp://h/x",
        ] {
            let request = json!({"fwPackageUri": uri});
            assert!(
                serde_json::from_value::<InstallRequest>(request).is_err(),
                "{uri}"
            );
        }
    }

    #[test]
    fn an_answer_is_shown_as_its_message_and_code() {
        let text = |body| Answer { status: 409, body }.text();
        assert_eq!(
            text(json!({"code": "busy", "message": "Another runs."})),
            "Another runs. [busy]"
        );
        assert_eq!(
            text(json!("FirmwareUpdate started")),
            "FirmwareUpdate started"
        );
        assert_eq!(text(json!({"x": 1})), r#"{"x":1}"#);
        assert_eq!(text(Value::Null), "null");
    }
}

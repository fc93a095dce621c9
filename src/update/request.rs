//! What someone asks for: an update request, whichever way it came in.

use serde::{Deserialize, Serialize};

use super::{digest::Sha256, uri::PackageUri};

/// Who asked for an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The direct method `firmwareUpdate`.
    Method,
    /// The twin's desired property `firmware`.
    Desired,
    /// `fwupdatectl install` on the device.
    Local,
}

impl std::fmt::Display for Origin {
    /// How people name it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Method => "the hub's method",
            Self::Desired => "the twin's desired properties",
            Self::Local => "fwupdatectl on the device",
        })
    }
}

/// A request to install the image at an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Where the image is.
    pub uri: PackageUri,
    /// The version the caller expects. An image that says otherwise is refused.
    pub version: Option<String>,
    /// The digest of the **file** at `uri`. Makes a plain image trustworthy; also checked, when given,
    /// for an image with a manifest.
    pub sha256: Option<Sha256>,
    /// The caller's name for this update; one is made when absent.
    pub update_id: Option<String>,
    /// Skip the policy's wait and the memory of versions that were rolled back; never a check.
    pub force: bool,
    /// Who asked.
    pub origin: Origin,
}

impl Request {
    /// A request for `uri` with everything else left open.
    #[must_use]
    pub fn new(uri: PackageUri, origin: Origin) -> Self {
        Self {
            uri,
            version: None,
            sha256: None,
            update_id: None,
            force: false,
            origin,
        }
    }
}

//! The one document that says what is going on: what the twin, the CLI and `systemctl status` show.
//!
//! The updater task is its only writer; everyone else watches it. It holds no secrets.

use std::{collections::BTreeMap, ops::AddAssign};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{failure::Failure, request::Origin, slot::Slot};

/// How far an update is. [`Stage::word`] is the twin's status word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stage {
    /// Accepted; the policy decides when to go on.
    Waiting,
    /// The image is fetched, verified chunk by chunk and written to the slot.
    Downloading,
    /// Everything is on the medium; the slot is read back and compared.
    DownloadComplete,
    /// The verified slot is armed in the bootloader.
    Applying,
    /// The reboot into the new slot was asked for.
    Rebooting,
    /// Running from the new slot, not yet confirmed.
    Trial,
    /// Confirmed in the new slot.
    ApplyComplete,
    /// Ended before the slot was armed.
    DownloadFailed,
    /// Ended after the slot was armed; the old slot runs.
    ApplyFailed,
}

impl Stage {
    /// The word in `iothubDM.firmwareUpdate.status`, which back ends rely on to the letter.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Downloading => "downloading",
            Self::DownloadComplete => "downloadComplete",
            Self::Applying | Self::Rebooting | Self::Trial => "applying",
            Self::ApplyComplete => "applyComplete",
            Self::DownloadFailed => "downloadfailed",
            Self::ApplyFailed => "applyFailed",
        }
    }

    /// True when nothing more will happen to this update.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(
            self,
            Self::ApplyComplete | Self::DownloadFailed | Self::ApplyFailed
        )
    }
}

/// Bytes done and saved in the present stage. All counts are of this update, all in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Progress {
    /// Of the image's raw bytes: in place and verified (downloading) or read back (downloadComplete).
    pub bytes_done: u64,
    /// The image's raw size; 0 while unknown.
    pub bytes_total: u64,
    /// Received from the network.
    pub bytes_downloaded: u64,
    /// Of the raw image: already on the device, not downloaded.
    pub bytes_reused: u64,
    /// Written to the slot.
    pub bytes_written: u64,
    /// What else was done to the slot's medium.
    pub wear: Wear,
}

/// What an update did to the slot's medium apart from the bytes written, and what it was spared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Wear {
    /// Bytes that were to be written and were not, since the slot held them already.
    pub bytes_skipped: u64,
    /// Zeros written for holes, in bytes.
    pub bytes_zeroed: u64,
    /// Bytes of holes that the device zeroed by itself.
    pub bytes_discarded: u64,
    /// Bytes that could not be read and became zeros: the medium is failing.
    pub bytes_unreadable: u64,
    /// Requests that wrote or zeroed.
    pub writes: u64,
    /// Times that everything was made durable.
    pub syncs: u64,
}

impl AddAssign for Wear {
    fn add_assign(&mut self, other: Self) {
        self.bytes_skipped += other.bytes_skipped;
        self.bytes_zeroed += other.bytes_zeroed;
        self.bytes_discarded += other.bytes_discarded;
        self.bytes_unreadable += other.bytes_unreadable;
        self.writes += other.writes;
        self.syncs += other.syncs;
    }
}

impl Progress {
    /// 0 to 100, rounded down; 0 while the total is unknown.
    #[must_use]
    pub fn percent(&self) -> u8 {
        let percent = u128::from(self.bytes_done.min(self.bytes_total)) * 100;
        let percent = percent
            .checked_div(u128::from(self.bytes_total))
            .unwrap_or(0);
        u8::try_from(percent).unwrap_or(100)
    }
}

/// When each stage was reached, UTC. `None` where it was not (yet).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Times {
    /// Accepted.
    pub waiting: Option<Timestamp>,
    /// Download started.
    pub downloading: Option<Timestamp>,
    /// Everything on the medium.
    pub download_complete: Option<Timestamp>,
    /// Arming started.
    pub applying: Option<Timestamp>,
    /// Ended, well or not.
    pub ended: Option<Timestamp>,
}

/// One update, under way or finished.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UpdateReport {
    /// The update's id.
    pub id: String,
    /// Who asked for it.
    pub origin: Origin,
    /// The image's address without its secrets.
    pub uri: String,
    /// The slot that is written.
    pub target: Slot,
    /// The version, once known from the request or the image.
    pub version: Option<String>,
    /// The version that ran when the update was accepted.
    pub from_version: Option<String>,
    /// How far it is.
    pub stage: Stage,
    /// One line more: what it waits for, which check runs.
    pub detail: Option<String>,
    /// Bytes.
    pub progress: Progress,
    /// Times.
    pub times: Times,
    /// Why it failed or, before the stage is a failure, is being given up.
    pub error: Option<Failure>,
}

impl UpdateReport {
    /// Names this run of the update: an id may be used again, by a caller that names its updates.
    #[must_use]
    pub fn run(&self) -> String {
        match self.times.waiting {
            Some(accepted) => format!("{}@{accepted}", self.id),
            None => self.id.clone(),
        }
    }
}

/// What is known about a slot's content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SlotState {
    /// Nobody confirmed it under this daemon.
    #[default]
    Unknown,
    /// Confirmed.
    Good,
    /// Being written, or left half written.
    Writing,
    /// Written and read back; not yet confirmed.
    Verified,
    /// Booted and not yet confirmed.
    Trial,
    /// Failed to write, or booted and was not confirmed.
    Bad,
}

impl SlotState {
    /// The word for it, wherever people or programs read it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Good => "good",
            Self::Writing => "writing",
            Self::Verified => "verified",
            Self::Trial => "trial",
            Self::Bad => "bad",
        }
    }
}

/// A time as people read it: `2026-01-31T12:34:56Z`.
#[must_use]
pub fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// One slot, as shown outside.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SlotStatus {
    /// What is known about its content.
    pub state: SlotState,
    /// The version in it, when known.
    pub version: Option<String>,
}

/// The connection to the hub, as shown outside.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HubStatus {
    /// True between CONNACK and the end of the connection.
    pub connected: bool,
    /// The hub's host name; `None` without an identity.
    pub host: Option<String>,
    /// The device id; `None` without an identity.
    pub device_id: Option<String>,
    /// What carries MQTT: `mqtt` or `websocket`; `None` before the first attempt.
    pub transport: Option<String>,
    /// How the device proves who it is: `symmetric-key` or `x509`; `None` without an identity.
    pub authentication: Option<String>,
    /// Since when it is as it is.
    pub since: Option<Timestamp>,
    /// Why there is no connection.
    pub error: Option<Failure>,
}

/// Everything there is to know from outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The daemon's version.
    pub daemon_version: String,
    /// The version of the running root file system, when known.
    pub firmware_version: Option<String>,
    /// The slot that holds `/`; `None` when the board could not say.
    pub booted_slot: Option<Slot>,
    /// Both slots.
    pub slots: BTreeMap<Slot, SlotStatus>,
    /// The bootloader back end: `uboot`, `file`, ...
    pub bootloader: String,
    /// True while `trust.unsigned = "allow"`.
    pub unsigned_allowed: bool,
    /// The connection to the hub.
    pub hub: HubStatus,
    /// The update under way, else the last one.
    pub update: Option<UpdateReport>,
    /// When the last successful update was confirmed.
    pub last_success: Option<Timestamp>,
    /// Something that keeps updates from working at all, in words; or else what the daemon lost at its start.
    pub problem: Option<Failure>,
}

/// `2017-01-31T12:34:56.789Z`: the form of every time in the twin.
#[must_use]
pub fn iso_millis(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_is_rounded_down_and_bounded() {
        let percent = |bytes_done, bytes_total| {
            Progress {
                bytes_done,
                bytes_total,
                ..Progress::default()
            }
            .percent()
        };
        assert_eq!(percent(0, 0), 0);
        assert_eq!(percent(999, 1000), 99);
        assert_eq!(percent(5, 3), 100);
        assert_eq!(percent(u64::MAX, u64::MAX), 100);
    }

    #[test]
    fn progress_without_wear_is_read_as_an_earlier_version_wrote_it() {
        let old = r#"{"bytesDone":7,"bytesTotal":9,"bytesDownloaded":3,"bytesReused":2,"bytesWritten":5}"#;
        let progress: Progress = serde_json::from_str(old).unwrap();
        assert_eq!((progress.bytes_done, progress.bytes_written), (7, 5));
        assert_eq!(progress.wear, Wear::default());
    }

    #[test]
    fn times_have_three_decimals_and_a_z() {
        assert_eq!(
            iso_millis(Timestamp::UNIX_EPOCH),
            "1970-01-01T00:00:00.000Z"
        );
    }
}

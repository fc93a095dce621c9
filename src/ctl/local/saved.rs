//! What the state directory knows, for when the daemon does not run.

use std::{collections::BTreeMap, path::Path};

use jiff::Timestamp;
use serde::Deserialize;

use super::error::LocalError;
use crate::{
    ctl::output::{note, time},
    daemon::control_names::SlotInfo,
    platform::state_file::History,
    update::{
        machine::Content,
        slot::Slot,
        status::{SlotState, Status, UpdateReport},
    },
};

/// Of the state file, what is shown.
#[derive(Deserialize)]
pub(super) struct Saved {
    /// The last status.
    pub(super) status: Status,
    #[serde(default)]
    slots: BTreeMap<Slot, Record>,
}

#[derive(Deserialize)]
struct Record {
    #[serde(default)]
    content: Option<Content>,
}

/// The state file in `directory`, after saying that it is only that; `None` when there is none.
///
/// # Errors
/// It cannot be read or understood.
pub(super) fn read(directory: &Path) -> Result<Option<Saved>, LocalError> {
    let file = directory.join("state.json");
    let text = match std::fs::read(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(LocalError::StateFile { file, source }),
    };
    let written = std::fs::metadata(&file)
        .and_then(|metadata| metadata.modified())
        .ok()
        .and_then(|at| Timestamp::try_from(at).ok());
    let saved = match serde_json::from_slice(&text) {
        Ok(saved) => saved,
        Err(source) => return Err(LocalError::StateFormat { file, source }),
    };
    note(format!(
        "the daemon does not run (`systemctl status fwupdated`); this is what {} said{}",
        file.display(),
        written
            .map(|at| format!(" at {}", time(at)))
            .unwrap_or_default()
    ));
    Ok(Some(saved))
}

/// The last updates, newest first.
///
/// # Errors
/// The history is there and cannot be read.
pub(super) fn history(directory: &Path, count: u32) -> Result<Vec<UpdateReport>, LocalError> {
    let history = History::new(directory.join("history.jsonl"));
    Ok(history.newest(count as usize)?)
}

impl Saved {
    /// What it says of the slots.
    pub(super) fn slots(&self) -> Vec<SlotInfo> {
        let info = |slot| {
            let status = self.status.slots.get(&slot).cloned().unwrap_or_default();
            let content = (self.slots.get(&slot))
                .filter(|_| status.state == SlotState::Good)
                .and_then(|record| record.content);
            SlotInfo {
                slot,
                running: self.status.booted_slot == Some(slot),
                confirmed: None,
                tries_left: None,
                state: status.state,
                version: status.version,
                device: None,
                size: None,
                installed: content.map(|content| content.sha256),
            }
        };
        Slot::ALL.into_iter().map(info).collect()
    }
}

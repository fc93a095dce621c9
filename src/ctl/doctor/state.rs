//! Whether what must survive can: the state directory, its space, and its place.

use std::{collections::BTreeMap, fs, io, path::PathBuf};

use nix::sys::statvfs::statvfs;
use serde::Deserialize;

use super::finding::Finding;
use crate::{
    config::{BootloaderKind, Config},
    ctl::output::bytes,
    platform::state_file::is_on_root,
    update::{
        machine::{Content, State},
        slot::Slot,
    },
};

const TOPIC: &str = "state";

/// Below this, an update may end for want of room.
const LITTLE: u64 = 1 << 20;

/// What was seen.
pub(super) struct Facts {
    directory: PathBuf,
    document: Document,
    /// Bytes that are free there.
    free: Option<u64>,
    /// It is replaced by an update.
    in_slot: bool,
}

enum Document {
    Read(Box<Saved>),
    /// No daemon ran yet.
    Absent,
    Forbidden,
    /// It cannot be read or understood; why.
    Broken(String),
}

/// What is of interest of `state.json`.
#[derive(Deserialize)]
struct Saved {
    machine: State,
    #[serde(default)]
    slots: BTreeMap<Slot, Record>,
}

#[derive(Deserialize)]
struct Record {
    content: Option<Content>,
}

impl Facts {
    /// What the daemon is at.
    pub(super) fn machine(&self) -> Option<State> {
        match &self.document {
            Document::Read(saved) => Some(saved.machine.clone()),
            Document::Absent => Some(State::Idle),
            Document::Forbidden | Document::Broken(_) => None,
        }
    }

    /// How large the image in `slot` is.
    pub(super) fn image(&self, slot: Slot) -> Option<u64> {
        match &self.document {
            Document::Read(saved) => saved.slots.get(&slot)?.content.map(|content| content.size),
            _ => None,
        }
    }
}

pub(super) fn gather(config: &Config) -> Facts {
    let directory = config.state.directory.clone();
    let document = match fs::read(directory.join("state.json")) {
        Ok(text) => match serde_json::from_slice(&text) {
            Ok(saved) => Document::Read(Box::new(saved)),
            // The parser's own words would quote it, and it holds secrets.
            Err(error) => Document::Broken(format!(
                "is damaged or of another version (line {}, column {})",
                error.line(),
                error.column()
            )),
        },
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound => Document::Absent,
            io::ErrorKind::PermissionDenied => Document::Forbidden,
            _ => Document::Broken(format!("cannot be read: {error}")),
        },
    };
    let free = statvfs(&directory).ok();
    let real = config.bootloader.kind != BootloaderKind::File;
    Facts {
        document,
        #[allow(clippy::useless_conversion, reason = "32 bit on some of our targets")]
        free: free.map(|it| u64::from(it.blocks_available()) * u64::from(it.fragment_size())),
        in_slot: real
            && !config.carry_over.covers(&directory)
            && is_on_root(&directory).is_ok_and(|on_root| on_root),
        directory,
    }
}

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let place = facts.directory.display();
    let mut findings = vec![match &facts.document {
        Document::Read(_) => Finding::ok(TOPIC, format!("{place}/state.json is whole")),
        Document::Absent => Finding::warning(
            TOPIC,
            format!(
                "there is no {place}/state.json: fwupdated never ran here, or its state was lost"
            ),
            "start fwupdated",
        ),
        Document::Forbidden => Finding::forbidden(TOPIC, &format!("{place}/state.json")),
        Document::Broken(why) => Finding::error(
            TOPIC,
            format!("{place}/state.json {why}"),
            "restart fwupdated, which moves it aside; look at the medium (`dmesg`)",
        ),
    }];
    if let Some(free) = facts.free.filter(|free| *free < LITTLE) {
        findings.push(Finding::error(
            TOPIC,
            format!("only {} are free at {place}", bytes(free)),
            "make room there: no update starts that could not be recorded",
        ));
    }
    if facts.in_slot {
        findings.push(Finding::warning(
            TOPIC,
            format!(
                "{place} lies in the running slot's own file system: the other slot starts without the history, the \
                 security epoch and the memory of bad images"
            ),
            "set state.directory to a folder on a partition that both slots share, mount one there, or list it in \
             carry_over.paths",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::doctor::finding::Level;

    fn facts(document: Document) -> Facts {
        Facts {
            directory: "/s".into(),
            document,
            free: Some(1 << 30),
            in_slot: false,
        }
    }

    fn levels(facts: &Facts) -> Vec<Level> {
        judge(facts).iter().map(|finding| finding.level).collect()
    }

    #[test]
    fn a_state_that_would_not_survive_is_said() {
        assert_eq!(levels(&facts(Document::Absent)), [Level::Warning]);
        assert_eq!(levels(&facts(Document::Forbidden)), [Level::Unknown]);
        assert_eq!(levels(&facts(Document::Broken("x".into()))), [Level::Error]);
        let weak = Facts {
            in_slot: true,
            free: Some(7),
            ..facts(Document::Absent)
        };
        assert_eq!(
            levels(&weak),
            [Level::Warning, Level::Error, Level::Warning]
        );
    }

    #[test]
    fn a_damaged_state_file_is_an_error_and_quotes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::built_in();
        config.state.directory = dir.path().to_owned();
        let file = dir.path().join("state.json");
        fs::write(&file, r#"{"machine": "https://h/?sig=SECRET"}"#).unwrap();
        let found = judge(&gather(&config));
        assert_eq!(found[0].level, Level::Error);
        assert!(!found[0].text.contains("SECRET"), "{found:?}");
        fs::write(&file, r#"{"version": 1, "machine": {"state": "idle"}}"#).unwrap();
        let facts = gather(&config);
        assert_eq!(judge(&facts)[0].level, Level::Ok);
        assert_eq!(facts.machine(), Some(State::Idle));
    }
}

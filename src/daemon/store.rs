//! The state directory: `state.json`, `history.jsonl`, and the lock that keeps a second daemon out.

use std::{path::Path, sync::Arc};

use serde::Deserialize;

use super::saved::{SCHEMA, Saved};
use crate::{
    config::{BootloaderKind, Config, StateConfig},
    platform::state_file::{DirectoryLock, History, StateError, StateFile, is_on_root},
    update::{
        failure::{Class, Failure},
        status::UpdateReport,
    },
};

/// What every version of the document has.
#[derive(Deserialize)]
struct Versioned {
    version: u64,
}

/// The state directory, held by this process. Cheap to clone.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    file: StateFile,
    history: History,
    _lock: DirectoryLock,
}

impl Store {
    /// Opens the directory and locks it.
    ///
    /// # Errors
    /// It cannot be made or written, or another daemon holds it.
    pub fn open(config: &StateConfig) -> Result<Self, Failure> {
        let directory: &Path = &config.directory;
        let lock = DirectoryLock::acquire(directory).map_err(|error| Failure::from(&error))?;
        let file = StateFile::new(directory.join("state.json"));
        let history = History::new(directory.join("history.jsonl"));
        Ok(Self(Arc::new(Inner {
            file,
            history,
            _lock: lock,
        })))
    }

    /// What survived; a fresh document at the first start. A file that cannot be understood, or that a newer
    /// fwupdated wrote, is moved aside, and `lost` says so in a new document with those members that are
    /// understood: the bootloader knows where the update under way stands, and a device that does not start could
    /// not be helped from afar.
    ///
    /// # Errors
    /// The file exists and cannot be read.
    pub fn load(&self) -> Result<Saved, Failure> {
        let file = &self.0.file;
        // Only the version first: nothing else of a newer document needs to be understood.
        let version = match file.load::<Versioned>() {
            Ok(None) => return Ok(Saved::default()),
            Ok(Some(Versioned { version })) => version,
            Err(error) => return self.afresh(&error),
        };
        if version > u64::from(SCHEMA) {
            let failure = Failure::new(
                "state-too-new",
                Class::Final,
                format!(
                    "{} was written by a newer fwupdated (schema {version}; this one knows {SCHEMA})",
                    file.path().display()
                ),
            );
            return Ok(self.salvaged(failure, &format!("v{version}")));
        }
        match file.load::<Saved>() {
            Ok(saved) => Ok(saved.unwrap_or_default()),
            Err(error) => self.afresh(&error),
        }
    }

    fn afresh(&self, error: &StateError) -> Result<Saved, Failure> {
        let failure = Failure::from(error);
        if error.is_corrupt() {
            Ok(self.salvaged(failure, "damaged"))
        } else {
            Err(failure)
        }
    }

    /// A new document with what is understood of the one that stands; that is kept beside it as
    /// `state.json.suffix`.
    fn salvaged(&self, mut failure: Failure, suffix: &str) -> Saved {
        // Not even JSON: nothing is understood.
        let document = self.0.file.load::<serde_json::Value>().ok().flatten();
        let moved = match self.0.file.move_aside(suffix) {
            Ok(aside) => format!("it is kept as {}", aside.display()),
            Err(error) => format!("it cannot be kept ({})", Failure::from(&error).message),
        };
        failure.message = format!(
            "{}; {moved}. The daemon started afresh with what it understands of it: the update under way goes on by \
             what the bootloader says, and of reports not yet sent, images known as bad and the security epoch some \
             may be forgotten",
            failure.message
        );
        Saved {
            lost: Some(failure),
            ..document.map_or_else(Saved::default, |document| Saved::salvage(&document))
        }
    }

    /// Makes `saved` durable. Blocks.
    ///
    /// # Errors
    /// The old document then still stands, unless the failure says that the new one may be lost in a power cut.
    pub fn save(&self, saved: &Saved) -> Result<(), Failure> {
        self.0
            .file
            .save(saved)
            .map_err(|error| Failure::from(&error))
    }

    /// Tries whether a document could be saved now. Blocks.
    ///
    /// # Errors
    /// Why not.
    pub fn check_writable(&self) -> Result<(), Failure> {
        self.0
            .file
            .check_writable()
            .map_err(|error| Failure::from(&error))
    }

    /// Adds a line to the history. Blocks.
    ///
    /// # Errors
    /// It could not be written.
    pub fn append_history(&self, report: &UpdateReport) -> Result<(), Failure> {
        self.0
            .history
            .append(report)
            .map_err(|error| Failure::from(&error))
    }

    /// The last `count` updates that the history has, newest first. Blocks.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn history(&self, count: usize) -> Result<Vec<UpdateReport>, Failure> {
        self.0
            .history
            .newest(count)
            .map_err(|error| Failure::from(&error))
    }
}

/// What to say about a state directory that belongs to one slot and is not carried over to the other. Nothing when that
/// cannot be found out.
pub fn warning_about_place(config: &Config) -> Option<String> {
    let directory = &config.state.directory;
    if config.carry_over.covers(directory) {
        return None;
    }
    belongs_to_a_slot(config.bootloader.kind, is_on_root(directory).ok()?).then(|| {
        format!(
            "the state directory {} lies in the running slot's own file system: the other slot starts without it, so \
             that at each switch of slots the history of updates, the security epoch and the memory of images known \
             as bad are lost; set state.directory to a folder on a partition that both slots share, mount one there, or list it in \
             carry_over.paths",
            directory.display()
        )
    })
}

/// A stand-in board has no slot of its own under `/`.
fn belongs_to_a_slot(kind: BootloaderKind, on_root: bool) -> bool {
    kind != BootloaderKind::File && on_root
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::update::machine::State;

    /// Of a version to come: a schema, a state and members that this one does not know.
    const NEWER: &str = r#"{
        "version": 2,
        "machine": {"state": "healing", "plan": ["a", 1]},
        "securityEpoch": "seven",
        "outbox": {"first": null}
    }"#;
    /// Of this schema, in a state that this version does not know.
    const UNKNOWN_STATE: &str = r#"{"version": 1, "machine": {"state": "healing"}, "outbox": []}"#;

    struct Directory(tempfile::TempDir);

    impl Directory {
        fn with(document: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("state.json"), document).unwrap();
            Self(dir)
        }

        fn store(&self) -> Store {
            let directory = self.0.path().to_owned();
            Store::open(&StateConfig { directory }).unwrap()
        }

        fn aside(&self, suffix: &str) -> String {
            let name = format!("state.json.{suffix}");
            fs::read_to_string(self.0.path().join(name)).unwrap()
        }
    }

    fn lost(saved: &Saved) -> &Failure {
        assert_eq!(saved.machine, State::Idle);
        assert!(saved.outbox.is_empty() && saved.version == SCHEMA);
        saved.lost.as_ref().unwrap()
    }

    #[test]
    fn the_file_of_a_newer_version_is_moved_aside_and_the_daemon_starts_afresh() {
        let dir = Directory::with(NEWER);
        let store = dir.store();
        let saved = store.load().unwrap();
        assert_eq!(lost(&saved).code, "state-too-new");
        assert!(lost(&saved).message.contains("state.json.v2"));
        assert_eq!(dir.aside("v2"), NEWER);
        // It is said once, and one file a version is kept.
        store.save(&saved).unwrap();
        assert_eq!(store.load().unwrap().lost, None);
        let newest = NEWER.replace("healing", "dreaming");
        fs::write(dir.0.path().join("state.json"), &newest).unwrap();
        store.load().unwrap();
        assert_eq!(dir.aside("v2"), newest);
    }

    #[test]
    fn what_is_understood_of_a_newer_document_is_kept_each_entry_by_itself() {
        let known = serde_json::json!({"version": "2.0.0", "payload": "0".repeat(64),
            "failure": {"code": "health-check-failed", "message": "x", "class": "final"}});
        let newer = serde_json::json!({"version": 2, "securityEpoch": 7, "lastSuccess": "2026-03-01T00:00:00Z",
            "machine": {"state": "healing"}, "knownBad": [known, {"payload": {"sha512": "0"}}],
            "slots": {"a": {"state": "good", "version": "1.0.0", "moons": 3}}, "outbox": "empty"});
        let dir = Directory::with(&newer.to_string());
        let saved = dir.store().load().unwrap();
        assert_eq!(lost(&saved).code, "state-too-new");
        assert_eq!((saved.security_epoch, saved.known_bad.len()), (7, 1));
        assert_eq!(saved.known_bad[0].version.as_deref(), Some("2.0.0"));
        assert!(saved.last_success.is_some());
        let slot = &saved.slots[&crate::update::slot::Slot::A];
        assert_eq!(slot.version.as_deref(), Some("1.0.0"));
    }

    #[test]
    fn a_version_of_any_size_is_newer_and_not_damaged() {
        let dir = Directory::with("{\"version\": 4294967297}");
        assert_eq!(lost(&dir.store().load().unwrap()).code, "state-too-new");
        dir.aside("v4294967297");
    }

    #[test]
    fn a_state_that_is_not_known_counts_as_damage() {
        for document in [
            UNKNOWN_STATE,
            "",
            "[]",
            "{\"machine\": null}",
            "{\"version\":",
        ] {
            let dir = Directory::with(document);
            let saved = dir.store().load().unwrap();
            assert_eq!(lost(&saved).code, "state-corrupt", "{document}");
            assert_eq!(dir.aside("damaged"), document);
        }
    }

    #[test]
    fn what_is_said_about_a_damaged_file_quotes_nothing_of_it() {
        let dir = Directory::with("{\"version\": \"https://h/x?sig=SECRET\"}");
        let saved = dir.store().load().unwrap();
        let message = &lost(&saved).message;
        assert!(message.contains("is damaged (line 1, column"), "{message}");
        assert!(!message.contains("SECRET"), "{message}");
    }

    #[test]
    fn only_a_state_directory_in_a_slot_of_a_real_board_is_warned_about() {
        assert!(belongs_to_a_slot(BootloaderKind::Uboot, true));
        assert!(!belongs_to_a_slot(BootloaderKind::Uboot, false));
        assert!(!belongs_to_a_slot(BootloaderKind::File, true));
    }

    #[test]
    fn a_file_that_cannot_be_moved_aside_does_not_keep_the_daemon_from_starting() {
        let dir = Directory::with(NEWER);
        fs::create_dir(dir.0.path().join("state.json.v2")).unwrap();
        let saved = dir.store().load().unwrap();
        assert!(lost(&saved).message.contains("it cannot be kept"));
    }
}

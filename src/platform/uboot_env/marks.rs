//! Second marks of the confirmed slot, for the day when both copies of the environment are lost.
//!
//! - `bootloader.mark_file`, on the boot partition: one line, `fwupdated_mark=b`, that the boot script reads when the
//!   environment has no valid confirmed slot. Without it U-Boot would boot its compiled-in default, slot a.
//! - `env.backup` in the state directory: the whole environment, outside any trial, in the format of a single copy
//!   (`mkenvimage`), from which [`super::restore`] writes it anew.
//!
//! Both are written after the environment, never before it. A power cut between leaves a mark that names the slot
//! confirmed before, which is whole until the next update writes to it; and that update does not write as long as a
//! mark names its target ([`Marks::naming`]). So whichever is lost, what the other one names can boot.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    codec::{self, Copy, Env},
    variables::{Change, Variables, decide},
};
use crate::{
    platform::state_file::{self, StateError},
    update::slot::Slot,
};

/// The variable in the mark file.
pub const MARK: &str = "fwupdated_mark";
/// The saved environment's name in the state directory.
pub const BACKUP: &str = "env.backup";

/// Where the marks are. Which there are is configuration.
#[derive(Debug, Clone, Default)]
pub(super) struct Marks {
    /// Read by the boot script.
    pub(super) mark_file: Option<PathBuf>,
    /// Whether the mark file must lie on another file system than `/`, which is a slot's own.
    pub(super) apart_from_root: bool,
    /// The whole environment.
    pub(super) backup: Option<PathBuf>,
}

/// Why a mark cannot be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum MarkError {
    /// The boot partition is not there.
    #[error(
        "the folder of {} is on the root file system, where U-Boot does not look; mount the boot partition", .0.display()
    )]
    NotMounted(PathBuf),
    /// It cannot be looked at.
    #[error("the folder of {} cannot be looked at", .file.display())]
    Folder {
        /// The mark.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It cannot be written.
    #[error(transparent)]
    Write(#[from] StateError),
}

impl Marks {
    /// Lets both marks name what `env` says is confirmed. A mark that does so already is not written.
    pub(super) fn refresh(
        &self,
        variables: &dyn Variables,
        env: &Env,
        size: usize,
    ) -> Vec<MarkError> {
        let Ok(state) = variables.state(env) else {
            return Vec::new();
        };
        let mut errors = Vec::new();
        if let Some(file) = &self.mark_file {
            let text = format!("{MARK}={}\n", state.confirmed);
            let written = self
                .mounted(file)
                .and_then(|()| replace(file, text.as_bytes()));
            errors.extend(written.err());
        }
        let mut settled = env.clone();
        if let Some(file) = &self.backup
            && decide(variables, &mut settled, Change::MarkGood(state.confirmed)).is_ok()
            && let Some(bytes) = codec::encode(&single(settled), size, false)
        {
            errors.extend(replace(file, &bytes).err());
        }
        errors
    }

    /// A mark that names `slot`. One that does not exist names none.
    pub(super) fn naming(&self, variables: &dyn Variables, slot: Slot) -> Option<&Path> {
        let in_mark = |file: &Path| parse(&fs::read_to_string(file).ok()?);
        let in_backup = |file: &Path| {
            let saved = codec::decode(&fs::read(file).ok()?, false)?;
            variables
                .state(&saved.env)
                .ok()
                .map(|state| state.confirmed)
        };
        let mark = self.mark_file.as_deref();
        let backup = self.backup.as_deref();
        mark.filter(|file| in_mark(file) == Some(slot))
            .or_else(|| backup.filter(|file| in_backup(file) == Some(slot)))
    }

    fn mounted(&self, file: &Path) -> Result<(), MarkError> {
        if !self.apart_from_root {
            return Ok(());
        }
        let folder = file.parent().unwrap_or(Path::new("/"));
        match state_file::is_on_root(folder) {
            Ok(false) => Ok(()),
            Ok(true) => Err(MarkError::NotMounted(file.to_owned())),
            Err(source) => Err(MarkError::Folder {
                file: file.to_owned(),
                source,
            }),
        }
    }
}

/// The slot in the text of a mark file, as the boot script takes it.
fn parse(text: &str) -> Option<Slot> {
    let value = |line: &str| line.strip_prefix(MARK)?.strip_prefix('=')?.parse().ok();
    text.lines().filter_map(value).next_back()
}

fn single(env: Env) -> Copy {
    Copy { flags: 0, env }
}

fn replace(file: &Path, bytes: &[u8]) -> Result<(), MarkError> {
    if fs::read(file).is_ok_and(|found| found == bytes) {
        return Ok(());
    }
    Ok(state_file::replace(file, bytes)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::platform::uboot_env::variables::own::Own;

    fn env(slot: &str) -> Env {
        let mut env = Env::default();
        env.set("fwupdated_slot", slot).unwrap();
        env.set("fwupdated_trial", if slot == "a" { "b" } else { "a" })
            .unwrap();
        env.set("fwupdated_tries", "2").unwrap();
        env.set("bootcmd", "run x").unwrap();
        env
    }

    fn marks(dir: &Path) -> Marks {
        Marks {
            mark_file: Some(dir.join("fwupdated.slot")),
            apart_from_root: false,
            backup: Some(dir.join(BACKUP)),
        }
    }

    #[test]
    fn both_marks_name_the_confirmed_slot_and_the_saved_environment_has_no_trial() {
        let dir = tempfile::tempdir().unwrap();
        let marks = marks(dir.path());
        assert_eq!(marks.naming(&Own, Slot::B), None, "nothing there yet");
        assert!(marks.refresh(&Own, &env("b"), 0x1000).is_empty());
        let text = fs::read_to_string(dir.path().join("fwupdated.slot")).unwrap();
        assert_eq!(text, "fwupdated_mark=b\n");
        let saved = fs::read(dir.path().join(BACKUP)).unwrap();
        let saved = codec::decode(&saved, false).unwrap().env;
        let variables: Vec<_> = saved.iter().collect();
        assert_eq!(variables, [("fwupdated_slot", "b"), ("bootcmd", "run x")]);
        assert!(marks.naming(&Own, Slot::B).is_some());
        assert_eq!(marks.naming(&Own, Slot::A), None);
    }

    #[test]
    fn a_mark_that_is_right_is_not_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let marks = marks(dir.path());
        assert!(marks.refresh(&Own, &env("a"), 0x1000).is_empty());
        let inodes =
            || ["fwupdated.slot", BACKUP].map(|n| fs::metadata(dir.path().join(n)).unwrap().ino());
        let before = inodes();
        assert!(marks.refresh(&Own, &env("a"), 0x1000).is_empty());
        assert_eq!(inodes(), before);
    }

    #[test]
    fn a_boot_partition_that_is_not_mounted_is_noticed() {
        let marks = Marks {
            mark_file: Some("/fwupdated.slot".into()),
            apart_from_root: true,
            backup: None,
        };
        let errors = marks.refresh(&Own, &env("a"), 0x1000);
        assert!(
            matches!(errors[..], [MarkError::NotMounted(_)]),
            "{errors:?}"
        );
        assert!(!Path::new("/fwupdated.slot").exists());
        assert!(marks.mounted(Path::new("/proc/fwupdated.slot")).is_ok());
    }

    #[test]
    fn only_a_whole_line_of_ours_is_a_mark() {
        for (text, slot) in [
            ("fwupdated_mark=b\n", Some(Slot::B)),
            ("fwupdated_mark=a", Some(Slot::A)),
            ("fwupdated_mark=a\nfwupdated_mark=b\n", Some(Slot::B)),
            ("fwupdated_mark=\n", None),
            ("fwupdated_mark=ab\n", None),
            ("fwupdated_mar", None),
            ("\0\0\0\0", None),
            ("", None),
        ] {
            assert_eq!(parse(text), slot, "{text:?}");
        }
    }
}

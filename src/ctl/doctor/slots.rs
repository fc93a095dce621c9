//! Whether both slots are there, which runs, whether images fit, and who holds the spare one.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::finding::Finding;
use crate::{
    config::Config,
    ctl::output::bytes,
    platform::{
        carry_over::FileSystem,
        slot_writer::who_holds,
        slots::{Slots, size},
    },
    update::{failure::Failure, slot::Slot},
};

const TOPIC: &str = "slots";

/// What was seen; `Err` when the slots cannot be told apart. `None` without slots in the configuration.
pub(super) type Facts = Option<Result<Seen, Failure>>;

/// Both slots.
pub(super) struct Seen {
    pub(super) booted: Slot,
    spare: Device,
    running: Device,
    /// Who holds the spare one, in words.
    holders: io::Result<Vec<String>>,
    /// Bytes of the image that runs, if that is known.
    image: Option<u64>,
    /// What it holds, if files are to be carried over and it can be read.
    carry_over: Option<FileSystem>,
}

struct Device {
    path: PathBuf,
    size: io::Result<u64>,
}

impl Device {
    fn look(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            size: size(path),
        }
    }
}

/// `image` is how many bytes the image in the slot has, as far as the state file knows.
pub(super) fn gather(config: &Config, image: impl Fn(Slot) -> Option<u64>) -> Facts {
    let slots = config.slots.as_ref()?;
    let look = || {
        let slots = Slots::open(slots, &config.bootloader)?;
        let (booted, spare) = (slots.booted()?.slot, slots.inactive()?);
        // The boot partition, if there is one, comes first.
        let running = spare.running().last().cloned().unwrap_or_default();
        Ok(Seen {
            booted,
            spare: Device::look(spare.path()),
            running: Device::look(&running),
            holders: [Some(spare.path()), spare.boot()]
                .into_iter()
                .flatten()
                .map(who_holds)
                .collect::<io::Result<Vec<_>>>()
                .map(|holders| holders.concat()),
            image: image(booted),
            carry_over: match config.carry_over.paths.is_empty() {
                true => None,
                false => FileSystem::detect(&running).ok(),
            },
        })
    };
    Some(look().map_err(|error: crate::platform::slots::SlotsError| Failure::from(&error)))
}

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let seen = match facts {
        None => {
            return vec![Finding::error(
                TOPIC,
                "no slots are configured, so no update can be installed",
                "set slots.a.rootfs and slots.b.rootfs in /etc/fwupdated/fwupdated.toml",
            )];
        }
        Some(Err(failure)) => return vec![Finding::failure(TOPIC, failure)],
        Some(Ok(seen)) => seen,
    };
    let (booted, spare) = (seen.booted, seen.booted.other());
    let paths = (seen.running.path.display(), seen.spare.path.display());
    let mut findings = Vec::new();
    match (&seen.running.size, &seen.spare.size) {
        (Ok(running), Ok(target)) => findings.push(sizes(seen, *running, *target)),
        (Err(error), _) | (_, Err(error)) => findings.push(Finding::unknown(
            TOPIC,
            format!(
                "slot {booted} ({}) runs, slot {spare} is {}; their sizes are not known: {error}",
                paths.0, paths.1
            ),
        )),
    }
    if let Some(FileSystem::ReadOnly(kind)) = seen.carry_over {
        findings.push(Finding::warning(
            TOPIC,
            format!("slot {booted} holds {kind}; an update to another such file system fails, as nothing can be carried over"),
            "empty carry_over.paths, and keep what must outlive an update on a partition that both slots share",
        ));
    }
    match &seen.holders {
        Ok(holders) if holders.is_empty() => {}
        Ok(holders) => findings.push(Finding::error(
            TOPIC,
            format!(
                "the spare slot {spare} ({}) is held, so that nothing can be installed: {}",
                paths.1,
                holders.join(", ")
            ),
            "unmount it, and keep automounters away from it (udev: ENV{UDISKS_IGNORE}=\"1\")",
        )),
        Err(error) => findings.push(Finding::unknown(
            TOPIC,
            format!("who holds the spare slot {spare} is not known: {error}"),
        )),
    }
    findings
}

fn sizes(seen: &Seen, running: u64, target: u64) -> Finding {
    let (booted, spare) = (seen.booted, seen.booted.other());
    let text = format!(
        "slot {booted} runs from {} ({}), slot {spare} is {} ({})",
        seen.running.path.display(),
        bytes(running),
        seen.spare.path.display(),
        bytes(target)
    );
    match seen.image {
        Some(image) if image > target => Finding::error(
            TOPIC,
            format!(
                "{text}; an image as large as the one that runs ({}) does not fit",
                bytes(image)
            ),
            "make both slots equally large (`sfdisk`), or make the image smaller",
        ),
        _ if running != target => Finding::warning(
            TOPIC,
            format!("{text}; they differ in size, so that an image may fit only one of them"),
            "make images that fit the smaller one",
        ),
        _ => Finding::ok(TOPIC, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ctl::doctor::finding::Level, update::failure::Class};

    fn seen(running: u64, target: u64, holders: &[&str], image: Option<u64>) -> Facts {
        let device = |name: &str, size| Device {
            path: name.into(),
            size: Ok(size),
        };
        Some(Ok(Seen {
            booted: Slot::A,
            spare: device("/dev/b", target),
            running: device("/dev/a", running),
            holders: Ok(holders.iter().map(|&holder| holder.to_owned()).collect()),
            image,
            carry_over: None,
        }))
    }

    fn levels(facts: &Facts) -> Vec<Level> {
        judge(facts).iter().map(|finding| finding.level).collect()
    }

    #[test]
    fn slots_must_be_there_be_equal_hold_the_image_and_be_free() {
        assert_eq!(levels(&seen(8, 8, &[], Some(8))), [Level::Ok]);
        assert_eq!(levels(&seen(8, 7, &[], Some(7))), [Level::Warning]);
        assert_eq!(levels(&seen(8, 7, &[], Some(8))), [Level::Error]);
        let held = seen(8, 8, &["it is mounted at /mnt"], None);
        assert_eq!(levels(&held), [Level::Ok, Level::Error]);
        assert!(judge(&held)[1].text.contains("mounted at /mnt"));
        assert_eq!(levels(&None), [Level::Error]);
        let failure = Failure::new("slot-missing", Class::Final, "slot b is gone");
        assert_eq!(levels(&Some(Err(failure))), [Level::Error]);
    }

    #[test]
    fn files_to_carry_over_and_a_file_system_that_takes_none_are_warned_about() {
        let mut facts = seen(8, 8, &[], None);
        for (found, level) in [
            (FileSystem::Writable("ext4"), None),
            (FileSystem::ReadOnly("squashfs"), Some(Level::Warning)),
        ] {
            if let Some(Ok(seen)) = &mut facts {
                seen.carry_over = Some(found);
            }
            assert_eq!(levels(&facts).get(1).copied(), level);
        }
    }

    #[test]
    fn a_size_that_cannot_be_found_out_is_unknown_and_not_zero() {
        let mut facts = seen(8, 8, &[], None);
        if let Some(Ok(seen)) = &mut facts {
            seen.spare.size = size(Path::new("/nonexistent"));
        }
        assert_eq!(levels(&facts), [Level::Unknown]);
    }
}

//! What `config init` finds on this board by itself: the partitions of both slots, and what decides the slot. Looks
//! only, and guesses nothing: a partition that is taken for the spare slot is overwritten by the next update.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::sys::stat::{major, minor};

use crate::{
    config::{BootVariables, BootloaderKind},
    platform::tryboot::autoboot::boot_partition,
};

/// Where the Raspberry Pi's firmware reads `autoboot.txt`, as usual images mount that partition.
const AUTOBOOT: [&str; 3] = [
    "bootfs/autoboot.txt",
    "boot/firmware/autoboot.txt",
    "boot/autoboot.txt",
];

/// A slot's partitions, as the configuration names them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Partitions {
    /// Both root file systems, slot a's first.
    pub(super) rootfs: [String; 2],
    /// Their boot partitions, where each slot has one.
    pub(super) boot: Option<[String; 2]>,
    /// Numbers of the partitions of `rootfs` on their disk; 0 where there is none.
    pub(super) numbers: [u32; 2],
}

/// A board, below `root`, whose `/` is on one of the devices `running`.
pub(super) struct Board<'a> {
    pub(super) root: &'a Path,
    pub(super) running: &'a [u64],
}

impl Board<'_> {
    /// The slots, by the partition that runs and the one with the other letter: `rootfs-a` and `rootfs-b`,
    /// `system_a` and `system_b`.
    ///
    /// # Errors
    /// What was found instead, in words.
    pub(super) fn partitions(&self) -> Result<Partitions, String> {
        let labels = self.links("dev/disk/by-partlabel");
        let running = self.running_names();
        let Some((label, _)) = labels.iter().find(|(_, name)| running.contains(name)) else {
            return Err(self.without_label(&running));
        };
        let pair = pair(label).filter(|pair| {
            let there = |wanted: &String| labels.iter().any(|(label, _)| label == wanted);
            pair.iter().all(there)
        });
        let Some([a, b]) = pair else {
            return Err(format!(
                "the running root file system is the partition `{label}`, and no other partition differs from it in the \
                 last letter alone, as rootfs-a and rootfs-b do"
            ));
        };
        // Boot partitions of the slots end like them.
        let boot_of = |rootfs: &str| {
            let letter = &rootfs[rootfs.len() - 1..];
            let mut found = labels.iter().map(|(label, _)| label).filter(|label| {
                label.to_lowercase().starts_with("boot") && label.ends_with(letter)
            });
            found.next().filter(|_| found.next().is_none())
        };
        let boot = boot_of(&a).zip(boot_of(&b));
        let named = |label: &String| format!("PARTLABEL={label}");
        let number = |label: &String| {
            let device = labels.iter().find(|(it, _)| it == label);
            device.map_or(0, |(_, name)| number(name))
        };
        Ok(Partitions {
            boot: boot.map(|(a, b)| [named(a), named(b)]),
            numbers: [number(&a), number(&b)],
            rootfs: [named(&a), named(&b)],
        })
    }

    /// What decides the slot.
    ///
    /// # Errors
    /// What was found instead, in words.
    pub(super) fn bootloader(&self) -> Result<(BootloaderKind, Option<PathBuf>), String> {
        let uboot = self.root.join("etc/fw_env.config").exists();
        let tryboot = self.autoboot();
        match (uboot, tryboot) {
            (true, None) => Ok((BootloaderKind::Uboot, None)),
            (false, Some(autoboot)) => Ok((BootloaderKind::Tryboot, Some(autoboot))),
            (true, Some(autoboot)) => Err(format!(
                "there is /etc/fw_env.config, as for U-Boot, and {}, as for the Raspberry Pi's own firmware (tryboot)",
                autoboot.display()
            )),
            (false, None) => Err(
                "there is neither /etc/fw_env.config, which says where U-Boot's environment is, nor an autoboot.txt of the \
                 Raspberry Pi's own firmware"
                    .to_owned(),
            ),
        }
    }

    /// The file by which the firmware boots one slot or the other.
    pub(super) fn autoboot(&self) -> Option<PathBuf> {
        AUTOBOOT.iter().find_map(|file| {
            let text = fs::read_to_string(self.root.join(file)).ok()?;
            let both = boot_partition(&text, false).zip(boot_partition(&text, true))?;
            (both.0 != both.1).then(|| Path::new("/").join(file))
        })
    }

    /// The links in a folder of udev's: their names, and the devices they lead to.
    fn links(&self, folder: &str) -> Vec<(String, String)> {
        let entries = fs::read_dir(self.root.join(folder)).into_iter().flatten();
        let mut links: Vec<_> = entries
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                Some((name, last(&fs::read_link(entry.path()).ok()?)?))
            })
            .collect();
        links.sort();
        links
    }

    /// What the kernel calls the devices that `/` is on.
    fn running_names(&self) -> Vec<String> {
        let name = |device: &u64| {
            let link = format!("sys/dev/block/{}:{}", major(*device), minor(*device));
            last(&fs::read_link(self.root.join(link)).ok()?)
        };
        self.running.iter().filter_map(name).collect()
    }

    /// Why there is no label to go by, with what there is to choose from.
    fn without_label(&self, running: &[String]) -> String {
        let Some(device) = running.first() else {
            return "the running root file system is on no partition that is known here".to_owned();
        };
        let ids = self.links("dev/disk/by-partuuid");
        let ids: Vec<_> = ids
            .iter()
            .map(|(id, name)| format!("{name} is PARTUUID={id}"))
            .collect();
        let ids = match ids.is_empty() {
            true => String::new(),
            false => format!("; {}", ids.join(", ")),
        };
        format!(
            "the running root file system is {device}, a partition without a name of its own, so that the spare one cannot \
             be told from others{ids}"
        )
    }
}

/// Whose variables a board's boot script reads, by those that its environment has.
pub(super) fn variables(has: impl Fn(&str) -> bool) -> BootVariables {
    if has("fwupdated_slot") {
        BootVariables::Fwupdated
    } else if has("BOOT_ORDER") {
        BootVariables::Rauc
    } else if has("mender_boot_part") {
        BootVariables::Mender
    } else {
        BootVariables::Fwupdated
    }
}

/// `label` and the one that differs in its last letter, slot a's first.
fn pair(label: &str) -> Option<[String; 2]> {
    let (a, b) = match label.chars().last()? {
        'a' | 'b' => ("a", "b"),
        'A' | 'B' => ("A", "B"),
        _ => return None,
    };
    let stem = &label[..label.len() - 1];
    Some([format!("{stem}{a}"), format!("{stem}{b}")])
}

/// The number at the end of a partition's name: 2 of `mmcblk0p2`.
fn number(device: &str) -> u32 {
    let digits = device.trim_end_matches(|c: char| c.is_ascii_digit());
    device[digits.len()..].parse().unwrap_or(0)
}

fn last(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use nix::sys::stat::makedev;

    use super::*;

    /// A board with these labelled partitions, whose second one runs.
    fn board(labels: &[(&str, &str)], files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let link = |file: String, target: String| {
            let file = dir.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            symlink(target, file).unwrap();
        };
        link(
            "sys/dev/block/179:2".to_owned(),
            "../../devices/x/mmcblk0/mmcblk0p2".to_owned(),
        );
        link(
            "dev/disk/by-partuuid/0-02".to_owned(),
            "../../mmcblk0p2".to_owned(),
        );
        for (label, device) in labels {
            link(
                format!("dev/disk/by-partlabel/{label}"),
                format!("../../{device}"),
            );
        }
        for (file, text) in files {
            let file = dir.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        dir
    }

    fn look(dir: &tempfile::TempDir) -> Board<'_> {
        const RUNNING: [u64; 1] = [makedev(179, 2)];
        Board {
            root: dir.path(),
            running: &RUNNING,
        }
    }

    #[test]
    fn the_slots_are_the_partition_that_runs_and_its_twin_by_name() {
        let names = |a: &str, b: &str| [format!("PARTLABEL={a}"), format!("PARTLABEL={b}")];
        let dir = board(
            &[
                ("data", "mmcblk0p5"),
                ("rootfs-b", "mmcblk0p2"),
                ("rootfs-a", "mmcblk0p3"),
            ],
            &[],
        );
        let found = look(&dir).partitions().unwrap();
        // Which of them runs makes no difference to their names.
        assert_eq!(found.rootfs, names("rootfs-a", "rootfs-b"));
        assert_eq!((found.boot, found.numbers), (None, [3, 2]));
        let dir = board(
            &[
                ("boot_a", "mmcblk0p6"),
                ("boot_b", "mmcblk0p7"),
                ("system_a", "mmcblk0p2"),
                ("system_b", "mmcblk0p3"),
            ],
            &[],
        );
        let found = look(&dir).partitions().unwrap();
        assert_eq!(found.rootfs, names("system_a", "system_b"));
        assert_eq!(found.boot, Some(names("boot_a", "boot_b")));
    }

    #[test]
    fn no_partition_is_guessed_to_be_the_spare_slot() {
        for (labels, expected) in [
            (&[][..], "without a name of its own"),
            (&[("data", "mmcblk0p3")], "mmcblk0p2 is PARTUUID=0-02"),
            (
                &[("rootfs", "mmcblk0p2"), ("other", "mmcblk0p3")],
                "`rootfs`",
            ),
            (
                &[("rootfs-a", "mmcblk0p2"), ("data-b", "mmcblk0p3")],
                "`rootfs-a`",
            ),
        ] {
            let dir = board(labels, &[]);
            let said = look(&dir).partitions().unwrap_err();
            assert!(said.contains(expected), "{labels:?}: {said}");
        }
        let dir = board(&[("rootfs-a", "mmcblk0p2"), ("rootfs-b", "mmcblk0p3")], &[]);
        let elsewhere = Board {
            root: dir.path(),
            running: &[],
        };
        assert!(elsewhere.partitions().is_err());
    }

    #[test]
    fn what_decides_the_slot_is_told_by_its_files() {
        const BOTH: &str = "[all]\nboot_partition=2\n[tryboot]\nboot_partition=3\n";
        let uboot = ("etc/fw_env.config", "/dev/x 0 0x4000\n");
        let dir = board(&[], &[uboot]);
        assert_eq!(look(&dir).bootloader(), Ok((BootloaderKind::Uboot, None)));
        let dir = board(&[], &[("boot/firmware/autoboot.txt", BOTH)]);
        let autoboot = PathBuf::from("/boot/firmware/autoboot.txt");
        assert_eq!(
            look(&dir).bootloader(),
            Ok((BootloaderKind::Tryboot, Some(autoboot)))
        );
        // One that boots the same partition always decides nothing.
        for files in [
            &[][..],
            &[("bootfs/autoboot.txt", "[all]\nboot_partition=2\n")],
            &[uboot, ("bootfs/autoboot.txt", BOTH)],
        ] {
            assert!(look(&board(&[], files)).bootloader().is_err(), "{files:?}");
        }
        let of = |names: &'static [&str]| variables(|name| names.contains(&name));
        assert_eq!(
            of(&["BOOT_ORDER", "fwupdated_slot"]),
            BootVariables::Fwupdated
        );
        assert_eq!(of(&["BOOT_ORDER"]), BootVariables::Rauc);
        assert_eq!(of(&["mender_boot_part"]), BootVariables::Mender);
        assert_eq!(of(&[]), BootVariables::Fwupdated);
    }
}

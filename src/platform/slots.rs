//! Which partitions the slots are, and which of them runs. Writes nothing.
//!
//! A slot's name must lead to one partition: one of a second disk that carries the same is never guessed at.
//! The running slot is found by the device number of `/`, never by configuration alone: a wrong line in a
//! file must not be enough to overwrite a running system. [`InactiveSlot`] is the proof that a slot does
//! not run; only [`Slots::inactive`] makes one.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use nix::sys::stat::{major, minor};

use crate::{
    config::{BootloaderConfig, SlotsConfig},
    update::{
        failure::{Class, Coded},
        ports::BootedFrom,
        slot::Slot,
    },
};

/// The kernel's id of the present boot (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// All block devices that there are, as the kernel tells of them.
const BLOCK_DEVICES: &str = "/sys/class/block";
/// Links to partitions by name and by id, as udev makes them.
const BY_LABEL: &str = "/dev/disk/by-partlabel";
const BY_ID: &str = "/dev/disk/by-partuuid";

/// Why the slots cannot be told apart.
#[derive(Debug, thiserror::Error)]
pub enum SlotsError {
    /// A slot's partition is not there.
    #[error(
        "slot {slot} is configured as {spec}, which does not exist; correct slots.{slot}.{part} (`lsblk -o NAME,PARTLABEL,PARTUUID` lists the partitions)"
    )]
    Missing {
        /// The slot.
        slot: Slot,
        /// Its partition: `rootfs` or `boot`.
        part: &'static str,
        /// As configured.
        spec: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Neither a block device nor a file.
    #[error("slot {slot} is {}, which is neither a block device nor a file; correct slots.{slot}.{part}", .path.display())]
    NotASlot {
        /// The slot.
        slot: Slot,
        /// Its partition: `rootfs` or `boot`.
        part: &'static str,
        /// Where it leads.
        path: PathBuf,
    },
    /// A file where the bootloader would boot a partition.
    #[error(
        "slot {slot} is the regular file {}, which the bootloader cannot boot: an image would be written there and another be \
         booted; set slots.{slot}.{part} to the partition, and remove the file if it lies in /dev", .path.display()
    )]
    RegularFile {
        /// The slot.
        slot: Slot,
        /// Its partition: `rootfs` or `boot`.
        part: &'static str,
        /// Where it leads.
        path: PathBuf,
    },
    /// A name that several partitions carry.
    #[error(
        "slot {slot} is configured as {spec}, a name that {partitions} all carry, so that the wrong one might be written; \
         take the other disk away, or give each partition its own name (`sfdisk --part-label`, `--part-uuid`)"
    )]
    Ambiguous {
        /// The slot.
        slot: Slot,
        /// As configured.
        spec: String,
        /// The partitions.
        partitions: String,
    },
    /// Both slots are one.
    #[error("two partitions of the slots are the same device ({}); give each slot its own partition", .0.display())]
    SameDevice(PathBuf),
    /// Neither slot runs.
    #[error("neither slot holds the running root file system (device {root}): slot a is {}, slot b is {}; correct slots.a.rootfs and slots.b.rootfs", .a.display(), .b.display())]
    NeitherRuns {
        /// Major and minor number of `/`.
        root: String,
        /// Slot a.
        a: PathBuf,
        /// Slot b.
        b: PathBuf,
    },
    /// The kernel command line says something else than the device of `/`.
    #[error(
        "the root file system is slot {root}, but the kernel command line says fwupdated.slot={claimed}; the boot script and slots.* disagree, correct one of them"
    )]
    CommandLine {
        /// By device number.
        root: Slot,
        /// By `fwupdated.slot=`.
        claimed: String,
    },
    /// The stand-in's file is missing or wrong.
    #[error("{} must hold the lines slot=a (or b) and boot_id=...; the stand-in for a boot writes it", .0.display())]
    BootedFile(PathBuf),
    /// A file of the kernel's cannot be read.
    #[error("{} cannot be read", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Coded for SlotsError {
    fn code(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "slot-missing",
            Self::NotASlot { .. } => "slot-not-a-device",
            Self::RegularFile { .. } => "slot-is-a-file",
            Self::Ambiguous { .. } => "slot-ambiguous",
            Self::SameDevice(_) => "slots-same-device",
            Self::NeitherRuns { .. } => "slots-neither-runs",
            Self::CommandLine { .. } => "slots-command-line",
            Self::BootedFile(_) => "slots-booted-file",
            Self::Read { .. } => "slots-read-failed",
        }
    }

    fn class(&self) -> Class {
        Class::Final
    }
}

/// A slot that does not run. Holding one is the permission to write it.
#[derive(Debug)]
pub struct InactiveSlot {
    slot: Slot,
    path: PathBuf,
    boot: Option<PathBuf>,
    running: Vec<PathBuf>,
}

impl InactiveSlot {
    /// Which slot.
    #[must_use]
    pub fn slot(&self) -> Slot {
        self.slot
    }

    /// The block device or file of its root file system.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The block device or file with its boot files, if it has its own.
    #[must_use]
    pub fn boot(&self) -> Option<&Path> {
        self.boot.as_deref()
    }

    /// The block devices or files of the other slot, which runs: for reading.
    #[must_use]
    pub fn running(&self) -> &[PathBuf] {
        &self.running
    }
}

/// Both slots of this board.
#[derive(Debug, Clone)]
pub struct Slots {
    a: String,
    b: String,
    boot: Option<[String; 2]>,
    /// Slots may be regular files, and `booted_file` tells which runs.
    stand_in: bool,
    booted_file: Option<PathBuf>,
    block_devices: PathBuf,
}

/// A device or file, by what the kernel knows it by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Identity {
    Device(u64),
    File { dev: u64, ino: u64 },
}

impl Identity {
    fn of(meta: &fs::Metadata) -> Option<Self> {
        if meta.file_type().is_block_device() {
            Some(Self::Device(meta.rdev()))
        } else if meta.is_file() {
            let (dev, ino) = (meta.dev(), meta.ino());
            Some(Self::File { dev, ino })
        } else {
            None
        }
    }

    /// Where its bytes lie: a loop device's in the file behind it, from an offset on.
    fn bytes(self) -> (Self, u64) {
        let Self::Device(number) = self else {
            return (self, 0);
        };
        let (major, minor) = (major(number), minor(number));
        let folder = PathBuf::from(format!("/sys/dev/block/{major}:{minor}/loop"));
        let behind = || {
            let file = fs::read_to_string(folder.join("backing_file")).ok()?;
            let file = Self::of(&fs::metadata(file.trim_end_matches('\n')).ok()?)?;
            let offset = fs::read_to_string(folder.join("offset")).ok()?;
            Some((file, offset.trim().parse().ok()?))
        };
        behind().unwrap_or((self, 0))
    }
}

/// The kernel counts the size of a device in these, whatever its sectors are.
const SYSFS_SECTOR: u64 = 512;

/// Bytes that the device or file at `path` holds. Opens nothing: a slot that is just written must not be disturbed.
///
/// # Errors
/// The path or the kernel's word about it cannot be read.
pub fn size(path: &Path) -> io::Result<u64> {
    let meta = fs::metadata(path)?;
    if !meta.file_type().is_block_device() {
        return Ok(meta.len());
    }
    let (major, minor) = (major(meta.rdev()), minor(meta.rdev()));
    let sectors = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/size"))?;
    let sectors: u64 = sectors.trim().parse().map_err(io::Error::other)?;
    Ok(sectors * SYSFS_SECTOR)
}

impl Slots {
    /// Checks that both slots exist, differ, and are what the bootloader boots.
    ///
    /// # Errors
    /// [`SlotsError`].
    pub fn open(slots: &SlotsConfig, bootloader: &BootloaderConfig) -> Result<Self, SlotsError> {
        Self::among(Path::new(BLOCK_DEVICES), slots, bootloader)
    }

    fn among(
        block_devices: &Path,
        slots: &SlotsConfig,
        bootloader: &BootloaderConfig,
    ) -> Result<Self, SlotsError> {
        let slots = Self {
            a: slots.a.clone(),
            b: slots.b.clone(),
            boot: slots.boot.clone(),
            stand_in: bootloader.is_stand_in(),
            booted_file: bootloader.booted_file.clone(),
            block_devices: block_devices.to_owned(),
        };
        slots.resolve_both()?;
        slots.resolve_boot()?;
        Ok(slots)
    }

    /// The slot that runs, and the id of this boot.
    ///
    /// # Errors
    /// [`SlotsError`].
    pub fn booted(&self) -> Result<BootedFrom, SlotsError> {
        match (self.stand_in, &self.booted_file) {
            (true, Some(file)) => booted_by_file(file),
            (true, None) => Err(SlotsError::BootedFile(PathBuf::from(
                "bootloader.booted_file",
            ))),
            (false, _) => {
                let boot_id = read(Path::new(BOOT_ID))?.trim().to_owned();
                Ok(BootedFrom {
                    slot: self.booted_by_root()?,
                    boot_id,
                })
            }
        }
    }

    /// The boot partitions of slots a and b, where they have their own.
    ///
    /// # Errors
    /// [`SlotsError`].
    pub fn boot(&self) -> Result<Option<[PathBuf; 2]>, SlotsError> {
        Ok(self.resolve_boot()?.map(|both| both.map(|(path, _)| path)))
    }

    /// The slot that does not run, looked up anew: device names may change while the system runs.
    ///
    /// # Errors
    /// [`SlotsError`].
    pub fn inactive(&self) -> Result<InactiveSlot, SlotsError> {
        let slot = self.booted()?.slot.other();
        let [a, b] = self.resolve_both()?;
        let (path, other) = match slot {
            Slot::A => (a.0, b.0),
            Slot::B => (b.0, a.0),
        };
        let boot = self.resolve_boot()?.map(|[a, b]| match slot {
            Slot::A => (a.0, b.0),
            Slot::B => (b.0, a.0),
        });
        let (boot, other_boot) = boot.unzip();
        Ok(InactiveSlot {
            slot,
            path,
            boot,
            running: other_boot.into_iter().chain([other]).collect(),
        })
    }

    fn resolve_both(&self) -> Result<[(PathBuf, Identity); 2], SlotsError> {
        let a = self.resolve(Slot::A, "rootfs", &self.a)?;
        let b = self.resolve(Slot::B, "rootfs", &self.b)?;
        if a.1.bytes() == b.1.bytes() {
            return Err(SlotsError::SameDevice(a.0));
        }
        Ok([a, b])
    }

    /// The boot partitions, none of which is another partition of a slot.
    fn resolve_boot(&self) -> Result<Option<[(PathBuf, Identity); 2]>, SlotsError> {
        let Some([a, b]) = &self.boot else {
            return Ok(None);
        };
        let boot = [
            self.resolve(Slot::A, "boot", a)?,
            self.resolve(Slot::B, "boot", b)?,
        ];
        let mut seen: Vec<_> = self.resolve_both()?.map(|(_, id)| id.bytes()).into();
        for (path, identity) in &boot {
            if seen.contains(&identity.bytes()) {
                return Err(SlotsError::SameDevice(path.clone()));
            }
            seen.push(identity.bytes());
        }
        Ok(Some(boot))
    }

    /// Follows a specification to the device or file itself.
    fn resolve(
        &self,
        slot: Slot,
        part: &'static str,
        spec: &str,
    ) -> Result<(PathBuf, Identity), SlotsError> {
        let link = match spec.split_once('=') {
            Some(("PARTUUID", id)) => Path::new(BY_ID).join(id.to_lowercase()),
            Some(("PARTLABEL", label)) => Path::new(BY_LABEL).join(udev_name(label)),
            _ => PathBuf::from(spec),
        };
        // Of several partitions that carry the name, the link leads to whichever came last.
        let partitions = carriers(&self.block_devices, &link);
        if partitions.len() > 1 {
            return Err(SlotsError::Ambiguous {
                slot,
                spec: spec.to_owned(),
                partitions: partitions.join(" and "),
            });
        }
        let missing = |source| SlotsError::Missing {
            slot,
            part,
            spec: spec.to_owned(),
            source,
        };
        let path = fs::canonicalize(link).map_err(missing)?;
        let meta = fs::metadata(&path).map_err(missing)?;
        match (Identity::of(&meta), self.stand_in) {
            (Some(Identity::File { .. }), false) => {
                Err(SlotsError::RegularFile { slot, part, path })
            }
            (Some(identity), _) => Ok((path, identity)),
            (None, _) => Err(SlotsError::NotASlot { slot, part, path }),
        }
    }

    /// The slot whose device number `/` has.
    fn booted_by_root(&self) -> Result<Slot, SlotsError> {
        let [a, b] = self.resolve_both()?;
        let devices = root_devices()?;
        let root = devices[0];
        let holds = |identity: Identity| match identity {
            Identity::Device(number) => devices.contains(&number),
            Identity::File { .. } => false,
        };
        let slot = match (holds(a.1), holds(b.1)) {
            (true, false) => Slot::A,
            (false, true) => Slot::B,
            (true, true) | (false, false) => {
                return Err(SlotsError::NeitherRuns {
                    root: format!("{}:{}", major(root), minor(root)),
                    a: a.0,
                    b: b.0,
                });
            }
        };
        let command_line = read(Path::new("/proc/cmdline"))?;
        let claimed = command_line
            .split_whitespace()
            .find_map(|word| word.strip_prefix("fwupdated.slot="));
        match claimed {
            Some(claimed) if claimed != slot.name() => Err(SlotsError::CommandLine {
                root: slot,
                claimed: claimed.to_owned(),
            }),
            _ => Ok(slot),
        }
    }
}

/// The numbers of the devices that `/` is on: its own first, then those below an overlay.
///
/// # Errors
/// `slots-read-failed`.
pub fn root_devices() -> Result<Vec<u64>, SlotsError> {
    let mounts = read(Path::new("/proc/self/mountinfo"))?;
    let root = fs::metadata("/").map_err(|source| SlotsError::Read {
        path: "/".into(),
        source,
    })?;
    let mut devices = vec![root.dev()];
    devices.extend(overlay_lower_devices(&mounts));
    Ok(devices)
}

/// The devices below an overlay that is mounted as `/`: of every other mount whose mount point is one of
/// the overlay's `lowerdir` (proc(5), mountinfo).
fn overlay_lower_devices(mountinfo: &str) -> Vec<u64> {
    struct Mount<'a> {
        device: u64,
        point: &'a str,
        kind: &'a str,
        options: &'a str,
    }
    let parse = |line| -> Option<Mount<'_>> {
        let line: &str = line;
        let (front, back) = line.split_once(" - ")?;
        let mut front = front.split(' ').skip(2);
        let (major, minor) = front.next()?.split_once(':')?;
        let point = front.nth(1)?;
        let mut back = back.split(' ');
        let kind = back.next()?;
        let options = back.nth(1).unwrap_or_default();
        let device = nix::sys::stat::makedev(major.parse().ok()?, minor.parse().ok()?);
        Some(Mount {
            device,
            point,
            kind,
            options,
        })
    };
    let mounts: Vec<_> = mountinfo.lines().filter_map(parse).collect();
    let Some(root) = mounts
        .iter()
        .rev()
        .find(|m| m.point == "/" && m.kind == "overlay")
    else {
        return Vec::new();
    };
    let lower = root
        .options
        .split(',')
        .find_map(|o| o.strip_prefix("lowerdir="))
        .unwrap_or_default();
    let folders: Vec<_> = lower.split(':').collect();
    mounts
        .iter()
        .filter(|m| m.kind != "overlay" && folders.contains(&m.point))
        .map(|m| m.device)
        .collect()
}

/// The partitions below `block_devices` that carry the name or id that `link` stands for, as udev spells it. Empty
/// for any other path, and where the kernel does not tell: the id it tells since Linux 6.9, and of a name only
/// ASCII as it is.
fn carriers(block_devices: &Path, link: &Path) -> Vec<String> {
    let key = match link.parent().and_then(Path::to_str) {
        Some(BY_LABEL) => "PARTNAME=",
        Some(BY_ID) => "PARTUUID=",
        _ => return Vec::new(),
    };
    let carries = |about: &[u8]| {
        let about = String::from_utf8_lossy(about);
        let value = about.lines().find_map(|line| line.strip_prefix(key));
        value.is_some_and(|value| {
            let name = match key {
                "PARTUUID=" => value.to_lowercase(),
                _ => udev_name(value),
            };
            link.file_name() == Some(name.as_ref())
        })
    };
    let devices = fs::read_dir(block_devices).into_iter().flatten().flatten();
    let mut names: Vec<_> = devices
        // What goes away meanwhile is no partition any more.
        .filter(|device| fs::read(device.path().join("uevent")).is_ok_and(|about| carries(&about)))
        .map(|device| format!("/dev/{}", device.file_name().to_string_lossy()))
        .collect();
    names.sort();
    names
}

/// A label as udev spells it in a link's name: everything but letters, digits and `#+-.:=@_` as `\xNN`.
fn udev_name(label: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "#+-.:=@_".contains(c) || !c.is_ascii();
    let mut name = String::new();
    for c in label.chars() {
        if plain(c) {
            name.push(c)
        } else {
            name.push_str(&format!("\\x{:02x}", u32::from(c)))
        }
    }
    name
}

fn booted_by_file(file: &Path) -> Result<BootedFrom, SlotsError> {
    let text = read(file)?;
    let value = |key: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
        Some(line.trim()).filter(|value| !value.is_empty())
    };
    let wrong = || SlotsError::BootedFile(file.to_owned());
    let slot = value("slot")
        .and_then(|slot| slot.parse().ok())
        .ok_or_else(wrong)?;
    let boot_id = value("boot_id").ok_or_else(wrong)?.to_owned();
    Ok(BootedFrom { slot, boot_id })
}

fn read(path: &Path) -> Result<String, SlotsError> {
    fs::read_to_string(path).map_err(|source| SlotsError::Read {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::BootloaderKind;

    struct Board {
        dir: tempfile::TempDir,
    }

    impl Board {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            for slot in Slot::ALL {
                fs::write(dir.path().join(slot.name()), "x").unwrap();
            }
            let board = Self { dir };
            board.booted("slot=a\nboot_id=1\n");
            board
        }

        fn booted(&self, text: &str) {
            fs::write(self.dir.path().join("booted"), text).unwrap();
        }

        fn open(&self, a: &str, b: &str, kind: BootloaderKind) -> Result<Slots, SlotsError> {
            self.open_among(Path::new(BLOCK_DEVICES), a, b, kind)
        }

        fn open_among(
            &self,
            block_devices: &Path,
            a: &str,
            b: &str,
            kind: BootloaderKind,
        ) -> Result<Slots, SlotsError> {
            self.open_with(block_devices, [a, b], None, kind)
        }

        fn open_with(
            &self,
            block_devices: &Path,
            [a, b]: [&str; 2],
            boot: Option<[&str; 2]>,
            kind: BootloaderKind,
        ) -> Result<Slots, SlotsError> {
            let path = |name: &str| {
                if name.contains(['/', '=']) {
                    name.to_owned()
                } else {
                    self.dir.path().join(name).display().to_string()
                }
            };
            let bootloader = BootloaderConfig {
                variables: crate::config::BootVariables::Fwupdated,
                partitions: [2, 3],
                mark_file: None,
                kind,
                env_config: PathBuf::new(),
                lock_file: PathBuf::new(),
                tries: 3,
                autoboot: PathBuf::new(),
                device_tree: PathBuf::new(),
                booted_file: Some(self.dir.path().join("booted")),
                reboot_command: None,
            };
            Slots::among(
                block_devices,
                &SlotsConfig {
                    a: path(a),
                    b: path(b),
                    boot: boot.map(|boot| boot.map(path)),
                },
                &bootloader,
            )
        }
    }

    #[test]
    fn the_slot_to_write_is_the_one_that_does_not_run() {
        let board = Board::new();
        let slots = board.open("a", "b", BootloaderKind::File).unwrap();
        assert_eq!(slots.inactive().unwrap().slot(), Slot::B);
        board.booted("slot=b\nboot_id=2\n");
        let inactive = slots.inactive().unwrap();
        assert_eq!(
            (
                inactive.slot(),
                inactive.path().file_name().unwrap().to_str()
            ),
            (Slot::A, Some("a"))
        );
        assert_eq!(slots.booted().unwrap().boot_id, "2");
    }

    #[test]
    fn two_names_for_one_device_are_refused() {
        let board = Board::new();
        std::os::unix::fs::symlink(board.dir.path().join("a"), board.dir.path().join("link"))
            .unwrap();
        fs::hard_link(board.dir.path().join("a"), board.dir.path().join("hard")).unwrap();
        for other in ["a", "link", "hard"] {
            let error = board.open("a", other, BootloaderKind::File).unwrap_err();
            assert_eq!(error.code(), "slots-same-device", "{other}");
        }
    }

    #[test]
    fn a_boot_partition_goes_with_its_slot_and_is_its_own() {
        let board = Board::new();
        for name in ["boot-a", "boot-b"] {
            fs::write(board.dir.path().join(name), "x").unwrap();
        }
        let open = |boot| {
            let (devices, kind) = (Path::new(BLOCK_DEVICES), BootloaderKind::File);
            board.open_with(devices, ["a", "b"], Some(boot), kind)
        };
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        let slots = open(["boot-a", "boot-b"]).unwrap();
        for (booted, boot, running) in [
            ("a", "boot-b", ["boot-a", "a"]),
            ("b", "boot-a", ["boot-b", "b"]),
        ] {
            board.booted(&format!("slot={booted}\nboot_id=1\n"));
            let inactive = slots.inactive().unwrap();
            assert_eq!(name(inactive.boot().unwrap()), boot);
            let others: Vec<_> = inactive.running().iter().map(|path| name(path)).collect();
            assert_eq!(others, running);
        }
        for boot in [["boot-a", "boot-a"], ["a", "boot-b"], ["boot-a", "a"]] {
            assert_eq!(
                open(boot).unwrap_err().code(),
                "slots-same-device",
                "{boot:?}"
            );
        }
        let error = open(["boot-a", "nowhere"]).unwrap_err();
        assert_eq!(error.code(), "slot-missing");
        assert!(error.to_string().contains("slots.b.boot"), "{error}");
    }

    #[test]
    fn a_missing_partition_and_a_folder_are_named() {
        let board = Board::new();
        let code = |b: &str| board.open("a", b, BootloaderKind::File).unwrap_err().code();
        assert_eq!(code("nowhere"), "slot-missing");
        assert_eq!(code("PARTLABEL=no such label"), "slot-missing");
        assert_eq!(code("/tmp"), "slot-not-a-device");
    }

    #[test]
    fn with_u_boot_a_file_is_no_slot() {
        let board = Board::new();
        let error = board.open("a", "b", BootloaderKind::Uboot).unwrap_err();
        assert_eq!(error.code(), "slot-is-a-file");
        assert!(error.to_string().contains("slots.a.rootfs"), "{error}");
    }

    /// A made-up `/sys/class/block`.
    fn block_devices(devices: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, about) in devices {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("uevent"), about).unwrap();
        }
        // Gone while we look.
        fs::create_dir(dir.path().join("sdz1")).unwrap();
        dir
    }

    const CLONED: &[(&str, &str)] = &[
        ("mmcblk0", "MAJOR=179\nDEVNAME=mmcblk0\nDEVTYPE=disk\n"),
        ("mmcblk0p2", "PARTN=2\nPARTNAME=rootfs-a\nPARTUUID=0A-01\n"),
        ("mmcblk0p3", "PARTN=3\nPARTNAME=root fs\nPARTUUID=0a-02\n"),
        ("mmcblk0p4", "PARTN=4\nPARTNAME=data\nPARTUUID=0a-03\n"),
        ("sda1", "PARTN=1\nPARTNAME=rootfs-a\nPARTUUID=0a-01\n"),
        ("sda2", "PARTN=2\nPARTNAME=root fs\nPARTUUID=0b-02\n"),
        ("sda3", "PARTN=3\nPARTNAME=data-2\n"),
    ];

    #[test]
    fn a_name_that_two_partitions_carry_is_no_slot() {
        let board = Board::new();
        let devices = block_devices(CLONED);
        for spec in [
            "PARTLABEL=rootfs-a",
            "/dev/disk/by-partlabel/rootfs-a",
            "PARTUUID=0A-01",
            "/dev/disk/by-partuuid/0a-01",
            "PARTLABEL=root fs",
            "/dev/disk/by-partlabel/root\\x20fs",
        ] {
            for kind in [BootloaderKind::Uboot, BootloaderKind::File] {
                let opened = board.open_among(devices.path(), spec, "b", kind);
                let error = opened.unwrap_err();
                assert_eq!(error.code(), "slot-ambiguous", "{spec}");
                let text = error.to_string();
                assert!(text.contains(spec) && text.contains("/dev/sda"), "{text}");
            }
        }
    }

    #[test]
    fn a_name_that_one_partition_or_none_carries_is_looked_up_as_ever() {
        let devices = block_devices(CLONED);
        let found = |link: &str| carriers(devices.path(), Path::new(link));
        assert_eq!(found("/dev/disk/by-partlabel/data"), ["/dev/mmcblk0p4"]);
        assert_eq!(found("/dev/disk/by-partuuid/0b-02"), ["/dev/sda2"]);
        assert!(found("/dev/disk/by-partlabel/rootfs").is_empty());
        assert!(found("/dev/disk/by-id/rootfs-a").is_empty());
        assert!(found("/dev/mmcblk0p2").is_empty());
        let nothing = carriers(&devices.path().join("nowhere"), Path::new("/dev/x"));
        assert!(nothing.is_empty());
        let board = Board::new();
        let spec = "PARTLABEL=data";
        let opened = board.open_among(devices.path(), spec, "b", BootloaderKind::File);
        assert_eq!(opened.unwrap_err().code(), "slot-missing");
    }

    #[test]
    fn a_stand_in_s_file_must_be_whole() {
        let board = Board::new();
        let slots = board.open("a", "b", BootloaderKind::File).unwrap();
        for text in ["", "slot=c\nboot_id=1", "slot=a\n", "boot_id=1"] {
            board.booted(text);
            assert_eq!(
                slots.booted().unwrap_err().code(),
                "slots-booted-file",
                "{text:?}"
            );
        }
    }

    #[test]
    fn an_overlay_s_lower_layer_tells_the_slot() {
        let mounts = "22 1 179:2 / /media/root-ro ro,relatime - ext4 /dev/mmcblk0p2 ro\n\
                      23 1 0:30 / /media/root-rw rw - tmpfs tmpfs rw\n\
                      24 1 0:31 / / rw,relatime - overlay overlay rw,lowerdir=/media/root-ro,upperdir=/x\n";
        assert_eq!(
            overlay_lower_devices(mounts),
            [nix::sys::stat::makedev(179, 2)]
        );
        assert!(overlay_lower_devices("22 1 179:2 / / ro - ext4 /dev/mmcblk0p2 ro\n").is_empty());
    }

    #[test]
    fn labels_are_spelled_as_udev_does() {
        assert_eq!(udev_name("rootfs-a"), "rootfs-a");
        assert_eq!(udev_name("my root/a"), "my\\x20root\\x2fa");
    }
}

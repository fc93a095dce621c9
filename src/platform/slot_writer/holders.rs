//! Who holds a slot: refuses one that runs the system or that someone else uses, and says who.

use std::{
    collections::BTreeSet,
    fs::{self, File, Metadata},
    io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use nix::sys::stat::{major, minor};

use super::SlotWriteError;
use crate::platform::busy::patiently;

/// A device is named by its number everywhere here: names and links may lie.
fn number(rdev: u64) -> String {
    format!("{}:{}", major(rdev), minor(rdev))
}

/// Refuses the device mounted as `/`. Independent of how the caller chose the slot, and of O_EXCL.
pub(super) fn refuse_running_root(path: &Path, meta: &Metadata) -> Result<(), SlotWriteError> {
    let mounts = mounts().map_err(|source| SlotWriteError::Open {
        device: path.to_owned(),
        source: io::Error::other(format!(
            "cannot tell whether it is the running root, as /proc/self/mountinfo cannot be read: {source}"
        )),
    })?;
    let is_root = |mount: &Mount| {
        if meta.file_type().is_block_device() {
            // File systems with a device number of their own (btrfs) name the device as their source.
            mount.device == number(meta.rdev())
                || fs::metadata(&mount.source).is_ok_and(|source| {
                    source.file_type().is_block_device() && source.rdev() == meta.rdev()
                })
        } else {
            loops_over(meta)
                .iter()
                .any(|(_, number)| *number == mount.device)
        }
    };
    match mounts
        .iter()
        .find(|mount| mount.point == Path::new("/") && is_root(mount))
    {
        Some(_) => Err(SlotWriteError::RunningRoot {
            device: path.to_owned(),
        }),
        None => Ok(()),
    }
}

/// The same promise as O_EXCL gives for devices: one writer, and nobody has the file attached as a loop
/// device, where it may be mounted.
pub(super) fn refuse_held_file(
    path: &Path,
    file: &File,
    meta: &Metadata,
) -> Result<(), SlotWriteError> {
    let held = |holder: String| SlotWriteError::Held {
        device: path.to_owned(),
        holder,
    };
    if let Some(holder) = attachments(meta).into_iter().next() {
        return Err(held(holder));
    }
    let is_locked = |error: &fs::TryLockError| matches!(error, fs::TryLockError::WouldBlock);
    patiently(|| file.try_lock(), is_locked).map_err(|error| match error {
        fs::TryLockError::WouldBlock => held("another program has it locked".to_owned()),
        fs::TryLockError::Error(source) => SlotWriteError::Open {
            device: path.to_owned(),
            source,
        },
    })
}

/// Loop devices (name and number) whose backing file is the one with `meta`.
fn loops_over(meta: &Metadata) -> Vec<(String, String)> {
    let Ok(blocks) = fs::read_dir("/sys/block") else {
        return Vec::new();
    };
    let over = |dir: PathBuf| {
        let backing = fs::read_to_string(dir.join("loop/backing_file")).ok()?;
        let backing = fs::metadata(backing.trim_end_matches('\n')).ok()?;
        let name = dir.file_name()?.to_str()?.to_owned();
        let number = fs::read_to_string(dir.join("dev")).ok()?;
        ((backing.dev(), backing.ino()) == (meta.dev(), meta.ino()))
            .then(|| (name, number.trim().to_owned()))
    };
    blocks
        .flatten()
        .filter_map(|entry| over(entry.path()))
        .collect()
}

/// Who holds the device or file at `path` as far as the kernel tells, in words. Opens nothing, so that it disturbs
/// nobody; a program that has the device open exclusively is not seen.
///
/// # Errors
/// When there is no such thing.
pub fn who_holds(path: &Path) -> io::Result<Vec<String>> {
    let meta = fs::metadata(path)?;
    if meta.file_type().is_block_device() {
        return Ok(holders_of(meta.rdev()).into_iter().collect());
    }
    Ok(attachments(&meta))
}

/// The loop devices over the file with `meta`, in words.
fn attachments(meta: &Metadata) -> Vec<String> {
    let attached = |(name, number): (String, String)| {
        let mounts = mounted(&number).into_iter();
        let mounts = mounts.map(|mount| format!(", mounted at {}", mount.display()));
        format!(
            "it is attached as /dev/{name}{}",
            mounts.collect::<String>()
        )
    };
    loops_over(meta).into_iter().map(attached).collect()
}

/// Who holds the device `rdev`, in words: mounts, swap, device-mapper and the like, its partitions.
pub(super) fn holder_of(rdev: u64) -> String {
    let found = holders_of(rdev);
    if found.is_empty() {
        "another program has opened it exclusively".to_owned()
    } else {
        found.into_iter().collect::<Vec<_>>().join(", ")
    }
}

fn holders_of(rdev: u64) -> BTreeSet<String> {
    let device = number(rdev);
    let dir = PathBuf::from(format!("/sys/dev/block/{device}"));
    let mut found = BTreeSet::new();
    let mut describe = |what: &str, number: &str, dir: &Path| {
        for point in mounted(number) {
            found.insert(format!("{what} is mounted at {}", point.display()));
        }
        for holder in names_in(&dir.join("holders")) {
            found.insert(format!("{what} is in use by /dev/{holder}"));
        }
        if swaps().contains(number) {
            found.insert(format!("{what} is in use as swap"));
        }
    };
    describe("it", &device, &dir);
    for name in names_in(&dir) {
        let part = dir.join(&name);
        if part.join("partition").exists()
            && let Ok(number) = fs::read_to_string(part.join("dev"))
        {
            describe(&format!("its partition /dev/{name}"), number.trim(), &part);
        }
    }
    found
}

fn names_in(dir: &Path) -> Vec<String> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// Device numbers of active swap devices.
fn swaps() -> BTreeSet<String> {
    fs::read_to_string("/proc/swaps")
        .unwrap_or_default()
        .lines()
        .skip(1)
        .filter_map(|line| fs::metadata(unescape(line.split_whitespace().next()?)).ok())
        .filter(|meta| meta.file_type().is_block_device())
        .map(|meta| number(meta.rdev()))
        .collect()
}

fn mounted(device: &str) -> Vec<PathBuf> {
    mounts()
        .unwrap_or_default()
        .into_iter()
        .filter(|mount| mount.device == device)
        .map(|mount| mount.point)
        .collect()
}

#[derive(Debug, PartialEq, Eq)]
struct Mount {
    /// `major:minor`.
    device: String,
    point: PathBuf,
    source: PathBuf,
}

fn mounts() -> io::Result<Vec<Mount>> {
    Ok(parse_mountinfo(&fs::read_to_string(
        "/proc/self/mountinfo",
    )?))
}

/// `/proc/self/mountinfo`, as proc_pid_mountinfo(5) describes it; lines that do not fit are left out.
fn parse_mountinfo(text: &str) -> Vec<Mount> {
    let parse = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ');
        let device = left.nth(2)?.to_owned();
        let point = unescape(left.nth(1)?);
        let source = unescape(right.split(' ').nth(1)?);
        Some(Mount {
            device,
            point,
            source,
        })
    };
    text.lines().filter_map(parse).collect()
}

/// Undoes the kernel's octal escapes for space, tab, newline and backslash.
fn unescape(text: &str) -> PathBuf {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        let code = after.get(..3).and_then(|d| u8::from_str_radix(d, 8).ok());
        match code {
            Some(code) if code.is_ascii() => {
                out.push(char::from(code));
                rest = &after[3..];
            }
            _ => {
                out.push('\\');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    PathBuf::from(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn mountinfo_gives_number_point_and_source() {
        let text = "36 35 98:0 /mnt1 /mnt\\040two rw,noatime master:1 - ext3 /dev/root\\134x rw\n\
                    22 1 0:21 / / rw shared:1 shared:2 - btrfs /dev/mmcblk0p2 rw\n\
                    garbage\n";
        let mounts = parse_mountinfo(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0].device, "98:0");
        assert_eq!(mounts[0].point, Path::new("/mnt two"));
        assert_eq!(mounts[0].source, Path::new("/dev/root\\x"));
        assert_eq!(mounts[1].point, Path::new("/"));
        assert_eq!(mounts[1].source, Path::new("/dev/mmcblk0p2"));
    }

    #[test]
    fn this_machine_has_a_root_in_its_mountinfo() {
        assert!(mounts().unwrap().iter().any(|m| m.point == Path::new("/")));
    }

    proptest! {
        #[test]
        fn no_mountinfo_panics(text in "[ -~\\\\é\n]{0,200}") {
            parse_mountinfo(&text);
            unescape(&text);
        }
    }
}

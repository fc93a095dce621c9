//! A partition of a disk image, mounted for a moment.

use std::{path::Path, process::Command};

use super::rig::run;

/// Does something to the ext4 file system at byte `start` of `image`, `size` bytes long, while it is mounted.
pub(crate) fn with_mounted(image: &Path, start: u64, size: u64, work: impl FnOnce(&Path)) {
    let place = tempfile::tempdir().unwrap();
    let options = format!("loop,offset={start},sizelimit={size}");
    run(Command::new("mount")
        .args(["-t", "ext4", "-o", &options])
        .args([image, place.path()]));
    work(place.path());
    run(Command::new("umount").arg(place.path()));
}

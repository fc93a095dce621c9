//! The slot writer on real files and loop devices: 512- and 4096-byte sectors, odd sizes, mounts, holders.
//!
//! Needs root and `losetup`; without them the tests that use loop devices say so and pass.

#[path = "support/skip.rs"]
mod skip;

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write},
    ops::ControlFlow,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
};

use fwupdated::{
    platform::slot_writer::{
        HEAD_BYTES, SlotPart, SlotSet, SlotWriter, UNIT, WriteReport, read_back, read_back_parts,
    },
    update::{digest::Sha256, failure::Coded},
};
use tempfile::TempDir;

/// Bytes that differ from place to place and from seed to seed.
fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(args)
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    } else {
        Err(format!(
            "{program} {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        ))
    }
}

/// A file in `dir` with `contents`.
fn file(dir: &TempDir, contents: &[u8]) -> PathBuf {
    let path = dir.path().join("slot.img");
    fs::write(&path, contents).unwrap();
    path
}

/// An attached loop device; detached when dropped.
struct Loop(PathBuf);

impl Loop {
    /// `None`, after saying why, where loop devices cannot be had.
    fn over(backing: &Path, sector: u32) -> Option<Self> {
        let sector = sector.to_string();
        let backing = backing.to_str().unwrap();
        match run("losetup", &["-f", "--show", "-b", &sector, backing]) {
            Ok(device) => Some(Self(device.into())),
            Err(error) => {
                skip::skipped(format_args!("no loop device ({error})"));
                None
            }
        }
    }

    fn text(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if let Err(error) = run("losetup", &["-d", self.text()]) {
            eprintln!("{error}");
        }
    }
}

/// A mount; taken down when dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn at(device: &Path, point: &Path) -> Result<Self, String> {
        run(
            "mount",
            &[
                "-o",
                "ro",
                device.to_str().unwrap(),
                point.to_str().unwrap(),
            ],
        )?;
        Ok(Self(point.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run("umount", &[self.0.to_str().unwrap()]).unwrap();
    }
}

/// Compares and writes what differs, as an installation does.
fn install(slot: &Path, image: &[u8]) -> WriteReport {
    let mut writer = SlotWriter::open(slot).unwrap();
    writer.check_fits(image.len() as u64).unwrap();
    let mut held = vec![0; 100_000];
    for (number, wanted) in image.chunks(100_000).enumerate() {
        let offset = number as u64 * 100_000;
        let held = &mut held[..wanted.len()];
        writer.read_at(offset, held).unwrap();
        if held != wanted {
            writer.write_at(offset, wanted).unwrap();
        }
    }
    writer.finish().unwrap()
}

fn digest(slot: &Path, length: u64) -> Option<Sha256> {
    read_back(slot, length, &mut |_| ControlFlow::Continue(())).unwrap()
}

/// `image` over a slot full of other bytes: it is there, what lies behind it is untouched, and a second
/// installation writes nothing.
fn check_install(slot: &Path, backing: &Path, image: &[u8]) {
    let before = fs::read(backing).unwrap();
    let report = install(slot, image);
    assert!(report.bytes_written >= image.len() as u64);
    assert_eq!(
        digest(slot, image.len() as u64),
        Some(Sha256::of(image)),
        "{}",
        slot.display()
    );
    let after = fs::read(backing).unwrap();
    assert_eq!(after.len(), before.len());
    assert!(after[..image.len()] == *image);
    assert!(after[image.len()..] == before[image.len()..]);

    let again = install(slot, image);
    assert_eq!((again.bytes_written, again.writes), (0, 0));

    let mut changed = image.to_vec();
    changed[777_777] ^= 1;
    let report = install(slot, &changed);
    assert_eq!(digest(slot, image.len() as u64), Some(Sha256::of(&changed)));
    assert!(report.bytes_written < 2 * HEAD_BYTES + 110_000);
}

#[test]
fn regular_files_of_any_length_hold_what_was_written() {
    for odd in [0, 1, 511, 512, 4095] {
        let dir = TempDir::new().unwrap();
        let slot = file(&dir, &pattern(1, 5_000_000 / 4096 * 4096 + odd));
        check_install(&slot, &slot, &pattern(2, 3_333_333));
    }
}

#[test]
fn files_on_tmpfs_work_without_direct_io() {
    let shm = Path::new("/dev/shm");
    if !shm.is_dir() {
        skip::skipped(format_args!("no /dev/shm"));
        return;
    }
    let dir = TempDir::new_in(shm).unwrap();
    let slot = file(&dir, &pattern(1, 4_000_001));
    check_install(&slot, &slot, &pattern(2, 4_000_001));
}

#[test]
fn loop_devices_with_either_sector_size_hold_what_was_written() {
    for sector in [512, 4096] {
        let dir = TempDir::new().unwrap();
        let backing = file(&dir, &pattern(1, 5_000_000));
        let Some(device) = Loop::over(&backing, sector) else {
            return;
        };
        let capacity = SlotWriter::open(&device.0).unwrap().capacity();
        assert_eq!(capacity, 5_000_000 / u64::from(sector) * u64::from(sector));
        check_install(&device.0, &backing, &pattern(2, 3_333_333));
        // To the very end, and one byte too many.
        let whole = pattern(3, usize::try_from(capacity).unwrap());
        install(&device.0, &whole);
        assert_eq!(digest(&device.0, capacity), Some(Sha256::of(&whole)));
        let error = read_back(&device.0, capacity + 1, &mut |_| ControlFlow::Continue(()));
        assert_eq!(error.unwrap_err().code(), "slot-too-small");
    }
}

/// Bytes of `path` that have blocks behind them.
fn allocated(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

/// A hole with odd ends over `slot`, which is full of other bytes: what is in it and beside it is right,
/// and making it again changes nothing.
fn check_hole(slot: &Path, backing: &Path) {
    let (start, length) = (1_000_001, 2_500_000);
    let mut wanted = fs::read(backing).unwrap();
    wanted[start..start + length].fill(0);
    for again in [false, true] {
        let mut writer = SlotWriter::open(slot).unwrap();
        writer.zero_at(start as u64, length as u64).unwrap();
        let report = writer.finish().unwrap();
        let whole = length / UNIT * UNIT - UNIT;
        if again {
            assert_eq!(report.writes, 0);
            assert_eq!(report.bytes_skipped, length as u64);
        } else {
            let holes = report.bytes_discarded + report.bytes_zeroed;
            assert!(holes >= whole as u64, "{report:?}");
        }
        assert_eq!(
            digest(slot, wanted.len() as u64 / 4096 * 4096),
            Some(Sha256::of(&wanted[..wanted.len() / 4096 * 4096]))
        );
        assert!(fs::read(backing).unwrap() == wanted);
    }
}

#[test]
fn holes_in_a_file_are_zeros_and_free_its_blocks() {
    for dir in [Path::new("/var/tmp"), Path::new("/dev/shm")] {
        let dir = TempDir::new_in(dir).unwrap();
        let slot = file(&dir, &pattern(1, 5_000_000));
        let before = allocated(&slot);
        check_hole(&slot, &slot);
        let freed = before - allocated(&slot);
        assert!(freed > 2_400_000, "{freed} in {}", dir.path().display());
        assert_eq!(fs::metadata(&slot).unwrap().len(), 5_000_000);
    }
}

#[test]
fn holes_in_a_device_are_zeros_and_free_its_blocks() {
    for sector in [512, 4096] {
        let dir = TempDir::new_in("/var/tmp").unwrap();
        let backing = file(&dir, &pattern(1, 5_001_216));
        let Some(device) = Loop::over(&backing, sector) else {
            return;
        };
        let before = allocated(&backing);
        check_hole(&device.0, &backing);
        let freed = before - allocated(&backing);
        assert!(freed > 2_400_000, "{freed}");
    }
}

#[test]
fn one_image_over_two_partitions_is_read_back_as_one() {
    for sectors in [[512, 4096], [4096, 512]] {
        let dirs = [TempDir::new().unwrap(), TempDir::new().unwrap()];
        let backing = dirs.each_ref().map(|dir| file(dir, &pattern(1, 4 << 20)));
        let (Some(boot), Some(rootfs)) = (
            Loop::over(&backing[0], sectors[0]),
            Loop::over(&backing[1], sectors[1]),
        ) else {
            return;
        };
        let parts = [
            SlotPart::other(&boot.0, 1_234_567),
            SlotPart::new(&rootfs.0, 4_000_001),
        ];
        let mut payload = pattern(2, 5_234_568);
        payload[1_000_000..2_000_000].fill(0);
        for again in [false, true] {
            let mut set = SlotSet::open(&parts).unwrap();
            for (number, bytes) in payload.chunks(100_003).enumerate() {
                let offset = number as u64 * 100_003;
                if bytes.iter().all(|byte| *byte == 0) {
                    set.zero_at(offset, bytes.len() as u64).unwrap();
                } else {
                    set.write_at(offset, bytes).unwrap();
                }
            }
            assert_eq!(set.finish().unwrap().changed(), !again);
            let found = read_back_parts(&parts, &mut |_| ControlFlow::Continue(())).unwrap();
            assert_eq!(found, Some(Sha256::of(&payload)));
        }
        let behind = [1_234_567, 4_000_001];
        for (backing, behind) in backing.iter().zip(behind) {
            let found = fs::read(backing).unwrap();
            assert!(found[behind..] == pattern(1, 4 << 20)[behind..]);
        }
        // The same device twice is one too many.
        let twice = [SlotPart::other(&boot.0, 1), SlotPart::new(&boot.0, 1)];
        assert_eq!(SlotSet::open(&twice).unwrap_err().code(), "slot-held");
    }
}

#[test]
fn a_device_is_written_past_its_cache() {
    let dir = TempDir::new_in("/var/tmp").unwrap();
    let backing = file(&dir, &pattern(1, 8 << 20));
    let Some(device) = Loop::over(&backing, 512) else {
        return;
    };
    let mut writer = SlotWriter::open(&device.0).unwrap();
    writer.write_at(0, &pattern(2, 8 << 20)).unwrap();
    // Without a sync, what was handed over is in the device itself: the kernel keeps no dirty pages of it.
    let stat = format!(
        "/sys/block/{}/stat",
        device.0.file_name().unwrap().to_str().unwrap()
    );
    let sectors_written = || -> u64 {
        let text = fs::read_to_string(&stat).unwrap();
        text.split_whitespace().nth(6).unwrap().parse().unwrap()
    };
    assert!(sectors_written() >= 7 << 11, "{}", sectors_written());
    writer.finish().unwrap();
}

#[test]
fn reading_back_tells_how_far_it_is_and_can_be_stopped() {
    let dir = TempDir::new().unwrap();
    let slot = file(&dir, &pattern(1, 3 << 20));
    let mut seen = Vec::new();
    let result = read_back(&slot, 3 << 20, &mut |done| {
        seen.push(done);
        if done >= 2 << 20 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    assert_eq!(result.unwrap(), None);
    assert_eq!(seen, [1 << 20, 2 << 20]);
}

#[test]
fn reading_back_sees_the_medium_and_not_the_cache_of_the_device() {
    let dir = TempDir::new().unwrap();
    let backing = file(&dir, &pattern(1, 1 << 20));
    let Some(device) = Loop::over(&backing, 512) else {
        return;
    };
    // Fill the loop device's page cache, then change the medium behind its back.
    let mut cached = Vec::new();
    File::open(&device.0)
        .unwrap()
        .read_to_end(&mut cached)
        .unwrap();
    let mut medium = fs::OpenOptions::new().write(true).open(&backing).unwrap();
    medium.seek(SeekFrom::Start(500_000)).unwrap();
    medium.write_all(&[cached[500_000] ^ 1]).unwrap();
    medium.sync_all().unwrap();
    cached[500_000] ^= 1;
    assert_eq!(digest(&device.0, 1 << 20), Some(Sha256::of(&cached)));
}

#[test]
fn a_mounted_device_is_refused_and_the_mount_point_is_named() {
    let dir = TempDir::new().unwrap();
    let backing = file(&dir, &vec![0; 8 << 20]);
    let Some(device) = Loop::over(&backing, 512) else {
        return;
    };
    run("mkfs.ext4", &["-q", device.text()]).unwrap();
    let point = dir.path().join("mount point");
    fs::create_dir(&point).unwrap();
    let mounted = match Mounted::at(&device.0, &point) {
        Ok(mounted) => mounted,
        Err(error) => {
            skip::skipped(format_args!("cannot mount ({error})"));
            return;
        }
    };
    let error = SlotWriter::open(&device.0).unwrap_err();
    assert_eq!(error.code(), "slot-held");
    assert!(error.to_string().contains("mount point"), "{error}");
    // The file behind it is just as much in use.
    let error = SlotWriter::open(&backing).unwrap_err();
    assert_eq!(error.code(), "slot-held");
    assert!(error.to_string().contains(device.text()), "{error}");
    assert!(error.to_string().contains("mount point"), "{error}");
    drop(mounted);
    SlotWriter::open(&device.0).unwrap();
}

#[test]
fn a_slot_has_one_writer_at_a_time() {
    let dir = TempDir::new().unwrap();
    let slot = file(&dir, &[1; 1 << 20]);
    let first = SlotWriter::open(&slot).unwrap();
    assert_eq!(SlotWriter::open(&slot).unwrap_err().code(), "slot-held");
    drop(first);
    let Some(device) = Loop::over(&slot, 512) else {
        return;
    };
    let first = SlotWriter::open(&device.0).unwrap();
    let error = SlotWriter::open(&device.0).unwrap_err();
    assert_eq!(error.code(), "slot-held");
    assert!(error.to_string().contains("exclusively"), "{error}");
    drop(first);
    SlotWriter::open(&device.0).unwrap();
}

#[test]
fn a_disk_with_a_mounted_partition_is_refused() {
    let dir = TempDir::new().unwrap();
    let backing = file(&dir, &vec![0; 12 << 20]);
    let Some(device) = Loop::over(&backing, 512) else {
        return;
    };
    if let Err(error) = run("addpart", &[device.text(), "1", "2048", "20000"]) {
        skip::skipped(format_args!("no partitions on loop devices ({error})"));
        return;
    }
    let part = Path::new(&format!("{}p1", device.text())).to_owned();
    run("mkfs.ext4", &["-q", part.to_str().unwrap()]).unwrap();
    let point = dir.path().join("point");
    fs::create_dir(&point).unwrap();
    let mounted = match Mounted::at(&part, &point) {
        Ok(mounted) => mounted,
        Err(error) => {
            skip::skipped(format_args!("cannot mount ({error})"));
            return;
        }
    };
    let error = SlotWriter::open(&device.0).unwrap_err();
    assert_eq!(error.code(), "slot-held");
    assert!(error.to_string().contains("p1 is mounted at"), "{error}");
    drop(mounted);
    run("delpart", &[device.text(), "1"]).unwrap();
}

#[test]
fn the_running_root_is_refused() {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let source = mountinfo
        .lines()
        .filter_map(|line| line.split_once(" - "))
        .find(|(left, _)| left.split(' ').nth(4) == Some("/"))
        .and_then(|(_, right)| right.split(' ').nth(1))
        .unwrap();
    if !source.starts_with("/dev/") || !Path::new(source).exists() {
        skip::skipped(format_args!("/ is on {source}, which is no device here"));
        return;
    }
    let error = SlotWriter::open(Path::new(source)).unwrap_err();
    assert_eq!(error.code(), "slot-is-running-root");
    // By another name too: it is the device that counts.
    let dir = TempDir::new().unwrap();
    let link = dir.path().join("spare");
    std::os::unix::fs::symlink(source, &link).unwrap();
    let error = SlotWriter::open(&link).unwrap_err();
    assert_eq!(error.code(), "slot-is-running-root");
}

#[test]
fn what_is_no_slot_is_refused() {
    let dir = TempDir::new().unwrap();
    for (path, code) in [
        (Path::new("/dev/null"), "slot-not-a-device"),
        (dir.path(), "slot-not-a-device"),
        (&dir.path().join("missing"), "slot-open-failed"),
    ] {
        let error = SlotWriter::open(path).unwrap_err();
        assert_eq!(error.code(), code);
        assert!(error.to_string().contains(path.to_str().unwrap()));
    }
}

#[test]
fn a_half_written_file_system_does_not_mount_and_a_finished_one_does() {
    let dir = TempDir::new().unwrap();
    let source = dir.path().join("source.img");
    let size = 16 << 20;
    File::create(&source).unwrap().set_len(size).unwrap();
    run("mkfs.ext4", &["-q", source.to_str().unwrap()]).unwrap();
    let image = fs::read(&source).unwrap();
    let backing = dir.path().join("slot.img");
    // The slot holds an older, valid file system of the same shape.
    File::create(&backing).unwrap().set_len(size).unwrap();
    run("mkfs.ext4", &["-q", backing.to_str().unwrap()]).unwrap();
    let Some(device) = Loop::over(&backing, 512) else {
        return;
    };
    let point = dir.path().join("point");
    fs::create_dir(&point).unwrap();
    if let Err(error) = Mounted::at(&device.0, &point).map(drop) {
        skip::skipped(format_args!("cannot mount ({error})"));
        return;
    }
    let mut writer = SlotWriter::open(&device.0).unwrap();
    writer.write_at(0, &image[..9 << 20]).unwrap();
    writer.sync().unwrap();
    drop(writer);
    Mounted::at(&device.0, &point)
        .map(drop)
        .expect_err("a half-written slot mounts");
    install(&device.0, &image);
    Mounted::at(&device.0, &point).map(drop).unwrap();
    assert_eq!(digest(&device.0, size), Some(Sha256::of(&image)));
}

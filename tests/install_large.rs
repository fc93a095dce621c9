//! Images beyond 4 GiB, mostly empty: every byte arrives, what is empty is not written, and the daemon's memory is
//! the same for 1 and 5 GiB.
//!
//! `LARGE_GIB` names other sizes, separated by commas: `1,4,16` takes a while in an unoptimised program.

mod support;

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use fwupdated::update::slot::Slot;
use serde_json::json;
use support::rig::{COMPATIBLE, Device, Rig, fwupdatectl, noise, run};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Resident memory that the daemon may reach, KiB: the product's own limit, and what an unoptimised program gets.
const LIMIT: u64 = if cfg!(debug_assertions) {
    40 << 10
} else {
    32 << 10
};
/// How far the sizes may differ in it, KiB.
const GROWTH: u64 = 6 << 10;
/// Pieces of 1 MiB that are not empty, at both ends, across the byte at 4 GiB, and between.
const PIECES: u64 = 64;

/// Where the pieces of an image of `size` bytes lie.
fn places(size: u64) -> Vec<u64> {
    let last = size - MIB;
    let mut places: Vec<_> = (0..PIECES)
        .map(|n| last / (PIECES - 1) * n / 4096 * 4096)
        .collect();
    places.push(last);
    if size > 4 * GIB {
        places.push(4 * GIB - MIB / 2 - 512);
    }
    places
}

/// A sparse file of `size` bytes.
fn sparse(file: &Path, size: u64) {
    let raw = File::create(file).unwrap();
    raw.set_len(size).unwrap();
    for (seed, place) in (1..).zip(places(size)) {
        raw.write_all_at(&noise(MIB as usize, seed), place).unwrap();
    }
}

fn built(rig: &Rig, raw: &Path, version: &str) -> PathBuf {
    let file = rig.dir.join(format!("large-{version}.img.zst"));
    let mut command = fwupdatectl();
    command.args(["image", "build", "--level", "1", "--version", version]);
    command
        .args(["--compatible", COMPATIBLE, "--rootfs"])
        .arg(raw);
    command
        .arg("--output")
        .arg(&file)
        .arg("--key")
        .arg(&rig.key);
    run(&mut command);
    file
}

/// The highest resident set of the process so far, KiB.
fn peak(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

/// Installs an image of `size` bytes over a slot full of something else here and there; returns the daemon's peak.
async fn installed(rig: &Rig, size: u64) -> u64 {
    let raw = rig.dir.join("raw");
    sparse(&raw, size);
    let image = built(rig, &raw, "2.0.0");
    let mut device = Device::new(rig, &rig.dir.join("device"), 8 * MIB, "1.0.0", "");
    let target = File::options()
        .write(true)
        .open(device.slot_file(Slot::B))
        .unwrap();
    target.set_len(size + 3 * MIB).unwrap();
    for (seed, place) in (1000..).zip([0, 10 * MIB + 512, size / 2 + 7, size - 3 * MIB]) {
        target
            .write_all_at(&noise(MIB as usize, seed), place)
            .unwrap();
    }
    let behind = noise(MIB as usize, 2000);
    target.write_all_at(&behind, size).unwrap();
    device.boot();
    device.until_connected(rig).await;
    rig.server.put("/large", image.as_path());
    let payload = json!({"fwPackageUri": rig.server.url("/large"), "updateId": "large"});
    let (status, body) = rig.invoke(payload).await;
    assert_eq!(status, 200, "{body}");
    let mut most = 0;
    while !device.reboot_is_asked() {
        let pid = device.daemon.as_ref().expect("it runs").id();
        most = most.max(peak(pid).unwrap_or(0));
        let section = rig.section();
        let failed = section["updateId"] == "large" && section["status"] == "downloadfailed";
        assert!(!failed, "{section:#}\n{}", device.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let section = device.until_final(rig, "large").await;
    device.assert_complete(&section);
    // Every byte of it, and none behind it.
    run(Command::new("cmp")
        .arg("-n")
        .arg(size.to_string())
        .arg(&raw)
        .arg(device.slot_file(Slot::B)));
    let slot = File::open(device.slot_file(Slot::B)).unwrap();
    let mut end = vec![0; behind.len()];
    slot.read_exact_at(&mut end, size).unwrap();
    assert!(end == behind, "what lies behind the image was written");
    // Chunks around the pieces may be partly empty.
    let (used, full) = (slot.metadata().unwrap().blocks() * 512, 2 * PIECES * MIB);
    assert!(
        used <= full,
        "{} MiB of {} are allocated",
        used / MIB,
        size / MIB
    );
    device.kill();
    fs::remove_dir_all(&device.dir).unwrap();
    most
}

#[tokio::test(flavor = "multi_thread")]
async fn large_images_arrive_whole_stay_sparse_and_take_no_more_memory_than_small_ones() {
    let sizes = std::env::var("LARGE_GIB").unwrap_or_else(|_| "1,5".to_owned());
    let mut peaks = Vec::new();
    for gib in sizes.split(',') {
        let size = gib.parse::<u64>().unwrap() * GIB + 512;
        let dir = tempfile::tempdir().unwrap();
        let rig = Rig::start(dir.path()).await;
        let began = std::time::Instant::now();
        let peak = installed(&rig, size).await;
        eprintln!(
            "{gib} GiB: peak {:.1} MiB, {:.0?}",
            peak as f64 / 1024.0,
            began.elapsed()
        );
        peaks.push(peak);
    }
    let (least, most) = (peaks.iter().min().unwrap(), peaks.iter().max().unwrap());
    assert!(
        *least > 1024 && *most <= LIMIT && most - least <= GROWTH,
        "{peaks:?} KiB"
    );
}

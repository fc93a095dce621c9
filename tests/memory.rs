//! The daemon's memory does not grow with the image: 40 MiB are enough for 1 GiB of it, and 32 MiB for an
//! image without a manifest, in each compression.

mod support;

use std::{
    fs::{self, File},
    path::Path,
    process::Command,
    time::Duration,
};

use fwupdated::update::digest::Sha256;
use serde_json::{Value, json};
use support::rig::{Device, Rig, noise, run};

const MIB: usize = 1 << 20;
/// Resident memory that the daemon may reach, KiB.
const LIMIT: u64 = 40 << 10;
/// The same without the pages of the program itself, of which a test build has 17 MiB and a release some 8: so 32 MiB in
/// all.
const DATA_LIMIT: u64 = 24 << 10;

/// A line of the process's status in /proc, KiB.
fn status(pid: u32, name: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

/// The highest resident set of the process so far, KiB.
fn peak(pid: u32) -> Option<u64> {
    status(pid, "VmHWM:")
}

/// What the process has resident now but for its program's own pages, KiB.
fn data(pid: u32) -> Option<u64> {
    status(pid, "RssAnon:")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gibibyte_is_installed_in_40_mib_of_memory() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut device = Device::new(&rig, &dir.path().join("device"), 1 << 30, "1.0.0", "");
    device.boot();
    device.until_connected(&rig).await;
    // 1 GiB whose chunks all differ, an eighth of each quarter empty.
    let mut raw = Vec::with_capacity(1024 * MIB);
    for part in 0..4 {
        raw.extend_from_slice(&noise(256 * MIB, part));
    }
    let image = rig.build("2.0.0", raw, &[]);
    let payload = json!({"fwPackageUri": rig.serve(&image)});
    let most = most_while_installing(&rig, &mut device, payload, peak).await;
    assert!(device.holds(device.running(), &image.raw));
    eprintln!(
        "peak resident memory while installing 1 GiB: {:.1} MiB",
        most as f64 / 1024.0
    );
    assert!(most > 1024 && most < LIMIT, "{most} KiB");
}

/// Runs an update, which must end confirmed; returns the most that `measure` found meanwhile.
async fn most_while_installing(
    rig: &Rig,
    device: &mut Device,
    payload: Value,
    measure: fn(u32) -> Option<u64>,
) -> u64 {
    let (status, body) = rig.invoke(payload).await;
    assert_eq!(status, 200, "{body}");
    let id = body["updateId"].as_str().unwrap().to_owned();
    let boots = device.boots;
    let mut most = 0;
    let section = loop {
        let pid = device.daemon.as_ref().map(std::process::Child::id);
        most = most.max(pid.and_then(measure).unwrap_or(0));
        device.follow_reboot();
        let section = rig.section();
        let word = section["status"].as_str().unwrap_or_default().to_owned();
        if section["updateId"] == id.as_str()
            && (word == "applyComplete" || word.ends_with("ailed"))
        {
            break section;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(
        section["status"],
        "applyComplete",
        "{section:#}\n{}",
        device.log()
    );
    assert_eq!(device.boots, boots + 1);
    most
}

/// Packs `raw` by a program that filters; each makes the most of the memory that a device allows.
fn packed(dir: &Path, raw: &Path, packer: &[&str]) -> Vec<u8> {
    let file = dir.join("packed");
    run(Command::new(packer[0])
        .args(&packer[1..])
        .stdin(File::open(raw).unwrap())
        .stdout(File::create(&file).unwrap()));
    fs::read(&file).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_manifest_is_installed_in_32_mib_however_it_is_packed() {
    const PART: usize = 32 * MIB;
    const SIZE: usize = 256 * MIB;
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut device = Device::new(&rig, &dir.path().join("device"), SIZE as u64, "1.0.0", "");
    device.boot();
    device.until_connected(&rig).await;
    // Something for the network to carry, and much that is soon packed and unpacked.
    let mut part = noise(4 * MIB, 1);
    while part.len() < PART {
        part.extend_from_within(..4096);
    }
    let raw = dir.path().join("part");
    fs::write(&raw, &part).unwrap();
    let packers: [(&str, &[&str]); 5] = [
        ("raw", &["cat"]),
        ("gzip", &["gzip", "-1", "-c"]),
        ("bzip2", &["bzip2", "-9", "-c"]),
        ("xz", &["xz", "-6", "-c"]),
        ("zstd", &["zstd", "-19", "-q", "-c"]),
    ];
    for (kind, packer) in packers {
        // One stream after the other is one file to all of them.
        let file = packed(dir.path(), &raw, packer).repeat(SIZE / PART);
        let path = format!("/{kind}");
        let sha256 = Sha256::of(&file).to_string();
        rig.server.put(&path, file);
        let payload = json!({"fwPackageUri": rig.server.url(&path), "fwPackageSha256": sha256});
        let most = most_while_installing(&rig, &mut device, payload, data).await;
        rig.server.remove(&path);
        let content = fs::read(device.slot_file(device.running())).unwrap();
        assert!(content.chunks(PART).all(|found| found == part), "{kind}");
        eprintln!(
            "resident data while installing {kind}: {:.1} MiB",
            most as f64 / 1024.0
        );
        assert!(most > 1024 && most < DATA_LIMIT, "{kind}: {most} KiB");
    }
}

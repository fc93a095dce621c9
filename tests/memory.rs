//! The daemon's memory does not grow with the image: 40 MiB are enough for 1 GiB of it.

mod support;

use std::{fs, time::Duration};

use serde_json::json;
use support::rig::{Device, Rig, noise};

const MIB: usize = 1 << 20;
/// Resident memory that the daemon may reach, KiB.
const LIMIT: u64 = 40 << 10;

/// The highest resident set of the process so far, KiB.
fn peak(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
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
    let (status, body) = rig.invoke(json!({"fwPackageUri": rig.serve(&image)})).await;
    assert_eq!(status, 200, "{body}");
    let id = body["updateId"].as_str().unwrap().to_owned();
    let (mut most, mut boots) = (0, 0);
    let section = loop {
        let pid = device.daemon.as_ref().map(std::process::Child::id);
        most = most.max(pid.and_then(peak).unwrap_or(0));
        boots += u32::from(device.follow_reboot());
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
    assert!(boots == 1 && device.holds(device.running(), &image.raw));
    eprintln!(
        "peak resident memory while installing 1 GiB: {:.1} MiB",
        most as f64 / 1024.0
    );
    assert!(most > 1024 && most < LIMIT, "{most} KiB");
}

//! `fwupdatectl image diff OLD NEW` tells what a device that runs OLD really downloads, in whatever form OLD is
//! given. With the real programs.

mod support;

use std::{fs, path::Path, process::Command};

use serde_json::{Value, json};
use support::rig::{Device, Image, Rig, fwupdatectl, noise, run};

const MIB: usize = 1 << 20;
/// Size of a slot and of all images, bytes.
const SLOT: usize = 16 * MIB;

fn diff(old: &Path, new: &Path) -> Value {
    let mut command = fwupdatectl();
    command.args(["image", "diff", "--json"]).arg(old).arg(new);
    serde_json::from_slice(&run(&mut command).stdout).unwrap()
}

/// A next version: something changed in place, something was inserted, something became a hole, something new is there
/// twice.
fn changed(raw: &[u8]) -> Vec<u8> {
    let mut new = raw.to_vec();
    for at in (MIB..4 * MIB).step_by(300_000) {
        new[at..at + 100].copy_from_slice(&noise(100, at as u64));
    }
    let inserted = noise(20_000, 99);
    new.splice(8 * MIB..8 * MIB, inserted);
    new.truncate(SLOT);
    new[13 * MIB..14 * MIB].fill(0);
    new[4 * MIB..7 * MIB].copy_from_slice(&noise(3 * MIB, 5));
    new.copy_within(4 * MIB..9 * MIB / 2, 12 * MIB);
    new
}

/// What the server sent of `image` beyond its header, and in how many requests.
fn fetched(rig: &Rig, image: &Image, header: u64) -> (u64, usize) {
    let name = image.file.file_name().unwrap().to_str().unwrap();
    let requests = rig.server.requests();
    let of_chunks: Vec<_> = requests
        .iter()
        .filter(|request| request.path.ends_with(name))
        .filter(|request| {
            let range = request.range.as_deref().unwrap_or("bytes=0-");
            let start = range.trim_start_matches("bytes=").split('-').next();
            start.unwrap().parse::<u64>().unwrap() >= header
        })
        .collect();
    let bytes = of_chunks.iter().map(|request| request.bytes).sum();
    (bytes, of_chunks.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_figures_are_what_a_device_downloads() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut device = Device::new(&rig, &dir.path().join("d"), SLOT as u64, "1.0.0", "");
    device.boot();
    device.until_connected(&rig).await;
    let old = rig.build("2.0.0", noise(SLOT, 7), &[]);
    let new = rig.build("3.0.0", changed(&old.raw), &[]);
    for image in [&old, &new] {
        let payload = json!({"fwPackageUri": rig.serve(image), "updateId": image.version});
        let (status, body) = rig.invoke(payload).await;
        assert_eq!(status, 200, "{body}");
        let section = device.until_final(&rig, &image.version).await;
        assert_eq!(section["status"], "applyComplete", "{section:#}");
    }
    let told = diff(&old.file, &new.file);
    let repeated = told["repeated"]["bytes"].as_u64().unwrap();
    assert!(repeated > 300_000, "{told:#}");
    let download = &told["download"];
    let (bytes, requests) = fetched(&rig, &new, download["headerBytes"].as_u64().unwrap());
    assert!(bytes > 0 && bytes < SLOT as u64 / 4, "{bytes}: {told:#}");
    assert_eq!(download["payloadBytes"], bytes, "{told:#}");
    assert_eq!(download["requests"], requests, "{told:#}");
}

#[test]
fn every_form_of_the_old_image_gives_the_same_figures() {
    let dir = tempfile::tempdir().unwrap();
    let key = support::rig::make_key(dir.path());
    let build = |version: &str, raw: Vec<u8>, more: &[&str]| {
        support::rig::build_image(dir.path(), &key, version, raw, more)
    };
    let old = build("2.0.0", noise(SLOT, 7), &[]);
    let new = build("3.0.0", changed(&old.raw), &[]);
    let told = diff(&old.file, &new.file);
    // Every byte has one place.
    let parts = ["samePlace", "moved", "holes", "repeated", "missing"];
    let bytes = |part: &&str| told[*part]["bytes"].as_u64().unwrap();
    assert_eq!(parts.iter().map(bytes).sum::<u64>(), SLOT as u64);
    assert!(parts.iter().all(|part| bytes(part) > 0), "{told:#}");
    // Before the insertion, in front of it; behind it, moved; but for what changed.
    assert!(
        told["samePlace"]["bytes"].as_u64().unwrap() > 2 * MIB as u64,
        "{told:#}"
    );
    assert!(
        told["moved"]["bytes"].as_u64().unwrap() > 3 * MIB as u64,
        "{told:#}"
    );

    let raw = dir.path().join("rootfs-2.0.0.img");
    assert_eq!(diff(&raw, &new.file), told, "the raw image");
    let packed = dir.path().join("packed");
    fs::write(
        &packed,
        run(Command::new("gzip").arg("-c").arg(&raw)).stdout,
    )
    .unwrap();
    assert_eq!(diff(&packed, &new.file), told, "packed");
    // Cut otherwise, so its own index says nothing of use.
    let other = build("2.0.1", old.raw.clone(), &["--chunk-size", "32K"]);
    assert_eq!(diff(&other.file, &new.file), told, "cut otherwise");
}

#[test]
fn nothing_is_downloaded_for_the_same_image_and_all_of_it_for_another_one() {
    let dir = tempfile::tempdir().unwrap();
    let key = support::rig::make_key(dir.path());
    let image = support::rig::build_image(dir.path(), &key, "1.0.0", noise(2 * MIB, 3), &[]);
    let told = diff(&image.file, &image.file);
    assert_eq!(told["download"]["payloadBytes"], 0, "{told:#}");
    assert_eq!(told["download"]["requests"], 0);
    assert_eq!(told["moved"]["chunks"], 0);

    let other = dir.path().join("other");
    fs::write(&other, noise(2 * MIB, 4)).unwrap();
    let told = diff(&other, &image.file);
    assert_eq!(told["download"]["requests"], 1, "{told:#}");
    assert_eq!(told["samePlace"]["bytes"], 0);
    let share = told["share"].as_f64().unwrap();
    assert!(share > 0.99 && share <= 1.0, "{share}");

    let text = run(fwupdatectl()
        .args(["image", "diff"])
        .args([&image.file, &image.file]))
    .stdout;
    let text = String::from_utf8(text).unwrap();
    assert!(
        text.contains("firmware 1.0.0 on a device that runs"),
        "{text}"
    );
    assert!(text.contains("in 0 requests"), "{text}");

    // A plain image is downloaded as a whole by any device; text is no image.
    for (file, code) in [(&other, "[image-command-usage]"), (&key, "[plain-text]")] {
        let output = fwupdatectl()
            .args(["image", "diff"])
            .arg(&image.file)
            .arg(file)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && text.contains(code), "{text}");
    }
}

//! The demo's board: root file systems with an application in them, what the loader says, and a health check
//! that asks the application of the slot that runs.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use crate::{
    story::{Story, Voice},
    support::rig::{Device, Image, noise, run},
};

/// Size of a root file system, bytes, and of what fills it.
const ROOT_FILE_SYSTEM: u64 = 48 << 20;
const FILLING: usize = 24 << 20;

/// A real board takes longer; this is enough to see what the twin says meanwhile.
const BOOT_TIME: Duration = Duration::from_secs(2);

/// An ext4 file system with an `os-release` and an application; that of 3.0.0 is broken.
pub(crate) fn root_file_system(dir: &Path, version: &str) -> Vec<u8> {
    let tree = dir.join(format!("tree-{version}"));
    fs::create_dir_all(tree.join("etc")).unwrap();
    fs::create_dir_all(tree.join("srv")).unwrap();
    fs::write(
        tree.join("etc/os-release"),
        format!("ID=demo\nIMAGE_VERSION={version}\n"),
    )
    .unwrap();
    let health = match version {
        "3.0.0" => "app 3.0.0: no answer on port 8080",
        _ => "ok",
    };
    fs::write(tree.join("srv/app-health"), format!("{health}\n")).unwrap();
    let seed = version.bytes().map(u64::from).sum();
    fs::write(tree.join("srv/app"), noise(FILLING, seed)).unwrap();
    let file = dir.join("mkfs.img");
    fs::File::create(&file)
        .unwrap()
        .set_len(ROOT_FILE_SYSTEM)
        .unwrap();
    run(Command::new("mkfs.ext4")
        .args(["-q", "-d"])
        .arg(&tree)
        .arg(&file)
        .env("PATH", path()));
    let raw = fs::read(&file).unwrap();
    fs::remove_file(&file).unwrap();
    fs::remove_dir_all(&tree).unwrap();
    raw
}

/// What a factory does: the image lies in slot a before the first boot.
pub(crate) fn install_by_hand(device: &Device, image: &Image) {
    let mut content = image.raw.clone();
    content.resize(usize::try_from(crate::SLOT).unwrap(), 0);
    fs::write(device.dir.join("slot-a.img"), content).unwrap();
}

/// A program in `health.d` that asks the application of the slot that runs.
pub(crate) fn add_health_check(device: &Device) {
    let answer = device.dir.join("app-health");
    device.add_health_check(
        "10-app",
        &format!("cat {0}\ngrep -qx ok {0}", answer.display()),
    );
}

/// Lets each boot be told, and takes from the booted slot's file system what a running one would show.
pub(crate) fn tell_boots(device: &mut Device, story: &Story) {
    let (dir, story) = (device.dir.clone(), story.clone());
    device.log_filter = "info".to_owned();
    device.on_boot = Some(Box::new(move |number, slot| {
        if number > 1 {
            std::thread::sleep(BOOT_TIME);
        }
        let file = dir.join(format!("slot-{slot}.img"));
        fs::write(dir.join("os-release"), read_from(&file, "/etc/os-release")).unwrap();
        fs::write(dir.join("app-health"), read_from(&file, "/srv/app-health")).unwrap();
        let version = fs::read_to_string(dir.join("os-release")).unwrap_or_default();
        let version = version
            .lines()
            .find_map(|line| line.strip_prefix("IMAGE_VERSION="));
        story.line(
            Voice::Loader,
            &format!(
                "boot {number}: the U-Boot environment says slot {slot}; starting {}",
                version.unwrap_or("?")
            ),
        );
    }));
}

/// A file of an ext4 file system that is not mounted.
fn read_from(image: &Path, file: &str) -> Vec<u8> {
    let mut command = Command::new("debugfs");
    command
        .arg("-R")
        .arg(format!("cat {file}"))
        .arg(image)
        .env("PATH", path())
        .stderr(Stdio::null());
    run(&mut command).stdout
}

/// Debian keeps file system tools where users do not look.
fn path() -> String {
    format!(
        "{}:/usr/sbin:/sbin",
        std::env::var("PATH").unwrap_or_default()
    )
}

//! The images that the scenarios install: the built root file system, changed in one way each.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::support::{
    random::Random,
    rig::{COMPATIBLE, fwupdatectl, run},
};

/// How a new version differs from the old one, besides its number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Change {
    /// Not at all.
    Sound,
    /// Some MiB that the old version does not have, so that there is something to download.
    Large,
    /// Without /sbin/init: the kernel panics.
    NoInit,
    /// Without a kernel: U-Boot cannot start it.
    NoKernel,
    /// The kernel panics once systemd runs.
    Panics,
    /// systemd waits for ever before it starts anything of ours.
    Hangs,
    /// The boot waits for a file system that never comes, and `fw_printenv` is missing.
    NoFileSystem,
    /// systemd itself dies, and nobody feeds the hardware watchdog.
    SystemdDies,
    /// Without the daemon.
    NoDaemon,
    /// A health check fails.
    Unhealthy,
}

/// Bytes that [`Change::Large`] adds.
const ADDED: usize = 24 << 20;

/// A unit that runs `command` early in the boot, and holds it up until it ends.
fn early_unit(command: &str) -> String {
    format!(
        "[Unit]\nDefaultDependencies=no\nBefore=sysinit.target\nAfter=systemd-udevd.service\n\
         [Service]\nType=oneshot\nTimeoutStartSec=infinity\nExecStart={command}\n"
    )
}

/// A file put into a file system, with its mode.
struct Put {
    path: &'static str,
    contents: Vec<u8>,
    mode: &'static str,
}

impl Put {
    fn file(path: &'static str, contents: impl Into<Vec<u8>>) -> Self {
        let contents = contents.into();
        Self {
            path,
            contents,
            mode: "0100644",
        }
    }
}

/// Lines for `debugfs` that make the change, and the files that it puts there.
fn edits(change: Change, seed: u64) -> (Vec<&'static str>, Vec<Put>) {
    const EARLY: &str = "/etc/systemd/system/vm-early.service";
    const WANTED: &str =
        "symlink /etc/systemd/system/sysinit.target.wants/vm-early.service ../vm-early.service";
    let early = |command: &str| {
        let unit = Put::file(EARLY, early_unit(command));
        (vec![WANTED], vec![unit])
    };
    match change {
        Change::Sound => (Vec::new(), Vec::new()),
        Change::Large => {
            let mut random = Random(seed);
            let numbers = std::iter::repeat_with(|| random.next().to_le_bytes());
            let bytes: Vec<u8> = numbers.take(ADDED / 8).flatten().collect();
            (Vec::new(), vec![Put::file("/usr/share/vm-added", bytes)])
        }
        Change::NoInit => (vec!["rm /usr/sbin/init", "rm /sbin/init"], Vec::new()),
        Change::NoKernel => (vec!["rm /boot/vmlinuz"], Vec::new()),
        Change::Panics => early("/bin/sh -c 'echo c >/proc/sysrq-trigger'"),
        Change::Hangs => early("/bin/sleep infinity"),
        // No time limit: 0 means for ever.
        Change::NoFileSystem => {
            let fstab = include_str!("guest/fstab");
            let line = "PARTLABEL=nothing /srv ext4 x-systemd.device-timeout=0 0 0\n";
            let fstab = Put::file("/etc/fstab", format!("{fstab}{line}"));
            (
                vec!["rm /etc/fstab", "rm /usr/bin/fw_printenv"],
                vec![fstab],
            )
        }
        // systemd that crashes stops all it does, and stays there as process 1.
        Change::SystemdDies => early("/bin/sh -c 'kill -SEGV 1'"),
        Change::NoDaemon => (vec!["rm /usr/bin/fwupdated"], Vec::new()),
        Change::Unhealthy => {
            let text = "#!/bin/sh\necho 'the pump does not answer'\nexit 1\n";
            let mut check = Put::file("/etc/fwupdated/health.d/10-pump", text);
            check.mode = "0100755";
            (Vec::new(), vec![check])
        }
    }
}

/// Builds and signs version `version` of the root file system `root` in `dir`.
pub(crate) fn build(root: &Path, dir: &Path, key: &Path, version: &str, change: Change) -> PathBuf {
    let raw = dir.join(format!("{version}.root"));
    // Sparse, as the built one is.
    run(Command::new("cp").arg("--sparse=always").args([root, &raw]));
    let seed = version
        .bytes()
        .fold(1, |sum: u64, byte| sum * 31 + u64::from(byte));
    let (mut lines, mut puts) = edits(change, seed);
    let release = debugfs(&raw, &["-R", "cat /usr/lib/os-release"]);
    let release = release.replace("IMAGE_VERSION=1.0.0", &format!("IMAGE_VERSION={version}"));
    assert!(release.contains(version), "{release}");
    lines.push("rm /usr/lib/os-release");
    puts.push(Put::file("/usr/lib/os-release", release));

    let mut script: String = lines.iter().map(|line| format!("{line}\n")).collect();
    for (number, put) in puts.iter().enumerate() {
        let file = dir.join(format!("{version}.put-{number}"));
        fs::write(&file, &put.contents).unwrap();
        script.push_str(&format!(
            "write {} {}\nset_inode_field {} mode {}\nset_inode_field {} uid 0\nset_inode_field {} gid 0\n",
            file.display(), put.path, put.path, put.mode, put.path, put.path
        ));
    }
    let commands = dir.join(format!("{version}.debugfs"));
    fs::write(&commands, script).unwrap();
    debugfs(&raw, &["-w", "-f", commands.to_str().unwrap()]);
    for put in &puts {
        let there = debugfs(&raw, &["-R", &format!("stat {}", put.path)]);
        assert!(there.contains("Type: regular"), "{}: {there}", put.path);
    }

    let image = dir.join(format!("vm-{version}.img.zst"));
    run(fwupdatectl()
        .args(["image", "build", "--level", "1", "--version", version])
        .args(["--compatible", COMPATIBLE, "--rootfs"])
        .arg(&raw)
        .arg("--key")
        .arg(key)
        .arg("--output")
        .arg(&image));
    fs::remove_file(raw).unwrap();
    image
}

fn debugfs(file_system: &Path, arguments: &[&str]) -> String {
    let output = run(Command::new("debugfs").args(arguments).arg(file_system));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

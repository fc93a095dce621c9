//! Slots that are one, missing, mounted, held, or the running system: each is refused before a byte is
//! written.

use std::{
    fs::{self, File},
    os::unix::fs::{MetadataExt, OpenOptionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use crate::{
    scene::{SLOT, Scene, problem},
    support::rig::{Device, run},
};

fn payload() -> Value {
    json!({"fwPackageUri": "https://localhost/x.img"})
}

/// Makes `slot` of the configuration another file or device.
fn configure(device: &Device, slot: &str, to: &Path) {
    let text = fs::read_to_string(device.config()).unwrap();
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    let table = format!("[slots.{slot}]");
    let at = lines.iter().position(|line| *line == table).unwrap();
    lines[at + 1] = format!("rootfs = \"{}\"", to.display());
    fs::write(device.config(), lines.join("\n")).unwrap();
}

/// The same configuration for a board with U-Boot, without what is only for the stand-in.
fn configure_uboot(device: &Device) {
    let text = fs::read_to_string(device.config()).unwrap();
    let kept =
        |line: &&str| !line.starts_with("booted_file") && !line.starts_with("reboot_command");
    let text = text.lines().filter(kept).collect::<Vec<_>>().join("\n");
    fs::write(
        device.config(),
        text.replace("kind = \"file\"", "kind = \"uboot\""),
    )
    .unwrap();
}

/// The block device that holds `/`, where there is one.
fn root_device() -> Option<PathBuf> {
    let number = fs::metadata("/").unwrap().dev();
    let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
    let about = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent")).ok()?;
    let name = about
        .lines()
        .find_map(|line| line.strip_prefix("DEVNAME="))?;
    let device = Path::new("/dev").join(name);
    let found = fs::metadata(&device).ok()?;
    (found.rdev() == number).then_some(device)
}

/// An attached loop device; detached when dropped.
struct Loop(PathBuf);

impl Loop {
    /// `None`, after saying so, where loop devices cannot be had.
    fn over(backing: &Path) -> Option<Self> {
        let output = Command::new("losetup")
            .args(["-f", "--show"])
            .arg(backing)
            .output();
        match output {
            Ok(output) if output.status.success() => {
                let name = String::from_utf8(output.stdout).unwrap();
                Some(Self(PathBuf::from(name.trim())))
            }
            other => {
                crate::support::skipped(format_args!(
                    "this needs loop devices (root, losetup): {other:?}"
                ));
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

/// A mount; taken down when dropped.
struct Mount(PathBuf);

impl Mount {
    fn new(device: &Path, point: &Path) -> Self {
        fs::create_dir_all(point).unwrap();
        run(Command::new("mount")
            .args(["-o", "ro"])
            .arg(device)
            .arg(point));
        Self(point.to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// Starts the daemon with the slots as configured; it must refuse updates with `code` and say so everywhere.
async fn assert_problem(scene: &mut Scene, case: &str, code: &str, advice: &str) {
    let log = scene.restart().await;
    let rig = &scene.rig;
    scene
        .device
        .until(case, |_| (problem(rig)["code"] == code).then_some(()))
        .await;
    scene.assert_logged(case, log, code);
    assert_eq!(scene.status()["problem"]["code"], code, "{case}");
    let message = scene.refused(case, payload(), 503, code).await;
    assert!(
        message.contains(advice),
        "{case}: no advice `{advice}` in: {message}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn two_names_for_one_slot_are_found_out() {
    let mut scene = Scene::new(|_| String::new()).await;
    let dir = scene.device.dir.clone();
    let slot_a = dir.join("slot-a.img");
    fs::hard_link(&slot_a, dir.join("hard-link")).unwrap();
    symlink(&slot_a, dir.join("link")).unwrap();
    symlink(dir.join("link"), dir.join("link-to-link")).unwrap();
    let advice = "give each slot its own partition";
    for name in ["hard-link", "link", "link-to-link"] {
        configure(&scene.device, "b", &dir.join(name));
        assert_problem(&mut scene, name, "slots-same-device", advice).await;
    }
    // The same words twice are a mistake in the configuration: then the daemon does not start.
    scene.device.stop();
    configure(&scene.device, "b", &slot_a);
    let log = scene.device.log().len();
    scene.device.start();
    let ended = scene.device.daemon.take().unwrap().wait().unwrap();
    assert_eq!(ended.code(), Some(78));
    scene.assert_logged("same words", log, "config-value");
    let (exit, _, err) = scene.ctl(&["config", "check"]);
    assert_eq!(exit, 2, "{err}");
    assert!(
        err.contains("[config-value]") && err.contains("give each slot its own"),
        "{err}"
    );

    // Through loop devices: one, two over one file, and one beside its own file.
    let (Some(one), Some(two)) = (Loop::over(&slot_a), Loop::over(&slot_a)) else {
        return;
    };
    symlink(&one.0, dir.join("link-to-loop")).unwrap();
    for (case, a, b) in [
        ("one loop device", &one.0, &dir.join("link-to-loop")),
        ("two loop devices over one file", &one.0, &two.0),
        ("a file and a loop device over it", &slot_a, &one.0),
    ] {
        configure(&scene.device, "a", a);
        configure(&scene.device, "b", b);
        assert_problem(&mut scene, case, "slots-same-device", advice).await;
    }
    scene.device.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_missing_or_no_slot_is_named() {
    let mut scene = Scene::new(|_| String::new()).await;
    let dir = scene.device.dir.clone();
    for (case, spec, code, advice) in [
        (
            "missing",
            dir.join("slot-c.img"),
            "slot-missing",
            "correct slots.b.rootfs",
        ),
        (
            "a folder",
            dir.join("keys.d"),
            "slot-not-a-device",
            "correct slots.b.rootfs",
        ),
        (
            "a character device",
            "/dev/null".into(),
            "slot-not-a-device",
            "correct slots.b.rootfs",
        ),
    ] {
        configure(&scene.device, "b", &spec);
        assert_problem(&mut scene, case, code, advice).await;
    }
    // With U-Boot, files are no slots.
    configure(&scene.device, "b", &dir.join("slot-b.img"));
    let config = fs::read_to_string(scene.device.config()).unwrap();
    configure_uboot(&scene.device);
    assert_problem(
        &mut scene,
        "files",
        "slot-is-a-file",
        "set slots.a.rootfs to the partition",
    )
    .await;
    // Devices are, but neither of these is the device of the running root.
    let over = |name: &str| Loop::over(&dir.join(name));
    if let (Some(a), Some(b)) = (over("slot-a.img"), over("slot-b.img")) {
        configure(&scene.device, "a", &a.0);
        configure(&scene.device, "b", &b.0);
        assert_problem(
            &mut scene,
            "neither runs",
            "slots-neither-runs",
            "correct slots.a.rootfs",
        )
        .await;
    }
    // What goes away while the daemon runs is refused the same way, and may come back.
    fs::write(scene.device.config(), config).unwrap();
    scene.restart().await;
    fs::rename(dir.join("slot-b.img"), dir.join("away")).unwrap();
    scene.refused("gone", payload(), 503, "slot-missing").await;
    fs::rename(dir.join("away"), dir.join("slot-b.img")).unwrap();
    let (status, body) = scene.rig.invoke(payload()).await;
    assert_eq!(status, 200, "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_mounted_or_held_is_refused_at_once() {
    let mut scene = Scene::new(|_| String::new()).await;
    let file = scene.device.dir.join("mountable.img");
    File::create(&file).unwrap().set_len(SLOT).unwrap();
    // A slot in a file that someone has locked.
    let lock = File::open(scene.device.dir.join("slot-b.img")).unwrap();
    lock.lock().unwrap();
    let message = scene.refused("locked", payload(), 503, "slot-held").await;
    assert!(
        message.contains("another program has it locked"),
        "{message}"
    );
    drop(lock);

    let Some(device) = Loop::over(&file) else {
        return;
    };
    run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&device.0));
    configure(&scene.device, "b", &device.0);
    scene.restart().await;
    let before = fs::read(&file).unwrap();
    let point = scene.device.dir.join("mnt");
    let mount = Mount::new(&device.0, &point);
    let message = scene.refused("mounted", payload(), 503, "slot-held").await;
    assert!(
        message.contains(&format!("mounted at {}", point.display())),
        "{message}"
    );
    let (exit, _, err) = scene.ctl(&["install", "https://localhost/x.img"]);
    assert_eq!(exit, 4, "{err}");
    assert!(
        err.contains("[slot-held]") && err.contains("umount"),
        "{err}"
    );
    drop(mount);
    // Held by a program that opened it exclusively.
    let exclusively = nix::fcntl::OFlag::O_EXCL.bits();
    let holder = File::options()
        .read(true)
        .custom_flags(exclusively)
        .open(&device.0)
        .unwrap();
    let message = scene.refused("held", payload(), 503, "slot-held").await;
    assert!(
        message.contains("another program has opened it exclusively"),
        "{message}"
    );
    drop(holder);
    assert!(
        fs::read(&file).unwrap() == before,
        "nothing was written to the device"
    );

    // Released, it installs, also on a block device.
    let image = scene.image("1.1.0");
    let uri = scene.rig.serve(&image);
    let (status, body) = scene.rig.invoke(json!(uri)).await;
    assert_eq!(status, 200, "{body}");
    let id = body["updateId"].as_str().unwrap().to_owned();
    let section = scene.device.until_final(&scene.rig, &id).await;
    assert_eq!(section["status"], "applyComplete", "{section:#}");
    assert!(fs::read(&file).unwrap().starts_with(&image.raw));
    scene.device.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_running_root_is_never_the_target_whatever_is_configured() {
    let Some(root) = root_device() else {
        crate::support::skipped(format_args!(
            "/ is not on a block device that this machine shows"
        ));
        return;
    };
    let mut scene = Scene::new(|_| String::new()).await;
    // (Were a request accepted here by mistake, its address would lead nowhere, so nothing could be written.)
    // Configured as the spare slot, with a stand-in that says so: the writer itself refuses.
    configure(&scene.device, "b", &root);
    scene.restart().await;
    let message = scene
        .refused("the spare slot", payload(), 503, "slot-is-running-root")
        .await;
    assert!(message.contains("check slots.a and slots.b"), "{message}");
    // On a board with U-Boot it is found by its number, wherever it is configured.
    let spare = scene.device.dir.join("spare.img");
    File::create(&spare).unwrap().set_len(SLOT).unwrap();
    let Some(spare) = Loop::over(&spare) else {
        return;
    };
    configure_uboot(&scene.device);
    for (a, b, slot) in [(&root, &spare.0, "a"), (&spare.0, &root, "b")] {
        configure(&scene.device, "a", a);
        configure(&scene.device, "b", b);
        scene.restart().await;
        assert_eq!(scene.status()["bootedSlot"], slot);
    }
    // The environment says a: whoever is right, nothing is written.
    scene
        .refused("the other slot runs", payload(), 409, "boot-disagreement")
        .await;
    scene.device.kill();
}

//! Files that are carried over, on slots that are loop devices with real file systems.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use fwupdated::update::slot::Slot;
use serde_json::{Value, json};

use super::support::{
    rig::{Device, Image, PATIENCE, Rig, run},
    skipped,
};

/// Bytes of a slot, and of its file system.
const SIZE: u64 = 48 << 20;

/// Both slots as loop devices, given back at the end.
struct Loops([PathBuf; 2]);

impl Drop for Loops {
    fn drop(&mut self) {
        for device in &self.0 {
            run(Command::new("losetup").arg("--detach").arg(device));
        }
    }
}

impl Loops {
    fn slot(&self, slot: Slot) -> &Path {
        &self.0[usize::from(slot == Slot::B)]
    }
}

/// `None`, after saying why, where there are no loop devices.
fn device(rig: &Rig, path: &Path, carry_over: &[&Path]) -> Option<(Device, Loops)> {
    if !nix::unistd::geteuid().is_root() {
        skipped("loop devices need root");
        return None;
    }
    let settings = format!("[carry_over]\npaths = {carry_over:?}\n");
    let device = Device::new(rig, path, SIZE, "1.0.0", &settings);
    let loops = Slot::ALL.map(|slot| {
        let file = device.slot_file(slot);
        let attached = run(Command::new("losetup").args(["--find", "--show"]).arg(file));
        PathBuf::from(String::from_utf8(attached.stdout).unwrap().trim())
    });
    let mut text = fs::read_to_string(device.config()).unwrap();
    for (slot, attached) in Slot::ALL.iter().zip(&loops) {
        let file = device.slot_file(*slot).display().to_string();
        text = text.replace(&format!("\"{file}\""), &format!("{attached:?}"));
    }
    fs::write(device.config(), text).unwrap();
    Some((device, Loops(loops)))
}

/// An image with an ext4 in it.
fn image(rig: &Rig, version: &str) -> Image {
    let root = rig.dir.join(format!("root-{version}"));
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::write(root.join("etc/version"), version).unwrap();
    let file = rig.dir.join(format!("ext4-{version}"));
    fs::File::create(&file).unwrap().set_len(SIZE).unwrap();
    run(Command::new("mkfs.ext4")
        .args(["-q", "-N", "20000", "-d"])
        .arg(&root)
        .arg(&file));
    rig.build(version, fs::read(&file).unwrap(), &[])
}

async fn start(rig: &Rig, image: &Image, id: &str) {
    let payload = json!({"fwPackageUri": rig.serve(image), "updateId": id});
    let (status, body) = rig.invoke(payload).await;
    assert_eq!(status, 200, "{body}");
}

/// Looks at the file system in `device`.
fn inside<T>(dir: &Path, device: &Path, look: impl FnOnce(&Path) -> T) -> T {
    let point = dir.join("mounted");
    fs::create_dir_all(&point).unwrap();
    run(Command::new("mount")
        .args(["-o", "ro"])
        .arg(device)
        .arg(&point));
    let seen = look(&point);
    run(Command::new("umount").arg(&point));
    seen
}

/// `path` of the running system, below `root`.
fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn identity_and_keys_are_in_the_new_slot_before_it_boots_and_the_next_update_starts_from_there()
 {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let key = dir.path().join("old-root/ssh_host_key");
    fs::create_dir_all(key.parent().unwrap()).unwrap();
    fs::write(&key, "secret").unwrap();
    fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
    let pattern = dir.path().join("old-root/ssh_host_*");
    let path = dir.path().join("device");
    let Some((mut device, loops)) = device(&rig, &path, &[&pattern]) else {
        return;
    };
    device.boot();
    device.until_connected(&rig).await;
    for (version, slot) in [("2.0.0", Slot::B), ("3.0.0", Slot::A)] {
        let image = image(&rig, version);
        start(&rig, &image, version).await;
        device.stop_before_the_reboot().await;
        inside(dir.path(), loops.slot(slot), |root| {
            let carried = below(root, &key);
            assert_eq!(fs::read_to_string(&carried).unwrap(), "secret");
            assert_eq!(fs::metadata(&carried).unwrap().mode() & 0o7777, 0o600);
            assert_eq!(
                fs::read_to_string(root.join("etc/version")).unwrap(),
                version
            );
        });
        let section = device.until_final(&rig, version).await;
        assert_eq!(
            section["status"],
            "applyComplete",
            "{section:#}\n{}",
            device.log()
        );
        assert_eq!(device.running(), slot);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_while_files_are_carried_over_leads_to_a_slot_that_is_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let many = dir.path().join("many");
    fs::create_dir(&many).unwrap();
    for number in 0..8000 {
        fs::write(many.join(number.to_string()), number.to_string()).unwrap();
    }
    let path = dir.path().join("device");
    let Some((mut device, loops)) = device(&rig, &path, &[&many]) else {
        return;
    };
    device.boot();
    device.until_connected(&rig).await;
    let image = image(&rig, "2.0.0");
    start(&rig, &image, "cut").await;
    let began = Instant::now();
    while device.state() != "carryingOver" {
        assert!(began.elapsed() < PATIENCE, "{}", device.log());
    }
    device.kill();
    assert_eq!(device.state(), "carryingOver", "it was too fast to be cut");
    assert_eq!(device.variable("fwupdated_trial"), None);
    device.boot();
    assert_eq!(device.running(), Slot::A);
    let section = device.until_final(&rig, "cut").await;
    let log = device.log();
    assert_eq!(section["status"], "applyComplete", "{section:#}\n{log}");
    assert!(
        log.contains("writing the slot again, since files were being carried over"),
        "{log}"
    );
    inside(dir.path(), loops.slot(Slot::B), |root| {
        let names = fs::read_dir(below(root, &many)).unwrap();
        assert_eq!(names.count(), 8000);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_carried_over_whole_ends_the_update_and_nothing_is_armed() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let large = dir.path().join("large");
    fs::File::create(&large).unwrap().set_len(SIZE).unwrap();
    let path = dir.path().join("device");
    let Some((mut device, _loops)) = device(&rig, &path, &[&large]) else {
        return;
    };
    device.boot();
    device.until_connected(&rig).await;
    let boots = device.boots;
    let ended = |section: &Value, code: &str| {
        assert_eq!(section["status"], "applyFailed", "{section:#}");
        assert_eq!(section["error"]["code"], code, "{section:#}");
    };
    start(&rig, &image(&rig, "2.0.0"), "large").await;
    ended(&device.until_final(&rig, "large").await, "carry-over-full");
    let mut squashfs = super::noise(1 << 20, 3);
    squashfs[..4].copy_from_slice(b"hsqs");
    let image = rig.build("3.0.0", squashfs, &[]);
    start(&rig, &image, "read-only").await;
    ended(
        &device.until_final(&rig, "read-only").await,
        "carry-over-read-only",
    );
    assert_eq!(
        (device.variable("fwupdated_trial"), device.boots),
        (None, boots)
    );
    assert_eq!(device.variable("fwupdated_slot").as_deref(), Some("a"));
    // Not the image's fault alone: it is not remembered as bad.
    let saved = fs::read_to_string(device.dir.join("state/state.json")).unwrap();
    let saved: Value = serde_json::from_str(&saved).unwrap();
    assert_eq!(saved["knownBad"], json!([]), "{saved:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_directory_that_is_carried_over_knows_its_update_in_the_new_slot() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let path = dir.path().join("device");
    let state = path.join("state");
    let Some((mut device, loops)) = device(&rig, &path, &[&state]) else {
        return;
    };
    device.boot();
    device.until_connected(&rig).await;
    start(&rig, &image(&rig, "2.0.0"), "moved").await;
    device.stop_before_the_reboot().await;
    // The new slot finds what was copied, and nothing else.
    let copied = inside(dir.path(), loops.slot(Slot::B), |root| {
        fs::read(below(root, &state).join("state.json")).unwrap()
    });
    fs::remove_dir_all(&state).unwrap();
    fs::create_dir(&state).unwrap();
    fs::write(state.join("state.json"), copied).unwrap();
    assert_eq!(device.state(), "carryingOver");
    let section = device.until_final(&rig, "moved").await;
    assert_eq!(
        section["status"],
        "applyComplete",
        "{section:#}\n{}",
        device.log()
    );
    assert_eq!(section["fwVersion"], "2.0.0");
    assert!(section["startedWaitingTime"].is_string(), "{section:#}");
}

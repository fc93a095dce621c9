//! What an update takes from the device instead of the network: from the target slot, from the running slot, from
//! both, from neither; at its place or elsewhere. With the real daemon; bytes are counted at the image server.

mod support;

use std::{fs::File, os::unix::fs::FileExt, time::Duration};

use fwupdated::update::slot::Slot;
use serde_json::{Value, json};
use support::rig::{Device, Image, Rig, noise};
use tempfile::TempDir;

const MIB: usize = 1 << 20;

struct Scene {
    rig: Rig,
    device: Device,
    _dir: TempDir,
}

impl Scene {
    /// A device with slots of 12 MiB that hold `running` and `target`.
    async fn new(running: &[u8], target: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let rig = Rig::start(dir.path()).await;
        let size = 12 * MIB as u64;
        let mut device = Device::new(&rig, &dir.path().join("device"), size, "1.0.0", "");
        for (slot, content) in [(Slot::A, running), (Slot::B, target)] {
            let file = File::create(device.slot_file(slot)).unwrap();
            file.set_len(size).unwrap();
            file.write_all_at(content, 0).unwrap();
        }
        device.boot();
        device.until_connected(&rig).await;
        Self {
            rig,
            device,
            _dir: dir,
        }
    }

    /// Asks for the image at `uri`; returns the update's id.
    async fn begin(&self, uri: &str) -> String {
        let (status, body) = self.rig.invoke(json!({ "fwPackageUri": uri })).await;
        assert_eq!(status, 200, "{body}");
        body["updateId"].as_str().unwrap().to_owned()
    }

    /// Installs `image`, which must end in a confirmed slot that holds exactly it.
    async fn install(&mut self, image: &Image) -> Cost {
        let section = self.device.update(&self.rig, image).await;
        let log = self.device.log();
        assert!(self.device.holds(Slot::B, &image.raw), "{log}");
        let requests = self.rig.server.requests();
        let file = std::fs::metadata(&image.file).unwrap().len();
        Cost {
            sent: requests.iter().map(|request| request.bytes).sum(),
            requests: requests.len(),
            file,
            progress: section["progress"].clone(),
        }
    }
}

/// What an installation cost.
#[derive(Debug)]
struct Cost {
    /// Bytes of bodies that the server sent.
    sent: u64,
    requests: usize,
    /// Length of the image file.
    file: u64,
    /// As the twin has it.
    progress: Value,
}

impl Cost {
    /// Asserts that of the payload no more than `percent` was sent. Headers are read twice, in windows of 64 KiB.
    fn assert_sent(&self, percent: u64) {
        let header = 2 * (64 << 10);
        assert!(self.sent <= header + self.file * percent / 100, "{self:?}");
        assert!(self.requests <= 60, "{self:?}");
    }

    fn number(&self, name: &str) -> u64 {
        self.progress[name]
            .as_u64()
            .unwrap_or_else(|| panic!("{self:?}"))
    }
}

/// Old content, and the new one: something is put in near its begin, a part in the middle is another, two parts have
/// changed places.
fn versions() -> (Vec<u8>, Vec<u8>) {
    let old = noise(8 * MIB, 5);
    let mut new = old.clone();
    new[5 * MIB..5 * MIB + 200_000].copy_from_slice(&noise(200_000, 6));
    let (start, end) = (6 * MIB, 8 * MIB);
    new[start..end].rotate_left(MIB);
    new.splice(100_000..100_000, noise(40 * 1024, 7));
    (old, new)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_running_slot_holds_is_copied_wherever_it_moved_to() {
    let (old, new) = versions();
    let mut scene = Scene::new(&old, b"").await;
    let image = scene.rig.build("1.1.0", new, &[]);
    let cost = scene.install(&image).await;
    cost.assert_sent(12);
    assert!(cost.number("bytesReused") > 6 * MIB as u64, "{cost:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_target_held_elsewhere_is_copied_before_it_is_gone() {
    let (old, new) = versions();
    let mut scene = Scene::new(&noise(MIB, 50), &old).await;
    let image = scene.rig.build("1.1.0", new, &[]);
    let cost = scene.install(&image).await;
    // What goes under before it is read must be fetched after all.
    cost.assert_sent(60);
}

#[tokio::test(flavor = "multi_thread")]
async fn both_slots_complete_each_other() {
    let (old, new) = versions();
    let (running, mut target) = (&old[4 * MIB..], new.clone());
    target[4 * MIB..].fill(0xAA);
    let mut scene = Scene::new(running, &target).await;
    let image = scene.rig.build("1.1.0", new, &[]);
    let cost = scene.install(&image).await;
    cost.assert_sent(12);
    // The half that was in place was not written again.
    assert!(cost.number("bytesWritten") < 6 * MIB as u64, "{cost:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_nothing_to_take_the_whole_image_comes_in_one_stream() {
    let (_, new) = versions();
    let mut scene = Scene::new(&noise(MIB, 50), &noise(9 * MIB, 51)).await;
    let image = scene.rig.build("1.1.0", new, &[]);
    let cost = scene.install(&image).await;
    cost.assert_sent(100);
    assert!(cost.requests <= 8, "{cost:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_version_again_costs_a_read() {
    let (_, new) = versions();
    let mut scene = Scene::new(&noise(MIB, 50), &new).await;
    let image = scene.rig.build("1.1.0", new, &[]);
    let cost = scene.install(&image).await;
    cost.assert_sent(0);
    assert_eq!(cost.number("bytesWritten"), 0, "{cost:?}");
    assert_eq!(cost.number("bytesReused"), image.raw.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_ranges_serves_an_update_too() {
    let (old, new) = versions();
    let mut scene = Scene::new(&old, b"").await;
    let image = scene.rig.build("1.1.0", new, &[]);
    scene.rig.serve(&image);
    let path = format!("/{}", image.file.file_name().unwrap().to_str().unwrap());
    scene.rig.server.describe(&path, |file| file.ranges = false);
    let uri = scene.rig.server.url(&path);
    let id = scene.begin(&uri).await;
    let section = scene.device.until_final(&scene.rig, &id).await;
    let log = scene.device.log();
    assert_eq!(section["status"], "applyComplete", "{section:#}\n{log}");
    assert!(scene.device.holds(Slot::B, &image.raw), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn scattered_changes_come_by_a_few_requests_side_by_side() {
    let old = noise(8 * MIB, 5);
    let mut new = old.clone();
    for at in (0..8 * MIB).step_by(512 << 10).skip(1) {
        new[at..at + 3000].copy_from_slice(&noise(3000, at as u64));
    }
    let mut scene = Scene::new(&old, b"").await;
    let image = scene.rig.build("1.1.0", new, &[]);
    let cost = scene.install(&image).await;
    cost.assert_sent(10);
    assert!(cost.requests >= 10, "{cost:?}");
}

/// What holds a part twice, with much else between. Of noise, so nothing but the part itself can be saved.
fn twice() -> (Vec<u8>, u64) {
    let part = noise(3 * MIB, 60);
    let content = [&part[..], &noise(5 * MIB, 61), &part, &noise(MIB / 2, 62)].concat();
    (content, part.len() as u64)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_image_holds_twice_is_fetched_once() {
    let (content, part) = twice();
    let mut scene = Scene::new(&noise(MIB, 50), b"").await;
    let image = scene.rig.build("1.1.0", content, &[]);
    let cost = scene.install(&image).await;
    // Less its ends, which are cut together with what is beside them, and the header, which is read twice.
    let saved = cost.file - cost.sent;
    assert!(saved > part - 600_000, "{saved}: {cost:?}");
    assert!(cost.number("bytesReused") > part, "with a hole: {cost:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_the_medium_forgot_before_its_repeat_is_told_as_the_medium_s_failure() {
    let (content, part) = twice();
    let mut scene = Scene::new(&noise(MIB, 50), b"").await;
    let image = scene.rig.build("1.1.0", content, &[]);
    let uri = scene.rig.serve(&image);
    scene.rig.server.throttle(Some(2 << 20));
    let id = scene.begin(&uri).await;
    let far = image.raw.len() as u64 / 2;
    while scene.rig.server.bytes_sent() < far {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let slot = File::options()
        .write(true)
        .open(scene.device.slot_file(Slot::B));
    slot.unwrap().write_all_at(&[0x55; 4096], part / 2).unwrap();
    let section = scene.device.until_final(&scene.rig, &id).await;
    assert_eq!(section["status"], "downloadfailed", "{section:#}");
    assert_eq!(
        section["error"]["code"], "slot-read-back-mismatch",
        "{section:#}"
    );
    let message = section["error"]["message"].as_str().unwrap();
    assert!(message.contains("of the image"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn boot_files_go_to_the_slot_s_own_partition_and_only_where_there_is_one() {
    let (old, new) = versions();
    let mut scene = Scene::new(&old, b"").await;
    let boot = scene.rig.dir.join("boot.img");
    let boot_files = noise(MIB + 512, 9);
    std::fs::write(&boot, &boot_files).unwrap();
    let boot = boot.to_str().unwrap();
    let image = scene.rig.build("1.1.0", new, &["--boot", boot]);
    let uri = scene.rig.serve(&image);
    let id = scene.begin(&uri).await;
    let section = scene.device.until_final(&scene.rig, &id).await;
    let code = &section["error"]["code"];
    assert_eq!(code, "boot-partition-missing", "{section:#}");
    assert!(scene.device.holds(Slot::B, &vec![0; 12 * MIB]), "untouched");

    // The same device, whose slots have one; a part of the new boot files is in the running slot's.
    scene.device.kill();
    let boot_slot = |slot: Slot| scene.device.dir.join(format!("boot-{slot}.img"));
    for (slot, content) in [(Slot::A, &boot_files[..]), (Slot::B, &[0xAA; 100])] {
        let file = File::create(boot_slot(slot)).unwrap();
        file.set_len(2 * MIB as u64).unwrap();
        file.write_all_at(content, 0).unwrap();
    }
    let config = scene.device.dir.join("fwupdated.toml");
    let mut text = std::fs::read_to_string(&config).unwrap();
    for slot in Slot::ALL {
        let table = format!("[slots.{slot}]\n");
        let with = format!("{table}boot = \"{}\"\n", boot_slot(slot).display());
        text = text.replace(&table, &with);
    }
    std::fs::write(&config, text).unwrap();
    let partition = boot_slot(Slot::B);
    scene.device.boot();
    scene.device.until_connected(&scene.rig).await;
    let cost = scene.install(&image).await;
    cost.assert_sent(12);
    let written = std::fs::read(partition).unwrap();
    assert!(written[..boot_files.len()] == boot_files[..]);
    assert!(written[boot_files.len()..].iter().all(|byte| *byte == 0));
}

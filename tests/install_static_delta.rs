//! Static deltas with the real daemon: what they save, and that nothing that is wrong with one costs more than bytes.
//! Bytes are counted at the image server.

mod support;

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
};

use fwupdated::{
    image::delta::suffix,
    update::{digest::Sha256, slot::Slot},
};
use support::{
    image_server::Fault,
    rig::{Device, Image, Rig, fwupdatectl, noise, run},
};
use tempfile::TempDir;

const SIZE: usize = 2 << 20;

struct Scene {
    rig: Rig,
    device: Device,
    /// What runs.
    image: Image,
    _dir: TempDir,
}

impl Scene {
    /// A device that was updated once: it knows what is in its running slot.
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let rig = Rig::start(dir.path()).await;
        let size = 2 * SIZE as u64;
        let mut device = Device::new(&rig, &dir.path().join("device"), size, "1.0.0", "");
        device.boot();
        device.until_connected(&rig).await;
        let image = rig.build("1.1.0", noise(SIZE, 1), &[]);
        let mut scene = Self {
            rig,
            device,
            image,
            _dir: dir,
        };
        let first = scene.rig.build("1.1.0", noise(SIZE, 1), &[]);
        scene.install(first).await;
        scene
    }

    /// The next version: no chunk is what it was, but nearly all of its bytes are.
    fn next(&self, version: &str) -> Image {
        let mut raw = self.image.raw.clone();
        for byte in raw.iter_mut().step_by(1500).filter(|byte| **byte != 0) {
            *byte = byte.wrapping_add(2) | 1;
        }
        self.rig.build(version, raw, &[])
    }

    /// Makes the delta to `image` and serves what `change` makes of it.
    fn serve_delta(&self, image: &Image, change: impl FnOnce(&mut Vec<u8>)) -> String {
        run(fwupdatectl()
            .args(["image", "delta"])
            .args([&self.image.file, &image.file]));
        let name = image.file.to_str().unwrap().to_owned();
        let file = name + &suffix(Sha256::of(&self.image.raw));
        let mut delta = fs::read(&file).unwrap();
        change(&mut delta);
        fs::write(&file, delta).unwrap();
        let name = Path::new(&file).file_name().unwrap().to_str().unwrap();
        let path = format!("/{name}");
        self.rig.server.put(&path, Path::new(&file));
        path
    }

    /// Installs `image`, which must end in a confirmed slot that holds exactly it; gives the bytes that the server
    /// sent for it.
    async fn install(&mut self, image: Image) -> u64 {
        self.device.update(&self.rig, &image).await;
        let log = self.device.log();
        let running = self.device.running();
        assert!(self.device.holds(running, &image.raw), "{log}");
        self.image = image;
        self.rig.server.bytes_sent()
    }

    fn said(&self, words: &str) -> usize {
        self.device.log().matches(words).count()
    }
}

fn length(image: &Image) -> u64 {
    fs::metadata(&image.file).unwrap().len()
}

/// What is done to the bytes of a delta.
type Damage = fn(&mut Vec<u8>);

#[tokio::test(flavor = "multi_thread")]
async fn a_delta_from_what_runs_replaces_nearly_all_of_the_download() {
    let mut scene = Scene::new().await;
    let image = scene.next("1.2.0");
    let delta = scene.serve_delta(&image, |_| {});
    let whole = length(&image);
    let sent = scene.install(image).await;
    assert!(sent < whole / 5, "{sent} of {whole}");
    assert_eq!(scene.said("used a static delta"), 1);
    let requests = scene.rig.server.requests();
    let of_delta = requests.iter().filter(|request| request.path == delta);
    assert_eq!(of_delta.count(), 3, "head, table and all frames");

    // Without one, nobody hears of it, and the image comes as ever.
    let image = scene.next("1.3.0");
    let whole = length(&image);
    let sent = scene.install(image).await;
    assert!(sent > whole / 2, "{sent} of {whole}");
    assert_eq!(scene.said("used a static delta"), 1);
    assert_eq!(scene.said("no static delta is used"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_wrong_with_a_delta_is_said_once_and_costs_only_bytes() {
    let mut scene = Scene::new().await;
    let wrongs: [(&str, Damage); 6] = [
        ("[delta-not-recognised]", |delta| delta.fill(b'<')),
        ("[delta-truncated]", |delta| delta.truncate(50)),
        ("[delta-other-pair]", |delta| delta[60] ^= 1),
        ("[delta-malformed]", |delta| delta[110] ^= 1),
        ("of use only in part", |delta| {
            let middle = delta.len() / 2;
            delta[middle..middle + 64].fill(0x55);
        }),
        ("no static delta is used", |delta| {
            let length = delta.len() - 1000;
            delta.truncate(length);
        }),
    ];
    for (number, (said, change)) in wrongs.into_iter().enumerate() {
        let image = scene.next(&format!("1.2.{number}"));
        scene.serve_delta(&image, change);
        let before = scene.said("static delta");
        scene.install(image).await;
        assert!(scene.said(said) > 0, "{said}\n{}", scene.device.log());
        assert_eq!(scene.said("static delta"), before + 1, "{said}");
    }
    let image = scene.next("1.3.0");
    let delta = scene.serve_delta(&image, |_| {});
    scene.rig.server.always(&delta, Fault::Status(403, &[], ""));
    scene.install(image).await;
    assert!(scene.said("[image-forbidden]") > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_slot_that_was_changed_spoils_only_the_patches_that_need_the_place() {
    let mut scene = Scene::new().await;
    assert_eq!(scene.device.running(), Slot::B);
    let slot = scene.device.slot_file(Slot::B);
    let slot = OpenOptions::new().write(true).open(slot).unwrap();
    slot.write_all_at(&noise(4096, 99), 300_000).unwrap();
    let image = scene.next("1.2.0");
    scene.serve_delta(&image, |_| {});
    let whole = length(&image);
    let sent = scene.install(image).await;
    assert!(sent < whole * 3 / 4, "{sent} of {whole}");
    assert_eq!(scene.said("of use only in part"), 1);
}

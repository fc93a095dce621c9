//! `make demo`: the main job on one machine, told as it happens. One update ends in the new slot, a second
//! one fails its health check and is rolled back.
//!
//! Hub, image server, daemon and operator's tool are the real ones; the slots and the U-Boot environment are
//! files. Only the reboot is a stand-in: a loader that reads the environment by the rules of the boot script
//! and starts the daemon again on the slot that they name.

#[path = "../support/mod.rs"]
mod support;

mod board;
mod story;

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::Value;
use support::rig::{COMPATIBLE, DEVICE, Device, Image, Rig, fwupdatectl};

use self::story::{Story, Voice};

/// Slots of the device, bytes.
const SLOT: u64 = 64 << 20;
/// What the image server sends, bytes a second: slow enough to see the download.
const LINE: u64 = 5 << 20;

/// The product's own pace of stage reports, so that a back end that polls sees each of them.
const SETTINGS: &str = r#"
[report]
stage_interval = "1s"
progress_interval = "2s"
reconnect_jitter = "100ms"
"#;

#[tokio::main]
async fn main() {
    let began = Instant::now();
    let dir = fresh_dir();
    let story = Story::default();
    story.text(&format!(
        "The main job of fwupdated on one machine: a back end calls the direct method firmwareUpdate, and the device\n\
         downloads a signed image, writes its spare slot, restarts into it on trial, and keeps it or goes back.\n\
         Real: MQTT over TLS, the hub's REST interface, HTTPS with ranges, signatures, slot writes, the U-Boot\n\
         environment's bytes. Stand-in: the reboot. Everything lies in {}.",
        relative(&dir).display()
    ));

    story.chapter("A hub, an image server, a signing key, three images");
    let rig = Rig::start(&dir).await;
    rig.server.throttle(Some(LINE));
    let ready = rig.emulator.ready();
    story.fact(
        "hub",
        &format!(
            "localhost, MQTT over TLS on port {}, REST on port {}",
            ready.mqtt_port, ready.https_port
        ),
    );
    story.fact(
        "image server",
        &format!("{}, {} MiB/s", rig.server.url("/"), LINE >> 20),
    );
    story.fact("signing key", &relative(&rig.key).display().to_string());
    let images = ["1.0.0", "2.0.0", "3.0.0"].map(|version| build(&rig, version));
    for image in &images {
        let size = fs::metadata(&image.file).expect("the image is there").len();
        story.fact(
            "image",
            &format!(
                "{} for {COMPATIBLE}: an ext4 root file system of {} MiB in {} MiB, signed",
                image.version,
                image.raw.len() >> 20,
                size >> 20
            ),
        );
    }

    story.chapter("The device boots 1.0.0 from slot a");
    let [first, second, third] = images;
    let mut device = Device::new(&rig, &dir.join("device"), SLOT, &first.version, SETTINGS);
    board::install_by_hand(&device, &first);
    board::add_health_check(&device);
    board::tell_boots(&mut device, &story);
    let device_lines = story.follow(Voice::Device, &device.log_file());
    device.boot();
    device.until_connected(&rig).await;
    show_status(&device, &story);

    story.chapter("The back end calls firmwareUpdate with the image of 2.0.0");
    let (section, code) = update(&rig, &mut device, &story, &second).await;
    expect(&device, &section, "applyComplete");
    assert_eq!(code, 0, "the operator's tool ends with 0");
    assert!(
        device.holds(device.running(), &second.raw),
        "the slot holds the image"
    );
    show_status(&device, &story);
    story.result(&format!(
        "2.0.0 runs from slot {} and is confirmed; the slot's bytes are the image's. The twin says {}.",
        device.running(),
        section["status"]
    ));

    story.chapter(
        "The back end calls firmwareUpdate with the image of 3.0.0, whose application is broken",
    );
    let (section, code) = update(&rig, &mut device, &story, &third).await;
    expect(&device, &section, "applyFailed");
    assert_eq!(
        section["error"]["code"], "health-check-failed",
        "{section:#}"
    );
    assert_ne!(code, 0, "the operator's tool says that it failed");
    assert!(
        device.holds(device.running(), &second.raw),
        "2.0.0 is untouched"
    );
    show_status(&device, &story);
    story.result(&format!(
        "3.0.0 was given up and 2.0.0 runs again from slot {}. The twin says {}, and why: {}",
        device.running(),
        section["status"],
        section["error"]["code"]
    ));
    device.stop();
    drop(device_lines);

    story.chapter("Where to look");
    where_to_look(&rig, &device, &story);
    story.text(&format!("\nThe demo took {} s.", began.elapsed().as_secs()));
}

/// `target/demo`, empty.
fn fresh_dir() -> PathBuf {
    let dir = support::rig::program("")
        .parent()
        .expect("target/debug")
        .join("demo");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir)
        .unwrap_or_else(|error| panic!("cannot make {}: {error}", dir.display()));
    dir
}

fn build(rig: &Rig, version: &str) -> Image {
    let raw = board::root_file_system(&rig.dir, version);
    rig.build(version, raw, &[])
}

/// One update as the operator sees it; returns the twin's section at its end and the exit code of
/// `fwupdatectl hub invoke --watch`.
async fn update(rig: &Rig, device: &mut Device, story: &Story, image: &Image) -> (Value, i32) {
    let uri = rig.serve(image);
    story.command(&format!(
        "fwupdatectl hub invoke {DEVICE} --uri {uri} --watch"
    ));
    let mut operator = rig.hub(&[
        "invoke",
        DEVICE,
        "--uri",
        &uri,
        "--watch",
        "--timeout",
        "2m",
    ]);
    let mut operator = story.run(Voice::Operator, &mut operator);
    let code = device
        .until("end of the operator's command", |_| {
            operator.try_wait().expect("it can be waited for")
        })
        .await
        .code();
    story.settle();
    (rig.section(), code.unwrap_or(-1))
}

fn expect(device: &Device, section: &Value, word: &str) {
    assert_eq!(section["status"], word, "{section:#}\n{}", device.log());
}

fn show_status(device: &Device, story: &Story) {
    // The hub link's last words may still be on their way.
    std::thread::sleep(Duration::from_millis(500));
    story.settle();
    story.command("fwupdatectl status");
    let mut command = fwupdatectl();
    command.arg("status").arg("--config").arg(device.config());
    story
        .run(Voice::Status, &mut command)
        .wait()
        .expect("it ends");
    story.settle();
}

fn where_to_look(rig: &Rig, device: &Device, story: &Story) {
    let twin = rig.dir.join("twin.json");
    let document =
        serde_json::to_string_pretty(&rig.emulator.twin(DEVICE)).expect("a twin is JSON");
    fs::write(&twin, document).expect("the twin can be kept");
    let ctl = support::rig::program("fwupdatectl");
    let show = |what: &str, path: &Path| story.fact(what, &relative(path).display().to_string());
    show("the device's journal", &device.log_file());
    show("its twin at the end", &twin);
    show("every packet at the hub", &rig.dir.join("wire.log"));
    show("its configuration", &device.config());
    let ctl = relative(&ctl).display().to_string();
    let config = relative(&device.config()).display().to_string();
    let image = relative(&rig.dir.join("rootfs-2.0.0.img.zst"))
        .display()
        .to_string();
    let raw = relative(&rig.dir.join("rootfs-2.0.0.img"))
        .display()
        .to_string();
    let env = relative(&device.dir.join("fw_env.config"))
        .display()
        .to_string();
    story.fact(
        "what the device knows",
        &format!("{ctl} status --config {config}"),
    );
    story.fact(
        "what an image says",
        &format!("{ctl} image inspect {image}"),
    );
    story.fact(
        "an image is a .zst file",
        &format!("zstd -dc {image} | cmp - {raw}"),
    );
    story.fact(
        "the boot slot, by U-Boot's tool",
        &format!("fw_printenv -c {env}"),
    );
    story.fact("the same by hand", "docs/tutorial/firmware-update.md");
}

/// As a person in the checkout would type it.
fn relative(path: &Path) -> &Path {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here).unwrap_or(path)
}

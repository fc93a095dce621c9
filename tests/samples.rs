//! Programs written after the classic firmware update samples work with ours unchanged: their back ends (the official
//! service SDKs, the samples' payloads and configuration, their poll of the twin, their queries) with fwupdated, and their device
//! (the official device SDK, which knows nothing of fwupdated) with `fwupdatectl hub invoke`.

mod support;

use std::{process::Stdio, time::Duration};

use fwupdated::update::digest::Sha256;
use iothub_emulator::{Emulator, Options};
use serde_json::Value;
use support::{
    image_server::ImageServer,
    own_hub,
    rig::{DEVICE, Device, Image, PATIENCE, Rig, fwupdatectl, noise},
    sdk,
};
use tokio::{
    process::{Child, Command},
    time::timeout,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_back_end_that_sends_json_in_a_string_sees_every_stage() {
    back_end("back_end.py", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_back_end_that_sends_an_object_sees_every_stage() {
    back_end("node/back_end.js", &["object"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_back_end_that_sends_a_bare_url_sees_every_stage() {
    back_end("node/back_end.js", &["text"]).await;
}

/// Lets a back end update a real daemon by the method; it must see every stage and find it by query at the end.
async fn back_end(script: &str, payload: &[&str]) {
    let Some(mut scene) = Scene::start(script).await else {
        return;
    };
    let uri = scene.rig.serve(&scene.image);
    let text = scene.run(&[&[&*uri], payload].concat()).await;
    let lines: Vec<_> = text.lines().collect();
    let expected = [
        "answer 200 FirmwareUpdate started",
        "status waiting",
        "status downloading",
        "status downloadComplete",
        "status applying",
        "status applyComplete",
        "complete pi-01",
    ];
    assert_eq!(lines, expected, "{}", scene.device.log());
    assert!(scene.device.holds(scene.device.running(), &scene.image.raw));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_back_end_that_sets_a_configuration_sees_its_metrics_filled() {
    let Some(mut scene) = Scene::start("node/configuration_back_end.js").await else {
        return;
    };
    let uri = scene.rig.serve(&scene.image);
    let digest = Sha256::of(&std::fs::read(&scene.image.file).unwrap()).to_string();
    let text = scene.run(&[&uri, "1.1.0", &digest]).await;
    assert_eq!(text, "targeted 1 applied 1 current 1\n");
    assert!(scene.device.holds(scene.device.running(), &scene.image.raw));
    let mut words: Vec<_> = reported(&scene.rig.emulator, &["firmware", "fwUpdateStatus"]);
    words.dedup();
    // Arming the slot takes milliseconds: `rebooting` may take the place of `applying` in its patch.
    words.retain(|word| word != "applying");
    let expected = [
        "current",
        "downloading",
        "verifying",
        "rebooting",
        "current",
    ];
    assert_eq!(words, expected, "{}", scene.device.log());
}

/// A daemon that runs 1.0.0, an image of 1.1.0 for it, and a back end that has not started yet.
struct Scene {
    back_end: Command,
    rig: Rig,
    device: Device,
    image: Image,
    _dir: tempfile::TempDir,
}

impl Scene {
    async fn start(script: &str) -> Option<Self> {
        let back_end = sdk::script(script)?;
        let dir = tempfile::tempdir().unwrap();
        let rig = Rig::start_for_sdks(dir.path()).await;
        if sdk::is_node(script) && !own_hub::has_port_443_or_skip(&rig.emulator, script) {
            return None;
        }
        // The product's own pace: each stage stands for at least a second, and the back end looks twice in it.
        let pace = "[report]\nreconnect_jitter = \"100ms\"\n";
        let mut device = Device::new(&rig, &dir.path().join("device"), 8 << 20, "1.0.0", pace);
        device.boot();
        device.until_connected(&rig).await;
        let image = rig.build("1.1.0", noise(4 << 20, 5), &[]);
        rig.server.throttle(Some(1 << 20));
        // The stand-in for a boot takes its time, as a board does; else `applying` would pass unseen.
        device.on_boot = Some(Box::new(|_, _| std::thread::sleep(Duration::from_secs(2))));
        Some(Self {
            back_end,
            rig,
            device,
            image,
            _dir: dir,
        })
    }

    /// Runs the back end, while the device lives on, until it has ended well; what it said.
    async fn run(&mut self, arguments: &[&str]) -> String {
        let ready = self.rig.emulator.ready();
        let mut back_end = self
            .back_end
            .arg(DEVICE)
            .args(arguments)
            .env("CONNECTION_STRING", &ready.service_connection_string)
            .env("REQUESTS_CA_BUNDLE", &ready.ca_file)
            .env("NODE_EXTRA_CA_CERTS", &ready.ca_file)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        self.device
            .until("the back end's end", |_| back_end.try_wait().unwrap())
            .await;
        let output = back_end.wait_with_output().await.unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.status.success(),
            "{text}\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        text
    }
}

/// Each text that the device has reported at `path`, in order.
fn reported(emulator: &Emulator, path: &[&str]) -> Vec<String> {
    let history = emulator.reported_history(DEVICE);
    let at = |entry: &Value| {
        let value = path
            .iter()
            .fold(&entry["patch"], |value, name| &value[*name]);
        value.as_str().map(str::to_owned)
    };
    history.iter().filter_map(at).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_of_the_tutorial_is_followed_to_apply_complete() {
    let Some(classic) = Classic::start().await else {
        return;
    };
    classic.server.put("/image.bin", noise(100_000, 3));
    let (code, text) = classic.invoke_and_watch("/image.bin").await;
    assert!(
        text.contains("pi-01 answered 200: \"FirmwareUpdate started\""),
        "{text}"
    );
    assert!(text.ends_with("pi-01: the update is complete\n"), "{text}");
    assert_eq!(code, 0, "{text}");
    let steps = [
        "waiting",
        "downloading",
        "downloadComplete",
        "applying",
        "applyComplete",
    ];
    assert_eq!(classic.words(), steps);
    assert_eq!(classic.server.bytes_sent(), 100_000);
    classic.emulator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_of_the_tutorial_that_finds_no_image_ends_with_1() {
    let Some(classic) = Classic::start().await else {
        return;
    };
    let (code, text) = classic.invoke_and_watch("/missing.bin").await;
    assert!(text.contains("downloadfailed"), "{text}");
    assert!(text.contains("Not Found [404]"), "{text}");
    assert!(text.ends_with("pi-01: the update failed\n"), "{text}");
    assert_eq!(code, 1, "{text}");
    assert_eq!(
        classic.words(),
        ["waiting", "downloading", "downloadfailed"]
    );
    // The next update of the same device is judged by its own end.
    classic.server.put("/image.bin", noise(1000, 4));
    let (code, text) = classic.invoke_and_watch("/image.bin").await;
    assert_eq!(code, 0, "{text}");
    assert!(!text.contains("404"), "{text}");
    classic.emulator.stop().await;
}

/// A device program of the tutorial's kind, its hub and an image server.
struct Classic {
    emulator: Emulator,
    server: ImageServer,
    _device: Child,
    _dir: tempfile::TempDir,
}

impl Classic {
    async fn start() -> Option<Self> {
        let mut device = sdk::script("node/classic_device.js")?;
        let dir = tempfile::tempdir().unwrap();
        let emulator = own_hub::start(Options::default().device(DEVICE)).await;
        let server = ImageServer::start();
        let trusted =
            [emulator.ca_file(), &server.ca_file()].map(|file| std::fs::read(file).unwrap());
        let trust = dir.path().join("trust.pem");
        std::fs::write(&trust, trusted.concat()).unwrap();
        let device = device
            .env("CONNECTION_STRING", &emulator.ready().devices[DEVICE])
            .env("NODE_EXTRA_CA_CERTS", trust)
            // The tutorial waits for 4 s; what watches looks each half second.
            .env("PAUSE", "1000")
            .spawn()
            .unwrap();
        Some(Self {
            emulator,
            server,
            _device: device,
            _dir: dir,
        })
    }

    /// Runs `fwupdatectl hub invoke --watch`; its exit code and standard output.
    async fn invoke_and_watch(&self, path: &str) -> (i32, String) {
        let ready = self.emulator.ready();
        let mut command = Command::from(fwupdatectl());
        command
            .args(["hub", "invoke", DEVICE, "--watch"])
            .args(["--connect-timeout", "30", "--uri", &self.server.url(path)])
            .arg("--ca-file")
            .arg(&ready.ca_file)
            .env(
                "FWUPDATED_HUB_CONNECTION_STRING",
                &ready.service_connection_string,
            )
            .kill_on_drop(true);
        let output = timeout(PATIENCE, command.output()).await.unwrap().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        (output.status.code().unwrap(), text)
    }

    /// The status words that the device has reported, in order.
    fn words(&self) -> Vec<String> {
        reported(&self.emulator, &["iothubDM", "firmwareUpdate", "status"])
    }
}

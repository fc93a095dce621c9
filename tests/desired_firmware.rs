//! Updates that the twin's desired property `firmware` asks for, as the sample of 2018 does, with the real
//! programs: the words that its fleet queries look for, in their order, and what starts an update and what does not.

mod support;

use std::time::Duration;

use fwupdated::update::slot::Slot;
use serde_json::{Value, json};
use support::rig::{DEVICE, Device, Image, Rig, noise};
use tempfile::TempDir;

const MIB: usize = 1 << 20;

struct Scene {
    rig: Rig,
    device: Device,
    _dir: TempDir,
}

/// A device with slots of 8 MiB that runs version 1.0.0 and is not switched on yet.
async fn scene() -> Scene {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let path = dir.path().join("device");
    let device = Device::new(&rig, &path, 8 * MIB as u64, "1.0.0", "");
    Scene {
        rig,
        device,
        _dir: dir,
    }
}

impl Scene {
    fn image(&self, version: &str, seed: u64) -> Image {
        self.rig.build(version, noise(2 * MIB, seed), &[])
    }

    fn desire(&self, firmware: &Value) {
        let desired = json!({ "firmware": firmware });
        self.rig.emulator.patch_desired(DEVICE, &desired).unwrap();
    }

    fn desire_image(&self, image: &Image) {
        let uri = self.rig.serve(image);
        self.desire(&json!({"fwVersion": image.version, "fwPackageURI": uri}));
    }

    fn firmware(&self) -> Value {
        self.rig.emulator.twin(DEVICE)["properties"]["reported"]["firmware"].clone()
    }

    /// Every `fwUpdateStatus` with its substatus that the twin has shown, without repeats.
    fn steps(&self) -> Vec<(String, String)> {
        let (mut word, mut more) = (String::new(), String::new());
        let mut steps: Vec<(String, String)> = Vec::new();
        for entry in self.rig.emulator.reported_history(DEVICE) {
            let firmware = &entry["patch"]["firmware"];
            for (member, shown) in [
                ("fwUpdateStatus", &mut word),
                ("fwUpdateSubstatus", &mut more),
            ] {
                if let Some(text) = firmware[member].as_str() {
                    text.clone_into(shown);
                }
            }
            let step = (word.clone(), more.clone());
            if steps.last() != Some(&step) {
                steps.push(step);
            }
        }
        steps
    }

    /// The words alone, from the `skip`th on.
    fn words(&self, skip: usize) -> Vec<String> {
        let mut words: Vec<_> = self.steps().into_iter().map(|(word, _)| word).collect();
        words.dedup();
        words.split_off(skip)
    }

    async fn until(&mut self, what: &str, done: impl Fn(&Value) -> bool) {
        let rig = &self.rig;
        let firmware = || rig.emulator.twin(DEVICE)["properties"]["reported"]["firmware"].clone();
        let shown = |_: &mut Device| done(&firmware()).then_some(());
        self.device.until(what, shown).await;
    }

    async fn until_current(&mut self, version: &str) {
        let done = |firmware: &Value| {
            firmware["currentFwVersion"] == version && firmware["fwUpdateStatus"] == "current"
        };
        self.until(version, done).await;
    }

    async fn until_word(&mut self, word: &str) {
        self.until(word, |firmware| firmware["fwUpdateStatus"] == word)
            .await;
    }

    /// Nothing is asked of the image server while the device connects again, starts again, and a while longer.
    async fn assert_nothing_starts(&mut self) {
        let (asked, words) = (self.rig.server.requests().len(), self.words(0));
        for restart in [false, true] {
            let connections = self.rig.emulator.connections(DEVICE);
            if restart {
                self.device.kill();
                self.device.start();
            } else {
                self.rig.emulator.drop_connection(DEVICE);
            }
            let emulator = &self.rig.emulator;
            let again = |_: &mut Device| (emulator.connections(DEVICE) > connections).then_some(());
            self.device.until("connection", again).await;
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
        assert_eq!(self.rig.server.requests().len(), asked);
        assert_eq!(self.words(0), words);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_was_offline_installs_and_says_each_word_in_order_and_only_once() {
    let mut scene = scene().await;
    let image = scene.image("2.0.0", 7);
    // A trial that takes its time is seen.
    scene.device.add_health_check("10-slow", "sleep 2");
    // Desired before the device was ever switched on.
    scene.desire_image(&image);
    scene.device.boot();
    scene.until_current("2.0.0").await;
    let expected = [
        ("current", ""),
        ("downloading", "Start downloading"),
        ("verifying", "Start verifying download"),
        ("applying", "Start applying image"),
        ("rebooting", "Start reboot"),
        ("rebooting", "Finished reboot"),
        ("current", ""),
    ];
    let steps = scene.steps();
    let words: Vec<&str> = {
        let mut words: Vec<&str> = steps.iter().map(|(word, _)| word.as_str()).collect();
        words.dedup();
        words
    };
    assert_eq!(
        words,
        [
            "current",
            "downloading",
            "verifying",
            "applying",
            "rebooting",
            "current"
        ],
        "{steps:?}"
    );
    let mut rest = steps.iter();
    for (word, more) in expected {
        let step = (word.to_owned(), more.to_owned());
        assert!(rest.any(|shown| *shown == step), "{step:?} in {steps:?}");
    }
    let firmware = scene.firmware();
    assert_eq!(firmware["pendingFwVersion"], "");
    let (start, end) = (
        firmware["lastFwUpdateStartTime"].as_str().unwrap(),
        firmware["lastFwUpdateEndTime"].as_str().unwrap(),
    );
    assert!(start.len() == 24 && start < end, "{firmware}");
    assert_eq!(scene.device.running(), Slot::B);
    // The classic section tells the same story.
    let section = scene.rig.section();
    assert_eq!(section["status"], "applyComplete", "{section:#}");

    scene.assert_nothing_starts().await;
    // The same once more is no change, and neither is a change elsewhere; to take it away asks for nothing.
    scene.desire_image(&image);
    let elsewhere = json!({"telemetry": 5});
    scene
        .rig
        .emulator
        .patch_desired(DEVICE, &elsewhere)
        .unwrap();
    scene.desire(&Value::Null);
    scene.assert_nothing_starts().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_installed_is_an_error_once_and_costs_nothing_else() {
    let mut scene = scene().await;
    scene.device.boot();
    scene.device.until_connected(&scene.rig).await;
    let image = scene.image("2.0.0", 7);
    let uri = scene.rig.serve(&image);
    let plain = uri.replace("https:", "http:");
    let version = "2.0.0";
    for (firmware, code) in [
        (
            json!({"fwVersion": version, "fwPackageURI": plain}),
            "url-insecure",
        ),
        (
            json!({"fwPackageURI": uri, "fwPackageCheckValue": "123456abcde"}),
            "desired-check-value",
        ),
        (
            json!({"fwVersion": 2, "fwPackageURI": uri, "fwPackageCheckValue": null}),
            "desired-type",
        ),
        (
            json!({"fwVersion": version, "fwPackageURI": null}),
            "desired-no-uri",
        ),
        (json!("2.0.0"), "desired-kind"),
    ] {
        scene.desire(&firmware);
        let rig = &scene.rig;
        let refused = |_: &mut Device| (rig.section()["error"]["code"] == code).then_some(());
        scene.device.until(code, refused).await;
        assert_eq!(scene.firmware()["fwUpdateStatus"], "error", "{firmware}");
        let text = scene.firmware()["fwUpdateSubstatus"].clone();
        assert!(text.as_str().is_some_and(|text| text.len() > 10), "{text}");
    }
    assert_eq!(scene.rig.server.requests().len(), 0);
    scene.assert_nothing_starts().await;

    // A download that fails is an error as well.
    let absent = scene.rig.server.url("/absent.img");
    scene.desire(&json!({"fwVersion": "3.0.0", "fwPackageURI": absent}));
    let rig = &scene.rig;
    let failed = |_: &mut Device| {
        (rig.section()["fwVersion"] == "3.0.0" && rig.section()["error"].is_object()).then_some(())
    };
    scene.device.until("failed download", failed).await;
    assert_eq!(scene.firmware()["fwUpdateStatus"], "error");
    scene.assert_nothing_starts().await;

    // And what is right is installed, its check value in the sample's or the common form.
    let bytes = std::fs::read(&image.file).unwrap();
    let digest = fwupdated::update::digest::Sha256::of(&bytes);
    let value = format!("sha256:{digest}");
    scene.desire(&json!({"fwVersion": version, "fwPackageURI": uri, "fwPackageCheckValue": value}));
    scene.until_current(version).await;
    assert_eq!(scene.rig.section()["error"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unhealthy_version_is_an_error_then_rolled_back_and_not_tried_again_until_asked() {
    let mut scene = scene().await;
    let check = scene
        .device
        .add_health_check("10-app", "echo broken; exit 1");
    scene.device.boot();
    scene.device.until_connected(&scene.rig).await;
    let image = scene.image("2.0.0", 7);
    scene.desire_image(&image);
    scene.until_word("rolledback").await;
    assert_eq!(
        scene.words(0),
        [
            "current",
            "downloading",
            "verifying",
            "applying",
            "rebooting",
            "error",
            "rolledback"
        ],
        "{:?}",
        scene.steps()
    );
    let steps = scene.steps();
    let error = steps.iter().find(|(word, _)| word == "error").unwrap();
    assert!(error.1.contains("broken"), "{steps:?}");
    assert_eq!(steps.last().unwrap().1, "Rolled back to: 1.0.0");
    assert_eq!(scene.firmware()["currentFwVersion"], "1.0.0");
    let words = [
        "waiting",
        "downloading",
        "downloadComplete",
        "applying",
        "applyFailed",
    ];
    let id = scene.rig.section()["updateId"].as_str().unwrap().to_owned();
    assert_eq!(scene.rig.words(&id), words);
    scene.assert_nothing_starts().await;

    // Repaired, and asked for by the method: it is installed.
    std::fs::remove_file(check).unwrap();
    let uri = scene.rig.serve(&image);
    let payload = json!({"fwPackageUri": uri, "force": true});
    let (status, body) = scene.rig.invoke(payload).await;
    assert_eq!(status, 200, "{body}");
    scene.until_current("2.0.0").await;
    scene.assert_nothing_starts().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_never_comes_up_is_an_error_then_rolled_back() {
    let mut scene = scene().await;
    scene.device.boot();
    scene.device.until_connected(&scene.rig).await;
    let image = scene.image("2.0.0", 7);
    scene.desire_image(&image);
    scene.device.stop_before_the_reboot().await;
    for _ in 0..3 {
        let boot = fwupdated::platform::uboot_env::boot_decision;
        assert_eq!(scene.device.env().update(boot).unwrap(), Slot::B);
    }
    scene.device.boot();
    scene.until_word("rolledback").await;
    assert_eq!(
        scene.words(0),
        [
            "current",
            "downloading",
            "verifying",
            "applying",
            "rebooting",
            "error",
            "rolledback"
        ],
        "{:?}",
        scene.steps()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_desired_during_an_update_waits_and_the_newest_wins() {
    let mut scene = scene().await;
    scene.device.boot();
    scene.device.until_connected(&scene.rig).await;
    let by_method = scene.image("2.0.0", 7);
    let skipped = scene.image("3.0.0", 8);
    let newest = scene.image("4.0.0", 9);
    scene.rig.server.throttle(Some(MIB as u64));
    let uri = scene.rig.serve(&by_method);
    let (status, body) = scene.rig.invoke(json!({"fwPackageUri": uri})).await;
    assert_eq!(status, 200, "{body}");
    scene.until_word("downloading").await;
    // While an update runs that a method started, desired versions wait.
    scene.desire_image(&skipped);
    scene.desire(&json!({"fwVersion": [], "fwPackageURI": 5}));
    scene.desire_image(&newest);
    scene.rig.server.throttle(Some(8 * MIB as u64));
    scene.until_current("2.0.0").await;
    // And while a desired one runs, the method is busy, unless it names the same package.
    scene.rig.server.throttle(Some(MIB as u64));
    scene
        .until("4.0.0", |firmware| {
            firmware["pendingFwVersion"] == "4.0.0" && firmware["fwUpdateStatus"] == "downloading"
        })
        .await;
    let (status, body) = scene.rig.invoke(json!({"fwPackageUri": uri})).await;
    assert_eq!(
        (status, &body["code"]),
        (409, &json!("update-busy")),
        "{body}"
    );
    // Not served anew: that would change the file's ETag under the download.
    let name = newest.file.file_name().unwrap().to_str().unwrap();
    let same = scene.rig.server.url(&format!("/{name}"));
    let (status, body) = scene.rig.invoke(json!(same)).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["updateId"], scene.rig.section()["updateId"]);
    scene.rig.server.throttle(None);
    scene.until_current("4.0.0").await;
    let asked = scene.rig.server.requests();
    assert!(
        asked.iter().all(|request| !request.path.contains("3.0.0")),
        "what was overtaken is never fetched"
    );
    scene.assert_nothing_starts().await;
}

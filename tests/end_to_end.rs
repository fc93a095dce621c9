//! The main job with the real programs: hub, image server, daemon, two slots and a U-Boot environment.
//! Only the reboot is a stand-in.

mod support;

use std::time::Duration;

use fwupdated::update::slot::Slot;
use serde_json::{Value, json};
use support::rig::{DEVICE, Device, Image, Rig, noise};
use tempfile::TempDir;

const MIB: usize = 1 << 20;

/// Every status word of a good run, in order.
const GOOD: [&str; 5] = [
    "waiting",
    "downloading",
    "downloadComplete",
    "applying",
    "applyComplete",
];

struct Scene {
    rig: Rig,
    device: Device,
    _dir: TempDir,
}

/// A connected device with slots of 8 MiB that runs version 1.0.0.
async fn scene(settings: &str) -> Scene {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut device = Device::new(
        &rig,
        &dir.path().join("device"),
        8 * MIB as u64,
        "1.0.0",
        settings,
    );
    device.boot();
    device.until_connected(&rig).await;
    Scene {
        rig,
        device,
        _dir: dir,
    }
}

/// Calls the method; returns the id of the accepted update.
async fn start(rig: &Rig, uri: &str) -> String {
    let (status, body) = rig.invoke(json!({ "fwPackageUri": uri })).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["message"], "FirmwareUpdate started");
    body["updateId"].as_str().unwrap().to_owned()
}

fn image(rig: &Rig, version: &str, seed: u64) -> Image {
    rig.build(version, noise(4 * MIB, seed), &[])
}

/// Bytes that a request for `range` of a file of `size` bytes asks for.
fn span(range: Option<&str>, size: u64) -> u64 {
    let Some(range) = range.and_then(|range| range.strip_prefix("bytes=")) else {
        return size;
    };
    let (first, last) = range.split_once('-').expect("a range has two ends");
    let first: u64 = first.parse().expect("a number");
    let last = last.parse().unwrap_or(size - 1);
    last.min(size - 1) + 1 - first
}

fn assert_complete(scene: &Scene, image: &Image, section: &Value, slot: Slot) {
    assert_eq!(
        section["status"],
        "applyComplete",
        "{section:#}\n{}",
        scene.device.log()
    );
    assert_eq!(section["fwVersion"], image.version.as_str());
    assert!(section["error"].is_null());
    assert_eq!(scene.device.running(), slot);
    assert!(
        scene.device.holds(slot, &image.raw),
        "the slot holds the image"
    );
    assert_eq!(
        scene.device.variable("fwupdated_slot").as_deref(),
        Some(slot.name())
    );
    assert_eq!(scene.device.variable("fwupdated_trial"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_method_call_becomes_a_confirmed_new_slot() {
    let mut scene = scene("").await;
    let image = image(&scene.rig, "1.1.0", 7);
    let id = start(&scene.rig, &scene.rig.serve(&image)).await;
    let section = scene.device.until_final(&scene.rig, &id).await;
    assert_complete(&scene, &image, &section, Slot::B);
    assert_eq!(scene.rig.words(&id), GOOD);

    // The times that back ends read are there, in order, and in their form.
    let times = [
        "startedWaitingTime",
        "startedDownloadingTime",
        "downloadCompleteTime",
        "startedApplyingImage",
        "lastFirmwareUpdate",
    ];
    let times = times.map(|name| {
        section[name]
            .as_str()
            .unwrap_or_else(|| panic!("{name}: {section:#}"))
            .to_owned()
    });
    assert!(times.is_sorted(), "{times:?}");
    assert!(
        times
            .iter()
            .all(|time| time.len() == 24 && time.ends_with('Z')),
        "{times:?}"
    );
    let twin = scene.rig.emulator.twin(DEVICE);
    let reported = &twin["properties"]["reported"];
    assert_eq!(reported["iothubDM"]["firmwareVersion"], "1.1.0");
    assert_eq!(reported["firmware"]["fwUpdateStatus"], "current");
    assert_eq!(reported["firmware"]["currentFwVersion"], "1.1.0");
    assert_eq!(reported["fwupdated"]["bootedSlot"], "b");
    // It was told to boot the new slot on trial exactly once.
    assert_eq!(scene.device.boots, 2);

    // And back to slot a with the next version; the old run's times do not show.
    let next = self::image(&scene.rig, "1.2.0", 8);
    let id = start(&scene.rig, &scene.rig.serve(&next)).await;
    let section = scene.device.until_final(&scene.rig, &id).await;
    assert_complete(&scene, &next, &section, Slot::A);
    assert_eq!(scene.rig.words(&id), GOOD);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trial_that_does_not_become_healthy_is_rolled_back_and_remembered() {
    let mut scene = scene("").await;
    let script = "echo \"the app of $FWUPDATED_VERSION does not answer\"\nexit 1";
    let check = scene.device.add_health_check("10-app", script);
    let image = image(&scene.rig, "1.1.0", 7);
    let uri = scene.rig.serve(&image);
    let id = start(&scene.rig, &uri).await;
    let section = scene.device.until_final(&scene.rig, &id).await;
    assert_eq!(section["status"], "applyFailed", "{section:#}");
    assert_eq!(section["error"]["code"], "health-check-failed");
    let message = section["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("the app of 1.1.0 does not answer"),
        "{message}"
    );
    assert_eq!(scene.device.running(), Slot::A);
    assert_eq!(
        scene.device.variable("fwupdated_slot").as_deref(),
        Some("a")
    );
    assert_eq!(scene.device.variable("fwupdated_trial"), None);
    let twin = scene.rig.emulator.twin(DEVICE);
    let firmware = &twin["properties"]["reported"]["firmware"];
    assert_eq!(firmware["currentFwVersion"], "1.0.0");
    assert_eq!(firmware["fwUpdateStatus"], "rolledback");

    // The same version again is refused at once when it is named, and after the header when it is not.
    let (status, body) = scene
        .rig
        .invoke(json!({"fwPackageUri": uri, "fwVersion": "1.1.0"}))
        .await;
    assert_eq!(
        (status, body["code"].as_str()),
        (403, Some("known-bad")),
        "{body}"
    );
    let id = start(&scene.rig, &uri).await;
    let section = scene.device.until_final(&scene.rig, &id).await;
    assert_eq!(section["error"]["code"], "known-bad", "{section:#}");

    // Repaired on the device, and forced: it installs.
    std::fs::remove_file(&check).unwrap();
    let (status, body) = scene
        .rig
        .invoke(json!({"fwPackageUri": uri, "force": true}))
        .await;
    assert_eq!(status, 200, "{body}");
    let section = scene
        .device
        .until_final(&scene.rig, body["updateId"].as_str().unwrap())
        .await;
    assert_complete(&scene, &image, &section, Slot::B);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_whose_reboot_is_refused_gets_home_all_the_same() {
    let mut scene = scene("").await;
    scene.device.add_health_check("10-bad", "exit 1");
    let image = image(&scene.rig, "1.1.0", 7);
    let id = start(&scene.rig, &scene.rig.serve(&image)).await;
    scene.device.stop_before_the_reboot().await;
    // In the new slot the first request to reboot is refused.
    let dir = scene.device.dir.display().to_string();
    let text = std::fs::read_to_string(scene.device.config()).unwrap();
    let works = format!(r#"["touch", "{dir}/reboot-requested"]"#);
    let refuses = format!(
        r#"["sh", "-c", "test -e {dir}/refused && touch {dir}/reboot-requested || {{ touch {dir}/refused; exit 1; }}"]"#
    );
    assert!(text.contains(&works), "{text}");
    std::fs::write(scene.device.config(), text.replace(&works, &refuses)).unwrap();
    scene.device.boot();
    let section = scene.device.until_final(&scene.rig, &id).await;
    assert_eq!(section["status"], "applyFailed", "{section:#}");
    assert_eq!(section["error"]["code"], "health-check-failed");
    assert_eq!(scene.device.running(), Slot::A);
    assert!(scene.device.dir.join("refused").exists());
    assert!(scene.device.log().contains("reboot-command-failed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_never_comes_up_ends_as_a_reported_failure() {
    let mut scene = scene("").await;
    let image = image(&scene.rig, "1.1.0", 7);
    let id = start(&scene.rig, &scene.rig.serve(&image)).await;
    scene.device.stop_before_the_reboot().await;
    // Three boots in which the new slot's kernel panics before anything can start.
    for _ in 0..3 {
        let slot = scene
            .device
            .env()
            .update(fwupdated::platform::uboot_env::boot_decision)
            .unwrap();
        assert_eq!(slot, Slot::B);
    }
    scene.device.boot();
    let section = scene.device.until_final(&scene.rig, &id).await;
    assert_eq!(section["status"], "applyFailed", "{section:#}");
    assert_eq!(section["error"]["code"], "trial-boot-failed");
    assert_eq!(scene.device.running(), Slot::A);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_is_killed_in_each_stage_and_goes_on() {
    let mut scene = scene("").await;
    for (number, word) in GOOD[..4].iter().enumerate() {
        let image = image(
            &scene.rig,
            &format!("1.{}.0", number + 1),
            10 + number as u64,
        );
        scene.rig.server.throttle(Some(4 * MIB as u64));
        let id = start(&scene.rig, &scene.rig.serve(&image)).await;
        scene.device.until_word(&scene.rig, &id, word).await;
        scene.device.kill();
        scene.rig.server.throttle(None);
        if !scene.device.follow_reboot() {
            scene.device.start();
        }
        let section = scene.device.until_final(&scene.rig, &id).await;
        let slot = if number % 2 == 0 { Slot::B } else { Slot::A };
        assert_complete(&scene, &image, &section, slot);
        // A word that was still to be told when the process died may be overtaken by the next one.
        let words = scene.rig.words(&id);
        let mut rest = GOOD.iter();
        assert!(
            words.iter().all(|word| rest.any(|good| good == word)),
            "killed at {word}: {words:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_downloaded_before_a_kill_is_not_downloaded_again() {
    let mut scene = scene("").await;
    let image = image(&scene.rig, "1.1.0", 7);
    scene.rig.server.throttle(Some(2 * MIB as u64));
    let id = start(&scene.rig, &scene.rig.serve(&image)).await;
    scene
        .device
        .until("half of the download", |_| {
            let done = scene.rig.section()["progress"]["bytesDone"]
                .as_u64()
                .unwrap_or(0);
            (done > 2 * MIB as u64).then_some(())
        })
        .await;
    scene.device.kill();
    // Let the server notice, so that what it sends from here on is the second run's.
    tokio::time::sleep(Duration::from_millis(300)).await;
    scene.rig.server.clear_requests();
    scene.rig.server.throttle(None);
    scene.device.start();
    let section = scene.device.until_final(&scene.rig, &id).await;
    assert_complete(&scene, &image, &section, Slot::B);
    let size = std::fs::metadata(&image.file).unwrap().len();
    let again: u64 = (scene.rig.server.requests().iter())
        .map(|request| span(request.range.as_deref(), size))
        .sum();
    assert!(
        again < size * 3 / 4,
        "{again} of {size} bytes were sent again"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_lost_in_each_stage_hears_the_end_all_the_same() {
    let mut scene = scene("").await;
    for (number, word) in GOOD[..4].iter().enumerate() {
        let image = image(
            &scene.rig,
            &format!("1.{}.0", number + 1),
            20 + number as u64,
        );
        scene.rig.server.throttle(Some(8 * MIB as u64));
        let id = start(&scene.rig, &scene.rig.serve(&image)).await;
        scene.device.until_word(&scene.rig, &id, word).await;
        scene.rig.emulator.set_down(true);
        scene.rig.server.throttle(None);
        let slot = if number % 2 == 0 { Slot::B } else { Slot::A };
        // The update does not wait for the hub.
        scene
            .device
            .until("confirmed slot without a hub", |device| {
                let confirmed = device.variable("fwupdated_slot").as_deref() == Some(slot.name());
                (confirmed && device.variable("fwupdated_trial").is_none()).then_some(())
            })
            .await;
        scene.rig.emulator.set_down(false);
        let section = scene.device.until_final(&scene.rig, &id).await;
        assert_complete(&scene, &image, &section, slot);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_updates_without_a_hub_are_both_reported_in_order() {
    let mut scene = scene("").await;
    let socket = scene.device.dir.join("control");
    scene.rig.emulator.set_down(true);
    let install = |version: &str, seed| {
        let image = image(&scene.rig, version, seed);
        let uri = scene.rig.serve(&image);
        let mut command = support::rig::fwupdatectl();
        command
            .arg("install")
            .arg(&uri)
            .args(["--id", &format!("offline-{version}")]);
        support::rig::run(command.arg("--socket").arg(&socket));
        image
    };
    install("1.1.0", 31);
    scene
        .device
        .until("first update", |d| {
            (d.variable("fwupdated_slot")? == "b").then_some(())
        })
        .await;
    scene
        .device
        .until("first report", |d| {
            d.log()
                .contains("complete, slot b is confirmed")
                .then_some(())
        })
        .await;
    let last = install("1.2.0", 32);
    scene
        .device
        .until("second update", |d| {
            (d.variable("fwupdated_slot")? == "a").then_some(())
        })
        .await;
    scene.device.kill();
    scene.device.start();
    scene.rig.emulator.set_down(false);
    let section = scene.device.until_final(&scene.rig, "offline-1.2.0").await;
    assert_complete(&scene, &last, &section, Slot::A);
    assert_eq!(scene.rig.words("offline-1.1.0"), ["applyComplete"]);
    // What was delivered is not told again, behind what came after it.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let order: Vec<_> = scene
        .rig
        .emulator
        .reported_history(DEVICE)
        .iter()
        .filter_map(|entry| {
            entry["patch"]["iothubDM"]["firmwareUpdate"]["updateId"]
                .as_str()
                .map(str::to_owned)
        })
        .collect();
    assert!(order.is_sorted(), "{order:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_server_that_goes_away_and_comes_back_costs_nothing_but_time() {
    let mut scene = scene("").await;
    let image = image(&scene.rig, "1.1.0", 7);
    scene.rig.server.throttle(Some(2 * MIB as u64));
    let id = start(&scene.rig, &scene.rig.serve(&image)).await;
    scene
        .device
        .until_word(&scene.rig, &id, "downloading")
        .await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    scene.rig.server.set_down(true);
    // The device says what it waits for.
    scene
        .device
        .until("retry in words", |d| {
            d.log().contains("trying again in").then_some(())
        })
        .await;
    assert_eq!(scene.rig.section()["status"], "downloading");
    scene.rig.server.throttle(None);
    scene.rig.server.set_down(false);
    let section = scene.device.until_final(&scene.rig, &id).await;
    assert_complete(&scene, &image, &section, Slot::B);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_at_any_moment_is_clean_and_quick() {
    let mut scene = scene("").await;
    let image = image(&scene.rig, "1.1.0", 7);
    scene.rig.server.throttle(Some(MIB as u64));
    let id = start(&scene.rig, &scene.rig.serve(&image)).await;
    for pause in [0, 50, 200, 700] {
        tokio::time::sleep(Duration::from_millis(pause)).await;
        let took = scene.device.stop();
        assert!(took < Duration::from_secs(15), "{took:?}");
        scene.device.start();
    }
    scene.rig.server.throttle(None);
    let section = scene.device.until_final(&scene.rig, &id).await;
    assert_complete(&scene, &image, &section, Slot::B);
}

#[tokio::test(flavor = "multi_thread")]
async fn methods_are_answered_in_every_form_and_while_an_update_runs() {
    let mut scene = scene("").await;
    let image = image(&scene.rig, "1.1.0", 7);
    let uri = scene.rig.serve(&image);
    scene.rig.server.throttle(Some(MIB as u64));
    // JSON in a string, with another spelling.
    let (status, body) = scene
        .rig
        .invoke(json!(json!({"FWPACKAGEURI": uri}).to_string()))
        .await;
    assert_eq!(status, 200, "{body}");
    let id = body["updateId"].as_str().unwrap().to_owned();
    // The same package again, as a bare URL: accepted, the same update.
    let began = std::time::Instant::now();
    let (status, body) = scene.rig.invoke(json!(uri)).await;
    assert_eq!(
        (status, body["updateId"].as_str()),
        (200, Some(id.as_str())),
        "{body}"
    );
    assert!(began.elapsed() < Duration::from_secs(1));
    // Another one: busy, and it says with what.
    let (status, body) = scene
        .rig
        .invoke(json!({"fwPackageUri": "https://localhost/other.img"}))
        .await;
    assert_eq!(status, 409, "{body}");
    assert!(body["message"].as_str().unwrap().contains(&id), "{body}");
    let (status, body) = scene.rig.method("firmwareUpdateStatus", Value::Null).await;
    assert_eq!(
        (status, body["update"]["id"].as_str()),
        (200, Some(id.as_str())),
        "{body}"
    );
    assert_eq!(scene.rig.method("noSuchMethod", json!({})).await.0, 501);
    assert_eq!(
        scene
            .rig
            .method("firmwareUpdateRollback", json!({}))
            .await
            .0,
        409
    );
    assert_eq!(scene.rig.method("reboot", json!({})).await.0, 403);
    // Cancelled, it ends as a failure that says so.
    let (status, body) = scene.rig.method("firmwareUpdateCancel", json!({})).await;
    assert_eq!(status, 200, "{body}");
    let section = scene.device.until_final(&scene.rig, &id).await;
    assert_eq!(
        (
            section["status"].as_str(),
            section["error"]["code"].as_str()
        ),
        (Some("downloadfailed"), Some("cancelled"))
    );
    assert_eq!(
        scene.rig.method("firmwareUpdateCancel", json!({})).await.0,
        409
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_desired_version_installs_once_and_a_bad_one_is_not_tried_again() {
    let mut scene = scene("").await;
    let image = image(&scene.rig, "2.0.0", 7);
    let uri = scene.rig.serve(&image);
    let desired = json!({"firmware": {"fwVersion": "2.0.0", "fwPackageURI": uri, "fwPackageCheckValue": null}});
    scene.rig.emulator.patch_desired(DEVICE, &desired).unwrap();
    let firmware =
        |rig: &Rig| rig.emulator.twin(DEVICE)["properties"]["reported"]["firmware"].clone();
    scene
        .device
        .until("desired version", |_| {
            (firmware(&scene.rig)["currentFwVersion"] == "2.0.0").then_some(())
        })
        .await;
    assert_eq!(firmware(&scene.rig)["fwUpdateStatus"], "current");
    assert_eq!(scene.device.running(), Slot::B);
    // A version that is not there: an error, once.
    let bad = json!({"firmware": {"fwVersion": "3.0.0", "fwPackageURI": scene.rig.server.url("/absent.img")}});
    scene.rig.emulator.patch_desired(DEVICE, &bad).unwrap();
    scene
        .device
        .until("error", |_| {
            let status = firmware(&scene.rig)["fwUpdateStatus"].clone();
            (status == "error" || status == "rolledback").then_some(())
        })
        .await;
    let asked = scene.rig.server.requests().len();
    scene.device.kill();
    scene.device.start();
    let connects = scene.rig.emulator.connections(DEVICE);
    scene
        .device
        .until("next connection", |_| {
            (scene.rig.emulator.connections(DEVICE) > connects).then_some(())
        })
        .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(
        scene.rig.server.requests().len(),
        asked,
        "the same bad version was tried again"
    );
}

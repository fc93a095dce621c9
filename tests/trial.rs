//! What surrounds a trial boot, with the real programs: the baseline of failed units, the operator's hooks, files that
//! are carried over, and slots that do not share their state.

mod support;

#[path = "trial/carry_over.rs"]
mod carry_over;
#[path = "trial/failed_units.rs"]
mod failed_units;

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use fwupdated::update::slot::Slot;
use serde_json::{Value, json};
use support::rig::{Device, Rig, noise};

/// Starts an update to `version`; returns its id.
async fn start(rig: &Rig, version: &str) -> String {
    let seed = version
        .bytes()
        .fold(7, |seed, byte| seed * 31 + u64::from(byte));
    let image = rig.build(version, noise(1 << 20, seed), &[]);
    let id = format!("to-{version}");
    let payload = json!({"fwPackageUri": rig.serve(&image), "updateId": id});
    let (status, body) = rig.invoke(payload).await;
    assert_eq!(status, 200, "{body}");
    id
}

/// A program, as an operator installs it.
fn program(file: &Path, text: &str) {
    let folder = file.parent().unwrap();
    fs::create_dir_all(folder).unwrap();
    fs::set_permissions(folder, PermissionsExt::from_mode(0o755)).unwrap();
    fs::write(file, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(file, PermissionsExt::from_mode(0o755)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn hooks_run_at_their_moments_and_only_before_the_arming_can_they_stop_the_update() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let path = dir.path().join("device");
    let hooks = path.join("hooks.d");
    let settings = format!("[hooks]\ndir = \"{}\"\n", hooks.display());
    let mut device = Device::new(&rig, &path, 4 << 20, "1.0.0", &settings);
    let told = path.join("told");
    let tell = format!(
        "echo $FWUPDATED_HOOK $FWUPDATED_UPDATE_ID $FWUPDATED_SLOT $FWUPDATED_FROM_VERSION-$FWUPDATED_VERSION \
         $FWUPDATED_ERROR_CODE >>{}",
        told.display()
    );
    for moment in [
        "pre-install",
        "post-install",
        "pre-reboot",
        "confirmed",
        "rolled-back",
    ] {
        program(&hooks.join(moment).join("10-tell"), &tell);
        if !moment.ends_with("install") {
            // Nobody listens.
            program(&hooks.join(moment).join("20-no"), "exit 1");
        }
    }
    device.boot();
    device.until_connected(&rig).await;

    let id = start(&rig, "2.0.0").await;
    let section = device.until_final(&rig, &id).await;
    assert_eq!(
        section["status"],
        "applyComplete",
        "{section:#}\n{}",
        device.log()
    );
    let moments = |device: &Device| {
        let told = fs::read_to_string(device.dir.join("told")).unwrap();
        fs::remove_file(device.dir.join("told")).unwrap();
        told.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let expected = ["pre-install", "post-install", "pre-reboot", "confirmed"]
        .map(|moment| format!("{moment} to-2.0.0 b 1.0.0-2.0.0"));
    assert_eq!(moments(&device), expected);

    let bad = device.add_health_check("10-bad", "exit 1");
    let id = start(&rig, "3.0.0").await;
    let section = device.until_final(&rig, &id).await;
    assert_eq!(
        section["error"]["code"], "health-check-failed",
        "{section:#}"
    );
    let last = moments(&device).pop();
    assert_eq!(
        last.as_deref(),
        Some("rolled-back to-3.0.0 a 2.0.0-3.0.0 health-check-failed")
    );
    fs::remove_file(bad).unwrap();

    // A hook before the installation keeps the slot as it is; one after it keeps it from being armed.
    let slot = device.slot_file(Slot::A);
    let before = fs::read(&slot).unwrap();
    let no = "echo the pump is running\nexit 1";
    program(&hooks.join("pre-install/20-no"), no);
    let id = start(&rig, "4.0.0").await;
    let section = device.until_final(&rig, &id).await;
    assert_eq!(section["status"], "downloadfailed", "{section:#}");
    assert_eq!(section["error"]["code"], "hook-failed", "{section:#}");
    let message = section["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("pre-install hook 20-no failed: the pump is running"),
        "{message}"
    );
    assert!(before == fs::read(&slot).unwrap());
    fs::remove_file(hooks.join("pre-install/20-no")).unwrap();
    program(&hooks.join("post-install/20-no"), no);
    let boots = device.boots;
    let id = start(&rig, "5.0.0").await;
    let section = device.until_final(&rig, &id).await;
    assert_eq!(section["error"]["code"], "hook-failed", "{section:#}");
    assert_eq!(
        (device.variable("fwupdated_trial"), device.boots),
        (None, boots)
    );
}

/// A device whose state lies in the slots: each boot finds that of its own.
fn with_state_in_the_slots(rig: &Rig, path: &Path) -> Device {
    let mut device = Device::new(rig, path, 4 << 20, "1.0.0", "");
    let dir = path.to_owned();
    for slot in Slot::ALL {
        fs::create_dir(dir.join(format!("state-{slot}"))).unwrap();
    }
    device.on_boot = Some(Box::new(move |_, slot| {
        let _ = fs::remove_file(dir.join("state"));
        std::os::unix::fs::symlink(dir.join(format!("state-{slot}")), dir.join("state")).unwrap();
    }));
    device
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_without_the_state_confirms_itself_and_tells_its_version_and_its_update() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut device = with_state_in_the_slots(&rig, &dir.path().join("device"));
    device.boot();
    device.until_connected(&rig).await;
    let id = start(&rig, "2.0.0").await;
    device.stop_before_the_reboot().await;
    assert_eq!(
        device.variable("fwupdated_job").as_deref(),
        Some("to-2.0.0 2.0.0")
    );
    let section = device.until_final(&rig, &id).await;
    assert_eq!(
        section["status"],
        "applyComplete",
        "{section:#}\n{}",
        device.log()
    );
    assert_eq!(section["fwVersion"], "2.0.0", "{section:#}");
    assert_eq!(device.running(), Slot::B);
    assert_eq!(device.variable("fwupdated_slot").as_deref(), Some("b"));
    let reported = &rig.emulator.twin(support::rig::DEVICE)["properties"]["reported"];
    assert_eq!(
        reported["firmware"]["currentFwVersion"], "2.0.0",
        "{reported:#}"
    );
    assert_eq!(
        reported["fwupdated"]["slots"]["b"]["version"], "2.0.0",
        "{reported:#}"
    );

    // And back again, over what the first slot still believes.
    let id = start(&rig, "3.0.0").await;
    let section = device.until_final(&rig, &id).await;
    assert_eq!(
        (&section["status"], device.running()),
        (&json!("applyComplete"), Slot::A),
        "{section:#}"
    );
    assert_eq!(section["fwVersion"], "3.0.0", "{section:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_without_the_state_that_is_not_healthy_is_left_and_the_old_one_says_that_it_failed()
{
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut device = with_state_in_the_slots(&rig, &dir.path().join("device"));
    device.add_health_check("10-bad", "exit 1");
    device.boot();
    device.until_connected(&rig).await;
    let id = start(&rig, "2.0.0").await;
    let ended = |device: &mut Device| {
        let section = rig.section();
        let failed = section["updateId"] == id.as_str() && section["status"] == "applyFailed";
        (failed && device.running() == Slot::A).then_some(section)
    };
    let section: Value = device.until("failure", ended).await;
    assert_eq!(section["error"]["code"], "trial-boot-failed", "{section:#}");
    let text = fs::read_to_string(device.dir.join("state-a/state.json")).unwrap();
    let saved: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(saved["knownBad"][0]["version"], "2.0.0", "{saved:#}");
    assert_eq!(device.variable("fwupdated_slot").as_deref(), Some("a"));
}
